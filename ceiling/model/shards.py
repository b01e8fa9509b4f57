"""The safetensors files of a checkpoint directory: found, opened, and read slice by slice.

Only headers are read on opening; `read` copies the requested block out of the memory-mapped file. Pickled
weights are never opened: unpickling runs code.

Example:
    with Shards(directory) as shards:
        block = shards.read("model.norm.weight", (slice(0, 8),))
"""

import json
import pathlib
from contextlib import ExitStack

import ml_dtypes  # noqa: F401  (safetensors hands out bfloat16 arrays only once NumPy knows the type)
import numpy as np
import safetensors

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


class Shards:
    """Tensors of a directory by name. Raises ValueError in one line on whatever is wrong with the files."""

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        self.where: dict[str, object] = {}  # tensor -> open file
        self._files = ExitStack()
        try:
            promised = _files(directory)
            for file in sorted(set(promised.values())) or [SINGLE]:
                self._open(file, {name for name, at in promised.items() if at == file} if promised else None)
        except BaseException:
            self._files.close()
            raise

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, *_):
        self._files.close()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.where[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """NumPy's name of the stored dtype; quantised ones are refused."""
        stored = self.where[name].get_slice(name).get_dtype()
        if stored not in DTYPES:
            raise ValueError(f"{self.directory}: {name} is stored as {stored}; only {', '.join(DTYPES)} are supported")
        return DTYPES[stored]

    def read(self, name: str, window: tuple[slice, ...]) -> np.ndarray:
        """A copy of one block of a tensor."""
        return self.where[name].get_slice(name)[window]

    def _open(self, file: str, promised: set[str] | None) -> None:
        path = self.directory / file
        if not path.is_file():
            raise ValueError(f"{path}: a shard that {INDEX} names is missing; download the checkpoint again")
        try:
            handle = self._files.enter_context(safetensors.safe_open(path, "numpy"))
        except (safetensors.SafetensorError, OSError) as error:
            reason = str(error).replace("\n", " ")
            raise ValueError(f"{path}: not a sound safetensors file ({reason}); download it again") from None
        names = set(handle.keys())
        if promised is not None and (lost := sorted(promised - names)):
            raise ValueError(f"{path}: {lost[0]} is not in this shard, although {INDEX} says so")
        if twice := sorted(names & self.where.keys()):
            raise ValueError(f"{path}: {twice[0]} is in two shards; which one holds cannot be told")
        self.where |= dict.fromkeys(names, handle)


def _files(directory: pathlib.Path) -> dict[str, str]:
    """{tensor: file} of an index, or {} for a single file. A single file wins, as in transformers."""
    if not directory.is_dir():
        hint = "pickled weights are refused" if directory.suffix in PICKLED else "download the checkpoint first"
        raise ValueError(f"{directory}: not a directory; {hint} and give its directory with safetensors files")
    if (directory / SINGLE).exists():
        return {}
    if not (directory / INDEX).exists():
        if pickled := sorted(p.name for p in directory.iterdir() if p.suffix in PICKLED):
            raise ValueError(
                f"{directory}: pickled weights are refused, unpickling {pickled[0]} could run any code; "
                "convert them to safetensors"
            )
        raise ValueError(f"{directory}: no {SINGLE} and no {INDEX}; give the directory of a complete checkpoint")
    index = read_json(directory / INDEX)
    files = index.get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(f, str) for f in files.values()):
        raise ValueError(f"{directory / INDEX}: no weight_map of tensor names to files; download it again")
    if odd := sorted(f for f in files.values() if pathlib.PurePath(f).name != f or not f.endswith(".safetensors")):
        raise ValueError(f"{directory / INDEX}: {odd[0]!r} is not a safetensors file of the same directory; refused")
    return files


def read_json(path: pathlib.Path) -> dict:
    """The object in a JSON file. Raises ValueError in one line."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: missing; give the directory of a complete checkpoint") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value
