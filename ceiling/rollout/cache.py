"""Key/value cache and the two ways the model runs against it: prefill a prompt, decode a token.

Both hand an `attend` to the one `run_blocks`. The cache stays in the loop's carry, stacked where layers are scanned,
one array a layer where they are unrolled (a slice of a stack is a copy of the layer's cache at every step). Its first P
places hold a row's prompt, the others are a ring: all rows write the token of one decode step at one place (a slice
update in place, where a scatter at each row's own position costs a tenth of the step), whatever their positions are.
`ring_distance` says which places are a row's own.
"""

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from ceiling.model.attention import NEG_INF, attention, dense_attention, heads_first, visible, within_window
from ceiling.model.config import ModelConfig
from ceiling.model.sharding import constrain
from ceiling.model.transformer import embed, run_blocks, unembed

FOREIGN = 2**30  # farther than any token: a place that holds nothing of the row


@flax.struct.dataclass
class Cache:
    """Keys and values: one array [L, B, K, S, H] of each, or a tuple of one a layer, values [B, K, S, H] and keys
    [B, K, H, S], which a CPU reads faster in products with a few queries."""

    k: jax.Array | tuple[jax.Array, ...]
    v: jax.Array | tuple[jax.Array, ...]

    @property
    def stacked(self) -> bool:
        return not isinstance(self.v, tuple)

    def layer(self, layer) -> tuple[jax.Array, jax.Array]:
        """(keys, values) of one layer, [B, K, S, H]."""
        return self.k[layer] if self.stacked else self.k[layer].swapaxes(2, 3), self.v[layer]

    def write(self, layer, k_BTKH, v_BTKH, place) -> "Cache":
        """The cache with T tokens of one layer written from `place` on."""
        put, k_BKTH, v_BKTH = jax.lax.dynamic_update_slice, heads_first(k_BTKH), heads_first(v_BTKH)
        if self.stacked:
            at = layer, 0, 0, place, 0
            return Cache(put(self.k, k_BKTH[None], at), put(self.v, v_BKTH[None], at))
        k = put(self.k[layer], k_BKTH.swapaxes(2, 3), (0, 0, 0, place))
        return self._with(layer, k, put(self.v[layer], v_BKTH, (0, 0, place, 0)))

    def scatter(self, layer, k_ETKH, v_ETKH, rows_E, place_ET) -> "Cache":
        """The cache with T tokens of one layer written to E rows, each at its own place; past the end they drop."""
        put = lambda x, at, new: divided(x.at[at].set(new, mode="drop"))  # noqa: E731
        rows_E1, every = rows_E[:, None], slice(None)
        if self.stacked:
            at = layer, rows_E1, every, place_ET
            return Cache(put(self.k, at, k_ETKH), put(self.v, at, v_ETKH))
        k = put(self.k[layer], (rows_E1, every, every, place_ET), k_ETKH)
        return self._with(layer, k, put(self.v[layer], (rows_E1, every, place_ET), v_ETKH))

    def _with(self, layer, k, v) -> "Cache":
        """The cache with other arrays of a layer."""
        return Cache(*((*old[:layer], new, *old[layer + 1 :]) for old, new in ((self.k, k), (self.v, v))))

    def by_places(self, f: Callable, *others: "Cache") -> "Cache":
        """f(array, its counterparts in other caches, the axis of places) for every array."""
        k, v = ([getattr(cache, name) for cache in (self, *others)] for name in "kv")
        of = lambda axis: lambda *arrays: f(*arrays, axis)  # noqa: E731
        return Cache(jax.tree.map(of(-2 if self.stacked else -1), *k), jax.tree.map(of(-2), *v))


def empty(config: ModelConfig, rows: int, capacity: int, like=None) -> Cache:
    """A cache of zeros; on the mesh of `like` (a weight) its rows and heads are divided over the devices."""
    of_token, of_head = (capacity, config.head_dim), (config.head_dim, capacity)

    def make(*shape):
        x = jnp.zeros((*shape[:-2], rows, config.kv_heads, *shape[-2:]), config.compute_dtype)
        return divided(x, like)

    if config.scan_layers:
        return Cache(*(make(config.layers, *of_token) for _ in "kv"))
    return Cache(*(tuple(make(*shape) for _ in range(config.layers)) for shape in (of_head, of_token)))


def prefill(params, config: ModelConfig, tokens_BP, lengths_B):
    """Run right-padded prompts once. Returns (cache of capacity P, activations [B, D] of each prompt's last token):
    `unembed` makes logits of them where they are drawn from, and no [B, V] array is kept."""
    B, P = tokens_BP.shape
    positions_BP = jnp.broadcast_to(jnp.arange(P), (B, P))
    masks = visible(positions_BP)

    def attend(layer, local, q, k, v, cache):
        return attention(config, q, k, v, masks, local=local), cache.write(layer, k, v, 0)

    x_BPD = embed(params, config, tokens_BP)
    x_BPD, cache = run_blocks(params, config, x_BPD, positions_BP, attend, empty(config, B, P, params["embed"]))
    return cache, constrain(x_BPD[jnp.arange(B), lengths_B - 1], "batch", None)


def rows(cache: Cache, index_ZE, size: int) -> Cache:
    """Rows index_ZE of each of Z groups of `size` rows: a cache of Z * E rows."""
    Z, E = index_ZE.shape

    def take(x):
        lead, heads = x.shape[:-4], ("kv_heads", None, None)
        spread = lambda x: constrain(x, *[None] * len(lead), "batch", None, *heads, like=index_ZE)  # noqa: E731
        groups = spread(x.reshape(*lead, Z, size, *x.shape[-3:]))
        one = lambda rows, index_E: jnp.take(rows, index_E, axis=len(lead), mode="clip")  # noqa: E731
        taken = spread(jax.vmap(one, (len(lead), 0), len(lead))(groups, index_ZE))
        return taken.reshape(*lead, Z * E, *x.shape[-3:])

    return jax.tree.map(take, cache)


