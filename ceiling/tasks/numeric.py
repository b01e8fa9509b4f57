r"""Exact grading of numbers: no evaluation of model text, no floating point.

`parse` is strict: optional sign, thousands separators, decimals, fractions a/b and a leading currency sign or
trailing percent/period, in ASCII digits only. `read` also knows how LaTeX spells one number and what may stand
around it:

- `\frac{a}{b}`, `\frac12`, mixed numbers `1\frac{4}{5}` and `1 4/5`, `6.7 \times 10^{-5}`, thousands as `10,\!080`.
- Units, degree and currency signs after or before the number are dropped and never converted: `\$36` is 36,
  `5.4 \text{ cents}` is 5.4, `90^\circ` is 90. Words that change the value (million, dozen, or, not, ...) are refused.
- A percent sign is kept apart: `50\%` equals 50 (the question asked for percents) and also 1/2; no other value.
- `52_8` is its digits in that base; where the gold names a base, bare digits are read in it (52 is right, 42 is not).

A number must be written out: sums, products, powers and functions are not numbers, whatever their value. Otherwise
boxing the question itself would be an answer.
"""

import dataclasses
import re
from fractions import Fraction

MAX_CHARACTERS = 64  # longer "numbers" are refused unread: they cost time and mean nothing
MAX_TEXT = 200  # a number with everything around it
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


@dataclasses.dataclass(frozen=True)
class Number:
    """value; percent: written with a percent sign, which is not applied; base, digits: as written, if one is named."""

    value: Fraction
    percent: bool = False
    base: int | None = None
    digits: str = ""

    def __str__(self):
        if self.base:
            return f"{'-' if self.value < 0 else ''}{self.digits}_{self.base}"
        return canonical(self.value) + ("%" if self.percent else "")


def read(text: str) -> Number | None:
    """The one number that `text` spells, in plain text or LaTeX and with units around it, or None."""
    if len(text) > MAX_TEXT:
        return None
    match = _SPELLING.fullmatch(tidy(text))
    if match is None or (unit := _unit(match)) is None:
        return None
    part = {name: value for name, value in match.groupdict().items() if value is not None}
    base = int(part["base"]) if "base" in part else None
    value = _magnitude(part) if base is None else _in_base(part.get("plain", ""), base)
    if value is None:
        return None
    sign = part["sign"] + part.get("sign2", "")
    if len(sign) > 1:
        return None
    return Number(-value if sign == "-" else value, "percent" in part or unit == "percent", base,
                  part["plain"] if base else "")  # fmt: skip


def equal(gold: Number, number: Number) -> bool:
    """Whether `number` answers a question whose answer is `gold`; the rules are in the module's docstring."""
    if gold.base and not number.base:
        digits = _in_base(str(abs(number.value)), gold.base)  # None for a fraction
        return digits is not None and gold.value == (-digits if number.value < 0 else digits)
    if gold.percent == number.percent:
        return gold.value == number.value
    hundred = 100 if number.percent else Fraction(1, 100)
    return number.value in (gold.value, gold.value * hundred)


def changes_the_value(words) -> bool:
    """Whether lower-case words after a number mean more than a unit: million, or, not, ..."""
    return not _NO_UNITS.isdisjoint(words)


def tidy(text: str) -> str:
    """The text without the LaTeX that changes nothing about its meaning: spacing, sizes, fonts, outer wrappers."""
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    while (match := _WRAPPED.fullmatch(text.strip().rstrip(".,;").strip())) is not None:
        text = next(group for group in match.groups() if group is not None)
    return text.strip().rstrip(".,;").strip()


def _magnitude(part: dict) -> Fraction | None:
    """The value without its sign from the named pieces of `_SPELLING`."""
    if "plain" in part:
        value = parse(part["plain"])
    else:
        top, bottom = (parse(part.get(name) or part[f"{name}2"]) for name in ("top", "bottom"))
        if top is None or not bottom:
            return None
        value = top / bottom
    if value is not None and ("mixed" in part or "mixed2" in part):
        whole = parse(part.get("mixed") or part["mixed2"])
        value = whole + value if whole is not None and 0 <= value < 1 else None
    return value if value is None or "exponent" not in part else value * Fraction(10) ** int(part["exponent"])


