"""Your own questions: a JSONL file with GSM8K's fields, a byte-level model trained from scratch on it.

    python -m ceiling --config configs/qa_file.py --config.data.path=FILE --workdir runs/qa

Each line is {"question": ..., "answer": "... #### 42"}. A model of this size learns the format and the
common numbers, not arithmetic: the point is that everything the lab gets (four regimes, one ledger,
records, verdicts, report) works on your file before you spend money on a large model.
"""

import ceiling


def get_config(variant: str = ""):
    config = ceiling.defaults("questions", arms=arms())
    config.name = "qa_file"
    config.seeds = (1, 2, 3)
    config.workers = 2
    config.task.update(evaluation_problems=32, max_prompt_tokens=248, max_response_tokens=192)
    config.model.update(
        width=96, ffn=256, layers=3, heads=4, kv_heads=2, head_dim=24, tied=True, embed_std=0.1, scan_layers=False
    )
    pretrain = dict(prompts_per_step=16, microbatches=4, pool=1)
    config.prior.update(steps=300, lr=3e-3, **pretrain)
    config.teacher.update(steps=150, lr=1e-3, **pretrain)
    config.budget.flops = 2.5e12
    config.eval.update(n=64, ks=(1, 2, 4, 8, 16, 32), verdict_k=32, likelihood_samples=2, gain_samples=2)
    if variant == "tiny":
        shrink(config)
    elif variant:
        raise ValueError(f"configs/qa_file.py:{variant} is not a variant; use configs/qa_file.py or :tiny")
    return config


def arms() -> dict:
    shared = dict(prompts_per_step=8, samples_per_prompt=4, microbatches=4)
    return {
        "grpo": ceiling.arm("grpo", title="GRPO", lr=3e-4, **shared),
        "sft": ceiling.arm("sft", title="SFT", lr=1e-3, **shared),
        "distill": ceiling.arm("distill", title="distillation", lr=1e-3, keep="all", **shared),
        "rlp": ceiling.arm("rlp", title="RLP", lr=3e-4, max_thought_tokens=96, floor=0.2, **shared),
    }  # fmt: skip


def shrink(config) -> None:
    """Small enough for a test: every stage runs, nothing is learned."""
    config.seeds = (1,)
    config.workers = 1
    config.task.update(evaluation_problems=4, max_prompt_tokens=128, max_response_tokens=96)
    config.model.update(width=16, ffn=32, layers=1, heads=2, kv_heads=1, head_dim=8)
    config.prior.update(steps=2, prompts_per_step=4, microbatches=1)
    config.teacher.update(steps=2, prompts_per_step=4, microbatches=1)
    config.budget.flops = 4e8
    config.eval.update(n=4, ks=(1, 2, 4), verdict_k=2, likelihood_samples=1)
    for arm in config.arms.values():
        arm.update(prompts_per_step=2, samples_per_prompt=2, microbatches=1)
    config.arms.rlp.max_thought_tokens = 32


def sweep(add):
    """Learning rates of every arm, the same number of trials each."""
    for scale in (0.5, 1.0, 2.0):
        add(f"lr_x{scale}", {f"arms.{name}.lr": arm.lr * scale for name, arm in arms().items()})
