"""Questions of a user's own: GSM8K's format with the byte tokenizer (D1, D3, V5, V7, X-9). Other formats, graders and
tokenizers are in `test_questions_formats.py`."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceiling.config import ConfigError
from ceiling.tasks import questions, rewards
from ceiling.tasks.base import Outcome, load

EOS = "\x03"


def row(i, answer=None, question=None):
    """One line in GSM8K's format."""
    answer = f"{i} + {i} = <<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i:,}" if answer is None else answer
    return json.dumps({"question": question or f"Ann has {i} pens and buys {i} more. How many?", "answer": answer})


def write(tmp_path, lines, name="data.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return str(path)


def make(path, **overrides):
    config = questions.CONFIG.defaults(**{"evaluation_problems": 4, **overrides})
    return questions.make(config, {"path": path})


@pytest.fixture
def task(tmp_path):
    return make(write(tmp_path, [row(i) for i in range(1000, 1040)]))


# ---- reading


def test_reads_gsm8k_format(task):
    problems = task.evaluation() + task.training({}, 1000)
    assert len(problems) == 40 and len(task.evaluation()) == 4 and task.left_out == 0
    for problem in problems:
        assert problem.prompt.startswith("Q: Ann has") and problem.prompt.endswith("How many?\nA: ")
        n = int(problem.prompt.split()[3])
        assert problem.answer == str(2 * n)  # 2,000 -> 2000: one spelling per number
        assert problem.meta.solution == f"{n} + {n} = <<{n}+{n}={2 * n}>>{2 * n}"


def test_v7_every_gold_demonstration_verifies_right(task):
    rng = np.random.default_rng(0)
    for problem in task.evaluation() + task.training({}, 1000):
        verdict = task.verify(problem, task.demonstration(problem, rng))
        assert verdict.right and verdict.credit == 1.0 and verdict.answer == problem.answer


@pytest.mark.parametrize("gold", ["-3", "1,234.5", "1/3", "$12", "40%", ".25", "0", "-$1,000"])
def test_v7_gold_spellings_verify_right_after_a_round_trip(tmp_path, gold):
    task = make(write(tmp_path, [row(i, f"because\n#### {gold}") for i in range(6)]))
    for problem in task.evaluation():
        assert task.verify(problem, task.demonstration(problem, None)).right
        assert task.verify(problem, f"#### {gold}{EOS}").right


@pytest.mark.parametrize("kind", ["prior", "teacher"])
def test_d1_corpus_and_training_never_show_an_evaluation_question(task, kind):
    held_out = {p.prompt for p in task.evaluation()}
    assert not held_out & {p.prompt for p in task.training({}, 1000)}
    documents = task.corpus(kind, 3, 500)
    assert len(documents) == 500 and not held_out & {d.prompt for d in documents}
    assert task.corpus(kind, 3, 500) == documents != task.corpus(kind, 4, 500)


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(2, 60), seed=st.integers(0, 2**40), data=st.data())
def test_d1_split_is_a_partition_for_any_size_and_seed(tmp_path_factory, rows, seed, data):
    held_out = data.draw(st.integers(1, rows - 1))
    path = write(tmp_path_factory.mktemp("qa"), [row(i) for i in range(rows)])
    task = make(path, evaluation_problems=held_out, seed=seed)
    train = task.training({}, 10**6)
    assert len(task.evaluation()) == held_out and len(train) == rows - held_out
    ids = [p.id for p in task.evaluation() + train]
    assert sorted(ids) == list(range(rows))
    assert [p.id for p in make(path, evaluation_problems=held_out, seed=seed).evaluation()] == ids[:held_out]


