"""Exact grading of one extracted answer (X-9, V1, V2, V5): what is right, what is not, what is never read."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceiling.tasks import grading
from ceiling.tasks.base import Outcome
from ceiling.tasks.grading import expressions, final_answer, grade, structure

R, W, U = Outcome.RIGHT, Outcome.WRONG, Outcome.UNPARSED


def math(gold, answer):
    return grade(gold, rf"So it is \boxed{{{answer}}}.", style="boxed", kind="math")


EXTRACTED = {
    "last box": (r"\boxed{1} then \boxed{2}", "2"),
    "only box": (r"\boxed{ 42 }", "42"),
    "nested braces": (r"\boxed{\frac{1}{2}} done", r"\frac{1}{2}"),
    "escaped braces": (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    "escaped brace alone": (r"\boxed{[1, \}}", r"[1, \}"),
    "space before brace": (r"\boxed {7}", "7"),
    "box in box": (r"\boxed{\boxed{3}}", "3"),
    "after think": (r"<think>\boxed{1}</think> \boxed{2}", "2"),
    "empty think": (r"<think></think>\boxed{5}", "5"),
    "think in the prompt": (r"so \boxed{1}</think>\boxed{2}", "2"),
    "only in think": (r"<think>\boxed{1}</think> done", None),
    "only before the end of think": (r"\boxed{1}</think> done", None),
    "in think without end": (r"Well <think> \boxed{1}", None),
    "second think": (r"<think>a</think> \boxed{1} <think>\boxed{2}", "1"),
    "no box": ("the answer is 4", None),
    "dollars are no box": ("$4$", None),
    "fbox": (r"\fbox{4}", None),
    "boxedly": (r"\boxedly{4}", None),
    "box without braces": (r"\boxed 4", None),
    "open box": (r"\boxed{1} and \boxed{2", None),
    "empty box": (r"\boxed{1} \boxed{}", None),
    "prompt echo": (r"Answer in \boxed{}. I say 4", None),
    "blank box": (r"\boxed{ }", None),
    "200 characters": (r"\boxed{" + "1" * 200 + "}", "1" * 200),
    "201 characters": (r"\boxed{" + "1" * 201 + "}", None),
    "NUL": ("\\boxed{4\x00}", None), "escape": ("\\boxed{4\x1b}", None), "lone surrogate": ("\\boxed{4\ud800}", None),
    "right to left": ("\\boxed{\u202e4}", None), "zero width": ("\\boxed{4\u200b}", None),
    "private use": ("\\boxed{4\ue000}", None), "Arabic digits": ("\\boxed{٤}", None),
    "superscript": ("\\boxed{4²}", None),
    "full-width digits": ("\\boxed{４}", None), "elsewhere": ("\x00\ud800٤ \\boxed{4}", "4"),
    "empty": ("", None), "None": (None, None), "number": (4, None),
}  # fmt: skip


@pytest.mark.parametrize("response, answer", EXTRACTED.values(), ids=EXTRACTED)
def test_x9_v5_one_answer_is_extracted(response, answer):
    assert final_answer(response, "boxed") == answer


@pytest.mark.parametrize("response, answer", [
    ("so #### 42", "42"), ("#### 1\n#### 2\n", "2"), ("####42", "42"), ("42", None), ("#### ", None),
    ("#### 1 ####", None),
    ("<think>#### 1</think>", None), ("#### 1</think>#### 2", "2"), (r"\boxed{4}", None), (None, None),
])  # fmt: skip
def test_x9_answer_after_the_last_mark(response, answer):
    assert final_answer(response, "hash") == answer


def test_unknown_style_and_kind_are_refused():
    with pytest.raises(ValueError, match="'last' is not known; use one of boxed, hash"):
        final_answer("1", "last")
    with pytest.raises(ValueError, match="'text' is not known; use one of number, math"):
        grade("1", "1", style="hash", kind="text")


# gold, answer, outcome
MATH = [
    # numbers
    ("5", "5", R), ("5", "5.0", R), ("5", r"\text{5}", R), ("5", "(5)", R), ("5", "+5", R), ("5", "-5", W),
    ("5", "6", W),
    (r"\frac12", "0.5", R), ("1/2", r"\dfrac{2}{4}", R), (r"\frac13", "0.333333", W), (r"\frac13", r"\frac{-1}{-3}", R),
    (r"1\frac45", "9/5", R), (r"1\frac45", "1.8", R), (".35625", "0.35625", R), ("27.0", "27", R), ("073", "73", R),
    (r"10,\!080", "10080", R), ("10080", "10,080", R), ("10080", r"10{,}080", R), ("58,500", "58500", R),
    (".0000672", r"6.72 \times 10^{-5}", R), ("0", "-0", R), ("0", r"\frac{1}{0}", W),
    # units, currency, degrees, percent, bases
    (r"864 \mbox{ inches}^2", "864", R), (r"15\mbox{ cm}^2", r"15 \text{ cm}^2", R), ("2", r"2\text{ apples}", R),
    (r"\$36", "36", R), ("36", r"\$36.00", R), (r"\$32,\!348", "32348", R), (r"5.4 \text{ cents}", "5.4", R),
    (r"90^\circ", "90", R), ("90", r"90^{\circ}", R), ("90", "90°", R),
    (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}", R),
    (r"50\%", "50", R), ("50", r"50\%", R), (r"50\%", "0.5", R), (r"\frac12", r"50\%", R), (r"50\%", "0.05", W),
    ("50", "0.5", W), (r"50\%", r"0.5\%", W), ("52_8", "52_{8}", R), ("52_8", "52", R), ("52_8", "42", W),
    ("52_8", "52_9", W),
    ("5", "5_{10}", R), ("42", "52_8", R), ("3", r"3\text{ million}", U), ("3", r"3 \text{ or more}", W),
    # a number is written out
    ("6", r"2 \cdot 3", W), ("6", "3!", W), ("8", "2^3", W), ("3", "5-2", W), ("3", r"\sqrt{9}", W), ("1", "x^0", W),
    ("3", r"\sum_{i=1}^3 i", W), ("1", r"\sin^2 x + \cos^2 x", W), ("2", r"\log_2 4", W), ("3", r"\int_0^3 1 \, dx", U),
    # exactly one answer
    ("5", "1 2 3 4 5", U), ("15", "1 2 3 4 5", U), ("12345", "1 2 3 4 5", U), ("3", "not 3", W), ("3", "3 or 4", W),
    ("3", "3, 4", W), ("3", "3,3", W), ("3", "3; 4", U), ("3", r"3 \text{ and } 4", W), ("3", r"\{3\}", W),
    ("3", "2=3", W),
    ("3", "1=2=3", U), ("3", r"\pm 3", W), ("3", "not = 3", W), ("3", "3x", W), ("3", "x", W), ("3", "three", W),
    ("3,4", "3", W), ("1, -2", "-2, 1", R), ("1, -2", "-2, 1, 1", W), ("1, 1, 2", "1, 2, 2", W), (r"\{1,2\}", "2,1", R),
    ("3, 5, 7", r"7, 5 \text{ and } 3", R), ("3, 100", "3,100", R), ("3,100", "3, 100", W),
    ("1,2", r"1 \text{ or } 2", R),
    (r"\sqrt3", r"\sqrt3, \sqrt3", W), (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}", R),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}", W),
    (r"\{1\pm\sqrt{5},-2\}", r"-2, 1+\sqrt5, 1-\sqrt5", R), (r"\pm 2", "2, -2", R), (r"\pm 2", "2", W),
    # tuples, intervals, unions, matrices
    ("(3,4]", "(3,4]", R), ("(3,4]", "[3,4]", W), ("(3,4)", "3,4", W), ("(1,2)", "(2,1)", W),
    ("(6,31,-1)", r"\left(6, 31, -1\right)", R),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, 0.5\pi)", R), ("(3, 7)", "(3, 2+5)", W),
    ("(-\\infty, 0]", r"(-\infty,0]", R),
    (r"(-\infty,2)\cup(3,\infty)", r"(3,\infty) \cup (-\infty,2)", R),
    (r"(-\infty,2)\cup(3,\infty)", r"(-\infty,2),(3,\infty)", W),
    (r"\begin{pmatrix}1/2\\-2\end{pmatrix}", r"\begin{bmatrix} 0.5 \\ -2 \end{bmatrix}", R),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", W),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)", W),
    # names and equations
    ("5", "x=5", R), ("x=5", "5", R), ("x=5", "x = 5", R), ("x=5", "y=5", W), ("5", "f(2) = 5", R),
    ("3, 4", "x=3, x=4", R),
    ("y=2x+3", "2x+3", R), ("2x+3", "y=2x+3", R), ("y = 2x + 3", "y=3+2x", R), (r"x \in [-2,7]", "[-2,7]", R),
    ("[-2,7]", r"x \in [-2,7]", R), ("5x - 7y + 11z + 4 = 0", "10x - 14y + 22z + 8 = 0", R),
    ("5x - 7y + 11z + 4 = 0", "0=0", W),
    ("5x - 7y + 11z + 4 = 0", "0", W), ("x<2", "2>x", R), ("x<2", "x>2", W),
    # expressions
    (r"11\sqrt2", r"\sqrt{242}", R), (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt3}", R),
    (r"\frac{\sqrt3}{3}", "0.577350", W),
    (r"\pi", "3.14159", W), (r"\pi", "3.141592653589793", W), (r"\pi", "pi", R),
    (r"288 \pi", r"288\pi \text{ cm}^3", R),
    ("6 - 5i", "-5i + 6", R), ("6-5i", "6+5i", W), ("1-2i", "1+2i^3", R), ("R - r", "0", W), ("R - r", "r - R", W),
    ("R-r", "-r+R", R),
    ("3R^2", "3r^2", W),
    ("2k+2", "2(k+1)", R), ("3\\sqrt{13}", "3*sqrt(13)", R), ("2^{10}", "1024", R), ("x^{1000}", "x^{1000}", R),
    (r"\cot x", r"\tan x", W),
    ("x^2y^3z^4w^5", "w^5z^{4}x^2y^3", R), ("(x^2)^3", "x^6", R), ("e^{x^2}", "e^{x^{2}}", R),
    ("e^{2x}", r"\exp(2x)", R), ("x^2", "x^{2", U), ("x+1", "x+1+", U),
    # as worked out as the gold: the question in a box is no answer
    ("(a+5)(b+2)", "(2+b)(a+5)", R), ("(a+5)(b+2)", "ab+2a+5b+10", W), ("6r^2-4r-24", "2(r-2.386)(3r+5)", W),
    ("x^2+3x+2", "(x+1)(x+2)", W),
    ("x^3+3x-6", "x^3+5x-2x-6", W), (r"70\sqrt2", r"50\sqrt2+20\sqrt2", W), ("x^2+x+1", r"\frac{x^3-1}{x-1}", W),
    (r"\sqrt2", r"\frac{2 \cdot 3 \cdot 5 \cdot 7 \cdot \sqrt2}{7 \cdot 5 \cdot 3 \cdot 2}", W),
    (r"\sqrt{3}", r"\tan 60^\circ", W), (r"\frac{\pi}{4}", r"\arctan 1", W), ("x^2", r"\int 2x \, dx", W),
    # words
    (r"\text{Evelyn}", "Evelyn", R), (r"\text{Evelyn}", r"\textbf{evelyn}.", R), (r"\text{Evelyn}", "Angela", W),
    (r"\text{east}", "west", W),
    (r"\text{(C)}", "C", R), ("C", r"\textbf{(C)}", R), (r"\text{(C)}", "(B)", W),
    (r"\text{even}", r"\text{not even}", W),
    (r"\text{Évariste Galois}", "évariste  galois", R), (r"\text{odd}", "Odd", R), (r"\text{east}", "3", W),
]  # fmt: skip


@pytest.mark.parametrize("gold, answer, outcome", MATH, ids=[f"{g}<-{a}"[:60] for g, a, _ in MATH])
def test_x9_v5_math(gold, answer, outcome):
    verdict = math(gold, answer)
    assert verdict.outcome is outcome
    assert verdict.credit == float(outcome is R) and (verdict.answer is None) == (outcome is U)


def test_every_spelling_of_the_right_answer_counts_as_one():
    assert {math(r"\frac12", a).answer for a in ("0.5", "1/2", r"50\%", r"\dfrac{2}{4}", "x = 0.50")} == {"1/2"}
    assert math("(3,4]", r"\left(3, 4\right]").answer == math("(3,4]", "(3,4]").answer
    assert math("52_8", "52").answer == "52_8" != math("52_8", "42").answer
    assert math("5", "0.25").answer == math("5", r"\frac{1}{4}").answer == "1/4"


@pytest.mark.parametrize("gold, response, outcome", [
    ("42", "so #### 42", R), ("1,234", "#### $1234", R), ("0.5", "#### 1/2", R), ("18", "#### 18 dollars", R),
    ("18", "#### 17", W),
    ("5", "#### 1 2 3 4 5", U), ("3", "#### not 3", U), ("3", "#### 3 or 4", U), ("3", "#### 1+2", U), ("3", "3", U),
    ("3", "", U), ("3", None, U),
    ("5", "#### 5\nQuestion: and now?", U), ("3", "#### nan", U), ("3", "#### inf", U), ("3", "#### 9**9**9**9", U),
])  # fmt: skip
def test_x9_numbers(gold, response, outcome):
    assert grade(gold, response, style="hash", kind="number").outcome is outcome


GOLDS = ["", " ", "???", r"\frac{1}{", "1 2 3", "(1,2", r"\frac{1}{0}", "(1, )", "\x00", "٤", "\ud800", None, 4,
         "x" * 201, "=", "1,,2", "x=1=2", r"\input{/etc/passwd}", "(" * 49 + "x" + ")" * 49, "9^{9^{9^9}}",
         "10^{99999}"]  # fmt: skip


@pytest.mark.parametrize("kind", grading.KINDS)
@pytest.mark.parametrize("gold", GOLDS, ids=lambda g: repr(g)[:24])
def test_x9_an_unreadable_gold_raises_and_never_pays(gold, kind):
    for response in (rf"\boxed{{{gold}}}", "", None):
        with pytest.raises(ValueError, match="gold answer "):
            grade(gold, response, style="boxed", kind=kind)
    with pytest.raises(ValueError, match="gold answer "):
        grading.check_gold(gold, kind)


def test_x9_a_gold_that_is_no_number_is_named():
    with pytest.raises(ValueError, match=r"'x\+1' is not a number; fix it, or use config.task.grader=math$"):
        grading.check_gold("x+1", "number")
    grading.check_gold("x+1", "math")


HOSTILE = [
    "9**9**9**9", "9^{9^{9^9}}", "10^{5^{5^{5^5}}}", "factorial(10**9)", "(10^9)!", "9999!", "(99!)!",
    "((9^{99})^{99})^{99}", "10^{999}",
    "(" * 80 + "x" + ")" * 80, "(" * 40 + "x" + ")" * 40, "{" * 40 + "}" * 40, r"\sqrt{" * 28 + "x" + "}" * 28,
    "(x+1)^{999}", "(x+y+z)^{300}",
    r"\sum_{i=1}^{10^9} i^i", r"\prod_{i=1}^{99999} i", r"\binom{10^9}{10^8}", "nan", "inf", r"\infty-\infty", "1e999",
    "1+" * 90 + "1", "xy" * 90,
    "{" * 90, "\\" * 90, r"\{" * 40, "&" * 90, r"\begin{pmatrix}" * 8, r"\pm" * 30 + "1", "1," * 90 + "1",
    r"\cup" * 40, "()", "(,)", ",", "=", "|", "!",
    "_", "^", r"\frac{}{}", r"\frac", r"\sqrt[0]{2}", r"\log 0", r"\log_1 2", "(-1)!", "0^0", "x^x^x",
    r"\int e^{e^{e^x}} dx", "1" * 190, "i^i",
    "__import__('os').system('touch MARKER')", "open('MARKER','w').close()", "(lambda: open('MARKER','w'))()",
    "f'{open(\"MARKER\",\"w\")}'",
    "().__class__.__base__.__subclasses__()", r"\input{MARKER}", r"\write18{touch MARKER}", "exec('x')",
    "S('open(1)')", "Symbol('x').func",
]  # fmt: skip


@pytest.mark.parametrize("gold", ["3", "x^2+1", "(3,4]", r"\text{even}", "2^{10}"])
def test_v1_v2_hostile_text_is_refused_before_it_costs_anything(gold, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for answer in HOSTILE:
        verdict = math(gold, answer)
        assert verdict.outcome in (W, U), answer
        assert grade("3", f"#### {answer}", style="hash", kind="number").outcome is U, answer
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("answer", [
    "9^{9^{9^9}}", "2^{101}", "9**9**9", "1 2 3", "x=1=2", "1, 2", "9999!", "(3!)!", "(10^2)!", r"\input{x}", "f'x'",
    "hello", "(" * 11 + "x" + ")" * 11,
    "(x", "1" * 65, "x!x!", "x^{2^{2^2}}", "x^{x^{x^x}}", "x^x^x^x", "x**2**2",
    "x:y", r"\%",
])  # fmt: skip
def test_v2_the_parser_is_never_asked(answer, monkeypatch):
    monkeypatch.setattr(expressions, "_parse", lambda *a: pytest.fail("parsed"))
    assert expressions.refused(answer, expressions.MAX_EXPONENT)


def test_v2_an_exponent_is_bounded_by_the_gold():
    assert math("x^{2023}", "x^{2023}").right and math("x^{2023}+1", "1+x^{2023}").right
    assert math("x^{2}+1", "1+x^{2023}").outcome is U


@pytest.mark.parametrize("size", [10**5, 10**6])
def test_v2_long_responses_cost_nothing(size):
    many, box = size // 10, r"\boxed{"
    for text in ("1" * size, "(" * size, box * many, box + "9" * size + "}", "<think>" * many, "#" * size, "\\" * size):
        for style, kind in (("boxed", "math"), ("hash", "number")):
            assert grade("3", text, style=style, kind=kind).outcome is U


@settings(deadline=None, max_examples=100)
@given(
    st.text(st.characters(categories=None, exclude_categories=()), max_size=60)
    | st.text(r"\{}()[]^_,=&$!|x1 ", max_size=60)
)
def test_v2_extraction_and_structure_never_raise(text):
    for style in grading.STYLES:
        final_answer(text, style), final_answer(rf"#### \boxed{{{text}}}", style)
    structure.tree(text), structure.tree(text, whole_numbers=False), expressions.refused(text)


@settings(deadline=None, max_examples=50)
@given(st.fractions(max_denominator=999), st.fractions(max_denominator=999))
def test_numbers_are_equal_if_and_only_if_their_values_are(a, b):
    gold = rf"\frac{{{a.numerator}}}{{{a.denominator}}}"
    assert math(gold, str(a)).right and math(str(a), gold).right
    assert math(gold, str(b)).right == (a == b)


def test_v5_constants_and_other_answers_score_nothing():
    golds = ["7", r"\frac{3}{56}", r"\sqrt{51}", "(3,4]", "1,-2", "6 - 5i", r"\text{east}", "x^2+2", "y=2x+3", r"\pi"]
    for i, gold in enumerate(golds):
        assert math(gold, gold).right  # V7
        others = golds[:i] + golds[i + 1 :] + ["0", "1", "A", "x", "2", r"\infty", "1,2", "()"]
        assert not [other for other in others if math(gold, other).right]


def test_importing_it_loads_neither_sympy_nor_jax():
    code = "import sys, ceiling.tasks.grading, ceiling.tasks.pool; print({'sympy', 'jax'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_a_missing_extra_is_named_in_one_line(monkeypatch):
    expressions._engine.cache_clear()
    for module in ("math_verify", "sympy", "latex2sympy2_extended"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r'^[a-z ]* needs math-verify: pip install "ceiling\[verify\]"$'):
        grading.warm_up()
    monkeypatch.undo()
    expressions._engine.cache_clear()
    assert grade("3", "#### 3", style="hash", kind="number").right
