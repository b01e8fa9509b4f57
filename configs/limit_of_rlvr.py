r"""The evaluation of "Does Reinforcement Learning Really Incentivize Reasoning Capacity ..." (arXiv:2504.13837).

    python -m ceiling --config configs/limit_of_rlvr.py --plan
    python -m ceiling --config configs/limit_of_rlvr.py --workdir runs/limit --config.model.path=checkpoints/MODEL

Temperature 0.6 and top-p 0.95, zero-shot, one prompt for the base and for every arm, boxed answers graded by
math-verify in processes of their own, pass@k up to 128 on MATH-500. Where this differs from the paper:

    n = 256, not 128     the paper's right-most point has k = n, where the estimator is one draw
    4096 new tokens      the paper allows 16384; the model here was trained on no more than 4096
    intervals            over problems and training seeds; the paper draws none
    training             one GRPO run per seed from this base, as in the paper's own comparison (Omni-MATH there,
                         MATH here: no KL, 8 samples per prompt at temperature 1, lr 1e-6), beside SFT and rejection
                         sampling at the same compute

What has to be there: checkpoints/qwen2.5-math-1.5b; data/math_train.jsonl and data/math500.jsonl with the fields
`problem` and `solution` (the answer is its last \boxed{}), e.g. hub:HuggingFaceH4/MATH-500@COMMIT/test for the
second. Training questions that are held out are removed and counted. Needs the extra: pip install "ceiling[verify]".
"""

import ceiling

TEMPLATE = "{question}\nPlease reason step by step, and put your final answer within \\boxed{}.\n"


def get_config(variant: str = ""):
    if variant:
        raise ValueError(f"configs/limit_of_rlvr.py:{variant} is not a variant; use configs/limit_of_rlvr.py")
    config = ceiling.defaults("questions", arms=arms())
    config.name = "limit_of_rlvr"
    config.data.path = "data/math_train.jsonl"
    config.task.update(
        question_field="problem", answer_field="solution", answer_style="boxed", grader="math", template=TEMPLATE,
        evaluation_path="data/math500.jsonl", evaluation_problems=0, max_prompt_tokens=512, max_response_tokens=3584,
        verifier_workers=8,
    )  # fmt: skip
    config.model.update(
        path="checkpoints/qwen2.5-math-1.5b", preset="qwen2.5-math-1.5b", param_dtype="float32",
        compute_dtype="bfloat16", remat="block", head_chunk_tokens=2048,
    )  # fmt: skip
    config.budget.flops = 3e18
    config.eval.update(
        n=256, temperature=0.6, top_p=0.95, ks=(1, 2, 4, 8, 16, 32, 64, 128), verdict_k=128, likelihood_samples=0,
        slots=192,
    )  # fmt: skip
    config.plan.device = "h100"
    return config


def arms() -> dict:
    shared = dict(prompts_per_step=128, samples_per_prompt=8, microbatches=1024, pool=8192, b2=0.999, slots=192)
    return {
        "grpo": ceiling.arm("grpo", title="GRPO", lr=1e-6, schedule="constant", minibatches=1, **shared),
        "sft": ceiling.arm("sft", title="SFT", lr=1e-5, **shared),
        "rft": ceiling.arm("sft", title="SFT on own correct samples", source="own_samples", lr=1e-5, **shared),
    }


def sweep(add):
    """Learning rates of every arm, the same number of trials each."""
    for scale in (0.3, 1.0, 3.0):
        add(f"lr_x{scale}", {f"arms.{name}.lr": arm.lr * scale for name, arm in arms().items()})
