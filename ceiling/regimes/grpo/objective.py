r"""What every policy gradient here is made of: advantages, the clipped surrogate with its KL, and its aggregation.

A subset estimator of pass@k needs one more formula. With M_I = max_{i in I} R_i over the C(G, k) subsets I of k
samples, mean_I M_I estimates E[max of k] without bias, and so does its score-function gradient

    1/C(G, k) sum_I M_I sum_{i in I} grad log p(y_i)  =  1/G sum_i k mean_{I containing i} M_I grad log p(y_i).

What does not depend on y_i may be subtracted: the mean over the subsets J without it. Hence

    A_i = k ( mean_{I containing i} M_I  -  mean_{J without i} M_J ),    sum_i A_i = 0,    k = 1: leave-one-out.

This is the estimator of arXiv:2505.15201 with a leave-one-out baseline. arXiv:2508.10751 subtracts the mean over all
subsets, mean_{I containing i} M_I - mean_I M_I = (1 - k/G) A_i / k, and divides by the std over subsets.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ceiling.config import Section, number, text

ADVANTAGES = ("group_std", "group_mean", "leave_one_out", "batch_whitened", "best_of_group", "pass_at_k")
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


def advantages(rewards_NG, *, kind: str, pass_k: int = 1):
    """f32[N, G] advantages of N groups of G rewards.

    group_std: (R - mean) / (std + 1e-4), Bessel-corrected. group_mean: R - mean. leave_one_out:
    R_i minus the mean of the others = G/(G-1) (R - mean). batch_whitened: centred and scaled over
    all N*G rewards. best_of_group: the best sample gets R_max - R_second, the others 0 (pass@k).
    pass_at_k: what pass@k gains by sample i, k = pass_k < G (above). Equal rewards in a group give
    exactly 0 (all kinds but batch_whitened). G = 1 raises ValueError. What is not a jax array is computed by numpy:
    on the host jax would compile every operation for every N that filters leave.
    """
    xp = jnp if isinstance(rewards_NG, jax.Array) else np
    rewards_NG = xp.asarray(rewards_NG, np.float32)
    G = rewards_NG.shape[1]
    if G < 2:
        raise ValueError(f"grpo.advantages: needs at least 2 samples per prompt, got {G}; raise samples_per_prompt")
    # Shifting by one member first makes a group of equal rewards exactly zero, rounding or not.
    shifted_NG = rewards_NG - rewards_NG[:, :1]
    centred_NG = shifted_NG - xp.mean(shifted_NG, axis=1, keepdims=True)
    if kind == "group_std":
        return centred_NG / (xp.std(rewards_NG, axis=1, ddof=1, keepdims=True) + 1e-4)
    if kind == "group_mean":
        return centred_NG
    if kind == "leave_one_out":
        return centred_NG * (G / (G - 1))
    if kind == "batch_whitened":
        shifted_NG = rewards_NG - rewards_NG[0, 0]
        return (shifted_NG - xp.mean(shifted_NG)) / (xp.std(rewards_NG, ddof=1) + 1e-4)
    if kind == "best_of_group":
        best_NG = xp.arange(G) == xp.argmax(rewards_NG, axis=1, keepdims=True)
        rising_NG = xp.sort(rewards_NG, axis=1)
        return xp.where(best_NG, rising_NG[:, -1:] - rising_NG[:, -2:-1], np.float32(0))
    if kind == "pass_at_k":
        rising_NG = xp.argsort(shifted_NG, axis=1)
        gained_NG = xp.take_along_axis(shifted_NG, rising_NG, axis=1) @ _subset_weights(G, pass_k).T
        return xp.take_along_axis(gained_NG, xp.argsort(rising_NG, axis=1), axis=1)
    raise ValueError(f"grpo.advantages: kind={kind!r} is not one of {', '.join(ADVANTAGES)}")


@functools.cache
def _subset_weights(G: int, k: int) -> np.ndarray:
    """f32[G, G]: A = weights @ rewards, both by rising reward. The j-th smallest is the largest of C(j - 1, k - 1)
    subsets, of which C(j - 2, k - 2) hold a given smaller sample."""
    if not 1 <= k < G:
        raise ValueError(f"grpo.advantages: pass_k={k} must be at least 1 and below the {G} samples per prompt")
    out = np.zeros((G, G))
    for i in range(G):
        for j in range(G):
            largest = math.comb(j, k - 1)
            own = largest if i == j else math.comb(j - 1, k - 2) if i < j and k > 1 else 0
            out[i, j] = k * (own / math.comb(G - 1, k - 1) - (largest - own) / math.comb(G - 1, k))
    return out.astype(np.float32)


def policy_loss(
    logp_BT, old_logp_BT, ref_logp_BT, advantage_B, mask_BT, *,
    ratio, aggregation, clip_low, clip_high, kl, beta, max_tokens=None, detached_BT=None, anchor_BT=None,
):  # fmt: skip
    """Clipped surrogate with optional KL: (sum, denom, metrics); loss = sum / denom.

    logp_BT f32[B, T] is differentiated; old_logp_BT, ref_logp_BT (used if kl is not None) and
    advantage_B f32[B] are constants. mask_BT is 1 on generated tokens. clip_low, clip_high: half-widths
    or None. max_tokens: needed by aggregation "constant". Rows without tokens count nowhere (X-4).
    Remedies (remedies.py), constants: detached_BT is 1 where a token has no surrogate, anchor_BT the weight
    of |log rho| on a token.
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
    if detached_BT is not None:
        surrogate_BT = jnp.where(constant(detached_BT) > 0, 0.0, surrogate_BT)
    per_token_BT = -surrogate_BT
    if anchor_BT is not None:
        side_BT = constant(jnp.sign(log_ratio_BT))  # 0 at rho = 1, where jnp.abs has a slope of 1
        per_token_BT = per_token_BT + constant(anchor_BT) * side_BT * log_ratio_BT
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


