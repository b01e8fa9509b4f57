"""Configuration: sections of typed fields, validation with one clear line, and run identity.

A config file is ml-collections Python (`get_config(arg)`); every value can be overridden on the
command line (`--config.arms.grpo.lr=1e-3`). Tasks and regimes declare their own `CONFIG` section, so
a new one brings its keys with it. ml-collections itself accepts NaN, negative sizes and wrong
arities; `Section.validate` refuses them before anything compiles.

Example:
    CONFIG = Section(lr=number(1e-3, low=0, doc="peak learning rate"), kind=text("a", choices=("a", "b")))
    config = CONFIG.defaults()
    CONFIG.validate(config, "config")
"""

import dataclasses
import difflib
import hashlib
import json
import math
import pathlib
import traceback
from collections.abc import Mapping
from typing import Any

import ml_collections


class ConfigError(ValueError):
    """A refused configuration: one line naming the key, the value and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Field:
    """A leaf. kind is "number", "text", "flag", "table" (name -> number) or "list" (of numbers)."""

    kind: str
    default: Any
    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    choices: tuple[str, ...] = ()
    doc: str = ""

    def check(self, value, path: str) -> None:
        """Raise ConfigError if the value, which stands at `path`, is not allowed."""
        if self.kind == "number":
            self._check_number(value, path)
        elif self.kind == "text":
            if not isinstance(value, str) or (self.choices and value not in self.choices):
                allowed = " | ".join(self.choices) or "a string"
                raise ConfigError(f"{path}={value!r} is not allowed; use {allowed}{did_you_mean(value, self.choices)}")
        elif self.kind == "flag":
            if not isinstance(value, bool):
                raise ConfigError(f"{path}={value!r} must be True or False")
        elif self.kind == "table":
            if not isinstance(value, Mapping):
                raise ConfigError(f"{path}={value!r} must map names to numbers")
            for name, entry in value.items():
                self._check_number(entry, f"{path}.{name}")
            if value and not sum(value.values()) > 0:
                raise ConfigError(f"{path}={dict(value)} sums to 0; at least one weight must be positive")
        else:
            if not isinstance(value, (list, tuple)) or not value:
                raise ConfigError(f"{path}={value!r} must be a non-empty list of numbers")
            for i, entry in enumerate(value):
                self._check_number(entry, f"{path}[{i}]")

    def _check_number(self, value, path: str) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{path}={value!r} must be a {'whole ' if self.whole else ''}number")
        if not self.low <= value <= self.high or not math.isfinite(value):  # in this order: 10**400 has no float
            raise ConfigError(f"{path}={value!r} is out of range; use a number in {_range(self.low, self.high)}")
        if self.whole and not isinstance(value, int):
            raise ConfigError(f"{path}={value!r} must be a whole number")


def number(default, *, low=-math.inf, high=1e30, whole=False, doc="") -> Field:
    """A number in [low, high]; whole: an int, never a float or a bool."""
    return Field("number", default, low=low, high=high if not whole else min(high, 2**53), whole=whole, doc=doc)


def text(default: str, *, choices: tuple[str, ...] = (), doc="") -> Field:
    """A string, one of `choices` if there are any."""
    return Field("text", default, choices=choices, doc=doc)


def flag(default: bool, doc="") -> Field:
    """True or False."""
    return Field("flag", default, doc=doc)


def table(default: dict[str, float], *, low=-math.inf, high=1e30, doc="") -> Field:
    """Names to numbers in [low, high]; empty, or of a positive sum."""
    return Field("table", default, low=low, high=high, doc=doc)


def numbers(default: tuple, *, low=-math.inf, high=1e30, whole=False, doc="") -> Field:
    """A list of at least one number in [low, high]."""
    return Field("list", default, low=low, high=high if not whole else min(high, 2**53), whole=whole, doc=doc)


class Section:
    """Named fields and sub-sections."""

    def __init__(self, **entries: "Field | Section"):
        self.entries = entries

    def __or__(self, other: "Section") -> "Section":
        return Section(**self.entries, **other.entries)

    def defaults(self, **overrides) -> ml_collections.ConfigDict:
        """All keys at their defaults but the overrides; an unknown one raises ConfigError."""
        out = ordered({})
        for name, entry in self.entries.items():
            default = entry.defaults() if isinstance(entry, Section) else entry.default
            out[name] = ordered(default) if isinstance(default, dict) else default
        for name, value in overrides.items():
            if name not in out:
                raise ConfigError(f"unknown key {name!r}{did_you_mean(name, self.entries)}")
            out[name] = ordered(value) if isinstance(value, dict) else value
        return out

    def validate(self, config: Mapping, path: str) -> None:
        """Raise ConfigError for the first key below `path` that is unknown, missing, or of a value not allowed."""
        config = plain(config)
        if not isinstance(config, Mapping):
            raise ConfigError(f"{path}={config!r} must be a section with the keys {', '.join(self.entries)}")
        for name in config:
            if name not in self.entries:
                raise ConfigError(f"{path}.{name}: unknown key{did_you_mean(name, self.entries)}")
        for name, entry in self.entries.items():
            if name not in config:
                raise ConfigError(f"{path}.{name}: missing")
            if isinstance(entry, Section):
                entry.validate(config[name], f"{path}.{name}")
            else:
                entry.check(config[name], f"{path}.{name}")


def ordered(entries: Mapping) -> ml_collections.ConfigDict:
    """A ConfigDict that keeps the order in which keys are given (arms appear in figures in this order)."""
    return ml_collections.ConfigDict(entries, sort_keys=False)


def plain(config) -> Any:
    """ConfigDicts, tuples and nested mappings as plain dicts and lists: what is hashed and stored."""
    if isinstance(config, (Mapping, ml_collections.ConfigDict)):
        return {key: plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [plain(value) for value in config]
    return config


def digest(value) -> str:
    """Short SHA-256 of a JSON-able value: the identity of a run or of a stage."""
    canonical = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def told(error: Exception, file) -> str:
    """An error of a user's file as it ran, in one line, with the last line of the file that led to it. What this
    project or the file itself refused speaks for itself; other errors go by their type."""
    text = str(error) if isinstance(error, ValueError) and str(error) else f"{type(error).__name__}: {error}"
    line = line_in(error, file)
    if line and not isinstance(error, SyntaxError):  # which says so itself
        text += f" ({pathlib.Path(file).name}, line {line})"
    return " ".join(text.split())


def line_in(error: Exception, file) -> int | None:
    """The last line of a file that led to an error; None if it was raised elsewhere."""
    file = pathlib.Path(file).resolve()
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if pathlib.Path(f.filename).resolve() == file]
    return lines[-1] if lines else None


def did_you_mean(name, known) -> str:
    """What follows an unknown name: the nearest known one, else all of them."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.4)
    return f" (did you mean {close[0]!r}?)" if close else (f"; known: {', '.join(known)}" if known else "")


def _range(low: float, high: float) -> str:
    return f"[{low:g}, {high:g}]"
