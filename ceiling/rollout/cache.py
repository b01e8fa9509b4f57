"""Key/value cache and the two ways the model runs against it: prefill a prompt, decode a token.

Both hand an `attend` to the one `run_blocks`. The cache is stacked [L, B, K, S, H], stays in the
loop's carry and is written by scatter at each row's own position, so rows need not march in step.
"""

import flax.struct
import jax
import jax.numpy as jnp

from ceiling.model.config import ModelConfig
from ceiling.model.transformer import dense_attention, embed, run_blocks, unembed, within_window


@flax.struct.dataclass
class Cache:
    k_LBKSH: jax.Array
    v_LBKSH: jax.Array


def empty(config: ModelConfig, rows: int, capacity: int) -> Cache:
    shape = (config.layers, rows, config.kv_heads, capacity, config.head_dim)
    return Cache(jnp.zeros(shape, config.compute_dtype), jnp.zeros(shape, config.compute_dtype))


def prefill(params, config: ModelConfig, tokens_BP, lengths_B):
    """Run right-padded prompts once. Returns (cache of capacity P, logits f32[B, V] after each
    prompt's last token). Only those last logits are computed."""
    B, P = tokens_BP.shape
    index_P = jnp.arange(P)
    distance_BPP = jnp.broadcast_to(index_P[:, None] - index_P[None, :], (B, P, P))

    def attend(layer, local, q, k, v, cache):
        cache = Cache(cache.k_LBKSH.at[layer].set(_swap(k)), cache.v_LBKSH.at[layer].set(_swap(v)))
        return dense_attention(q, k, v, within_window(config, local, distance_BPP >= 0, distance_BPP)), cache

    positions_BP = jnp.broadcast_to(index_P, (B, P))
    x_BPD = embed(params, config, tokens_BP)
    x_BPD, cache = run_blocks(params, config, x_BPD, positions_BP, attend, empty(config, B, P))
    return cache, unembed(params, config, x_BPD[jnp.arange(B), lengths_B - 1])


def decode(params, config: ModelConfig, cache: Cache, token_B, position_B):
    """Write one token per row at its own position and return (logits f32[B, V], cache)."""
    rows_B = jnp.arange(token_B.shape[0])
    capacity = cache.k_LBKSH.shape[3]
    distance_B1S = (position_B[:, None] - jnp.arange(capacity)[None])[:, None]

    def attend(layer, local, q, k, v, cache):
        cache = Cache(
            cache.k_LBKSH.at[layer, rows_B, :, position_B].set(k[:, 0]),
            cache.v_LBKSH.at[layer, rows_B, :, position_B].set(v[:, 0]),
        )
        mask_B1S = within_window(config, local, distance_B1S >= 0, distance_B1S)
        return dense_attention(q, _swap(cache.k_LBKSH[layer]), _swap(cache.v_LBKSH[layer]), mask_B1S), cache

    x_B1D = embed(params, config, token_B[:, None])
    x_B1D, cache = run_blocks(params, config, x_B1D, position_B[:, None], attend, cache)
    return unembed(params, config, x_B1D[:, 0]), cache


def _swap(x):
    """[B, S, K, H] <-> [B, K, S, H]: heads lead in the cache, so that decoding's products are batched
    over leading axes and nothing is transposed per step."""
    return x.transpose(0, 2, 1, 3)
