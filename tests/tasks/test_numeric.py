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


READ = {
    r"\frac{14}{3}": Fraction(14, 3), r"-\frac{35}{9}": Fraction(-35, 9), r"\frac43": Fraction(4, 3),
    r"\frac 59": Fraction(5, 9), r"\frac9{19}": Fraction(9, 19), r"\dfrac{1.5}{2}": Fraction(3, 4),
    r"\frac{-1}{2}": Fraction(-1, 2), r"1\frac{4}{5}": Fraction(9, 5), r"137 \frac{1}{2}": Fraction(275, 2),
    "-1 4/5": Fraction(-9, 5), r"6.72 \times 10^{-5}": Fraction(21, 312500), r"3\cdot10^4": 30000,
    r"10,\!080": 10080, r"11,\! 111,\! 111,\! 100": 11111111100, r"10\,080": 10080, "58,500": 58500, "10{,}080": 10080,
    r"\$32,\!348": 32348, r"-\$5": -5, r"\$-5": -5, "€5": 5, r"864 \mbox{ inches}^2": 864, r"15\mbox{ cm}^{2}": 15,
    r"5.4 \text{ cents}": Fraction(27, 5), r"90^\circ": 90, r"90^{\circ}": 90, "90°": 90, "18 dollars per day": 18,
    "3cm": 3, "3 cm^2": 3, r"\text{5}": 5, "$5$": 5, r"\(5\)": 5, "(5)": 5, "{5}": 5, r"\textbf{(113) }": 113, "−5": -5,
    r"\left(5\right)": 5, "5.": 5, "52_8": 42, "4210_{5}": 555, "-52_{10}": -52,
}  # fmt: skip
NOT_READ = [
    "3x", "3 x", "3ab", "3 pi", r"3\pi", "3i", "3 or 4", "3, 4", "3,4", "3 4", "1 2 3", "not 3", "about 3", "3 million",
    r"3\text{ dozen}", r"3 \text{ or more}", "3 is wrong", "3 times", "2*3", r"2\cdot 3", "2^3", "3!", "5-2", "1+1",
    r"\sqrt{9}", "1/0", r"\frac{1}{0}", r"1\frac{5}{4}", r"1\frac{-1}{4}", "--5", r"-\$-5", "9_8", "1_1", "5_99",
    "1.5_8",
    "nan", "inf", "1e5", "9**9**9**9", "٤", "４", "5²", "5\x00", "\ud8005", "\u202e5", "", " ", "$", "%", r"\%", "_8",
    "9" * 65, "9" * 10**6, "(" * 10**4, r"\frac{" * 30, r"\text{" * 30, "1" * 150 + "/", r"6 \times 10^{999}", "x=5",
]  # fmt: skip


@pytest.mark.parametrize("text", READ, ids=lambda t: repr(t)[:24])
def test_x9_reads_one_number_in_latex_with_units(text):
    assert numeric.read(text).value == READ[text]


@pytest.mark.parametrize("text", NOT_READ, ids=lambda t: repr(t)[:24])
def test_x9_v2_reads_nothing_that_is_not_one_written_out_number(text):
    assert numeric.read(text) is None


@pytest.mark.parametrize("text", GOOD, ids=lambda t: repr(t)[:20])
def test_read_knows_all_that_parse_knows(text):
    assert numeric.read(text).value == GOOD[text]


@pytest.mark.parametrize(
    "gold, answer, same",
    [
        ("50%", "50", True), ("50", "50%", True), ("50%", "1/2", True), ("1/2", "50%", True),
        ("50%", "50.0 percent", True),
        ("50", "1/2", False), ("50%", "0.5%", False), ("50%", "5000", False), ("0.005", "50%", False),
        ("50%", "2", False),
        ("52_8", "52", True), ("52_8", "52_8", True), ("52_8", "42", False), ("42", "52_8", True),
        ("52", "52_8", False),
        ("52_8", "42_{10}", True), ("52_8", "-52", False), ("-52_8", "-52", True), ("52_8", "5.2", False),
        ("52_8", "99", False),
    ],
)  # fmt: skip
def test_percents_and_bases(gold, answer, same):
    assert numeric.equal(numeric.read(gold), numeric.read(answer)) is same


def test_canonical_spelling_of_what_was_read():
    assert [str(numeric.read(t)) for t in ("0.5", r"\frac{2}{4}", "50%", "-52_8", "52_{8}", r"\$3.00")] == [
        "1/2", "1/2", "50%", "-52_8", "52_8", "3",
    ]  # fmt: skip
