"""pass@k and its kin: invariants PK-1 to PK-9."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceiling.evals.passk import cover_at, majority_at, pass_at_k, sampling_gap, solvable_sets

checked = settings(max_examples=60, deadline=None)


@st.composite
def counts(draw, n_max=200):
    n = draw(st.integers(1, n_max))
    return n, draw(st.integers(0, n))


@checked
@given(counts(40))  # beyond, 1 - 1 / C(n, k) rounds to 1 and nothing is strict
def test_PK1_monotone_in_k_and_in_c(case):
    n, c = case
    curve = pass_at_k(n, c, np.arange(1, n + 1))
    assert np.all(np.diff(curve) >= -1e-15)
    assert np.all((curve >= 0) & (curve <= 1))
    if 0 < c < n:
        assert np.all(np.diff(curve[: n - c + 1]) > 0), (
            "strictly rising until every subset holds a correct sample"
        )
        assert np.all(pass_at_k(n, c + 1, np.arange(1, n - c + 1)) > curve[: n - c])


@checked
@given(counts(10_000))
def test_PK2_pass_at_1_is_the_success_rate(case):
    n, c = case
    assert pass_at_k(n, c, 1) == pytest.approx(c / n, rel=1e-12, abs=0)


@checked
@given(counts(40), st.integers(1, 40))
def test_PK3_no_success_is_zero_and_too_few_failures_is_one(case, k):
    n, c = case
    k = min(k, n)
    assert pass_at_k(n, 0, k) == 0 and not np.signbit(pass_at_k(n, 0, k))
    if c > n - k:
        assert pass_at_k(n, c, k) == 1
    elif c > 0:
        assert 0 < pass_at_k(n, c, k) < 1


def test_PK4_exact_binomials():
    for n in range(1, 17):
        c, k = np.meshgrid(np.arange(n + 1), np.arange(1, n + 1), indexing="ij")
        exact = [
            [1 - Fraction(math.comb(n - a, b), math.comb(n, b)) for b in range(1, n + 1)]
            for a in range(n + 1)
        ]
        np.testing.assert_allclose(pass_at_k(n, c, k), np.array(exact, dtype=float), rtol=1e-14, atol=0)


@checked
@given(counts(600), st.integers(1, 600))
def test_PK4_exact_binomials_at_larger_n(case, k):
    n, c = case
    k = min(k, n)
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert pass_at_k(n, c, k) == pytest.approx(float(exact), rel=1e-12, abs=0)


def test_PK5_unbiased_under_bernoulli_and_the_plug_in_is_not():
    rng = np.random.default_rng(3)
    n, k, p = 16, 6, 0.07
    c = rng.binomial(n, p, size=200_000)
    truth = 1 - (1 - p) ** k
    value = pass_at_k(n, c, k)
    error = value.std() / math.sqrt(len(c))
    assert abs(value.mean() - truth) < 4 * error
    plug_in = 1 - (1 - c / n) ** k
    assert plug_in.mean() < truth - 8 * error, "if the plug-in passes too, this test has lost its power"


@checked
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=40))
def test_PK6_the_four_sets_partition_the_problems(pairs):
    base, arm = np.array(pairs).T
    sets = solvable_sets(base, arm)
    assert sets.both + sets.base_only + sets.tuned_only + sets.neither == len(pairs)
    assert sets.both + sets.base_only == np.sum(base > 0)
    assert sets.both + sets.tuned_only == np.sum(arm > 0)
    back = solvable_sets(arm, base)
    assert (back.base_only, back.tuned_only) == (sets.tuned_only, sets.base_only)


def test_PK7_cover_integral_reproduces_pass_at_k():
    rng = np.random.default_rng(0)
    n = 10_000
    c = rng.binomial(n, rng.beta(0.4, 1.2, size=200))
    edges = np.linspace(0, 1, 4001)
    mid = (edges[1:] + edges[:-1]) / 2
    cover = cover_at(n, c, mid)
    assert cover.shape == mid.shape
    for k in (1, 2, 8, 64):
        weight = (1 - edges[:-1]) ** k - (1 - edges[1:]) ** k  # integral of k (1 - tau)^(k-1) over each bin
        assert np.sum(weight * cover) == pytest.approx(np.mean(pass_at_k(n, c, k)), abs=1e-3)


@checked
@given(st.integers(0, 2**32 - 1))
def test_PK8_permuting_samples_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    correct = rng.random((5, 12)) < 0.3
    shuffled = rng.permuted(correct, axis=1)
    k = np.arange(1, 13)[:, None]
    np.testing.assert_array_equal(
        pass_at_k(12, correct.sum(axis=1), k), pass_at_k(12, shuffled.sum(axis=1), k)
    )
    # A mean over all subsets is a mean over permutations of "any of the first k".
    any_of_first = np.mean([rng.permuted(correct, axis=1)[:, :4].any(axis=1) for _ in range(3000)], axis=0)
    np.testing.assert_allclose(any_of_first, pass_at_k(12, correct.sum(axis=1), 4), atol=0.05)


def test_PK9_sampling_gap_from_counts():
    base, arm = np.array([0, 1, 2, 4]), np.array([0, 4, 4, 2])
    # pass@2 of the base at n = 4: 0, 1/2, 5/6, 1. pass@1 of the arm at n = 4: 0, 1, 1, 1/2.
    assert sampling_gap(4, base, 4, arm, 2) == pytest.approx((0 + 1 / 2 + 5 / 6 + 1) / 4 - 2.5 / 4)


def vote(answers, right):
    """Chance that the vote of these samples is right, by counting them one by one."""
    counts = {a: answers.count(a) for a in answers if a >= 0}
    leading = [a for a, count in counts.items() if count == max(counts.values())]
    return sum(a == right for a in leading) / len(leading) if leading else 0.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 2), min_size=1, max_size=12), st.integers(0, 2), st.integers(1, 12))
def test_majority_votes_by_counting(answers, right, k):
    if k > len(answers):
        with pytest.raises(ValueError, match="lie in 1 .. n"):
            majority_at([answers], [[a == right for a in answers]], k)
        return
    votes = [vote(answers[i : i + k], right) for i in range(0, len(answers) - k + 1, k)]
    assert majority_at([answers], [[a == right for a in answers]], k)[0] == pytest.approx(np.mean(votes))
    assert majority_at([[-1, -1]], [[True, True]], 2) == 0, "right, it may be, but it said nothing to count"
    assert majority_at([[-1, 0, -1]], [[False, True, False]], 3) == 1, "silence is no majority"


def test_ten_thousand_samples_neither_overflow_nor_lose_precision():
    n = 10_000
    with np.errstate(all="raise"):
        values = pass_at_k(n, np.arange(n + 1)[:, None], np.array([1, 100, 5000, n]))
    assert np.all(np.isfinite(values))
    exact = 1 - Fraction(math.comb(n - 3, 5000), math.comb(n, 5000))
    assert values[3, 2] == pytest.approx(float(exact), rel=1e-13)
    assert values[1, 1] == pytest.approx(0.01, rel=1e-13)


def test_arrays_broadcast_and_mixed_n_agree_with_scalars():
    n, c, k = np.array([[4], [9], [30]]), np.array([0, 1, 4]), np.array([[1], [2], [4]])
    values = pass_at_k(n, c, k)
    assert values.shape == (3, 3) and values.dtype == np.float64
    for i in range(3):
        for j in range(3):
            assert values[i, j] == pass_at_k(int(n[i, 0]), int(c[j]), int(k[i, 0]))
    assert pass_at_k(np.zeros(0, int), 0, 1).shape == (0,)


@pytest.mark.parametrize(
    ("n", "c", "k", "message"),
    [
        (4, 1, 5, "k must not exceed n"),
        (4, 1, 0, "k must be at least 1"),
        (4, 5, 1, "c must not exceed n"),
        (4, -1, 1, "c must not be negative"),
        (0, 0, 1, "n must be at least 1"),
        (4, 0.5, 1, "whole numbers"),
        (4, float("nan"), 1, "whole numbers"),
        (4, True, 1, "must hold integers"),
        (4, [1, 2], [1, 5], "k must not exceed n"),
    ],
)
def test_impossible_counts_are_refused(n, c, k, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k(n, c, k)


def test_cover_at_edges_and_axes():
    c = np.array([[0, 3, 10], [10, 10, 10]])
    np.testing.assert_allclose(cover_at(10, c, 3 * 0.1), [2 / 3, 1])  # 3 * 0.1 > 0.3 in floating point
    np.testing.assert_allclose(cover_at(10, c, [0.0, 0.31, 1.0]), [[1, 1 / 3, 1 / 3], [1, 1, 1]])
    for tau in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="tau"):
            cover_at(10, c, tau)
    with pytest.raises(ValueError, match="at least one problem"):
        cover_at(10, np.zeros((3, 0), int), 0.5)


def test_solvable_set_ratios_by_hand_and_where_undefined():
    sets = solvable_sets([1, 1, 1, 1, 0, 0], [2, 2, 2, 0, 5, 0])
    assert (sets.both, sets.base_only, sets.tuned_only, sets.neither) == (3, 1, 1, 1)
    assert (sets.srr, sets.ndr, sets.nscr) == (3 / 4, 1 / 4, 0.0)
    assert sets.sds == pytest.approx(2 / (4 / 3 + 4))
    assert (sets.expansion, sets.shrinkage) == (1 / 2, 1 / 4)
    nothing = solvable_sets([0, 0], [0, 0])
    assert (nothing.srr, nothing.ndr, nothing.sds, nothing.nscr) == (None, None, None, None)
    assert (nothing.expansion, nothing.shrinkage) == (0, None)
    assert solvable_sets([0, 1], [0, 0]).ndr is None and solvable_sets([0, 1, 1], [1, 1, 0]).shrinkage == 1 / 2
    assert solvable_sets([1, 0, 0], [0, 1, 1]).shrinkage == 1
    assert solvable_sets([0], [1]).srr is None
    with pytest.raises(ValueError, match="same problems"):
        solvable_sets([1, 2], [1])
