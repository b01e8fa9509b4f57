"""Data order: one integer of state, every item once per epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceiling.data.order import indices, permute

checked = settings(max_examples=25, deadline=None)
POWERS = [2**b + d for b in range(1, 13) for d in (-1, 0, 1)]
SIZES = sorted({1, 2, 3, 5, 7, 11, 13, 97, 1009, *POWERS})


@pytest.mark.parametrize("size", SIZES)
def test_permute_is_a_permutation(size):
    for key in ("a", "b", "17/3"):
        np.testing.assert_array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@checked
@given(size=st.integers(1, 3000), key=st.text(max_size=8))
def test_permute_is_a_permutation_for_any_size_and_key(size, key):
    image = permute(np.arange(size), size, key)
    assert image.dtype == np.int64
    np.testing.assert_array_equal(np.sort(image), np.arange(size))


@checked
@given(seed=st.integers(0, 2**40), size=st.integers(1, 200), epoch=st.integers(0, 5))
def test_each_epoch_visits_each_item_once(seed, size, epoch):
    np.testing.assert_array_equal(np.sort(indices(seed, epoch * size, size, size)), np.arange(size))


@checked
@given(
    seed=st.integers(0, 99), size=st.integers(1, 50), start=st.integers(0, 200),
    cuts=st.lists(st.integers(0, 40), max_size=6),
)  # fmt: skip
def test_the_state_is_one_integer(seed, size, start, cuts):
    """A stream resumed at any position, in batches of any size, is the same stream."""
    whole, position, pieces = indices(seed, start, sum(cuts), size), start, []
    for count in cuts:
        pieces.append(indices(seed, position, count, size))
        position += count
    np.testing.assert_array_equal(whole, np.concatenate([np.empty(0, np.int64), *pieces]))
    np.testing.assert_array_equal(whole, indices(seed, 0, start + sum(cuts), size)[start:])


def test_seeds_and_epochs_differ_and_are_shuffled():
    size = 257
    epochs = [indices(seed, e * size, size, size) for seed in (0, 1) for e in (0, 1)]
    for i, a in enumerate(epochs):
        assert np.mean(a == np.arange(size)) < 0.05, "not the identity"
        assert abs(np.corrcoef(a, np.arange(size))[0, 1]) < 0.25
        for b in epochs[i + 1 :]:
            assert np.mean(a == b) < 0.05


@pytest.mark.parametrize("size", [5, 16])
def test_every_item_can_come_first(size):
    first = np.array([indices(seed, 0, 1, size)[0] for seed in range(80 * size)])
    counts = np.bincount(first, minlength=size)
    assert np.sum((counts - 80) ** 2 / 80) < size - 1 + 5 * np.sqrt(2 * (size - 1))


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="empty"):
        indices(0, 0, 1, 0)
