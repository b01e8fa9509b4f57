"""Runs of the command in one process or in several on this machine, all in processes of their own."""

import os
import pathlib
import socket
import subprocess
import sys
import types

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# One GRPO arm and one SFT arm, as small as they get. An untrained model is never right, so GRPO's entropy bonus is
# what gives it a gradient. Saves after every step.
LAB = """
import ceiling

def get_config(variant=""):
    rows = dict(lr=1e-2, prompts_per_step=2, samples_per_prompt=2, pool=8)
    config = ceiling.defaults("lab", arms={
        "grpo": ceiling.arm("grpo", entropy_bonus=0.1, **rows), "sft": ceiling.arm("sft", **rows)})
    config.seeds = (1,)
    config.train.mix = {"C": 0.5, "R": 0.5}
    config.task.update(evaluation_per_group=1, training_per_group=8, gate_problems=2, gate_accuracy=0.0)
    config.model.update(width=16, ffn=16, layers=1, heads=2, kv_heads=1, head_dim=8, tied=False, embed_std=1.0,
                        scan_layers=False)
    config.prior.update(steps=3, prompts_per_step=4, pool=1, mix={"C": 1.0})
    config.budget.flops = 3e6
    config.eval.update(n=4, ks=(1, 2, 4), verdict_k=2, likelihood_samples=1, gain_samples=2)
    config.mesh.data = 2
    config.checkpoint.every_steps = 1
    return config
"""


# What coordination does without any training. argv: rank, port, time-outs, what this process does.
TALK = """
import os, signal, sys, time
from ceiling import hosts

rank, port, start_s, heartbeat_s, deed = int(sys.argv[1]), sys.argv[2], *map(float, sys.argv[3:5]), sys.argv[5]
settings = dict(processes=2, process=rank, coordinator=f"localhost:{port}", start_timeout_s=start_s,
                heartbeat_timeout_s=heartbeat_s)
try:
    with hosts.joined(settings):
        for i in range(200):
            assert hosts.led(lambda: {"i": i, "text": "x" * 50_000})["i"] == i
        told = [hosts.anywhere(deed == "ask")]
        hosts.led(lambda: time.sleep(1))
        told += [hosts.anywhere(False), hosts.leader()]
        if deed == "raise":
            raise ValueError("the disk is on fire")
        if deed in ("SIGKILL", "SIGSTOP"):
            os.kill(os.getpid(), getattr(signal, deed))
        if deed == "wait":
            time.sleep(100)
    print(told)
except (RuntimeError, ValueError) as error:
    print(f"ceiling: {error}", file=sys.stderr)
    hosts.end(2)
"""


def talk(deeds: dict[int, str], start_s: float = 100, heartbeat_s: float = 60) -> list[subprocess.Popen]:
    """Processes that join as two, and then do something each; deeds: {rank: what} of those that are started."""
    port, *timeouts = map(str, (free_port(), start_s, heartbeat_s))
    return [
        subprocess.Popen([sys.executable, "-c", TALK, str(rank), port, *timeouts, deed], cwd=ROOT, text=True,
                         env=environment(1), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank, deed in deeds.items()
    ]  # fmt: skip


def free_port() -> int:
    """A port whose neighbour below is free too: both are used."""
    while True:
        with socket.socket() as one, socket.socket() as below:
            one.bind(("", 0))
            try:
                below.bind(("", one.getsockname()[1] - 1))
            except OSError:
                continue
            return one.getsockname()[1]


def environment(devices: int) -> dict[str, str]:
    """A user's, with so many CPU devices, and no settings of this test process but how much XLA optimises."""
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    flags += [f"--xla_force_host_platform_device_count={devices}"]
    return {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": " ".join(flags)}


def start(config, workdir, *arguments, devices: int = 1) -> subprocess.Popen:
    words = [sys.executable, "-m", "ceiling", "--config", str(config), "--workdir", str(workdir), *arguments]
    return subprocess.Popen(words, cwd=ROOT, env=environment(devices), text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)  # fmt: skip


def start_two(config, workdir, *arguments, own=((), ())) -> list[subprocess.Popen]:
    """Two processes of one run; own: arguments of each alone."""
    hosts = {"processes": 2, "coordinator": f"localhost:{free_port()}", "start_timeout_s": 120,
             "heartbeat_timeout_s": 30}  # fmt: skip
    common = [f"--config.hosts.{key}={value}" for key, value in hosts.items()]
    return [start(config, workdir, *common, *arguments, *own[r], f"--config.hosts.process={r}") for r in (0, 1)]


def end(processes: list[subprocess.Popen], timeout: float = 600) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each; none outlives the test."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
        return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="session")
def runs():
    return types.SimpleNamespace(start=start, start_two=start_two, talk=talk, end=end, environment=environment,
                                 free_port=free_port, root=ROOT)  # fmt: skip


@pytest.fixture(scope="session")
def lab_config(tmp_path_factory):
    path = tmp_path_factory.mktemp("hosts") / "lab.py"
    path.write_text(LAB)
    return path


@pytest.fixture(scope="session")
def alone(lab_config):
    """The run of one process with two devices."""
    workdir = lab_config.parent / "alone"
    ((code, _, errors),) = end([start(lab_config, workdir, devices=2)])
    assert code == 0, errors
    return workdir
