"""An experiment: a configuration becomes stages, stages become records, records become the report.

Each stage's identity is the hash of the settings it may read and of the stages it needs. A finished
stage is a directory named by that hash, so rerunning a command continues where it stopped, and a
changed value reruns the stages that depend on it and no others.

    prior -> teacher            per training seed
    prior (+ teacher) -> arm    one per arm, all to the same ledger value (times the arm's `spend`)
    arm -> arm                  where an arm starts from another, is taught by it, or picks its problems by it
    prior or arm -> labels      majority answers, where an arm that starts there is paid by them
    each policy -> evaluate     the base twice: its redraw is the null arm
    RLP arms -> gain            information gain against its controls
    prior or arm -> sae         where an arm is steered by a feature of its start

Example:
    config = ceiling.defaults("lab", arms={"grpo": ceiling.arm("grpo", lr=7e-4)})
    result = ceiling.run(config, "runs/mine")
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import math
import os
import pathlib
import shutil
import threading
import time
from collections.abc import Callable

from ceiling import hosts, results, schema, tracking, workers
from ceiling.config import ConfigError, digest
from ceiling.data import sources
from ceiling.logs import Progress
from ceiling.train import signals
from ceiling.version import __version__
from ceiling.workers import UNFINISHED


@dataclasses.dataclass(frozen=True)
class Stage:
    """name is unique in the run and readable; needs maps input names to stages; key is the identity. how: on which
    mesh it runs, when it saves and who watches, which change the numbers by rounding or not at all and are no part of
    it."""

    name: str
    kind: str
    seed: int
    arm: str | None
    settings: dict
    needs: dict[str, "Stage"]
    how: dict

    @property
    def key(self) -> str:
        return digest([__version__, self.kind, self.settings, {n: s.key for n, s in self.needs.items()}])

    def directory(self, workdir: pathlib.Path) -> pathlib.Path:
        return workdir / "stages" / self.name / self.key


def plan(config: dict) -> list[Stage]:
    """Every stage of a validated configuration, in the order in which they should start."""
    world, evaluation, own = _world(config), _sampling(config), _own_regimes(config)
    out = []
    for seed in config["seeds"]:
        common = {**world, "seed": seed}

        def add(name, kind, needs, owner=None, seed=seed, common=common, **settings) -> Stage:
            out.append(Stage(f"seed{seed}/{name}", kind, seed, owner, {**common, **settings}, needs, how(config)))
            return out[-1]

        prior = add("prior", "prior", {}, train=config["prior"])
        add("base.evaluate", "evaluate", {"policy": prior, "base": prior}, "base", eval={**evaluation, "draw": 0})
        teacher, trained, autoencoders, labelled = None, {}, {}, {}
        for name in schema.in_order(config["arms"]):
            entry = config["arms"][name]
            entry = {**entry, "mix": schema.mix_of(entry, config), **own.get(name, {})}
            needs = {"start": trained.get(entry["start"], prior)}
            if schema.taught(entry) and not entry["teacher"]:
                teacher = teacher or add("teacher", "teacher", {"prior": prior}, train=config["teacher"])
                needs["teacher"] = teacher
            elif schema.taught(entry):
                needs["teacher"] = trained[entry["teacher"]]
            if entry["vectors"].startswith("sae"):
                home = entry["start"] or "prior"
                if home not in autoencoders:
                    autoencoders[home] = add(f"{home}.sae", "sae", {"start": needs["start"]}, sae=config["sae"])
                needs["sae"] = autoencoders[home]
            if samples := schema.label_samples(entry):
                home = entry["start"] or "prior"
                asked = {key: entry[key] for key in ("mix", "pool", "slots", "max_verifier_errors")}
                asked["samples"] = samples
                number = sum(name == home for name, _ in labelled) + 1
                if (home, digest(asked)) not in labelled:
                    title = f"{home}.labels" + (str(number) if number > 1 else "")
                    labelled[home, digest(asked)] = add(title, "labels", {"start": needs["start"]}, labels=asked)
                needs["labels"] = labelled[home, digest(asked)]
            if entry["select_from"]:
                needs["history"] = trained[entry["select_from"]]
            budget = {**config["budget"], "flops": config["budget"]["flops"] * entry["spend"]}
            if config["tuning"]["trials"] > 1 and entry["spend"]:
                needs = {**needs, "tune": _tuned(add, name, entry, needs, budget, config["tuning"])}
            trained[name] = add(name, "arm", needs, name, arm=entry, budget=budget)
            pair = {"policy": trained[name], "base": prior}
            add(f"{name}.evaluate", "evaluate", pair, name, eval={**evaluation, "draw": entry["draw"]})
            if entry["regime"] == "rlp":
                gain = {"n": config["eval"]["gain_samples"], "max_thought_tokens": entry["max_thought_tokens"],
                        "floor": entry["floor"], "groups": sorted(entry["mix"]),
                        "slots": config["eval"]["slots"]}  # fmt: skip
                add(f"{name}.gain", "gain", pair, name, gain=gain)
        add(f"{schema.NULL}.evaluate", "evaluate", {"policy": prior, "base": prior}, schema.NULL,
            eval={**evaluation, "draw": 1, "likelihood_samples": 0})  # fmt: skip
    # Priors first: everything of a seed waits for its prior, and the last seed's must not leave workers idle.
    return sorted(out, key=lambda stage: stage.kind != "prior")


def _tuned(add: Callable, name: str, entry: dict, needs: dict, budget: dict, tuning: dict) -> Stage:
    """The stage that chooses an arm's learning rate, after its trials at rates around its own, a factor apart."""
    middle = (tuning["trials"] - 1) / 2
    tried = [entry["lr"] * tuning["factor"] ** (i - middle) for i in range(tuning["trials"])]
    short = {**budget, "flops": budget["flops"] * tuning["spend"]}
    trials = {
        f"trial{i}": add(f"{name}.trial{i}", "trial", needs, arm={**entry, "lr": lr}, budget=short)
        for i, lr in enumerate(tried)
    }
    judged = {key: tuning[key] for key in ("problems", "n")} | {key: entry[key] for key in ("mix", "pool", "slots")}
    return add(f"{name}.tune", "tune", trials, tune={**judged, "rates": tried})