def test_d3_duplicate_questions_are_kept_once_and_cannot_sit_in_both_splits(tmp_path):
    lines = [row(i) for i in range(20)] + [row(i, "other\n#### 5") for i in range(20)]
    lines += [row(3, question="  Ann has 3 pens and buys 3 more. How many?  ")]
    task = make(write(tmp_path, lines), evaluation_problems=10)
    prompts = [p.prompt for p in task.evaluation() + task.training({}, 1000)]
    assert len(prompts) == 20 == len(set(prompts)) and task.left_out == 21


def test_d3_rows_longer_than_the_context_are_left_out_and_counted(tmp_path):
    lines = [row(i) for i in range(10)]
    lines += [row(50, question="x" * 402), row(51, "y" * 300 + "\n#### 1"), row(52, "é" * 130 + "\n#### 1")]
    task = make(write(tmp_path, lines))  # the last is 130 characters but 260 bytes: too long as well
    assert task.left_out == 3
    problems = task.evaluation() + task.training({}, 1000)
    assert len(problems) == 10
    for problem in problems:
        assert len(task.tokenizer.encode(task.demonstration(problem, None))) <= task.max_response_tokens


def test_d3_blank_lines_and_windows_line_ends_are_fine(tmp_path):
    path = tmp_path / "dos.jsonl"
    path.write_bytes("\r\n\r\n".join(row(i) for i in range(6)).encode() + b"\r\n\r\n")
    task = make(str(path))
    assert len(task.evaluation()) == 4 and len(task.training({}, 9)) == 2


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0c", "\x1d"])
def test_d3_only_a_newline_ends_a_row(tmp_path, separator):
    """JSON strings may hold these unescaped (json.dumps with ensure_ascii=False writes some of them)."""
    if separator < " ":
        lines = [row(i, question=f"What{separator}is {i}?") for i in range(6)]
    else:
        lines = [
            json.dumps({"question": f"What{separator}is {i}?", "answer": "#### 1"}, ensure_ascii=False)
            for i in range(6)
        ]
    task = make(write(tmp_path, lines))
    assert all(separator in p.prompt for p in task.evaluation())


# ---- faults of the file: one line that names file, line and remedy


