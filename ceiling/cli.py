"""What every command of the project does the same way: flags, one line for a refusal and exit code 2, one for a
stop that was asked for and exit code 75, and compiled programs that later processes find again."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from absl import app, flags, logging

import ceiling
from ceiling import hosts, programs
from ceiling.train import signals


def start(command: Callable[..., None], required: list[str], *, names: bool = False) -> None:
    """Run a command once its flags are parsed. names: it takes words beside them, which it gets as a list."""

    def main(argv) -> None:
        if len(argv) > 1 and not names:
            raise app.UsageError(f"unexpected argument {argv[1]!r}; values are given as --config.key=value")
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # the checkpointer narrates every save at INFO
        with guarded():
            command(argv[1:]) if names else command()

    programs.keep()
    flags.mark_flags_as_required(required)
    app.run(main, flags_parser=parse)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Ends the process with one line where its work was stopped or refused."""
    try:
        yield
    except signals.Stopped as stop:
        print(f"ceiling: {stop}", file=sys.stderr)
        sys.exit(signals.EXIT_CODE)
    except (ceiling.ConfigError, RuntimeError, ValueError, OSError) as error:
        print(f"ceiling: {error}", file=sys.stderr)
        hosts.end(2)


def parse(argv):
    """Flags from the command line; a --config.* key that does not exist is one line, not a traceback."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = " ".join(str(error).split())
        given = " ".join(a for a in argv if a.startswith("--config."))
        print(f"ceiling: {message} (in {given or 'the config file'})", file=sys.stderr)
        sys.exit(2)