def longer(cache: Cache, capacity: int) -> Cache:
    """The cache with places for `capacity` tokens a row."""

    def wider(x, axis):
        more = [(0, capacity - x.shape[axis]) if i == x.ndim + axis else (0, 0) for i in range(x.ndim)]
        return divided(jnp.pad(x, more))

    return cache.by_places(wider)


def with_prompts(cache: Cache, prompts: Cache, take_B) -> Cache:
    """The cache with other first places in the rows take_B: those of `prompts`, a cache of as many rows."""

    def moved(x, prompt, axis):
        first = (..., slice(prompt.shape[axis]), *[slice(None)] * (-1 - axis))
        return divided(x.at[first].set(jnp.where(take_B[:, None, None, None], prompt, x[first])))

    return cache.by_places(moved, prompts)


def ring_distance(prompt_capacity: int, ring: int, place, length_B, count_B):
    """int32[B, P + ring]: how many tokens each cache place lies behind the token that is about to be written at
    ring place `place`; FOREIGN where the place is not part of the row.

    length_B: prompt lengths; count_B: tokens drawn so far, the one about to be written included."""
    index_P, index_R = jnp.arange(prompt_capacity), jnp.arange(ring)
    position_B1 = (length_B + count_B - 1)[:, None]
    prompt_BP = jnp.where(index_P[None] < length_B[:, None], position_B1 - index_P[None], FOREIGN)
    age_1R = ((place - index_R) % ring)[None]
    return jnp.concatenate([prompt_BP, jnp.where(age_1R < count_B[:, None], age_1R, FOREIGN)], axis=1)


def attention_of_one(q_B1NH, k_BKSH, v_BKSH, mask_B1S, *, turned: bool):
    """`dense_attention` for a single query of each row. turned: the keys lie as [B, K, H, S] in memory.

    If not, scores come as products of the keys with a few queries, and are turned then; the barrier keeps XLA from
    turning the product itself around again, which is three times slower on a CPU: it reads the keys across."""
    B, _, N, H = q_B1NH.shape
    q_BKGH = q_B1NH.reshape(B, k_BKSH.shape[1], -1, H)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    if turned:
        score_BKGS = product("bkgh,bksh->bkgs", q_BKGH, k_BKSH)
    else:
        score_BKGS = jax.lax.optimization_barrier(product("bksh,bkgh->bksg", k_BKSH, q_BKGH)).swapaxes(2, 3)
    weight_BKGS = jax.nn.softmax(jnp.where(mask_B1S[:, None], score_BKGS, NEG_INF), axis=-1).astype(v_BKSH.dtype)
    return jnp.einsum("bkgs,bksh->bkgh", weight_BKGS, v_BKSH).reshape(B, 1, N, H)


def decode(params, config: ModelConfig, cache: Cache, token_B, position_B, place, distance_BS):
    """Write one token per row, at rotary position position_B and cache place `place` (one for all rows), and
    return (logits f32[B, V], cache). distance_BS: see `ring_distance`."""
    distance_B1S = distance_BS[:, None]

    def attend(layer, local, q, k, v, cache):
        cache = cache.write(layer, k, v, place)
        mask_B1S = within_window(config, local, distance_B1S < FOREIGN, distance_B1S)
        return attention_of_one(q, *cache.layer(layer), mask_B1S, turned=not cache.stacked), cache

    x_B1D = embed(params, config, token_B[:, None])
    x_B1D, cache = run_blocks(params, config, x_B1D, position_B[:, None], attend, cache)
    return unembed(params, config, x_B1D[:, 0]), cache


def divided(x, like=None):
    """Keys or values, stacked or of one layer, with rows and heads divided over the devices of the mesh of `like`."""
    return constrain(x, *[None] * (x.ndim - 4), "batch", "kv_heads", None, None, like=like)


def extend(params, config: ModelConfig, cache: Cache, tokens_ET, start_E, rows_E=None):
    """Append T tokens to E rows of a cache without a ring, in which a token's place is its position; return
    (activations [E, T, D], cache).

    start_E: tokens that each row holds; rows_E: which rows these are, all of them if None, past the end for none.
    What lies behind a row's tokens is never attended to, so tokens may be padded, and a row that takes no part given
    anything: the next tokens overwrite it. Places past the capacity are not written."""
    B, S = jax.tree.leaves(cache.v)[0].shape[-4::2]
    every, rows_E = rows_E is None, jnp.arange(B) if rows_E is None else rows_E
    place_ET = start_E[:, None] + jnp.arange(tokens_ET.shape[1])
    distance_ETS = place_ET[:, :, None] - jnp.arange(S)

    def attend(layer, local, q, k, v, cache):
        cache = cache.scatter(layer, k, v, rows_E, place_ET)
        keys_EKSH, values_EKSH = (x if every else x.at[rows_E].get(mode="clip") for x in cache.layer(layer))
        mask_ETS = within_window(config, local, distance_ETS >= 0, distance_ETS)
        one = functools.partial(attention_of_one, turned=not cache.stacked)
        return (one if tokens_ET.shape[1] == 1 else dense_attention)(q, keys_EKSH, values_EKSH, mask_ETS), cache

    return run_blocks(params, config, embed(params, config, tokens_ET), place_ET, attend, cache)
