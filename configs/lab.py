"""The default experiment: a generated prior, four regimes and their controls at one ledger value.

    python -m ceiling --config configs/lab.py --workdir runs/quickstart
    python -m ceiling --config configs/lab.py:tiny --workdir runs/tiny      # a smoke run: minutes, no verdicts
"""

import ceiling
from ceiling.tasks.lab.recipe import LR, MIX, MODEL, PRIOR, ROWS, TEACHER, THOUGHTS

# X (depth 4) is put back in the arm grpo_x: the same problems in and out of the training mix are the honest pair for
# the crossing at high k.
MIX_WITH_X = {**{group: 0.82 * share for group, share in MIX.items()}, "X": 0.18}


def get_config(variant: str = ""):
    config = ceiling.defaults("lab", arms=arms())
    config.name = "lab"
    config.seeds = (51, 52, 53)
    config.workers = 2
    config.train.mix = MIX
    config.aggregates = {
        "training mix": "C R V U A Ap M",
        "training mix without M": "C R V U A Ap",
    }
    config.report.pair = "grpo grpo_x X"
    config.model.update(MODEL)
    config.prior.update(PRIOR)
    config.teacher.update(TEACHER)
    config.budget.flops = 2.2e11
    config.task.evaluation_per_group = 16
    config.eval.update(n=512, verdict_k=256, likelihood_samples=4)
    config.report.every_s = 300
    if variant == "tiny":
        shrink(config)
    elif variant:
        raise ValueError(f"configs/lab.py:{variant} is not a variant; use configs/lab.py or configs/lab.py:tiny")
    return config


def arms() -> dict:
    thinking = dict(**ROWS, **THOUGHTS, lr=LR["rlp"])
    return {
        "grpo": ceiling.arm("grpo", title="GRPO", lr=LR["grpo"], **ROWS),
        "sft": ceiling.arm("sft", title="SFT", lr=LR["sft"], **ROWS),
        "distill": ceiling.arm("distill", title="distillation", lr=LR["distill"], **ROWS),
        "grpo_x": ceiling.arm("grpo", title="GRPO, X in the mix", lr=LR["grpo"], mix=MIX_WITH_X, **ROWS),
        "rlp": ceiling.arm("rlp", title="RLP", **thinking),
        "cpt": ceiling.arm("sft", title="continued pretraining", control=True, lr=LR["text"], source="text",
                           replay=0.5, **ROWS),
        "rlp_empty": ceiling.arm("rlp", title="RLP, empty thoughts", control=True,
                                 **{**thinking, "max_thought_tokens": 1}),
    }  # fmt: skip


def shrink(config) -> None:
    """Small enough for a test: every stage runs, nothing is learned."""
    config.seeds = (1,)
    config.workers = 1
    config.prior.update(steps=3, prompts_per_step=8)
    config.teacher.update(steps=2, prompts_per_step=8)
    config.task.update(evaluation_per_group=2, training_per_group=64, gate_problems=2, gate_accuracy=0.0)
    config.budget.flops = 3e8
    config.eval.update(n=8, verdict_k=4, ks=(1, 2, 4, 8), likelihood_samples=2, gain_samples=2)
    for arm in config.arms.values():
        arm.update(prompts_per_step=4, samples_per_prompt=2, microbatches=1, pool=32)
    config.arms.distill.keep = "all"  # an untrained teacher is never right


def sweep(add):
    """Learning rates of every arm, the same number of trials each."""
    for scale in (0.5, 1.0, 2.0):
        add(f"lr_x{scale}", {f"arms.{name}.lr": arm.lr * scale for name, arm in arms().items()})


def sweep_coverage(add):
    """The prior's coverage of R, V and U against the height that reward training reaches on each of them."""
    for scale in (0.2, 1.0, 5.0):
        add(f"rho_x{scale}", {f"task.rho.{group}": lambda rho, scale=scale: min(1.0, scale * rho) for group in "RVU"})


def sweep_budget(add):
    """Every arm's FLOPs; one prior."""
    for scale in (0.25, 0.5, 1.0, 2.0):
        add(f"flops_x{scale}", {"budget.flops": lambda flops, scale=scale: scale * flops})
