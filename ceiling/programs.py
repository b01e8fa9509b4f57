"""Where jax keeps compiled programs: one folder of the user's, for workers and later processes.

Stages that differ in their seed run the same programs. What the user has set stays, and JAX_COMPILATION_CACHE_DIR=
(empty) keeps none. Programs for a CPU are of its very model, so a home that several machines share has a folder for
each kind.
"""

import hashlib
import os
import pathlib
import platform
import re
import sys

MOST_BYTES = 2 << 30  # that are kept; programs that were not used for longest go first


def settings() -> dict[str, str | float]:
    """jax's settings for it, by their names in lower case; {} if the user has said where programs are kept."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return {}
    info = pathlib.Path("/proc/cpuinfo")
    features = re.search(r"^(?:flags|Features)\s*:.*$", info.read_text(), re.M) if info.exists() else None
    kind = hashlib.sha256((features[0] if features else platform.processor()).encode()).hexdigest()[:8]
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return {
        "jax_compilation_cache_dir": str(home / "ceiling" / f"programs-{platform.machine()}-{kind}"),
        "jax_persistent_cache_min_compile_time_secs": 0.1, "jax_compilation_cache_max_size": MOST_BYTES,
    }  # fmt: skip


def environment() -> dict[str, str]:
    """The same as environment variables of a process to be started, those aside that are set."""
    named = {name.upper(): str(value) for name, value in settings().items()}
    return {name: value for name, value in named.items() if name not in os.environ}


def keep() -> None:
    """Keep the programs of this process, which must be the user's command: settings of jax are global."""
    if "jax" in sys.modules:  # it has read its environment
        for name, value in settings().items():
            if name.upper() not in os.environ:
                sys.modules["jax"].config.update(name, value)
    os.environ.update(environment())
