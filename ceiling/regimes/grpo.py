r"""The GRPO family: four independent named choices instead of one algorithm each.

Per prompt, G responses y_i with rewards R_i. With rho = pi_theta / pi_old,

    loss = -AGG( min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) ) + beta AGG(KL)

    advantage    A_i from the rewards         group_std | group_mean | leave_one_out | batch_whitened
                                              | best_of_group
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

KL estimators with delta = log pi_ref - log pi: k1 = -delta, k2 = delta^2 / 2, k3 = e^delta - 1 - delta. In the
loss, k1's expected gradient is zero (it regularises nothing); k2's is that of KL(pi || ref).
"""

import jax
import jax.numpy as jnp
import numpy as np

from ceiling.config import Section, flag, number, text
from ceiling.model.sequences import Forward
from ceiling.regimes.base import Material, Regime, Round, ScoreRequest, response_example
from ceiling.tasks.rewards import REWARDS

ADVANTAGES = ("group_std", "group_mean", "leave_one_out", "batch_whitened", "best_of_group")
RATIOS = ("token", "sequence")
AGGREGATIONS = ("sequence_mean_token_mean", "token_mean", "constant")
KLS = ("none", "k1", "k2", "k3")

POLICY_LOSS = Section(
    ratio=text("token", choices=RATIOS),
    aggregation=text("sequence_mean_token_mean", choices=AGGREGATIONS),
    clip_low=number(0.2, low=0, high=1, doc="half-width below 1; 0 switches that side off"),
    clip_high=number(0.2, low=0, doc="half-width above 1; 0 switches that side off"),
    entropy_bonus=number(0.0, low=0, high=1, doc="weight of the mean token entropy, subtracted from the loss"),
)
CONFIG = POLICY_LOSS | Section(
    reward=text("exact", choices=tuple(REWARDS)),
    advantage=text("group_std", choices=ADVANTAGES),
    kl=text("none", choices=KLS),
    kl_beta=number(0.0, low=0),
    kl_in=text("loss", choices=("loss", "reward")),
    oversample=number(1, whole=True, low=1, high=64, doc="prompts sampled per prompt kept (dynamic sampling)"),
    drop_uninformative=flag(False, "leave out groups whose verdicts all pay the same (dynamic sampling)"),
    overlong_cache=number(0, whole=True, low=0, doc="soft overlong penalty: width of the ramp in tokens; 0 off"),
)


def advantages(rewards_NG, *, kind: str):
    """f32[N, G] advantages of N groups of G rewards.

    group_std: (R - mean) / (std + 1e-4), Bessel-corrected. group_mean: R - mean. leave_one_out:
    R_i minus the mean of the others = G/(G-1) (R - mean). batch_whitened: centred and scaled over
    all N*G rewards. best_of_group: the best sample gets R_max - R_second, the others 0 (pass@k).
    Equal rewards in a group give exactly 0 (all kinds but batch_whitened). G = 1 raises ValueError.
    """
    rewards_NG = jnp.asarray(rewards_NG, jnp.float32)
    N, G = rewards_NG.shape
    if G < 2:
        raise ValueError(f"grpo.advantages: needs at least 2 samples per prompt, got {G}; raise samples_per_prompt")
    # Shifting by one member first makes a group of equal rewards exactly zero, rounding or not.
    shifted_NG = rewards_NG - rewards_NG[:, :1]
    centred_NG = shifted_NG - jnp.mean(shifted_NG, axis=1, keepdims=True)
    if kind == "group_std":
        return centred_NG / (jnp.std(rewards_NG, axis=1, ddof=1, keepdims=True) + 1e-4)
    if kind == "group_mean":
        return centred_NG
    if kind == "leave_one_out":
        return centred_NG * (G / (G - 1))
    if kind == "batch_whitened":
        shifted_NG = rewards_NG - rewards_NG[0, 0]
        return (shifted_NG - jnp.mean(shifted_NG)) / (jnp.std(rewards_NG, ddof=1) + 1e-4)
    if kind == "best_of_group":
        top_N2, index_N2 = jax.lax.top_k(rewards_NG, 2)
        gap_N = top_N2[:, 0] - top_N2[:, 1]
        return jnp.zeros((N, G)).at[jnp.arange(N), index_N2[:, 0]].set(gap_N)
    raise ValueError(f"grpo.advantages: kind={kind!r} is not one of {', '.join(ADVANTAGES)}")


