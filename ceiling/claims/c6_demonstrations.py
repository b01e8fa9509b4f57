"""An agent trained on static demonstrations is capped by what their curators imagined; one that acts is not."""

from ceiling.claims.agents import COVERED, UNCOVERED, experiment
from ceiling.claims.base import Claim, Test


def experiments(scale):
    return {"main": experiment(scale, "expert grpo half half_grpo il pause pause_il world world_il reflection")}


def gain(first, second, groups):
    return lambda e: e["main"].gain(first, second, 1, groups)


BEYOND = f"{UNCOVERED} X"
CLAIM = Claim(
    id="C6", title="Bound by demonstrations", sources=("2510.08558",), experiments=experiments,
    groups=f"{COVERED} {BEYOND}",
    finding="An agent trained on static demonstrations is capped by what the curators imagined.",
    tests=(
        Test("inside", f"Imitation raises success where the demonstrations are ({COVERED}) by more than 0.05.",
             gain("expert", "base", COVERED), margin=0.05),
        Test("outside", f"Where they are not and the prior is seldom right ({UNCOVERED}), GRPO raises it by 0.05.",
             gain("grpo", "base", UNCOVERED), margin=0.05),
        Test("above imitation", "There it is above imitation by 0.05, at the same FLOPs.",
             gain("grpo", "expert", UNCOVERED), margin=0.05),
        Test("recovery", "It recovers more often after a forced wrong call (W).", gain("grpo", "expert", "W")),
        Test("forgotten", "Imitation loses 0.05 of what the prior could do and the expert does not show (X).",
             gain("base", "expert", "X"), margin=0.05),
        Test("interaction after imitation", "Half imitation, half GRPO is above imitation where it is not shown.",
             gain("half_grpo", "expert", UNCOVERED), margin=0.05),
        Test("world model", f"Next states before imitation are above imitation in two parts beyond it ({BEYOND}).",
             gain("world_il", "pause_il", BEYOND)),
        Test("self-reflection", "Self-reflection is above imitation there, at equal updates.",
             gain("reflection", "il", BEYOND)),
    ),
    tried="In a first version (three seeds of configs/agents.py) the policy in training drew the alternatives and "
          "demonstrations filled the rows that they left: 3 to 20 % of the rows were early experience, and the control "
          "of next states was an imitation without their restart. What is judged here was stated after that was seen, "
          "and before its arms ran. Then X stood among what imitation is compared on; a test of its own says now that "
          "imitation forgets it, because the prior can do it.",
    refuted_by="Imitation that does as well outside what its demonstrations cover as agents that interact, or recovers "
               "as often.",
)  # fmt: skip
