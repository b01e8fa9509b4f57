"""Reward training samples better inside the prior's boundary; one example or a spurious reward may nearly suffice."""

import functools

from ceiling.claims import lab
from ceiling.claims.base import Claim, Test
from ceiling.claims.lab import REACHED, TRAINED, experiment

INNER = dict(minibatches=8)  # updates per rollout: without them a clip cannot bind


def experiments(scale):
    # 256 problems: each is visited several times, so that its accuracy has a history, and labels cost less than an arm.
    grpo = functools.partial(lab.grpo, pool=256)
    history = dict(select="variance", select_from="grpo")
    return {"main": experiment(scale, {
        "grpo": grpo("GRPO, all problems"),
        "one": grpo("one problem", examples=1, **history),
        "four": grpo("four problems", examples=4, **history),
        "majority": grpo("majority label", reward="majority"),
        "incorrect": grpo("wrong labels only", reward="incorrect"),
        "random_clip": grpo("random reward, clipped", reward="random", **INNER),
        "random_no_clip": grpo("random reward, no clip", reward="random", clip_low=0.0, clip_high=0.0, control=True,
                               **INNER),
        "format": grpo("format reward", reward="format", control=True),
        "entropy_only": grpo("entropy bonus alone", reward="none", entropy_bonus=1e-3, control=True),
    })}  # fmt: skip


def half_of_grpo(arm):
    """(arm - base) - half of (GRPO - base) at pass@1 on C."""
    return lambda e: e["main"].gain(arm, "base", 1, "C") - 0.5 * e["main"].gain("grpo", "base", 1, "C")


CLAIM = Claim(
    id="C1", title="Inside the boundary", sources=("2504.13837", "2504.20571", "2506.10947"), experiments=experiments,
    finding="RLVR improves sampling efficiency inside the prior's boundary; one example or a spurious reward can "
            "nearly suffice.",
    groups=TRAINED,
    tests=(
        Test("efficiency", f"GRPO raises pass@1 on {REACHED} by more than 0.05.",
             lambda e: e["main"].gain("grpo", "base", 1, REACHED), margin=0.05),
        Test("boundary", "GRPO does not raise pass@k on the training groups by 0.05.",
             lambda e: -e["main"].gain("grpo", "base", e["main"].k, TRAINED), margin=-0.05),
        Test("one example", "One problem gives at least half of GRPO's gain at pass@1 on C.", half_of_grpo("one")),
        Test("majority label", "Labels by majority give at least half of it.", half_of_grpo("majority")),
        Test("spurious reward", "A random reward with clipped inner updates gives at least half of it.",
             half_of_grpo("random_clip")),
        Test("clip bias", "A random reward gives more with clipping than without.",
             lambda e: e["main"].gain("random_clip", "random_no_clip", 1, "C")),
    ),
    tried="One and four problems, chosen by the variance of their accuracy in the arm with all of them; random "
          "rewards (gamma 0.5) with eight inner updates, with and without a clip. Other numbers of inner updates, "
          "gammas and other ways of choosing were not tried.",
    refuted_by="A gain at pass@k as large as at pass@1, or one example and spurious rewards that give less than half "
               "of what the full data give.",
)  # fmt: skip
