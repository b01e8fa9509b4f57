"""Rewards are functions of verdicts: verdict -> float. Choices are names in one table."""

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
