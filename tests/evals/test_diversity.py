"""Diversity of labels: limits (EN-1, EN-7 in kind), rarefaction by enumeration."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceiling.evals.diversity import distinct, distinct_at, label_counts, label_entropy, row_counts

small_counts = st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(lambda row: 0 < sum(row) <= 9)


def test_label_counts_by_hand():
    count_PX = label_counts([0, 0, 2, 2, 2, 1], [1, 1, 0, 2, -1, -1], problems=3, labels=3)
    assert count_PX.tolist() == [[0, 2, 0], [0, 0, 0], [1, 0, 1]]
    assert count_PX.dtype == np.int64


def test_EN7_identical_samples_have_no_entropy_and_uniform_ones_log_m():
    m = 6
    count_PX = label_counts([0] * 12 + [1] * 12, [3] * 12 + list(range(m)) * 2, problems=2, labels=m)
    np.testing.assert_allclose(label_entropy(count_PX), [0, math.log(m)], atol=1e-15)
    assert not np.signbit(label_entropy(count_PX)[0])
    assert label_entropy(count_PX, miller_madow=True)[0] == 0
    assert distinct(count_PX).tolist() == [1, m]
    assert distinct_at(count_PX, 5)[0] == 1
    assert distinct_at(count_PX, 12)[1] == pytest.approx(m)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(any))
def test_EN1_entropy_lies_between_zero_and_log_of_the_labels_seen(row):
    count_PX = np.array([row])
    entropy = label_entropy(count_PX)[0]
    assert -1e-12 <= entropy <= math.log(distinct(count_PX)[0]) + 1e-12
    q = np.array([c for c in row if c]) / sum(row)
    assert entropy == pytest.approx(-np.sum(q * np.log(q)), abs=1e-12)
    np.testing.assert_allclose(label_entropy(count_PX[:, ::-1]), entropy)


def test_miller_madow_removes_most_of_the_bias_at_small_n():
    rng = np.random.default_rng(0)
    count_PX = rng.multinomial(40, np.full(8, 1 / 8), size=4000)
    plain = label_entropy(count_PX).mean() - math.log(8)
    corrected = label_entropy(count_PX, miller_madow=True).mean() - math.log(8)
    assert plain < -0.07
    assert abs(corrected) < 0.01


@settings(max_examples=60, deadline=None)
@given(small_counts, st.integers(1, 9))
def test_rarefaction_against_enumeration(row, m):
    labels = [x for x, count in enumerate(row) for _ in range(count)]
    value = distinct_at(np.array([row]), m)[0]
    if m > len(labels):
        assert math.isnan(value)
        return
    subsets = list(itertools.combinations(range(len(labels)), m))
    expected = np.mean([len({labels[i] for i in subset}) for subset in subsets])
    assert value == pytest.approx(expected, rel=1e-12)


def test_rarefaction_takes_the_effect_of_more_samples_away():
    """Same model, 20 against 200 correct samples: distinct grows, distinct at m = 10 does not."""
    rng = np.random.default_rng(2)
    q = np.array([0.5, 0.25, 0.1, 0.05, 0.05, 0.03, 0.02])
    few, many = rng.multinomial(20, q, size=3000), rng.multinomial(200, q, size=3000)
    assert distinct(many).mean() - distinct(few).mean() > 1
    assert distinct_at(many, 10).mean() == pytest.approx(distinct_at(few, 10).mean(), abs=0.05)


def test_problems_without_labels_are_undefined_not_zero():
    count_PX = np.array([[0, 0], [1, 2]])
    assert np.isnan(label_entropy(count_PX)).tolist() == [True, False]
    assert np.isnan(distinct_at(count_PX, 3)).tolist() == [True, False]
    assert distinct(count_PX).tolist() == [0, 2]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_row_counts_agree_with_label_counts_whatever_the_labels_are_called(seed):
    rng = np.random.default_rng(seed)
    label_Pn, keep_Pn = rng.integers(-1, 5, size=(6, 11)), rng.random((6, 11)) < 0.7
    rows_Pn = np.repeat(np.arange(6)[:, None], 11, axis=1)
    dense_PX = label_counts(rows_Pn, np.where(keep_Pn, label_Pn, -1), 6, 5)
    names = rng.choice(10**9, size=5, replace=False)
    renamed_Pn = np.where(label_Pn >= 0, names[label_Pn], -1)
    compact_PX = row_counts(renamed_Pn, keep_Pn)
    assert compact_PX.shape[1] <= 5
    for dense, compact in zip(dense_PX, compact_PX, strict=True):
        assert sorted(dense[dense > 0]) == sorted(compact[compact > 0])
    np.testing.assert_allclose(label_entropy(compact_PX), label_entropy(dense_PX), rtol=1e-12)
    assert row_counts(np.full((2, 3), -1)).sum() == 0


def test_bad_labels_are_refused():
    with pytest.raises(ValueError, match="problem index outside"):
        label_counts([2], [0], 2, 1)
    with pytest.raises(ValueError, match="label 3 outside"):
        label_counts([0], [3], 1, 3)
    with pytest.raises(ValueError, match="one of each"):
        label_counts([0, 0], [1], 1, 3)
    with pytest.raises(ValueError, match="integers"):
        label_entropy(np.array([[0.5, 0.5]]))
    with pytest.raises(ValueError, match="m must be"):
        distinct_at(np.array([[1]]), 0)
    with pytest.raises(ValueError, match=r"\[P, n\]"):
        row_counts([0, 1])
    with pytest.raises(ValueError, match="shape of the labels"):
        row_counts([[0, 1]], [[True]])
