r"""Leaves of answers: numbers, words and expressions.

What is expensive or senseless to read is refused before the parser sees it; the parser is math-verify's (an ANTLR
grammar, no evaluation of text), called on the leaf alone, without math-verify's search for answers in a response and
without its alarms, which fail outside the main thread: the deadline of the Pool bounds it instead.
"""

import functools
import logging
import re

from ceiling.tasks import numeric
from ceiling.tasks.base import Outcome
from ceiling.tasks.grading import structure

MAX_EXPONENT = 100  # largest literal exponent of an answer, unless its gold has a larger number
MAX_GOLD_EXPONENT = 9999
MAX_DEPTH = 10  # nested brackets; the grammar takes seconds for twenty
MAX_DIGITS = 64  # in one number


def compare(gold: str, answer: str) -> Outcome:
    """RIGHT, WRONG or UNPARSED for one leaf; gold must be `readable`."""
    (gold_name, gold_value), (name, value) = structure.split_name(gold), structure.split_name(answer)
    if gold_name and (name or "=" not in answer):
        return Outcome.WRONG if name not in ("", gold_name) else compare(gold_value, value)
    if name and "=" not in gold:
        answer = value
    target, number = numeric.read(gold), numeric.read(answer)
    if target is not None and number is not None:
        return Outcome(int(numeric.equal(target, number)))
    if target is None and _text(gold) == _text(answer):
        return Outcome.RIGHT
    largest = max([MAX_EXPONENT, *(int(n) for n in re.findall(r"\d+", gold) if len(n) <= 4)])
    if number is None and not _WORDS.fullmatch(answer) and refused(answer, largest):
        return Outcome.UNPARSED
    if target is not None or _WORDS.fullmatch(gold) or _WORDS.fullmatch(answer) or _asks_more(gold, answer):
        return Outcome.WRONG
    return _symbolic(gold, answer)


def readable(leaf: str | None) -> bool:
    """Whether a gold leaf is a number, words or an expression with a value."""
    if leaf is None:
        return False
    if numeric.read(leaf) is not None or _WORDS.fullmatch(leaf):
        return True
    return not refused(leaf) and _parse(leaf) is not None


def refused(leaf: str, largest: int = MAX_GOLD_EXPONENT) -> str:
    """Why a leaf is not handed to the parser, or "". largest: exponent."""
    bare = re.sub(r"\\(?:[A-Za-z]+|[{} |])", " ", leaf)
    exponents = re.findall(r"(?:\^|\*\*)[\s{(+-]*(\d+)", leaf)
    reasons = {
        "unknown command": set(re.findall(r"\\([A-Za-z]+|.)", leaf, re.DOTALL)) - _COMMANDS,
        "characters that no formula has": not _EXPRESSION.fullmatch(bare),
        "words": re.search(r"[A-Za-z]{5,}", bare),
        "several numbers": re.search(r"\d\s+[\d.]", re.sub(r"_\s*\d\s", "_x", leaf)),
        "several answers": leaf.count("=") > 1 or "," in leaf,
        "number too large": re.search(rf"\d{{{MAX_DIGITS + 1}}}", leaf),
        "factorial too large": "!" in leaf and re.search(r"\d{4}|\^|!.*!", leaf),
        "exponent too large": any(len(e) > 4 or int(e) > largest for e in exponents),
        "tower of powers": len(re.findall(r"\^|\*\*", leaf)) > 12 or re.search(_TOWER, leaf),
        "nested too deep": structure.too_deep(leaf, MAX_DEPTH),
    }
    return next((reason for reason, found in reasons.items() if found), "")