def policy_loss(
    logp_BT, old_logp_BT, ref_logp_BT, advantage_B, mask_BT, *,
    ratio, aggregation, clip_low, clip_high, kl, beta, max_tokens=None,
):  # fmt: skip
    """Clipped surrogate with optional KL: (sum, denom, metrics); loss = sum / denom.

    logp_BT f32[B, T] is differentiated; old_logp_BT, ref_logp_BT (used if kl is not None) and
    advantage_B f32[B] are constants. mask_BT is 1 on generated tokens. clip_low, clip_high: half-widths
    or None. max_tokens: needed by aggregation "constant". Rows without tokens count nowhere (X-4).
    """
    constant = jax.lax.stop_gradient
    mask_BT = mask_BT.astype(jnp.float32)
    count_B = jnp.sum(mask_BT, axis=1)
    row_B = (count_B > 0).astype(jnp.float32)
    advantage_B1 = constant(advantage_B)[:, None]
    log_ratio_BT = jnp.where(mask_BT > 0, logp_BT - constant(old_logp_BT), 0.0)
    if ratio == "sequence":
        mean_B1 = (jnp.sum(log_ratio_BT * mask_BT, axis=1) / jnp.maximum(count_B, 1))[:, None]
        rho_BT = jnp.broadcast_to(jnp.exp(mean_B1), mask_BT.shape)
    elif ratio == "token":
        rho_BT = jnp.exp(log_ratio_BT)
    else:
        raise ValueError(f"grpo.policy_loss: ratio={ratio!r} is not one of {', '.join(RATIOS)}")
    low = -jnp.inf if clip_low is None else 1 - clip_low
    high = jnp.inf if clip_high is None else 1 + clip_high
    surrogate_BT = jnp.minimum(rho_BT * advantage_B1, jnp.clip(rho_BT, low, high) * advantage_B1)
    per_token_BT = -surrogate_BT
    kl_BT = jnp.zeros_like(mask_BT)
    if kl is not None:
        ref_logp_BT = jnp.where(mask_BT > 0, constant(ref_logp_BT), 0.0)
        kl_BT = kl_estimate(jnp.where(mask_BT > 0, logp_BT, 0.0), ref_logp_BT, kl)
        per_token_BT = per_token_BT + beta * kl_BT
    total, denom = aggregate(per_token_BT, mask_BT, aggregation, max_tokens)
    tokens = jnp.sum(mask_BT)
    over = (rho_BT > high) & (advantage_B1 > 0)
    under = (rho_BT < low) & (advantage_B1 < 0)
    metrics = {
        "clip_high_share": (jnp.sum(over * mask_BT), tokens),
        "clip_low_share": (jnp.sum(under * mask_BT), tokens),
        "ratio_mean": (jnp.sum(rho_BT * mask_BT), tokens),
        "kl": (jnp.sum(kl_BT * mask_BT), tokens),
        "response_tokens": (tokens, jnp.sum(row_B)),
    }
    return total, denom, constant(metrics)


def kl_estimate(logp, ref_logp, kind: str):
    """k1, k2 or k3 per token, with x drawn from the policy."""
    delta = ref_logp - logp
    if kind == "k1":
        return -delta
    if kind == "k2":
        return jnp.square(delta) / 2
    if kind == "k3":
        return jnp.expm1(delta) - delta
    raise ValueError(f"grpo.policy_loss: kl={kind!r} is not one of None, k1, k2, k3")


def aggregate(per_token_BT, mask_BT, aggregation: str, max_tokens: int | None = None):
    """(sum, denom) over the mask. Rows without tokens are in neither."""
    masked_BT = jnp.where(mask_BT > 0, per_token_BT, 0.0) * mask_BT
    count_B = jnp.sum(mask_BT, axis=1)
    rows = jnp.sum((count_B > 0).astype(jnp.float32))
    if aggregation == "sequence_mean_token_mean":
        return jnp.sum(jnp.sum(masked_BT, axis=1) / jnp.maximum(count_B, 1)), rows
    if aggregation == "token_mean":
        return jnp.sum(masked_BT), jnp.sum(count_B)
    if aggregation == "constant":
        if not max_tokens:
            raise ValueError("grpo.policy_loss: aggregation='constant' needs max_tokens (the longest response)")
        return jnp.sum(masked_BT), rows * max_tokens
    raise ValueError(f"grpo.policy_loss: aggregation={aggregation!r} is not one of {', '.join(AGGREGATIONS)}")


def soft_overlong(length, max_tokens: int, cache: int):
    """DAPO's length penalty: 0 up to max_tokens - cache, then linear down to -1 at max_tokens."""
    if cache == 0:
        return np.zeros_like(np.asarray(length, float))
    return -np.clip((np.asarray(length, float) - (max_tokens - cache)) / cache, 0.0, 1.0)


