"""Numbers as a reader wants them: with units, with a sign where the sign matters, and never `nan`.

>>> flops(5.2e11), signed(-0.121), seconds(231)
('0.52 TFLOP', '−0.121', '3 min 51 s')
"""

import math
from numbers import Integral, Real

ABSENT = "–"
_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def clean(value):
    """A copy of `value` that is plain JSON: no numpy scalars or arrays, and nan and infinity are None."""
    if isinstance(value, dict):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if isinstance(value, bool | str) or value is None:
        return value
    if hasattr(value, "tolist"):  # numpy scalars and arrays, jax arrays
        return clean(value.tolist())
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


def number(value, digits: int = 3) -> str:
    """Integers with separators, fractions with `digits` decimals, very small and large ones in short form."""
    if value is None or isinstance(value, str | bool):
        return ABSENT if value is None else str(value)
    if not math.isfinite(value):
        return ABSENT
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}".replace("-", "−") if abs(value) < 1e7 else scaled(value)
    if abs(value) >= 1e5:
        return scaled(value)
    if 0 < abs(value) < 0.5 * 10**-digits:
        return f"{value:.1e}".replace("-", "−")
    return f"{value:,.{digits}f}".replace("-", "−")


def signed(value, digits: int = 3) -> str:
    if value is None:
        return ABSENT
    shown = f"{value:+.{digits}f}".replace("-", "−")
    return shown if shown.strip("+−0.") else shown[1:]  # zero has no sign


def interval(lo, hi, *, sign: bool = False, digits: int = 3) -> str:
    if lo is None or hi is None:
        return ""
    show = signed if sign else number
    return f"[{show(lo, digits)}, {show(hi, digits)}]"


def estimate(value, lo=None, hi=None, *, sign: bool = False) -> str:
    """`value [lo, hi]`, or the value alone where there is no interval."""
    shown = (signed if sign else number)(value)
    return f"{shown} {interval(lo, hi, sign=sign)}".strip()


def scaled(value, unit: str = "") -> str:
    """Three significant digits and a prefix, 0.1 of the next prefix counting as that prefix already."""
    if value is None:
        return ABSENT
    for size, prefix in _PREFIXES:
        if abs(value) >= size * 0.1 and abs(value) >= 1e4:
            return f"{_three(value / size)} {prefix}{unit}"
    return f"{_three(value)} {unit}".strip()


def flops(value) -> str:
    return ABSENT if value is None else scaled(value, "FLOP")


def percent(value, digits: int = 1) -> str:
    return ABSENT if value is None else f"{100 * value:.{digits}f} %".replace("-", "−")


def seconds(value) -> str:
    if value is None:
        return ABSENT
    if value < 120:
        return f"{value:.3g} s"
    if value < 7200:
        return f"{int(value // 60)} min {int(value % 60)} s"
    return f"{value / 3600:.1f} h"


def _three(value: float) -> str:
    """Three significant digits without an exponent."""
    text = f"{value:.3g}"
    return f"{value:,.0f}" if "e" in text or abs(value) >= 1000 else text
