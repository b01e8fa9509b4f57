"""Sweeps: points are refused before anything runs, share what they can, continue, and end in one table (issue 8)."""

import csv
import fcntl
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import types

import pytest

import ceiling
from ceiling import schema
from ceiling.sweeps import child, page, points, run, slurm, table

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def config():
    """As small as it gets with an arm: an untrained model, two steps."""
    rl = dict(prompts_per_step=2, samples_per_prompt=2, pool=8)
    config = ceiling.defaults("lab", arms={"sft": ceiling.arm("sft", lr=1e-2, **rl)})
    config.seeds = (1,)
    config.train.mix = {"C": 0.5, "R": 0.5}
    config.task.update(evaluation_per_group=1, training_per_group=8, gate_problems=2, gate_accuracy=0.0)
    config.model.update(width=16, ffn=16, layers=1, heads=2, kv_heads=1, head_dim=8, tied=False, embed_std=1.0,
                        scan_layers=False)  # fmt: skip
    config.prior.update(steps=2, prompts_per_step=4, pool=1, mix={"C": 1.0})
    config.budget.flops = 6e6
    config.eval.update(n=4, ks=(1, 2, 4), verdict_k=2, likelihood_samples=0)
    config.report.html = False
    return config


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RATES = [("low", {"arms.sft.lr": 1e-3}), ("high", {"arms.sft.lr": lambda lr: 2 * lr})]


def test_overrides_and_functions_of_the_configs_value(config):
    low, high = points.prepare(config, RATES)
    assert (low.config["arms"]["sft"]["lr"], high.config["arms"]["sft"]["lr"]) == (1e-3, 2e-2)
    assert high.overrides == {"arms.sft.lr": 2e-2}, "what was set, not the function"
    assert config.arms.sft.lr == 1e-2, "the configuration itself stays"
    rare, = points.prepare(config, [("rare", {"task.rho.R": 0.5})])
    assert rare.config["task"]["rho"] == {**dict(config.task.rho), "R": 0.5}


@pytest.mark.parametrize("overrides, line", [
    ({"arms.sft.lrr": 1.0}, "config.arms.sft.lrr: unknown key (did you mean 'lr'?)"),
    ({"armz.sft.lr": 1.0}, "config.armz: unknown key (did you mean 'arms'?)"),
    ({"arms.stf.lr": 1.0}, "config.arms.stf: unknown key (did you mean 'sft'?)"),
    ({"budget.flop": lambda flops: 2 * flops}, "config.budget.flop: unknown key (did you mean 'flops'?)"),
    ({"budget.flops.x": 1.0}, "config.budget.flops is a value, not a section; it has no 'x'"),
    ({"hosts.processes": 0}, "a point runs in one process"),
    ({"arms.sft.lr": -1.0}, "config.arms.sft.lr=-1.0 is out of range"),
    ({"train.mix": {"nothing": 1.0}}, "nothing"),
    ({"prior.mix": {}}, "config.prior.mix={} gives no problems; give groups of the task and their shares, e.g. {'C'"),
])  # fmt: skip
def test_a_wrong_override_is_one_line_before_anything_runs(config, tmp_path, overrides, line):
    with pytest.raises(schema.ConfigError) as refused:
        ceiling.sweep(config, [("fine", {}), ("wrong", overrides)], tmp_path / "sweep")
    message = str(refused.value)
    assert message.startswith("point 'wrong': ") and line in message and "\n" not in message
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("names, line", [(("a", "a"), "twice"), (("../a",), "folder"), (("stages",), "folder"),
                                         ((), "no points")])  # fmt: skip
def test_names_are_folders_of_their_own(config, names, line):
    with pytest.raises(schema.ConfigError, match=line):
        points.prepare(config, [(name, {}) for name in names])


def test_points_share_the_stages_that_no_override_reaches(config):
    ready = points.prepare(config, RATES)
    assert {s.name for s in child.shared(ready)} == {"seed1/prior", "seed1/base.evaluate",
                                                     "seed1/base_redraw.evaluate"}  # fmt: skip
    assert child.shared(points.prepare(config, [("a", {"prior.lr": 1e-3}), ("b", {"prior.lr": 2e-3})])) == []


def test_sweeps_that_are_shipped(tmp_path):
    """Every config's sweeps are read, and every point of the small ones can be run."""
    for file in sorted((ROOT / "configs").glob("*.py")):
        assert points.read(str(file), ""), file
    file = f"{ROOT}/configs/lab.py:tiny"
    config = load("lab").get_config("tiny")
    coverage = points.prepare(config, points.read(file, "coverage"))
    assert [p.config["task"]["rho"]["U"] for p in coverage] == pytest.approx([0.0004, 0.002, 0.01])
    assert table.default_axis(coverage) == "task.rho.*"
    budget = points.prepare(config, points.read(file, "budget"))
    assert [p.config["budget"]["flops"] / config.budget.flops for p in budget] == [0.25, 0.5, 1.0, 2.0]
    assert "seed1/prior" in {s.name for s in child.shared(budget)}
    full = load("lab_full").get_config()
    rates = points.read(f"{ROOT}/configs/lab_full.py", "")
    assert all(set(overrides) == {f"arms.{name}.lr" for name in full.arms} for _, overrides in rates), "equal tuning"
    with pytest.raises(schema.ConfigError, match="known: coverage, budget"):
        points.read(file, "covrage")
    with pytest.raises(schema.ConfigError, match="no file"):
        points.read(file, str(tmp_path / "gone.py"))


