r"""Exact grading of the final answer in a response: numbers by fractions, other mathematics by math-verify.

Only the one extracted answer is ever read, never the response around it, and nothing in it is evaluated as code.
The rules, also for people who write prompts:

- The answer is the content of the last `\boxed{...}` (style "boxed") or all that follows the last `####` (style
  "hash"), outside of the think part. Longer than 200 characters, or with control, direction or private characters,
  lone surrogates or digits of other scripts: UNPARSED.
- A number is compared exactly (`numeric`: fractions and decimals alike, units, currency and degrees dropped, percent
  and bases understood). Where the gold is a number, only a written-out number can be right: `2 \cdot 3`, `3!` or a
  boxed sum from the question is not, whatever its value.
- Lists and sets (`1, 2`, `\{2, 1\}`, `1 \text{ or } 2`, `3 \pm \sqrt 2`) and unions are compared without order, tuples,
  intervals and matrices part by part in order; brackets and the number of parts must agree. More answers than the
  gold has are wrong.
- `x = 5` answers a gold 5, and 5 a gold `x = 5`; the left side must be a name. `x \in [0, 1]` likewise.
- Other expressions are equal if sympy says that they are, decimals taken as exact fractions (3.14 is not \pi). They
  must be as far worked out as the gold: no function, sum, integral or factorial that the gold does not have, no longer
  sums, not much longer altogether, letters below a line and factored forms only where the gold has them.
- Words are compared as text: case and punctuation around them do not matter.

A gold answer that none of this can read raises ValueError: it must never pay reward (invariant X-9).

    grade(r"\frac{1}{2}", r"Halved: \boxed{0.5}", style="boxed", kind="math").right   # True
"""

import functools
import re
import unicodedata

from ceiling.tasks import numeric
from ceiling.tasks.base import Outcome, Verdict
from ceiling.tasks.grading import expressions, structure

STYLES = ("boxed", "hash")
KINDS = ("number", "math")
MAX_ANSWER = 200  # characters
MARK = "####"


def final_answer(response: str | None, style: str) -> str | None:
    """The text of the one final answer, or None where there is none that may be read."""
    span = answer_span(response, style)
    return None if span is None else response[slice(*span)]


def answer_span(response: str | None, style: str) -> tuple[int, int] | None:
    """Where in the response the final answer stands, [start, end) in characters, without spaces around it."""
    if style not in STYLES:
        raise ValueError(f"answer style {style!r} is not known; use one of {', '.join(STYLES)}")
    if not isinstance(response, str):
        return None
    start, end = spoken(response)
    said = response[start:end]
    if style == "boxed":
        inside = _last_box(said)
    else:
        inside = (said.rindex(MARK) + len(MARK), len(said)) if MARK in said else None
    if inside is None or not _legible(said[slice(*inside)].strip()):
        return None
    return stripped(response, start + inside[0], start + inside[1])


def spoken(response: str) -> tuple[int, int]:
    """What a response says aloud, [start, end): after the last </think>, up to a <think>."""
    before, close, _ = response.rpartition("</think>")
    start = len(before) + len(close)
    opened = response.find("<think>", start)
    return start, len(response) if opened < 0 else opened


def stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """[start, end) without the spaces at its ends."""
    inside = text[start:end]
    return end - len(inside.lstrip()), start + len(inside.rstrip())


def grade(gold: str, response: str | None, *, style: str, kind: str) -> Verdict:
    """Verdict on a response. gold: the answer alone, without box or mark. Raises ValueError for a gold that cannot be
    read, and for unknown styles and kinds. kind "math" may run for long on hostile text: call it in a Pool."""
    key = _key(gold, kind)
    answer = final_answer(response, style)
    if answer is None:
        return Verdict(Outcome.UNPARSED)
    if kind == "number":
        number = numeric.read(answer)
        outcome = Outcome.UNPARSED if number is None else Outcome(int(numeric.equal(key, number)))
    else:  # where the gold is a list, 1,200 is two numbers
        outcome = compare(key, structure.tree(numeric.tidy(answer), whole_numbers=isinstance(key, str)))
    if outcome is Outcome.UNPARSED:
        return Verdict(outcome)
    if outcome is Outcome.RIGHT:  # every spelling of the right answer counts as one answer
        return Verdict(outcome, _canonical(gold), 1.0)
    return Verdict(outcome, _canonical(answer))


