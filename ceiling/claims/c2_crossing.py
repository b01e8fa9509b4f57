"""At high k the base overtakes reward training, whatever the algorithm; distillation adds support."""

import dataclasses

import numpy as np

from ceiling.claims.base import Claim, Test
from ceiling.claims.lab import REACHED, TRAINED, distill, experiment, grpo

LADDER = ("grpo", "dr_grpo", "dapo", "rloo", "reinforce", "gspo")


def experiments(scale):
    if scale.prior >= 10:  # the tail of the curve is what this is about
        scale = dataclasses.replace(scale, n=max(scale.n, 1024), k=max(scale.k, 512))
    return {"main": experiment(scale, {
        "grpo": grpo("GRPO"),
        "dr_grpo": grpo("Dr. GRPO", advantage="group_mean", aggregation="constant"),
        "dapo": grpo("DAPO", aggregation="token_mean", minibatches=4, clip_high=0.28, oversample=2,
                     drop_uninformative=True),
        "rloo": grpo("RLOO", advantage="leave_one_out", ratio="sequence", aggregation="constant"),
        "reinforce": grpo("REINFORCE++", advantage="batch_whitened", aggregation="token_mean"),
        "gspo": grpo("GSPO", ratio="sequence", minibatches=4, clip_low=3e-4, clip_high=4e-4),
        "grpo_half": grpo("GRPO, half as long", spend=0.5),
        "grpo_long": grpo("GRPO, twice as long", spend=2.0),
        "distill": distill("distillation"),
        "distill_short": distill("distillation, a quarter", spend=0.25),
        "distill_weak": distill("distillation from that", teacher="distill_short"),
    })}  # fmt: skip


def ladder(k, groups):
    """Mean over the ladder of (arm - base) at pass@k."""
    return lambda e: np.mean([e["main"].gain(arm, "base", k or e["main"].k, groups) for arm in LADDER], axis=0)


CLAIM = Claim(
    id="C2", title="The crossing", sources=("2504.13837", "2507.14843", "2510.08325"), experiments=experiments,
    finding="The base overtakes RLVR at high k, whatever the algorithm; distillation adds support.",
    groups="X M A Ap",
    tests=(
        Test("efficiency", f"The six algorithms raise pass@1 on {REACHED} by more than 0.05 on average.",
             ladder(1, REACHED), margin=0.05),
        Test("nothing absent", "They do not raise pass@k by 0.02 where the prior has no skill (A, Ap).",
             lambda e: -ladder(0, "A Ap")(e), margin=-0.02),
        Test("crossing", "The base is above them at pass@k beyond the training mix (X).",
             lambda e: -ladder(0, "X")(e)),
        Test("trap", "The base is above them at pass@k on the minority convention (M).", lambda e: -ladder(0, "M")(e)),
        Test("more steps, less reach", "pass@k on all groups is lower after twice the budget than after half of it.",
             lambda e: e["main"].gain("grpo_half", "grpo_long", e["main"].k, TRAINED + " X")),
        Test("distillation adds", "Distillation raises pass@k by more than 0.05 where the prior has no skill (A, Ap).",
             lambda e: e["main"].gain("distill", "base", e["main"].k, "A Ap"), margin=0.05),
        Test("teacher quality", "A better teacher adds more there than a worse one, at the same budget.",
             lambda e: e["main"].gain("distill", "distill_weak", e["main"].k, "A Ap")),
    ),
    tried="Six algorithms, half and twice the budget, three qualities of teacher. On X both the base and the arms end "
          "near 1 at k = 256, so nothing is left there for the base to be ahead in; on M the arms differ: DAPO, which "
          "drops the groups without a signal, loses most (.41 over X, M, A and Ap against .50), the others little. "
          "Problems that 256 samples of the base do not solve, and larger k, were not tried at this scale.",
    refuted_by="Algorithms above the base at every k, or a skill that no corpus shows reached by reward alone.",
)  # fmt: skip
