"""The whole command: resumable, exact after kills, reruns what changed and nothing else (R1, R8, R9, R10, O1, O2)."""

import contextlib
import copy
import fcntl
import importlib.util
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import ceiling
from ceiling import experiment, results, schema, stages
from ceiling.evals.records import Samples
from ceiling.tasks.base import Outcome

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")

# As small as it gets with every kind of stage but the teacher. An untrained model is never right, so
# GRPO's entropy bonus is what gives it a gradient.
LAB = """
import ceiling

def get_config(variant=""):
    rl = dict(prompts_per_step=2, samples_per_prompt=2, pool=8)
    config = ceiling.defaults("lab", arms={
        "grpo": ceiling.arm("grpo", lr=1e-2, entropy_bonus=0.1, **rl),
        "rlp": ceiling.arm("rlp", lr=1e-2, max_thought_tokens=8, **rl),
    })
    config.seeds = (1,)
    config.train.mix = {"C": 0.5, "R": 0.5}
    config.task.update(evaluation_per_group=1, training_per_group=8, gate_problems=2, gate_accuracy=0.0)
    config.model.update(width=16, ffn=16, layers=1, heads=2, kv_heads=1, head_dim=8, tied=False, embed_std=1.0,
                        scan_layers=False)
    config.prior.update(steps=2, prompts_per_step=4, pool=1, mix={"C": 1.0})
    config.budget.flops = 6e6
    config.eval.update(n=4, ks=(1, 2, 4), verdict_k=2, likelihood_samples=1, gain_samples=2)
    return config
"""
QA = """
import ceiling

def get_config(variant=""):
    config = ceiling.defaults("questions", arms={"sft": ceiling.arm("sft", prompts_per_step=2, samples_per_prompt=2)})
    config.seeds = (1,)
    config.task.update(evaluation_problems=3, max_prompt_tokens=48, max_response_tokens=24)
    config.model.update(width=16, ffn=16, layers=1, heads=2, kv_heads=1, head_dim=8, scan_layers=False)
    config.prior.update(steps=2, prompts_per_step=4, pool=1)
    config.budget.flops = 2e7
    config.eval.update(n=4, ks=(1, 2, 4), verdict_k=2, likelihood_samples=0)
    return config
"""
STAGES = {"seed1/prior", "seed1/base.evaluate", "seed1/base_redraw.evaluate", "seed1/grpo", "seed1/grpo.evaluate",
          "seed1/rlp", "seed1/rlp.evaluate", "seed1/rlp.gain"}  # fmt: skip


def environment():
    """A user's: one device, and no settings of this test process but how much XLA optimises."""
    env = {k: v for k, v in os.environ.items() if k not in ("TF_CPP_MIN_LOG_LEVEL", "ABSL_MIN_LOG_LEVEL")}
    flags = [flag for flag in env["XLA_FLAGS"].split() if "device_count" not in flag]
    return {**env, "PYTHONPATH": str(ROOT), "XLA_FLAGS": " ".join(flags)}


def command(config, workdir, *arguments, wait=True):
    words = [sys.executable, "-m", "ceiling", "--config", str(config), "--workdir", str(workdir), *arguments]
    pipes = dict(cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                 start_new_session=True)  # fmt: skip
    if wait:
        return subprocess.run(words, **pipes, timeout=300)
    return subprocess.Popen(words, **pipes)


def load(path):
    spec = importlib.util.spec_from_file_location("config_for_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


class Run:
    """A finished run: its directory, its configuration file, what the command printed."""

    def __init__(self, workdir, file, stdout, stderr):
        self.workdir, self.file, self.stdout, self.stderr = workdir, file, stdout, stderr

    def copy(self, to):
        """The same stages in another directory, and a configuration that may be changed. Only its tables are asked for:
        drawing the page takes longer than most of these tests."""
        shutil.copytree(self.workdir / "stages", to / "stages")
        config = load(self.file)
        config.report.html = False
        return to, config


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The experiment through its command, two workers, never interrupted. It ran in `live`, whose XLA cache
    is left there: the cache's keys hold its path."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "experiment"
    folder.mkdir(exist_ok=True)
    file = folder / "tiny.py"
    with open(folder / "lock", "w") as lock:  # test processes side by side share one
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "printed.json").exists():
            file.write_text(LAB)
            done = command(file, folder / "live", "--config.workers=2")
            assert done.returncode == 0, done.stderr[-2000:]
            (folder / "live").rename(folder / "reference")
            (folder / "live").mkdir()
            (folder / "printed.json").write_text(json.dumps([done.stdout, done.stderr]))
    return Run(folder / "reference", file, *json.loads((folder / "printed.json").read_text()))


