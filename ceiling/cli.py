"""What every command of the project does the same way: flags, one line for a refusal and exit code 2, one for a
stop that was asked for and exit code 75, and compiled programs that later processes find again."""

import contextlib
import pathlib
import re
import sys
from collections.abc import Callable, Iterator

from absl import app, flags, logging

from ceiling import hosts, pages, programs
from ceiling.config import ConfigError, did_you_mean, line_in, told
from ceiling.train import signals


def start(command: Callable[..., None], required: list[str], *, names: bool = False) -> None:
    """Run a command once its flags are parsed. names: it takes words beside them, which it gets as a list."""

    def parsed(argv: list[str]) -> list[str]:
        words = parse(argv)
        if len(words) > 1 and not names:
            _refuse(f"unexpected word {words[1]!r}; values are given as --config.key=value")
        return words

    def main(words: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # the checkpointer narrates every save at INFO
        with guarded():
            command(words[1:]) if names else command()

    pages.use()
    programs.keep()
    flags.mark_flags_as_required(required)
    app.run(main, flags_parser=parsed)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Ends the process with one line where its work was stopped or refused."""
    try:
        yield
    except signals.Stopped as stop:
        print(f"ceiling: {stop}", file=sys.stderr)
        sys.exit(signals.EXIT_CODE)
    except (ConfigError, RuntimeError, ValueError, OSError) as error:
        print(f"ceiling: {error}", file=sys.stderr)
        hosts.end(2)


def parse(argv: list[str]) -> list[str]:
    """The program and the words beside its flags. A flag that cannot be read, a config file that cannot be found or
    does not run, and an override of a key that it does not have end the process with one line."""
    try:
        words = flags.FLAGS(argv)
        given = flags.FLAGS["config"] if "config" in flags.FLAGS else None
        # hasattr: ml_collections keeps what it could not load until its value is read
        if given is not None and given.present and not hasattr(given.value, "keys"):
            raise ConfigError(f"get_config() returned {type(given.value).__name__}; return a configuration")
        return words
    except Exception as error:  # noqa: BLE001 - a config file is the user's code, and may raise anything
        _refuse(_reason(error, argv))


def _refuse(line: str) -> None:
    print(f"ceiling: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(2)


def _reason(error: Exception, argv: list[str]) -> str:
    """Why absl, ml_collections or the config file itself refused a command line."""
    text, file = str(error), _config_file(argv).partition(":")[0]
    if missing := re.search(r"Flag --(\w+) must have a value other than None", text):
        none = f"--config={file!r}: get_config() returned None; return a configuration"
        return none if missing[1] == "config" and file else f"--{missing[1]} is missing: {flags.FLAGS[missing[1]].help}"
    if isinstance(error, flags.UnrecognizedFlagError):
        return text + ("; values of the configuration are given as --config.key=value" if file else "")
    if isinstance(error, flags.Error) and not text.startswith("flag --config="):
        text = re.sub(": could not convert string to float.*", " must be a number", text)
        return re.sub(": invalid literal for int.*", " must be a whole number", text).removeprefix("flag ")
    if not file or not pathlib.Path(file).is_file():
        return f"--config={file!r}: no such file; paths are relative to where the command is started"
    if "has no attribute 'get_config'" in text:
        return f"--config={file!r}: the file does not define get_config"
    if isinstance(error, (AttributeError, KeyError)) and not line_in(error, file) and (unknown := _unknown_key(argv)):
        return unknown
    while (wrapped := error.__cause__ or error.__context__) and re.match(_WRAPPERS, str(error)):
        error = wrapped
    return f"--config={file!r}: {told(error, file)}"


# How ml_collections and absl begin when they tell of an error of the config file, which they keep as its cause.
_WRAPPERS = "flag --config=|Error whilst parsing config file|Configuration is not available"


def _config_file(argv: list[str]) -> str:
    """What --config names: a file, or FILE:VARIANT."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, given, value = word.partition("=")
        if name in ("--config", "-config"):
            return value if given else following
    return ""


def _unknown_key(argv: list[str]) -> str:
    """The first override of a key that the config file does not have; empty: there is none."""
    config = flags.FLAGS["config"].parser.parse(_config_file(argv))
    for path in (word.lstrip("-").partition("=")[0].split(".") for word in argv):
        section = config
        for depth, key in enumerate(path[1:] if path[0] == "config" else [], 2):
            known = list(section.keys()) if hasattr(section, "keys") else []
            if key not in known:
                return f"{'.'.join(path[:depth])}: unknown key{did_you_mean(key, known)}"
            section = section[key]
    return ""
