r"""The GRPO family: four independent named choices instead of one algorithm each.

Per prompt, G responses y_i with rewards R_i. With rho = pi_theta / pi_old,

    loss = -AGG( min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) ) + beta AGG(KL)

    advantage    A_i from the rewards         group_std | group_mean | leave_one_out | batch_whitened
                                              | best_of_group | pass_at_k
    ratio        rho per token, or one per sequence: exp(mean_t log rho_t)          (GSPO)
    aggregation  sequence_mean_token_mean (GRPO) | token_mean (DAPO) | constant (Dr. GRPO)
    kl           none | k1 | k2 | k3, in the loss or in the reward

    GRPO         group_std      token     sequence_mean_token_mean  k3 in loss       2402.03300
    Dr. GRPO     group_mean     token     constant                  none             2503.20783
    DAPO         group_std      token     token_mean, .2/.28        none, oversample 2503.14476
    RLOO         leave_one_out  sequence  constant                  k1 in reward     2402.14740
    REINFORCE++  batch_whitened token     token_mean                k1 in reward     2501.03262
    GSPO         group_std      sequence  sequence_mean_token_mean  none             2507.18071

On-policy (one update per rollout) pi_old is the policy itself with its gradient stopped: the ratio
is exactly 1, no second forward is needed, and the recorded sampler log-probs measure the gap
between sampler and trainer. Off-policy they are pi_old.

Rewards (tasks/rewards.py), the choice of training problems and the remedies against the loss of entropy (remedies.py)
are settings too: one-problem training, spurious rewards and entropy-only controls are arms of this regime.

KL estimators with delta = log pi_ref - log pi: k1 = -delta, k2 = delta^2 / 2, k3 = e^delta - 1 - delta. In the
loss, k1's expected gradient is zero (it regularises nothing); k2's is that of KL(pi || ref).
"""

import numpy as np

from ceiling.config import Section, flag, number, text
from ceiling.model.sequences import Forward
from ceiling.regimes.base import Material, Regime, Round, ScoreRequest, noise_ids, response_example
from ceiling.regimes.grpo import remedies
from ceiling.regimes.grpo.objective import (
    ADVANTAGES,
    AGGREGATIONS,
    KLS,
    POLICY_LOSS,
    RATIOS,
    advantages,
    aggregate,
    kl_estimate,
    policy_loss,
    surrogate_from_batch,
)
from ceiling.tasks import rewards as paid

__all__ = [
    "ADVANTAGES", "AGGREGATIONS", "KLS", "POLICY_LOSS", "RATIOS", "REGIME", "advantages", "aggregate", "kl_estimate",
    "policy_loss", "surrogate_from_batch",
]  # fmt: skip

CONFIG = POLICY_LOSS | remedies.CONFIG | Section(
    reward=text("exact", choices=paid.NAMES),
    gamma=number(0.5, low=0, high=1, doc="reward=random: chance of 1"),
    label_samples=number(64, whole=True, low=1, high=65_536, doc="samples per problem that vote for its label"),
    advantage=text("group_std", choices=ADVANTAGES),
    pass_k=number(2, whole=True, low=1, doc="advantage=pass_at_k: k, below samples_per_prompt"),
    kl=text("none", choices=KLS),
    kl_beta=number(0.0, low=0),
    kl_in=text("loss", choices=("loss", "reward")),
    oversample=number(1, whole=True, low=1, high=64, doc="prompts sampled per prompt kept (dynamic sampling)"),
    drop_uninformative=flag(False, "leave out groups whose verdicts all pay the same (dynamic sampling)"),
    responses_per_row=number(1, whole=True, low=1, doc="full responses to a prompt that a packed row has room for, "
                             "each in a cell that sees its own and the prompt; the result is the same"),
    overlong_cache=number(0, whole=True, low=0, doc="soft overlong penalty: width of the ramp in tokens; 0 off"),
)  # fmt: skip


def soft_overlong(length, max_tokens: int, cache: int):
    """DAPO's length penalty: 0 up to max_tokens - cache, then linear down to -1 at max_tokens."""
    if cache == 0:
        return np.zeros_like(np.asarray(length, float))
    return -np.clip((np.asarray(length, float) - (max_tokens - cache)) / cache, 0.0, 1.0)


def rounds(cfg, task, rng):
    prompts = lambda material: [p.prompt for p in material.problems]  # noqa: E731
    return (Round("policy", cfg["samples_per_prompt"], task.max_response_tokens, prompts),)


def scores(material: Material, cfg):
    if cfg["kl"] == "none" or cfg["kl_in"] != "reward":
        return {}
    flat = [response_example(s) for group in material.samples[0] for s in group]
    return {"reference": ScoreRequest("reference", flat, cfg["temperature"])}