def run(config, workdir):
    """(result, names of the stages that were started) of a run in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        result = ceiling.run(config, workdir)
    return result, set(re.findall(r"start   (\S+)", out.getvalue()))


def snapshot(workdir):
    return {str(p.relative_to(workdir)): p.stat().st_mtime_ns for p in sorted((workdir / "stages").rglob("*"))}


def measured(value):
    """A table of results without what is not a measurement of the model: clocks and the machine."""
    if isinstance(value, dict):
        return {k: measured(v) for k, v in value.items() if k not in ("seconds", "wall_s", "device", "packages")}
    return [measured(v) for v in value] if isinstance(value, list) else value


def same_run(one, other):
    """Bit-equal tables and bit-equal per-sample records."""
    tables = [measured(json.loads((w / "results.json").read_text())) for w in (one, other)]
    for each in tables:
        for part in ("workers", "report", "checkpoint"):  # how a run is carried out is no part of what it measures
            each["meta"]["config"].pop(part)
        each["meta"].pop("config_hash")
    assert tables[0].keys() == tables[1].keys()
    for name in tables[0]:
        assert tables[0][name] == tables[1][name], name
    records = [
        {p.relative_to(w): Samples.load(p).table for p in w.glob("stages/*/*/*/records.parquet")} for w in (one, other)
    ]
    assert records[0].keys() == records[1].keys() and records[0]
    for path, table in records[0].items():
        assert table.equals(records[1][path]), path


# ---- a run from end to end


def test_the_command_writes_its_files_and_ends_with_zero(reference):
    for name in ("report.html", "results.json", "log.txt", "csv/curves.csv", "csv/ledger.csv", "csv/verdicts.csv"):
        assert (reference.workdir / name).stat().st_size > 0, name
    assert {
        str(p.parent.parent.relative_to(reference.workdir / "stages")) for p in reference.workdir.rglob("stage.json")
    } == STAGES
    assert not list(reference.workdir.rglob("*.tmp"))
    assert "not resolved" in reference.stdout and "report.html" in reference.stdout
    assert "Traceback" not in reference.stderr


def test_o2_no_control_characters_without_a_terminal(reference):
    for text in (reference.stdout, reference.stderr, (reference.workdir / "log.txt").read_text()):
        assert not CONTROL.search(text), text


def test_o1_every_line_of_the_metrics_parses_and_no_step_appears_twice(reference):
    files = list(reference.workdir.rglob("metrics.jsonl"))
    assert len(files) == 3
    for file in files:
        steps = [json.loads(line)["step"] for line in file.read_text().splitlines()]
        assert steps == list(range(len(steps))) and steps


def test_tables_are_recomputed_from_the_records(reference):
    """pass@k of every arm and group, from the sampled tokens and the task's verifier alone."""
    config = ceiling.validate(load(reference.file))
    task = schema.load_task(config)
    table = json.loads((reference.workdir / "results.json").read_text())
    curves = {(row["arm"], row["group"], row["k"]): row["mean"] for row in table["curves"]}
    compared = 0
    for stage in experiment.plan(config):
        if stage.kind != "evaluate":
            continue
        samples = Samples.load(stage.directory(reference.workdir) / "records.parquet")
        right = np.zeros((samples.problems, samples.n), bool)
        for p, problem in enumerate(task.evaluation()):
            for j in range(samples.n):
                right[p, j] = task.verify(problem, task.tokenizer.decode(samples.tokens(p, j))).right
        np.testing.assert_array_equal(right, samples.matrix("outcome") == Outcome.RIGHT)
        np.testing.assert_array_equal(samples.counts[:, 1], right.sum(axis=1))
        for p, problem in enumerate(task.evaluation()):  # one problem per group
            for k in (1, 2, 4):
                c = right[p].sum()
                miss = np.prod([(4 - c - i) / (4 - i) for i in range(k)])
                assert curves[stage.arm, problem.group, k] == pytest.approx(1 - miss)
                compared += 1
    assert compared == 4 * 8 * 3


def test_tables_do_not_depend_on_what_was_stored(reference, tmp_path):
    """results.json is an output, never an input: deleted, it comes back the same."""
    workdir, config = reference.copy(tmp_path)
    run(config, workdir)
    same_run(reference.workdir, workdir)