def judge_item(item: dict) -> Verdict:
    """`grade` for a Pool. item: gold, response, style, kind."""
    return grade(item["gold"], item["response"], style=item["style"], kind=item["kind"])


def warm_up() -> None:
    """Loads what the first verdict would load; a Pool calls it before the clock of an item runs."""
    expressions.compare("x", "x^1")


def check_gold(gold: str, kind: str) -> None:
    """Raises ValueError, naming the gold, if `grade` could not read it."""
    _key(gold, kind)


def compare(gold, answer) -> Outcome:
    """RIGHT, WRONG or UNPARSED for an answer's tree against the gold's (see `structure`)."""
    if answer is None:
        return Outcome.UNPARSED
    if isinstance(gold, str) and isinstance(answer, str):
        return expressions.compare(gold, answer)
    if isinstance(gold, str) or isinstance(answer, str) or gold[0] != answer[0] or len(gold[1]) != len(answer[1]):
        return Outcome.WRONG
    if gold[0] in structure.UNORDERED:
        return _compare_unordered(list(gold[1]), answer[1])
    outcomes = [compare(a, b) for a, b in zip(gold[1], answer[1], strict=True)]
    return next((o for o in (Outcome.UNPARSED, Outcome.WRONG) if o in outcomes), Outcome.RIGHT)


def _compare_unordered(golds: list, answers: list) -> Outcome:
    """Every answer takes one equal gold with it, so that none counts twice."""
    result = Outcome.RIGHT
    for answer in answers:
        outcomes = [compare(gold, answer) for gold in golds]
        if Outcome.RIGHT in outcomes:
            del golds[outcomes.index(Outcome.RIGHT)]
        elif outcomes and all(outcome is Outcome.UNPARSED for outcome in outcomes):
            return Outcome.UNPARSED
        else:
            result = Outcome.WRONG
    return result


def _last_box(text: str) -> tuple[int, int] | None:
    r"""Place of the last \boxed{...}'s content; None if its braces do not close (an earlier box does not count)."""
    boxes = list(re.finditer(r"\\boxed(?![A-Za-z])\s*(\{?)", text))
    if not boxes or not boxes[-1][1]:
        return None
    depth, start = 1, boxes[-1].end()
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return start, brace.start()
    return None


def _legible(answer: str) -> bool:
    """Short, not empty, and without characters that look like others or like nothing."""
    if not 0 < len(answer) <= MAX_ANSWER:
        return False
    kinds = ((c, unicodedata.category(c)) for c in answer if c not in "\t\n\r")
    return not any(kind[0] == "C" or kind[0] == "N" and not c.isascii() for c, kind in kinds)


@functools.lru_cache(maxsize=1024)
def _key(gold: str, kind: str):
    """What a response is compared with: a Number (kind "number") or a tree. ValueError if the gold makes none."""
    if kind not in KINDS:
        raise ValueError(f"grader kind {kind!r} is not known; use one of {', '.join(KINDS)}")
    if not isinstance(gold, str) or not _legible(gold.strip()):
        raise ValueError(f"gold answer {gold!r:.80} is empty, too long or has illegible characters; fix or drop it")
    key = numeric.read(gold) if kind == "number" else structure.tree(numeric.tidy(gold))
    if kind == "number" and key is None:
        raise ValueError(f"gold answer {gold!r} is not a number; fix it, or use config.task.grader=math")
    if kind == "math" and not all(expressions.readable(leaf) for leaf in structure.leaves(key)):
        raise ValueError(f"gold answer {gold!r} cannot be read as mathematics or words; fix or drop it")
    return key


def _canonical(answer: str) -> str:
    """One spelling for counting distinct answers: numbers exactly, the rest with single spaces."""
    number = numeric.read(answer)
    return str(number) if number is not None else re.sub(r"\s+", " ", numeric.tidy(answer))
