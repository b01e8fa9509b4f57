"""Questions in other formats than GSM8K's: fields, groups, held-out files, boxed mathematics, a checkpoint's tokenizer
(D1, D3, V7, X-6, X-7, X-9)."""

import json
import sys
import types

import pytest

from ceiling.config import ConfigError
from ceiling.data.sources import digest, read
from ceiling.data.tokenizer_file import load as load_tokenizer
from ceiling.tasks import grading, questions
from ceiling.tasks.base import Outcome, Verdict, Verifier

EOS = "\x03"
CHAT = (
    "{% for m in messages %}{{ '<|turn|>' + m.role + '\\n' + m.content + '<|turn_end|>' }}{% endfor %}"
    "{{ '<|turn|>assistant\\n' }}"
)


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    return str(path)


def make(path, tokenizer=None, **overrides):
    config = questions.CONFIG.defaults(**{"evaluation_problems": 4, **overrides})
    questions.CONFIG.validate(config, "config.task")
    return questions.make(config, {"path": path}, tokenizer)


def refused(path, **overrides):
    with pytest.raises(ConfigError) as error:
        make(path, **overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


class HerePool:
    """The pool's interface, judging here. made: every pool, with what it was asked."""

    made: list = []

    def __init__(self, grader, *, workers, item_s, batch_s, memory_mb):
        self.settings, self.batches = (grader, workers, item_s, batch_s, memory_mb), []
        HerePool.made.append(self)

    def judge(self, items):
        json.dumps(items)
        self.batches.append(items)
        return [self.one(item) for item in items]

    def one(self, item):
        try:
            return grading.judge_item(item)
        except ValueError:
            return Verdict(Outcome.ERROR)


@pytest.fixture
def pools(monkeypatch):
    module = types.ModuleType("ceiling.tasks.pool")
    module.Pool = HerePool
    monkeypatch.setitem(sys.modules, "ceiling.tasks.pool", module)
    monkeypatch.setattr(HerePool, "made", [])
    monkeypatch.setattr(questions, "_READABLE", set())
    return HerePool.made


# ---- fields and values


def sums(count, **fields):
    return [{"problem": f"{i} + {i}?", "answer": 2.0 * i, **fields} for i in range(count)]


def test_json_numbers_are_golds(tmp_path):
    values = [27.0, 3, -2.5, 1e22, 0.1, 1e-7, "1,000", " 5 "]
    rows = [{"problem": f"{i}?", "answer": value} for i, value in enumerate(values)]
    task = make(write(tmp_path / "amc.jsonl", rows), question_field="problem")
    golds = {p.meta.question: p.answer for p in task.evaluation() + task.training({}, 99)}
    assert [golds[f"{i}?"] for i in range(8)] == ["27", "3", "-5/2", "1" + "0" * 22, "1/10", "1/10000000", "1000", "5"]
    for problem in task.evaluation():
        assert task.verify(problem, task.demonstration(problem, None)).right
        assert task.demonstration(problem, None) == f"#### {problem.answer}{EOS}", "no solution, no blank line"


def test_solutions_in_a_field_of_their_own(tmp_path):
    rows = sums(6, solution="Add them.\n#### 9 first, then more.")
    rows[1]["solution"] = "1 + 1 = 2\n#### 2"
    task = make(write(tmp_path / "d.jsonl", rows), question_field="problem", solution_field="solution")
    by_question = {p.meta.question: p for p in task.evaluation() + task.training({}, 99)}
    assert task.demonstration(by_question["1 + 1?"], None) == "1 + 1 = 2\n#### 2" + EOS, "it has its answer already"
    assert task.demonstration(by_question["2 + 2?"], None) == f"{rows[2]['solution']}\n#### 4{EOS}"
    assert all(task.verify(p, task.demonstration(p, None)).right for p in by_question.values())


def test_d3_fields_are_refused_by_name(tmp_path):
    path = write(tmp_path / "d.jsonl", sums(6, level=None, solution=3))
    assert f"{path}:1: no field `question`, it has `problem`, `answer`" in refused(path)
    for key in ("group_field", "solution_field"):
        assert "no field `subject`" in refused(path, question_field="problem", **{key: "subject"})
    assert "`solution` is not text" in refused(path, question_field="problem", solution_field="solution")
    assert "no field `level`" in refused(path, question_field="problem", group_field="level"), "null is missing"


def test_control_tokens_in_any_text_are_refused(tmp_path, checkpoint):
    tokenizer = load_tokenizer(checkpoint())
    for field in ("problem", "solution"):
        rows = sums(6, solution="so")
        rows[2][field] += "<|turn_end|>"
        path = write(tmp_path / "d.jsonl", rows)
        fields = dict(question_field="problem", solution_field="solution")
        with pytest.raises(ConfigError, match=r"d.jsonl:3: contains '<\|turn_end\|>', a control token"):
            make(path, tokenizer, **fields)
        assert make(path, **fields).left_out == 0, "no control token of the byte tokenizer"


# ---- groups


def levels(count):
    return [{"question": f"{i}?", "answer": i, "level": f"Level {1 + i % 3}"} for i in range(count)]


def test_groups_of_a_field(tmp_path):
    task = make(write(tmp_path / "d.jsonl", levels(90)), group_field="level", evaluation_problems=30)
    assert [g.name for g in task.groups] == ["Level_1", "Level_2", "Level_3"] and not any(g.trap for g in task.groups)
    assert {p.group for p in task.evaluation()} == {"Level_1", "Level_2", "Level_3"}
    for p in task.evaluation():
        assert p.group == f"Level_{1 + int(p.answer) % 3}"
    assert len(task.training({"all": 1.0}, 1000)) == 60, "the mix of a task without groups means all"
    mixed = task.training({"Level_1": 0.75, "Level_3": 0.25}, 16)
    assert [p.group for p in mixed].count("Level_1") == 12 and len(mixed) == 16
    with pytest.raises(ValueError, match="in a group 'Level_9'; known groups: Level_1 Level_2 Level_3"):
        task.training({"Level_9": 1.0}, 4)


def test_groups_of_numbers_are_named_by_their_field(tmp_path):
    rows = [{"question": f"{i}?", "answer": i, "level": i % 2} for i in range(20)]
    task = make(write(tmp_path / "d.jsonl", rows), group_field="level", evaluation_problems=10)
    assert [g.name for g in task.groups] == ["level_0", "level_1"]


# ---- held-out problems of their own


def test_d1_a_held_out_file_is_removed_from_training_and_counted(tmp_path):
    path = write(tmp_path / "train.jsonl", [{"question": f"{i}?", "answer": i} for i in range(20)])
    rows = [{"question": f" {i}? ", "answer": i} for i in (3, 7, 50, 51, 52, 52)]
    held = write(tmp_path / "test.jsonl", rows)
    task = make(path, evaluation_path=held, evaluation_problems=0)
    assert [p.meta.question for p in task.evaluation()] == ["3?", "7?", "50?", "51?", "52?"]
    assert task.overlap == 2 and task.left_out == 1 and len(task.training({}, 99)) == 18
    assert not {p.prompt for p in task.evaluation()} & {d.prompt for d in task.corpus("prior", 1, 300)}
    ids = [p.id for p in task.evaluation() + task.training({}, 99)]
    assert len(set(ids)) == len(ids) and max(ids) < 2**32
    # Held-out ids do not depend on what is trained on: they key the noise.
    again = make("", evaluation_path=held, evaluation_problems=0)
    assert again.evaluation() == task.evaluation()
    with pytest.raises(ValueError, match="nothing to train on"):
        again.training({}, 4)
    some = make(path, evaluation_path=held, evaluation_problems=2)
    assert len(some.evaluation()) == 2 and some.overlap <= 2
    assert "6? has" not in refused(path, evaluation_path=held, evaluation_problems=6)
    assert "has 5 usable problems" in refused(path, evaluation_path=held, evaluation_problems=6)
    assert "config.task.evaluation_path" in refused(path, evaluation_path=str(tmp_path / "none"))
    assert "holds nothing out" in refused(path, evaluation_problems=0)
    assert "config.data.path is empty" in refused("")


def test_d3_a_long_solution_does_not_choose_held_out_problems(tmp_path):
    rows = [{"question": f"{i}?", "answer": "x" * 500 + f"\n#### {i}"} for i in range(6)]
    held = write(tmp_path / "test.jsonl", rows)
    path = write(tmp_path / "train.jsonl", [{"question": "a?", "answer": 1}, *rows])
    task = make(path, evaluation_path=held, evaluation_problems=0)
    assert len(task.evaluation()) == 6 and len(task.training({}, 99)) == 1 and task.left_out == 6


def test_d3_documents_fit_the_sequences_that_training_has_room_for(tmp_path):
    """The longest sequence of a trainer is the longest prompt it knows, evaluation's among them, and a response."""
    rows = [{"question": "x" * n + "?", "answer": "y" * 90 + "#### 1"} for n in range(1, 60)]
    train = write(tmp_path / "train.jsonl", rows)
    held = write(tmp_path / "test.jsonl", [{"question": "short?", "answer": 1}])
    task = make(train, evaluation_path=held, evaluation_problems=0, max_response_tokens=100)
    room = len(task.evaluation()[0].prompt) + 100
    lengths = {len(d.prompt + d.response) for d in task.corpus("prior", 0, 500)}
    assert max(lengths) == room and len(lengths) > 1 and len(task.training({}, 99)) == 59


def test_d2_provenance_says_what_was_read_and_how_it_was_asked(tmp_path):
    path = write(tmp_path / "d.jsonl", sums(8))
    one = make(path, question_field="problem").provenance
    assert one == make(path, question_field="problem").provenance
    assert one["data.path_sha256"] == digest(read(path, fields=("problem", "answer")))
    assert one["left_out"] == 0 == one["overlap_removed"]
    other = make(path, question_field="problem", template="{question}\n").provenance
    assert {key for key in one if one[key] != other[key]} == {"prompt_sha256"}


# ---- boxed mathematics


def math_rows(count=6):
    return [
        {"problem": f"What is half of ${i}x$?", "solution": f"Halve it: $\\boxed{{\\frac{{{i}}}{{2}}x}}$ it is.",
         "answer": f"\\frac{{{i}}}{{2}}x", "level": "a"} for i in range(1, 2 * count, 2)
    ]  # fmt: skip


MATH = dict(question_field="problem", answer_style="boxed", grader="math", template="{question}\nUse \\boxed{}.\n")
LIMITS = dict(verifier_workers=3, verifier_item_s=2.0, verifier_memory_mb=512)


def test_v7_boxed_mathematics_is_judged_in_a_pool_with_the_configured_limits(tmp_path, pools):
    path = write(tmp_path / "math.jsonl", math_rows())
    task = make(path, solution_field="solution", **MATH, **LIMITS)
    problem = task.evaluation()[0]
    for p in task.evaluation() + task.training({}, 99):
        assert task.demonstration(p, None) == p.meta.solution + EOS and task.verify(p, p.meta.solution + EOS).right
    verdicts = task.verify_many([
        (problem, f"\\boxed{{{problem.answer}}}{EOS}"), (problem, f"\\boxed{{7x/9}}{EOS}"), (problem, "none" + EOS),
        (problem, f"so \\boxed{{{problem.answer}}} and I go"), (problem, "so \\boxed{\\frac{1}"), (problem, ""),
    ])  # fmt: skip
    R, W, U = Outcome.RIGHT, Outcome.WRONG, Outcome.UNPARSED
    assert [v.outcome for v in verdicts] == [R, W, U, R, U, U], "a closed box counts though the response was cut (X-6)"
    (pool,) = pools
    assert pool.settings == ("math", 3, 2.0, 60.0, 512)
    assert len(pool.batches[-1]) == 6, "one batch, one deadline"
    assert Verifier(task).many([(problem, "\\boxed{1}" + EOS)] * 2)[1].outcome is Outcome.WRONG


def test_x9_a_gold_that_is_not_right_against_itself_is_refused_naming_the_row(tmp_path, pools):
    rows = math_rows()
    rows[3]["answer"] = "\\frac{1}{"
    message = refused(write(tmp_path / "math.jsonl", rows), **MATH)
    assert "math.jsonl:4" in message and "is not right against itself; fix or drop it" in message


def test_numbers_need_no_pool_and_golds_are_tried_once(tmp_path, pools):
    rows = [{"problem": f"{i}?", "answer": i} for i in range(6)]
    task = make(write(tmp_path / "d.jsonl", rows), **MATH)
    assert not pools
    assert task.demonstration(task.evaluation()[0], None) == f"\\boxed{{{task.evaluation()[0].answer}}}{EOS}"
    path = write(tmp_path / "math.jsonl", math_rows())
    make(path, **MATH)
    assert len(pools) == 1 and len(pools[0].batches) == 1
    make(path, **MATH)
    assert len(pools) == 1


def test_the_gold_may_be_the_box_of_a_solution(tmp_path):
    rows = [{"problem": f"{i}?", "solution": f"First \\boxed{{8}}, no: \\boxed{{{i}}}."} for i in range(6)]
    path = write(tmp_path / "d.jsonl", rows)
    task = make(path, question_field="problem", answer_field="solution", answer_style="boxed")
    for p in task.evaluation():
        assert p.meta.question == f"{p.answer}?"
        assert p.meta.solution == f"First \\boxed{{8}}, no: \\boxed{{{p.answer}}}."
    rows[1]["solution"] = "\\boxed{1"
    assert "d.jsonl:2: gold answer ''" in refused(
        write(tmp_path / "d.jsonl", rows), question_field="problem", answer_field="solution", answer_style="boxed"
    )


# ---- a checkpoint's tokenizer


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "d.jsonl", [{"question": f"{i} + {i}?", "answer": f"so\n#### {2 * i}"} for i in range(12)])


