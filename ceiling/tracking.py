"""Curves of a run in the tools that people watch: TensorBoard by default; W&B and Trackio where they are asked for.

A stage's metrics.jsonl, and results.json, are the truth; whatever is here is a copy of them that may be deleted: the
next call of the run makes it again. A stage that continues after a kill starts its copy afresh with the rows of its
checkpoint, so none is missing or twice. Nothing here is part of a stage's identity, asks for a login, or stops a run: a
sink that fails is named in one line, and tried again by the next call.

    WORKDIR/tensorboard/seed1/grpo      event files: train/loss, grpo/reward, seconds/rollout, ..., by step
    WORKDIR/tensorboard/results/grpo    pass_at_k/GROUP, by k
    WORKDIR/wandb                       W&B's folders; offline unless this user is logged in
    WORKDIR/SINK/NAME/complete-KEY      the copy is whole, and of the content that KEY identifies

Trackio keeps its database where the user's dashboard looks for it.
"""

import dataclasses
import functools
import importlib
import importlib.util
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable

from ceiling.config import ConfigError, Section, digest, text

CONFIG = Section(
    sinks=text("tensorboard", doc="where curves are shown as they grow: any of tensorboard wandb trackio; empty: none"),
    project=text("ceiling", doc="the project that W&B and Trackio put them under"),
)
COMMON = ("loss", "grad_norm", "lr", "flops", "skipped")  # metrics that every regime has
FLUSH_S = 20.0  # TensorBoard sees a row this late
PACKAGES = {"tensorboard": ("tensorboardX", "tensorboardX"), "wandb": ("wandb", "ceiling[wandb]"),
            "trackio": ("trackio", "ceiling[trackio]")}  # fmt: skip # sink -> what it imports, what to install


def check(settings: dict) -> None:
    """Refuse a sink that is not known, named twice, or whose package is missing. Raises ConfigError in one line."""
    names = settings["sinks"].split()
    for name in names:
        if name not in PACKAGES or names.count(name) > 1:
            raise ConfigError(
                f"config.tracking.sinks={settings['sinks']!r} is not allowed; use different names of "
                f"{' '.join(PACKAGES)}, separated by spaces, or nothing"
            )
        package, install = PACKAGES[name]
        if not _installed(package):
            raise ConfigError(
                f"config.tracking.sinks={settings['sinks']!r}: {package} is not installed; "
                f'pip install "{install}", or leave {name} out'
            )
    if not settings["project"].strip():
        raise ConfigError("config.tracking.project is empty; name a project")


def _installed(package: str) -> bool:
    """Whether a package can be imported; a folder of its name, as W&B makes them, is none."""
    spec = None if package in sys.modules else importlib.util.find_spec(package)
    return package in sys.modules or (spec is not None and spec.origin is not None)


@dataclasses.dataclass(frozen=True)
class Target:
    """Where one curve goes. workdir: the run's; name: of a stage, or results/ARM; key: identifies the content; log:
    gets a line about a sink that fails."""

    sinks: tuple[str, ...]
    project: str
    workdir: pathlib.Path
    name: str
    key: str
    log: Callable[[str], None]

    def folder(self, sink: str) -> pathlib.Path:
        return self.workdir / sink / self.name

    def mark(self, sink: str) -> pathlib.Path:
        """The empty file that says that the curve is whole."""
        return self.folder(sink) / f"complete-{self.key}"

    @property
    def identity(self) -> str:
        """The same for the next attempt at the same curve, another in another run directory."""
        return digest([str(self.workdir.absolute()), self.name, self.key])

    def lacking(self) -> "Target":
        """The same without the sinks that have it."""
        return dataclasses.replace(self, sinks=tuple(sink for sink in self.sinks if not self.mark(sink).exists()))


def target(settings: dict, workdir: pathlib.Path, name: str, key: str, log: Callable[[str], None]) -> Target:
    """settings: the config's section `tracking`."""
    return Target(tuple(settings["sinks"].split()), settings["project"], pathlib.Path(workdir), name, key, log)