def test_the_base_and_its_redraw_are_different_draws_of_the_same_model(reference):
    one, two = (
        Samples.load(next((reference.workdir / "stages/seed1").glob(f"{name}.evaluate/*/records.parquet")))
        for name in ("base", "base_redraw")
    )
    assert one.meta["seed"] != two.meta["seed"] and not one.table["tokens"].equals(two.table["tokens"])


def test_arms_stop_at_the_same_ledger_value(reference):
    table = json.loads((reference.workdir / "results.json").read_text())
    target = table["budget"]["target_flops"]
    for arm in ("grpo", "rlp"):
        spent = sum(r["flops"] for r in table["ledger"] if r["arm"] == arm and r["student"])
        steps = max(r["flops"] for r in table["training"] if r["arm"] == arm)
        assert spent == pytest.approx(steps) and 0.5 * target < spent < 1.5 * target


# ---- resuming


def test_rerunning_a_finished_run_does_nothing(reference, tmp_path):
    workdir, config = reference.copy(tmp_path)
    before = snapshot(workdir)
    result, started = run(config, workdir)
    assert started == set() and snapshot(workdir) == before
    assert [row["arm"] for row in result.verdicts] and result.report.exists()
    assert list(result.verdicts.to_pandas().columns) == list(result.verdicts[0])


def test_a_changed_value_reruns_its_stages_a_failure_keeps_the_finished_and_a_rerun_continues(
    reference, tmp_path, monkeypatch
):
    workdir, config = reference.copy(tmp_path)
    before = snapshot(workdir)
    config.arms.grpo.lr = 2e-2

    def broken(context):
        raise KeyError("boom\nover two lines")

    with monkeypatch.context() as patch:
        patch.setitem(stages.STAGES, "evaluate", broken)
        with pytest.raises(RuntimeError, match=r"seed1/grpo\.evaluate.*boom") as caught:
            run(config, workdir)
        assert "\n" not in str(caught.value)
    kept = snapshot(workdir)
    grown = {"stages/seed1/grpo", "stages/seed1/grpo.evaluate"}  # folders that got a new entry
    assert {name: when for name, when in kept.items() if name in before.keys() - grown} == {
        name: when for name, when in before.items() if name not in grown
    }
    assert len(list(workdir.glob("stages/seed1/grpo/*/stage.json"))) == 2
    assert len(list(workdir.glob("stages/seed1/grpo.evaluate/*/stage.json"))) == 1
    result, started = run(config, workdir)
    assert started == {"seed1/grpo.evaluate"}
    assert not list(workdir.rglob("*.tmp"))
    old, new = (
        Samples.load(p).table["tokens"]
        for p in sorted(workdir.glob("stages/seed1/grpo.evaluate/*/records.parquet"), key=os.path.getmtime)
    )
    assert not old.equals(new)  # the other learning rate is another policy
    _, started = run(load(reference.file), workdir)
    assert started == set()  # and the first one is still there


def test_leftovers_of_a_killed_stage_are_removed_and_never_taken_for_a_stage(reference, tmp_path):
    workdir, config = reference.copy(tmp_path)
    kept = next((workdir / "stages/seed1/base_redraw.evaluate").iterdir())
    leftover = kept.with_name(kept.name + ".tmp")
    kept.rename(leftover)  # everything is in it but the last rename
    _, started = run(config, workdir)
    assert started == {"seed1/base_redraw.evaluate"} and kept.exists() and not leftover.exists()


