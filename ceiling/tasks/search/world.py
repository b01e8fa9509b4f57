"""The world that problems live in, and their splits.

Entities are drawn from the held-out third of all 3-digit names, at which no corpus question starts. Every entity has
one object for every keyword; a `joint` share of the pairs of keywords has a document of its own. Evaluation, gate and
training start at different entities, so no two splits share a question, whatever is drawn. All draws depend on the
task's seed only.
"""

import dataclasses
import functools
import hashlib
import itertools

import numpy as np

from ceiling.config import ConfigError
from ceiling.tasks.base import Group, Problem
from ceiling.tasks.search import language as lang

GROUPS = (
    Group("C", "common", "two hops of common relations", "saturated at high k"),
    Group("R", "rare", "two hops, one of relation E", "alias seen with probability 0.05"),
    Group("V", "very rare", "two hops, one of relation F", "alias seen with probability 0.01"),
    Group("A", "absent", "two hops, one of relation G, whose alias no corpus text shows for it", "zero"),
    Group("X", "three hops", "three hops of common relations", "edge of composition"),
    Group("W", "recovery", "two hops of common relations after a forced wrong call", "recovery is rare"),
)  # fmt: skip
NAMES = tuple(g.name for g in GROUPS)
_SPECIAL = {"R": "E", "V": "F", "A": "G"}


def held_out(entity: str) -> bool:
    """One entity in three by hash: no corpus question starts at it, so the corpus does not depend on the problems."""
    return hashlib.blake2b(entity.encode(), digest_size=1).digest()[0] % 3 == 0


def held_out_pair(entity: str, keys: str, share: float) -> bool:
    """Whether the store lacks the joint document of two keywords, in all but a `share` of pairs by hash."""
    return int.from_bytes(hashlib.blake2b(f"{entity}{keys}".encode(), digest_size=4).digest()) >= share * 2**32


class World:
    """objects: by (entity, keyword). `ask` finds what the search engine would for a well-formed query."""

    def __init__(self, objects, joint: float):
        self.objects, self.joint = objects, joint

    def follow(self, entity: str, keys: str) -> str:
        for key in keys:
            entity = self.objects[entity, key]
        return entity

    def ask(self, query: str) -> str:
        entity, keys = lang.read_query(query)
        if len(keys) == 2 and held_out_pair(entity, keys, self.joint):
            keys = keys[0]
        return lang.fact(entity, keys, self.follow(entity, keys))


@dataclasses.dataclass(frozen=True)
class Splits:
    """Problems by split and group, and the documents of their world."""

    world: World
    documents: tuple[str, ...]
    evaluation: dict[str, list[Problem]]
    training: dict[str, list[Problem]]
    gate: list[Problem]


@functools.lru_cache(maxsize=4)
def make(seed: int, entities: int, joint: float, evaluation: int, training: int, gate: int) -> Splits:
    rng = np.random.default_rng([seed, 31])
    names = [e for e in lang.ENTITIES if held_out(e)]
    if entities > len(names):
        raise ConfigError(f"config.task.entities={entities}: there are {len(names)} names for them; lower it")
    names = [names[i] for i in rng.permutation(len(names))[:entities]]
    steps = rng.integers(1, entities, size=(entities, len(lang.KEYWORDS)))  # nothing leads to itself
    world = World({(entity, key): names[(i + steps[i, j]) % entities] for i, entity in enumerate(names)
                   for j, key in enumerate(lang.KEYWORDS)}, joint)  # fmt: skip
    cut = (entities // 3, entities // 3 + max(1, entities // 12))
    starts = {"evaluation": names[: cut[0]], "gate": names[cut[0] : cut[1]], "training": names[cut[1] :]}
    ids = itertools.count()

    def draw(split: str, group: str, count: int) -> list[Problem]:
        rng = np.random.default_rng([seed, 37, list(starts).index(split), NAMES.index(group)])
        candidates = [c for c in itertools.product(starts[split], _paths(group)) if _allowed(world, group, *c)]
        if count > len(candidates):
            raise ConfigError(
                f"config.task.{split}_{'problems' if split == 'gate' else 'per_group'}={count}: the world has "
                f"{len(candidates)} problems of group {group}; lower it or raise config.task.entities"
            )
        chosen = [candidates[i] for i in rng.permutation(len(candidates))[:count]]
        return [_problem(world, next(ids), group, *c, rng) for c in chosen]

    gate_problems = draw("gate", "C", gate)
    return Splits(
        world, tuple(_documents(world, names)),
        training={g: draw("training", g, training) for g in NAMES},
        evaluation={g: draw("evaluation", g, evaluation) for g in NAMES}, gate=gate_problems,
    )  # fmt: skip


def _documents(world: World, names: list[str]):
    for entity in names:
        yield from (world.ask(entity + key) for key in lang.KEYWORDS)
        joint = ("".join(pair) for pair in itertools.product(lang.KEYWORDS, repeat=2))
        yield from (world.ask(entity + keys) for keys in joint if not held_out_pair(entity, keys, world.joint))


def _paths(group: str) -> list[str]:
    if special := _SPECIAL.get(group):
        return [path for c in lang.COMMON for path in (special + c, c + special)]
    return ["".join(path) for path in itertools.product(lang.COMMON, repeat=3 if group == "X" else 2)]


def _allowed(world: World, group: str, start: str, path: str) -> bool:
    """The corpus's wrong alias must not lead to the answer."""
    decoyed = "".join(lang.DECOY_OF.get(c, lang.TRUTH[c]) for c in path)
    return group not in _SPECIAL or world.follow(start, decoyed) != world.follow(start, aliases(path))


def _problem(world: World, id: int, group: str, start: str, path: str, rng) -> Problem:
    keys = aliases(path)
    prompt, answer = lang.question(start, path), world.follow(start, keys)
    if group == "W":
        right = world.objects[start, keys[0]]
        wrong = [key for key in lang.KEYWORDS if world.objects[start, key] != right]
        prompt += wrong_call(start, str(rng.choice(wrong)), world.ask)
    return Problem(id, group, prompt, answer, (start, path))


def wrong_call(start: str, key: str, ask) -> str:
    """A call that was made for the agent, and what came of it: the end of a prompt that asks for a recovery."""
    return f"<{start}{key}>{lang.OPENING}{ask(start + key)}{lang.CLOSING}"


def aliases(path: str) -> str:
    return "".join(lang.TRUTH[c] for c in path)