def _refused(path, **overrides):
    with pytest.raises(ConfigError) as error:
        make(path, **overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


BAD_ROWS = {
    "no answer field": '{"question": "q"}', "no question field": '{"answer": "#### 1"}', "not JSON": "question: q",
    "cut short": '{"question": "q", "answer": "#### 1"', "list": '["q", "#### 1"]', "number": "3",
    "null": "null", "text": '"q"',
    "question is a number": '{"question": 5, "answer": "#### 1"}',
    "question is null": '{"question": null, "answer": "#### 1"}',
    "answer is true": '{"question": "q", "answer": true}', "answer is null": '{"question": "q", "answer": null}',
    "answer is not finite": '{"question": "q", "answer": NaN}', "question is blank": '{"question": " ", "answer": 1}',
    "answer is a list": '{"question": "q", "answer": ["#### 1"]}',
    "deep nesting": "[" * 100_000, "huge number": '{"question": "q", "answer": ' + "1" * 5000 + "}",
    "lone surrogate": '{"question": "q\\ud800", "answer": "#### 1"}',
    "end marker in text": '{"question": "q\\u0003", "answer": "#### 1"}',
    "end marker in answer": '{"question": "q", "answer": "a\\u0003b #### 1"}',
}  # fmt: skip


@pytest.mark.parametrize("line", BAD_ROWS.values(), ids=BAD_ROWS)
def test_d3_a_bad_row_is_refused_naming_file_and_line(tmp_path, line):
    path = write(tmp_path, [row(1), row(2), line, row(3)])
    assert f"{path}:3" in _refused(path)


@pytest.mark.parametrize(
    "answer",
    [
        "#### many",
        "####",
        "no mark at all",
        "#### 3 and 4",
        "#### nan",
        "#### 1/0",
        "#### ",
        "#### 9**9",
        "#### ٣",
        "42 ####",
        "",
    ],
)
def test_x9_gold_that_is_no_number_is_refused_naming_file_and_line(tmp_path, answer):
    path = write(tmp_path, [row(1), row(2, answer)])
    message = _refused(path)
    assert f"{path}:2: gold answer {answer.rpartition('####')[2].strip()!r}" in message and "fix" in message


def test_d3_files_that_cannot_be_used(tmp_path):
    assert "config.data.path is empty" in _refused("")
    missing = str(tmp_path / "missing.jsonl")
    assert missing in _refused(missing) and "No such file" in _refused(missing)
    assert "directory" in _refused(str(tmp_path)).lower()
    for name, content in {"empty": b"", "blank": b"\n \n\n"}.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert "no rows" in _refused(str(path)) and str(path) in _refused(str(path))
    latin = tmp_path / "latin1.jsonl"
    latin.write_bytes(row(1).encode() + b'\n{"question": "caf\xe9", "answer": "#### 1"}\n')
    assert "not UTF-8" in _refused(str(latin)) and str(latin) in _refused(str(latin))
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    assert "binary" in _refused(str(tmp_path / "binary"))


def test_d3_too_few_rows_says_how_many_and_what_to_do(tmp_path):
    lines = [row(i) for i in range(4)] + [row(9, question="x" * 500)]
    message = _refused(write(tmp_path, lines), evaluation_problems=4)
    for part in ("config.task.evaluation_problems=4", "4 usable", "1 left out", "lower it"):
        assert part in message


def test_loaded_by_name(tmp_path):
    config = questions.CONFIG.defaults(evaluation_problems=2)
    assert load(config, {"path": write(tmp_path, [row(i) for i in range(5)])}).name == "questions"


# ---- verdicts


@pytest.fixture
def half(tmp_path):
    task = make(write(tmp_path, [row(i, "half\n#### 0.5") for i in range(6)]))
    return task, task.evaluation()[0]


RIGHT = ["0.5", ".5", "1/2", "2/4", "0.50", "0.500000", "$0.5", "+.5", " 0.5 ", "0.5.", "5/10", "\n0.5\n", "00.5",
         "0.5 pens", "(0.5)", "50%"]  # units, brackets and percents as `grading` says
WRONG = ["1", "-0.5", "0.49999999999999999999999999999999", "5%", "5", "0", "2/1", "0.5/2"]
NONE = [
    "", "half", "1 2 3", "not 0.5", "0.5 or 1", "0,5", r"\boxed{0.5}", "0.5\nSo it is.",
    "nan", "inf",
    "9**9**9", "1e-1", "٠.٥", "__import__('os')", "0.5" + "0" * 64, "0" * 10**6, "1/" + "9" * 10**6, "\x00",
    "\u202e5.0",
]  # fmt: skip


@pytest.mark.parametrize("tail", RIGHT)
def test_x9_fraction_and_decimal_spellings_of_the_gold_are_right(half, tail):
    task, problem = half
    verdict = task.verify(problem, f"so\n#### {tail}{EOS}")
    assert verdict.right and verdict.answer == "1/2" and verdict.credit == 1.0 and verdict.process is None


@pytest.mark.parametrize("tail", WRONG)
def test_x9_other_numbers_are_wrong(half, tail):
    task, problem = half
    verdict = task.verify(problem, f"so\n#### {tail}{EOS}")
    assert verdict.outcome is Outcome.WRONG and verdict.answer is not None and verdict.credit == 0.0


@pytest.mark.parametrize("tail", NONE, ids=lambda t: repr(t)[:16])
def test_x9_v5_text_that_is_no_number_is_unparsed(half, tail):
    task, problem = half
    start = time.perf_counter()
    verdict = task.verify(problem, f"so\n#### {tail}{EOS}")
    assert verdict.outcome is Outcome.UNPARSED and verdict.answer is None and verdict.credit == 0.0
    assert all(reward(verdict) == 0.0 for reward in rewards.REWARDS.values())
    assert time.perf_counter() - start < 0.5


def test_x9_the_last_mark_counts(half):
    task, problem = half
    assert task.verify(problem, f"#### 7\n#### 0.5{EOS}").right
    assert task.verify(problem, f"#### 0.5\n#### 7{EOS}").outcome is Outcome.WRONG
    assert task.verify(problem, f"#### 0.5\n####{EOS}").outcome is Outcome.UNPARSED
    assert task.verify(problem, f"#### 0.5 #### 0.5 #### 0.5{EOS}").right
    assert task.verify(problem, f"######## 0.5{EOS}").right


def test_x6_no_end_no_answer(half):
    task, problem = half
    for response in ("#### 0.5", f"{EOS}#### 0.5", f"#### 0.5{EOS} ", f"#### 0.5{EOS}x", "0.5", f"0.5{EOS}", "", EOS):
        assert task.verify(problem, response).outcome is Outcome.UNPARSED, response
    # One end marker ends a response: a second one before it is part of the text, and no number.
    assert task.verify(problem, f"#### 0.5{EOS}{EOS}").outcome is Outcome.UNPARSED


def test_v5_guessing_lists_or_repeating_the_question_pays_nothing(task):
    for problem in task.evaluation():
        for hack in ("1 2 3 4 5", f"#### {' '.join(map(str, range(3000)))}", problem.prompt, f"{problem.prompt}####",
                     f"#### not {problem.answer}", f"#### {problem.answer} {problem.answer}",
                     f"#### {problem.answer}?"):  # fmt: skip
            assert not task.verify(problem, hack + EOS).right, hack
        for other in task.evaluation():
            if other.answer != problem.answer:
                assert not task.verify(problem, f"#### {other.answer}{EOS}").right


@settings(deadline=None, max_examples=30)
@given(
    texts=st.lists(st.text(st.characters(categories=None, exclude_categories=()), max_size=50), max_size=20),
    mark=st.booleans(),
)
def test_v2_never_raises_on_arbitrary_text(tmp_path_factory, texts, mark):
    task = _shared(tmp_path_factory)
    problem = task.evaluation()[0]
    for text in texts:
        verdict = task.verify(problem, f"{text}#### {text}{EOS}" if mark else text)
        assert verdict.outcome in (Outcome.WRONG, Outcome.RIGHT, Outcome.UNPARSED)
        if verdict.outcome is Outcome.UNPARSED:
            assert verdict.answer is None and verdict.credit == 0


_CACHE = []


def _shared(tmp_path_factory):
    if not _CACHE:
        _CACHE.append(make(write(tmp_path_factory.mktemp("qa"), [row(i) for i in range(8)])))
    return _CACHE[0]


@settings(deadline=None, max_examples=30)
@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_right_iff_the_numbers_are_equal(tmp_path_factory, gold, guess):
    task = _shared(tmp_path_factory)
    problem = type(task.evaluation()[0])(0, "all", "Q: ?\nA: ", str(gold))
    assert task.verify(problem, f"#### {guess:,}{EOS}").right == (gold == guess)
    assert task.verify(problem, f"#### {gold}.0{EOS}").right


def test_passages_are_consistent_with_the_answer(task):
    for problem in task.evaluation():
        passage = task.passage(problem)
        assert passage.context == problem.prompt and len(task.tokenizer.encode(passage.stop)) == 1
        for thought in ("", "I add", "half # way"[:5]):
            response = thought + passage.stop + passage.bridge + passage.continuation
            assert task.verify(problem, response).right
        assert task.verify(problem, passage.empty + passage.continuation).right


def test_tokens_round_trip_and_end_once(task):
    for problem in task.evaluation():
        text = task.demonstration(problem, None)
        ids = task.tokenizer.encode(text)
        assert task.tokenizer.decode(ids) == text
        assert ids.count(task.tokenizer.eos_id) == 1 and ids[-1] == task.tokenizer.eos_id and 0 not in ids
