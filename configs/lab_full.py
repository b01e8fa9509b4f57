"""The default experiment at full size: five seeds, n = 1024, more problems and more controls.

    python -m ceiling --config configs/lab_full.py --workdir runs/lab_full
"""

import importlib.util
import pathlib

import ceiling
from ceiling.tasks.lab.recipe import ROWS

_spec = importlib.util.spec_from_file_location("lab", pathlib.Path(__file__).with_name("lab.py"))
lab = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lab)


def get_config(variant: str = ""):
    config = lab.get_config(variant)
    config.name = "lab_full"
    config.arms.update(controls())
    if variant == "tiny":
        lab.shrink(config)
        return config
    config.seeds = (21, 22, 23, 24, 25)
    config.task.evaluation_per_group = 64
    config.prior.steps, config.teacher.steps = 1500, 1000
    config.budget.flops = 4.5e11
    config.eval.update(n=1024, verdict_k=512, ks=tuple(2**i for i in range(10)))
    return config


def controls() -> dict:
    """What separates the effect of reward from the information in the data."""
    return {
        "rft": ceiling.arm("sft", title="SFT on own correct samples", source="own_samples", lr=2e-3, **ROWS),
        "grpo_dense": ceiling.arm("grpo", title="GRPO, per-digit reward", reward="dense", lr=1.4e-3, **ROWS),
        "on_policy_kd": ceiling.arm("distill", title="on-policy distillation (reverse KL)", loss="divergence",
                                    beta=1.0, on_policy=1.0, keep="all", lr=1e-3, **ROWS),
        "drgrpo": ceiling.arm("grpo", title="Dr. GRPO", advantage="group_mean", aggregation="constant",
                              lr=1.4e-3, **ROWS),
        "grpo_format": ceiling.arm("grpo", title="GRPO, format reward", control=True, reward="format", lr=1.4e-3,
                                   **ROWS),
    }  # fmt: skip


sweep_coverage, sweep_budget = lab.sweep_coverage, lab.sweep_budget


def sweep(add):
    """Learning rates of every arm, controls included, the same number of trials each."""
    for scale in (0.5, 1.0, 2.0):
        add(f"lr_x{scale}", {f"arms.{name}.lr": arm.lr * scale for name, arm in {**lab.arms(), **controls()}.items()})
