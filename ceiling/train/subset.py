"""Which problems of its pool an arm trains on: all of them, or the few that its configuration picks.

    examples = 1, select = "first"                           one-problem training (arXiv:2504.20571)
    examples = 4, select = "variance", select_from = "full"  those whose accuracy varied most while arm "full" trained
    select = "17 203"                                        those with these ids
    reward = "incorrect"                                     of the pool, only problems whose majority label is wrong

A small subset fills the batch by the ordinary order: every copy of a problem in a step is a group of its own (OS-3).

The history of an arm is history.json in its stage's directory, {column: values}: at `step` the policy answered the
problem with this id `samples` times, and the verifier called `right` of the answers right.
"""

import collections
import json
import pathlib

import numpy as np

from ceiling.config import ConfigError
from ceiling.tasks.base import Problem
from ceiling.tasks.rewards import Label

FILE, COLUMNS = "history.json", ("step", "problem", "right", "samples")


def chosen(pool: list[Problem], cfg, *, labels: dict[int, Label] | None = None, history=()) -> list[Problem]:
    """The problems of `pool` that the arm trains on. history: (step, problem id, right, samples) rows of the arm that
    cfg["select_from"] names. Raises ConfigError in one line if nothing, or less than asked for, is left."""
    if cfg.get("reward") == "incorrect":
        pool = [p for p in pool if labels[p.id].answer is not None and not labels[p.id].right]
        if not pool:
            raise ConfigError("reward=incorrect: every majority label of the pool is right or missing; enlarge it")
    count, select = cfg["examples"] or len(pool), cfg["select"]
    if select == "variance":
        spread = variances(history)
        if not any(p.id in spread for p in pool):
            raise ConfigError(
                f"select=variance: arm {cfg['select_from']!r} visited no problem of this pool twice, so none of their "
                "accuracies has a variance; let it train longer or on fewer problems"
            )
        pool = sorted(pool, key=lambda p: -spread.get(p.id, -1.0))  # stable: ties in the order of the pool
    elif select != "first":
        known = {p.id: p for p in pool}
        if unknown := [i for i in ids(select) if i not in known]:
            raise ConfigError(f"select={select!r}: the pool has no problem {unknown[0]}")
        return [known[i] for i in ids(select)]
    if count > len(pool):
        raise ConfigError(f"examples={count}: only {len(pool)} problems are left to choose from; lower it")
    return pool[:count]


def ids(select: str) -> list[int]:
    """The problem ids that `select` spells out."""
    return [int(word) for word in select.split()]


def variances(history) -> dict[int, float]:
    """{problem id: variance of its accuracy over the visits}, for problems that were visited at least twice."""
    visits = collections.defaultdict(list)
    for _, problem, right, samples in history:
        visits[problem].append(right / samples)
    return {problem: float(np.var(seen)) for problem, seen in visits.items() if len(seen) > 1}


def write_history(directory: pathlib.Path, history) -> None:
    """history: the rows of a trained arm, at least one."""
    columns = dict(zip(COLUMNS, map(list, zip(*history, strict=True)), strict=True))
    (directory / FILE).write_text(json.dumps(columns))


def read_history(directory: pathlib.Path) -> list[tuple[int, int, int, int]]:
    """The (step, problem id, right, samples) rows in the directory of an arm's stage."""
    columns = json.loads((directory / FILE).read_text())
    return list(zip(*(columns[name] for name in COLUMNS), strict=True))
