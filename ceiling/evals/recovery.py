"""How much of a target's gain a mechanism gives without the target's training:

    Rec = (mechanism - base) / (target - base)

with numerator and denominator means over training seeds and problems of paired differences, so 0 is the base, 1 the
target. Its interval is Fieller's (1954): every rho that the same data do not refute, which is every rho for which
`stats.crossed_interval` of (mechanism - base) - rho (target - base), seeds and problems both random, contains 0. It is
the interval of all other comparisons, turned to a ratio, and it needs no resampling of three seeds. Where that of
target - base contains 0 there is nothing to recover: the interval would be unbounded, and Rec is undefined (SV-5).

    >>> base, target = np.zeros((3, 4)), np.array([[0.4, 0.5, 0.6, 0.5]] * 3)
    >>> round(recovery(base, target / 2, target).value, 6)
    0.5

Shapes: S training seeds, P problems.
"""

import dataclasses
import math

import numpy as np

from ceiling.evals.evalset import EvalSet
from ceiling.evals.passk import pass_at_k
from ceiling.evals.stats import crossed_interval

_DOUBLINGS, _HALVINGS = 200, 45


@dataclasses.dataclass(frozen=True)
class Recovery:
    """value with limits; gain: target - base. value, lo and hi are None where `reason` says why."""

    value: float | None
    lo: float | None
    hi: float | None
    gain: float
    reason: str | None = None


def recovery(base_SP, mechanism_SP, target_SP, *, level: float = 0.95) -> Recovery:
    """Rec of a quantity measured for the same seeds and problems under base, mechanism and target, f64[S, P] each
    (a rate of success, pass@k): see the module."""
    base_SP, mechanism_SP, target_SP = (np.asarray(x, np.float64) for x in (base_SP, mechanism_SP, target_SP))
    if not base_SP.shape == mechanism_SP.shape == target_SP.shape:
        raise ValueError(
            f"recovery: base {base_SP.shape}, mechanism {mechanism_SP.shape} and target {target_SP.shape} must share "
            "one shape [seeds, problems]"
        )
    part_SP, whole_SP = mechanism_SP - base_SP, target_SP - base_SP
    whole = crossed_interval(whole_SP, level)
    if not (whole.lo > 0 or whole.hi < 0):
        limits = f"[{whole.lo:+.3f}, {whole.hi:+.3f}]"
        return Recovery(None, None, None, whole.mean, f"target - base {whole.mean:+.3f} {limits} does not exclude 0")
    value = float(part_SP.mean() / whole_SP.mean())

    def refuted(rho: float) -> bool:
        interval = crossed_interval(part_SP - rho * whole_SP, level)
        return interval.lo > 0 or interval.hi < 0

    return Recovery(value, _limit(refuted, value, -1), _limit(refuted, value, +1), whole.mean)


def _limit(refuted, value: float, sign: int) -> float | None:
    """The end of the interval around `value` on one side, by doubling and halving; None if it is beyond all bounds."""
    inside, step = value, 1e-3 * max(1.0, abs(value))
    for _ in range(_DOUBLINGS):
        outside = value + sign * step
        if refuted(outside):
            break
        inside, step = outside, 2 * step
    else:
        return None
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if refuted(middle) else (middle, outside)
    return outside if math.isfinite(outside) else None


def rows(evalset: EvalSet, base: str, target: str, *, k: int = 1, level: float = 0.95) -> list[dict]:
    """Rec of pass@k for every arm beside these two, over the seeds that all three have: {arm, target, group, k,
    recovery, recovery_lo, recovery_hi, gain, reason, seeds}."""
    out = []
    for arm in evalset.arms:
        seeds = [] if arm in (base, target) else evalset.seeds(arm, base, target)
        if not seeds:
            continue
        values = [pass_at_k(evalset.n, evalset.count_SP(name, seeds), k) for name in (base, arm, target)]
        for group, index in evalset.slices.items():
            found = recovery(*(value_SP[:, index] for value_SP in values), level=level)
            out.append({
                "arm": arm, "target": target, "group": group, "k": int(k), "recovery": found.value,
                "recovery_lo": found.lo, "recovery_hi": found.hi, "gain": found.gain, "reason": found.reason,
                "seeds": len(seeds),
            })  # fmt: skip
    return out
