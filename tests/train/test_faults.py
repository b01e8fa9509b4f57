"""What stops a training stage, and how it goes on: signals (R2), kills between two halves of a step (R8), another
number of devices (R7), ledgers (R9), gradients that are not finite (N1)."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ceiling.model.sharding import make_mesh
from ceiling.regimes.base import load
from ceiling.train import loop, signals
from ceiling.train.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 4


def cheap(params, batch, frozen, forward, cfg):
    """A loss that compiles at once and moves every step: its target is what the batch holds."""
    aim = jnp.sum(batch.tokens_RW) % 7
    return jnp.sum((params["final_norm"] - aim) ** 2), jnp.sum(batch.mask_BT), {}


def recorded(name, seen, hook=lambda step: None, **changes):
    """The regime; the ids of each step's problems are recorded in `seen`, and hook(step) runs after the rollout."""
    regime = load(name)

    def examples(material, cfg):
        seen.append([problem.id for problem in material.problems])
        hook(len(seen))
        return regime.examples(material, cfg)

    return dataclasses.replace(regime, examples=examples, **changes)


def kept(directory, **options):
    return Checkpoints(directory, "settings", log=lambda line: None, **{"every_steps": 1, **options})


def train(trainer, directory, **options):
    """Run to the end with checkpoints; the Trained."""
    with kept(directory, **options) as checkpoints:
        trainer.resume(checkpoints)
        return trainer.run(lambda row: None)


def account(ledger):
    """A ledger without its clocks."""
    content = ledger.to_json()
    return {**content, "entries": [{**row, "seconds": 0} for row in content["entries"]]}


def same(one, other):
    """Bit-equal parameters, curves and ledgers."""
    assert one.curve == other.curve and account(one.ledger) == account(other.ledger)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one.params, other.params)


@pytest.fixture(scope="module")
def whole(lab):
    """GRPO that nothing interrupts: (Trained, problem ids of each step)."""
    seen = []
    return lab.trainer(recorded("grpo", seen, loss=cheap), lab.Budget(steps=STEPS)).run(lambda row: None), seen


# ---- kills and signals


def test_R1_R8_R9_ended_between_rollout_and_update_no_prompt_is_skipped_or_repeated(lab, whole, tmp_path):
    seen = []

    def end(step):
        if step == 3:
            raise KeyboardInterrupt  # like a kill: nothing of this step is kept

    with pytest.raises(KeyboardInterrupt):
        train(lab.trainer(recorded("grpo", seen, end, loss=cheap), lab.Budget(steps=STEPS)), tmp_path)
    again = []
    trained = train(lab.trainer(recorded("grpo", again, loss=cheap), lab.Budget(steps=STEPS)), tmp_path)
    assert seen[:2] + again == whole[1] and len(seen) == 3
    same(trained, whole[0])


@pytest.mark.parametrize("where", ["rollout", "step", "twice"])
def test_R2_sigterm_saves_the_step_in_flight_and_a_second_one_changes_nothing(
    lab, whole, tmp_path, monkeypatch, where
):
    """The signal comes while samples are drawn, after it, or two times in a row."""

    def sent():
        os.kill(os.getpid(), signal.SIGTERM)
        until = time.monotonic() + 30
        while not signals.asked() and time.monotonic() < until:
            time.sleep(0.01)  # a thread hears of it, which a busy machine may keep from running

    seen, generate = [], loop.generate

    def hook(step):
        if step == 2 and where != "rollout":
            for _ in range(1 + (where == "twice")):
                sent()
                time.sleep(0.05)

    def drawn(*args, **kwargs):
        out = generate(*args, **kwargs)
        if where == "rollout" and len(seen) == 1:  # of the second step
            sent()
        return out

    monkeypatch.setattr(loop, "generate", drawn)
    handlers = [signal.getsignal(number) for number in signals.SIGNALS]
    with signals.watched(60), pytest.raises(signals.Stopped, match="after step 2; the same command continues"):
        train(lab.trainer(recorded("grpo", seen, hook, loss=cheap), lab.Budget(steps=STEPS)), tmp_path, every_steps=99)
    assert [path.name for path in tmp_path.iterdir()] == ["00000002"]
    assert [signal.getsignal(number) for number in signals.SIGNALS] == handlers and not signals.asked()
    again = []
    trained = train(lab.trainer(recorded("grpo", again, loss=cheap), lab.Budget(steps=STEPS)), tmp_path)
    assert seen + again == whole[1]
    same(trained, whole[0])


