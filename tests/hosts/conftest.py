"""Runs of the command in one process or in several on this machine, all in processes of their own."""

import importlib.util
import pathlib
import subprocess
import sys
import types

import pytest

ROOT = pathlib.Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("host_equality", ROOT / "scripts" / "host_equality.py")
script = importlib.util.module_from_spec(_spec)  # its launching and its comparison are those of the tests
_spec.loader.exec_module(script)
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
    config.report.html = False
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
    port, *timeouts = map(str, (script.free_port(), start_s, heartbeat_s))
    return [
        subprocess.Popen([sys.executable, "-c", TALK, str(rank), port, *timeouts, deed], cwd=ROOT, text=True,
                         env=script.environment(1), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank, deed in deeds.items()
    ]  # fmt: skip


@pytest.fixture(scope="session")
def runs():
    names = ("start", "start_two", "end", "environment", "free_port", "compare")
    return types.SimpleNamespace(talk=talk, root=ROOT, **{name: getattr(script, name) for name in names})


@pytest.fixture(scope="session")
def lab_config(tmp_path_factory):
    path = tmp_path_factory.mktemp("hosts") / "lab.py"
    path.write_text(LAB)
    return path


@pytest.fixture(scope="session")
def alone(lab_config):
    """The run of one process with two devices."""
    workdir = lab_config.parent / "alone"
    ((code, _, errors),) = script.end([script.start(lab_config, workdir, devices=2)])
    assert code == 0, errors
    return workdir
