"""The experiment that the claims vary: the lab's prior, and arms at one ledger value."""

import ceiling
from ceiling.claims.base import Scale
from ceiling.tasks.lab.recipe import LR, MIX, MODEL, PRIOR, ROWS, TEACHER

TRAINED = "C R V U A Ap M"  # groups of the training mix
REACHED = "C R V"  # of these, where the prior is right often enough for a reward to be seen

# Five seeds that nothing was tuned on. One claim takes less than half an hour on two cores.
SCALES = {
    "quick": Scale((61, 62, 63, 64, 65), flops=1.2e11, n=512, k=256, problems=12, prior=1200, teacher=700),
    "full": Scale((61, 62, 63, 64, 65, 66, 67, 68, 69, 70), flops=4.5e11, n=1024, k=512, problems=48, prior=1500,
                  teacher=1000),
    "tiny": Scale((1, 2, 3, 4), flops=3e7, n=4, k=2, problems=1, prior=2, teacher=2, workers=1),
}  # fmt: skip


SMOKE = 10  # fewer steps of a prior: nothing is learned, no gate asks for it, and nothing may depend on an answer


def experiment(scale: Scale, arms: dict, *, mix: dict = MIX, **task):
    """A configuration of the lab at a scale; task: keys of its section that make the prior another one."""
    config = ceiling.defaults("lab", arms=learnable(scale, arms))
    config.train.mix = mix
    config.model.update(MODEL)
    config.prior.update({**PRIOR, "steps": scale.prior})
    config.teacher.update({**TEACHER, "steps": scale.teacher})
    config.task.update(task)
    return sized(config, scale)


def learnable(scale: Scale, arms: dict) -> dict:
    """Without those that depend on an answer where nothing is learned."""
    smoke = scale.prior < SMOKE
    return {name: arm for name, arm in arms.items() if not (smoke and arm.get("reward") == "incorrect")}


def sized(config, scale: Scale):
    """What a scale says of any task's configuration, beside how long its models are taught."""
    config.name, config.seeds, config.workers = "claims", scale.seeds, scale.workers
    config.budget.flops = scale.flops
    config.task.evaluation_per_group = scale.problems
    ks = tuple(2**i for i in range(scale.n.bit_length()) if 2**i <= scale.k)
    config.eval.update(n=scale.n, verdict_k=scale.k, ks=ks, likelihood_samples=4)
    config.report.html = False
    if scale.prior < SMOKE:
        config.model.update(width=16, ffn=16, heads=2, kv_heads=1, head_dim=8)
        config.task.update(training_per_group=64, gate_problems=2, gate_accuracy=0.0)
        for arm in config.arms.values():
            arm.update(prompts_per_step=4, samples_per_prompt=4, microbatches=1, pool=4)
            arm.minibatches = min(arm.minibatches, 2)
            arm.steps = min(arm.steps, 1)
            if "alternatives" in arm:
                arm.alternatives = min(arm.alternatives, 4)
            if "pass_k" in arm:
                arm.pass_k = 2
            if arm.regime == "distill":
                arm.keep = "all"  # an untrained teacher is never right
    return config


def grpo(title: str, **settings):
    return ceiling.arm("grpo", title=title, **{"lr": LR["grpo"], **ROWS, **settings})


def sft(title: str, **settings):
    return ceiling.arm("sft", title=title, **{"lr": LR["sft"], **ROWS, **settings})


def distill(title: str, **settings):
    return ceiling.arm("distill", title=title, **{"lr": LR["distill"], **ROWS, **settings})


def unchanged(title: str, **settings):
    """An arm that trains nothing: its start, steered, decoded or drawn its own way."""
    return ceiling.arm("sft", title=title, spend=0.0, control=True, **settings)