ENDLESS = """
import hashlib, sys, time
from ceiling.train import signals
with signals.watched(float(sys.argv[1])):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # no bytecode of the main thread runs for minutes
"""


@pytest.mark.parametrize(("grace", "numbers"), [("0.3", [signal.SIGTERM]), ("60", [signal.SIGINT, signal.SIGINT])])
def test_R2_the_process_ends_when_the_grace_is_over_even_within_a_compiled_program(grace, numbers):
    """By the clock after SIGTERM, at once after the second Ctrl-C."""
    child = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, grace], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    for number in numbers:
        child.send_signal(number)
        time.sleep(0.1)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == signals.EXIT_CODE == 75
    (line,) = errors.splitlines()
    assert line.startswith("ceiling: stopped: ") and "continues from the last checkpoint" in line


def test_R2_outside_the_main_thread_nothing_is_touched():
    import threading

    found = []

    def elsewhere():
        with signals.watched(1):
            found.append(signals._watch)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [None]


# ---- other devices


def test_R7_a_stage_goes_on_on_eight_devices_with_the_same_data_and_the_same_loss(lab, tmp_path):
    """Two steps on one device, two on 4x2 (data, fsdp), against four on one: 1e-4, for sums in another order."""
    one, seen = [], []
    alone = lab.trainer(recorded("sft", one), lab.Budget(steps=STEPS)).run(lambda row: None)

    def end(step):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(lab.trainer(recorded("sft", seen, end), lab.Budget(steps=STEPS)), tmp_path)
    del seen[2:]
    mesh = make_mesh(4, 2, 1)
    trained = train(lab.trainer(recorded("sft", seen), lab.Budget(steps=STEPS), mesh=mesh), tmp_path)
    assert seen == one
    assert trained.params["layers"]["wq"].sharding.mesh.size == 8
    assert trained.curve[:2] == alone.curve[:2]
    np.testing.assert_allclose([r["loss"] for r in trained.curve], [r["loss"] for r in alone.curve], rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-4), trained.params, alone.params
    )


# ---- gradients that are not finite


def poisoned(bad, value):
    """Plain SFT data under a cheap loss; the updates numbered in `bad` (from 1) get `value` in their gradient."""
    regime, seen = load("sft"), []

    def examples(material, cfg):
        seen.append(1)
        factor = value if len(seen) in bad else 1.0
        out = regime.examples(material, cfg)
        return [dataclasses.replace(e, extra={**e.extra, "factor": np.float32(factor)}) for e in out]

    def loss(params, batch, frozen, forward, cfg):
        total, denominator, metrics = cheap(params, batch, frozen, forward, cfg)
        return total * jnp.max(batch.extra["factor"]), denominator, metrics

    return dataclasses.replace(regime, examples=examples, loss=loss)


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("count", [1, 3, 4])
def test_N1_bad_updates_in_a_row_are_skipped_counted_and_never_applied(lab, tmp_path, count, value):
    steps = count + 2
    trainer = lab.trainer(poisoned(set(range(2, 2 + count)), value), lab.Budget(steps=steps))
    trained = train(trainer, tmp_path)
    assert [row["skipped"] for row in trained.curve] == [0, *range(1, count + 1), count]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(trained.params)))
    assert not np.array_equal(trained.params["final_norm"], lab.weights["final_norm"]), "the good ones are applied"


def test_N1_a_hundred_in_a_row_stop_the_arm_at_the_limit_with_the_last_good_parameters_on_disk(lab, tmp_path):
    bad = set(range(2, 102))
    with pytest.raises(FloatingPointError, match=r"21 updates.*\(limit 20\).*last good parameters are in ") as caught:
        train(lab.trainer(poisoned(bad, np.nan), lab.Budget(steps=200)), tmp_path, every_steps=0)
    (home,) = tmp_path.iterdir()
    assert str(home) in str(caught.value) and "\n" not in str(caught.value)
    good = lab.trainer(poisoned(bad, np.nan), lab.Budget(steps=1)).run(lambda row: None)  # before the first bad one
    trainer = lab.trainer(poisoned(bad, np.nan), lab.Budget(steps=200))
    with kept(tmp_path) as checkpoints:
        trainer.resume(checkpoints)
    assert trainer.step == 22 and len(trainer.curve) == 22
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), trainer.state.params,
                 good.params)  # fmt: skip
