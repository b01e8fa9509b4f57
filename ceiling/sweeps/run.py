"""Runs a sweep on this machine: what points share first, then the points, so many at once."""

import collections
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterable

from ceiling import experiment
from ceiling.config import ConfigError
from ceiling.results import Table
from ceiling.sweeps import child, table
from ceiling.sweeps.points import Point, prepare
from ceiling.train import signals

POLL_S = 0.1


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """table: a row per finished point, arm and group (docs/sweeps.md has its columns). failed: point -> one line that
    says why and where its output is. report: the page with the figure."""

    table: Table
    failed: dict[str, str]
    report: pathlib.Path


def sweep(config, points: Iterable[tuple[str, dict]], workdir, at_once: int = 1, *, x: str = "",
          y: str = "") -> SweepResult:  # fmt: skip
    """Run every point that is not finished, and return the table over all of them.

    config: as from `get_config` or `defaults`. points: (name, {dotted key: value}) each; a value that is a function is
    given the config's. workdir: made if missing. at_once: points that run side by side. x, y: what the figure shows
    (docs/sweeps.md); empty: the swept key, pass@k. Raises ConfigError, before anything runs, if a point is wrong, and
    signals.Stopped if the process is asked to stop: the same call continues. A point that fails is in `failed`.
    """
    workdir, points = pathlib.Path(workdir), prepare(config, points)
    if at_once < 1:
        raise ConfigError(f"at_once={at_once} must be 1 or more")
    table.check_axes(points, x, y)
    workdir.mkdir(parents=True, exist_ok=True)
    with experiment.locked(workdir):
        write_down(points, workdir, at_once, x, y)
        todo = [point for point in points if not table.finished(point, workdir)]
        failed = _processes(points, todo, workdir, at_once)
        rows, report = table.write(points, workdir, x, y)
    return SweepResult(Table(rows), failed, report)


def write_down(points: list[Point], workdir: pathlib.Path, at_once: int, x: str, y: str) -> None:
    """Make the folders of the points, and sweep.json, which the processes and jobs of the sweep read."""
    for point in points:
        (workdir / point.name).mkdir(parents=True, exist_ok=True)
    content = {"at_once": at_once, "x": x, "y": y, "points": [dataclasses.asdict(point) for point in points]}
    temporary = workdir / f".sweep.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(workdir / "sweep.json")


def command(workdir: pathlib.Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "ceiling.sweeps.child", str(workdir), *words]


def missing_shared(points: list[Point], todo: list[Point], workdir: pathlib.Path) -> bool:
    """Whether a point that is to run waits for a stage that others need too."""
    needed = {(stage.name, stage.key) for point in todo for stage in point.stages
              if not stage.directory(workdir / point.name).exists()}  # fmt: skip
    return any((s.name, s.key) in needed and not s.directory(workdir).exists() for s in child.shared(points))


def _processes(points: list[Point], todo: list[Point], workdir: pathlib.Path, at_once: int) -> dict[str, str]:
    """Run what is to do; returns point -> why it failed."""
    if not todo:
        return {}
    grace_s = max(point.config["checkpoint"]["grace_s"] for point in todo)
    failed, ended, began = {}, len(points) - len(todo), time.time()

    def say(line: str) -> None:
        print(f"{time.time() - began:6.0f} s  {line}  [{ended}/{len(points)} points]", flush=True)

    with signals.watched(grace_s + 5):  # the processes have their own, and end first
        if missing_shared(points, todo, workdir):
            say("start   what points share")
            process = _Process(command(workdir, "shared"), workdir / "shared.txt")
            _wait([process])
            if process.code == signals.EXIT_CODE:
                raise signals.Stopped("in what points share")
            say("done    what points share" if not process.code else f"failed  what points share: {process.why()}")
        waiting, running = collections.deque(todo), {}
        try:
            while waiting or running:
                if signals.asked():
                    raise signals.Stopped("in " + (", ".join(running) or f"front of {waiting[0].name}"))
                while waiting and len(running) < at_once:
                    point = waiting.popleft()
                    words = command(workdir, "point", point.name)
                    running[point.name] = _Process(words, workdir / point.name / "output.txt")
                    say(f"start   {point.name}")
                time.sleep(POLL_S)
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    process = running.pop(name)
                    if process.code == signals.EXIT_CODE:
                        raise signals.Stopped(f"in {name}")
                    ended += 1
                    if process.code:
                        failed[name] = process.why()
                    say(f"failed  {name}" if process.code else f"done    {name}")
        finally:
            for process in running.values():
                process.terminate()
            _wait(running.values())
    return failed


class _Process:
    """A piece of the sweep as a process of its own, its output in a file."""

    def __init__(self, words: list[str], output: pathlib.Path):
        self.output = output
        root = str(pathlib.Path(__file__).parents[2])
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))}
        with open(output, "a") as file:
            self.process = subprocess.Popen(words, stdout=file, stderr=file, env=env)
        self.poll, self.terminate = self.process.poll, self.process.terminate

    @property
    def code(self) -> int | None:
        return self.process.returncode

    def why(self) -> str:
        """The last line that the process printed, and where the rest is."""
        lines = self.output.read_text(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), f"ended with code {self.code}")
        return f"{last.removeprefix('ceiling: ')} (code {self.code}, output: {self.output})"


def _wait(processes) -> None:
    """Until all have ended; one that hears of a stop from us, not from the terminal, is told."""
    told = False
    while any(process.poll() is None for process in processes):
        if signals.asked() and not told:
            told = True
            for process in processes:
                process.terminate()
        time.sleep(POLL_S)


def state(point: Point, workdir: pathlib.Path) -> str:
    """How far a point is, in words."""
    if table.finished(point, workdir):
        return "finished"
    stages = point.stages
    there = sum(s.directory(workdir / point.name).exists() or s.directory(workdir).exists() for s in stages)
    return f"{there} of {len(stages)} stages"
