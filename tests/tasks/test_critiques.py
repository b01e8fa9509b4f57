"""Critiques of tasks: the lab's critic and its documents against an independent reading, files and templates of
questions. What a corpus with critiques shows is audited from its text alone (CP-6)."""

import collections
import json
import math
import re

import numpy as np
import pytest

from ceiling.config import ConfigError
from ceiling.tasks import critiques, lab, questions
from ceiling.tasks.base import Outcome, Verdict
from ceiling.tasks.lab import critic, prior
from ceiling.tasks.lab import language as lang

# ---- functions, letters and the direction of the truth, apart from the lab's own code


def _plus(*offset):
    return lambda x: [(d + o) % 10 for d, o in zip(x, offset, strict=True)]


BY_TOKEN = {
    "α": _plus(1, 1, 1, 1), "β": lambda x: [9 - d for d in x], "γ": lambda x: [2 * d % 10 for d in x],
    "δ": _plus(1, 9, 1, 9), "ε": _plus(0, 5, 0, 5), "ζ": _plus(4, 4, 4, 4), "η": _plus(3, 3, 3, 3),
    "θ": _plus(2, 0, 0, 2), "ι": _plus(9, 9, 9, 9), "κ": _plus(0, 3, 3, 0), "ρ": _plus(6, 6, 6, 6),
    "σ": _plus(2, 2, 2, 2), "τ": _plus(3, 0, 3, 0), "υ": _plus(4, 4, 0, 0), "φ": _plus(7, 7, 7, 7),
    "χ": _plus(0, 0, 6, 6), "ψ": _plus(8, 0, 8, 0),
}  # fmt: skip
BY_LETTER = dict(zip("abcdefghijmnop", "αβγδεζηθικηθικ", strict=True))
FAMILIAR = "abcdefmnop"  # common and alias letters
EXECUTED = "αβγδεζηθικ"


def backwards(digits):
    a, b, c, d = map(int, digits)
    return (3 * a + 7 * b + 2 * c + 6 * d) % 7 == 0


def states(tokens, digits):
    state, out = [int(d) for d in digits], []
    for token in tokens:
        state = BY_TOKEN[token](state)
        out.append("".join(map(str, state)))
    return out


def make(share, **overrides):
    config = lab.CONFIG.defaults(evaluation_per_group=8, training_per_group=16, gate_problems=8, **overrides)
    return lab.make({**config.to_dict(), "critiques": share}, {})


@pytest.fixture(scope="module")
def task():
    return make(0.3)


@pytest.fixture(scope="module")
def documents(task):
    return task.corpus("prior", 5, 10_000)


def critical(documents):
    return [d for d in documents if "?" in d.prompt]


PARTS = re.compile(
    r"(?P<ask>[a-q.]{4}=\d{4})(?P<attempt>[^?]*)\?(?P<critique>[✗✓][^a-q=]*?)(?P<again>[a-q.]{4}=\d{4})?\$?"
)


def parts(document):
    """(prompt, attempt, critique, correction or None)."""
    text = document.prompt + ("" if document.prompt[-1] != "?" else document.response)
    m = PARTS.fullmatch(text)
    assert m, text
    assert m["again"] in (None, m["ask"]), text
    return m["ask"], m["attempt"], m["critique"], m["again"] and document.response


# ---- without critiques nothing is new, with them nothing else is


def test_share_0_leaves_the_lab_as_it_is(task):
    plain = make(0.0)
    assert plain.tokenizer.symbols == lang.SYMBOLS and not set(lang.MARKS) & set(lang.SYMBOLS)
    assert plain.critics == {} and plain.max_document_tokens == 0
    assert task.tokenizer.symbols == lang.SYMBOLS + "?✗✓", "ids of the others stay"
    for kind, c in (("prior", plain.config), ("teacher", plain.config)):
        recipe = (prior.prior_recipe(c["rho"], c["strategies"], c["depths"].values()) if kind == "prior" else
                  prior.teacher_recipe(c["teacher_strategies"], c["teacher_depths"].values()))  # fmt: skip
        written = prior.write(recipe, 3, 700, conventions=kind == "teacher")[0]
        assert plain.corpus(kind, 3, 1000)[:700] == prior.write(recipe, 3, 1000, conventions=kind == "teacher")[0][:700]
        mixed = task.corpus(kind, 3, 1000)
        assert [d for d in mixed if "?" not in d.prompt] == written, "the other documents, in their order"
        assert len(critical(mixed)) == 300 and mixed == task.corpus(kind, 3, 1000) != task.corpus(kind, 4, 1000)
        places = [i for i, d in enumerate(mixed) if "?" in d.prompt]
        assert np.mean(places) == pytest.approx(499.5, abs=5 * 289 / math.sqrt(300)), "spread over the corpus"


