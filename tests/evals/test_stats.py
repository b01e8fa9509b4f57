"""Intervals and the crossing: coverage by simulation, limits, and planted truths."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from ceiling.evals.stats import bootstrap_crossing, clopper_pearson, crossed_interval, rate_upper


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.data())
def test_clopper_pearson_inverts_the_binomial_tails(n, data):
    c = data.draw(st.integers(0, n))
    lo, hi = clopper_pearson(c, n, 0.9)
    assert 0 <= lo <= c / n <= hi <= 1
    assert (lo == 0) == (c == 0) and (hi == 1) == (c == n)
    if c > 0:
        assert reference.binom.sf(c - 1, n, lo) == pytest.approx(0.05, rel=1e-6)
    if c < n:
        assert reference.binom.cdf(c, n, hi) == pytest.approx(0.05, rel=1e-6)
        assert rate_upper(c, n, 0.95) == pytest.approx(hi, rel=1e-9)


def test_zero_of_n_is_bounded_by_about_three_over_n():
    assert rate_upper(0, 1024) == pytest.approx(1 - 0.05 ** (1 / 1024), rel=1e-9)
    assert rate_upper(0, 1024) * 1024 == pytest.approx(3, abs=0.01)
    lo, hi = clopper_pearson(np.array([0, 5, 10]), 10)
    assert lo.shape == (3,) and lo[0] == 0 and hi[2] == 1


@pytest.mark.parametrize(("c", "n"), [(3, 2), (-1, 2), (0, 0)])
def test_impossible_rates_are_refused(c, n):
    with pytest.raises(ValueError, match="counts must satisfy"):
        clopper_pearson(c, n)
    with pytest.raises(ValueError, match="counts must satisfy"):
        rate_upper(c, n)


@pytest.mark.parametrize(
    ("seed_sd", "problem_sd", "rest_sd"),
    [(0.0, 1.0, 0.5), (0.158, 1.0, 0.5), (1.0, 1.0, 0.5), (1.0, 0.0, 0.5), (0.0, 0.0, 1.0), (0.3, 1.0, 3.0)],
)
def test_crossed_interval_covers_with_3_seeds_and_40_problems(seed_sd, problem_sd, rest_sd):
    rng = np.random.default_rng(17)
    runs, seeds, problems, truth = 1500, 3, 40, 0.2
    covered = naive = 0
    for _ in range(runs):
        d_SP = truth + seed_sd * rng.normal(size=(seeds, 1)) + problem_sd * rng.normal(size=(1, problems))
        d_SP = d_SP + rest_sd * rng.normal(size=(seeds, problems))
        interval = crossed_interval(d_SP)
        covered += interval.lo <= truth <= interval.hi
        naive += abs(d_SP.mean() - truth) <= 1.98 * d_SP.std(ddof=1) / math.sqrt(d_SP.size)
    assert covered / runs >= 0.90
    if (seed_sd, problem_sd) in {(1.0, 1.0), (0.0, 1.0)}:
        assert naive / runs < 0.80, (
            "treating cells as independent must undercover, or the simulation is too easy"
        )
    if (seed_sd, problem_sd) == (0.0, 1.0):
        assert covered / runs <= 0.985, "not so wide as to be useless"


def test_crossed_interval_matches_the_expected_mean_squares():
    rng = np.random.default_rng(1)
    v_seed, v_problem, v_rest, seeds, problems = 2.0, 2.0, 4.0, 6, 8
    truth = v_seed / seeds + v_problem / problems + v_rest / (seeds * problems)
    found = []
    for _ in range(1500):
        d_SP = math.sqrt(v_seed) * rng.normal(size=(seeds, 1)) + math.sqrt(v_problem) * rng.normal(
            size=problems
        )
        d_SP = d_SP + math.sqrt(v_rest) * rng.normal(size=(seeds, problems))
        found.append(crossed_interval(d_SP).se ** 2)
    assert np.mean(found) == pytest.approx(truth, rel=0.06)


def test_crossed_interval_reduces_to_a_t_interval_when_only_one_factor_varies():
    by_problem = np.random.default_rng(0).normal(size=(1, 25))
    same_for_all_seeds = crossed_interval(np.repeat(by_problem, 3, axis=0))
    one_seed = crossed_interval(by_problem)
    expected = reference.t.interval(0.95, 24, by_problem.mean(), reference.sem(by_problem[0]))
    for interval in (same_for_all_seeds, one_seed):
        assert (interval.lo, interval.hi) == pytest.approx(expected)
    assert same_for_all_seeds.over_seeds and not one_seed.over_seeds and one_seed.over_problems
    by_seed = crossed_interval(by_problem[:, :4].T)
    assert by_seed.over_seeds and not by_seed.over_problems and by_seed.df == 3


def test_seed_luck_with_three_seeds_has_two_degrees_of_freedom():
    d_SP = np.repeat([[0.1], [0.2], [0.6]], 500, axis=1)
    interval = crossed_interval(d_SP)
    assert interval.df == pytest.approx(2)
    expected = reference.t.interval(0.95, 2, 0.3, reference.sem([0.1, 0.2, 0.6]))
    assert (interval.lo, interval.hi) == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 30), st.floats(-1, 1))
def test_equal_differences_give_zero_width(seeds, problems, value):
    interval = crossed_interval(np.full((seeds, problems), value))
    if seeds * problems == 1:
        assert math.isnan(interval.lo) and not interval.over_problems
    else:
        assert interval.lo == interval.mean == interval.hi and interval.mean == pytest.approx(value)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-3, 3), st.floats(0.001, 50))
def test_crossed_interval_is_equivariant_and_ignores_order(seed, shift, scale):
    rng = np.random.default_rng(seed)
    d_SP = rng.normal(size=(3, 8))
    one = crossed_interval(d_SP)
    other = crossed_interval(shift + scale * d_SP[rng.permutation(3)][:, rng.permutation(8)])
    assert (other.lo, other.hi) == pytest.approx((shift + scale * one.lo, shift + scale * one.hi), abs=1e-9)
    assert crossed_interval(d_SP, 0.99).hi > one.hi > crossed_interval(d_SP, 0.8).hi
    flipped = crossed_interval(-d_SP)
    assert (flipped.lo, flipped.hi) == pytest.approx((-one.hi, -one.lo))


@pytest.mark.parametrize(
    ("values", "level", "message"),
    [
        ([1.0, 2.0], 0.95, "seeds, problems"),
        (np.zeros((3, 0)), 0.95, "non-empty"),
        ([[1.0, float("nan")]], 0.95, "finite"),
        ([[1.0, 2.0]], 1.0, "level"),
    ],
)
def test_crossed_interval_refuses(values, level, message):
    with pytest.raises(ValueError, match=message):
        crossed_interval(values, level)


KS = [2**i for i in range(9)]


def _planted(k_cross, noise=0.02, seeds=3, problems=60):
    """Curves whose difference is linear in log k and vanishes at k_cross, with noise per problem."""
    rng = np.random.default_rng(5)
    base_SPK = np.repeat(np.full((seeds, problems, 1), 0.5), len(KS), axis=2)
    slope = 0.05 * (math.log(k_cross) - np.log(KS))
    return base_SPK, base_SPK + slope + noise * rng.normal(size=(seeds, problems, 1))


@pytest.mark.parametrize("k_cross", [3.0, 16.0, 100.0])
def test_crossing_recovers_a_planted_crossing(k_cross):
    base_SPK, arm_SPK = _planted(k_cross)
    found = bootstrap_crossing(base_SPK, arm_SPK, KS, seed=0)
    assert found.share == 1
    assert found.k_median == pytest.approx(k_cross, rel=0.1)
    assert found.k_lo < found.k < found.k_hi
    assert found.k_lo * 0.9 < k_cross < found.k_hi * 1.1
    exact = bootstrap_crossing(*_planted(k_cross, noise=0.0), KS, draws=50, seed=0)
    assert (exact.k_lo, exact.k, exact.k_hi) == pytest.approx((k_cross,) * 3)


def test_no_crossing_where_the_arm_stays_above_or_was_never_above():
    base_SPK, arm_SPK = _planted(16.0)
    for base, arm in (
        (base_SPK, base_SPK + 0.1),
        (base_SPK, base_SPK - 0.1),
        (arm_SPK, base_SPK),
        (base_SPK,) * 2,
    ):
        found = bootstrap_crossing(base, arm, KS, draws=200, seed=0)
        assert found.share == 0
        assert (found.k, found.k_lo, found.k_median, found.k_hi) == (None,) * 4


def test_crossing_needs_one_in_twenty_resamples_and_follows_its_seed():
    base_SPK, arm_SPK = _planted(16.0, noise=0.3)
    one, again = (bootstrap_crossing(base_SPK, arm_SPK, KS, draws=300, seed=4) for _ in range(2))
    assert one == again != bootstrap_crossing(base_SPK, arm_SPK, KS, draws=300, seed=5)
    # One problem of sixty pulls the mean below zero only when it is drawn four times or more: p = 0.02.
    rare_SPK = base_SPK + 0.01
    rare_SPK[:, 0, -1] -= 0.2
    rare = bootstrap_crossing(base_SPK, rare_SPK, KS, draws=4000, seed=0)
    assert 0.005 < rare.share < 0.05 and rare.k_median is None


def test_crossing_ignores_rounding():
    base_SPK, _ = _planted(16.0)
    arm_SPK = base_SPK + 1e-16 * np.array([1, -1] * 4 + [1])
    arm_SPK[..., 0] += 0.1
    assert bootstrap_crossing(base_SPK, arm_SPK, KS, draws=50, seed=0).share == 0


def test_bootstrap_resamples_seeds_as_well_as_problems():
    """The only spread is between seeds; a bootstrap over problems alone would find none."""
    base_SPK, arm_SPK = _planted(16.0, noise=0.0)
    arm_SPK = arm_SPK + np.array([-0.05, 0.0, 0.05])[:, None, None]
    found = bootstrap_crossing(base_SPK, arm_SPK, KS, seed=0)
    assert found.k_hi / found.k_lo > 3
    spread_SPK = base_SPK + 0.05 * (math.log(16) - np.log(KS)) + np.linspace(-1, 1, 60)[None, :, None]
    assert bootstrap_crossing(base_SPK, spread_SPK, KS, seed=0).k_hi > 20, "and problems as well as seeds"


@pytest.mark.parametrize(
    ("ks", "draws", "message"),
    [([1, 1, 2], 10, "increasing"), ([1, 2], 10, "one per"), ([1, 2, 3], 0, "draws")],
)
def test_crossing_refuses(ks, draws, message):
    curve = np.zeros((3, 4, 3))
    with pytest.raises(ValueError, match=message):
        bootstrap_crossing(curve, curve, ks, draws=draws, seed=0)
    with pytest.raises(ValueError, match="shape"):
        bootstrap_crossing(curve, curve[:2], [1, 2, 3], seed=0)