def verdict_rewards(material: Material, cfg) -> np.ndarray:
    """f32[N, G]: what cfg["reward"] pays, without length and KL terms."""
    labels = material.labels or {}
    return np.stack([
        paid.pay(cfg["reward"], [s.verdict for s in group], label=labels.get(problem.id), gamma=cfg["gamma"],
                 key=(*material.key, noise))
        for problem, noise, group in zip(
            material.problems, noise_ids(material.problems), material.samples[0], strict=True)
    ])  # fmt: skip


def informative(material: Material, cfg) -> np.ndarray:
    """bool[N]: groups that are not all paid the same. Length and KL terms do not make a group informative:
    they differ in nearly every group, so dynamic sampling on them would keep all (invariant GR-7)."""
    reward_NG = verdict_rewards(material, cfg)
    return reward_NG.max(axis=1) > reward_NG.min(axis=1)


def rewards(material: Material, cfg) -> np.ndarray:
    """f32[N, G]: verdict reward, length penalty, and -beta * k1 where the KL is in the reward."""
    groups = material.samples[0]
    out = verdict_rewards(material, cfg)
    if cfg["overlong_cache"]:
        lengths = np.array([[len(s.tokens) for s in group] for group in groups])
        out += soft_overlong(lengths, material.task.max_response_tokens, cfg["overlong_cache"])
    if "reference" in material.scores:
        flat = [s for group in groups for s in group]
        k1 = [
            float(np.sum(s.logprobs - reference))
            for s, reference in zip(flat, material.scores["reference"], strict=True)
        ]  # fmt: skip
        out -= cfg["kl_beta"] * np.reshape(k1, out.shape)
    return out


def examples(material: Material, cfg):
    reward_NG = rewards(material, cfg)
    kept = np.arange(len(reward_NG))
    if cfg["drop_uninformative"]:
        kept = kept[informative(material, cfg)]
    kept = kept[: cfg["prompts_per_step"]]
    if not len(kept):
        return []
    advantage_NG = advantages(reward_NG[kept], kind=cfg["advantage"], pass_k=cfg["pass_k"])
    samples = [s for i in kept for s in material.samples[0][i]]
    extras = [{"behaviour": s.logprobs, "advantage": a} for s, a in zip(samples, advantage_NG.ravel(), strict=True)]
    if cfg["remedy"] != remedies.NONE:
        rng = np.random.default_rng([*material.key, 44])
        chosen = remedies.choose([s.logprobs for s in samples], advantage_NG.ravel(), cfg, rng)
        extras = [{**extra, "handled": handled} for extra, handled in zip(extras, chosen, strict=True)]
    return [response_example(s, **extra) for s, extra in zip(samples, extras, strict=True)]


def loss(params, batch, frozen, forward, cfg):
    in_loss = cfg["kl"] != "none" and cfg["kl_in"] == "loss"
    ref_logp_BT = None
    if in_loss:
        reference = frozen["reference"]
        ref_logp_BT, _ = Forward(reference.config).logprobs(reference.params, batch, temperature=cfg["temperature"])
    kl = cfg["kl"] if in_loss else None
    return surrogate_from_batch(
        params, batch, forward, cfg, ref_logp_BT, kl, cfg["kl_beta"], **remedies.terms(batch, cfg)
    )


def metrics(material: Material, cfg):
    """reward is what was paid, right the verifier's word. sampled_entropy is that of arXiv:2505.22617: the mean over
    responses of the mean of -log pi over a response's tokens, of all samples and under the policy that drew them."""
    reward_NG = rewards(material, cfg)
    flat = [s for group in material.samples[0] for s in group]
    return {
        "reward": float(reward_NG.mean()),
        "sampled_entropy": -float(np.mean([np.mean(s.logprobs) for s in flat if len(s.tokens)])),
        "right": float(np.mean([s.verdict.right for s in flat])),
        "uninformative_groups": float(np.mean(~informative(material, cfg))),
        "truncated": float(np.mean([not s.stopped for s in flat])),
    }


def reads(cfg) -> tuple[str, ...]:
    return ("prompt", "answer") if cfg["reward"] in paid.READ_THE_ANSWER else ("prompt",)


REGIME = Regime(
    name="grpo", config=CONFIG, reads=reads, rounds=rounds, scores=scores,
    examples=examples, loss=loss, metrics=metrics,
    frozen=lambda cfg: ("reference",) if cfg["kl"] != "none" and cfg["kl_in"] == "loss" else (),
    labels=lambda cfg: cfg["label_samples"] if cfg["reward"] in paid.LABELLED else 0,
)  # fmt: skip
