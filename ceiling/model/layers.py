"""Weights by layer. Parameters keep every layer's weights in one stack; where layers are unrolled, a program takes each
out of its stack once, and not again in every turn of its loop."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ceiling.model.config import PROJECTIONS, ModelConfig

FEW_ROWS, LARGE = (16, 64), 1 << 18  # rows and elements of a matrix, see `for_rows`; measured on one x86 server


def numbers(config: ModelConfig) -> tuple | None:
    """Those of unrolled layers, for `apart` as arguments of a program; None where layers are scanned."""
    return None if config.scan_layers else tuple(np.arange(config.layers, dtype=np.int32))


def apart(params, numbers=None):
    """A tree of parameters, or of some of them, with a tuple of each layer's own in place of every stack.

    numbers: of the layers, where they are arguments of the program that this is part of. XLA then makes one kernel that
    takes out whichever layer, and otherwise one for each, which every start compiles."""
    take = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False, allow_negative_indices=False)
    return _layers(params, lambda w: tuple(take(w, i) for i in (range(len(w)) if numbers is None else numbers)))


def stacked(params):
    """The tree that `apart` took apart."""
    return _layers(params, jnp.stack)


def _layers(params, change):
    if "layers" not in params:
        return params
    return {**params, "layers": {name: change(w) for name, w in params["layers"].items()}}


@flax.struct.dataclass
class Turned:
    """A matrix by layer, each kept as [outputs, inputs]."""

    layers: tuple[jax.Array, ...]
    shape: tuple[int, ...] = flax.struct.field(pytree_node=False)  # of a layer's

    def __getitem__(self, layer: int):
        return self.layers[layer].T.reshape(self.shape)


def for_rows(params, config: ModelConfig, rows: int, numbers=None):
    """params for a loop over tokens of so many rows: those of unrolled layers `apart` (a fourth of a step on a CPU).

    On a CPU a product of few rows with a large matrix is up to twice as fast if the matrix lies the other way round."""
    if config.scan_layers:
        return params
    params = apart(params, numbers)
    if jax.default_backend() != "cpu" or not FEW_ROWS[0] <= rows <= FEW_ROWS[1]:
        return params

    def turned(name: str, layers):
        if name not in PROJECTIONS or layers[0].size < LARGE:
            return layers
        square = lambda w: w.reshape((-1, config.width) if name == "wo" else (len(w), -1))  # noqa: E731
        # Behind the barrier it is an array of its own, and not the same one read across.
        return Turned(tuple(jax.lax.optimization_barrier(square(w).T) for w in layers), layers[0].shape)

    return {**params, "layers": {name: turned(name, w) for name, w in params["layers"].items()}}
