"""SHA-256 manifest of a directory: which files it holds and what they are about.

Orbax does not notice a flipped bit. `write` comes last, by a rename, so a directory with a manifest is a finished
one; `read` hashes every file again. The manifest's first line is the hash of its second: it is checked like the
files that it lists. Data files are not flushed one by one: what a power cut takes from them, `read` sees.
"""

import hashlib
import json
import os
import pathlib

NAME = "manifest.json"


class Damaged(ValueError):
    """A directory that is not what its manifest says, or has none."""


def write(directory: pathlib.Path, about: dict) -> None:
    """List every file in `directory`, with `about` (plain JSON), in a manifest that appears whole or not at all."""
    body = json.dumps({"about": about, "files": _files(directory)}, sort_keys=True)
    part = directory / f"{NAME}.part"
    with open(part, "w") as file:
        file.write(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, directory / NAME)
    _flush_directory(directory)


def read(directory: pathlib.Path) -> dict:
    """The `about` of a directory whose every file is as it was written; otherwise Damaged, with the file named."""
    try:
        digest, _, body = (directory / NAME).read_bytes().partition(b"\n")
        if not body.endswith(b"\n") or hashlib.sha256(body[:-1]).hexdigest().encode() != digest:
            raise Damaged(f"{NAME} is damaged")
        listed, found = json.loads(body), _files(directory)
    except FileNotFoundError:
        raise Damaged(f"unfinished (it has no {NAME})") from None
    except OSError as error:
        raise Damaged(f"cannot be read ({error.strerror or error})") from None
    for name in sorted(listed["files"].keys() | found.keys()):
        if listed["files"].get(name) != found.get(name):
            raise Damaged(f"{name} is {_difference(listed['files'].get(name), found.get(name))}")
    return listed["about"]


def _files(directory: pathlib.Path) -> dict[str, list]:
    """{relative name: [bytes, SHA-256]} of every file below but the manifest."""
    out = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path not in (directory / NAME, directory / f"{NAME}.part"):
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            out[path.relative_to(directory).as_posix()] = [path.stat().st_size, digest]
    return out


def _difference(listed: list | None, found: list | None) -> str:
    if listed is None:
        return "not in its manifest"
    if found is None:
        return "missing"
    return f"{found[0]} bytes, not {listed[0]}" if found[0] != listed[0] else "not what was written (SHA-256 differs)"


def _flush_directory(directory: pathlib.Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
