"""Low-rank adapters (LoRA, arXiv:2106.09685): y = x W + (alpha / r) (x A) B with W frozen.

The rows A [inputs, r] and B [r, outputs] are in the one table, so placing, saving and counting them needs
nothing new, and `transformer.linear` applies them. Here is what only adapters need. A fresh adapter has
B = 0 and changes no output.

Example:
    config = dataclasses.replace(config, lora_rank=16, lora_targets=("wq", "wv"))
    params = add_lora(params, config, jax.random.key(0))
    ...  # train the paths in trainable(config)
    config, params = merge_lora(params, config)
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import NamedSharding

from ceiling.model.config import ModelConfig, draw, table, unflatten
from ceiling.model.sharding import param_shardings, put


def trainable(config: ModelConfig) -> frozenset[str]:
    """Paths of the table that training changes: the adapters and steering vectors, or everything where there are
    none of them."""
    paths = table(config).keys()
    return frozenset(p for p in paths if _is_adapter(p) or p == "layers/steer") or frozenset(paths)


def add_lora(params: dict, config: ModelConfig, key: jax.Array) -> dict:
    """`params` of the base with fresh adapters of `config` beside them, laid out over the same mesh."""
    if not config.lora_rank:
        raise ValueError("model.lora_rank=0: nothing to add; set the rank first")
    flat = traverse_util.flatten_dict(params, sep="/")
    if any(map(_is_adapter, flat)):
        raise ValueError("params hold adapters already; merge_lora them before adding others")
    fresh = {path: draw(path, spec, key) for path, spec in table(config).items() if _is_adapter(path)}
    home = flat["embed"].sharding
    if isinstance(home, NamedSharding):
        shardings = traverse_util.flatten_dict(param_shardings(config, home.mesh), sep="/")
        fresh = {path: put(leaf, shardings[path]) for path, leaf in fresh.items()}
    return unflatten(flat | fresh)


def merge_lora(params: dict, config: ModelConfig) -> tuple[ModelConfig, dict]:
    """(config without adapters, params with them multiplied out), in float32 and cast back to each weight's
    dtype. The result computes the same function up to rounding."""
    flat = traverse_util.flatten_dict(params, sep="/")
    merged = {path: leaf for path, leaf in flat.items() if not _is_adapter(path)}
    for name in config.lora_targets if config.lora_rank else ():
        path = f"layers/{name}"
        w, a, b = flat[path], flat[f"{path}_lora_a"], flat[f"{path}_lora_b"]
        merged[path] = jax.device_put(_merge(w, a, b, config.lora_alpha / config.lora_rank), w.sharding)
    return dataclasses.replace(config, lora_rank=0), unflatten(merged)


@jax.jit
def _merge(w, a, b, scale):
    """w [L, inputs, outputs] + scale * a [L, inputs, r] @ b [L, r, outputs], heads kept apart."""
    L, r = b.shape[:2]
    a_LIr, b_LrO = a.astype(jnp.float32).reshape(L, -1, r), b.astype(jnp.float32).reshape(L, r, -1)
    product = jnp.einsum("lir,lro->lio", a_LIr, b_LrO, precision="highest")
    return (w.astype(jnp.float32) + scale * product.reshape(w.shape)).astype(w.dtype)


def _is_adapter(path: str) -> bool:
    return path.endswith(("_lora_a", "_lora_b"))
