"""Rotary positions: frequencies, their long-context scalings, and the rotation.

Pair i of a head turns by position * f_i with f_i = base^(-2i/H) (RoFormer, arXiv:2104.09864). Scalings:
"linear" divides every f_i by a factor (arXiv:2306.15595). "llama3" (Llama 3.1, arXiv:2407.21783) divides
the slow ones only: a pair that turns r = trained_tokens * f_i / 2 pi times over the trained context keeps
its frequency where r >= rope_high, is divided where r <= rope_low, and is interpolated linearly in r
between.

Example:
    q_BTNH = rotary(q_BTNH, positions_BT, frequencies(config))
"""

import math

import jax.numpy as jnp

from ceiling.model.config import ModelConfig


def frequencies(config: ModelConfig, local=None):
    """f32[H/2] radians per token. local: whether the layer is a local one (may be traced); None without
    windows. Local layers have a base of their own and are never stretched."""
    spread_h = _spread(config, config.rope_base)
    if config.rope_scaling == "linear":
        spread_h = spread_h / config.rope_factor
    elif config.rope_scaling == "llama3":
        turns_h = config.rope_trained_tokens * spread_h / (2 * math.pi)
        keep_h = jnp.clip((turns_h - config.rope_low) / (config.rope_high - config.rope_low), 0, 1)
        spread_h = keep_h * spread_h + (1 - keep_h) * spread_h / config.rope_factor
    return spread_h if local is None else jnp.where(local, _spread(config, config.local_rope_base), spread_h)


def _spread(config: ModelConfig, base: float):
    half = config.head_dim // 2
    return base ** (-jnp.arange(half, dtype=jnp.float32) / half)


def rotary(x_BTNH, positions_BT, frequency_h):
    """Rotary embedding in the half-split convention (first half of H paired with the second)."""
    angle_BT1h = positions_BT[:, :, None, None].astype(jnp.float32) * frequency_h
    cos, sin = jnp.cos(angle_BT1h), jnp.sin(angle_BT1h)
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)
