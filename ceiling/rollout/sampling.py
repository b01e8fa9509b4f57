"""How one token is drawn: keyed noise and the decoding rule.

Noise is a function of (seed, problem id, sample index, position) and of nothing else, so batch
size, slot, device count and resume cannot change the sample that a problem receives.
"""

import jax
import jax.numpy as jnp

from ceiling.model.logprobs import log_softmax_at


def keys(seed_key, problem, sample):
    """The key of each sample's noise, of the shape of `problem` and `sample` (both uint32)."""
    fold = jnp.vectorize(lambda p, s: jax.random.fold_in(jax.random.fold_in(seed_key, p), s))
    return fold(problem, sample)


def uniforms(key_B, position_B):
    """One uniform in [0, 1) for the token at each row's position in its response, f32[B]."""
    return jax.vmap(lambda key, position: jax.random.uniform(jax.random.fold_in(key, position)))(key_B, position_B)


def draw(logits_BV, uniform_B, *, temperature, top_p: float, greedy: bool):
    """Tokens int32[B] and their log-probabilities f32[B] under the distribution drawn from.

    Inverse-CDF sampling: one uniform per token, whatever the vocabulary. top_p keeps the smallest
    set of most likely tokens whose mass reaches top_p and renormalises it (nucleus sampling).
    greedy takes the argmax and reports its log-probability at temperature 1.
    """
    if greedy:
        logp_BV = log_softmax_at(logits_BV, 1.0)
        token_B = jnp.argmax(logp_BV, axis=-1).astype(jnp.int32)
        return token_B, _pick(logp_BV, token_B)
    logp_BV = log_softmax_at(logits_BV, temperature)
    if top_p < 1.0:
        logp_BV = log_softmax_at(jnp.where(_nucleus(logp_BV, top_p), logp_BV, -jnp.inf), 1.0)
    p_BV = jnp.exp(logp_BV)
    cdf_BV = jnp.cumsum(p_BV, axis=-1)
    # Scaled by the last entry so that rounding in the sum cannot leave a gap at the top; then
    # restricted to tokens of non-zero probability, which a plateau of the CDF could land on.
    token_B = jnp.sum(cdf_BV <= uniform_B[:, None] * cdf_BV[:, -1:], axis=-1)
    last_possible_B = logits_BV.shape[-1] - 1 - jnp.argmax(p_BV[:, ::-1] > 0, axis=-1)
    token_B = jnp.minimum(token_B, last_possible_B).astype(jnp.int32)
    return token_B, _pick(logp_BV, token_B)


def ranked(logits_BV, rank_B, ranks: int):
    """Tokens int32[B] that are the rank_B-th most likely (0: the argmax; below `ranks`; of equal ones the lower id
    first), and their log-probabilities f32[B] at temperature 1."""
    logp_BK, token_BK = jax.lax.top_k(log_softmax_at(logits_BV, 1.0), ranks)
    return _pick(token_BK, rank_B).astype(jnp.int32), _pick(logp_BK, rank_B)


def _nucleus(logp_BV, top_p: float):
    order_BV = jnp.argsort(-logp_BV, axis=-1)
    p_sorted_BV = jnp.exp(jnp.take_along_axis(logp_BV, order_BV, axis=-1))
    keep_sorted_BV = jnp.cumsum(p_sorted_BV, axis=-1) - p_sorted_BV < top_p
    rows_B1 = jnp.arange(logp_BV.shape[0])[:, None]
    return jnp.zeros_like(keep_sorted_BV).at[rows_B1, order_BV].set(keep_sorted_BV)


def _pick(value_BV, index_B):
    return jnp.take_along_axis(value_BV, index_B[:, None], axis=-1)[:, 0]
