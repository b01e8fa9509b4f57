"""The generated corpus: transcripts of agents, each in a random world of its own, so that no fact can be memorised.

A relation has its true alias with probability rho, drawn once per document, otherwise its decoy. Strategies are mixed
independently of the question. A share of transcripts begins with a plan (the aliases that it will use, or "?" in place
of them); a share begins after a wrong call that stands in the prompt, and recovers from it.
"""

import collections
import dataclasses

import numpy as np

from ceiling.tasks.base import Document
from ceiling.tasks.search import language as lang
from ceiling.tasks.search.world import World, held_out, wrong_call

STARTS = tuple(entity for entity in lang.ENTITIES if not held_out(entity))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """rho: probability of the true alias by relation; the weights of a mixture are normalised here. plans,
    empty_plans, recoveries: shares of documents. joint: share of the pairs of keywords with a document."""

    rho: dict[str, float]
    relation_weight: dict[str, float]
    depth_weight: dict[str, float]
    strategy_weight: dict[str, float]
    plans: float
    empty_plans: float
    recoveries: float
    joint: float


@dataclasses.dataclass
class Exposure:
    """What the corpus showed: documents by strategy, depth and opening ("plan", "empty plan", "recovery"), and
    (relation, alias) pairs, one per hop."""

    strategy: collections.Counter
    depth: collections.Counter
    opening: collections.Counter
    alias: collections.Counter


def write(recipe: Recipe, seed: int, count: int) -> tuple[list[Document], Exposure]:
    rng = np.random.default_rng([seed, 41])
    relations, strategies = list(recipe.relation_weight), list(recipe.strategy_weight)
    depths = [int(depth) for depth in recipe.depth_weight]
    depth_N = rng.choice(depths, size=count, p=_normal(recipe.depth_weight))
    path_N3 = rng.choice(relations, size=(count, max(lang.DEPTHS)), p=_normal(recipe.relation_weight))
    strategy_N = rng.choice(strategies, size=count, p=_normal(recipe.strategy_weight))
    start_N, opening_N, recovers_N = rng.integers(len(STARTS), size=count), rng.random(count), rng.random(count)
    true_NR, wrong_N = rng.random((count, len(relations))), rng.integers(len(lang.KEYWORDS) - 1, size=count)
    step_NF = rng.integers(1, len(lang.ENTITIES), size=(count, _FACTS))
    documents, exposure = [], Exposure(*(collections.Counter() for _ in range(4)))
    for i in range(count):
        start, path = STARTS[start_N[i]], "".join(path_N3[i, : depth_N[i]])
        alias = {
            c: lang.TRUTH[c] if u < recipe.rho[c] else lang.DECOY_OF[c]
            for c, u in zip(relations, true_NR[i], strict=True)
        }  # fmt: skip
        keys = "".join(alias[c] for c in path)
        world, prompt = World(_Drawn(step_NF[i]), recipe.joint), lang.question(start, path)
        if recovers_N[i] < recipe.recoveries:
            prompt += wrong_call(start, lang.KEYWORDS.replace(keys[0], "")[wrong_N[i]], world.ask)
            exposure.opening["recovery"] += 1
        plan = ""
        if opening_N[i] < recipe.plans + recipe.empty_plans:
            planned = opening_N[i] < recipe.plans
            plan = (keys if planned else NO_PLAN) + "#"
            exposure.opening["plan" if planned else "empty plan"] += 1
        strategy = lang.feasible(str(strategy_N[i]), len(path))
        documents.append(Document(prompt, lang.episode(strategy, start, keys, world.ask, plan)))
        exposure.strategy[strategy] += 1
        exposure.depth[len(path)] += 1
        exposure.alias.update(zip(path, keys, strict=True))
    return documents, exposure


NO_PLAN = "?"
_FACTS = max(lang.DEPTHS) + 2  # that one document can ask for: a wrong call too, and another where joint ones lack


class _Drawn(dict):
    """Objects of a world that is drawn as it is asked about. steps: from an entity to another, by their numbers."""

    def __init__(self, steps):
        self._steps = iter(steps)

    def __missing__(self, pair):
        self[pair] = lang.ENTITIES[(int(pair[0]) + next(self._steps)) % len(lang.ENTITIES)]
        return self[pair]


def _normal(weights: dict[str, float]) -> np.ndarray:
    values = np.array(list(weights.values()), float)
    return values / values.sum()
