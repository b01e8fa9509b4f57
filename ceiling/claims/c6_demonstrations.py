"""An agent trained on static demonstrations is capped by what their curators imagined; one that acts is not."""

from ceiling.claims.agents import COVERED, UNCOVERED, experiment
from ceiling.claims.base import Claim, Test


def experiments(scale):
    return {"main": experiment(scale, "expert grpo half half_grpo il world world_il reflection")}


def gain(first, second, groups):
    return lambda e: e["main"].gain(first, second, 1, groups)


CLAIM = Claim(
    id="C6", title="Bound by demonstrations", sources=("2510.08558",), experiments=experiments,
    groups=f"{COVERED} {UNCOVERED}",
    finding="An agent trained on static demonstrations is capped by what the curators imagined.",
    tests=(
        Test("inside", f"Imitation raises success where the demonstrations are ({COVERED}) by more than 0.05.",
             gain("expert", "base", COVERED), margin=0.05),
        Test("outside", f"GRPO is above imitation by 0.05 where they are not ({UNCOVERED}), at the same FLOPs.",
             gain("grpo", "expert", UNCOVERED), margin=0.05),
        Test("recovery", "GRPO recovers more often after a forced wrong call (W).", gain("grpo", "expert", "W")),
        Test("interaction after imitation", "Half imitation, half GRPO is above imitation there, at the same FLOPs.",
             gain("half_grpo", "expert", UNCOVERED), margin=0.05),
        Test("world model", "Next-state prediction before imitation is above imitation there, at equal updates.",
             gain("world_il", "il", UNCOVERED)),
        Test("self-reflection", "So is self-reflection.", gain("reflection", "il", UNCOVERED)),
    ),
    refuted_by="Imitation that does as well outside what its demonstrations cover as agents that interact, or recovers "
               "as often.",
)  # fmt: skip
