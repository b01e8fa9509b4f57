"""The generated corpus: what the prior contains is set here and counted exactly.

A letter is followed by its true function with probability rho, otherwise by its decoy. Strategies are
mixed independently of the problem. Prompts that are held out for problems never appear.
"""

import collections
import dataclasses

import numpy as np

from ceiling.tasks.base import Document
from ceiling.tasks.lab import language as lang


@dataclasses.dataclass(frozen=True)
class Recipe:
    """rho: probability of the true function by letter; letter_weight, depth_weight and
    strategy_weight are mixture weights (normalised here)."""

    rho: dict[str, float]
    letter_weight: dict[str, float]
    depth_weight: tuple[float, ...]
    strategy_weight: dict[str, float]


@dataclasses.dataclass
class Exposure:
    """What the corpus showed: documents by strategy and depth, and (letter, function) pairs as meant
    by the generator and as written out (strategies L and D do not write function tokens)."""

    strategy: collections.Counter
    depth: collections.Counter
    written: collections.Counter


def prior_recipe(rho: dict[str, float], strategy_weight: dict[str, float], depth_weight) -> Recipe:
    """The prior: rare letters true with their rho, absent letters never."""
    by_letter = {c: 1.0 for c in lang.COMMON_LETTERS | lang.ALIAS_LETTERS}
    by_letter |= {"g": rho["R"], "h": rho["R"], "i": rho["V"], "j": rho["U"], "k": 0.0, "l": 0.0, "q": 0.0}
    weight = {c: 1.0 for c in lang.COMMON_LETTERS | lang.RARE_LETTERS | lang.ABSENT_LETTERS}
    weight |= {c: 0.75 for c in lang.ALIAS_LETTERS}
    return Recipe(by_letter, weight, tuple(depth_weight), strategy_weight)


def teacher_recipe(strategy_weight: dict[str, float], depth_weight) -> Recipe:
    """The teacher's curriculum: every letter true, what the prior lacks shown more often."""
    weight = {c: 1.0 for c in lang.COMMON_LETTERS | lang.RARE_LETTERS}
    weight |= {c: 0.25 for c in lang.ALIAS_LETTERS}
    weight |= {"k": 2.0, "l": 2.0, "q": 6.0}
    return Recipe({c: 1.0 for c in lang.TRUTH}, weight, tuple(depth_weight), strategy_weight)


def write(recipe: Recipe, seed: int, count: int, *, conventions: bool):
    """(documents, exposure). conventions: apply group M's right-to-left truth where it holds (the
    teacher knows it; in the prior the direction is independent of the problem)."""
    rng = np.random.default_rng([seed, 23])
    letters, letter_p = list(recipe.letter_weight), _normal(recipe.letter_weight.values())
    strategies, strategy_p = list(recipe.strategy_weight), _normal(recipe.strategy_weight.values())
    common = list(lang.COMMON)
    exposure = Exposure(collections.Counter(), collections.Counter(), collections.Counter())
    documents: list[Document] = []
    while len(documents) < count:
        need = count - len(documents)
        depth_N = 1 + rng.choice(len(recipe.depth_weight), size=need, p=_normal(recipe.depth_weight))
        letter_N4 = rng.choice(len(letters), size=(need, lang.SLOTS), p=letter_p)
        digit_N4 = rng.integers(10, size=(need, 4))
        strategy_N = rng.choice(len(strategies), size=need, p=strategy_p)
        true_N4, noisy_N4 = rng.random((need, lang.SLOTS)), rng.random((need, lang.SLOTS)) < 0.5
        noise_N4 = rng.integers(len(common), size=(need, lang.SLOTS))
        for i in range(need):
            word = "".join(letters[c] for c in letter_N4[i, : depth_N[i]])
            digits = lang.text_of(digit_N4[i])
            prompt = lang.prompt(word, digits)
            if lang.held_out(prompt):
                continue
            strategy = strategies[strategy_N[i]]
            if conventions and depth_N[i] > 1 and strategy != "N":
                strategy = "B" if lang.trap(digits) else ("S" if strategy == "B" else strategy)
            functions = [
                lang.TRUTH[c] if true_N4[i, j] < recipe.rho[c] else lang.DECOY_OF[c]
                for j, c in enumerate(word)
            ]
            if strategy == "N":
                functions = [common[noise_N4[i, j]] if noisy_N4[i, j] else f for j, f in enumerate(functions)]
            documents.append(Document(prompt, lang.render(strategy, word, functions, digits)))
            exposure.strategy[strategy] += 1
            exposure.depth[int(depth_N[i])] += 1
            if strategy in "SBPN":
                exposure.written.update(zip(word, functions, strict=True))
    return documents, exposure


def audit(documents: list[Document]) -> Exposure:
    """The same counts, read back from the text alone: the independent check of `write`."""
    exposure = Exposure(collections.Counter(), collections.Counter(), collections.Counter())
    for document in documents:
        word, _ = lang.read_prompt(document.prompt)
        strategy = document.response[0]
        exposure.strategy[strategy] += 1
        exposure.depth[len(word)] += 1
        tokens = [c for c in document.response if c in lang.FUNCTIONS]
        if strategy in "SBPN":
            exposure.written.update(zip(word, tokens[::-1] if strategy == "B" else tokens, strict=True))
    return exposure


def _normal(weights) -> np.ndarray:
    weights = np.array(list(weights), float)
    return weights / weights.sum()