def _world(config: dict) -> dict:
    """What every stage may read: a change of it is another run."""
    return {key: config[key] for key in ("task", "model")} | _fingerprints(config)


def how(config: dict) -> dict:
    """How a stage is carried out: a run goes on with another mesh, other checkpoints or other sinks."""
    return {key: config[key] for key in ("mesh", "checkpoint", "tracking")}


def _sampling(config: dict) -> dict:
    """The part of the evaluation section that decides which samples are drawn."""
    names = ("n", "temperature", "top_p", "likelihood_samples", "slots", "max_verifier_errors")
    return {name: config["eval"][name] for name in names}


def evaluation_settings(config: dict, draw: int) -> dict:
    """Settings of an evaluation stage, seed aside."""
    return {**_world(config), "eval": {**_sampling(config), "draw": draw}}


def run(config, workdir) -> results.Result | None:
    """Run the whole experiment, or what is left of it, and return its tables (None on all hosts but the first).

    config: as from `get_config` or `defaults`; workdir: the run directory, made if missing. Raises
    ConfigError before anything compiles, RuntimeError if a stage fails or the directory is in use, signals.Stopped
    if the process is asked to stop: everything done is saved then, and the same call continues.
    """
    config = schema.validate(config)
    with hosts.joined(config["hosts"], harmless=(signals.Stopped,)):
        return _run(config, pathlib.Path(workdir))


def _run(config: dict, workdir: pathlib.Path) -> results.Result | None:
    hosts.same({"code": hosts.code_version(), "config": {k: v for k, v in config.items() if k != "hosts"},
                "data": _fingerprints(config)["data"]["sha256"], "regimes": _own_regimes(config)})  # fmt: skip
    schema.check_against_task(config, schema.load_task(config))
    hosts.check_mesh(config["mesh"])
    leader = hosts.leader()
    if leader:
        workdir.mkdir(parents=True, exist_ok=True)
    stages = plan(config)
    grace_s = config["checkpoint"]["grace_s"]
    lock = locked(workdir) if leader else contextlib.nullcontext()
    with lock, signals.watched(grace_s), Progress(len(stages), workdir, silent=not leader) as progress:
        hosts.shared(workdir)
        if leader:
            _tidy(workdir, {stage.directory(workdir) for stage in stages}, progress)
            tracking.finished(config, stages, workdir, progress.log)
        began = time.time()
        priors = {stage.seed: stage.directory(workdir) for stage in stages if stage.kind == "prior"}

        def pointless(stage: Stage) -> bool:
            return stage.kind != "prior" and results.unfit(priors[stage.seed])

        def write(complete: bool) -> results.Result:
            finished = [s for s in stages if s.directory(workdir).exists()]
            result = results.write(config, stages, finished, workdir, complete=complete)
            progress.log(f"report: {result.report}  [{progress.done}/{progress.total} stages]")
            return result

        with _Background(lambda: write(False), config["report"]["every_s"]) as interim:
            finished = interim.wanted if leader else lambda *_: None
            workers.execute(stages, workdir, config["workers"], progress, finished, pointless, grace_s)
        result = write(True) if leader else None
        if leader:
            tracking.results(config, result.tables, workdir, progress.log)
        progress.log(f"finished: {time.time() - began:.0f} s in this call")
    return result


