"""Command line: python -m ceiling --config configs/NAME.py --workdir DIR [--plan] [--config.key=value ...]."""

from absl import flags
from ml_collections import config_flags

import ceiling
from ceiling import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, e.g. configs/lab.py", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; an unfinished run in it is continued")
_PLAN = flags.DEFINE_bool("plan", False, "Print parameters, memory, FLOPs and hours of the run, and do not run it")


def main() -> None:
    if _PLAN.value:
        from ceiling import plan

        print(plan.main_plan(_CONFIG.value))
        return
    if not _WORKDIR.value:
        raise ValueError("--workdir is missing; name the run directory")
    result = ceiling.run(_CONFIG.value, _WORKDIR.value)
    if result is None:  # one of several hosts, and not the one that reports
        return
    for row in result.verdicts:
        print(f"{row['arm']:12s} {row['group']:24s} {row['reason']}")  # which begins with the verdict
    print(f"report: {result.report}")


if __name__ == "__main__":
    cli.start(main, ["config"])
