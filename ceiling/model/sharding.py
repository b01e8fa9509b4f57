"""One rule table from logical axis names to mesh axes; everything runs under a mesh.

Mesh axes: "data" (batch), "fsdp" (batch, and weights sharded over it), "tensor" (heads, mlp, vocab).
A laptop is the 1x1x1 mesh. Logical names are resolved by flax's logical partitioning.
"""

import functools
import math

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ceiling.model.config import ModelConfig, table, unflatten

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # rows of a batch, slots of the sampler
RULES = (
    ("batch", BATCH),
    ("rows", AXES),
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
    return mesh_over(jax.devices()[:size], data, fsdp, tensor)


def mesh_over(devices, data: int, fsdp: int, tensor: int) -> Mesh:
    """A mesh over these devices, which may be those of a described topology: tensor neighbours lie together."""
    return Mesh(np.asarray(devices).reshape(data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def param_shardings(config: ModelConfig, mesh: Mesh) -> dict:
    """NamedSharding per parameter, from the table's logical axes. A dimension that its mesh axes do
    not divide is refused with the weight named."""
    out = {}
    for path, spec in table(config).items():
        partition = nn.logical_to_mesh_axes(spec.axes, rules=RULES)
        for size, names in zip(spec.shape, partition, strict=True):
            if size % parts(mesh.shape, names):
                along = names if isinstance(names, str) else "*".join(names)
                raise ValueError(
                    f"mesh: {path} has a dimension of {size}, not divisible by mesh axes "
                    f"{along} = {parts(mesh.shape, names)}; change config.mesh or the model's width"
                )
        out[path] = NamedSharding(mesh, partition)
    return unflatten(out)


def constrain(x, *axes: str | None, like=None):
    """x inside a jitted program, laid out by logical axis names over the mesh that it (or `like`) is traced with.
    Without a mesh, or inside a `shard_map`, it is x itself; an axis whose devices do not divide the dimension stays
    whole.

    The compiler would choose a layout of its own for what is not said, and has chosen to gather logits and weights."""
    mesh = jax.typeof(x if like is None else like).sharding.mesh
    if mesh.empty or mesh.size == 1 or mesh.are_all_axes_manual:
        return x
    spec = nn.logical_to_mesh_axes(axes, rules=RULES)
    divides = [size % parts(mesh.shape, names) == 0 for size, names in zip(x.shape, spec, strict=True)]
    spec = PartitionSpec(*(names if d else None for d, names in zip(divides, spec, strict=True)))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gathered(weight, axes: tuple[str, ...]):
    """A weight of these logical axes made whole over the fsdp axis where it is used, so that the compiler gathers one
    layer's weights and not the activations. Its gradient is scattered over that axis again: left to itself, it would
    be summed up whole on every device."""
    mesh = jax.typeof(weight).sharding.mesh
    if not mesh.empty and mesh.shape["fsdp"] > 1:
        weight = jax.lax.optimization_barrier(weight)  # or it is gathered before it is cast, in twice the bytes
    return constrain(weight, *(None if axis == "embed" else axis for axis in axes))


gathered.defvjp(lambda weight, axes: (gathered(weight, axes), None),
                lambda axes, _, gradient: (constrain(gradient, *axes),))  # fmt: skip


def parts(sizes, names) -> int:
    """Devices along one or several mesh axes (None: one). sizes: {axis: size}."""
    return math.prod(sizes[n] for n in ((names,) if isinstance(names, str) else names or ()))


def mesh_of(params) -> Mesh | None:
    """The mesh that parameters live on, if they were placed on one."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) else None


def batch_parts(x) -> int:
    """Into how many parts the rows of a batch are divided on the mesh that x is traced with."""
    mesh = jax.typeof(x).sharding.mesh
    return 1 if mesh.empty or mesh.are_all_axes_manual else parts(mesh.shape, BATCH)


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Sharding of an array whose axis number `leading` is the batch (others replicated)."""
    return NamedSharding(mesh, nn.logical_to_mesh_axes([None] * leading + ["batch"], rules=RULES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def place(params, config: ModelConfig, mesh: Mesh):
    """Parameters laid out over the mesh by the rule table."""
    return put(params, param_shardings(config, mesh))


def put(tree, shardings):
    """Arrays that this process holds whole, laid out by `shardings` (one, or a tree of them). On several hosts every
    process brings the same values and places the parts of its own devices; nothing is sent."""
    if all(sharding.is_fully_addressable for sharding in jax.tree.leaves(shardings)):
        return jax.device_put(tree, shardings)

    def own_parts(x, sharding):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(own_parts, tree, jax.tree.broadcast(shardings, tree))
