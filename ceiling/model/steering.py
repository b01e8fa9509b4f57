"""Steering vectors: one added to the residual stream after each layer, at every position (arXiv:2505.18706).

    h_l <- Block_l(h_(l-1)) + b_l

The vectors are a row of the one table, `layers/steer` [L, D], so training, prefill, decoding and scoring apply them
alike. A fresh one is zero and changes no output.

Example:
    config = dataclasses.replace(config, steering=True)
    params = with_vectors(params, jnp.zeros((config.layers, config.width)))
"""


def with_vectors(params: dict, vectors_LD) -> dict:
    """`params` with these vectors, in place of any that they had."""
    return {**params, "layers": {**params["layers"], "steer": vectors_LD}}
