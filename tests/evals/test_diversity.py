"""Diversity of labels and of tokens: limits (EN-1, EN-5 to EN-7), enumeration, values by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceiling.evals.diversity import (
    distinct,
    distinct_at,
    distinct_n,
    distinct_of_sets,
    distinct_within,
    label_counts,
    label_entropy,
    row_counts,
    self_bleu,
    vendi,
)

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


def test_labels_within_a_budget_are_those_of_the_samples_that_fit():
    label_Pn, length_Pn = np.array([[0, 1, 1, 2], [3, 3, -1, 4], [0, 1, 2, 3]]), np.array([[2, 3, 2, 5]] * 3)
    length_Pn[2] = 2
    found = distinct_within(label_Pn, length_Pn, [12, 7, 9])
    np.testing.assert_array_equal(found, [3, 1, np.nan])  # the second: three samples, one of them without a label
    assert distinct_within(label_Pn, length_Pn, [11, 7, 8])[[0, 2]].tolist() == [2, 4]
    with pytest.raises(ValueError, match=r"budgets \(1,\)"):
        distinct_within(label_Pn, length_Pn, [4])


def flat(samples):
    return np.concatenate(samples), [len(sample) for sample in samples]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=5),
       st.integers(1, 3), st.integers(3, 12))  # fmt: skip
def test_EN6_distinct_n_by_enumeration(samples, n, budget):
    grams, left = [], budget
    for sample in samples:
        cut, left = sample[:left], left - min(left, len(sample))
        grams += [tuple(cut[i : i + n]) for i in range(len(cut) - n + 1)]
    value = distinct_n(*flat(samples), n, budget=budget)
    if left or not grams:
        assert math.isnan(value)
    else:
        assert value == len(set(grams)) / len(grams) and 0 < value <= 1


def bleu(candidate, references, order=4):
    """By definition, sample against sample, with every reference looked at."""
    grams = lambda x, o: [tuple(x[i : i + o]) for i in range(len(x) - o + 1)]  # noqa: E731
    total = 0.0
    orders = range(1, min(order, len(candidate)) + 1)
    for o in orders:
        own = grams(candidate, o)
        hits = sum(min(own.count(g), max(grams(r, o).count(g) for r in references)) for g in set(own))
        if not hits:
            return 0.0
        total += math.log(hits / len(own)) / len(orders)
    c, r = len(candidate), sorted((len(r) for r in references), key=lambda r: (abs(r - len(candidate)), r))[0]
    return min(1.0, math.exp(1 - r / c)) * math.exp(total)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=2, max_size=6))
def test_EN7_self_bleu_is_the_mean_bleu_against_the_others(samples):
    expected = [bleu(s, samples[:i] + samples[i + 1 :]) for i, s in enumerate(samples)]
    assert self_bleu(samples) == pytest.approx(np.mean(expected), abs=1e-12)


def test_EN7_self_bleu_by_hand():
    assert self_bleu([[1, 2, 3, 4, 5]] * 3) == self_bleu([[7]] * 2) == 1
    assert self_bleu([[1, 2, 3, 4], [5, 6, 7, 8]]) == 0
    # The first has 4 of 5 tokens, 3 of 4 pairs, 2 of 3 triples and 1 of 2 fours; the second all, but is the shorter.
    first = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
    assert self_bleu([[1, 2, 3, 4, 5], [1, 2, 3, 4]]) == pytest.approx((first + math.exp(1 - 5 / 4)) / 2)
    # The classic: "the" seven times is clipped to the two of the reference, which is the shorter of the two.
    the = [["the"] * 7, "the cat is on the mat".split()]
    assert self_bleu(the, order=1) == pytest.approx((2 / 7 + math.exp(1 - 7 / 6) * 2 / 6) / 2)
    assert math.isnan(self_bleu([[1, 2]])) and self_bleu([[1], [1], [2], [3]], cap=2) == 1
    with pytest.raises(ValueError, match="no tokens"):
        self_bleu([[1], []])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_EN5_vendi_counts_the_labels_that_it_is_told_are_alike(labels):
    alike = np.equal.outer(labels, labels).astype(float)
    entropy = label_entropy(row_counts([labels]))[0]
    assert vendi(alike) == pytest.approx(math.exp(entropy))


def test_EN5_vendi_limits_and_refusals():
    assert vendi(np.ones((5, 5))) == pytest.approx(1) and vendi(np.eye(5)) == pytest.approx(5)
    assert vendi([[1, 0.5], [0.5, 1]]) == pytest.approx(4 * 3 ** (-3 / 4))  # eigenvalues 3/4 and 1/4
    wrong = ([[1, 2], [2, 1]], "eigenvalue -1"), (np.eye(2) * 2, "must be 1"), (np.ones((2, 3)), "symmetric")
    for kernel, message in wrong:
        with pytest.raises(ValueError, match=message):
            vendi(kernel)


def test_distinct_of_sets_is_the_mean_over_all_choices_of_samples():
    rng = np.random.default_rng(5)
    label_PnC, keep_Pn = rng.integers(-1, 4, (3, 6, 3)), np.array([[1] * 6, [1, 0, 1, 1, 0, 1], [1, 1] + [0] * 4], bool)
    for m in (1, 2, 3):
        found_P = distinct_of_sets(label_PnC, keep_Pn, m)
        for p in range(3):
            kept = [set(labels[labels >= 0]) for labels in label_PnC[p, keep_Pn[p]]]
            shown = [len(set().union(*chosen)) for chosen in itertools.combinations(kept, m)]
            assert np.isnan(found_P[p]) if not shown else np.isclose(found_P[p], np.mean(shown))
