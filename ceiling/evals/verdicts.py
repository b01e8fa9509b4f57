"""What an arm did to the reach of its base, judged from counts alone.

Input: correct counts over the same S training seeds and P problems, n samples each, of the base, of the arm,
and of the null arm, which is a second draw from the base. Nothing here knows which arm it judges or what
anybody expects of it. The rules, fixed before looking:

1. Fewer than 3 training seeds: not resolved. A null draw identical to the base's: not resolved (it is the
   same draw, and would put the resolution at zero).
2. Differences are paired per seed and problem; intervals are `stats.crossed_interval` at `level`. delta_1 and
   delta_k are arm - base at pass@1 and pass@k, null_k is null - base at pass@k. k > n / 2 is refused, because
   the estimate becomes the indicator "any correct" and its noise that of single samples.
3. The resolution is r = max(|null_k.lo|, |null_k.hi|, k / (n S P)): what drawing the same base again
   does, and never less than what one correct sample can move the mean. Without that floor a saturated group,
   where pass@k goes from 1 - 1e-9 to 1 - 1e-12 in every seed, would count as expanded.
4. In this order:
   - expanded: delta_k.lo > r, and the mean difference at k is positive in every seed;
   - contracted: delta_k.hi < -r, and the mean difference at k is negative in every seed;
   - re-weighted: delta_k lies within +-max(margin, r) and delta_1 excludes 0, so the reach is the same up to
     the margin and probability was moved around inside it;
   - not resolved: everything else, also an interval beyond r whose seeds disagree in sign.
   A small but certain gain is thus "expanded" even where the margin would have called it negligible.

"Expanded" says that more problems are reached at budget k. It does not yet say that anything is new: raising
a habit of 1 in 5000 to certainty expands pass@k as much as a skill that was never there. `new_problems` tells
the two apart. It counts the (seed, problem) cells with 0 correct in both draws of the base (0 of 2n) that the
arm solves at least `min_hits` times; `base_upper` is the one-sided Clopper-Pearson bound on the base's rate
in such a cell. The bound is per cell: pooling the cells would look sharper and be wrong, as they were
selected for their zeros. `null_new_problems` counts cells with 0 in the base and at least min_hits in the
null draw: how many "discoveries" of that strength sampling alone makes when the base is drawn only once, an
upper bound on luck.

    >>> base = [[40, 0, 3, 9]] * 3
    >>> judge(base, base, [[38, 1, 2, 9]] * 3, 64, k=16, margin=0.02).verdict
    'not resolved'

References: 2504.13837 (protocol), 2507.14843 (solvable sets). Shapes: S training seeds, P problems.
"""

import dataclasses
import math

import numpy as np

from ceiling.evals.passk import pass_at_k
from ceiling.evals.stats import Interval, crossed_interval, rate_upper