def _in_base(digits: str, base: int) -> Fraction | None:
    try:
        return Fraction(int(digits, base)) if digits.isdecimal() and 2 <= base <= 36 else None
    except ValueError:  # a digit that the base does not have
        return None


def _unit(match: re.Match) -> str | None:
    """What follows the number: "" or "percent", or None if it is not a unit."""
    inside, bare = match["text"], match["bare"]
    words = re.findall("[a-z]+", ((inside or "") + " " + (bare or "")).lower())
    if not words:
        return ""
    if words[0] in _PERCENT:
        return "percent" if len(words) == 1 else None
    if len(words) > 5 or changes_the_value(words):
        return None
    if bare is not None and words[0] not in _SHORT and (len(words[0]) < 3 or not bare[0].isspace()):
        return None  # 3x, 3 ab: a product with letters, not a unit
    return ""


_GROUP = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_TIDY = [(re.compile(pattern, re.ASCII), replacement) for pattern, replacement in (
    (r"\\(?:left|right|displaystyle|textstyle|limits)(?![A-Za-z])", ""),
    (r"(?<=\d)(?:\{,\}|,\\!\s*|\\,|\\!\s*)(?=\d{3}(?!\d))", ","),  # one spelling of thousands
    (r"\\!", ""),
    (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])", " "),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\frac\s*([0-9A-Za-z])", r"\\frac{\1}"),
    (r"\\frac\s*" + _GROUP + r"\s*([0-9A-Za-z])", r"\\frac{\1}{\2}"),
    (r"\\frac\s*" + _GROUP + r"\s*\{", r"\\frac{\1}{"),
    (r"\\sqrt\s*([0-9A-Za-z])", r"\\sqrt{\1}"),
    (r"\\(?:text|math)(?:bf|it|rm|normal|sf|tt)\s*(?=\{)|\\(?:mbox|hbox|text)\s*(?=\{)", r"\\text"),
    (r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\s*\\degree(?![A-Za-z])|\s*°", r"\\text{ degrees}"),
    ("−", "-"),
)]  # fmt: skip
_WRAPPED = re.compile(
    r"\$([^$]*[^$\\])\$|\\\(([^()]*)\\\)|\\\[([^\[\]]*)\\\]|\\text\{([^{}]*)\}|\{([^{}]*)\}|\(([^(),]*)\)"
)
_DECIMAL = r"[+-]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
_SPELLING = re.compile(
    rf"""(?P<sign>[+-]?)\s*(?:\\?\$|€|£|\\pounds)?\s*(?P<sign2>[+-])?
    (?: (?:(?P<mixed>\d+)\s*)? \\frac\{{\s*(?P<top>{_DECIMAL})\s*\}}\{{\s*(?P<bottom>{_DECIMAL})\s*\}}
      | (?P<mixed2>\d+)\s+(?P<top2>\d+)/(?P<bottom2>\d+)
      | (?P<plain>(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?) )
    (?:\s*(?:\\times|\\cdot)\s*10\s*\^\s*\{{?\s*(?P<exponent>-?\d{{1,2}})\s*\}}?)?
    (?:_\{{?(?P<base>\d{{1,2}})\}}?)?
    (?: \s*(?P<percent>\\?%) | (?: \s*\\text\{{(?P<text>[A-Za-z ./-]*)\}} | (?P<bare>\s*[A-Za-z][A-Za-z ./]*) )
        (?:\s*\^\s*(?:[1-3]|\{{\s*[1-3]\s*\}}))? )?""",
    re.VERBOSE | re.ASCII,
)
_PERCENT = {"percent", "percentage", "pct"}
_SHORT = {"cm", "mm", "km", "kg", "mg", "ml", "ft", "in", "lb", "lbs", "oz", "mi", "hr", "hrs", "min", "sec", "mph"}
_NO_UNITS = {
    "hundred", "hundreds", "thousand", "thousands", "million", "millions", "billion", "billions", "trillion", "dozen",
    "dozens", "score", "half", "halves", "thirds", "quarters", "tenths", "hundredths", "thousandths", "and", "or",
    "not", "plus", "minus", "times", "over", "divided", "squared", "cubed", "factorial", "to", "than", "is", "was",
    "if", "but", "except", "wrong", "pi", "sqrt", "sin", "cos", "tan", "log", "exp", "mod", "choose", "percent",
}  # fmt: skip
