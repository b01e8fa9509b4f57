"""Exact numbers from untrusted text (X-9, V1, V2): no evaluation, no floating point, bounded time."""

import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceiling.tasks import numeric

GOOD = {
    "42": 42, "0": 0, "-7": -7, "+7": 7, "007": 7, "-0": 0, "1,234": 1234, "1,234,567": 1234567, "-1,234": -1234,
    "3.5": Fraction(7, 2), ".5": Fraction(1, 2), "-.5": Fraction(-1, 2), "1,234.50": Fraction(2469, 2),
    "0.1": Fraction(1, 10),
    "1/3": Fraction(1, 3), "-2/4": Fraction(-1, 2), "10/5": 2, "$18": 18, "-$18": -18, "$1,000.25": Fraction(4001, 4),
    "50%": 50, "12.5%": Fraction(25, 2), "42.": 42, " 42 ": 42, "42 .": 42, "\n42\n": 42, "\t$5\r\n": 5,
    "9" * 64: 10**64 - 1,
}  # fmt: skip
BAD = {
    "empty": "", "blank": " \n\t", "word": "forty", "two numbers": "1 2", "list": "1 2 3", "negated": "not 3",
    "units": "3 apples",
    "equation": "x=3", "sum": "1+1", "product": "2*3", "power": "9**9**9", "caret": "10^5", "tower": "9**9**9**9",
    "call": "factorial(10**9)", "import": "__import__('os').system('touch MARKER')", "lambda": "(lambda: 3)()",
    "f-string": "f'{3}'", "attribute": "().__class__", "nan": "nan", "inf": "inf", "minus inf": "-Infinity",
    "NaN": "NaN",
    "exponent": "1e5", "hex": "0x10", "underscore": "1_000", "complex": "3j", "bool": "True",
    "Arabic digits": "٤٢", "full-width": "４２", "superscript": "4²", "minus sign": "−5", "roman": "Ⅷ",
    "zero denominator": "1/0", "zeros denominator": "1/000", "double fraction": "1/2/3", "decimal denominator": "1/2.5",
    "signed denominator": "1/-2", "mixed number": "1 1/2", "double sign": "--5", "trailing sign": "5-",
    "only sign": "-",
    "only dollar": "$", "only percent": "%", "only dot": ".", "two dots": "1.2.3", "trailing dot percent": "5.%",
    "comma groups": "12,34", "comma long group": "1,2345", "leading comma": ",123", "trailing comma": "1,",
    "comma first group": "1234,567", "dollar after": "5$", "dollar sign order": "$-5", "euro": "€5",
    "boxed": r"\boxed{3}", "latex": "$3$", "frac": r"\frac{1}{2}", "parentheses": "(3)", "quotes": '"3"',
    "NUL": "3\x00",
    "NUL before": "\x003", "RTL": "\u202e42", "zero width": "4\u200b2", "surrogate": "\ud8004", "inner space": "4 2",
    "inner newline": "4\n2", "65 digits": "9" * 65, "million digits": "1" * 10**6, "million zeros": "0." + "0" * 10**6,
    "million commas": "1" + ",000" * 10**6, "nested": "(" * 5000 + "3" + ")" * 5000, "million dots": "." * 10**6,
    "million spaces inside": "1" + " " * 10**6 + "1",
}  # fmt: skip


@pytest.mark.parametrize("text", GOOD, ids=lambda t: repr(t)[:20])
def test_x9_reads_numbers_exactly(text):
    assert numeric.parse(text) == GOOD[text] and isinstance(numeric.parse(text), Fraction)


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_v1_v2_refuses_everything_else_in_bounded_time(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = time.perf_counter()
    assert numeric.parse(text) is None
    assert time.perf_counter() - start < 0.5
    assert not list(tmp_path.iterdir())


@settings(deadline=None, max_examples=30)
@given(st.fractions(max_denominator=10**12))
def test_canonical_spelling_reads_back_exactly(value):
    assert numeric.parse(numeric.canonical(value)) == value


@settings(deadline=None, max_examples=30)
@given(st.integers(-(10**15), 10**15), st.sampled_from(["{}", "{:,}", " {} ", "{}.", "{}.0", "{}/1", "{:+}", "{}%"]))
def test_spellings_of_one_integer_have_one_canonical_form(value, spelling):
    parsed = numeric.parse(spelling.format(value))
    assert parsed == value and numeric.canonical(parsed) == str(value)


@settings(deadline=None, max_examples=30)
@given(st.decimals(-(10**9), 10**9, places=6))
def test_decimals_are_exact(value):
    text = f"{value:f}"
    assert numeric.parse(text) == Fraction(Decimal(text))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.text(st.characters(categories=None, exclude_categories=())) | st.text("+-$%,./0123456789 "), max_size=20
    )
)
def test_v2_never_raises_and_accepts_ascii_only(texts):
    for text in texts:
        value = numeric.parse(text)
        if value is not None:
            core = text.strip()
            assert (
                core.isascii() and any(c.isdigit() for c in core) and set(core) <= set("+-$%,./0123456789 \t\n\r\v\f")
            )


def test_different_numbers_have_different_canonical_forms():
    values = [Fraction(n, d) for n in range(-20, 21) for d in range(1, 21)]
    assert len({numeric.canonical(v) for v in values}) == len(set(values))
