"""The process of one piece of a sweep: python -m ceiling.sweeps.child WORKDIR [point NAME | shared | table].

It reads WORKDIR/sweep.json, so that a process of this machine and a Slurm job start the same thing.
"""

import collections
import dataclasses
import json
import os
import pathlib
import signal
import sys

from ceiling import cli, experiment, pages, programs, results, workers
from ceiling.logs import Progress
from ceiling.sweeps import table
from ceiling.sweeps.points import Point
from ceiling.train import signals


def load(workdir: pathlib.Path) -> list[Point]:
    """The points that the last call of the sweep wrote down."""
    content = json.loads((workdir / "sweep.json").read_text())
    return [Point(**point) for point in content["points"]]


def shared(points: list[Point]) -> list[experiment.Stage]:
    """Stages that two points or more need, in an order in which they can run. What a shared stage needs is shared too:
    its identity is part of the stage's."""
    every = [((stage.name, stage.key), stage) for point in points for stage in point.stages]
    users = collections.Counter(identity for identity, _ in every)
    return [stage for identity, stage in dict(every).items() if users[identity] > 1]


def make_shared(points: list[Point], workdir: pathlib.Path, at_once: int) -> None:
    """Run what points share, once, in WORKDIR/stages."""
    stages, grace_s = [unwatched(s) for s in shared(points)], max(p.config["checkpoint"]["grace_s"] for p in points)
    count = at_once * max(p.config["workers"] for p in points)

    def pointless(stage: experiment.Stage) -> bool:
        return stage.kind != "prior" and results.unfit(_prior(stage).directory(workdir))

    (workdir / "stages").mkdir(exist_ok=True)
    # A lock of their own: the sweep that started this process holds its folder's.
    with experiment.locked(workdir / "stages"), signals.watched(grace_s), Progress(len(stages), workdir) as progress:
        workers.execute(stages, workdir, count, progress, lambda *_: None, pointless, grace_s)


def unwatched(stage: experiment.Stage) -> experiment.Stage:
    """Shown nowhere as it runs: several shared stages may have one name. Each point shows those that it is given."""
    tracking = {**stage.how["tracking"], "sinks": ""}
    return dataclasses.replace(stage, how={**stage.how, "tracking": tracking})


def _prior(stage: experiment.Stage) -> experiment.Stage:
    return stage if stage.kind == "prior" else _prior(next(iter(stage.needs.values())))


def run_point(point: Point, workdir: pathlib.Path) -> None:
    """Run a point in its folder, with links to the shared stages that are there."""
    home = workdir / point.name
    for stage in point.stages:
        made, here = stage.directory(workdir), stage.directory(home)
        if made.exists() and not here.exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            here.unlink(missing_ok=True)  # a link whose end is gone
            here.symlink_to(os.path.relpath(made, here.parent), target_is_directory=True)
    experiment.run(point.config, home)


def main(argv: list[str]) -> None:
    workdir, what, *names = pathlib.Path(argv[0]), *argv[1:]
    content = json.loads((workdir / "sweep.json").read_text())
    points = load(workdir)
    if what == "shared":
        make_shared(points, workdir, content["at_once"])
    elif what == "table":
        table.write(points, workdir, content["x"], content["y"])
    else:
        run_point(next(p for p in points if p.name == names[0]), workdir)


if __name__ == "__main__":
    # submitit's warning is for its own process, which then tells this one with SIGTERM.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    pages.use()
    programs.keep()
    with cli.guarded():
        main(sys.argv[1:])
