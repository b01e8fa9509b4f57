"""Where an answer stands in a response (CD-6): what is cut out there is what the verdict read."""

import pytest

from ceiling.tasks import grading, gym, lab
from ceiling.tasks.lab import language as lang


def test_CD6_lab_spans_are_the_verdicts_digits():
    task = lab.make(lab.CONFIG.defaults(evaluation_per_group=2, training_per_group=1, gate_problems=1), {})
    for problem in task.evaluation():
        letters, digits = problem.meta
        right = lang.render("S", letters, [lang.TRUTH[c] for c in letters], digits)
        for response in (right, "D#0420$", "#1234$"):
            start, end = task.answer_span(response)
            assert response[start:end] == task.verify(problem, response).answer
            assert response[start - 1] == "#" and response[end:] == "$"
        for broken in (right[:-1], right[:-2] + "$", "D1234$", "D#12#4$", "", "D#12345$"):
            assert task.answer_span(broken) is None and task.verify(problem, broken).answer is None


@pytest.mark.parametrize(
    ("response", "style", "answer"),
    [
        ("first #### 1, no: ####  7 apples \n", "hash", "7 apples"),
        ("<think>#### 3</think> so #### 3<think>#### 4", "hash", "3"),
        (r"\boxed{3} and so \boxed{ \frac{1}{2} }.", "boxed", r"\frac{1}{2}"),
        (r"3 3 \boxed{3} 3", "boxed", "3"),
        ("3", "hash", None),
        ("#### ", "hash", None),
        (r"\boxed{3", "boxed", None),
        ("#### 3</think>", "hash", None),
    ],
)
def test_CD6_spans_of_graded_answers(response, style, answer):
    span = grading.answer_span(response, style)
    assert (span and response[slice(*span)]) == answer == grading.final_answer(response, style)
    if response.count("3") > 1 and answer == "3":
        assert span[0] == {"hash": 30, "boxed": 11}[style], "of equal texts the one that is read"


@pytest.mark.parametrize(
    ("response", "answer"),
    [("#### a ####  b c ", "b c"), ("<think>#### 1</think>#### 2", "2"), ("2", None), ("####", None), ("####\0", None)],
)
def test_CD6_spans_of_gym_answers(response, answer):
    span = gym._answer_span(response)
    assert (span and response[slice(*span)]) == answer == gym._answer(response)
