"""Exact grading of numbers: no evaluation of model text, no floating point.

Accepts optional sign, thousands separators, decimals, fractions a/b and a leading currency sign or
trailing percent/period, in ASCII digits only.
"""

import re
from fractions import Fraction

MAX_CHARACTERS = 64  # longer "numbers" are refused unread: they cost time and mean nothing
_NUMBER = re.compile(r"([+-]?)\$?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:/(\d+))?%?", re.ASCII)


def parse(text: str) -> Fraction | None:
    """The number that `text` is, exactly, or None."""
    text = text.strip().rstrip(".").strip()
    if not text or len(text) > MAX_CHARACTERS:
        return None
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, whole, denominator = match.groups()
    if denominator is not None and int(denominator) == 0:
        return None
    value = Fraction(whole.replace(",", "")) / int(denominator or 1)
    return -value if sign == "-" else value


def canonical(value: Fraction) -> str:
    """One spelling per number, used to compare and count answers."""
    return str(value)