def surrogate_from_batch(params, batch, forward, cfg, ref_logp_BT=None, kl=None, beta=0.0):
    """policy_loss on a packed batch whose extras are advantage [B] and behaviour [B, T], the sampler's
    log-probs. Shared by the regimes that end in a policy gradient (GRPO, RLP). The loop resolves
    cfg["max_tokens"], the longest response that the arm samples."""
    want_entropy = cfg["entropy_bonus"] > 0
    logp_BT, entropy_BT = forward.logprobs(
        params, batch, temperature=cfg["temperature"], entropy=want_entropy
    )
    mask_BT, behaviour_BT = batch.mask_BT, batch.extra["behaviour"]
    own_BT = jax.lax.stop_gradient(logp_BT)
    on_policy = cfg["minibatches"] * cfg["epochs"] == 1
    total, denom, metrics = policy_loss(
        logp_BT, own_BT if on_policy else behaviour_BT, ref_logp_BT, batch.extra["advantage"], mask_BT,
        ratio=cfg["ratio"], aggregation=cfg["aggregation"], clip_low=cfg["clip_low"] or None,
        clip_high=cfg["clip_high"] or None, kl=kl, beta=beta, max_tokens=cfg["max_tokens"],
    )  # fmt: skip
    if want_entropy:
        bonus, bonus_denom = aggregate(entropy_BT, mask_BT, cfg["aggregation"], cfg["max_tokens"])
        total = total - cfg["entropy_bonus"] * bonus * denom / jnp.maximum(bonus_denom, 1e-9)
    tokens = jnp.sum(mask_BT)
    gap_BT = jnp.abs(own_BT - behaviour_BT) * mask_BT
    metrics["sampler_trainer_gap"] = (jnp.sum(gap_BT), tokens)
    metrics["sampled_nll"] = (-jnp.sum(behaviour_BT * mask_BT), tokens)
    return total, denom, metrics


def rounds(cfg, task, rng):
    prompts = lambda material: [p.prompt for p in material.problems]  # noqa: E731
    return (Round("policy", cfg["samples_per_prompt"], task.max_response_tokens, prompts),)


def scores(material: Material, cfg):
    if cfg["kl"] == "none" or cfg["kl_in"] != "reward":
        return {}
    flat = [response_example(s) for group in material.samples[0] for s in group]
    return {"reference": ScoreRequest("reference", flat, cfg["temperature"])}


def verdict_rewards(material: Material, cfg) -> np.ndarray:
    """f32[N, G]: what the verdicts alone pay."""
    reward = REWARDS[cfg["reward"]]
    return np.array([[reward(s.verdict) for s in group] for group in material.samples[0]], np.float32)


def informative(material: Material, cfg) -> np.ndarray:
    """bool[N]: groups whose verdict rewards differ. Length and KL terms do not make a group informative:
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
    advantage_NG = np.asarray(advantages(reward_NG[kept], kind=cfg["advantage"]))
    return [
        response_example(s, behaviour=s.logprobs, advantage=a)
        for row, i in zip(advantage_NG, kept, strict=True)
        for a, s in zip(row, material.samples[0][i], strict=True)
    ]  # fmt: skip


def loss(params, batch, frozen, forward, cfg):
    in_loss = cfg["kl"] != "none" and cfg["kl_in"] == "loss"
    ref_logp_BT = None
    if in_loss:
        reference = frozen["reference"]
        ref_logp_BT, _ = Forward(reference.config).logprobs(reference.params, batch, temperature=cfg["temperature"])
    kl = cfg["kl"] if in_loss else None
    return surrogate_from_batch(params, batch, forward, cfg, ref_logp_BT, kl, cfg["kl_beta"])


def metrics(material: Material, cfg):
    reward_NG = rewards(material, cfg)
    flat = [s for group in material.samples[0] for s in group]
    return {
        "reward": float(reward_NG.mean()),
        "right": float(np.mean([s.verdict.right for s in flat])),
        "uninformative_groups": float(np.mean(~informative(material, cfg))),
        "truncated": float(np.mean([not s.stopped for s in flat])),
    }


REGIME = Regime(
    name="grpo", config=CONFIG, reads=lambda cfg: ("prompt", "answer"), rounds=rounds, scores=scores,
    examples=examples, loss=loss, metrics=metrics,
    frozen=lambda cfg: ("reference",) if cfg["kl"] != "none" and cfg["kl_in"] == "loss" else (),
)  # fmt: skip
