"""The one model definition: what is trained, sampled, scored, distilled from and averaged.

Decoder of RMSNorm, rotary positions, grouped-query attention and a gated feed-forward; ModelConfig says
what varies between families (ceiling/model/families.py). Every caller goes through `run_blocks`; callers
differ only in the `attend` function they hand in (masks for training and scoring, a cache for decoding), so the two
cannot drift apart. All of it is to be called inside `jax.jit`: outside, the blocks are compiled anew at every call.

Shapes: see ceiling/model/config.py for the letters.

Example:
    logits_BTV = jax.jit(forward, static_argnums=1)(params, config, tokens_BT)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ceiling.data.packing import WHOLE, Cells
from ceiling.model.attention import attention, local_layers, visible
from ceiling.model.config import ModelConfig, table
from ceiling.model.rope import rotary, rotations
from ceiling.model.sharding import constrain, gathered

# What each choice of `remat` keeps of a block beside its input. "dots" keeps the outputs of the projections, which
# `project` makes products without batch axes; attention's products have them, and its scores are made again.
SAVED = {"block": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def forward(params, config: ModelConfig, tokens_BT, *, positions_BT=None, segments_BT=None):
    """Next-token logits f32[B, T, V] for int32[B, T] tokens.

    segments_BT: int32, tokens attend only to earlier tokens of the same segment; 0 marks padding.
    positions_BT: int32 rotary positions; by default they count from the start of each segment.
    Materialises [B, T, V]: losses and scoring use `token_logprobs` instead.
    """
    return unembed(params, config, hidden(params, config, tokens_BT, positions_BT, segments_BT))


def hidden(
    params, config: ModelConfig, tokens_BT, positions_BT=None, segments_BT=None, prefixes_BT=None, *,
    cells: Cells = WHOLE, normalise: bool = True,
):  # fmt: skip
    """Final normalised activations [B, T, D] in the compute dtype; without `normalise`, the residual stream itself.

    prefixes_BT: a segment that a token also sees, beside its own; the token's positions go on from there. cells: how
    rows are divided. What lies in different cells does not see each other, whatever its segments."""
    if positions_BT is None:
        positions_BT = _positions(tokens_BT, segments_BT)
    masks = visible(positions_BT, segments_BT, prefixes_BT, cells)

    def attend(layer, local, q_BTNH, k_BTKH, v_BTKH, state):
        return attention(config, q_BTNH, k_BTKH, v_BTKH, masks, cells, local), state

    x_BTD = embed(params, config, tokens_BT)
    return run_blocks(params, config, x_BTD, positions_BT, attend, None, normalise=normalise)[0]


def embed(params, config: ModelConfig, tokens):
    x = _whole(params["embed"], config, "embed")[tokens]
    x = constrain(x, "batch", *[None] * (x.ndim - 1))
    # The factor is rounded to the compute dtype, as the published models were trained.
    return x * jnp.asarray(config.width**0.5, x.dtype) if config.embed_scale else x


def unembed(params, config: ModelConfig, x):
    """Logits in float32 for activations [..., D]."""
    name = "embed" if config.tied else "head"
    head = _whole(params[name], config, name)
    logits = project(x, head.T if config.tied else head, preferred_element_type=jnp.float32)
    return constrain(logits, "batch", *[None] * (x.ndim - 2), "vocab")


def _whole(weight, config: ModelConfig, path: str):
    """A weight (one layer's, for a path of the layers) in the compute dtype, whole over the fsdp axis."""
    axes = tuple(axis for axis in table(config)[path].axes if axis != "layers")
    return gathered(weight.astype(config.compute_dtype), axes)


def project(x, w, **kwargs):
    """x [..., D] times w [D, ...], or x [..., N*H] times w [N, H, ...], as one matrix product over flattened
    tokens: with the batch axes kept apart, the weight gradient contracts two axes and leaves XLA's fast
    path (2.5x slower on CPU)."""
    inputs = x.shape[-1]
    out = jnp.dot(x.reshape(-1, inputs), w.reshape(inputs, -1), **kwargs)
    return out.reshape(*x.shape[:-1], *w.shape[1 if w.shape[0] == inputs else 2 :])


def run_blocks(params, config: ModelConfig, x_BTD, positions_BT, attend: Callable, state, *, normalise: bool = True):
    """All blocks and, with `normalise`, the final norm. `attend(layer, local, q_BTNH, k_BTKH, v_BTKH, state)`
    returns (out_BTNH, state), `local` being what `within_window` takes; queries arrive scaled. `state` (a cache, or
    None) is carried, never stacked: scanning a cache as xs -> ys copies it once more per step. Where layers are
    unrolled `layer` is 0, and of every tuple in the state `attend` has a tuple of that layer's array alone."""

    turns = rotations(config, positions_BT)

    def block(carry, layer_and_weights):
        x_BTD, state = carry
        layer, local, p = layer_and_weights
        p = {name: _whole(w, config, f"layers/{name}") for name, w in p.items()}
        q, k, v = queries_keys_values(p, config, _normed(p, "attn_norm", config, x_BTD), _of(turns, local))
        out_BTNH, state = attend(layer, local, q, k, v, state)
        out_BTD = linear(p, config, "wo", out_BTNH.reshape(*out_BTNH.shape[:2], -1))
        x_BTD = x_BTD + _normed(p, "attn_post_norm", config, out_BTD)
        out_BTD = feed_forward(p, config, _normed(p, "mlp_norm", config, x_BTD))
        x_BTD = x_BTD + _normed(p, "mlp_post_norm", config, out_BTD)
        if config.steering:
            x_BTD = x_BTD + p["steer"]
        x_BTD = constrain(x_BTD, "batch", None, None)
        return (x_BTD, state), None

    if config.remat and state is None:  # there is no backward pass through a cache
        block = jax.checkpoint(block, policy=SAVED[config.remat])
    local_L = local_layers(config)
    if config.scan_layers:
        xs = (jnp.arange(config.layers), None if local_L is None else jnp.asarray(local_L), params["layers"])
        (x_BTD, state), _ = jax.lax.scan(block, (x_BTD, state), xs)
    else:
        x_BTD, state = _unrolled(block, params["layers"], local_L, x_BTD, state, config.layers)
    return (rms_norm(x_BTD, params["final_norm"].astype(x_BTD.dtype), config) if normalise else x_BTD), state


def _unrolled(block: Callable, layers: dict, local_L: np.ndarray | None, x_BTD, state, count: int):
    """(x_BTD, state) after `count` blocks, whose tuples in the state have an array for each layer. Blocks are alike, so
    each kind (local or not) is traced and lowered once and called with a layer's own weights and part of the state:
    a tenth of a start whose programs are in the cache, and more with more layers."""
    once = {
        kind: jax.jit(lambda carry, weights, kind=kind: block(carry, (0, kind, weights))[0])
        for kind in ([None] if local_L is None else [False, True])
    }
    is_tuple, parts = (lambda x: isinstance(x, tuple)), []
    for layer in range(count):
        weights = {name: w[layer] for name, w in layers.items()}
        part = jax.tree.map(lambda arrays: (arrays[layer],), state, is_leaf=is_tuple)  # noqa: B023
        kind = None if local_L is None else bool(local_L[layer])
        x_BTD, part = once[kind]((x_BTD, part), weights)
        parts.append(part)
    return x_BTD, jax.tree.map(lambda *arrays: tuple(a for (a,) in arrays), *parts, is_leaf=is_tuple)


def queries_keys_values(p, config: ModelConfig, h_BTD, turn):
    """(q_BTNH, k_BTKH, v_BTKH) of one layer with positions turned in and queries scaled."""
    q, k, v = (linear(p, config, w, h_BTD) for w in ("wq", "wk", "wv"))
    if config.qkv_bias:
        q, k, v = q + p["bq"], k + p["bk"], v + p["bv"]
    q, k = _normed(p, "q_norm", config, q), _normed(p, "k_norm", config, k)
    q, k = rotary(q, *turn), rotary(k, *turn)
    return q * (config.query_scale or config.head_dim**-0.5), k, v


def _of(turns, local):
    """What `rotations` says of a layer; local may be traced."""
    if local is None:
        return turns[False]
    return jax.tree.map(lambda far, near: jnp.where(local, near, far), turns[False], turns[True])


def feed_forward(p, config: ModelConfig, h_BTD):
    gate_BTF = linear(p, config, "w_gate", h_BTD)
    act_BTF = jax.nn.silu(gate_BTF) if config.activation == "silu" else jax.nn.gelu(gate_BTF, approximate=True)
    return linear(p, config, "w_down", act_BTF * linear(p, config, "w_up", h_BTD))


def linear(p, config: ModelConfig, name: str, x):
    """Projection `name` of one layer, with its low-rank adapter where the config has one."""
    y = project(x, p[name])
    if config.lora_rank and name in config.lora_targets:
        low = project(project(x, p[f"{name}_lora_a"]), p[f"{name}_lora_b"])
        y = y + low * (config.lora_alpha / config.lora_rank)
    return y


def _normed(p, name: str, config: ModelConfig, x):
    """x through norm `name`, where the table has one."""
    return rms_norm(x, p[name], config) if name in p else x


def rms_norm(x, scale, config: ModelConfig):
    """RMSNorm over as many trailing axes as `scale` has."""
    # Tokens without the axis of rows: where a device has one row, XLA sums [1, T, D] over both axes eight times as
    # slowly on a CPU. Scanned layers, which are for other devices, keep it.
    rows = x if config.scan_layers or x.ndim <= scale.ndim + 1 else x.reshape(-1, *x.shape[2:])
    x32 = rows.astype(jnp.float32)
    axes = tuple(range(-scale.ndim, 0))
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=axes, keepdims=True) + config.norm_eps)
    if config.norm_offset:
        return (x32 * (1 + scale.astype(jnp.float32))).astype(x.dtype).reshape(x.shape)
    return (x32.astype(x.dtype) * scale).reshape(x.shape)


def _positions(tokens_BT, segments_BT):
    """Positions that restart at 0 with every segment."""
    index_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    if segments_BT is None:
        return index_BT
    starts = jnp.concatenate(
        [jnp.ones_like(segments_BT[:, :1], bool), segments_BT[:, 1:] != segments_BT[:, :-1]], axis=1
    )
    return index_BT - jax.lax.cummax(jnp.where(starts, index_BT, 0), axis=1)
