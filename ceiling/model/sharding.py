"""One rule table from logical axis names to mesh axes; everything runs under a mesh.

Mesh axes: "data" (batch), "fsdp" (batch, and weights sharded over it), "tensor" (heads, mlp, vocab).
A laptop is the 1x1x1 mesh. Logical names are resolved by flax's logical partitioning.
"""

import math

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ceiling.model.config import ModelConfig, table, unflatten

AXES = ("data", "fsdp", "tensor")
RULES = (
    ("batch", ("data", "fsdp")),
    ("vocab", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("head_dim", None),
    ("lora", None),
    ("layers", None),
    ("norm", None),
)


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over the first data*fsdp*tensor devices, with Auto axes (Explicit ones refuse the
    gathers and per-row cache writes that sampling needs)."""
    size = data * fsdp * tensor
    if size > jax.device_count():
        raise ValueError(
            f"mesh: data*fsdp*tensor = {data}*{fsdp}*{tensor} = {size}, but jax sees "
            f"{jax.device_count()} device(s); lower config.mesh or start with more devices"
        )
    devices = np.asarray(jax.devices()[:size]).reshape(data, fsdp, tensor)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)


def param_shardings(config: ModelConfig, mesh: Mesh) -> dict:
    """NamedSharding per parameter, from the table's logical axes. A dimension that its mesh axes do
    not divide is refused with the weight named."""
    out = {}
    for path, spec in table(config).items():
        partition = nn.logical_to_mesh_axes(spec.axes, rules=RULES)
        for size, names in zip(spec.shape, partition, strict=True):
            names = (names,) if isinstance(names, str) else (names or ())
            parts = math.prod(mesh.shape[n] for n in names)
            if size % parts:
                raise ValueError(
                    f"mesh: {path} has a dimension of {size}, not divisible by mesh axes "
                    f"{'*'.join(names)} = {parts}; change config.mesh or the model's width"
                )
        out[path] = NamedSharding(mesh, partition)
    return unflatten(out)


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Sharding of an array whose axis number `leading` is the batch (others replicated)."""
    return NamedSharding(mesh, nn.logical_to_mesh_axes([None] * leading + ["batch"], rules=RULES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def place(params, config: ModelConfig, mesh: Mesh):
    """Parameters laid out over the mesh by the rule table."""
    return jax.device_put(params, param_shardings(config, mesh))
