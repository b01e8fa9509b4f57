"""Rewards: what a response is paid. Most are functions of its verdict; the spurious ones (arXiv:2506.10947) are not.

    exact, dense, process, format     of the verdict alone: the table REWARDS
    majority, incorrect               1 if the answer is the problem's label: the majority answer of the policy before
                                      any training, right or wrong. "incorrect" keeps the problems whose label is wrong
    random                            1 with probability gamma, whatever was written
    none                              0
"""

import collections
import dataclasses

import numpy as np

from ceiling.tasks.base import Outcome, Verdict


def exact(verdict: Verdict) -> float:
    """1 for a right answer, 0 otherwise (the outcome reward of RLVR)."""
    return float(verdict.outcome is Outcome.RIGHT)


def dense(verdict: Verdict) -> float:
    """The task's partial credit, e.g. the share of right digits: carries more information per
    sample than `exact`, and is reported apart for that reason."""
    return verdict.credit


def process(verdict: Verdict) -> float:
    """1 for a right answer reached by a valid process."""
    return float(verdict.outcome is Outcome.RIGHT and verdict.process is True)


def format_only(verdict: Verdict) -> float:
    """1 for any response with a readable answer, right or wrong."""
    return float(verdict.answer is not None)


REWARDS = {"exact": exact, "dense": dense, "process": process, "format": format_only}
LABELLED = ("majority", "incorrect")
NAMES = (*REWARDS, *LABELLED, "random", "none")
READ_THE_ANSWER = ("exact", "dense", "process", "incorrect")  # the others could be paid without a key


@dataclasses.dataclass(frozen=True)
class Label:
    """The majority answer of a problem (None: no sample had a readable one), its share of all samples, and whether
    the verifier calls it right."""

    answer: str | None
    share: float
    right: bool


def majority(answers: list[str | None], right: list[bool]) -> Label:
    """The label from samples of one problem: their answers and verdicts. Samples without an answer have no vote; of
    equally frequent answers the one that was sampled first wins."""
    votes = collections.Counter(answer for answer in answers if answer is not None)
    if not votes:
        return Label(None, 0.0, False)
    answer, count = votes.most_common(1)[0]
    return Label(answer, count / len(answers), bool(right[answers.index(answer)]))


def pay(name: str, verdicts: list[Verdict], *, label: Label | None = None, gamma=0.5, key=()) -> np.ndarray:
    """f32[G]: what the G responses to one prompt are paid.

    key: the whole numbers that a random reward is drawn from, e.g. (seed, step, prompt). The j-th draw depends on
    them and on j alone: not on the response, not on G, and not on how often it is asked for.
    """
    if name in REWARDS:
        return np.array([REWARDS[name](verdict) for verdict in verdicts], np.float32)
    if name in LABELLED:
        return np.array([v.answer is not None and v.answer == label.answer for v in verdicts], np.float32)
    if name == "random":
        return (np.random.default_rng([*key, len(key), 43]).random(len(verdicts)) < gamma).astype(np.float32)
    if name == "none":
        return np.zeros(len(verdicts), np.float32)
    raise ValueError(f"reward={name!r} is not one of {', '.join(NAMES)}")
