"""Do the gold answers of a file grade as right, and do hacks not? Prints counts, exceptions and rates.

    python scripts/check_gold.py FILE.jsonl --style boxed --kind math [--answer_field answer --solution_field solution]

Each line of FILE is a JSON object. With a solution field its text is graded as a response to its own gold answer; where
it has none, or without such a field, the gold answer in the style's own marks is. Then rates of what must not pay:
constant answers and another problem's answer. With style "hash" the gold is what follows the last #### of the answer
field if it has one. Everything runs in this process: do not point it at text that you do not trust.
"""

import collections
import json
import random
import time

from absl import app, flags

from ceiling.tasks import grading

_STYLE = flags.DEFINE_enum("style", "boxed", grading.STYLES, "Where responses have their answer")
_KIND = flags.DEFINE_enum("kind", "math", grading.KINDS, "How answers are compared")
_ANSWER = flags.DEFINE_string("answer_field", "answer", "Field with the gold answer")
_SOLUTION = flags.DEFINE_string("solution_field", "solution", "Field with a worked solution; rows may lack it")
_CONSTANTS = flags.DEFINE_list("constants", ["0", "1", "2", "A"], "Constant answers to try on every row")


def wrapped(answer: str) -> str:
    return rf"\boxed{{{answer}}}" if _STYLE.value == "boxed" else f"{grading.MARK} {answer}"


def row_of(line: str) -> tuple[str, str]:
    """(gold, response) of a line."""
    row = json.loads(line)
    answer = str(row[_ANSWER.value])
    gold = answer.rpartition(grading.MARK)[2].strip() if _STYLE.value == "hash" else answer
    return gold, row.get(_SOLUTION.value) or (answer if grading.MARK in answer else wrapped(gold))


def grade(gold: str, response: str):
    return grading.grade(gold, response, style=_STYLE.value, kind=_KIND.value)


def gold_counts(rows) -> collections.Counter:
    """Outcomes of gold solutions; every one that is not RIGHT is printed."""
    counts = collections.Counter()
    for line, (gold, response) in enumerate(rows, 1):
        try:
            verdict = grade(gold, response)
            outcome = verdict.outcome.name
        except ValueError as error:
            outcome = f"unreadable gold ({error})"
        counts[outcome.partition(" (")[0]] += 1
        if outcome != "RIGHT":
            print(f"  line {line}: {outcome}: gold {gold!r}, answer {grading.final_answer(response, _STYLE.value)!r}")
            if grade_or_none(gold, wrapped(gold)) is not True:
                print(f"  line {line}: the gold answer in its own marks is not right either")
    return counts


def grade_or_none(gold: str, response: str) -> bool | None:
    try:
        return grade(gold, response).right
    except ValueError:
        return None


def main(argv):
    if len(argv) != 2:
        raise app.UsageError("give one JSONL file")
    with open(argv[1], encoding="utf-8") as file:
        rows = [row_of(line) for line in file if line.strip()]
    print(f"{argv[1]}: {len(rows)} rows, style {_STYLE.value}, kind {_KIND.value}")
    grading.warm_up()
    began = time.perf_counter()
    counts = gold_counts(rows)
    took = 1000 * (time.perf_counter() - began) / len(rows)
    print(f"gold solutions: {dict(counts)}; {took:.2f} ms each")
    usable = [gold for gold, _ in rows if grade_or_none(gold, wrapped(gold)) is not None]
    for constant in _CONSTANTS.value:
        right = [gold for gold in usable if grade_or_none(gold, wrapped(constant))]
        same = sum(gold.strip() == constant for gold in right)
        print(f"constant {constant!r}: right on {len(right)}/{len(usable)}, of which {same} have this gold")
    others = random.Random(0).sample(usable, len(usable))
    began = time.perf_counter()
    pairs = [(a, b) for a, b in zip(usable, others, strict=True) if grade_or_none(a, wrapped(b))]
    took = 1000 * (time.perf_counter() - began) / max(1, len(usable))
    print(f"another row's answer: right on {len(pairs)}/{len(usable)}; {took:.2f} ms each")
    for a, b in pairs:
        if a != b:
            print(f"  {b!r} counts as {a!r}")


if __name__ == "__main__":
    app.run(main)