def _text(leaf: str) -> str:
    """Text for comparison: without spacing; of words also without case, fonts and brackets."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r"\1", leaf).strip("., ")
    if _WORDS.fullmatch(plain):
        return re.sub(r"\s+", " ", plain.strip("()., ")).casefold()
    return re.sub(r"\s+", "", plain)


def _asks_more(gold: str, answer: str) -> bool:
    """Whether the answer has a kind of function or sign that the gold does not: then it is a task, not its answer."""
    return any(family.search(answer) and not family.search(gold) for family in _FAMILIES)


def _symbolic(gold: str, answer: str) -> Outcome:
    engine = _engine()
    import sympy

    target, value = _parse(gold), _parse(answer)
    if target is None:
        raise ValueError(f"gold answer {gold!r} cannot be read as mathematics; fix or drop it")
    if value is None:
        return Outcome.UNPARSED
    if not _as_worked_out(target, value):
        return Outcome.WRONG
    units = {letter: sympy.I for letter in target.free_symbols | value.free_symbols if str(letter) == "i"}
    if units:
        target, value = target.xreplace(units), value.xreplace(units)
    return Outcome(int(engine.verify([target], [value], timeout_seconds=None, raise_on_error=True)))


@functools.lru_cache(maxsize=256)
def _parse(leaf: str):
    """sympy expression of a leaf, None if it has none or no value. Decimals become fractions: nothing is compared in
    floating point."""
    _engine()
    import sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

    text = re.sub(r"\\text\{([A-Za-z])\}", r"\1", leaf)
    text = re.sub(r"(\d*)\.(\d+)", lambda m: rf"\frac{{{int(m[1] + m[2])}}}{{{10 ** len(m[2])}}}", text)
    text = re.sub(r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi ", text)
    text = re.sub(r"(?<!\\)sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = text.replace("**", "^").replace("*", r"\cdot ").replace(r"\varnothing", r"\emptyset")
    try:  # letters keep their case: R - r is not 0
        found = latex2sympy(text, is_real=True, normalization_config=None,
                            conversion_config=ConversionConfig(lowercase_symbols=False))  # fmt: skip
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - bad text trips whatever rule of the grammar it meets
        return None
    return None if found is None or found.has(sympy.nan, sympy.zoo) else found


@functools.cache
def _engine():
    try:
        import math_verify
    except ImportError:
        raise ModuleNotFoundError('grading mathematics needs math-verify: pip install "ceiling[verify]"') from None
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it has no alarm; the Pool is the alarm
    return math_verify


def _as_worked_out(gold, answer) -> bool:
    """Whether the answer is in as final a form as the gold (see `_form`)."""
    size, longest, factors, below = zip(_form(gold), _form(answer), strict=True)
    return (
        size[1] <= 2 * size[0] + 4
        and longest[1] <= longest[0]
        and (factors[0] > 1) == (factors[1] > 1)
        and below[1] <= below[0]
    )


def _form(expression) -> tuple[int, int, int, bool]:
    """(leaves, terms of the longest sum, most sums with letters in one product, letters below a line)."""
    import sympy

    leaves, longest, factors, below = 0, 1, 0, False
    for node in sympy.preorder_traversal(expression):
        leaves += not node.args
        longest = max(longest, _count(node, sympy.Add, lambda term: 1))
        factors = max(factors, _count(node, sympy.Mul, _sums))
        below |= bool(isinstance(node, sympy.Pow) and node.exp.could_extract_minus_sign() and node.base.free_symbols)
    return leaves, longest, factors, below


def _count(node, kind, weight) -> int:
    """Sum of weights over the operands of nested sums or products, which the parser leaves as pairs."""
    return sum(_count(arg, kind, weight) for arg in node.args) if isinstance(node, kind) else weight(node)


def _sums(factor) -> int:
    """How many sums with letters one factor multiplies: (x + 1)^3 is three."""
    import sympy

    base, power = factor.as_base_exp() if isinstance(factor, sympy.Pow) else (factor, sympy.Integer(1))
    sums = isinstance(base, sympy.Add) and base.free_symbols and power.is_Integer and power > 0
    return int(power) if sums else 0


_UP = r"(?:\^|\*\*)\s*"
_TOWER = (  # of three in brackets, of three without, or on a number
    rf"{_UP}[{{(][^{{}}()]*{_UP}[{{(][^{{}}()]*{_UP}|(?:{_UP}\w\s*){{3}}|{_UP}[\s{{(]*\d+[\s}}]*{_UP}"
)
_WORDS = re.compile(r"\(?(?:\\text\{[^{}\\0-9=]+\}|[^\W\d_]{3,}(?:[ '-]+[^\W\d_]+){0,4})\)?\.?")
_EXPRESSION = re.compile(r"[A-Za-z0-9+\-*/^_(){}\[\]|.,=<>!\s]*", re.ASCII)
_COMMANDS = {
    "frac", "sqrt", "cdot", "times", "div", "pi", "infty", "cup", "cap", "le", "leq", "ge", "geq", "lt", "gt", "ne",
    "neq", "in", "text", "{", "}", " ", "|", "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan",
    "sinh", "cosh", "tanh", "log", "ln", "exp", "lfloor", "rfloor", "lceil", "rceil", "binom", "sum", "int", "prod",
    "lim", "to", "gcd", "alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "mu", "omega", "phi", "psi",
    "rho", "sigma", "tau", "zeta", "emptyset", "varnothing", "mathbb", "overline", "vec",
}  # fmt: skip
_FAMILIES = [re.compile(pattern) for pattern in (
    r"\\(?:arc)?(?:sin|cos|tan)h?(?![A-Za-z])|\\(?:cot|sec|csc)(?![A-Za-z])", r"\\(?:log|ln)(?![A-Za-z])",
    r"\\(?:lfloor|lceil)(?![A-Za-z])", r"\\binom(?![A-Za-z])", "!", r"\|", "=",
    r"\\(?:sum|prod|int|lim|gcd)(?![A-Za-z])", r"[<>]|\\(?:leq?|geq?|lt|gt|neq?)(?![A-Za-z])",
)]  # fmt: skip