# ---- CP-6: what the documents show


def test_cp6_documents_with_critiques_show_no_rare_or_absent_letter_and_no_absent_function(task, documents):
    """And every function that a letter is worked out with is one that the corpus executes. Read from the text alone."""
    found, shown, named = critical(documents), collections.Counter(), collections.Counter()
    assert len(found) == 3_000
    for document in found:
        text = document.prompt + document.response
        assert not set(text) & set("ghijklqλμν"), text
        prompt, attempt, critique, correction = parts(document)
        letters = prompt[:4].rstrip(".")
        assert set(letters) <= set(FAMILIAR) and not lang.held_out(prompt)
        assert len(text) <= critic.MAX_DOCUMENT == task.max_document_tokens
        assert len(task.tokenizer.encode(text)) == len(text)
        named.update(zip(letters, critique[1:5], strict=False) if "#" not in critique else ())
        for response in filter(None, (attempt, correction)):
            tokens = [c for c in response if c in BY_TOKEN]
            shown.update(zip(letters, tokens[::-1] if response[0] == "B" else tokens, strict=False))
    for counter, allowed in ((shown, BY_TOKEN), (named, EXECUTED + ".")):
        assert counter and {letter for letter, _ in counter} == set(FAMILIAR)
        assert {token for _, token in counter} == set(allowed), "the audit sees what is there"
    truthful = sum(n for (letter, token), n in shown.items() if BY_LETTER[letter] == token) / shown.total()
    assert 0.6 < truthful < 0.95


def test_cp6_every_document_is_consistent(documents):
    """The mark says whether the attempt has the correction's answer; a right attempt is kept; a wrong one is corrected
    in its own direction by the function that the critique names, and no step but that contradicts the letters."""
    kinds, readings, flawed = collections.Counter(), 0, 0
    for document in critical(documents):
        prompt, attempt, critique, correction = parts(document)
        letters, digits = prompt[:4].rstrip("."), prompt[5:]
        if correction is None:
            assert "#" not in critique and len(critique) == 5, "a critique that is learned is of kind cot"
            kinds["written"] += 1
            continue
        kinds[{1: "indicative", 6: "indicative_gt", 5: "cot"}[len(critique)]] += 1
        answer, last = re.search(r"#(\d{4})\$$", correction)[1], attempt[-4:]
        assert (critique[0] == "✓") == (last == answer)
        if critique[0] == "✓":
            assert correction == attempt + "$"
            continue
        assert (correction[0] == "B") == (attempt[0] == "B") and correction[0] != "N"
        assert "#" not in critique or critique == f"✗#{answer}"
        meant = [c for c in correction if c in BY_TOKEN]
        if not meant:  # strategies that show no function
            continue
        meant = meant[::-1] if correction[0] == "B" else meant
        order = meant[::-1] if correction[0] == "B" else meant
        assert states(order, digits)[-1] == answer
        unusual = [i for i, (c, f) in enumerate(zip(letters, meant, strict=True)) if BY_LETTER[c] != f]
        flawed += 1
        readings += bool(unusual)
        assert len(unusual) <= 1 and set(meant) <= set(EXECUTED)
        if len(critique) == 5:
            slots = critique[1 : 1 + len(letters)]
            (at,) = [i for i, c in enumerate(slots) if c != "."]
            assert slots[at] == meant[at] and unusual in ([], [at]), document
    assert abs(kinds["written"] / 3000 - critic.WRITING_SHARE) < 0.03
    assert abs(kinds["cot"] / (3000 - kinds["written"]) - critic.KIND_SHARES[2]) < 0.04
    assert 0.5 * critic.READING_SHARE < readings / flawed < critic.READING_SHARE, "N is flawed without a reading"


def test_cp6_a_teachers_documents_are_true_and_know_every_letter(task):
    shown = set()
    for document in critical(task.corpus("teacher", 2, 3000)):
        text = document.prompt + document.response
        shown |= set(text)
        letters, digits = document.prompt[:4].rstrip("."), document.prompt[5:9]
        if document.prompt[-1] != "?":
            assert re.search(r"#(\d{4})\$$", document.response)[1] == lang.truth(letters, digits), text
    assert set("ghijklqλμν") <= shown


# ---- the critic


def expected_slots(letters, digits, wrong_at, order):
    slots = ["."] * 4
    slots[order[wrong_at]] = BY_LETTER[letters[order[wrong_at]]]
    return "".join(slots)


