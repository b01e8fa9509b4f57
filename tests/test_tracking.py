"""Sinks are copies: complete, never twice, in nobody's way. metrics.jsonl stays the truth."""

import functools
import importlib.util
import json
import pathlib
import struct
import sys
import types

import pytest

import ceiling
from ceiling import experiment, tracking
from ceiling.train import signals

SETTINGS = {"arm": {"regime": "grpo"}}


def events(folder):
    """(step, {tag: value}, wall time) of every event with scalars, from the one event file of a folder: TFRecord is
    length, checksum, content, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.glob("events.*")
    data, out = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
        if values := {v.tag: v.simple_value for v in event.summary.value if v.WhichOneof("value") == "simple_value"}:
            out.append((event.step, values, event.wall_time))
    return out


def row(step):
    return {"step": step, "lr": 0.5, "flops": 1e12 * step, "loss": 2.0 - step, "skipped": 0.0, "reward": 0.25 * step}


def seconds(step):
    return {"step": step, "seconds": 2.0, "idle": 0.5, "rollout": 1.5}


def goal(workdir, sinks="tensorboard", key="k", log=None):
    settings = {"sinks": sinks, "project": "mine"}
    return tracking.target(settings, workdir, "seed1/grpo", key, log or pytest.fail)


# ---- names, TensorBoard


def test_values_are_named_by_who_reports_them():
    named = tracking.named(SETTINGS, row(3), seconds(3))
    assert named == {
        "train/lr": 0.5, "train/flops": 3e12, "train/loss": -1.0, "train/skipped": 0.0, "grpo/reward": 0.75,
        "seconds/step": 2.0, "seconds/idle": 0.5, "seconds/rollout": 1.5,
    }  # fmt: skip
    own = tracking.named({"train": {"regime": "mine/fifth.py"}}, {"step": 0, "loss": 1.0, "x": 2.0}, {})
    assert own == {"train/loss": 1.0, "fifth/x": 2.0}


def test_a_curve_that_is_continued_has_every_step_once(tmp_path):
    """Killed after step 4, continued from the checkpoint of step 2."""
    with pytest.raises(KeyboardInterrupt), tracking.Curves(goal(tmp_path), SETTINGS) as curves:
        for step in range(5):
            curves.step(row(step), seconds(step), 0.0)
        raise KeyboardInterrupt
    folder = tmp_path / "tensorboard/seed1/grpo"
    assert [step for step, *_ in events(folder)] == [0, 1, 2, 3, 4]
    assert not goal(tmp_path).mark("tensorboard").exists() and goal(tmp_path).lacking().sinks == ("tensorboard",)
    with tracking.Curves(goal(tmp_path), SETTINGS) as curves:
        curves.steps([row(s) for s in range(3)], [seconds(s) for s in range(3)], ended=1000.0)
        for step in range(3, 6):
            curves.step(row(step), seconds(step), 2000.0 + step)
    found = events(folder)
    assert [step for step, *_ in found] == list(range(6))
    assert [at for *_, at in found] == [996.0, 998.0, 1000.0, 2003.0, 2004.0, 2005.0]
    for step, values, _ in found:
        assert values == pytest.approx(tracking.named(SETTINGS, row(step), seconds(step)))
    assert goal(tmp_path).mark("tensorboard").exists() and goal(tmp_path).lacking().sinks == ()
    assert goal(tmp_path, key="other settings").lacking().sinks == ("tensorboard",)


def test_rows_can_be_seen_before_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "FLUSH_S", 0.0)
    with tracking.Curves(goal(tmp_path), SETTINGS) as curves:
        curves.step(row(0), seconds(0), 0.0)
        assert len(events(tmp_path / "tensorboard/seed1/grpo")) == 1


def test_without_a_target_nothing_happens():
    with tracking.Curves(None, SETTINGS) as curves:
        curves.steps([row(0)], [seconds(0)], ended=0.0)
        curves.step(row(1), seconds(1), 0.0)


def test_a_sink_that_fails_is_one_line_and_the_others_go_on(tmp_path, monkeypatch):
    said = []
    (tmp_path / "tensorboard").write_text("a file where a folder should be")
    fake(monkeypatch, "wandb", fails_at=2)
    fake(monkeypatch, "trackio")
    with tracking.Curves(goal(tmp_path, "tensorboard wandb trackio", log=said.append), SETTINGS) as curves:
        for step in range(4):
            curves.step(row(step), seconds(step), 0.0)
    assert [line.split()[0] for line in said] == ["tensorboard", "wandb"] and "\n" not in "".join(said)
    assert "NotADirectoryError" in said[0] and "OSError: no network" in said[1]
    assert goal(tmp_path, "tensorboard wandb trackio").lacking().sinks == ("tensorboard", "wandb")


# ---- W&B and Trackio


class FakeRun:
    """What both return from init."""

    def __init__(self, kwargs, step, fails_at):
        self.kwargs, self.step, self.fails_at, self.rows, self.finished = kwargs, step, fails_at, {}, False

    def log(self, values, step):
        if step == self.fails_at:
            raise OSError("no network\nat all")
        assert step not in self.rows and not self.finished
        self.rows[step] = values

    def finish(self):
        self.finished = True


def fake(monkeypatch, name, logged_in=False, step=0, fails_at=None):
    """Put a module with the API's functions in the place of the package; the runs that it will have made."""
    runs = []
    module = types.ModuleType(name)
    module.Settings = lambda **kwargs: kwargs
    module.login = lambda prompt, verify: logged_in and not prompt and not verify
    module.Api = lambda: types.SimpleNamespace(runs=lambda project: projects(runs, project))
    module.init = lambda **kwargs: runs.append(FakeRun(kwargs, step, fails_at)) or runs[-1]
    monkeypatch.setitem(sys.modules, name, module)
    return runs


