"""A trained policy as a Hugging Face directory, for transformers, vLLM or another run's `config.model.path`.

    python -m ceiling.export --stage runs/x/stages/seed1/grpo/KEY --out exported [--dtype bfloat16]

Adapters are multiplied out. Tokenizer files and end tokens are the prior checkpoint's; a model trained from scratch
has none, and its weights are exported alone. Nothing is overwritten.
"""

import dataclasses
import json
import pathlib

import jax
from absl import flags

from ceiling import cli, schema, stages
from ceiling.config import ConfigError
from ceiling.model import hf
from ceiling.model.config import ModelConfig
from ceiling.model.lora import merge_lora
from ceiling.model.sharding import make_mesh

_STAGE = flags.DEFINE_string("stage", None, "Stage directory of a run: a prior, a teacher or an arm")
_OUT = flags.DEFINE_string("out", None, "Directory to make")
_DTYPE = flags.DEFINE_enum("dtype", None, hf.FLOATS, "Of the exported weights; the stage's own if not given")


def export(stage, out, dtype: str | None = None) -> ModelConfig:
    """Write the policy of a stage directory to the new directory `out`, and return its architecture. Weights are held
    on one device, whatever mesh the stage had. Raises ConfigError or ValueError in one line."""
    stage = pathlib.Path(stage)
    settings = _settings(stage)
    section = settings["model"]
    vocab_size = 0 if section["path"] or section["preset"] else _vocabulary(stage, settings)
    policy = stages.load_policy(stage, schema.architecture(section, vocab_size), make_mesh())
    if policy.config.steering:
        raise ConfigError(
            f"--stage={str(stage)!r}: its policy is steered, and the Hugging Face layout has no place for vectors; "
            "name the stage that it started from, or sample from this one with python -m ceiling.evaluate"
        )
    config, params = merge_lora(policy.params, policy.config)
    if dtype is not None:
        config = dataclasses.replace(config, param_dtype=dtype, compute_dtype=dtype)
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    hf.save(out, config, params, _tokenizer_home(stage, section))
    return config


def _settings(stage: pathlib.Path) -> dict:
    file = stage / "stage.json"
    if not file.is_file():
        raise ConfigError(
            f"--stage={str(stage)!r}: no stage.json there; name a directory of a run, e.g. runs/x/stages/seed1/grpo/KEY"
        )
    if not any((stage / name).exists() for name in ("params", "checkpoint.json")):
        raise ConfigError(f"--stage={str(stage)!r}: holds no weights; name a prior, a teacher or an arm")
    try:
        return json.loads(file.read_text("utf-8"))["settings"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{file}: damaged; delete the stage's folder to have it made again") from None


def _vocabulary(stage: pathlib.Path, settings: dict) -> int:
    """Ids of the task's own tokenizer. A stage is data: it may name a task of the project, not a file to be run."""
    if (name := settings["task"]["name"]).endswith(".py"):
        raise ConfigError(
            f"--stage={str(stage)!r}: its task is the file {name!r}, and code is not run because a stage names it; put "
            "the task into ceiling/tasks to export what was trained from scratch on it"
        )
    return schema.load_task(settings).tokenizer.vocab_size


def _tokenizer_home(stage: pathlib.Path, section: dict) -> str | None:
    """The checkpoint that brought the tokenizer: a pointer's own (a teacher may be another), or the prior's."""
    file = stage / "checkpoint.json"
    pointer = json.loads(file.read_text("utf-8")) if file.exists() else {}
    if "stage" in pointer:
        return _tokenizer_home(stage / pointer["stage"], section)
    return pointer.get("path") or section["path"] or None


def main() -> None:
    config = export(_STAGE.value, _OUT.value, _DTYPE.value)
    own = (pathlib.Path(_OUT.value) / "tokenizer.json").exists()
    print(f"{_OUT.value}: {config.layers} layers of width {config.width} in {config.param_dtype}"
          f"{'' if own else ', without a tokenizer: the model was trained from scratch'}")  # fmt: skip


if __name__ == "__main__":
    cli.start(main, ["stage", "out"])
