"""Problem groups of the lab and their splits, disjoint by construction.

Evaluation problems are drawn first, training problems avoid their prompts, the corpus avoids both.
All draws depend on the task's seed only, so every training seed and every arm sees the same problems.
"""

import dataclasses
import functools
import itertools

import numpy as np

from ceiling.tasks.base import Group, Problem
from ceiling.tasks.lab import language as lang

GROUPS = (
    Group("C", "common", "common operations, depth 2-3", "saturated at high k"),
    Group("R", "rare", "one rare letter, depth 1-2", "association seen with probability 0.05"),
    Group("V", "very rare", "one very rare letter, depth 1-2", "association seen with probability 0.01"),
    Group("U", "ultra rare", "one ultra rare letter, depth 1-2", "association seen with probability 0.002"),
    Group("A", "absent", "a cross-digit function that no corpus text shows: digit-wise habits earn "
          "chance credit only", "zero"),
    Group("Ap", "absent, partial credit", "digit-wise functions (3x, 7x) that no corpus text shows: "
          "known maps share digits with them", "zero, but digit-wise credit exists"),
    Group("X", "depth 4", "common operations composed four deep", "edge of composition"),
    Group("M", "minority convention", "truth runs right to left, which the prompt does not give away: the "
          "majority strategy is wrong", "reached by strategy B", trap=True),
)  # fmt: skip
NAMES = tuple(g.name for g in GROUPS)
_LETTERS = {"R": "gh", "V": "i", "U": "j", "A": "q", "Ap": "kl"}
_DEPTHS = {"C": (2, 3), "X": (4,), "M": (2, 3)}


@dataclasses.dataclass(frozen=True)
class Splits:
    """Problems by split and group; `prompts` holds every prompt that no corpus text may show."""

    evaluation: dict[str, list[Problem]]
    training: dict[str, list[Problem]]
    gate: list[Problem]
    prompts: frozenset[str]


@functools.lru_cache(maxsize=4)
def make_splits(seed: int, evaluation_per_group: int, training_per_group: int, gate_problems: int) -> Splits:
    rng = np.random.default_rng([seed, 11])
    taken: set[str] = set()
    ids = itertools.count()

    def split(per_group: int) -> dict[str, list[Problem]]:
        return {g: [_draw(g, rng, taken, next(ids)) for _ in range(per_group)] for g in NAMES}

    evaluation, training = split(evaluation_per_group), split(training_per_group)
    gate = [_draw("gate", rng, taken, next(ids)) for _ in range(gate_problems)]
    return Splits(evaluation, training, gate, frozenset(taken))


def _draw(group: str, rng, taken: set[str], id: int) -> Problem:
    """One problem of a group whose prompt is new and whose answer the group's definition allows."""
    for _ in range(100_000):
        letters, digits = _letters(group, rng), lang.text_of(rng.integers(10, size=4))
        prompt = lang.prompt(letters, digits)
        if prompt in taken or not _allowed(group, letters, digits):
            continue
        taken.add(prompt)
        return Problem(id, group, prompt, lang.truth(letters, digits), (letters, digits))
    raise ValueError(f"lab: could not draw another distinct problem of group {group}; ask for fewer")


def _letters(group: str, rng) -> str:
    common = list(lang.COMMON_LETTERS)
    if group == "gate":  # skills that the corpus always shows truthfully, depths 1-3
        return "".join(rng.choice(common + list(lang.ALIAS_LETTERS), size=rng.integers(1, 4)))
    if group in _DEPTHS:
        return "".join(rng.choice(common, size=rng.choice(_DEPTHS[group])))
    special = rng.choice(list(_LETTERS[group]))
    partner = rng.choice(common)
    return str(rng.choice([special, special + partner, partner + special]))


def _allowed(group: str, letters: str, digits: str) -> bool:
    """Group definitions that depend on the digits: only M lives where the minority convention holds,
    and there only if the direction matters; absent problems must be out of any corpus program's reach."""
    if lang.trap(digits) != (group == "M"):
        return False
    functions = [lang.TRUTH[c] for c in letters]
    if group == "M":
        return lang.run(functions, digits)[-1] != lang.run(functions[::-1], digits)[-1]
    if group in ("A", "Ap"):
        return not reachable(digits, lang.truth(letters, digits))
    return True


_CORPUS_FUNCTIONS = tuple((lang.COMMON | lang.SKILLS | lang.DECOYS).values())


def reachable(digits: str, answer: str) -> bool:
    """Whether a program of one or two corpus functions maps digits to answer (else such a problem
    leaks: the prototype's absent group reached pass@256 .25 by composing known maps)."""
    target = lang.digits_of(answer)
    once_F4 = np.stack([f(lang.digits_of(digits)) for f in _CORPUS_FUNCTIONS])
    twice_FF4 = np.stack([f(once_F4) for f in _CORPUS_FUNCTIONS])
    return bool((once_F4 == target).all(-1).any() or (twice_FF4 == target).all(-1).any())
