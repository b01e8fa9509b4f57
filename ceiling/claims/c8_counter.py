"""Counter-evidence: long training with resets, composition at the edge of competence, and the prior as a variable."""

import numpy as np

from ceiling.claims.base import Claim, Test
from ceiling.claims.lab import experiment, grpo, sft

LONG = dict(spend=3.0)
EDGE = {"1": 0.5, "2": 0.5, "3": 0.0, "4": 0.0}  # depths of the corpus: what lies deeper is composition
MIXTURES = {  # strategies of the corpus: one of two is the commoner
    "much_s": {"S": 0.40, "P": 0.05, "L": 0.10, "D": 0.10, "B": 0.15, "N": 0.20},
    "much_l": {"S": 0.10, "P": 0.05, "L": 0.40, "D": 0.10, "B": 0.15, "N": 0.20},
}


def experiments(scale):
    out = {
        "main": experiment(scale, {
            "grpo_long": grpo("GRPO, three budgets", **LONG),
            "prorl": grpo("with resets (ProRL)", kl="k3", kl_beta=1e-3, clip_high=0.4, minibatches=4, reset_every=20,
                          **LONG),
        }),
        # Problems of depth 1 and 2 are shown, 3 is trained on, 4 is never seen. The gate asks for depth 3 as well.
        "edge": experiment(scale, {
            "grpo": grpo("GRPO on depth 2-3", pool=1024),
            "rft": sft("rejection sampling", source="own_samples", pool=1024),
        }, mix={"C": 1.0}, depths=EDGE, gate_accuracy=0.0),
    }  # fmt: skip
    for name, strategies in MIXTURES.items():
        out[name] = experiment(scale, {"grpo": grpo("GRPO")}, strategies=strategies)
    return out


def share_of_s(e, name):
    return e[name].share("grpo", "S", "C") - e[name].share("base", "S", "C")


CLAIM = Claim(
    id="C8", title="Counter-evidence", sources=("2505.24864", "2509.25123", "2512.07783", "2504.07912"),
    experiments=experiments, groups="C X",
    finding="Long training with resets, and training at the edge of competence, reach beyond the prior; the prior's "
            "mixture decides which strategy reward training keeps.",
    tests=(
        Test("composition", "Trained on depth 2-3 with a prior of depth 1-2, GRPO raises pass@k on depth 4 by 0.05.",
             lambda e: e["edge"].gain("grpo", "base", e["edge"].k, "X"), margin=0.05),
        Test("more than rejection sampling", "There it is above fine-tuning on its own right samples, at pass@1.",
             lambda e: e["edge"].gain("grpo", "rft", 1, "X")),
        Test("long training", "Three budgets raise pass@k on the rarest skills (V, U) above the base.",
             lambda e: e["main"].gain("grpo_long", "base", e["main"].k, "V U")),
        Test("resets", "With resets of the reference, pass@k there is higher than without.",
             lambda e: e["main"].gain("prorl", "grpo_long", e["main"].k, "V U")),
        Test("echo chamber", "The strategy that GRPO gains most on is the one that its prior showed more.",
             lambda e: np.asarray(share_of_s(e, "much_s")) - np.asarray(share_of_s(e, "much_l")), unit="share of S"),
    ),
    refuted_by="No gain at pass@k at the edge, resets that change nothing, or one strategy whatever the prior.",
)  # fmt: skip