@pytest.mark.parametrize("style", ["hash", "boxed"])
@pytest.mark.parametrize("kind", ["byte", "file", "chat"])
def test_every_tokenizer_gives_prompts_ends_and_passages(data, checkpoint, style, kind):
    tokenizer = None if kind == "byte" else load_tokenizer(checkpoint(bos=True, template=CHAT))
    task = make(data, tokenizer, answer_style=style, chat=kind == "chat", system="Think." if kind == "chat" else "")
    t = task.tokenizer
    for problem in task.evaluation():
        ids = t.encode(problem.prompt)
        start = "" if kind == "byte" else "<|begin|>" if kind == "file" else "<|turn|>system\nThink.<|turn_end|>"
        assert problem.prompt.startswith(start) and t.decode(ids) == problem.prompt
        text = task.demonstration(problem, None)
        assert t.encode(text)[-1] == t.eos_id and t.encode(text).count(t.eos_id) == 1
        assert task.verify(problem, text).right
        passage = task.passage(problem)
        assert len(t.encode(passage.stop)) == 1 and passage.context == problem.prompt
        for thought in ("", "I add", "1 + \\frac"):
            response = thought + passage.stop + passage.bridge + passage.continuation
            assert task.verify(problem, response).right
        assert task.verify(problem, passage.empty + passage.continuation).right
        joined = [i for part in (passage.stop, passage.bridge, passage.continuation) for i in t.encode(part)]
        assert t.decode(joined) == passage.stop + passage.bridge + passage.continuation
        assert passage.stop[0] == "#", "a backslash would end a thought at every formula"
    # Tokens count, not characters.
    assert make(data, tokenizer, answer_style=style, max_prompt_tokens=len(ids) + 3).left_out == 0