def test_two_runs_in_one_process_do_not_interfere(reference, tmp_path):
    """The same change run alone, then beside another run in a second thread: bit-equal."""
    runs = {}
    for name, lr in (("alone", 2e-2), ("beside", 2e-2), ("other", 5e-2)):
        workdir, config = reference.copy(tmp_path / name)
        config.arms.grpo.lr = lr
        runs[name] = (config, workdir)
    ceiling.run(*runs["alone"])
    errors = []

    def go(name):
        try:
            ceiling.run(*runs[name])
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=go, args=(name,)) for name in ("beside", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    same_run(runs["alone"][1], runs["beside"][1])
    one, other = (json.loads((runs[n][1] / "results.json").read_text())["training"] for n in ("alone", "other"))
    assert one != other


# ---- kills, locks, failures, through the command


def descendants(pid):
    """Process ids below pid, from /proc."""
    parents = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents[int(stat.parent.name)] = int(fields[1])
    found = {pid}
    while more := {p for p, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def alive(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def begun(live):
    """Checkpoints of stages that are not finished."""
    return list(live.glob("stages/*/*/*.tmp/unfinished/checkpoints/*/manifest.json"))


def asked_to_stop(child, live):
    """SIGTERM to the command and its workers, as a batch system does, twice, once a stage has a checkpoint."""
    deadline = time.monotonic() + 120
    while not begun(live):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    for _ in range(2):
        os.killpg(child.pid, signal.SIGTERM)
        time.sleep(0.05)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 75, errors[-2000:]
    line = [line for line in errors.splitlines() if line.startswith("ceiling: ")][-1]
    assert re.search(r"stopped .*; the same command continues", line)


def killed(child, live, rng):
    """SIGKILL to the command alone at a random moment; its workers end by themselves."""
    wanted = int(rng.integers(1, 5))
    for line in iter(child.stdout.readline, ""):
        wanted -= "start" in line or "done" in line
        if wanted <= 0:
            break
    time.sleep(float(rng.uniform(0, 1.0)))
    workers = descendants(child.pid)
    assert workers or child.poll() is not None or wanted > 0
    child.send_signal(signal.SIGKILL)
    child.communicate()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers)), "orphan workers"


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="reads /proc")
def test_r1_r2_r8_r9_r10_stopped_and_killed_the_run_ends_with_the_same_numbers(reference):
    """Each time what is listed as finished is whole and the next call goes on. At last: bit-equal to the run that
    was left alone."""
    live, rng = reference.workdir.with_name("live"), np.random.default_rng(time.time_ns())
    often = ("--config.workers=2", "--config.checkpoint.every_steps=1")
    finished_before = 0
    for attempt in range(3):
        if attempt == 0:
            while not begun(live):  # a stage may end before it hears that it should stop
                asked_to_stop(command(reference.file, live, *often, wait=False), live)
        else:
            killed(command(reference.file, live, *often, wait=False), live, rng)
        whole = [p for p in live.glob("stages/*/*/*") if p.suffix != ".tmp"]
        for stage in whole:
            assert json.loads((stage / "stage.json").read_text())["name"].startswith("seed1/")
        assert len(whole) >= finished_before
        finished_before = len(whole)
    done = command(reference.file, live, *often)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "continues from step" in (live / "log.txt").read_text()
    assert not list(live.rglob("*.tmp")) and not list(live.glob("stages/**/unfinished"))
    same_run(reference.workdir, live)


def test_r10_a_directory_in_use_is_refused_in_one_line(reference, tmp_path):
    workdir, config = reference.copy(tmp_path / "run")
    before = snapshot(workdir)
    with experiment.locked(workdir):
        done = command(reference.file, workdir)
        with pytest.raises(RuntimeError, match="in use"):
            ceiling.run(config, workdir)
    assert done.returncode == 2 and snapshot(workdir) == before
    (line,) = done.stderr.splitlines()
    assert line.startswith("ceiling: ") and f"in use by process {os.getpid()}" in line and "--workdir" in line
    _, started = run(config, workdir)  # released
    assert started == set()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_stage_ends_the_command_with_one_line_and_keeps_the_rest(reference, tmp_path, workers):
    """The prior's weights are gone: grpo, which has to run again, fails, in a worker or here."""
    workdir, _ = reference.copy(tmp_path / "run")
    (params,) = workdir.glob("stages/seed1/prior/*/params")
    shutil.rmtree(params)
    before = snapshot(workdir)
    done = command(reference.file, workdir, f"--config.workers={workers}", "--config.arms.grpo.lr=0.02")
    assert done.returncode == 2, (done.returncode, done.stderr[-2000:])
    # The checkpointer's own warnings (absl: W, month, day) may stand before; ours is one line.
    (line,) = [line for line in done.stderr.splitlines() if line.strip() and not re.match(r"W\d{4} ", line)]
    assert line.startswith("ceiling: seed1/grpo failed: ") and str(params) in line
    if workers == 2:
        log = re.search(r"details: (.*?)\)", line).group(1)
        assert "Traceback" in pathlib.Path(log).read_text()
    assert all((workdir / name).exists() for name in before)
    assert len(list(workdir.glob("stages/seed1/grpo/*/stage.json"))) == 1  # no output of the failed one


def test_a_diverging_arm_is_a_clear_error_and_no_traceback_type_of_its_own(reference, tmp_path, monkeypatch):
    """N1's limit raises FloatingPointError in the loop: a run surfaces it as RuntimeError naming the stage."""
    workdir, config = reference.copy(tmp_path)
    config.arms.grpo.lr = 3e-2

    def diverging(context):
        raise FloatingPointError("grpo: 21 updates had non-finite gradients (limit 20)")

    monkeypatch.setitem(stages.STAGES, "arm", diverging)
    with pytest.raises(RuntimeError, match=r"seed1/grpo failed: .*21 updates"):
        run(config, workdir)