def test_axes(config):
    low, high = points.prepare(config, RATES)
    assert table.default_axis([low, high]) == "arms.sft.lr"
    mixed = [("a", {"arms.sft.lr": 1.0, "arms.grpo": ceiling.arm("grpo", pool=8)}), ("b", {})]
    assert table.default_axis(points.prepare(config, mixed)) == "arms.sft.lr"
    assert table.default_axis(points.prepare(config, [("a", {"arms.sft.schedule": "constant"})])) == table.FLOPS
    two = {"arms.sft.lr": 1.0, "arms.sft.prompts_per_step": 4}
    assert table.default_axis(points.prepare(config, [("a", two)])) == "arms.sft.lr", "no arm is called lr"
    section = {"report.pair": "", "arms": lambda arms: {"sft": arms["sft"]}, "arms.sft.lr": lambda lr: 3 * lr}
    assert table.default_axis(points.prepare(config, [("a", section)])) == "arms.sft.lr"
    assert table.value_at(low.config, "arms.*.lr", arm="sft", group="R") == 1e-3
    assert table.value_at(low.config, "task.rho.*", arm="sft", group="R") == config.task.rho.R
    assert table.value_at(low.config, "task.rho.*", arm="sft", group="C") is None
    for x in ("", table.FLOPS, "arms.*.lr", "task.rho.*"):
        table.check_axes([low], x, "pass@1")
    for x in ("task.rhoo", "task.rho", "task.rho.*.x", "arms.*.regime", "arms.sft.*", "eval.*"):
        with pytest.raises(schema.ConfigError, match="no number"):
            table.check_axes([low], x, "")
    with pytest.raises(schema.ConfigError, match="not a metric"):
        table.check_axes([low], "", "pass@3")


def test_lines_of_the_figure():
    at = dict(group="R", pass_at_k_lo=0.1, pass_at_k_hi=0.3)
    rows = [{"point": "b", "arm": "sft", "pass_at_k": 0.25, "student_flops": 4.0, **at},
            {"point": "a", "arm": "sft", "pass_at_k": 0.2, "student_flops": 2.0, **at},
            {"point": "a", "arm": "base", "pass_at_k": 0.1, "student_flops": 0.0, **at},
            {"point": "b", "arm": "sft", "pass_at_k": None, "student_flops": 9.0, **at}]  # fmt: skip
    curves, base = page.lines(rows, {}, table.FLOPS, "pass_at_k")
    assert curves == {"sft": [(2.0, 0.2, 0.1, 0.3), (4.0, 0.25, 0.1, 0.3)]} and base == [0.1]


