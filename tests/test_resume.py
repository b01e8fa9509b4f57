"""A whole run, struck from outside at random moments, ends with the numbers of the run that was left alone (R1, R2, R8,
R9). The blows are those of scripts/chaos.py; by itself it deals a hundred, to all regimes. What a command with workers
does when it is killed or asked to stop is in test_experiment.py."""

import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
ARMS = "rlp"  # rollouts, and a slow copy of the parameters beside them


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="the blows are timed by /proc")
def test_r1_r2_r8_r9_after_twenty_kills_and_two_sigterms_every_number_is_bit_equal(tmp_path):
    words = ["--kills", "20", "--asks", "2", "--seed", str(time.time_ns() % 2**32), "--arms", ARMS]
    theirs = ("XLA_FLAGS", "TF_CPP_MIN_LOG_LEVEL", "ABSL_MIN_LOG_LEVEL")  # settings of this test process
    env = {k: v for k, v in os.environ.items() if k not in theirs} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, ROOT / "scripts/chaos.py", *words, "--workdir", tmp_path], cwd=ROOT, env=env,
                          capture_output=True, text=True, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    said = re.search(r"20 kills and 2 SIGTERMs .*, (\d+) times from a checkpoint; every one bit-equal", done.stdout)
    assert said and int(said[1]) > 0, done.stdout
    assert sum(int(row.split("|")[2]) for row in done.stdout.splitlines() if re.match(r"\| [\w. ]+ \| \d", row)) == 20
