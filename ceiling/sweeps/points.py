"""Points of a sweep: what is written in a file or handed over in Python -> validated configurations, or one line."""

import copy
import dataclasses
import importlib.util
import pathlib
import re
from collections.abc import Callable, Iterable

from ceiling import experiment, schema
from ceiling.config import ConfigError, Section, plain

FILES = ("stages", "slurm", "results.json", "sweep.json", "sweep.csv", "sweep.html", "shared.txt", "log.txt",
         "lock")  # of the sweep's own folder


@dataclasses.dataclass(frozen=True)
class Point:
    """name: also its folder. overrides: dotted key -> value; config: the whole validated configuration."""

    name: str
    overrides: dict
    config: dict

    @property
    def stages(self) -> list[experiment.Stage]:
        return experiment.plan(self.config)


def prepare(config, points: Iterable[tuple[str, dict]]) -> list[Point]:
    """Every point with its configuration; ConfigError, naming the point, before anything runs."""
    out = {}
    for name, overrides in points:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", str(name)) or name in FILES:
            raise ConfigError(f"point {name!r}: it is also a folder; use letters, digits and _ . + - in its name, and "
                              f"none of {', '.join(FILES)}")  # fmt: skip
        if name in out:
            raise ConfigError(f"point {name!r} is there twice; every point needs a name of its own")
        try:
            own = copy.deepcopy(plain(config))
            values = {key: _put(own, key, value) for key, value in overrides.items()}
            own = schema.validate(own)
            schema.check_against_task(own, schema.load_task(own))
            if own["hosts"]["processes"] != 1:
                raise ConfigError(f"config.hosts.processes={own['hosts']['processes']}: a point runs in one process")
        except ValueError as error:  # a ConfigError, or what a task says of its own values
            raise ConfigError(f"point {name!r}: {error}") from None
        out[name] = Point(name, values, own)
    if not out:
        raise ConfigError("the sweep has no points")
    return list(out.values())


def _put(config: dict, key: str, value):
    """Set one dotted key; a function is given the value that stands there. Returns what was set."""
    *path, last = key.split(".")
    node, where = config, "config"
    for part in path:
        if not isinstance(node, dict):
            raise ConfigError(f"{where} is a value, not a section; it has no {part!r}")
        if part not in node:
            Section(**node).validate({part: None}, where)  # always raises, with the nearest key
        node, where = node[part], f"{where}.{part}"
    if not isinstance(node, dict):
        raise ConfigError(f"{where} is a value, not a section; it has no {last!r}")
    if callable(value):
        if last not in node:
            Section(**node).validate({last: None}, where)
        value = value(node[last])
    node[last] = plain(value)  # a key that is not known is refused with the rest, where tables may have new ones
    return node[last]


def read(config_file: str, which: str) -> list[tuple[str, dict]]:
    """The points of a sweep, as (name, overrides). which: "" for the function `sweep` of the config file, NAME for its
    `sweep_NAME`, or FILE.py[:NAME] for those of another file. config_file: as the command gets it, with its variant."""
    file, _, name = which.partition(":") if ".py" in which else (config_file.partition(":")[0], "", which)
    path = pathlib.Path(file)
    if not path.is_file():
        raise ConfigError(f"--sweep={which}: there is no file {file}")
    spec = importlib.util.spec_from_file_location(f"sweep_of_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable | None = getattr(module, f"sweep_{name}" if name else "sweep", None)
    if function is None:
        known = [key.removeprefix("sweep_") for key in vars(module) if key.startswith("sweep_")]
        raise ConfigError(f"--sweep={which}: {file} has no {'sweep_' + name if name else 'sweep'}(add); known: "
                          f"{', '.join(known) or 'none'}, and its `sweep` without a name")  # fmt: skip
    points = []
    function(lambda name, overrides: points.append((name, overrides)))
    return points
