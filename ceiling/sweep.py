"""A sweep: python -m ceiling.sweep --config configs/NAME.py [--sweep NAME] --workdir DIR [--at_once 2] [--slurm].

--sweep: nothing for the config file's `sweep(add)`, NAME for its `sweep_NAME(add)`, FILE.py[:NAME] for another file's.
Every point is a run in DIR/NAME; the same command continues what was stopped, and runs no finished point again. See
docs/sweeps.md.

A command, not a module to import: `ceiling.sweep` in Python is the function of `ceiling/sweeps/run.py`.
"""

import json
import pathlib

from absl import flags
from ml_collections import config_flags

from ceiling import cli, experiment
from ceiling.config import ConfigError
from ceiling.sweeps import points, run, slurm, table

_CONFIG = config_flags.DEFINE_config_file("config", None, "What every point starts from", lock_config=True)
_SWEEP = flags.DEFINE_string("sweep", "", "Which sweep: NAME of the config file's sweep_NAME, or FILE.py[:NAME]")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where points and the table go; an unfinished sweep is continued")
_AT_ONCE = flags.DEFINE_integer("at_once", 1, "Points that run side by side", lower_bound=1)
_LIST = flags.DEFINE_bool("list", False, "Print the points and how far they are, write the table, run nothing")
_SLURM = flags.DEFINE_bool("slurm", False, "Submit the points as a job array instead of running them here")
_OPTIONS = flags.DEFINE_list("slurm_options", [], "submitit's, e.g. gpus_per_node=1,slurm_partition=gpu")
_X = flags.DEFINE_string("x", "", "x of the figure: a key (* is the arm or the group) or flops; else the swept key")
_Y = flags.DEFINE_enum("y", "pass@k", list(table.METRICS), "y of the figure")


def main() -> None:
    workdir = pathlib.Path(_WORKDIR.value)
    wanted = points.read(config_flags.get_config_filename(flags.FLAGS["config"]), _SWEEP.value)
    if not _LIST.value and not _SLURM.value:
        result = run.sweep(_CONFIG.value, wanted, workdir, _AT_ONCE.value, x=_X.value, y=_Y.value)
        print(f"table: {workdir / 'sweep.csv'}  figure: {result.report}")
        if result.failed:
            for name, why in result.failed.items():
                print(f"failed: {name}: {why}")
            raise RuntimeError(f"{len(result.failed)} of {len(wanted)} points failed: {', '.join(result.failed)}")
        return
    ready, (x, y) = points.prepare(_CONFIG.value, wanted), _axes(workdir)
    table.check_axes(ready, x, y)
    workdir.mkdir(parents=True, exist_ok=True)
    if _SLURM.value:
        with experiment.locked(workdir):
            run.write_down(ready, workdir, _AT_ONCE.value, x, y)
            for name, job in slurm.submit(ready, workdir, _AT_ONCE.value, _options()).items():
                print(f"submitted {name}: job {job}")
    for point in ready:
        print(f"{point.name:20s} {run.state(point, workdir):16s} {_shown(point.overrides)}")
    table.write(ready, workdir, x, y)


def _axes(workdir: pathlib.Path) -> tuple[str, str]:
    """x and y of the figure: those given, or those that the sweep in this folder was run with."""
    file = workdir / "sweep.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    given = {name: flags.FLAGS[name].value for name in ("x", "y") if flags.FLAGS[name].present}
    return given.get("x", kept.get("x", _X.value)), given.get("y", kept.get("y", _Y.value))


def _options() -> dict:
    """KEY=VALUE pairs, whole numbers as numbers."""
    out = {}
    for pair in _OPTIONS.value:
        key, found, value = pair.partition("=")
        if not found:
            raise ConfigError(f"--slurm_options={pair}: use KEY=VALUE, separated by commas")
        out[key] = int(value) if value.isdecimal() else value
    return out


def _shown(overrides: dict) -> str:
    texts = {key: f"{value:g}" if isinstance(value, float) else "{...}" if isinstance(value, dict) else value
             for key, value in overrides.items()}  # fmt: skip
    return " ".join(f"{key}={text}" for key, text in texts.items())


if __name__ == "__main__":
    cli.start(main, ["config", "workdir"])