# ---- a user's own data, a user's own regime


@pytest.mark.exact
def test_qa_file_from_end_to_end_by_the_same_command(tmp_path):
    data = tmp_path / "mine.jsonl"
    rows = [{"question": f"{a} + {b}?", "answer": f"{a}+{b}={a + b}\n#### {a + b}"} for a in range(4) for b in range(5)]
    data.write_text("\n".join(map(json.dumps, rows)))
    file = tmp_path / "qa.py"
    file.write_text(QA)
    done = command(file, tmp_path / "run", f"--config.data.path={data}")
    assert done.returncode == 0, done.stderr[-2000:]
    table = json.loads((tmp_path / "run/results.json").read_text())
    assert {row["group"] for row in table["curves"]} == {"all"} and table["meta"]["complete"]
    assert {row["arm"] for row in table["curves"]} == {"base", "base_redraw", "sft"}
    samples = Samples.load(next((tmp_path / "run").glob("stages/seed1/sft.evaluate/*/records.parquet")))
    assert samples.problems == 3 and samples.table.num_rows == 12
    assert (tmp_path / "run/report.html").exists()
    # A fault of the file ends the run before anything is made.
    data.write_text("\n".join(map(json.dumps, rows[:5])) + '\n{"question": "?", "answer": "#### many"}\n')
    config = load(file)
    config.data.path = str(data)
    with pytest.raises(ceiling.ConfigError, match=rf"{re.escape(str(data))}:6.*not a number"):
        ceiling.run(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


FIFTH = '''"""A regime of a user's own: likelihood of demonstrations, scaled.

One file, nothing registered anywhere."""

from ceiling.config import Section, number
from ceiling.regimes import sft
from ceiling.regimes.base import Regime, negative_log_likelihood


def loss(params, batch, frozen, forward, cfg):
    total, tokens, metrics = negative_log_likelihood(params, batch, forward)
    return cfg["scale"] * total, tokens, {**metrics, "scaled": (cfg["scale"] * metrics["nll"][0], tokens)}


REGIME = Regime(
    name="fifth_for_test", config=Section(scale=number(2.0, low=0, high=10)), reads=lambda cfg: ("prompt", "solution"),
    loss=loss,
    examples=lambda material, cfg: sft.examples(material, {**cfg, "source": "demonstrations", "replay": 0.0}),
)
'''


def test_a_fifth_regime_is_one_new_file_and_one_config(reference, tmp_path, monkeypatch):
    (tmp_path / "package").mkdir()
    (tmp_path / "package/fifth_for_test.py").write_text(FIFTH)
    monkeypatch.setattr(ceiling.regimes, "__path__", [*ceiling.regimes.__path__, str(tmp_path / "package")])
    workdir, config = reference.copy(tmp_path / "run")
    config.report.html = True
    fifth = dict(prompts_per_step=2, samples_per_prompt=2, pool=8, lr=1e-2)
    base = {
        **ceiling.config.plain(config),
        "arms": {"fifth": ceiling.config.plain(ceiling.arm("fifth_for_test", scale=3.0, **fifth))},
    }
    result, started = run(base, workdir)
    assert started == {"seed1/fifth", "seed1/fifth.evaluate"}  # prior, base and null are those that were there
    assert {row["arm"] for row in result.verdicts} == {"fifth"}
    assert {row["metric"] for row in result.tables["training"]} >= {"nll", "scaled", "loss"}
    (arm,) = [a for a in result.tables["meta"]["arms"] if a["name"] == "fifth"]
    assert arm["reads"] == ["prompt", "solution"] and "likelihood of demonstrations" in arm["description"]
    assert "fifth" in result.report.read_text()
    wrong = copy.deepcopy(base)
    wrong["arms"]["fifth"]["scael"] = 1.0
    with pytest.raises(ceiling.ConfigError, match=r"config\.arms\.fifth\.scael: unknown key \(did you mean 'scale'"):
        ceiling.validate(wrong)
    sys.modules.pop("ceiling.regimes.fifth_for_test")


def test_one_seed_resolves_nothing_and_every_kind_of_work_is_charged(reference, tmp_path):
    workdir, config = reference.copy(tmp_path)
    result, _ = run(config, workdir)
    assert isinstance(result, results.Result)
    assert {row["phase"] for row in result.ledger} >= {"train", "rollout", "evaluate"}
    assert {row["verdict"] for row in result.verdicts} == {"not resolved"}
