"""Verdict on the answer and on the process of a lab response.

Format: label, working, "#", exactly four digits, "$". Anything else is unparsed. The process is valid
when every function token is the letter's true function, every state follows from the one before, and
the answer repeats the last state; the direct strategy shows no process to judge.
"""

from ceiling.tasks.base import Outcome, Verdict
from ceiling.tasks.lab import language as lang


def verify(letters: str, digits: str, answer: str, response: str) -> Verdict:
    strategy = response[0] if response[:1] in lang.STRATEGIES else None
    span = answer_span(response)
    if span is None:
        return Verdict(Outcome.UNPARSED, strategy=strategy)
    working, given = response[: span[0] - 1], response[slice(*span)]
    credit = sum(g == t for g, t in zip(given, answer, strict=True)) / 4
    outcome = Outcome.RIGHT if given == answer else Outcome.WRONG
    return Verdict(outcome, given, credit, _process(strategy, letters, digits, working, given), strategy)


def answer_span(response: str) -> tuple[int, int] | None:
    """Characters [start, end) of the four digits; None where the format is not kept."""
    working, hash_, tail = response.partition("#")
    given, start = tail[:-1], len(working) + 1
    if not hash_ or tail[-1:] != "$" or len(given) != 4 or any(c not in lang.DIGITS for c in given):
        return None
    return start, start + 4


def _process(strategy: str | None, letters: str, digits: str, working: str, given: str) -> bool | None:
    """True or False where the strategy shows its working, None where there is none to judge."""
    if strategy is None:
        return False
    if strategy == "D":
        return None if working == "D" else False
    functions = [lang.TRUTH[c] for c in letters]
    if (strategy == "B") != lang.trap(digits) and len(letters) > 1:
        return False  # the convention that holds here is the other direction
    expected, _, tail = lang.render(strategy, letters, functions, digits).partition("#")
    return working == expected and given == tail[:-1]
