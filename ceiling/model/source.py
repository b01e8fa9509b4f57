"""Where a model comes from: the section of a configuration -> its architecture, weights' home and tokenizer.

    path     a checkpoint directory: architecture, weights and tokenizer are its own
    preset   a published architecture by name, to plan with or to train from scratch
    neither  the architecture that the section spells out, trained from scratch

With a path or a preset the section's architecture keys must stay at their defaults: a value that changes
nothing would be believed. What says how to run (dtypes, remat, chunks) applies to all three.
"""

import pathlib
from collections.abc import Mapping

from ceiling.config import ConfigError
from ceiling.data import tokenizer_file
from ceiling.model.config import ModelConfig
from ceiling.model.families import PRESETS

RUNTIME = ("param_dtype", "compute_dtype", "scan_layers", "remat", "attention", "head_chunk_tokens")


def architecture(section: Mapping, vocab_size: int, defaults: Mapping) -> ModelConfig:
    """ModelConfig of a `config.model` section. vocab_size: the task tokenizer's, used where the section spells
    the model out. defaults: the section's defaults. Raises ConfigError in one line."""
    path, preset = section["path"], section["preset"]
    own = {k: v for k, v in section.items() if k not in ("path", "preset")}
    if not path and not preset:
        return ModelConfig(vocab_size=vocab_size, **own)
    changed = [k for k, v in own.items() if k not in RUNTIME and v != defaults[k]]
    if changed:
        raise ConfigError(
            f"config.model.{changed[0]}={own[changed[0]]!r}: the architecture comes from config.model."
            f"{'path' if path else 'preset'}; leave it out"
        )
    runtime = {k: own[k] for k in RUNTIME}
    if path and (pathlib.Path(path) / "config.json").exists():
        from ceiling.model import hf

        return hf.read_config(path, **runtime)
    if path and not preset:
        raise ConfigError(f"config.model.path={path!r}: no config.json there; download the checkpoint first")
    if preset not in PRESETS:
        raise ConfigError(f"config.model.preset={preset!r} is not known; use one of {', '.join(sorted(PRESETS))}")
    return ModelConfig(**{**PRESETS[preset], **runtime})


def tokenizer(section: Mapping):
    """The tokenizer of the checkpoint that a `config.model` section names, or None where there is none."""
    if not section["path"]:
        return None
    if not pathlib.Path(section["path"]).is_dir():
        raise ConfigError(f"config.model.path={section['path']!r} is not a directory; download the checkpoint first")
    return tokenizer_file.load(section["path"])