def test_x6_any_stop_token_ends_a_response_and_none_is_an_unfinished_one(data, checkpoint):
    task = make(data, load_tokenizer(checkpoint()))
    problem = task.evaluation()[0]
    for end, outcome in (("<|turn_end|>", Outcome.RIGHT), ("<|end|>", Outcome.RIGHT), ("<|turn|>", Outcome.UNPARSED),
                         ("", Outcome.UNPARSED)):  # fmt: skip
        assert task.verify(problem, f"#### {problem.answer}{end}").outcome is outcome, end
    wrong, right = task.verify_many([(problem, "#### 77<|end|>"), (problem, f"#### {problem.answer}<|end|>")])
    assert wrong.outcome is Outcome.WRONG and right.right and task.verify_many([]) == []


def test_x7_tokenizer_and_chat_template_are_in_the_provenance(data, checkpoint):
    plain = make(data, load_tokenizer(checkpoint("plain"))).provenance
    chat = make(data, load_tokenizer(checkpoint("chat", template=CHAT)), chat=True).provenance
    assert plain["tokenizer_sha256"] != chat["tokenizer_sha256"] and plain["prompt_sha256"] != chat["prompt_sha256"]
    with pytest.raises(ConfigError, match="has no chat template"):
        make(data, load_tokenizer(checkpoint("none")), chat=True)
    with pytest.raises(ConfigError, match="exactly once"):
        make(data, template="{}")


def test_a_marker_without_a_token_of_its_own_is_refused():
    class Wordy:
        def encode(self, text):
            return [hash(text) % 97 + 1, 5]

        def decode(self, ids):
            return "?"

    with pytest.raises(ConfigError, match="no single token at the start of '#### '"):
        questions.first_token(Wordy(), "#### ")