def projects(runs, project):
    """Of Trackio's store."""
    if not runs:
        raise ValueError(f"Project '{project}' does not exist")
    return [types.SimpleNamespace(name=run.kwargs["name"], delete=functools.partial(runs.remove, run)) for run in runs]


def test_wandb_is_offline_unless_the_user_is_logged_in_and_wants_it(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for logged_in, asked, mode in ((False, "", "offline"), (True, "", "online"), (True, "offline", "offline"),
                                   (False, "online", "offline"), (True, "disabled", "disabled")):  # fmt: skip
        monkeypatch.setenv("WANDB_MODE", asked)
        runs = fake(monkeypatch, "wandb", logged_in)
        with tracking.Curves(goal(tmp_path, "wandb"), SETTINGS):
            pass
        (run,) = runs
        assert run.kwargs["mode"] == mode and run.finished
        assert run.kwargs["project"] == "mine" and run.kwargs["config"] == SETTINGS
        assert run.kwargs["name"] == "seed1/grpo" and run.kwargs["group"] == tmp_path.name
        assert run.kwargs["id"] == goal(tmp_path).identity and run.kwargs["reinit"] == "create_new"
        assert (run.kwargs["resume"] == "allow") == (mode == "online")


def test_wandb_makes_an_offline_folder_again_and_continues_a_run_of_the_server(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    left = tmp_path / "wandb" / f"offline-run-20260101_000000-{goal(tmp_path).identity}"
    other = tmp_path / "wandb" / "offline-run-20260101_000000-another"
    for folder in (left, other):
        folder.mkdir(parents=True)
    for logged_in, step, rows in ((False, 0, [0, 1, 2, 3]), (True, 2, [2, 3])):
        runs = fake(monkeypatch, "wandb", logged_in, step)
        with tracking.Curves(goal(tmp_path, "wandb"), SETTINGS) as curves:
            curves.steps([row(s) for s in range(3)], [seconds(s) for s in range(3)], ended=0.0)
            curves.step(row(3), seconds(3), 0.0)
        assert list(runs[0].rows) == rows
        assert runs[0].rows[3] == tracking.named(SETTINGS, row(3), seconds(3))
    assert not left.exists() and other.exists()


def test_trackio_has_one_run_of_a_name(tmp_path, monkeypatch):
    runs = fake(monkeypatch, "trackio")
    for _ in range(2):
        with tracking.Curves(goal(tmp_path, "trackio"), SETTINGS) as curves:
            curves.step(row(0), seconds(0), 0.0)
    (run,) = runs
    assert run.kwargs["name"] == f"seed1/grpo-{goal(tmp_path).identity[:6]}" and run.kwargs["group"] == tmp_path.name
    assert run.rows == {0: tracking.named(SETTINGS, row(0), seconds(0))} and not run.kwargs["auto_log_gpu"]
    assert goal(tmp_path / "elsewhere").identity != goal(tmp_path).identity


# ---- settings


@pytest.mark.parametrize("sinks, part", [
    ("tensorbord", "use different names of tensorboard wandb trackio"), ("wandb wandb", "different names"),
    ("wandb", 'wandb is not installed; pip install "ceiling[wandb]"'),
    ("tensorboard trackio", 'trackio is not installed; pip install "ceiling[trackio]"'),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_runs(sinks, part, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    there = lambda name: None if name in ("wandb", "trackio") else find(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", there)
    config = ceiling.defaults("lab", arms={"sft": ceiling.arm("sft")})
    config.tracking.sinks = sinks
    with pytest.raises(ceiling.ConfigError) as refused:
        ceiling.run(config, tmp_path / "run")
    assert part in str(refused.value) and "config.tracking.sinks" in str(refused.value)
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def test_a_folder_of_a_packages_name_is_no_package(tmp_path, monkeypatch):
    """W&B makes one in the directory that a command may be started in."""
    (tmp_path / "no_such_package_but_a_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not tracking._installed("no_such_package_but_a_folder") and tracking._installed("json")


def small(**tracked):
    """Everything but a sampler in training: prior, one arm, evaluations."""
    config = ceiling.defaults("lab", arms={"sft": ceiling.arm("sft", prompts_per_step=2, samples_per_prompt=2, pool=8)})
    config.seeds, config.train.mix, config.budget.flops, config.report.html = (1,), {"C": 1.0}, 9e6, False
    config.task.update(evaluation_per_group=1, training_per_group=8, gate_problems=2, gate_accuracy=0.0)
    config.model.update(width=16, ffn=16, layers=1, heads=2, kv_heads=1, head_dim=8, scan_layers=False)
    config.prior.update(steps=5, prompts_per_step=4, pool=1, mix={"C": 1.0})
    config.eval.update(n=4, ks=(1, 2, 4), verdict_k=2, likelihood_samples=0)
    config.tracking.update(tracked)
    return config


def test_sinks_are_no_part_of_a_stages_identity():
    keys = [[s.key for s in experiment.plan(ceiling.validate(config))]
            for config in (small(), small(sinks="", project="other"))]  # fmt: skip
    assert keys[0] == keys[1]


# ---- a run


def agrees(workdir):
    """Every stage's event file holds its metrics.jsonl and times.jsonl: every step, once, with every value."""
    stages = {path.parents[1].relative_to(workdir / "stages"): path.parent for path in workdir.rglob("metrics.jsonl")}
    assert {str(name) for name in stages} == {"seed1/prior", "seed1/sft"}
    for name, home in stages.items():
        read = lambda file, home=home: [json.loads(x) for x in (home / file).read_text().splitlines()]  # noqa: E731
        metrics, times, found = read("metrics.jsonl"), read("times.jsonl"), events(workdir / "tensorboard" / name)
        settings = json.loads((home / "stage.json").read_text())["settings"]
        assert [step for step, *_ in found] == [m["step"] for m in metrics] and len(metrics) > 3
        for (_, values, _), m, t in zip(found, metrics, times, strict=True):
            assert values == pytest.approx(tracking.named(settings, m, t), rel=1e-6)
            assert values["train/flops"] > 0 and "seconds/train" in values and "sft/nll" in values


def test_a_run_that_is_stopped_and_continued_shows_every_step_once_in_every_sink(tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    asked = iter([False] * 4)
    with monkeypatch.context() as patch, pytest.raises(signals.Stopped, match="after step 4"):
        patch.setattr(signals, "asked", lambda: next(asked, True))
        ceiling.run(small(), workdir)
    assert [step for step, *_ in events(workdir / "tensorboard/seed1/prior")] == [0, 1, 2, 3]
    assert not list(workdir.rglob("complete-*"))
    result = ceiling.run(small(), workdir)
    agrees(workdir)
    for arm in ("base", "base_redraw", "sft"):
        found = events(workdir / "tensorboard/results" / arm)
        mine = [row for row in result.curves if row["arm"] == arm]
        curve = {k: {f"pass_at_k/{row['group']}": row["mean"] for row in mine if row["k"] == k} for k in (1, 2, 4)}
        assert {step: values for step, values, _ in found} == {k: pytest.approx(v) for k, v in curve.items()}
    # Deleted, and W&B asked for later: made again without a stage being run; then there is nothing left to do.
    stages = {path: path.stat().st_mtime_ns for path in (workdir / "stages").rglob("*")}
    (file,) = (workdir / "tensorboard/seed1/sft").glob("events.*")
    for path in file.parent.iterdir():
        path.unlink()
    runs = fake(monkeypatch, "wandb")
    ceiling.run(small(sinks="tensorboard wandb"), workdir)
    agrees(workdir)
    assert {path: path.stat().st_mtime_ns for path in (workdir / "stages").rglob("*")} == stages
    assert sorted(run.kwargs["name"] for run in runs) == ["results/base", "results/base_redraw", "results/sft",
                                                          "seed1/prior", "seed1/sft"]  # fmt: skip
    assert list(runs[0].rows) == [0, 1, 2, 3, 4] and all(run.finished for run in runs)
    before = len(runs)
    ceiling.run(small(sinks="tensorboard wandb"), workdir)
    assert len(runs) == before
    assert "does not show" not in pathlib.Path(workdir / "log.txt").read_text()
