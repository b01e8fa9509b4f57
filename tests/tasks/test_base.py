"""Tasks by name, the verifier's memory and its errors (V6), rewards as functions of verdicts."""

import types

import pytest

from ceiling.config import ConfigError
from ceiling.tasks import base, rewards
from ceiling.tasks.base import Outcome, Problem, Verdict, Verifier

PROBLEM = Problem(7, "g", "p", "a")


class Counting:
    def __init__(self, verify):
        self.calls, self.inner = [], verify

    def verify(self, problem, response):
        self.calls.append((problem.id, response))
        return self.inner(problem, response)


def test_unknown_task_lists_the_known_ones():
    known = "corpus, gym, lab, questions, search"
    with pytest.raises(ConfigError, match=rf"config\.task\.name='labb' is not a task; known: {known}$"):
        base.load({"name": "labb"}, {})
    for name in ("base", "numeric", "rewards", "", "lab.prior", "../lab", "os"):
        with pytest.raises(ConfigError, match="is not a task"):
            base.module(name)


def test_a_task_is_found_by_its_file_alone(tmp_path, monkeypatch):
    (tmp_path / "toy_task_for_test.py").write_text(
        "CONFIG = None\ndef make(config, data, tokenizer):\n    return 'a task', config, data\n"
    )
    monkeypatch.setattr(base.ceiling.tasks, "__path__", [*base.ceiling.tasks.__path__, str(tmp_path)])
    assert base.load({"name": "toy_task_for_test"}, {"path": "x"}) == (
        "a task",
        {"name": "toy_task_for_test"},
        {"path": "x"},
    )


@pytest.mark.parametrize(
    "error",
    [ValueError, KeyError, RecursionError, ZeroDivisionError, MemoryError, UnicodeEncodeError("u", "x", 0, 1, "r")],
)
def test_v6_a_verifier_that_raises_is_an_error_verdict_and_never_right(error):
    def broken(problem, response):
        raise error

    task = Counting(broken)
    verify = Verifier(task)
    verdict = verify(PROBLEM, "x")
    assert verdict.outcome is Outcome.ERROR and not verdict.right and verdict.answer is None and verdict.credit == 0.0
    assert verdict.outcome not in (Outcome.WRONG, Outcome.UNPARSED, Outcome.RIGHT)  # kept apart
    assert all(reward(verdict) == 0.0 for reward in rewards.REWARDS.values())
    assert verify(PROBLEM, "x") is verdict and len(task.calls) == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_v6_a_stop_request_is_not_swallowed(stop):
    def interrupted(problem, response):
        raise stop

    with pytest.raises(stop):
        Verifier(Counting(interrupted))(PROBLEM, "x")


def test_equal_responses_are_judged_once_per_problem():
    task = Counting(lambda problem, response: Verdict(Outcome(int(response == problem.answer))))
    verify, other = Verifier(task), Problem(8, "g", "p", "b")
    for _ in range(3):
        assert verify(PROBLEM, "a").right and not verify(other, "a").right and verify(other, "b").right
    assert task.calls == [(7, "a"), (8, "a"), (8, "b")]
    Verifier(task)(PROBLEM, "a")  # another verifier has its own memory
    assert len(task.calls) == 4


@pytest.mark.parametrize(
    "verdict, expected",
    [
        (Verdict(Outcome.RIGHT, "a", 1.0, True), dict(exact=1, dense=1, process=1, format=1)),
        (Verdict(Outcome.RIGHT, "a", 1.0, False), dict(exact=1, dense=1, process=0, format=1)),
        (Verdict(Outcome.RIGHT, "a", 1.0, None), dict(exact=1, dense=1, process=0, format=1)),
        (Verdict(Outcome.WRONG, "b", 0.75, True), dict(exact=0, dense=0.75, process=0, format=1)),
        (Verdict(Outcome.UNPARSED), dict(exact=0, dense=0, process=0, format=0)),
        (Verdict(Outcome.ERROR), dict(exact=0, dense=0, process=0, format=0)),
    ],
)
def test_rewards_are_functions_of_verdicts(verdict, expected):
    assert {name: reward(verdict) for name, reward in rewards.REWARDS.items()} == expected


def test_outcomes_have_fixed_numbers_because_records_store_them():
    assert types.SimpleNamespace(**{o.name: int(o) for o in Outcome}) == types.SimpleNamespace(
        WRONG=0, RIGHT=1, UNPARSED=2, ERROR=3
    )
