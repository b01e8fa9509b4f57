"""Intervals for rates, for paired differences over training seeds and problems, and for a crossing point.

A comparison of two arms gives one difference d_sp per training seed s and problem p. Seeds and problems are
both samples from something larger (other runs, other problems), so both count as random:

    d_sp = mu + a_s + b_p + e_sp

with a the luck of a training run, b the part of a problem, and e everything that is left, including the noise
of a finite number of samples. With one value per cell the mean squares of the two-way layout have
expectations (Cornfield and Tukey 1956)

    E MS_seed = v_e + P v_a        E MS_problem = v_e + S v_b        E MS_rest = v_e

so Var(mean) = v_a/S + v_b/P + v_e/(SP) is estimated without bias by (MS_seed + MS_problem - MS_rest) / (SP).
That difference can fall below what any single mean square supports, which amounts to a negative variance
component. `crossed_interval` therefore floors it at the largest of the three mean squares. Degrees of freedom
follow Satterthwaite (1946) over all three terms, and the interval is Student's t. In simulation (normal
effects, 3 x 40, 3 x 300, 5 x 40, ratios of the components over two orders) the nominal 95 % covered 92-98 %;
the low end is where the spread over three seeds is about as large as that over problems.

    >>> clopper_pearson(0, 100)[0]
    0.0
    >>> crossed_interval([[0.1, 0.2, 0.3], [0.2, 0.3, 0.4], [0.0, 0.1, 0.5]]).over_seeds
    True

Shapes: S training seeds, P problems, K budgets, D bootstrap draws.
"""

import dataclasses
import math

import numpy as np
from scipy import special

ROUNDING = 1e-12  # differences of pass@k below this are rounding, not a sign


@dataclasses.dataclass(frozen=True)
class Interval:
    """Mean with its confidence limits. lo, hi and se are nan when one single value leaves nothing to spread.

    over_seeds / over_problems say which factor the interval generalises over: False where only one was given.
    """

    mean: float
    lo: float
    hi: float
    se: float
    df: float
    over_seeds: bool = True
    over_problems: bool = True


@dataclasses.dataclass(frozen=True)
class Crossing:
    """Where an arm falls below the base. `k` is the point estimate, None when the mean curves do not cross.

    share: share of resamples that cross. k_lo, k_median, k_hi: 2.5, 50 and 97.5 % quantiles of the crossing
    among those; None when share < 0.05, where too few resamples cross for quantiles to mean anything.
    """

    share: float
    k: float | None
    k_lo: float | None
    k_median: float | None
    k_hi: float | None


def clopper_pearson(c, n, level: float = 0.95):
    """Equal-tailed exact binomial interval (lo, hi) for c of n; arrays broadcast, scalars give floats."""
    _check_level(level)
    c, n = _check_counts(c, n)
    tail = (1 - level) / 2
    lo = np.where(c == 0, 0.0, special.betaincinv(np.maximum(c, 1), n - c + 1, tail))
    hi = np.where(c == n, 1.0, special.betaincinv(c + 1, np.maximum(n - c, 1), 1 - tail))
    return (lo, hi) if lo.ndim else (float(lo), float(hi))


def rate_upper(c, n, level: float = 0.95):
    """One-sided exact upper bound on a rate: about 3 / n for c = 0 at level 0.95."""
    _check_level(level)
    c, n = _check_counts(c, n)
    hi = np.where(c == n, 1.0, special.betaincinv(c + 1, np.maximum(n - c, 1), level))
    return hi if hi.ndim else float(hi)


def crossed_interval(d_SP, level: float = 0.95) -> Interval:
    """Interval for the mean of d_SP with seeds and problems both random; the module docstring has the maths.

    With S = 1 only problems are random (over_seeds is False) and nothing is claimed about another training
    run; with P = 1 the reverse. If all differences are equal the interval has zero width: no spread was seen,
    which happens at the ends of the scale (every problem solved by both) and is not proof that none exists.
    """
    _check_level(level)
    d_SP = np.asarray(d_SP, np.float64)
    if d_SP.ndim != 2 or d_SP.size == 0:
        raise ValueError(
            f"crossed_interval: needs a non-empty [seeds, problems] array, got shape {d_SP.shape}"
        )
    if not np.all(np.isfinite(d_SP)):
        raise ValueError(
            "crossed_interval: values must be finite; drop problems that are undefined in any seed"
        )
    seeds, problems = d_SP.shape
    mean = float(d_SP.mean())
    variance, df = _variance_of_mean(d_SP)
    if math.isnan(variance):
        return Interval(mean, math.nan, math.nan, math.nan, 0.0, False, False)
    # Rounding in equal values must not look like spread.
    scale = float(np.max(np.abs(d_SP)))
    se = math.sqrt(variance) if variance > (1e-14 * scale) ** 2 else 0.0
    half = se * float(special.stdtrit(df, (1 + level) / 2))
    return Interval(mean, mean - half, mean + half, se, df, seeds > 1, problems > 1)


