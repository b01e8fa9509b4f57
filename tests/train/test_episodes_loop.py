"""Training on episodes: tools that misbehave neither end a step nor enter its loss; behaviour log-probs are exact."""

import copy
import dataclasses
import itertools
import time
import types

import numpy as np
import pytest

from ceiling.regimes.base import load
from ceiling.tasks.base import Outcome, Verdict

TROUBLE = ("raises", "hangs", "10 MB", "imitates")


def troubled(task):
    """The lab with a tool that is called by one letter and whose answers are trouble, in turn. Answers are read from
    the agent's own words alone."""
    turn, (tag, quote, failed) = itertools.count(), task.tokenizer.symbols[:3]

    def call(problem, said):
        kind = TROUBLE[next(turn) % len(TROUBLE)]
        if kind == "raises":
            raise RuntimeError("no such page")
        if kind == "hangs":
            time.sleep(0.6)
        if kind == "10 MB":
            return problem.prompt * (10_000_000 // len(problem.prompt))
        return f"{tag}{problem.answer}$"  # a call, the right answer and the end, all by the tool

    def verify(problem, turns):
        assert isinstance(turns, tuple) and len(turns) % 2 == 1
        own = "".join(turns[::2])
        return Verdict(Outcome.RIGHT if own and ord(own[0]) % 2 == 0 else Outcome.WRONG, own[:4])

    task = copy.copy(task)
    task.environment = types.SimpleNamespace(
        tags=(tag,), opening=quote, closing=quote, max_calls=3, max_observation_tokens=8, timeout_s=0.2, workers=2,
        failed=failed, call=call,
    )  # fmt: skip
    task.verify = verify
    return task


@pytest.fixture(scope="module")
def trained(lab):
    seen, regime = [], load("grpo")

    def examples(material, cfg):
        out = regime.examples(material, cfg)
        seen.append((material, out))
        return out

    task = troubled(lab.task)
    trainer = lab.trainer(dataclasses.replace(regime, examples=examples), lab.Budget(steps=2), task=task, lr=0.01)
    return trainer.run(lambda metrics: None), seen


@pytest.mark.exact
def test_X2_log_probs_across_turns_are_those_of_the_forward_pass(trained):
    assert all(row["sampler_trainer_gap"] <= 1e-5 for row in trained[0].curve)


@pytest.mark.exact
def test_trouble_is_counted_and_enters_no_loss(trained):
    out, seen = trained
    counted = out.ledger.counters
    assert counted["tool timeouts"] > 0 and counted["tool errors"] > 0 and out.ledger.counters["updates"] == 2
    assert counted["tool calls"] > counted["tool timeouts"] + counted["tool errors"] > 0
    observed = 0
    for material, examples in seen:
        samples = [s for group in material.samples[0] for s in group]
        for sample, example in zip(samples, examples, strict=True):
            P = len(sample.prompt)
            assert not example.mask[:P].any() and np.array_equal(example.mask[P:] > 0, sample.own)
            assert len(sample.logprobs) == sample.own.sum() > 0
            observed += int((~sample.own).sum())
    assert observed == counted["observation tokens"] > 0
