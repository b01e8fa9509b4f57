"""The one model definition: what is trained, sampled, scored, distilled from and averaged.

Pre-norm decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU. Every caller goes
through `run_blocks`; callers differ only in the `attend` function they hand in (a masked square for
training and scoring, a cache for decoding), so the two cannot drift apart.

Shapes: see ceiling/model/config.py for the letters.

Example:
    logits_BTV = forward(params, config, tokens_BT)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ceiling.model.config import ModelConfig

NEG_INF = -1e30  # finite: a fully masked row must give finite garbage, never NaN (invariant X-4)


def forward(params, config: ModelConfig, tokens_BT, *, positions_BT=None, segments_BT=None):
    """Next-token logits f32[B, T, V] for int32[B, T] tokens.

    segments_BT: int32, tokens attend only to earlier tokens of the same segment; 0 marks padding.
    positions_BT: int32 rotary positions; by default they count from the start of each segment.
    Materialises [B, T, V]: losses and scoring use `token_logprobs` instead.
    """
    return unembed(params, config, hidden(params, config, tokens_BT, positions_BT, segments_BT))


def hidden(params, config: ModelConfig, tokens_BT, positions_BT=None, segments_BT=None):
    """Final normalised activations [B, T, D] in the compute dtype."""
    T = tokens_BT.shape[1]
    index_T = jnp.arange(T)
    mask_BTT = (index_T[:, None] >= index_T[None, :])[None]
    if segments_BT is not None:
        mask_BTT = mask_BTT & (segments_BT[:, :, None] == segments_BT[:, None, :])
    if positions_BT is None:
        positions_BT = _positions(tokens_BT, segments_BT)

    def attend(layer, q_BTNH, k_BTKH, v_BTKH, state):
        return dense_attention(q_BTNH, k_BTKH, v_BTKH, mask_BTT), state

    x_BTD, _ = run_blocks(params, config, embed(params, config, tokens_BT), positions_BT, attend, None)
    return x_BTD


def embed(params, config: ModelConfig, tokens):
    return params["embed"].astype(config.compute_dtype)[tokens]


def unembed(params, config: ModelConfig, x):
    """Logits in float32 for activations [..., D]."""
    head_DV = params["embed"].T if config.tied else params["head"]
    return project(x, head_DV.astype(x.dtype), preferred_element_type=jnp.float32)


def project(x, w, **kwargs):
    """x [..., D] times w [D, ...] as one matrix product over flattened tokens: with the batch axes kept
    apart, the weight gradient contracts two axes and leaves XLA's fast path (2.5x slower on CPU)."""
    out = jnp.dot(x.reshape(-1, w.shape[0]), w.reshape(w.shape[0], -1), **kwargs)
    return out.reshape(*x.shape[:-1], *w.shape[1:])


def run_blocks(params, config: ModelConfig, x_BTD, positions_BT, attend: Callable, state):
    """All blocks and the final norm. `attend(layer, q_BTNH, k_BTKH, v_BTKH, state)` returns
    (out_BTNH, state); `state` (a cache, or None) is carried, never stacked: scanning a cache as
    xs -> ys copies it once more per step."""

    def block(carry, layer_and_weights):
        x_BTD, state = carry
        layer, p = layer_and_weights
        p = jax.tree.map(lambda w: w.astype(config.compute_dtype), p)
        h_BTD = rms_norm(x_BTD, p["attn_norm"], config.norm_eps)
        q, k, v = (project(h_BTD, p[w]) for w in ("wq", "wk", "wv"))
        if config.qkv_bias:
            q, k, v = q + p["bq"], k + p["bk"], v + p["bv"]
        if config.qk_norm:
            q = rms_norm(q, p["q_norm"], config.norm_eps)
            k = rms_norm(k, p["k_norm"], config.norm_eps)
        q, k = rotary(q, positions_BT, config.rope_base), rotary(k, positions_BT, config.rope_base)
        out_BTNH, state = attend(layer, q, k, v, state)
        out_BTE = out_BTNH.reshape(*out_BTNH.shape[:2], -1)
        x_BTD = x_BTD + project(out_BTE, p["wo"].reshape(-1, config.width))
        h_BTD = rms_norm(x_BTD, p["mlp_norm"], config.norm_eps)
        h_BTF = jax.nn.silu(project(h_BTD, p["w_gate"])) * project(h_BTD, p["w_up"])
        return (x_BTD + project(h_BTF, p["w_down"]), state), None

    if config.remat:
        block = jax.checkpoint(block)
    if config.scan_layers:
        xs = (jnp.arange(config.layers), params["layers"])
        (x_BTD, state), _ = jax.lax.scan(block, (x_BTD, state), xs)
    else:
        for layer in range(config.layers):
            weights = jax.tree.map(lambda w: w[layer], params["layers"])  # noqa: B023
            (x_BTD, state), _ = block((x_BTD, state), (layer, weights))
    return rms_norm(x_BTD, params["final_norm"].astype(x_BTD.dtype), config.norm_eps), state


def rms_norm(x, scale, eps: float):
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return x32.astype(x.dtype) * scale


def rotary(x_BTNH, positions_BT, base: float):
    """Rotary embedding in the half-split convention (first half of H paired with the second)."""
    half = x_BTNH.shape[-1] // 2
    frequency_h = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BT1h = positions_BT[:, :, None, None].astype(jnp.float32) * frequency_h
    cos, sin = jnp.cos(angle_BT1h), jnp.sin(angle_BT1h)
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)


def dense_attention(q_BTNH, k_BSKH, v_BSKH, mask_BTS):
    """Grouped-query attention by plain matrix products; the reference for any other kernel.

    mask_BTS is boolean, True where a query may look. Softmax in float32. The G query heads of a
    key/value head are laid out as G*T rows of one product, M below."""
    B, T, N, H = q_BTNH.shape
    K, S = k_BSKH.shape[2], k_BSKH.shape[1]
    G = N // K
    q_BKMH = (q_BTNH.reshape(B, T, K, G, H) * H**-0.5).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    score_BKMS = jnp.einsum("bkmh,bskh->bkms", q_BKMH, k_BSKH, preferred_element_type=jnp.float32)
    score_BKGTS = jnp.where(mask_BTS[:, None, None], score_BKMS.reshape(B, K, G, T, S), NEG_INF)
    weight_BKMS = jax.nn.softmax(score_BKGTS, axis=-1).astype(v_BSKH.dtype).reshape(B, K, G * T, S)
    out_BKMH = jnp.einsum("bkms,bskh->bkmh", weight_BKMS, v_BSKH)
    return out_BKMH.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _positions(tokens_BT, segments_BT):
    """Positions that restart at 0 with every segment."""
    index_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    if segments_BT is None:
        return index_BT
    starts = jnp.concatenate(
        [jnp.ones_like(segments_BT[:, :1], bool), segments_BT[:, 1:] != segments_BT[:, :-1]], axis=1
    )
    return index_BT - jax.lax.cummax(jnp.where(starts, index_BT, 0), axis=1)