def surrogate_from_batch(params, batch, forward, cfg, ref_logp_BT=None, kl=None, beta=0.0, **remedy):
    """policy_loss on a packed batch whose extras are advantage [B] and behaviour [B, T], the sampler's
    log-probs. Shared by the regimes that end in a policy gradient (GRPO, RLP). The loop resolves
    cfg["max_tokens"], the longest response that the arm samples.

    Its metric policy_entropy is the mean over response tokens of the exact full-softmax entropy at the sampling
    temperature: a sum over logits that the head has made anyway, without a gradient unless there is a bonus."""
    logp_BT, entropy_BT = forward.logprobs(params, batch, temperature=cfg["temperature"], entropy=True)
    mask_BT, behaviour_BT = batch.mask_BT, batch.extra["behaviour"]
    own_BT = jax.lax.stop_gradient(logp_BT)
    on_policy = cfg["minibatches"] * cfg["epochs"] == 1
    total, denom, metrics = policy_loss(
        logp_BT, own_BT if on_policy else behaviour_BT, ref_logp_BT, batch.extra["advantage"], mask_BT,
        ratio=cfg["ratio"], aggregation=cfg["aggregation"], clip_low=cfg["clip_low"] or None,
        clip_high=cfg["clip_high"] or None, kl=kl, beta=beta, max_tokens=cfg["max_tokens"], **remedy,
    )  # fmt: skip
    if cfg["entropy_bonus"] > 0:
        bonus, bonus_denom = aggregate(entropy_BT, mask_BT, cfg["aggregation"], cfg["max_tokens"])
        total = total - cfg["entropy_bonus"] * bonus * denom / jnp.maximum(bonus_denom, 1e-9)
    tokens = jnp.sum(mask_BT)
    gap_BT = jnp.abs(own_BT - behaviour_BT) * mask_BT
    metrics["sampler_trainer_gap"] = (jnp.sum(gap_BT), tokens)
    metrics["policy_entropy"] = (jnp.sum(jax.lax.stop_gradient(entropy_BT) * mask_BT), tokens)
    return total, denom, metrics