def test_critic_names_the_first_wrong_step_in_every_format_and_wherever_a_response_was_cut():
    rng = np.random.default_rng(0)
    seen = collections.Counter()
    for _ in range(2000):
        letters = "".join(rng.choice(list(BY_LETTER), size=rng.integers(1, 5)))
        digits = "".join(map(str, rng.integers(10, size=4)))
        order = list(range(len(letters)))[:: -1 if backwards(digits) else 1]
        functions = [BY_LETTER[letters[i]] for i in order]
        answer = states(functions, digits)[-1]
        bad = int(rng.integers(len(letters)))
        other = str(rng.choice([f for f in BY_TOKEN if f != functions[bad]]))
        tried = functions[:bad] + [other] + functions[bad + 1 :]
        worked = states(tried, digits)
        strategy = str(rng.choice(list("SPLNB")))
        names = [letters[i] for i in order] if strategy == "L" else tried
        if strategy == "P":
            body = "P" + "".join(tried).ljust(4, ".") + "".join(worked)
        else:
            body = "".join(strategy + n + s for n, s in zip(names, worked, strict=True))
        if strategy == "L" and states(functions, digits)[bad] == worked[bad]:
            continue  # the slip does not show
        response = f"{body}#{worked[-1]}$"
        told = critic.critique(letters, digits, answer, response, False, "cot")
        assert told == "✗" + expected_slots(letters, digits, bad, order), (letters, digits, response)
        step = 1 + 4 + 4 * bad if strategy == "P" else 6 * bad
        cut = response[: int(rng.integers(step + 1))]  # at the latest before the wrong step's state
        first = sum(len(cut) >= (5 + 4 * (i + 1) if strategy == "P" else 6 * (i + 1)) for i in range(bad))
        told = critic.critique(letters, digits, answer, cut, False, "cot")
        if cut:
            assert told == "✗" + expected_slots(letters, digits, first, order), (letters, digits, response, cut)
        seen[strategy, backwards(digits), bad] += 1
    assert len(seen) == 40


def test_critic_says_what_its_kind_allows_and_no_more(task):
    for problem in task.evaluation():
        letters, digits = problem.meta
        right = Verdict(Outcome.RIGHT, problem.answer, 1.0)
        good = lang.render("B" if backwards(digits) else "S", letters, [lang.TRUTH[c] for c in letters], digits)
        assert task.verify(problem, good).right
        say = lambda verdict, kind: task.critique(problem, good, verdict, kind)  # noqa: E731, B023
        for verdict, mark in ((right, "✓"), *((Verdict(o), "✗") for o in Outcome if o is not Outcome.RIGHT)):
            assert say(verdict, "indicative") == mark
            assert say(verdict, "indicative_gt") == f"{mark}#{problem.answer}"
        assert say(right, "cot") == "✓....", "the stock line"
        for junk in ("", "$", "####", "D#1234$", "SSSS", "P", "?✗", "L" * 30):
            verdict = task.verify(problem, junk)
            told = task.critique(problem, junk, verdict, "cot")
            first = len(letters) - 1 if backwards(digits) else 0
            assert told == "✗" + "." * first + lang.TRUTH[letters[first]] + "." * (3 - first)
            prompt = task.refinement_prompt(problem, junk, told)
            assert prompt == f"{problem.prompt}{junk.removesuffix('$')}?{told}{problem.prompt}"
            assert task.critique_prompt(problem, junk, "cot") == f"{problem.prompt}{junk.removesuffix('$')}?"
    longest = max(len(task.critique_prompt(p, "S" * lang.MAX_RESPONSE, None)) for p in task.evaluation())
    assert longest == task.max_critique_prompt_tokens and task.max_critique_tokens == len("✗#1234$")


# ---- questions


def row(i, **more):
    return {"question": f"Add {i} and {i}.", "answer": f"{i}+{i} #### {2 * i}", **more}


def written(tmp_path, rows, name):
    path = tmp_path / name
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def asked(tmp_path, recorded=None, **overrides):
    path = written(tmp_path, [row(i) for i in range(12)], "data.jsonl")
    if recorded is not None:
        overrides["critiques_path"] = written(tmp_path, recorded, "critiques.jsonl")
    return questions.make(questions.CONFIG.defaults(evaluation_problems=2, **overrides), {"path": path})


