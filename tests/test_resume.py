"""A whole run, killed and stopped from outside at random moments, ends with the numbers of the run that was left alone
(R1, R2, R8, R9). The kills are those of scripts/chaos.py; `python scripts/chaos.py` makes a hundred, of all regimes."""

import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from ceiling.evals.records import Samples

ROOT = pathlib.Path(__file__).parents[1]
ARMS = "rlp"  # rollouts, and a slow copy of the parameters beside them
CONFIG = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("chaos", {str(ROOT / "scripts/chaos.py")!r})
chaos = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chaos)

def get_config(variant=""):
    return chaos.config({ARMS.split(",")!r})
"""
pytestmark = pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="the kills are timed by /proc")


@pytest.fixture(scope="module")
def chaos():
    spec = importlib.util.spec_from_file_location("chaos_for_test", ROOT / "scripts/chaos.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """(directory, finished process) of twenty kills; the directory keeps the reference and the compiled programs."""
    workdir = tmp_path_factory.mktemp("chaos")
    words = ["--kills", "20", "--seed", str(time.time_ns() % 2**32), "--arms", ARMS, "--workdir", str(workdir)]
    done = subprocess.run([sys.executable, ROOT / "scripts/chaos.py", *words], cwd=ROOT, env=environment(),
                          capture_output=True, text=True, timeout=900)  # fmt: skip
    return workdir, done


def environment(**more):
    """A user's, without the settings of this test process."""
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "TF_CPP_MIN_LOG_LEVEL", "ABSL_MIN_LOG_LEVEL")}
    return {**env, "PYTHONPATH": str(ROOT), **more}


def test_r1_r8_r9_twenty_kills_and_every_number_is_bit_equal(killed):
    _, done = killed
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert re.search(r"20 kills .*every one bit-equal", done.stdout)
    assert sum(int(row.split("|")[2]) for row in done.stdout.splitlines() if re.match(r"\| [\w. ]+ \| \d", row)) == 20


def test_r2_sigterm_to_the_command_and_its_workers_ends_with_75_and_the_same_numbers(killed, chaos):
    """To the whole process group, twice, while both workers train: what a batch system does. Then to one process
    alone while it evaluates or trains. Then the run is finished and compared."""
    workdir, _ = killed
    file = workdir / "config.py"
    file.write_text(CONFIG)

    def command(workers):
        # In the directory itself: its xla_cache is the one that workers use.
        words = ["-m", "ceiling", "--config", str(file), "--workdir", str(workdir), f"--config.workers={workers}"]
        return subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True, env=environment(
                JAX_PLATFORMS="cpu", JAX_DISABLE_MOST_OPTIMIZATIONS="1",
                XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
                JAX_COMPILATION_CACHE_DIR=str(workdir / "xla_cache"), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0"),
        )  # fmt: skip

    def stopped(workers, until, send):
        child = command(workers)
        for line in child.stdout:
            if until in line:
                break
        pattern = "stages/seed1/*/*.tmp/unfinished/checkpoints/*/manifest.json"
        deadline = time.monotonic() + 120
        while not list(workdir.glob(pattern)) and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        send(child.pid)
        began = time.monotonic()
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 75, errors[-2000:]
        line = [line for line in errors.splitlines() if line.startswith("ceiling: ")][-1]
        assert re.search(r"stopped .*; the same command continues", line)
        assert not chaos.torn(workdir)
        return time.monotonic() - began

    def twice_to_all(pid):
        os.killpg(pid, signal.SIGTERM)
        time.sleep(0.05)
        os.killpg(pid, signal.SIGTERM)

    stopped(2, "start   seed1/prior", twice_to_all)
    stopped(1, "start   seed1/rlp", lambda pid: os.kill(pid, signal.SIGTERM))
    child = command(2)
    output, errors = child.communicate(timeout=600)
    assert child.returncode == 0, errors[-2000:]
    assert "continues from step" in output and not list(workdir.glob("stages/**/unfinished"))
    one, two = (comparable(chaos, directory) for directory in (workdir / "reference", workdir))
    assert one.keys() == two.keys() and len(one) > 20
    assert not [name for name in one if one[name] != two[name]]


def comparable(chaos, workdir):
    """chaos.py evaluates a few samples at a time, the command as many as fit: idle slots and the last bit of their
    log-probs differ, nothing else may."""
    out = chaos.outcome(workdir)
    for path in workdir.glob("stages/seed1/*/*/records.parquet"):
        name = path.parts[-3]
        out[f"{name} records"] = Samples.load(path).table.drop_columns(["logprob"]).to_pydict()
        out[f"{name} ledger"] = re.sub(r'"executed_tokens": \d+', "", out[f"{name} ledger"])
    return out
