"""Checkpoints in the Hugging Face layout: read straight into the sharded layout, written back bit for bit.

safetensors only; pickled weights are refused. Every device shard asks for its own blocks of the stored
tensors, one weight of the table at a time, so host memory stays near one shard of one weight whatever the
size of the model. What `save` writes is opened by transformers and vLLM. Families: ceiling/model/families.py.

Example:
    config, params = load("Qwen3-0.6B", mesh=make_mesh(fsdp=8), dtype="bfloat16")
    save("exported", config, params, tokenizer="Qwen3-0.6B")
"""

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import save_file

from ceiling.model.config import ModelConfig, table, unflatten
from ceiling.model.families import from_hf, to_hf
from ceiling.model.layout import Stored, stored
from ceiling.model.sharding import param_shardings
from ceiling.model.shards import INDEX, SINGLE, Shards, read_json

FLOATS = ("float32", "bfloat16", "float16")
DERIVED = ".rotary_emb.inv_freq"  # old checkpoints store what the config already says
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def load(path, *, mesh=None, dtype=None) -> tuple[ModelConfig, dict]:
    """(config, params) of a checkpoint directory.

    mesh: lay the weights out over it by the rule table; None: on the first device. dtype: float32, bfloat16
    or float16; None keeps the file's. Computation runs in the dtype of the weights until the config says
    otherwise. Raises ValueError in one line on anything that is missing, extra, misshapen or corrupt.
    """
    path = pathlib.Path(path)
    with Shards(path) as shards:
        config = read_config(path)
        places = stored(config)
        _check_names(shards, config, places)
        dtype = _dtype(shards, places, dtype)
        config = read_config(path, param_dtype=dtype, compute_dtype=dtype)
        if config.tied and "lm_head.weight" in shards.where:
            _check_tied(shards)
        if mesh is None:
            shardings = dict.fromkeys(places, SingleDeviceSharding(jax.devices()[0]))
        else:
            shardings = traverse_util.flatten_dict(param_shardings(config, mesh), sep="/")
        rows = {}
        for name, spec in table(config).items():
            def local(index, place=places[name], shape=spec.shape):
                return read_block(shards, place, shape, index, dtype)

            rows[name] = jax.block_until_ready(jax.make_array_from_callback(spec.shape, shardings[name], local))
    return config, unflatten(rows)


