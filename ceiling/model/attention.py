"""Who sees whom, and the kernels that look.

Shapes: see ceiling/model/config.py for the letters. S is the number of keys where it is not that of the queries, T.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ceiling.data.packing import WHOLE, Cells
from ceiling.model.config import ModelConfig

QUERY_BLOCKS, FEWEST_QUERIES = 4, 64  # of a sequence that looks at itself, and of a block; see `causal_attention`
NEG_INF = -1e30  # finite: a fully masked row must give finite garbage, never NaN (invariant X-4)


def visible(positions_BT, segments_BT=None, prefixes_BT=None, cells: Cells = WHOLE) -> list:
    """(mask, distance), both [b, T, S], of each part that `in_cells` makes of a row: where a query may look but for
    windows, and query position - key position. segments_BT, prefixes_BT: as `hidden` takes them, or None."""
    out = []
    segments, prefixes = (None if x is None else in_cells(x, cells) for x in (segments_BT, prefixes_BT))
    for i, (asks, seen) in enumerate(in_cells(positions_BT, cells)):
        T, S = asks.shape[1], seen.shape[1]
        mask = (np.arange(S)[-T:, None] >= np.arange(S)[None, :])[None]
        if segments:
            here = segments[i][1][:, None, :]
            same = segments[i][0][:, :, None] == here
            mask = mask & (same | (prefixes[i][0][:, :, None] == here) if prefixes else same)
        out.append((mask, asks[:, :, None] - seen[:, None, :]))
    return out


def in_cells(x_BT, cells: Cells) -> list:
    """[B, T, ...] as pairs (what asks, what it can see): a row whole; or its head, which sees itself, and its cells
    [B * count, C, ...], each of which sees the head and itself. Those who ask are the last of those seen."""
    if cells.count == 1:
        return [(x_BT, x_BT)]
    head, rest = x_BT[:, : cells.head], x_BT[:, cells.head :]
    own = rest.reshape(len(x_BT) * cells.count, -1, *x_BT.shape[2:])
    heads = [(head, head)] if cells.head else []
    return [*heads, (own, jnp.concatenate([jnp.repeat(head, cells.count, axis=0), own], axis=1))]


def local_layers(config: ModelConfig) -> np.ndarray | None:
    """bool[L], True where a layer sees only its window; None without windows."""
    if not config.window:
        return None
    number_L = np.arange(1, config.layers + 1)
    return np.ones(config.layers, bool) if not config.global_every else number_L % config.global_every != 0


def within_window(config: ModelConfig, local, mask, distance):
    """`mask` without the keys that a local layer does not see; distance is query position - key position."""
    return mask if local is None else mask & ((distance < config.window) | jnp.logical_not(local))


def attention(config: ModelConfig, q_BTNH, k_BTKH, v_BTKH, masks: list, cells: Cells = WHOLE, local=None):
    """Attention of whole sequences to themselves by the kernel that the config names, out_BTNH; masks are of `visible`
    for the same cells, local is what `within_window` takes."""
    kernel, out = _kernel(config), []
    split = zip(*(in_cells(x, cells) for x in (q_BTNH, k_BTKH, v_BTKH)), masks, strict=True)
    for (q, _), (_, k), (_, v), mask in split:
        out.append(kernel(q, k, v, within_window(config, local, *mask)))
    return jnp.concatenate([x.reshape(len(q_BTNH), -1, *x.shape[2:]) for x in out], axis=1)


def _kernel(config: ModelConfig):
    if config.attention == "dense":
        return whole_attention if config.scan_layers else causal_attention
    if jax.default_backend() != "gpu":
        raise ValueError(
            f"model.attention={config.attention!r} needs an NVIDIA GPU and this is a {jax.default_backend()}; set "
            "config.model.attention=dense"
        )
    return functools.partial(fused_attention, implementation=config.attention)


def whole_attention(q_BTNH, k_BSKH, v_BSKH, mask_BTS):
    """`dense_attention` of all queries at once: libtpu 0.0.42 dies of blocks in the backward pass of scanned layers."""
    return dense_attention(q_BTNH, heads_first(k_BSKH), heads_first(v_BSKH), mask_BTS)


def fused_attention(q_BTNH, k_BSKH, v_BSKH, mask_BTS, implementation: str):
    """The same by one of jax's kernels, which never holds the scores [N, T, S]. cuDNN takes even lengths alone: an odd
    one gets a key that nobody sees, or a query that is left out again."""
    T, S = mask_BTS.shape[1:]

    def longer(x, by, value=0):
        return jnp.pad(x, [(0, 0), (0, by), *[(0, 0)] * (x.ndim - 2)], constant_values=value)

    q, k, v = longer(q_BTNH, T % 2), longer(k_BSKH, S % 2), longer(v_BSKH, S % 2)
    mask = longer(jnp.pad(mask_BTS, [(0, 0), (0, 0), (0, S % 2)]), T % 2, True)
    out = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], scale=1.0, implementation=implementation)
    return out[:, :T]


def causal_attention(q_BTNH, k_BSKH, v_BSKH, mask_BTS):
    """`dense_attention` by blocks of queries, each with the keys up to its own end: of four blocks, 5/8 of the work.
    The queries are those of the last T keys."""
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    block = max(-(-T // QUERY_BLOCKS), FEWEST_QUERIES)
    k_BKSH, v_BKSH = heads_first(k_BSKH), heads_first(v_BSKH)
    out = []
    for start in range(0, T, block):
        end = min(start + block, T)
        seen = S - T + end
        q, mask = q_BTNH[:, start:end], mask_BTS[:, start:end, :seen]
        out.append(dense_attention(q, k_BKSH[:, :, :seen], v_BKSH[:, :, :seen], mask))
    return jnp.concatenate(out, axis=1)


def dense_attention(q_BTNH, k_BKSH, v_BKSH, mask_BTS):
    """Grouped-query attention by plain matrix products; the reference for any other kernel.

    Queries come scaled. mask_BTS is boolean, True where a query may look. Softmax in float32. The G query
    heads of a key/value head are laid out as G*T rows of one product, M below; heads lead in all three, so
    that the products are batched over leading axes."""
    B, T, N, H = q_BTNH.shape
    K, S = k_BKSH.shape[1:3]
    G = N // K
    q_BKMH = q_BTNH.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    score_BKMS = jnp.einsum("bkmh,bksh->bkms", q_BKMH, k_BKSH, preferred_element_type=jnp.float32)
    score_BKGTS = jnp.where(mask_BTS[:, None, None], score_BKMS.reshape(B, K, G, T, S), NEG_INF)
    weight_BKMS = jax.nn.softmax(score_BKGTS, axis=-1).astype(v_BKSH.dtype).reshape(B, K, G * T, S)
    out_BKMH = jnp.einsum("bkms,bksh->bkmh", weight_BKMS, v_BKSH)
    return out_BKMH.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def heads_first(x_BSKH):
    """[B, S, K, H] -> [B, K, S, H]: how keys and values are attended to."""
    return x_BSKH.transpose(0, 2, 1, 3)
