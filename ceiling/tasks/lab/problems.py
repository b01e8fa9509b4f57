"""Problem groups of the lab and their splits, disjoint by construction.

Problems are drawn from the held-out prompts, which no corpus shows, and no two share a prompt. All draws depend on
the task's seed only, so every training seed and every arm sees the same problems; every split and group has a
stream of its own, so asking for more of one adds to it and leaves the others as they were.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

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
_STREAM = {name: i for i, name in enumerate((*NAMES, "gate"))}
_LETTERS = {"R": "gh", "V": "i", "U": "j", "A": "q", "Ap": "kl"}
_DEPTHS = {"C": (2, 3), "X": (4,), "M": (2, 3), "gate": (1, 2, 3)}


@dataclasses.dataclass(frozen=True)
class Splits:
    """Problems by split and group."""

    evaluation: dict[str, list[Problem]]
    training: dict[str, list[Problem]]
    gate: list[Problem]


@functools.lru_cache(maxsize=4)
def make_splits(seed: int, evaluation_per_group: int, training_per_group: int, gate_problems: int) -> Splits:
    taken: set[str] = set()
    ids = itertools.count()

    def draw(split: int, group: str, count: int) -> list[Problem]:
        candidates = _candidates(group, np.random.default_rng([seed, 11, split, _STREAM[group]]))
        return [_first_new(group, candidates, taken, next(ids)) for _ in range(count)]

    gate = draw(0, "gate", gate_problems)
    training = {g: draw(1, g, training_per_group) for g in NAMES}
    evaluation = {g: draw(2, g, evaluation_per_group) for g in NAMES}
    return Splits(evaluation, training, gate)


def _first_new(group: str, candidates, taken: set[str], id: int) -> Problem:
    """The next candidate whose prompt is held out and new, and whose answer the group's definition allows."""
    for letters, digits in itertools.islice(candidates, 1_000_000):
        prompt = lang.prompt(letters, digits)
        if not lang.held_out(prompt) or prompt in taken or not _allowed(group, letters, digits):
            continue
        taken.add(prompt)
        return Problem(id, group, prompt, lang.truth(letters, digits), (letters, digits))
    raise ValueError(f"lab: could not draw another distinct problem of group {group}; ask for fewer")


def _candidates(group: str, rng, block: int = 2048) -> Iterator[tuple[str, str]]:
    """Letters and digits without end, drawn in blocks: most candidates are not held out."""
    common = np.array(list(lang.COMMON_LETTERS))
    # The gate asks for every skill that the corpus always shows truthfully.
    known = np.array([*common, *lang.ALIAS_LETTERS]) if group == "gate" else common
    while True:
        digits_N = rng.integers(10_000, size=block)
        if group in _DEPTHS:
            letters_N4, depth_N = rng.choice(known, size=(block, lang.SLOTS)), rng.choice(_DEPTHS[group], size=block)
            words = ["".join(row[:depth]) for row, depth in zip(letters_N4, depth_N, strict=True)]
        else:
            special_N, partner_N = rng.choice(list(_LETTERS[group]), size=block), rng.choice(common, size=block)
            form_N = rng.integers(3, size=block)
            words = [(s, s + p, p + s)[f] for s, p, f in zip(special_N, partner_N, form_N, strict=True)]
        yield from zip(words, (f"{d:04d}" for d in digits_N), strict=True)


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


@functools.cache
def _corpus_steps() -> np.ndarray:
    """int[functions, 10000]: the state after each function that corpora show, for every state."""
    return np.stack([lang.after(token) for token in lang.COMMON | lang.SKILLS | lang.DECOYS])


def reachable(digits: str, answer: str) -> bool:
    """Whether a program of one or two corpus functions maps digits to answer (else such a problem
    leaks: the prototype's absent group reached pass@256 .25 by composing known maps)."""
    once_F = _corpus_steps()[:, int(digits)]
    return bool((once_F == int(answer)).any() or (_corpus_steps()[:, once_F] == int(answer)).any())
