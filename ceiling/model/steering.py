"""Steering vectors: one added to the residual stream after each layer, at every position (arXiv:2505.18706).

    h_l <- Block_l(h_(l-1)) + b_l

The vectors are a row of the one table, `layers/steer` [L, D], so training, prefill, decoding and scoring apply them
alike. A fresh one is zero and changes no output. Controls for vectors that were found are a random direction of the
same norm in each layer, and the same vectors in other layers.

Example:
    config = dataclasses.replace(config, steering=True)
    params = with_vectors(params, config, jnp.zeros((config.layers, config.width)))
    control = with_vectors(params, config, random_like(vectors(params), jax.random.key(0)))
"""

import jax
import jax.numpy as jnp
import numpy as np

from ceiling.model.config import ModelConfig, table
from ceiling.model.sharding import mesh_of, param_shardings, put

ROW = "steer"  # of the layers


def with_vectors(params: dict, config: ModelConfig, vectors_LD) -> dict:
    """`params` with these vectors, in place of any that they had, laid out over the same mesh. config: the steered
    one."""
    row, mesh = table(config)[f"layers/{ROW}"], mesh_of(params)
    vectors_LD = np.asarray(vectors_LD).astype(row.dtype)
    if vectors_LD.shape != row.shape:
        raise ValueError(f"steering: vectors of shape {vectors_LD.shape} for a model that takes {row.shape}")
    placed = jnp.asarray(vectors_LD) if mesh is None else put(vectors_LD, param_shardings(config, mesh)["layers"][ROW])
    return {**params, "layers": {**params["layers"], ROW: placed}}


def vectors(params: dict) -> np.ndarray:
    """f32[L, D]: the vectors of a steered model."""
    return np.asarray(params["layers"][ROW], np.float32)


def random_like(vectors_LD, key: jax.Array) -> np.ndarray:
    """f32[L, D]: in every layer a uniformly random direction, of the norm that the layer's vector has."""
    noise_LD = np.asarray(jax.random.normal(key, np.shape(vectors_LD)), np.float64)
    norm_L1 = np.linalg.norm(np.asarray(vectors_LD, np.float64), axis=1, keepdims=True)
    return (noise_LD / np.linalg.norm(noise_LD, axis=1, keepdims=True) * norm_L1).astype(np.float32)


def shuffled(vectors_LD, key: jax.Array) -> np.ndarray:
    """f32[L, D]: the same vectors along one random cycle through all layers, so that none stays where it was. Raises
    ValueError for a single layer."""
    L = len(vectors_LD)
    if L < 2:
        raise ValueError("steering: the vector of a single layer has no other place; compare with a random direction")
    cycle_L = np.asarray(jax.random.permutation(key, L))
    out = np.empty(np.shape(vectors_LD), np.float32)
    out[cycle_L] = np.asarray(vectors_LD)[np.roll(cycle_L, 1)]
    return out
