"""Exact shares: how many problems of each group make a pool in the proportions of a mix; and seeded draws."""

import numpy as np

from ceiling.config import ConfigError


def apportion(mix: dict[str, float], size: int) -> dict[str, int]:
    """Largest-remainder counts that sum to `size`: exact proportions, nothing lost to rounding. Names with a share
    of 0 are left out; the order of the keys means nothing."""
    total = sum(mix.values())
    exact = {name: size * mix[name] / total for name in sorted(mix) if mix[name] > 0}
    counts = {name: int(x) for name, x in exact.items()}
    for name in sorted(exact, key=lambda name: counts[name] - exact[name])[: size - sum(counts.values())]:
        counts[name] += 1
    return counts


def drawn(items: list, seed: int, count: int) -> list:
    """`count` items drawn with replacement, a function of the seed alone."""
    return [items[i] for i in np.random.default_rng([seed, 29]).integers(len(items), size=count)]


def pool(groups: dict[str, list], mix: dict[str, float], size: int) -> list:
    """Up to `size` items from `groups` (name -> items in their order), in the proportions of `mix`: as many as the
    scarcest group allows, because proportions count for more than the size. An empty mix, or one of nothing but "all"
    where no group has that name, takes every group by its share of the items. Raises ValueError for unknown groups."""
    if not mix or set(mix) == {"all"} and "all" not in groups:
        mix = {name: len(items) for name, items in groups.items()}
    for name in mix:
        if mix[name] > 0 and not groups.get(name):
            raise ValueError(f"mix: no training problems in a group {name!r}; known groups: {' '.join(sorted(groups))}")
    total = sum(mix.values())
    room = [int(len(groups[name]) * total / share + 1e-9) for name, share in mix.items() if share > 0]
    counts = apportion(mix, min([size, *room]))
    return [item for name, count in counts.items() for item in groups[name][:count]]


def in_order(config, key: str, names: tuple[str, ...]) -> dict[str, float]:
    """The table config[key] of a task's section in the order of `names`, 0 where one is left out: the order of its keys
    means nothing. Raises ConfigError for a name that is not among them."""
    if unknown := sorted(set(config[key]) - set(names)):
        raise ConfigError(f"config.task.{key}.{unknown[0]}: unknown name; known: {', '.join(names)}")
    return {name: config[key].get(name, 0.0) for name in names}
