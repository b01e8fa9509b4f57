"""Plain text as a task: points, passages, documents, splits (D1, D2, RL-10, X-6, X-7)."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceiling.config import ConfigError
from ceiling.data.tokenizer_file import load as load_tokenizer
from ceiling.tasks import corpus
from ceiling.tasks.base import Outcome, load

WORDS = "the pens and books of Ann cost twelve; é, „so“ they say, 36 more are on the table 🙂 how many".split()
SIZES = dict(evaluation_documents=6, evaluation_problems=12, context_tokens=24, horizon=4, max_response_tokens=16)


def texts(count, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(12, 60))) + f" {i}." for i in range(count)]


def write(tmp_path, documents, name="d.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(json.dumps({"text": text}) for text in documents), "utf-8")
    return str(path)


def make(path, tokenizer=None, **overrides):
    config = corpus.CONFIG.defaults(**{**SIZES, **overrides})
    corpus.CONFIG.validate(config, "config.task")
    return corpus.make(config, {"path": path}, tokenizer)


def refused(path, tokenizer=None, **overrides):
    with pytest.raises(ConfigError) as error:
        make(path, tokenizer, **overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(params=["byte", "file", "bos"])
def task(request, tmp_path, checkpoint):
    path = write(tmp_path, texts(30))
    if request.param == "byte":
        return make(path)
    return make(path, load_tokenizer(checkpoint(bos=request.param == "bos")), thought_close="<|turn|>")


def test_rl10_points_have_text_before_them_and_real_tokens_after_them(task):
    t, documents = task.tokenizer, {True: task._held_out, False: task._texts}
    problems = task.evaluation() + task.training({}, 50)
    assert len(task.evaluation()) == 12 and len(problems) == 62
    assert len({p.id for p in problems}) == 62 and all(0 <= p.id < 2**32 for p in problems)
    for n, problem in enumerate(problems):
        context = problem.prompt.removeprefix(t.decode(t.bos_ids))
        assert any(context + problem.answer in text for text in documents[n < 12])
        assert not any(context + problem.answer in text for text in documents[n >= 12])
        ids, start = t.encode(problem.prompt), len(t.bos_ids)
        assert ids[:start] == list(t.bos_ids) and 8 <= len(ids) - start <= 24
        assert len(t.encode(problem.answer)) == 4, "the truth has the tokens that it has in the text"
        assert "\ufffd" not in problem.prompt + problem.answer and t.pad_id not in ids[start:]


def test_d2_the_same_points_every_time_and_others_for_another_seed(tmp_path):
    path = write(tmp_path, texts(30))
    a, b, other = make(path), make(path), make(path, seed=1)
    assert a.evaluation() == b.evaluation() != other.evaluation() and a.provenance == b.provenance
    assert a.training({}, 40) == b.training({}, 40)
    assert a.training({}, 40)[:10] == a.training({}, 10), "a larger pool starts with the smaller one"
    assert {p.prompt for p in a.evaluation()}.isdisjoint(p.prompt for p in a.training({}, 60))
    assert load(corpus.CONFIG.defaults(**SIZES), {"path": path}).evaluation() == a.evaluation()


def test_d1_repeated_documents_are_kept_once_and_control_tokens_left_out(tmp_path, checkpoint):
    documents = texts(20)
    path = write(tmp_path, [*documents, *documents[:5], documents[0] + "  ", "a\x03b", "a\x04b", " "])
    task = make(path)
    assert task.left_out == 9 and len(task._texts) + len(task._held_out) == 20
    assert task.provenance["left_out"] == 9
    tokenizer = load_tokenizer(checkpoint())
    path = write(tmp_path, [*documents, "a <|end|> b", "x<|turn|>y"])
    assert make(path, tokenizer, thought_close="<|turn|>").left_out == 2


def test_passages_are_the_problem_with_a_thought_between(task):
    t, close = task.tokenizer, task.config["thought_close"]
    for problem in task.evaluation():
        passage = task.passage(problem)
        assert t.encode(passage.stop) == t.encode(close) and len(t.encode(passage.stop)) == 1
        assert passage.context == problem.prompt and passage.bridge == ""
        for thought in ("", "I think", problem.prompt):
            assert task.verify(problem, thought + passage.stop + passage.bridge + passage.continuation).right
        assert task.verify(problem, passage.empty + passage.continuation).right
        assert task.verify(problem, task.demonstration(problem, None)).right


def test_verdicts(tmp_path):
    task = make(write(tmp_path, texts(30)))
    problem = task.evaluation()[0]
    truth = problem.answer
    assert task.verify(problem, truth + " and more").right
    right = task.verify(problem, truth + "\x03")
    assert right.right and right.answer == truth and right.credit == 1.0
    wrong = task.verify(problem, truth[:2] + "#" + truth[3:])
    assert wrong.outcome is Outcome.WRONG and 0 < wrong.credit < 1 and wrong.answer[:2] == truth[:2]
    assert task.verify(problem, truth[:-1]).outcome is Outcome.WRONG
    assert task.verify(problem, " " + truth).outcome is Outcome.WRONG
    assert task.verify(problem, truth + "\x04" + "else").outcome is Outcome.WRONG, "what follows the thought counts"
    assert task.verify(problem, "a\x04b\x04" + truth).right
    for nothing in ("", "\x03", "thinking\x04", "thinking\x04\x03"):
        assert task.verify(problem, nothing).outcome is Outcome.UNPARSED


def test_x7_the_opening_ends_every_prompt(tmp_path):
    path = write(tmp_path, texts(30))
    plain, opened = make(path), make(path, thought_open="<t>")
    assert [p.prompt + "<t>" for p in plain.evaluation()] == [p.prompt for p in opened.evaluation()]
    assert opened.passage(opened.evaluation()[0]).context.endswith("<t>")


# ---- documents


@pytest.mark.parametrize("kind", ["prior", "teacher"])
def test_documents_are_all_the_training_text_and_no_held_out_text(task, kind):
    t, limit = task.tokenizer, task._document_tokens()
    documents = task.corpus(kind, 3, 40)
    assert len(documents) == 40 == len(task.corpus(kind, 3, 40)) and documents == task.corpus(kind, 3, 40)
    assert documents != task.corpus(kind, 4, 40) and documents[:5] == task.corpus(kind, 3, 5)
    assert all(d.prompt == "" and 0 < len(t.encode(d.response)) <= limit for d in documents)
    stream = "".join(d.response for d in task.corpus(kind, 3, 400))
    start = t.decode(t.bos_ids)
    whole = stream.split(t.eos)[:-1]
    assert all(text.startswith(start) for text in whole)
    seen = [text.removeprefix(start) for text in whole]
    assert set(seen[: len(task._texts)]) == set(task._texts), "an epoch is every document once, in one piece or several"
    assert set(seen).isdisjoint(task._held_out) and "\ufffd" not in stream
    sizes = [len(t.encode(d.response)) for d in documents]
    assert np.mean(sizes) > 0.5 * limit, "short documents share a sequence"


@settings(deadline=None, max_examples=15)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=80), min_size=1, max_size=5))
def test_parts_join_to_the_document_whatever_it_is(tmp_path_factory, pieces):
    documents = [*texts(12), *pieces]
    task = make(write(tmp_path_factory.mktemp("c"), documents), evaluation_documents=4)
    for text in (p.strip() for p in pieces if p.strip()):
        for limit in (4, 7, 50):
            parts = list(task._parts(text, limit))
            assert "".join(parts) == text and all(len(task.tokenizer.encode(part)) <= limit for part in parts)


# ---- refusals


def test_c1_settings_that_cannot_be(tmp_path, checkpoint):
    path = write(tmp_path, texts(30))
    message = refused(path, thought_close="</think>")
    assert "thought_close='</think>' must be one token" in message and "it is 8" in message
    assert "must be one token" in refused(path, thought_close="")
    assert "no end of text" in refused(path, thought_close="\x03")
    assert "no end of text" in refused(path, load_tokenizer(checkpoint()), thought_close="<|end|>")
    assert "above context_tokens=24" in refused(path, min_context_tokens=25)
    assert "no response could be right" in refused(path, horizon=17)


def test_d3_text_that_cannot_be_used(tmp_path):
    path = write(tmp_path, texts(6))
    assert "leaves nothing to train on" in refused(path, evaluation_documents=6) and "6 usable" in refused(path)
    path = write(tmp_path, ["short"] * 3 + ["text", "a", "b", "c", "d", "e", "f", "g"])
    message = refused(path)
    assert "has 0 points with 8 tokens before and 4 after" in message and "hold out more" in message
    (tmp_path / "n.jsonl").write_text('{"text": "a"}\n{"text": 5}\n')
    assert "n.jsonl:2: `text` is not text" in refused(str(tmp_path / "n.jsonl"))
    assert "no field `body`" in refused(path, text_field="body")
    assert "config.data.path is empty" in refused("")
    # No training text for a pool: said at once, and no endless search.
    (tmp_path / "t.txt").write_text("\n\n".join(texts(7)[:6] + ["tiny"]))
    task = next(t for t in (make(str(tmp_path / "t.txt"), seed=s, evaluation_problems=2) for s in range(60))
                if t._texts == ["tiny"])  # fmt: skip
    with pytest.raises(ValueError, match="no training document has room"):
        task.training({}, 50)