EXPANDED, REWEIGHTED, CONTRACTED, UNRESOLVED = "expanded", "re-weighted", "contracted", "not resolved"
MIN_SEEDS = 3


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One verdict with all that it rests on. *_only: numbers of problems at n samples, means over seeds."""

    verdict: str
    reason: str
    seeds: int
    n: int
    k: int
    delta_1: Interval
    delta_k: Interval
    null_k: Interval
    resolution: float
    tuned_only: float
    base_only: float
    null_tuned_only: float
    new_problems: int
    null_new_problems: int
    base_upper: float


@dataclasses.dataclass(frozen=True)
class FalseExpansion:
    """How often a second draw of the same model "solves" what the first did not.

    rate: share of cells. expected: the same under the binomial null, given only each cell's total over both
    draws. gained, lost: cells solved by one draw alone at n. z: (gained - lost) in units of its null
    deviation, None when no cell could differ; beyond about 3 the two draws do not come from one model.
    """

    rate: float
    expected: float
    gained: int
    lost: int
    z: float | None


def judge(
    base_c_SP, arm_c_SP, null_c_SP, n: int, *, k: int, margin: float, level: float = 0.95, min_hits: int = 2
) -> Verdict:
    """Verdict on one arm against its base; the module docstring states the rules."""
    base_SP, arm_SP, null_SP = _counts(n, base=base_c_SP, arm=arm_c_SP, null=null_c_SP)
    if not 1 <= k <= n / 2:
        raise ValueError(
            f"judge: k = {k} must lie in 1 .. n / 2 = {n // 2}; draw more samples or judge at a smaller k"
        )
    if not (math.isfinite(margin) and margin >= 0) or min_hits < 1:
        raise ValueError(f"judge: margin {margin} must be >= 0 and min_hits {min_hits} >= 1")
    at_1_SP = (arm_SP - base_SP) / n
    base_k_SP = pass_at_k(n, base_SP, k)
    at_k_SP = pass_at_k(n, arm_SP, k) - base_k_SP
    delta_1, delta_k = crossed_interval(at_1_SP, level), crossed_interval(at_k_SP, level)
    null_k = crossed_interval(pass_at_k(n, null_SP, k) - base_k_SP, level)
    resolution = max(abs(null_k.lo), abs(null_k.hi), k / (n * base_SP.size))
    new = int(np.sum((base_SP == 0) & (null_SP == 0) & (arm_SP >= min_hits)))
    null_new = int(np.sum((base_SP == 0) & (null_SP >= min_hits)))
    upper = rate_upper(0, 2 * n, level)
    verdict, why = _decide(delta_1, delta_k, resolution, margin, k, at_k_SP.mean(axis=1))
    if len(base_SP) < MIN_SEEDS:
        verdict, why = UNRESOLVED, f"{len(base_SP)} training seed(s), a verdict needs {MIN_SEEDS}"
    elif _same_draw(base_SP, null_SP, n):
        verdict, why = UNRESOLVED, "the null draw equals the base draw in every cell: not a second draw"
    if verdict == EXPANDED:
        why += (
            f"; {new} of {new_cells(base_SP, null_SP)} seed-problem cells with base 0 of {2 * n} "
            f"(rate below {upper:.2g} each) are solved at least {min_hits} times"
        )
    return Verdict(
        verdict,
        f"{verdict}: {why}.",
        len(base_SP),
        n,
        k,
        delta_1,
        delta_k,
        null_k,
        float(resolution),
        tuned_only=_per_seed((base_SP == 0) & (arm_SP > 0)),
        base_only=_per_seed((base_SP > 0) & (arm_SP == 0)),
        null_tuned_only=_per_seed((base_SP == 0) & (null_SP > 0)),
        new_problems=new,
        null_new_problems=null_new,
        base_upper=upper,
    )


def new_cells(base_c_SP, null_c_SP) -> int:
    """Number of (seed, problem) cells in which the base never succeeded, in either of its two draws."""
    return int(np.sum((np.asarray(base_c_SP) == 0) & (np.asarray(null_c_SP) == 0)))


def false_expansion_rate(base_c_SP, null_c_SP, n: int, k: int | None = None) -> FalseExpansion:
    """Share of cells that the null draw solves within k samples and the base draw does not (k = n when None).

    If both draws come from one model, a cell's t successes are spread over the 2n samples at random, whatever
    its success rate. The base's k samples then miss and the null's k hit with probability
    pass@2k - pass@k at (2n, t): an exact expectation with nothing to estimate.
    """
    base_SP, null_SP = _counts(n, base=base_c_SP, null=null_c_SP)
    k = n if k is None else k
    if not 1 <= k <= n:
        raise ValueError(f"false_expansion_rate: k = {k} must lie in 1 .. n = {n}")
    rate = float(np.mean(pass_at_k(n, null_SP, k) * (1 - pass_at_k(n, base_SP, k))))
    total_SP = base_SP + null_SP
    expected = float(np.mean(pass_at_k(2 * n, total_SP, 2 * k) - pass_at_k(2 * n, total_SP, k)))
    gained, lost = int(np.sum((base_SP == 0) & (null_SP > 0))), int(np.sum((base_SP > 0) & (null_SP == 0)))
    # Per cell the difference is +1 or -1 with equal probability, or 0 (the only value if total > n or = 0).
    variance = 2 * float(np.sum(pass_at_k(2 * n, total_SP, 2 * n) - pass_at_k(2 * n, total_SP, n)))
    return FalseExpansion(
        rate, expected, gained, lost, (gained - lost) / math.sqrt(variance) if variance else None
    )


def _decide(delta_1: Interval, delta_k: Interval, resolution: float, margin: float, k: int, by_seed_S):
    """(verdict, why) by rule 4. Comparisons with nan are false, so undefined intervals stay unresolved."""
    at_k = f"pass@{k} {_show(delta_k)} against a resolution of +-{resolution:.3f}"
    at_1 = f"pass@1 {_show(delta_1)}"
    seeds = ", ".join(f"{d:+.3f}" for d in by_seed_S)
    if delta_k.lo > resolution or delta_k.hi < -resolution:
        verdict, sign = (EXPANDED, 1) if delta_k.lo > resolution else (CONTRACTED, -1)
        if np.all(sign * by_seed_S > 0):
            return verdict, f"{at_k}, same sign in every seed; {at_1}"
        return UNRESOLVED, f"{at_k}, but the seeds disagree in sign ({seeds})"
    bound = max(margin, resolution)
    if -bound <= delta_k.lo and delta_k.hi <= bound:
        if delta_1.lo > 0 or delta_1.hi < 0:
            return REWEIGHTED, f"{at_1} excludes 0 while pass@{k} {_show(delta_k)} stays within +-{bound:.3f}"
        return (
            UNRESOLVED,
            f"{at_1} includes 0 and pass@{k} {_show(delta_k)} stays within +-{bound:.3f}: no change seen",
        )
    return UNRESOLVED, f"{at_k} is neither beyond that nor within +-{bound:.3f}"


def _show(interval: Interval) -> str:
    mean, lo, hi = (round(value, 3) + 0.0 for value in (interval.mean, interval.lo, interval.hi))  # no "-0.000"
    return f"{mean:+.3f} [{lo:+.3f}, {hi:+.3f}]"


def _same_draw(base_SP, null_SP, n: int) -> bool:
    """True if all counts agree although enough cells were free to differ (chance agreement below 1e-3)."""
    free = (base_SP > 0) & (base_SP < n)
    # The likeliest agreement, one success of n twice, has chance about 0.37 per cell.
    return bool(np.array_equal(base_SP, null_SP) and free.sum() >= 8)


def _per_seed(cells_SP) -> float:
    return float(cells_SP.sum(axis=1).mean())


def _counts(n: int, **named):
    arrays = {name: np.asarray(value) for name, value in named.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    first = next(iter(shapes.values()))
    if len(first) != 2 or 0 in first or len(set(shapes.values())) != 1:
        raise ValueError(f"verdicts: counts must share one non-empty shape [S, P], got {shapes}")
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.integer) or array.min() < 0 or array.max() > n:
            raise ValueError(f"verdicts: {name} counts must be integers in 0 .. n = {n}")
    return tuple(array.astype(np.int64) for array in arrays.values())
