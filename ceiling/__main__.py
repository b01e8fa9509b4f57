"""Command line: python -m ceiling --config configs/NAME.py --workdir DIR [--config.key=value ...]."""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

import ceiling

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, e.g. configs/lab.py", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; an unfinished run in it is continued")


def main(argv) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; values are given as --config.key=value")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # the checkpointer narrates every save at INFO
    try:
        result = ceiling.run(_CONFIG.value, _WORKDIR.value)
    except (ceiling.ConfigError, RuntimeError, ValueError, OSError) as error:
        print(f"ceiling: {error}", file=sys.stderr)
        sys.exit(2)
    print_verdicts(result)


def parse(argv):
    """Flags from the command line; a --config.* key that does not exist is one line, not a traceback."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = " ".join(str(error).split())
        given = " ".join(a for a in argv if a.startswith("--config."))
        print(f"ceiling: {message} (in {given or 'the config file'})", file=sys.stderr)
        sys.exit(2)


def print_verdicts(result) -> None:
    """The verdict of every arm and group, one line each."""
    for row in result.verdicts:
        print(f"{row['arm']:12s} {row['group']:24s} {row['verdict']:13s} {row['reason']}")
    print(f"report: {result.report}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse)