def test_a_sweep_runs_fails_in_one_point_and_continues(config, tmp_path, capfd):
    """One point's folder is in use: the other goes on, and the next call runs what failed and nothing else."""
    workdir = tmp_path / "sweep"
    (workdir / "high").mkdir(parents=True)
    with open(workdir / "high" / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        first = ceiling.sweep(config, RATES, workdir, at_once=2)
    assert set(first.failed) == {"high"} and "is in use by" in first.failed["high"]
    assert str(workdir / "high" / "output.txt") in first.failed["high"] and "\n" not in first.failed["high"]
    assert {row["point"] for row in first.table} == {"low"}
    made = {path: path.stat().st_mtime_ns for path in workdir.glob("**/stage.json")}
    assert len([path for path in made if path.parts[-3] == "prior"]) >= 1
    assert (workdir / "low" / "stages" / "seed1" / "prior").is_dir()
    assert all(path.is_symlink() for path in (workdir / "low" / "stages" / "seed1" / "prior").iterdir())

    second = ceiling.sweep(config, RATES, workdir, at_once=2)
    assert not second.failed and {row["point"] for row in second.table} == {"low", "high"}
    assert all(path.stat().st_mtime_ns == at for path, at in made.items()), "nothing was made twice"
    out = capfd.readouterr().out
    assert out.count("start   what points share") == 1 and out.count("start   low") == 1
    assert out.count("start   high") == 2
    with open(workdir / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="is in use by"):
            ceiling.sweep(config, RATES, workdir)

    low, high = ({r["arm"]: r for r in second.table if r["point"] == name and r["group"] == "C"}
                 for name in ("low", "high"))  # fmt: skip
    assert (low["sft"]["arms.sft.lr"], high["sft"]["arms.sft.lr"]) == (1e-3, 2e-2)
    assert low["base"]["student_flops"] == 0 < low["sft"]["student_flops"]
    assert low["base"]["pass_at_k"] == high["base"]["pass_at_k"] and low["sft"]["k"] == 2
    assert low["sft"]["verdict"] and low["base"]["verdict"] is None
    with open(workdir / "sweep.csv") as file:
        assert len(list(csv.DictReader(file))) == len(second.table)
    stored = json.loads((workdir / "results.json").read_text())
    assert stored["rows"] == list(second.table) and all(point["finished"] for point in stored["points"])
    text = second.report.read_text()
    assert text.count("<svg") >= 1 and "arms.sft.lr" in text and not re.search("nan", text)

    third = ceiling.sweep(config, RATES, workdir)
    assert "start" not in capfd.readouterr().out and list(third.table) == list(second.table)
    other = points.prepare(config, [("low", {"arms.sft.lr": 5e-3})])
    assert not table.finished(other[0], workdir), "another value is another point"


class Executor:
    """What submitit's executor is told."""

    made: list = []

    def __init__(self, folder, cluster):
        self.folder, self.cluster, self.parameters, self.jobs = folder, cluster, {}, []
        Executor.made.append(self)

    def update_parameters(self, **parameters):
        self.parameters.update(parameters)

    def submit(self, job):
        self.jobs.append(job)
        return types.SimpleNamespace(job_id=str(100 * len(Executor.made)))

    def submit_array(self, jobs):
        self.jobs += jobs
        return [types.SimpleNamespace(job_id=f"{100 * len(Executor.made)}_{i}") for i in range(len(jobs))]


@pytest.fixture
def submitit(monkeypatch):
    Executor.made = []
    helpers = types.SimpleNamespace(DelayedSubmission=lambda job: ("again", job))
    monkeypatch.setitem(sys.modules, "submitit", types.SimpleNamespace(AutoExecutor=Executor, helpers=helpers))


def test_slurm_shared_then_array_then_table(config, tmp_path, submitit):
    ready = points.prepare(config, RATES)
    run.write_down(ready, tmp_path, 2, "", "")
    jobs = slurm.submit(ready, tmp_path, 2, {"gpus_per_node": 1})
    assert jobs == {"shared": "100", "low": "200_0", "high": "200_1", "table": "300"}
    shared, array, last = Executor.made
    assert {e.cluster for e in Executor.made} == {"slurm"} and all(e.parameters["gpus_per_node"] == 1
                                                                   for e in Executor.made)  # fmt: skip
    assert array.parameters["slurm_array_parallelism"] == 2 and array.parameters["timeout_min"] == 1440
    assert [e.parameters.get("slurm_dependency") for e in Executor.made] == [None, "afterany:100", "afterany:200"]
    assert [job.words[-2:] for job in array.jobs] == [["point", "low"], ["point", "high"]]
    assert shared.jobs[0].words[-1] == "shared" and last.jobs[0].words[-1] == "table"
    assert child.load(tmp_path) == ready, "what a job reads"


def test_slurm_submits_no_finished_point(config, tmp_path, submitit, monkeypatch):
    ready = points.prepare(config, RATES)
    monkeypatch.setattr(table, "finished", lambda point, _: point.name == "low")
    for stage in child.shared(ready):
        stage.directory(tmp_path).mkdir(parents=True)
    assert set(slurm.submit(ready, tmp_path, 1, {})) == {"high", "table"}, "nor what is there already"
    monkeypatch.setattr(table, "finished", lambda *_: True)
    assert slurm.submit(ready, tmp_path, 1, {}) == {}


def test_a_slurm_job_fails_as_its_command_and_is_queued_again(submitit):
    slurm.Job([sys.executable, "-c", ""])()
    with pytest.raises(RuntimeError, match="code 3"):
        slurm.Job([sys.executable, "-c", "raise SystemExit(3)"])()
    job = slurm.Job(["sleep", "60"])
    job.process = slurm.subprocess.Popen(job.words)
    again, queued = job.checkpoint()
    assert again == "again" and queued.words == job.words and job.process.returncode == -15


def test_the_list_keeps_the_axes_that_the_sweep_was_run_with(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps({"x": "arms.*.lr", "y": "pass@1"}))
    words = ["--config", "configs/lab.py:tiny", "--sweep", "budget", "--workdir", str(tmp_path), "--list"]
    done = subprocess.run([sys.executable, "-m", "ceiling.sweep", *words], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0 and done.stdout.count("0 of 20 stages") == 4, done.stderr
    content = json.loads((tmp_path / "results.json").read_text())
    assert (content["x"], content["y"]) == ("arms.*.lr", "pass@1")


def test_without_submitit_one_line(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(schema.ConfigError, match=r"pip install \"ceiling\[slurm\]\""):
        slurm.submit(points.prepare(config, RATES), tmp_path, 1, {})


def test_the_command_refuses_in_one_line(tmp_path):
    """A point that is wrong, from a sweep in a file of its own."""
    file = tmp_path / "rates.py"
    file.write_text('def sweep_rates(add):\n    add("a", {"arms.grpo.lrr": 1.0})\n')
    words = ["--config", "configs/lab.py:tiny", "--sweep", f"{file}:rates", "--workdir", str(tmp_path / "sweep")]
    done = subprocess.run([sys.executable, "-m", "ceiling.sweep", *words], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "ceiling: point 'a': config.arms.grpo.lrr: unknown key (did you mean 'lr'?)\n"
