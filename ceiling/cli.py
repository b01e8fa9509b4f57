"""What every command of the project does the same way: flags, one line for a refusal and exit code 2, one for a
stop that was asked for and exit code 75, and compiled programs that later processes find again."""

import hashlib
import os
import pathlib
import platform
import re
import sys
from collections.abc import Callable

from absl import app, flags, logging

import ceiling
from ceiling import hosts
from ceiling.train import signals

PROGRAMS_BYTES = 2 << 30  # what is kept; programs that were not used for longest go first


def start(command: Callable[..., None], required: list[str], *, names: bool = False) -> None:
    """Run a command once its flags are parsed. names: it takes words beside them, which it gets as a list."""

    def main(argv) -> None:
        if len(argv) > 1 and not names:
            raise app.UsageError(f"unexpected argument {argv[1]!r}; values are given as --config.key=value")
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # the checkpointer narrates every save at INFO
        try:
            command(argv[1:]) if names else command()
        except signals.Stopped as stop:
            print(f"ceiling: {stop}", file=sys.stderr)
            sys.exit(signals.EXIT_CODE)
        except (ceiling.ConfigError, RuntimeError, ValueError, OSError) as error:
            print(f"ceiling: {error}", file=sys.stderr)
            hosts.end(2)

    keep_programs()
    flags.mark_flags_as_required(required)
    app.run(main, flags_parser=parse)


def keep_programs() -> None:
    """Have jax keep compiled programs in a folder of the user's, for workers and later processes: stages that differ
    in their seed run the same ones. What the user has set stays, and JAX_COMPILATION_CACHE_DIR= (empty) keeps none.
    Programs for a CPU are of its very model, so a home that several machines share has a folder for each kind."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    info = pathlib.Path("/proc/cpuinfo")
    features = re.search(r"^(?:flags|Features)\s*:.*$", info.read_text(), re.M) if info.exists() else None
    kind = hashlib.sha256((features[0] if features else platform.processor()).encode()).hexdigest()[:8]
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    settings = {
        "jax_compilation_cache_dir": str(home / "ceiling" / f"programs-{platform.machine()}-{kind}"),
        "jax_persistent_cache_min_compile_time_secs": 0.2, "jax_compilation_cache_max_size": PROGRAMS_BYTES,
    }  # fmt: skip
    for name, value in settings.items():
        os.environ.setdefault(name.upper(), str(value))  # workers read these
        if "jax" in sys.modules:  # which has read them already
            sys.modules["jax"].config.update(name, type(value)(os.environ[name.upper()]))


def parse(argv):
    """Flags from the command line; a --config.* key that does not exist is one line, not a traceback."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = " ".join(str(error).split())
        given = " ".join(a for a in argv if a.startswith("--config."))
        print(f"ceiling: {message} (in {given or 'the config file'})", file=sys.stderr)
        sys.exit(2)
