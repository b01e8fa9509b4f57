"""Recovery: a ratio of paired differences with the interval of every other comparison (SV-5)."""

import json

import numpy as np
import pytest

from ceiling.evals.evalset import Cell, EvalSet
from ceiling.evals.recovery import recovery, rows
from ceiling.evals.stats import crossed_interval

S, P = 3, 40


def measured(rng, recovered=0.5, gain=0.3, seed_sd=0.02, problem_sd=0.1, noise=0.05):
    """(base, mechanism, target) with luck of seeds and parts of problems in every difference."""
    parts = (seed_sd, (S, 1)), (problem_sd, (1, P)), (noise, (S, P))
    draw = lambda mean: mean + sum(sd * rng.normal(size=shape) for sd, shape in parts)  # noqa: E731
    base = rng.random((S, P))
    return base, base + draw(recovered * gain), base + draw(gain)


def test_its_limits_are_where_the_crossed_interval_stops_containing_zero():
    base, mechanism, target = measured(np.random.default_rng(0))
    found = recovery(base, mechanism, target)
    assert found.value == pytest.approx((mechanism - base).mean() / (target - base).mean()) and found.reason is None
    assert found.gain == pytest.approx((target - base).mean())
    for rho in np.linspace(found.lo - 0.3, found.hi + 0.3, 61):
        interval = crossed_interval(mechanism - base - rho * (target - base))
        assert (interval.lo <= 0 <= interval.hi) == (found.lo <= rho <= found.hi), rho


def test_base_and_target_recover_nothing_and_everything():
    base, _, target = measured(np.random.default_rng(1))
    nothing, everything = recovery(base, base, target), recovery(base, target, target)
    assert (nothing.value, nothing.lo, nothing.hi) == pytest.approx((0, 0, 0), abs=1e-9)
    assert (everything.value, everything.lo, everything.hi) == pytest.approx((1, 1, 1))
    worse = recovery(target, base - 0.2, base)  # a target below its base: the ratio keeps its meaning
    assert worse.value > 1 and worse.gain < 0 and worse.lo < worse.value < worse.hi


def test_SV5_without_a_gain_beyond_its_interval_there_is_no_recovery():
    base, mechanism, target = measured(np.random.default_rng(2), gain=0.01)
    found = recovery(base, mechanism, target)
    assert (found.value, found.lo, found.hi) == (None, None, None) and "does not exclude 0" in found.reason
    assert recovery(base, mechanism, base).reason and recovery([[0.1]], [[0.2]], [[0.3]]).value is None
    with pytest.raises(ValueError, match="one shape"):
        recovery(base, mechanism[:2], target)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = [r.lo <= 0.5 <= r.hi for r in (recovery(*measured(rng)) for _ in range(60)) if r.value is not None]
    assert len(hits) > 55 and 0.85 <= np.mean(hits) <= 0.995


def test_rows_compare_the_seeds_that_all_three_have():
    rng, n, groups = np.random.default_rng(4), 32, ["C"] * 20 + ["R"] * 20
    rates = {"base": 0.2, "grpo": 0.6, "vectors": 0.4, "late": 0.4}
    cells = {(arm, seed): Cell(rng.binomial(n, rate, 40)) for arm, rate in rates.items() for seed in range(3)}
    del cells["late", 0], cells["late", 1], cells["late", 2]
    cells["late", 7] = cells["base", 0]
    table = rows(EvalSet(n, groups, cells, aggregates={"both": ["C", "R"]}), "base", "grpo")
    assert [(row["arm"], row["group"]) for row in table] == [("vectors", g) for g in ("C", "R", "both")]
    assert json.dumps(table, allow_nan=False) and all(row["seeds"] == 3 and row["target"] == "grpo" for row in table)
    both = table[-1]
    base, vectors, grpo = (sum(cells[arm, s].count_P.sum() for s in range(3)) for arm in ("base", "vectors", "grpo"))
    expected = (vectors - base) / (grpo - base)
    assert both["recovery"] == pytest.approx(expected) and both["recovery_lo"] < 0.5 < both["recovery_hi"]