def bootstrap_crossing(base_curve_SPK, arm_curve_SPK, ks, *, draws: int = 2000, seed: int) -> Crossing:
    """Crossing of the mean curves, with seeds and problems resampled independently of each other.

    The crossing is the smallest k at which the arm's mean curve, having been above the base's, falls below
    it, interpolated linearly in log k between the two budgets around it. A resampled mean is a product of
    weights, sum_sp w_s v_p d_spk / (SP), so all draws are two matrix products. Resampling three seeds
    understates their spread by a factor of about sqrt(2/3): read the quantiles as a lower bound on the
    uncertainty. Two draws of one model cross in about half of the resamples: only a share near 1 is evidence.
    """
    base_SPK, arm_SPK = np.asarray(base_curve_SPK, np.float64), np.asarray(arm_curve_SPK, np.float64)
    ks_K = np.asarray(ks, np.float64)
    if base_SPK.ndim != 3 or base_SPK.shape != arm_SPK.shape or base_SPK.size == 0:
        raise ValueError(
            f"bootstrap_crossing: curves must share one non-empty shape [S, P, K], got {base_SPK.shape} and "
            f"{arm_SPK.shape}"
        )
    if ks_K.shape != base_SPK.shape[2:] or np.any(ks_K < 1) or np.any(np.diff(ks_K) <= 0):
        raise ValueError("bootstrap_crossing: ks must be increasing, at least 1, one per point of the curve")
    if draws < 1:
        raise ValueError(f"bootstrap_crossing: draws must be at least 1, got {draws}")
    d_SPK = arm_SPK - base_SPK
    seeds, problems, budgets = d_SPK.shape
    rng = np.random.default_rng(seed)
    w_DS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws)
    v_DP = rng.multinomial(problems, np.full(problems, 1 / problems), size=draws)
    by_problem_DSK = (v_DP @ d_SPK.transpose(1, 0, 2).reshape(problems, -1)).reshape(draws, seeds, budgets)
    d_DK = np.einsum("ds,dsk->dk", w_DS, by_problem_DSK) / (seeds * problems)
    k_D = _crossing_k(d_DK, ks_K)
    crossed = np.isfinite(k_D)
    share = float(crossed.mean())
    point = float(_crossing_k(d_SPK.mean(axis=(0, 1))[None], ks_K)[0])
    lo, median, hi = (None,) * 3
    if share >= 0.05:
        lo, median, hi = (float(q) for q in np.quantile(k_D[crossed], [0.025, 0.5, 0.975]))
    return Crossing(share, point if math.isfinite(point) else None, lo, median, hi)


def _variance_of_mean(d_SP):
    """(variance of the grand mean, degrees of freedom); (nan, nan) for one single value."""
    seeds, problems = d_SP.shape
    mean = d_SP.mean()
    if d_SP.size == 1:
        return math.nan, math.nan
    if min(seeds, problems) == 1:
        return float(d_SP.var(ddof=1)) / d_SP.size, float(d_SP.size - 1)
    a_S1 = d_SP.mean(axis=1, keepdims=True) - mean
    b_1P = d_SP.mean(axis=0, keepdims=True) - mean
    free = np.array([seeds - 1, problems - 1, (seeds - 1) * (problems - 1)], np.float64)
    squares = [problems * np.sum(a_S1**2), seeds * np.sum(b_1P**2), np.sum((d_SP - mean - a_S1 - b_1P) ** 2)]
    ms = np.array(squares) / free
    total = max(ms[0] + ms[1] - ms[2], ms.max())
    if total <= 0:
        return 0.0, float(free[0])
    # Scaled first: squares of tiny mean squares would underflow.
    return float(total / d_SP.size), float(1 / np.sum((ms / total) ** 2 / free))


def _crossing_k(d_DK, ks_K):
    """First crossing from above to below zero per row, f64[D]; nan where there is none."""
    d_DK = np.where(np.abs(d_DK) < ROUNDING, 0.0, d_DK)
    seen_above_DK = np.maximum.accumulate(d_DK > 0, axis=1)
    falls_DK = (d_DK < 0) & seen_above_DK
    k_D = np.full(d_DK.shape[0], np.nan)
    rows = np.flatnonzero(falls_DK.any(axis=1))
    after = np.argmax(falls_DK[rows], axis=1)
    # Below and seen above implies a point before it, and that point is not below (it would be the first).
    above, below = d_DK[rows, after - 1], d_DK[rows, after]
    log_k = np.log(ks_K)
    k_D[rows] = np.exp(log_k[after - 1] + (log_k[after] - log_k[after - 1]) * above / (above - below))
    return k_D


def _check_level(level: float):
    if not 0 < level < 1:
        raise ValueError(f"stats: level must lie strictly between 0 and 1, got {level}")


def _check_counts(c, n):
    c, n = np.broadcast_arrays(np.asarray(c, np.float64), np.asarray(n, np.float64))
    if not (np.all(n >= 1) and np.all(c >= 0) and np.all(c <= n)):
        raise ValueError("stats: counts must satisfy 0 <= c <= n and n >= 1")
    return c, n