def _tidy(workdir: pathlib.Path, planned: set, progress: Progress) -> None:
    """Remove what killed runs left and nobody continues: not the unfinished work of other settings."""
    for leftover in workdir.glob("stages/*/*/*.tmp"):
        if leftover.with_suffix("") in planned:
            continue
        if (leftover / UNFINISHED).exists():
            progress.log(f"kept    {leftover}: unfinished, of other settings; delete it if they are not coming back")
        else:
            shutil.rmtree(leftover)
    for leftover in workdir.glob(f"stages/*/*/*/{UNFINISHED}"):
        if leftover.parent.suffix != ".tmp":
            shutil.rmtree(leftover)  # killed between the stage's last rename and this


class _Background:
    """Writes the interim report in a thread of its own, so that no worker waits for a figure."""

    def __init__(self, write, every_s: float):
        self.write, self.every_s, self.last, self.thread = write, every_s, -math.inf, None

    def wanted(self, stage: Stage, pending: int) -> None:
        """Called after every stage; writes if there is something new to see and the last one is old."""
        busy = self.thread is not None and self.thread.is_alive()
        if stage.kind in ("evaluate", "gain") and pending and not busy and time.time() - self.last > self.every_s:
            self.last = time.time()
            self.thread = threading.Thread(target=self.write, daemon=True)
            self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.thread is not None:
            self.thread.join()


def _fingerprints(config: dict) -> dict:
    """The data section with the content hash of every local file or checkpoint that the run reads, and of a task that
    is a user's file: another file of the same name is another run. Hub data sets are pinned by their revision."""
    named = {"config.data.path": config["data"]["path"], "config.model.path": config["model"]["path"],
             "config.teacher.path": config["teacher"]["path"]}  # fmt: skip
    named |= {f"config.task.{key}": value for key, value in config["task"].items() if key.endswith("_path")}
    if config["task"]["name"].endswith(".py"):
        named["config.task.name"] = config["task"]["name"]
    hashes = {key: content_hash(key, path) for key, path in named.items() if path and not path.startswith("hub:")}
    return {"data": {**config["data"], "sha256": hashes}}


def _own_regimes(config: dict) -> dict[str, dict]:
    """By arm, the content hash of a regime that is a user's file: the arm is trained again when the file changes."""
    files = {name: entry["regime"] for name, entry in config["arms"].items() if entry["regime"].endswith(".py")}
    return {name: {"regime_sha256": content_hash(f"config.arms.{name}.regime", path)} for name, path in files.items()}


def content_hash(key: str, path) -> str:
    """SHA-256 of a file, of the files that a pattern names, or of a folder's files and their names."""
    root, total = pathlib.Path(path), hashlib.sha256()
    try:
        found = sorted(f for f in root.rglob("*") if f.is_file()) if root.is_dir() else sources.files(str(path), key)
        for file in found:
            total.update(str(file.relative_to(root) if root.is_dir() else file.name).encode())
            with open(file, "rb") as content:
                total.update(hashlib.file_digest(content, "sha256").digest())
    except OSError as error:
        raise ConfigError(f"{key}={path!r} cannot be read ({error.strerror})") from None
    return total.hexdigest()


class locked:
    """Exclusive use of a run directory, released by the system even if the process is killed."""

    def __init__(self, workdir: pathlib.Path):
        self.path = workdir / "lock"

    def __enter__(self):
        self.file = open(self.path, "a+")  # noqa: SIM115 - held for the length of the run
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.seek(0)
            owner = self.file.read().strip() or "another process"
            self.file.close()
            raise RuntimeError(
                f"{self.path.parent} is in use by {owner}; wait for it, stop it, or choose another --workdir"
            ) from None
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()}")
        self.file.flush()

    def __exit__(self, *_):
        self.file.close()
