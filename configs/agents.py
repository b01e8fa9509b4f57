"""Agents that search: regimes and early experience from one prior, at one ledger value, in a generated world.

    python -m ceiling --config configs/agents.py --workdir runs/agents
    python -m ceiling --config configs/agents.py:tiny --workdir runs/agents_tiny    # a smoke run: minutes, no verdicts

The task is in ceiling/tasks/search; docs/agents.md says what its groups are, and how to bring documents and questions
of your own.
"""

import ceiling
from ceiling.tasks.search.recipe import LR, MIX, MODEL, PRIOR, ROWS, TEACHER, THOUGHTS

UPDATES = 60  # of the arms that are compared at equal update counts: il, world_il (with world) and reflection
FIRST = 20  # of these, on next states


def get_config(variant: str = ""):
    config = ceiling.defaults("search", arms=arms())
    config.name = "agents"
    config.seeds = (51, 52, 53)
    config.workers = 2
    config.train.mix = MIX
    config.aggregates = {"beyond the expert": "R V X W"}
    config.model.update(MODEL)
    config.prior.update(PRIOR)
    config.teacher.update(TEACHER)
    config.budget.flops = 2e11
    config.task.evaluation_per_group = 12
    config.eval.update(n=128, verdict_k=64, ks=(1, 2, 4, 8, 16, 32, 64), likelihood_samples=4)
    config.report.every_s = 300
    if variant == "tiny":
        shrink(config)
    elif variant:
        raise ValueError(f"configs/agents.py:{variant} is not a variant; use configs/agents.py or :tiny")
    return config


def arms() -> dict:
    def arm(regime: str, title: str, **settings):
        return ceiling.arm(regime, title=title, **{"lr": LR[regime], **ROWS, **settings})

    imitation = dict(source="expert")
    return {
        "grpo": arm("grpo", "GRPO"),
        "sft": arm("sft", "SFT, diverse demonstrations"),
        "expert": arm("sft", "SFT, narrow expert", **imitation),
        "distill": arm("distill", "distillation"),
        "rlp": arm("rlp", "RLP", **THOUGHTS),
        "il": arm("sft", "imitation", steps=UPDATES, **imitation),
        "world": arm("early_experience", "next states alone", kind="world_model", alternatives=8, steps=FIRST,
                     control=True),
        "world_il": arm("sft", "world model, then imitation", start="world", steps=UPDATES - FIRST, **imitation),
        "reflection": arm("early_experience", "self-reflection", kind="reflection", alternatives=3, steps=UPDATES),
    }  # fmt: skip


def shrink(config) -> None:
    """Small enough for a test: every stage runs, nothing is learned."""
    config.seeds = (1,)
    config.workers = 1
    config.model.update(width=16, ffn=16, heads=2, kv_heads=1, head_dim=8)
    config.prior.update(steps=2, prompts_per_step=8)
    config.teacher.update(steps=2, prompts_per_step=8)
    config.task.update(evaluation_per_group=1, training_per_group=64, gate_problems=2, gate_accuracy=0.0)
    config.budget.flops = 2e7
    config.eval.update(n=4, verdict_k=2, ks=(1, 2, 4), likelihood_samples=2, gain_samples=2)
    for arm in config.arms.values():
        arm.update(prompts_per_step=4, samples_per_prompt=4, microbatches=1, pool=32, slots=16)
        arm.steps = min(arm.steps, 1)
        if "alternatives" in arm:
            arm.alternatives = min(arm.alternatives, 4)
    config.arms.distill.keep = "all"  # an untrained teacher is never right


def sweep(add):
    """Learning rates of every arm, the same number of trials each."""
    for scale in (0.5, 1.0, 2.0):
        add(f"lr_x{scale}", {f"arms.{name}.lr": arm.lr * scale for name, arm in arms().items()})
