"""Published base models on GSM8K: four regimes at one ledger value, each with its published hyperparameters.

    python -m ceiling --config configs/real.py:qwen3-0.6b,h100 --plan                # will it fit, how long
    python -m ceiling --config configs/real.py:qwen3-0.6b,h100 --workdir runs/qwen3
    python -m ceiling --config configs/real.py:tiny --workdir runs/real_tiny         # CPU, minutes, no verdicts

The variant is MODEL[,DEVICE]: a name of MODELS below and one of DEVICES. What has to be there:

    checkpoints/MODEL              the base model, in the Hugging Face layout
    checkpoints/TEACHER            the model that distillation learns from
    data/gsm8k_train.jsonl         {"question": ..., "answer": "... #### 42"}
    data/gsm8k_test.jsonl          held out; MATH-500 instead: see configs/limit_of_rlvr.py

Both files may be read from the hub, pinned to a commit (40 hex digits; a branch or a tag is refused):

    --config.data.path=hub:openai/gsm8k@COMMIT:main/train
    --config.task.evaluation_path=hub:openai/gsm8k@COMMIT:main/test

`tiny` wants what `python scripts/make_model.py runs/tiny_model` makes.
"""

import ceiling

# name: (parameters, teacher, key/value heads)
MODELS = {
    "qwen2.5-0.5b": (4.9e8, "qwen2.5-math-1.5b", 2),
    "qwen2.5-math-1.5b": (1.5e9, "qwen2.5-math-7b", 2),
    "qwen3-0.6b": (6.0e8, "qwen3-1.7b", 8),
    "qwen3-1.7b": (1.7e9, "qwen3-4b", 8),
    "llama-3.2-1b": (1.2e9, "llama-3.2-3b", 8),
    "olmo-2-1b": (1.5e9, "olmo-2-7b", 16),
}
DEVICES = ("h100", "h200", "v5e-8", "v6e-8")
TEMPLATE = "Question: {question}\nThink step by step and end with the answer after ####.\nAnswer: "


def get_config(variant: str = "qwen3-0.6b"):
    if variant == "tiny":
        return tiny()
    model, _, device = variant.partition(",")
    device = device or "h100"
    if model not in MODELS or device not in DEVICES:
        raise ValueError(
            f"configs/real.py:{variant} is not a variant; use tiny or MODEL[,DEVICE] with MODEL one of "
            f"{', '.join(MODELS)} and DEVICE one of {', '.join(DEVICES)}"
        )
    parameters, teacher, _ = MODELS[model]
    config = ceiling.defaults("questions", arms=arms())
    config.name = model
    config.data.path = "data/gsm8k_train.jsonl"
    config.task.update(
        evaluation_path="data/gsm8k_test.jsonl", evaluation_problems=500, template=TEMPLATE, max_prompt_tokens=256,
        max_response_tokens=512,
    )  # fmt: skip
    # The weights stay float32: at these learning rates an update of a bfloat16 weight rounds to nothing.
    config.model.update(path=f"checkpoints/{model}", preset=model, param_dtype="float32", compute_dtype="bfloat16",
                        remat="block", head_chunk_tokens=2048)  # fmt: skip
    config.teacher.path = f"checkpoints/{teacher}"
    # About 200 updates of GRPO; see the plan.
    config.budget.flops = 6e8 * parameters
    config.eval.update(n=256, ks=(1, 2, 4, 8, 16, 32, 64, 128), verdict_k=128, likelihood_samples=0, gain_samples=4)
    fit(config, model, device)
    return config


def arms() -> dict:
    rl = dict(prompts_per_step=64, samples_per_prompt=8, pool=8192, schedule="constant", b2=0.999)
    text = {**rl, "lr": 1e-5, "schedule": "cosine"}
    return {
        # TRL, Dr. GRPO, DAPO: lr 1e-6, groups of 8 to 16, no KL.
        "grpo": ceiling.arm("grpo", title="GRPO", lr=1e-6, **rl),
        "sft": ceiling.arm("sft", title="SFT", **text),
        "distill": ceiling.arm("distill", title="distillation", **text),
        # The paper's thoughts have up to 2048 tokens; here they must fit the task's longest response.
        "rlp": ceiling.arm("rlp", title="RLP", lr=1e-6, temperature=0.7, max_thought_tokens=448,
                           **{**rl, "prompts_per_step": 32, "samples_per_prompt": 16}),
        "rft": ceiling.arm("sft", title="SFT on own correct samples", control=True, source="own_samples", **text),
    }  # fmt: skip


def fit(config, model: str, device: str) -> None:
    """Mesh, micro-batches and slots that `--plan` finds room for. On several devices the key/value heads are divided
    first: divided over fsdp, a decode step would gather every layer's weights for few rows."""
    kind, _, count = device.partition("-")
    devices = int(count or 1)
    tensor = min(devices, MODELS[model][2])
    config.mesh.update(tensor=tensor, fsdp=devices // tensor)
    config.plan.device = kind
    microbatches, slots = {"h100": (64, 192), "h200": (32, 384), "v5e": (128, 48), "v6e": (64, 128)}[kind]
    config.eval.slots = slots
    for arm in config.arms.values():
        arm.update(microbatches=microbatches, slots=slots)
    if kind == "v5e" and tensor < devices:  # attention of RLP's scoring is divided over few heads: shorter rows
        config.task.max_response_tokens = 320
        config.arms.rlp.max_thought_tokens = 256


def tiny():
    """Every stage on a random checkpoint: nothing is learned."""
    small = dict(prompts_per_step=4, samples_per_prompt=2, pool=64, slots=16)
    config = ceiling.defaults("questions", arms={
        "grpo": ceiling.arm("grpo", title="GRPO", lr=1e-4, entropy_bonus=0.01, **small),
        "sft": ceiling.arm("sft", title="SFT", lr=1e-3, lora_rank=4, **small),
        "distill": ceiling.arm("distill", title="distillation", lr=1e-3, keep="all", **small),
        "rlp": ceiling.arm("rlp", title="RLP", lr=1e-4, max_thought_tokens=16, **small),
    })  # fmt: skip
    config.name = "real_tiny"
    config.seeds = (1,)
    config.data.path = "runs/tiny_model/questions.jsonl"
    config.model.path = "runs/tiny_model"
    config.task.update(evaluation_problems=8, template=TEMPLATE, max_prompt_tokens=128, max_response_tokens=48)
    config.teacher.update(steps=2, prompts_per_step=8, pool=1)
    config.budget.flops = 2e9
    config.eval.update(n=8, ks=(1, 2, 4), verdict_k=4, likelihood_samples=1, gain_samples=2, slots=32)
    config.plan.device = "cpu"
    return config


def sweep(add):
    """Learning rates of every arm, the same number of trials each."""
    for scale in (0.3, 1.0, 3.0):
        add(f"lr_x{scale}", {f"arms.{name}.lr": arm.lr * scale for name, arm in arms().items()})


def sweep_budget(add):
    """Every arm's FLOPs; one base."""
    for scale in (0.25, 0.5, 1.0, 2.0):
        add(f"flops_x{scale}", {"budget.flops": lambda flops, scale=scale: scale * flops})
