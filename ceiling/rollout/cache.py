"""Key/value cache and the two ways the model runs against it: prefill a prompt, decode a token.

Both hand an `attend` to the one `run_blocks`. The cache is stacked [L, B, S, K, H], stays in the
loop's carry and is written by scatter at each row's own position, so rows need not march in step.
"""

import flax.struct
import jax
import jax.numpy as jnp

from ceiling.model.config import ModelConfig
from ceiling.model.transformer import dense_attention, embed, run_blocks, unembed


@flax.struct.dataclass
class Cache:
    k_LBSKH: jax.Array
    v_LBSKH: jax.Array


def empty(config: ModelConfig, rows: int, capacity: int) -> Cache:
    shape = (config.layers, rows, capacity, config.kv_heads, config.head_dim)
    return Cache(jnp.zeros(shape, config.compute_dtype), jnp.zeros(shape, config.compute_dtype))


def prefill(params, config: ModelConfig, tokens_BP, lengths_B):
    """Run right-padded prompts once. Returns (cache of capacity P, logits f32[B, V] after each
    prompt's last token). Only those last logits are computed."""
    B, P = tokens_BP.shape
    index_P = jnp.arange(P)
    mask_BPP = jnp.broadcast_to(index_P[:, None] >= index_P[None, :], (B, P, P))

    def attend(layer, q, k, v, cache):
        cache = Cache(cache.k_LBSKH.at[layer].set(k), cache.v_LBSKH.at[layer].set(v))
        return dense_attention(q, k, v, mask_BPP), cache

    positions_BP = jnp.broadcast_to(index_P, (B, P))
    x_BPD = embed(params, config, tokens_BP)
    x_BPD, cache = run_blocks(params, config, x_BPD, positions_BP, attend, empty(config, B, P))
    return cache, unembed(params, config, x_BPD[jnp.arange(B), lengths_B - 1])


def decode(params, config: ModelConfig, cache: Cache, token_B, position_B):
    """Write one token per row at its own position and return (logits f32[B, V], cache)."""
    rows_B = jnp.arange(token_B.shape[0])
    capacity = cache.k_LBSKH.shape[2]
    mask_B1S = (jnp.arange(capacity)[None] <= position_B[:, None])[:, None]

    def attend(layer, q, k, v, cache):
        cache = Cache(
            cache.k_LBSKH.at[layer, rows_B, position_B].set(k[:, 0]),
            cache.v_LBSKH.at[layer, rows_B, position_B].set(v[:, 0]),
        )
        return dense_attention(q, cache.k_LBSKH[layer], cache.v_LBSKH[layer], mask_B1S), cache

    x_B1D = embed(params, config, token_B[:, None])
    x_B1D, cache = run_blocks(params, config, x_B1D, position_B[:, None], attend, cache)
    return unembed(params, config, x_B1D[:, 0]), cache
