"""Three reasoning-gym tasks, frozen to a file: a byte-level model from scratch, or a checkpoint.

    python -m ceiling --config configs/gym.py --workdir runs/gym
    python -m ceiling --config configs/gym.py:tiny --workdir runs/gym_tiny          # minutes, no verdicts
    python -m ceiling --config configs/gym.py:tiny_model --workdir runs/gym_model   # scripts/make_model.py

Groups are the tasks; the items are made once and kept in `config.data.path`, beside them the rate at which answers
that know nothing are right. The arms learn from the verifier, from the answers alone (reasoning-gym has no solutions)
and from a teacher that saw more of them. `tiny_model` runs on the directory runs/tiny_model; for a published
checkpoint take that variant's form and the settings of configs/real.py. Needs the extra: pip install "ceiling[tasks]".
"""

import ceiling

TASKS = ("chain_sum", "lcm", "base_conversion")


def get_config(variant: str = ""):
    config = ceiling.defaults("gym", arms=arms())
    config.name = "gym"
    config.workers = 2
    config.data.path = "runs/gym.jsonl"
    config.train.mix = dict.fromkeys(TASKS, 1.0)
    config.task.update(tasks=" ".join(TASKS), training_per_task=1024, evaluation_per_task=32, max_prompt_tokens=384,
                       max_response_tokens=96)  # fmt: skip
    config.model.update(width=96, ffn=256, layers=3, heads=4, kv_heads=2, head_dim=24, embed_std=0.1, scan_layers=False)
    pretrain = dict(prompts_per_step=16, microbatches=4, pool=1)
    config.prior.update(steps=600, lr=3e-3, **pretrain)
    config.teacher.update(steps=300, lr=1e-3, **pretrain)
    config.budget.flops = 2e12
    config.eval.update(n=64, ks=(1, 2, 4, 8, 16, 32), verdict_k=32, likelihood_samples=2, gain_samples=2)
    config.plan.device = "cpu"
    if variant in ("tiny", "tiny_model"):
        shrink(config)
    elif variant:
        raise ValueError(f"configs/gym.py:{variant} is not a variant; use configs/gym.py, :tiny or :tiny_model")
    if variant == "tiny_model":
        config.model = ceiling.defaults("gym").model  # the architecture is the checkpoint's
        config.model.path = "runs/tiny_model"
    return config


def arms() -> dict:
    shared = dict(prompts_per_step=8, samples_per_prompt=4, microbatches=4)
    return {
        "grpo": ceiling.arm("grpo", title="GRPO", lr=3e-4, **shared),
        "sft": ceiling.arm("sft", title="SFT", lr=1e-3, **shared),
        "distill": ceiling.arm("distill", title="distillation", lr=1e-3, keep="all", **shared),
        "rlp": ceiling.arm("rlp", title="RLP", lr=3e-4, max_thought_tokens=32, floor=0.2, **shared),
    }


def shrink(config) -> None:
    """Small enough for a test: every stage runs, nothing is learned."""
    config.seeds = (1,)
    config.workers = 1
    config.data.path = "runs/gym_tiny.jsonl"
    config.task.update(training_per_task=16, evaluation_per_task=2)
    config.model.update(width=16, ffn=32, layers=1, heads=2, kv_heads=1, head_dim=8)
    config.prior.update(steps=2, prompts_per_step=4, microbatches=1)
    config.teacher.update(steps=2, prompts_per_step=4, microbatches=1)
    config.budget.flops = 3e8
    config.eval.update(n=4, ks=(1, 2, 4), verdict_k=2, likelihood_samples=1)
    for arm in config.arms.values():
        arm.update(prompts_per_step=2, samples_per_prompt=2, microbatches=1, pool=16)


def sweep(add):
    """Learning rates of every arm, the same number of trials each."""
    for scale in (0.5, 1.0, 2.0):
        add(f"lr_x{scale}", {f"arms.{name}.lr": arm.lr * scale for name, arm in arms().items()})
