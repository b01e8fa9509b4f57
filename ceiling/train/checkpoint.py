"""Parameters on disk, through Orbax. A stage's output directory is made complete or not at all by the
experiment runner, so nothing here needs to guess whether a checkpoint is finished."""

import pathlib

import jax
import orbax.checkpoint as ocp
from flax import traverse_util

from ceiling.model.config import ModelConfig, table, unflatten
from ceiling.model.sharding import param_shardings


def save_params(path: str | pathlib.Path, params) -> None:
    """Write a parameter tree to the new directory `path`."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(pathlib.Path(path).absolute(), params)


def load_params(path: str | pathlib.Path, config: ModelConfig, mesh):
    """Parameters of `config` laid out over the mesh. A tree that differs in names, shapes or dtypes is
    refused with both values (Orbax alone would cast dtypes silently)."""
    path = pathlib.Path(path).absolute()
    wanted = table(config)
    with ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(path).item_metadata if path.exists() else None
        if metadata is None:
            raise ValueError(f"{path}: no checkpoint there; delete the stage's folder to have it made again")
        stored = traverse_util.flatten_dict(dict(metadata.tree), sep="/")
        if odd := sorted(stored.keys() ^ wanted.keys()):
            raise ValueError(f"{path}: the checkpoint and the config differ in which weights exist: {', '.join(odd)}")
        for name, want in wanted.items():
            have = (tuple(stored[name].shape), str(stored[name].dtype))
            if have != (want.shape, want.dtype):
                raise ValueError(f"{path}: {name} is {have} on disk, the config wants {(want.shape, want.dtype)}")
        shardings = traverse_util.flatten_dict(param_shardings(config, mesh), sep="/")
        target = {
            name: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=shardings[name])
            for name, spec in wanted.items()
        }  # fmt: skip
        return checkpointer.restore(path, unflatten(target))