class Curves:
    """`with Curves(target, settings) as curves:` one curve, from its first row on, in every sink of the target: what an
    earlier attempt left there is replaced. It counts as whole if the block ends without an exception.

    settings: of the stage, shown beside the curve; target None: nowhere."""

    def __init__(self, target: Target | None, settings: dict):
        self.target, self.settings = target, settings
        self.open: dict[str, TensorBoard | Remote] = {}

    def __enter__(self):
        for name in self.target.sinks if self.target else ():
            self._try(name, functools.partial(self._start, name))
        return self

    def __exit__(self, kind, *_):
        for name, sink in list(self.open.items()):
            self._try(name, sink.close)
            if kind is None and name in self.open:
                self._try(name, self.target.mark(name).touch)

    def steps(self, metrics: Iterable[dict], times: Iterable[dict], ended: float) -> None:
        """Rows of metrics.jsonl and times.jsonl, at the times at which work without a break would have made them if the
        last was made at `ended` (seconds since the epoch)."""
        seconds = {row["step"]: row for row in times}
        at = ended - sum(row["seconds"] for row in seconds.values())
        for row in metrics:
            own = seconds.get(row["step"], {})
            at += own.get("seconds", 0.0)
            self.step(row, own, at)

    def step(self, metrics: dict, times: dict, at: float) -> None:
        """One step of training: a row of metrics.jsonl, and of times.jsonl."""
        if self.open:
            self.add(metrics["step"], named(self.settings, metrics, times), at)

    def add(self, step: int, values: dict[str, float], at: float) -> None:
        for name, sink in list(self.open.items()):
            self._try(name, functools.partial(sink.add, step, values, at))

    def _start(self, name: str) -> None:
        folder = self.target.folder(name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.open[name] = SINKS[name](self.target, self.settings)

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - a copy is not worth a run
            self.open.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.target.log(f"{name} does not show {self.target.name} ({reason}); the run goes on")


def named(settings: dict, metrics: dict, times: dict) -> dict[str, float]:
    """Values of one step by their names in the sinks: train/METRIC for what every regime reports, REGIME/METRIC for the
    rest, seconds/PHASE. flops is the ledger's sum on the budget's axis, in FLOP."""
    regime = pathlib.Path((settings.get("arm") or settings["train"])["regime"]).stem
    values = {f"{'train' if key in COMMON else regime}/{key}": value for key, value in metrics.items() if key != "step"}
    phases = {"step" if key == "seconds" else key: value for key, value in times.items() if key != "step"}
    return values | {f"seconds/{phase}": value for phase, value in phases.items()}


def finished(config: dict, stages: Iterable, workdir: pathlib.Path, log: Callable[[str], None]) -> None:
    """Bring the curves of finished stages to sinks that lack them: asked for later, deleted, or made elsewhere."""
    for stage in stages:
        home = stage.directory(workdir)
        if (home / "metrics.jsonl").exists():
            to = target(config["tracking"], workdir, stage.name, stage.key, log).lacking()
            if to.sinks:
                with Curves(to, stage.settings) as curves:
                    rows = [_rows(home / f"{name}.jsonl") for name in ("metrics", "times")]
                    curves.steps(*rows, ended=(home / "stage.json").stat().st_mtime)


def results(config: dict, tables: dict, workdir: pathlib.Path, log: Callable[[str], None]) -> None:
    """Every arm's pass@k by k, one curve per group, with its verdicts as settings."""
    for arm in dict.fromkeys(row["arm"] for row in tables["curves"]):
        mine = [row for row in tables["curves"] if row["arm"] == arm]
        verdicts = {row["group"]: row["verdict"] for row in tables["verdicts"] if row["arm"] == arm}
        by_k = {k: {f"pass_at_k/{row['group']}": row["mean"] for row in mine if row["k"] == k}
                for k in sorted({row["k"] for row in mine})}  # fmt: skip
        settings = {"arm": arm, "n": tables["meta"]["n"], "seeds": tables["meta"]["seeds"], "verdicts": verdicts}
        to = target(config["tracking"], workdir, f"results/{arm}", digest(json.dumps([settings, by_k])), log)
        with Curves(to.lacking(), settings) as curves:
            for k, values in by_k.items():
                curves.add(k, values, time.time())


def _rows(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class TensorBoard:
    """Event files, one event per step. Written by the thread that calls: the writer's own would block for ever once it
    failed, as on a full disk."""

    def __init__(self, target: Target, settings: dict):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.summary import text as as_text

        self.event, self.summary = Event, Summary
        self.writer, self.flushed = EventsWriter(str(target.folder("tensorboard") / "events")), time.monotonic()
        shown = as_text("settings", f"```\n{json.dumps(settings, indent=1)}\n```")
        self.writer.write_event(Event(step=0, wall_time=time.time(), summary=shown))

    def add(self, step: int, values: dict[str, float], at: float) -> None:
        value = [self.summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self.writer.write_event(self.event(step=step, wall_time=at, summary=self.summary(value=value)))
        if time.monotonic() - self.flushed > FLUSH_S:
            self.writer.flush()
            self.flushed = time.monotonic()

    def close(self) -> None:
        self.writer.close()


class Remote:
    """W&B, or Trackio, which has W&B's functions: a run of theirs, that no other part of this process sees."""

    def __init__(self, sink: str, target: Target, settings: dict):
        module = importlib.import_module(sink)
        own = _wandb(module, target) if sink == "wandb" else _trackio(module, target)
        self.run = module.init(project=target.project, group=target.workdir.absolute().name, config=settings, **own)
        self.first = self.run.step if sink == "wandb" else 0  # what the server has it does not take twice

    def add(self, step: int, values: dict[str, float], at: float) -> None:
        if step >= self.first:
            self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


SINKS = {"tensorboard": TensorBoard, "wandb": functools.partial(Remote, "wandb"),
         "trackio": functools.partial(Remote, "trackio")}  # fmt: skip


def _wandb(wandb, target: Target) -> dict:
    """Online if this user is logged in and has not said otherwise, offline in the run directory if not. A server
    continues a run of the same id; a folder is made again."""
    mode = os.environ.get("WANDB_MODE", "")
    if mode not in ("offline", "disabled"):
        mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
    for left in (target.workdir / "wandb").glob(f"offline-run-*-{target.identity}"):
        shutil.rmtree(left)
    quiet = wandb.Settings(silent=True, console="off")
    return {"mode": mode, "dir": str(target.workdir), "id": target.identity, "name": target.name, "settings": quiet,
            "resume": "allow" if mode == "online" else None, "reinit": "create_new"}  # fmt: skip


def _trackio(trackio, target: Target) -> dict:
    """Trackio has all runs of a user in one place, by their names: an earlier attempt is deleted there."""
    name = f"{target.name}-{target.identity[:6]}"
    try:
        earlier = [run for run in trackio.Api().runs(target.project) if run.name == name]
    except ValueError:  # the project is new
        earlier = []
    for run in earlier:
        run.delete()
    return {"name": name, "embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
