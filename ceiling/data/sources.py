r"""Rows of data from where users keep them: local files or a pinned data set of the Hugging Face hub.

    data.jsonl, data.json, data.parquet, data.txt          one file, read by its ending (no ending: JSONL)
    "shards/*.parquet"                                     several files, in sorted order
    hub:owner/name@COMMIT/split                            a hub data set, its default configuration
    hub:owner/name@COMMIT:config/split                     another configuration of it

A text file is one row `{"text": ...}` per paragraph (paragraphs are separated by blank lines). Hub data is read
through `datasets`, which runs no loading scripts; the revision is a commit, because a branch or a tag can move.
Whatever is wrong is refused in one line that names the file, the line, the field and the remedy.

Example:
    rows = read("data.jsonl", fields=("question", "answer"))
    rows[0]["question"], rows[0][PLACE]                    # the text, and "data.jsonl:1"
"""

import glob
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

from ceiling.config import ConfigError

PLACE = "@place"  # key of every row: where it stands, for messages; no part of the content
HUB = "hub:"
_HUB = re.compile(
    r"hub:(?P<name>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})(?::(?P<config>[^/:]+))?/(?P<split>[\w.-]+)"
)
_TOKEN = re.compile(r"hf_\w+|(?i:bearer)\s+\S+")


def read(source: str, *, fields: Sequence[str], name: str = "config.data.path") -> list[dict]:
    """Rows with the given fields and PLACE; other fields are left out. Values are as the file has them (text is
    text that can be encoded; None counts as missing). name: the configuration key that `source` came from.
    Raises ConfigError in one line."""
    if not source:
        raise ConfigError(f"{name} is empty; give a JSONL file: --{name}=FILE")
    rows = _hub(source, fields) if source.startswith(HUB) else _local(source, fields, name)
    out = [_checked(row, place, fields) for row, place in rows]
    if not out:
        raise ConfigError(f"{source}: the file has no rows; check {name}")
    return out


def digest(rows: Iterable[dict]) -> str:
    """SHA-256 (hex) of the content of rows in their order: fields and values, not where they stand."""
    sha = hashlib.sha256()
    for row in rows:
        content = {key: value for key, value in row.items() if key != PLACE}
        sha.update(json.dumps(content, sort_keys=True, default=str).encode() + b"\n")
    return sha.hexdigest()


def files(source: str, name: str = "config.data.path") -> list[pathlib.Path]:
    """The local files that `source` names."""
    path = pathlib.Path(source)
    if path.is_dir():
        raise ConfigError(f"{source}: is a directory; name its files in {name}, e.g. {path.name}/*.jsonl")
    if path.exists() or not any(c in source for c in "*?["):
        return [path]
    found = sorted(pathlib.Path(p) for p in glob.glob(source))
    if not found:
        raise ConfigError(f"{source}: No such file; check {name}")
    return found


# ---- local files


def _local(source: str, fields: Sequence[str], name: str) -> Iterator[tuple[object, str]]:
    for path in files(source, name):
        kind = path.suffix.lower()
        if kind == ".parquet":
            yield from _parquet(path, fields, name)
            continue
        text = _text(path, name)
        if kind in (".txt", ".text", ".md"):
            yield from _paragraphs(path, text)
        elif kind == ".json" and text.lstrip().startswith("["):
            yield from ((row, f"{path}:row {i}") for i, row in enumerate(_json(text, str(path)), 1))
        else:
            lines = enumerate(text.split("\n"), 1)
            yield from ((_json(line, f"{path}:{i}"), f"{path}:{i}") for i, line in lines if line.strip())


def _text(path: pathlib.Path, name: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); convert the file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check {name}") from None


def _json(text: str, place: str):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: not JSON ({error}); fix or drop it") from None


def _paragraphs(path: pathlib.Path, text: str) -> Iterator[tuple[dict, str]]:
    line = 1
    for block in re.split(r"((?:\r?\n[ \t]*){2,})", text):
        if block.strip():
            yield {"text": block.strip()}, f"{path}:{line}"
        line += block.count("\n")


def _parquet(path: pathlib.Path, fields: Sequence[str], name: str) -> Iterator[tuple[dict, str]]:
    import pyarrow
    from pyarrow import parquet

    try:
        known = parquet.read_schema(path).names
        table = parquet.read_table(path, columns=[f for f in fields if f in known])
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or 'damaged'}); check {name}") from None
    except pyarrow.ArrowException:
        raise ConfigError(f"{path}: not a Parquet file, or a damaged one; check {name}") from None
    _known_fields(fields, known, str(path))
    for i, row in enumerate(table.to_pylist(), 1):
        yield row, f"{path}:row {i}"


# ---- the hub


def _hub(source: str, fields: Sequence[str]) -> Iterator[tuple[dict, str]]:
    match = _HUB.fullmatch(source)
    if match is None:
        raise ConfigError(
            f"{source!r}: pin a revision: hub:owner/name@COMMIT/split or hub:owner/name@COMMIT:config/split, with the "
            "40 hex digits of a commit (a branch or a tag can move)"
        )
    import datasets  # slow to import: only where it is needed

    try:
        data = datasets.load_dataset(match["name"], match["config"], split=match["split"], revision=match["revision"])
    except Exception as error:  # noqa: BLE001 - the hub's client raises a dozen types; every one is the user's to see
        raise ConfigError(_hub_advice(source, match, error)) from None
    # Offline, `datasets` serves the newest revision it has in its cache, whatever was asked for.
    if not all(match["revision"] in pathlib.Path(file["filename"]).parts for file in data.cache_files):
        raise ConfigError(
            f"{source}: the local cache holds another revision of it and the hub was not reached; connect once, or pin "
            "the revision that is cached"
        )
    _known_fields(fields, data.column_names, source)
    for i, row in enumerate(data.select_columns(list(fields)).to_list()):
        yield row, f"{source} row {i}"


def _hub_advice(source: str, match: re.Match, error: Exception) -> str:
    """One line: what went wrong and what to do. Never a token, in whatever the client put in its message."""
    said = _TOKEN.sub("<token>", " ".join(str(error).split()))[:200]
    kind = type(error).__name__
    if "gated" in said or "authenticated" in said:
        advice = f"ask for access at huggingface.co/datasets/{match['name']} and set HF_TOKEN"
    elif isinstance(error, ConnectionError | TimeoutError) or "Offline" in kind or "Connect" in kind:
        advice = "connect once to fill the cache, or give a local file"
    elif "Config name is missing" in said or "Unknown split" in said or "not found" in said:
        advice = "check the configuration and the split: hub:owner/name@COMMIT:config/split"
    else:
        advice = "check the name and the revision, or give a local file"
    return f"{source}: cannot be loaded; {advice} ({kind}: {said})"


# ---- rows


def _checked(row, place: str, fields: Sequence[str]) -> dict:
    if not isinstance(row, dict):
        raise ConfigError(f"{place}: not a JSON object with the fields {_list(fields)}; fix or drop it")
    _known_fields(fields, [key for key, value in row.items() if value is not None], place)
    out = {field: row[field] for field in fields}
    for field, value in out.items():
        try:
            if isinstance(value, str):
                value.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{place}: `{field}` has a lone surrogate, which is no text; fix or drop it") from None
    return out | {PLACE: place}


def _known_fields(fields: Sequence[str], known: Sequence[str], place: str) -> None:
    for field in fields:
        if field not in known:
            raise ConfigError(
                f"{place}: no field `{field}`, it has {_list(known)}; fix it, or name your fields in config.task"
            )


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in list(names)[:12]) or "none"
