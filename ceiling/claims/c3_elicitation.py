"""Five mechanisms elicit what is there already: steering vectors, critiques, decoding, SAE features, RLVR itself."""

import numpy as np

from ceiling.claims.base import Claim, Test, Undefined
from ceiling.claims.lab import REACHED, TRAINED, distill, experiment, grpo, sft, unchanged
from ceiling.evals.recovery import recovery

STEERED = dict(steering=True, lr=3e-2)


def experiments(scale):
    # Without a share of critiques in its corpus no model of the lab could learn from them.
    config = experiment(scale, {
        "grpo": grpo("GRPO (RLVR)"),
        "distill": distill("distillation"),
        "steer": grpo("steering vectors, by GRPO", **STEERED),
        "steer_random": unchanged("random vectors of their norm", start="steer", vectors="random"),
        "steer_shuffled": unchanged("the vectors, layers shuffled", start="steer", vectors="shuffled"),
        "critiques": sft("critique fine-tuning", source="critiques", replay=0.5),
        "cot": unchanged("CoT-decoding", decoding="cot"),
        "greedy": unchanged("greedy decoding", decoding="greedy"),
        "prompted": unchanged("prompted: starts with S", opening="S"),
        "sae": unchanged("SAE feature", vectors="sae", strength=2.0),
        "sae_random": unchanged("random direction of its norm", vectors="sae_random", strength=2.0),
        "steer_of_grpo": distill("vectors taught by GRPO", teacher="grpo", **STEERED),
        "steer_of_teacher": distill("vectors taught by the teacher", **STEERED),
    }, critiques=0.4)  # fmt: skip
    config.sae.update(layer=0, words="S P L", before=0, after=1)
    if scale.prior < 10:
        config.sae.update(latents=8, k=2, documents=16, steps=2, tokens_per_step=64)
    return {"main": config}


def half_of_grpo(arm, groups="C"):
    return lambda e: e["main"].gain(arm, "base", 1, groups) - 0.5 * e["main"].gain("grpo", "base", 1, groups)


def recovery_gap(e):
    """Per seed: the share of an RL target's gain that vectors recover, minus that of a distilled target's."""
    def recovered(vectors, target):
        three = (e["main"].passk(arm, 1, TRAINED) for arm in ("base", vectors, target))
        by_seed = [recovery(*(at_1_P[None] for at_1_P in at_1)) for at_1 in zip(*three, strict=True)]
        for seed, found in zip(e["main"].seeds, by_seed, strict=True):
            if found.value is None or found.gain < 0:
                raise Undefined(f"{target} has no gain over the base in seed {seed}: there is nothing to recover")
        return np.array([found.value for found in by_seed])

    return recovered("steer_of_grpo", "grpo") - recovered("steer_of_teacher", "distill")


CLAIM = Claim(
    id="C3", title="Five mechanisms", sources=("2505.18706", "2501.17703", "2402.10200", "2503.18878", "2510.07364"),
    experiments=experiments, groups=REACHED,
    finding="Steering vectors, critique fine-tuning, CoT-decoding and SAE features elicit the skill that RLVR elicits.",
    tests=(
        Test("steering vectors", f"Vectors trained by GRPO give at least half of its gain at pass@1 on {REACHED}.",
             half_of_grpo("steer", REACHED)),
        Test("not any vectors", "They give more than random ones of the same norms and than their own, shuffled.",
             lambda e: e["main"].gain("steer", "base", 1, REACHED) - np.maximum(
                 e["main"].gain("steer_random", "base", 1, REACHED),
                 e["main"].gain("steer_shuffled", "base", 1, REACHED))),
        Test("critique fine-tuning", "It gives at least half of GRPO's gain at pass@1 on C.",
             half_of_grpo("critiques")),
        Test("CoT-decoding", "It gives at least half of it, without training.", half_of_grpo("cot")),
        Test("SAE feature", "Steering by the best-scored feature gives more than a random direction of its norm.",
             lambda e: e["main"].gain("sae", "sae_random", 1, "C")),
        Test("RL against distilled targets", "Vectors recover more of an RL-trained target than of a distilled one.",
             recovery_gap, unit="recovery"),
    ),
    tried="Vectors in two layers of width 64 at one learning rate move little of what GRPO moves, taught by GRPO's "
          "samples more (.30 at pass@1) than by its reward (.21). CoT-decoding gives what greedy decoding gives (.33 "
          "both): its gain here is determinism, not the choice among branches. The SAE is of one layer and one size; "
          "its feature at twice its norm leaves no right answers, nor does a random direction: smaller strengths were "
          "not tried. Critique fine-tuning read templated critiques at one budget.",
    refuted_by="Mechanisms no better than their random controls, or vectors that recover a distilled target as well as "
               "an RL-trained one.",
)  # fmt: skip
