"""Rotary positions: frequencies, their long-context scalings, and the rotation.

Pair i of a head turns by position * f_i with f_i = base^(-2i/H) (RoFormer, arXiv:2104.09864). Scalings:
"linear" divides every f_i by a factor (arXiv:2306.15595). "llama3" (Llama 3.1, arXiv:2407.21783) divides
the slow ones only: a pair that turns r = trained_tokens * f_i / 2 pi times over the trained context keeps
its frequency where r >= rope_high, is divided where r <= rope_low, and is interpolated linearly in r
between.

Example:
    q_BTNH = rotary(q_BTNH, *rotations(config, positions_BT)[False])
"""

import math

import jax
import jax.numpy as jnp

from ceiling.model.config import ModelConfig


def rotations(config: ModelConfig, positions_BT):
    """(cos, sin), each f32[B, T, 1, H/2], by whether a layer is a local one; without windows there are no local ones.
    Local layers have a base of their own and are never stretched.

    They are the same for every layer and head, yet XLA would compute them again in each fusion that reads them (a tenth
    of a step on a CPU; it drops optimization_barrier before it fuses). What is read from a product is computed once."""
    spread_h = _spread(config, config.rope_base)
    if config.rope_scaling == "linear":
        spread_h = spread_h / config.rope_factor
    elif config.rope_scaling == "llama3":
        turns_h = config.rope_trained_tokens * spread_h / (2 * math.pi)
        keep_h = jnp.clip((turns_h - config.rope_low) / (config.rope_high - config.rope_low), 0, 1)
        spread_h = keep_h * spread_h + (1 - keep_h) * spread_h / config.rope_factor
    by_local = {False: spread_h, True: _spread(config, config.local_rope_base)} if config.window else {False: spread_h}
    position_BT11 = positions_BT[:, :, None, None].astype(jnp.float32)
    angles = {local: position_BT11 * frequency_h for local, frequency_h in by_local.items()}
    once = lambda x: jnp.dot(x, jnp.eye(config.head_dim // 2), precision=jax.lax.Precision.HIGHEST)  # noqa: E731
    return {local: (once(jnp.cos(angle)), once(jnp.sin(angle))) for local, angle in angles.items()}


def _spread(config: ModelConfig, base: float):
    half = config.head_dim // 2
    return base ** (-jnp.arange(half, dtype=jnp.float32) / half)


def rotary(x_BTNH, cos_BT1h, sin_BT1h):
    """Rotary embedding in the half-split convention (first half of H paired with the second)."""
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = [a * cos_BT1h - b * sin_BT1h, b * cos_BT1h + a * sin_BT1h]
    return jnp.concatenate(turned, axis=-1).astype(x_BTNH.dtype)