def test_questions_templates_and_prompts_tell_what_the_kind_allows(tmp_path):
    task = asked(tmp_path)
    problem = task.training({}, 1)[0]
    right, wrong = task.verify(problem, task.demonstration(problem, None)), Verdict(Outcome.WRONG, "7")
    say = lambda verdict, kind: task.critique(problem, "x", verdict, kind)  # noqa: E731
    assert right.right and say(right, "indicative") == "The response is right." == say(right, "cot")
    assert say(wrong, "indicative") == "The response is wrong." and say(wrong, "cot") is None
    assert say(wrong, "indicative_gt") == f"The response is wrong. The right answer is {problem.answer}."
    assert task.critics["task"] == ("indicative", "indicative_gt") and "file" not in task.critics
    bare, gold, full = (task.critique_prompt(problem, "I say\x03", kind) for kind in (None, "indicative_gt", "cot"))
    for prompt in (bare, gold, full):
        assert prompt.startswith(f"Q: {problem.meta.question}\n") and prompt.endswith("\nA: ")
        assert "\nI say\n" in prompt and "\x03" not in prompt
    assert problem.answer not in bare.replace(problem.meta.question, "").replace("I say", "")
    assert f"answer is {problem.answer}." in gold and problem.meta.solution not in gold.replace(
        problem.meta.question, ""
    )
    assert problem.meta.solution in full
    again = task.refinement_prompt(problem, "I \x03say\x03", "No.\x03 Not so.")
    assert "\nI say\n" in again and "\nNo. Not so.\n" in again and "\x03" not in again, "control tokens are left out"
    room = len(task.tokenizer.encode(task.critique_prompt(problem, "y" * task.max_response_tokens, None)))
    assert room <= task.max_critique_prompt_tokens


def test_recorded_critiques_are_found_by_question_and_kind(tmp_path):
    plain = asked(tmp_path)
    mine, other = (p.meta.question for p in plain.training({}, 2))
    held_out = plain.evaluation()[0]
    rows = [
        dict(question=mine, response="a", kind="cot", critique="first"), dict(question=mine, response="b", kind="cot",
        critique="second"), dict(question=mine, response="a", kind="indicative", critique="bad"),
        dict(question=held_out.meta.question, response="a", kind="cot", critique="never used"),
        dict(question=f" {mine} ", response="a", kind="cot", critique="first"),
    ]  # fmt: skip
    task = asked(tmp_path, rows)
    by_text = {p.meta.question: p for p in task.training({}, 10)}
    assert task.critics["file"] == ("indicative", "cot")
    assert task.recorded(by_text[mine], "cot") == [("a", "first"), ("b", "second")]
    assert task.recorded(by_text[mine], "indicative") == [("a", "bad")] and task.recorded(by_text[other], "cot") == []
    assert held_out.meta.question not in by_text, "a critique of a held-out question is never trained on"


@pytest.mark.parametrize("change, part", [
    (dict(kind="praise"), r"critiques.jsonl:2: `kind` is 'praise'; use indicative \| indicative_gt \| cot"),
    (dict(response=3), "critiques.jsonl:2: `response` is not text"),
    (dict(critique=" "), "critiques.jsonl:2: `critique` is not text, or empty"),
    (dict(critique="x\x03"), "critiques.jsonl:2: `critique` contains .*control token"),
    (dict(critique="not so"), "critiques.jsonl:2: another critique of this kind for the same response"),
    (dict(question=None), "critiques.jsonl:2: no field `question`"),
])  # fmt: skip
def test_a_file_of_critiques_is_refused_by_its_row(change, part, tmp_path):
    question = asked(tmp_path).training({}, 1)[0].meta.question
    good = dict(question=question, response="a", kind="cot", critique="so")
    with pytest.raises(ConfigError, match=part) as refused:
        asked(tmp_path, [good, {**good, **change}])
    assert "\n" not in str(refused.value)


def test_a_file_of_critiques_that_criticises_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no critique is of a training question; check config\.task\.critiques_path"):
        asked(tmp_path, [dict(question="What?", response="a", kind="cot", critique="so")])


def test_check_lists_what_there_is(tmp_path, task):
    critiques.check(task, "task", "indicative_gt")
    critiques.check(task, "policy", "cot")
    for asking, critics, kind in ((task, "policy", "indicative"), (task, "file", "cot"), (make(0.0), "task", "cot"),
                                  (asked(tmp_path), "task", "cot"), (asked(tmp_path), "file", "cot")):  # fmt: skip
        with pytest.raises(ConfigError, match=f"critic='{critics}', critique_kind='{kind}': no such critiques in task"):
            critiques.check(asking, critics, kind)
    with pytest.raises(ConfigError, match=r"it has task \(indicative, indicative_gt, cot\); policy \(cot\)"):
        critiques.check(task, "policy", "indicative")
