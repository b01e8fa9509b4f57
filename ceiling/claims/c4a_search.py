"""Reward training squeezes an agent's search into one way of searching; SFT on diverse demonstrations keeps many."""

from ceiling.claims.agents import COVERED, experiment
from ceiling.claims.base import Claim, Test


def experiments(scale):
    return {"main": experiment(scale, "grpo sft expert")}


def less(metric, first, second, groups=COVERED):
    """A measure of diversity (evals/summary.py): of the first arm minus of the second, by seed and problem."""
    return lambda e: e["main"].metric(metric, first, groups) - e["main"].metric(metric, second, groups)


def kept(metric):
    return less(metric, "sft", "grpo")


CLAIM = Claim(
    id="C4A", title="Collapse of search", sources=("2505.22617", "2507.14843"), experiments=experiments,
    groups=COVERED,
    finding="Reward training squeezes the diversity of an agent's search; SFT on diverse demonstrations keeps it.",
    tests=(
        Test("trajectories", "GRPO lowers the entropy of trajectories (the calls in order), at equal n.",
             less("trajectory_entropy", "base", "grpo"), unit="nats"),
        Test("strategies", "Among eight right episodes GRPO shows fewer strategies than the base.",
             less("distinct_correct", "base", "grpo"), unit="strategies"),
        Test("queries", "Among eight right episodes it asks fewer different queries.",
             less("distinct_calls_correct", "base", "grpo"), unit="queries"),
        Test("documents", "Among eight right episodes it reaches fewer different documents.",
             less("distinct_documents_correct", "base", "grpo"), unit="documents"),
        Test("SFT keeps strategies", "SFT on diverse demonstrations shows more strategies than GRPO, likewise.",
             kept("distinct_correct"), unit="strategies"),
        Test("SFT keeps queries", "It asks more different queries, likewise.", kept("distinct_calls_correct"),
             unit="queries"),
    ),
    tried="Its tests were first stated on C and R. The base is right too seldom on R for eight right episodes, so that "
          "those tests rested on C all the same; they say so since. Three of the five seeds had been seen by then (the "
          "report of configs/agents.py). Queries and documents differ little because two hops leave few to ask for.",
    refuted_by="As many strategies, queries and documents among equally many right episodes after reward training as "
               "before, or SFT that loses as many.",
)  # fmt: skip
