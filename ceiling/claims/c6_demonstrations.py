"""An agent trained on static demonstrations is capped by what their curators imagined; one that acts is not."""

from ceiling.claims.agents import COVERED, UNCOVERED, early, experiment, grpo, sft
from ceiling.claims.base import Claim, Test

UPDATES = 60  # of every arm that imitates (EE-3); those that act get the same FLOPs instead
FIRST = 20  # of these, on next states


def experiments(scale):
    return {"main": experiment(scale, {
        "expert": sft("imitation (narrow expert)", source="expert"),
        "grpo": grpo("GRPO"),
        "half": sft("imitation, half", source="expert", spend=0.5),
        "half_grpo": grpo("imitation, then GRPO", start="half", spend=0.5),
        "il": sft("imitation, equal updates", source="expert", steps=UPDATES),
        "world": early("next states alone", kind="world_model", alternatives=8, steps=FIRST, control=True),
        "world_il": sft("world model, then imitation", source="expert", start="world", steps=UPDATES - FIRST),
        "reflection": early("self-reflection", kind="reflection", alternatives=3, steps=UPDATES),
    })}  # fmt: skip


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