def read_config(path, **overrides) -> ModelConfig:
    """ModelConfig of a checkpoint directory from its config.json alone. dtypes are config.json's (float32 if
    it names none); overrides are fields of ModelConfig, e.g. remat="block" or lora_rank=16."""
    path = pathlib.Path(path)
    config_json = read_json(path / "config.json")
    try:
        fields = from_hf(config_json)
        stated = config_json.get("dtype") or config_json.get("torch_dtype")
        stated = stated if stated in FLOATS else "float32"
        return ModelConfig(**{**fields, "param_dtype": stated, "compute_dtype": stated, **overrides})
    except (TypeError, AttributeError) as error:
        raise ValueError(f"config.json: a value has the wrong type ({error})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def stop_ids(path) -> tuple[int, ...]:
    """Token ids that end a response: eos_token_id of generation_config.json, else of config.json."""
    for file in ("generation_config.json", "config.json"):
        if (pathlib.Path(path) / file).exists():
            ids = read_json(pathlib.Path(path) / file).get("eos_token_id")
            if ids is not None:
                return tuple(ids) if isinstance(ids, list) else (ids,)
    return ()


def save(path, config: ModelConfig, params, tokenizer=None, *, shard_bytes: int = 5_000_000_000) -> None:
    """Write params as a checkpoint directory, split into files of at most shard_bytes (or one tensor).

    tokenizer: a directory, or an object whose `source` is one; its files are copied and its end tokens
    become generation_config.json's. Raises ValueError in one line: adapters that are not merged, an
    architecture of no known family, params that do not fit the config, a directory that holds weights already.
    """
    path = pathlib.Path(path)
    if config.lora_rank:
        raise ValueError("model.lora_rank: adapters cannot be exported apart; call ceiling.model.lora.merge_lora first")
    source = getattr(tokenizer, "source", tokenizer)
    if source is not None and not pathlib.Path(source).is_dir():
        raise ValueError(f"tokenizer: {source} is not a directory with tokenizer files")
    config_json = to_hf(config)
    flat = traverse_util.flatten_dict(params, sep="/")
    _check_params(flat, config)
    if path.is_dir() and any(path.glob("*.safetensors*")):
        raise ValueError(f"{path}: holds weights already; choose a new directory, nothing is overwritten")
    path.mkdir(parents=True, exist_ok=True)
    plan = _plan(config, shard_bytes)
    count = len(plan)
    names = [SINGLE] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    for file, tensors in zip(names, plan, strict=True):
        content = {name: place.theirs(np.asarray(flat[row] if layer is None else flat[row][layer]))
                   for name, (row, layer, place, _) in tensors.items()}  # fmt: skip
        save_file(content, path / f"{file}.part", metadata={"format": "pt"})
        os.chmod(path / f"{file}.part", path.stat().st_mode & 0o666)  # safetensors writes for the owner alone
        os.replace(path / f"{file}.part", path / file)
    if count > 1:
        total = sum(size for tensors in plan for *_, size in tensors.values())
        weight_map = {name: file for file, tensors in zip(names, plan, strict=True) for name in tensors}
        _write_json(path / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_tokens(path, config_json, source)


def read_block(shards: Shards, place: Stored, shape, index, dtype: str) -> np.ndarray:
    """The part of one weight that one device holds: the only host copy, filled layer by layer."""
    bounds = [s.indices(n) for s, n in zip(index, shape, strict=True)]
    out = np.empty([stop - start for start, stop, _ in bounds], jnp.dtype(dtype))
    part = index[1:] if place.stacked else index
    layers = range(*bounds[0]) if place.stacked else (0,)
    for i, layer in enumerate(layers):
        place.copy(shards.read(place.names[layer], place.window(part)), out[i] if place.stacked else out)
    return out


def _check_names(shards: Shards, config: ModelConfig, places: dict[str, Stored]) -> None:
    """Every tensor is there, in its shape, and no other is."""
    wanted = {name: place.shape for place in places.values() for name in place.names}
    optional = {"lm_head.weight"} if config.tied else set()
    if lost := sorted(wanted.keys() - shards.where.keys()):
        raise ValueError(f"{shards.directory}: {len(lost)} tensor(s) missing: {', '.join(lost[:3])}")
    extra = shards.where.keys() - wanted.keys() - optional
    if extra := sorted(name for name in extra if not name.endswith(DERIVED)):
        raise ValueError(f"{shards.directory}: {len(extra)} tensor(s) that config.json has no place for: "
                         f"{', '.join(extra[:3])}")  # fmt: skip
    for name, shape in wanted.items():
        if shards.shape(name) != shape:
            raise ValueError(f"{shards.directory}: {name} is {shards.shape(name)} on disk, config.json wants {shape}")


def _dtype(shards: Shards, places: dict[str, Stored], dtype) -> str:
    found = {shards.dtype(name) for place in places.values() for name in place.names}
    if dtype is None and len(found) > 1:
        raise ValueError(f"{shards.directory}: weights of several dtypes ({', '.join(sorted(found))}); pass dtype=")
    dtype = found.pop() if dtype is None else jnp.dtype(dtype).name
    if dtype not in FLOATS:
        raise ValueError(f"{shards.directory}: dtype {dtype} is not supported; pass dtype= one of {', '.join(FLOATS)}")
    return dtype


def _check_tied(shards: Shards, rows: int = 4096) -> None:
    """A tied checkpoint may store the head as well, if it is the embedding."""
    head, embed = "lm_head.weight", "model.embed_tokens.weight"
    same = shards.shape(head) == shards.shape(embed) and shards.dtype(head) == shards.dtype(embed)
    count = shards.shape(embed)[0]
    for start in range(0, count if same else 0, rows):
        window = (slice(start, min(start + rows, count)), slice(None))
        same = same and shards.read(head, window).tobytes() == shards.read(embed, window).tobytes()
    if not same:
        raise ValueError(f"{shards.directory}: {head} differs from {embed} although tie_word_embeddings is true; "
                         "set it to false in config.json")  # fmt: skip


def _check_params(flat: dict, config: ModelConfig) -> None:
    wanted = table(config)
    if odd := sorted(flat.keys() ^ wanted.keys()):
        raise ValueError(f"params and config differ in which weights exist: {', '.join(odd[:3])}")
    for name, spec in wanted.items():
        have = (tuple(flat[name].shape), str(flat[name].dtype))
        if have != (spec.shape, spec.dtype):
            raise ValueError(f"params: {name} is {have}, the config wants {(spec.shape, spec.dtype)}")


def _plan(config: ModelConfig, shard_bytes: int) -> list[dict]:
    """Files to write: [{tensor: (path, layer, place, bytes)}], layer by layer."""
    order = []
    for row, place in stored(config).items():
        size = int(np.prod(place.shape)) * jnp.dtype(config.param_dtype).itemsize
        for layer, name in enumerate(place.names):
            order.append((layer if place.stacked else -1, name, (row, layer if place.stacked else None, place, size)))
    plan, used = [{}], 0
    for _, name, entry in sorted(order, key=lambda item: item[0]):
        if plan[-1] and used + entry[-1] > shard_bytes:
            plan.append({})
            used = 0
        plan[-1][name] = entry
        used += entry[-1]
    return plan


def _write_tokens(path: pathlib.Path, config_json: dict, source) -> None:
    """Tokenizer files, end tokens, and last the config.json that makes the directory a checkpoint."""
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    if source is not None:
        source = pathlib.Path(source)
        for file in TOKENIZER_FILES:
            if (source / file).exists():
                shutil.copyfile(source / file, path / file)
        if (source / "config.json").exists():
            ids |= {key: read_json(source / "config.json").get(key) for key in ids}
        ends = stop_ids(source)
        ids["eos_token_id"] = list(ends) if len(ends) > 1 else next(iter(ends), None)
    if ids["eos_token_id"] is not None:
        _write_json(path / "generation_config.json", {k: v for k, v in ids.items() if v is not None})
    _write_json(path / "config.json", {**config_json, **ids})


def _write_json(path: pathlib.Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
