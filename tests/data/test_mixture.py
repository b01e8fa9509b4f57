"""Pools in the proportions of a mix."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceiling.data.mixture import apportion, pool

GROUPS = {"a": [f"a{i}" for i in range(30)], "b": [f"b{i}" for i in range(10)], "c": []}


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(max_size=2), st.floats(0, 1e6), min_size=1, max_size=6), st.integers(0, 5000))
def test_counts_sum_to_the_size_and_are_within_one_of_the_share(mix, size):
    total = sum(mix.values())
    if not total > 0:
        return
    counts = apportion(mix, size)
    assert sum(counts.values()) == size and all(mix[name] > 0 for name in counts)
    assert all(abs(count - size * mix[name] / total) < 1 + 1e-6 for name, count in counts.items())
    assert counts == apportion(dict(reversed(mix.items())), size)


def test_pools():
    assert pool(GROUPS, {"a": 0.5, "b": 0.5}, 8) == [*GROUPS["a"][:4], *GROUPS["b"][:4]]
    assert len(pool(GROUPS, {"a": 0.5, "b": 0.5}, 1000)) == 20, "the scarcest group decides, not the size"
    assert pool(GROUPS, {"a": 0.3, "b": 0.1}, 1000) == [*GROUPS["a"], *GROUPS["b"]]
    assert pool(GROUPS, {"a": 2.0, "b": 0.0, "z": 0.0}, 3) == GROUPS["a"][:3]
    assert pool(GROUPS, {"all": 1.0}, 1000) == pool(GROUPS, {}, 1000) == [*GROUPS["a"], *GROUPS["b"]]
    assert len(pool(GROUPS, {"all": 1.0}, 8)) == 8
    assert pool({"all": [1, 2, 3]}, {"all": 1.0}, 2) == [1, 2]
    for name in ("z", "c"):
        with pytest.raises(ValueError, match=f"no training problems in a group '{name}'; known groups: a b c"):
            pool(GROUPS, {"a": 0.5, name: 0.5}, 8)
