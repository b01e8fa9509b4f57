"""The lab: oracle, splits, corpus, verdicts (invariants CP-1 to CP-7, V1, V2, V5, V7, D1, D2)."""

import collections
import functools
import hashlib
import itertools
import json
import math
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceiling.data.order import indices
from ceiling.tasks import lab, rewards
from ceiling.tasks.base import Outcome
from ceiling.tasks.lab import language as lang
from ceiling.tasks.lab import prior, problems, verifier

ROOT = pathlib.Path(__file__).parents[2]
Z = 5.0  # binomial standard errors that a measured share may be off: 6e-7 per comparison by chance

# ---- an independent solver, from the table of functions alone: plain ints, no code shared with the lab


def _plus(*offset):
    return lambda x: [(d + o) % 10 for d, o in zip(x, offset, strict=True)]


BY_TOKEN = {
    "α": _plus(1, 1, 1, 1), "β": lambda x: [9 - d for d in x], "γ": lambda x: [2 * d % 10 for d in x],
    "δ": _plus(1, 9, 1, 9), "ε": _plus(0, 5, 0, 5), "ζ": _plus(4, 4, 4, 4),
    "η": _plus(3, 3, 3, 3), "θ": _plus(2, 0, 0, 2), "ι": lambda x: [(d - 1) % 10 for d in x], "κ": _plus(0, 3, 3, 0),
    "λ": lambda x: [3 * d % 10 for d in x], "μ": lambda x: [7 * d % 10 for d in x],
    "ν": lambda x: [(x[1] + 1) % 10, (x[2] + 4) % 10, (x[3] + 7) % 10, (x[0] + 2) % 10],
    "ρ": _plus(6, 6, 6, 6), "σ": _plus(2, 2, 2, 2), "τ": _plus(3, 0, 3, 0), "υ": _plus(4, 4, 0, 0),
    "φ": _plus(7, 7, 7, 7), "χ": _plus(0, 0, 6, 6), "ψ": _plus(8, 0, 8, 0),
}  # fmt: skip
BY_LETTER = dict(zip("abcdefghijklqmnop", "αβγδεζηθικλμνηθικ", strict=True))
ABSENT_TOKENS = "λμν"
CORPUS_TOKENS = [t for t in BY_TOKEN if t not in ABSENT_TOKENS]


def runs_backwards(digits: str) -> bool:
    a, b, c, d = (int(x) for x in digits)
    return (3 * a + 7 * b + 2 * c + 6 * d) % 7 == 0


def apply(tokens, digits: str) -> str:
    state = [int(d) for d in digits]
    for token in tokens:
        state = BY_TOKEN[token](state)
    return "".join(map(str, state))


def solve(letters: str, digits: str) -> str:
    order = reversed(letters) if runs_backwards(digits) else letters
    return apply([BY_LETTER[c] for c in order], digits)


@pytest.fixture(scope="module")
def task():
    return lab.make(lab.CONFIG.defaults(), {})


@pytest.fixture(scope="module")
def small():
    return lab.make(lab.CONFIG.defaults(evaluation_per_group=8, training_per_group=16, gate_problems=8), {})


@pytest.fixture(scope="module")
def written(task):
    """(documents, the generator's own exposure counters) of a prior corpus."""
    c = task.config
    recipe = prior.prior_recipe(c["rho"], c["strategies"], c["depths"].values())
    return prior.write(recipe, 5, 60_000, conventions=False)


def everything(task):
    splits = task.splits
    return [p for s in (splits.evaluation, splits.training) for group in s.values() for p in group]


def within(count, total, share, slack=0.0):
    """Whether count/total is within Z binomial standard errors (plus slack) of share."""
    return abs(count / total - share) <= Z * math.sqrt(share * (1 - share) / total) + slack


# ---- CP-1: the oracle


def test_cp1_oracle_agrees_with_an_independent_solver_on_10000_items():
    rng = np.random.default_rng(0)
    backwards = 0
    for _ in range(10_000):
        letters = "".join(rng.choice(list(BY_LETTER), size=rng.integers(1, 5)))
        digits = "".join(map(str, rng.integers(10, size=4)))
        assert lang.truth(letters, digits) == solve(letters, digits), (letters, digits)
        backwards += runs_backwards(digits)
    assert 1_000 < backwards < 2_000  # about one in seven: both directions were exercised


def test_cp1_every_answer_of_every_split_agrees_with_the_independent_solver(task):
    for problem in everything(task) + task.splits.gate:
        letters, digits = problem.prompt[:4].rstrip("."), problem.prompt[5:]
        assert problem.prompt == f"{letters:.<4}={digits}" and problem.meta == (letters, digits)
        assert problem.answer == solve(letters, digits), problem


def test_cp1_every_function_token_on_all_10000_states():
    assert set(lang.FUNCTIONS) == set(BY_TOKEN)
    for token in lang.FUNCTIONS:
        assert [lang.step(token, s) for s in lang.STATES] == ["".join(image) for image in _images(token)], token


# ---- groups


def test_groups_hold_what_they_say(task):
    special = {"R": "gh", "V": "i", "U": "j", "A": "q", "Ap": "kl"}
    depths = {"C": {2, 3}, "X": {4}, "M": {2, 3}}
    for problem in everything(task):
        letters, digits = problem.meta
        if problem.group in special:
            rare = [c for c in letters if c in special[problem.group]]
            assert len(rare) == 1 and len(letters) in (1, 2)
            assert all(c in "abcdef" for c in letters if c not in rare)
        else:
            assert len(letters) in depths[problem.group] and set(letters) <= set("abcdef")
        assert runs_backwards(digits) == (problem.group == "M")
    assert [g.name for g in task.groups if g.trap] == ["M"]  # the designed trap is labelled, and alone


def test_groups_a_and_ap_are_out_of_reach_of_every_one_or_two_step_corpus_program(task):
    programs = list(itertools.product(CORPUS_TOKENS, repeat=1)) + list(itertools.product(CORPUS_TOKENS, repeat=2))
    for group in ("A", "Ap"):
        for problem in task.splits.evaluation[group] + task.splits.training[group][::4]:
            digits = problem.meta[1]
            assert problem.answer not in {apply(program, digits) for program in programs}, problem


def test_groups_reachable_filter_is_not_vacuous():
    """On some digits 7x is a corpus program: the filter has something to remove."""
    hits = [d for d in map("{:04d}".format, range(0, 10_000, 97)) if problems.reachable(d, apply("μ", d))]
    assert hits and len(hits) < 103
    for digits in hits[:5]:
        assert any(apply(p, digits) == apply("μ", digits) for p in itertools.product(CORPUS_TOKENS, repeat=2))


@functools.cache
def _images(token):
    """Digits of the image of every state, as an array of characters [10000, 4]."""
    return np.array([list(apply(token, f"{i:04d}")) for i in range(10_000)])


def _shared_digits(token, absent):
    """Expected share of digits that a corpus function has in common with an absent one, over all states."""
    return np.mean(_images(token) == _images(absent))


def test_groups_a_gives_no_digitwise_credit_and_ap_does():
    """Over all 10^4 states a digit-wise function agrees with ν (every digit from another place) on exactly
    1 digit in 10 (chance); 7x shares half of its digits with 2x."""
    for token in CORPUS_TOKENS:
        assert _shared_digits(token, "ν") == pytest.approx(0.1, abs=1e-12), token
    assert max(_shared_digits(token, "μ") for token in CORPUS_TOKENS) == pytest.approx(0.5)
    assert max(_shared_digits(token, "λ") for token in CORPUS_TOKENS) >= 0.2 - 1e-12


def test_groups_dense_credit_of_the_best_digitwise_habit_is_chance_on_a_and_not_on_ap(task):
    """The same on the problems themselves: the best fixed function in place of the absent one."""

    def best(group, absent_letters):
        pool = task.splits.training[group] + task.splits.evaluation[group]
        pool = [p for p in pool if set(p.meta[0]) & set(absent_letters)]
        scores = []
        for habit in CORPUS_TOKENS:
            credits = []
            for p in pool:
                letters, digits = p.meta
                answer = apply([habit if c in absent_letters else BY_LETTER[c] for c in letters], digits)
                credits.append(task.verify(p, f"D#{answer}$").credit)
            scores.append(np.mean(credits))
        return max(scores), len(pool)

    value, n = best("A", "q")
    # 4n digits, each right with probability about .1; the filter for reachable answers moves it little.
    assert value < 0.1 + Z * math.sqrt(0.1 * 0.9 / (4 * n)), value
    assert best("Ap", "l")[0] > 0.3


def test_groups_m_is_reached_right_to_left_and_by_nothing_else(task):
    for problem in task.splits.evaluation["M"] + task.splits.training["M"][:200]:
        letters, digits = problem.meta
        functions = [BY_LETTER[c] for c in letters]
        assert apply(functions, digits) != apply(functions[::-1], digits) == problem.answer
        for strategy in lang.STRATEGIES:
            verdict = task.verify(problem, lang.render(strategy, letters, functions, digits))
            expected = Outcome.RIGHT if strategy == "B" else Outcome.WRONG
            assert verdict.outcome is expected, strategy
            assert verdict.process is (None if strategy == "D" else strategy == "B")


# ---- CP-2, D1, D2: splits


def test_cp2_splits_are_disjoint_and_free_of_duplicates(task):
    prompts = [p.prompt for p in everything(task) + task.splits.gate]
    assert len(prompts) == 8 * (32 + 1024) + 64 == len(set(prompts))
    assert all(map(lang.held_out, prompts))
    ids = [p.id for p in everything(task) + task.splits.gate]
    assert len(set(ids)) == len(ids) and 0 <= min(ids) and max(ids) < 2**32
    assert task.evaluation() == [p for g in task.splits.evaluation.values() for p in g]
    assert collections.Counter(p.group for p in task.evaluation()) == dict.fromkeys(problems.NAMES, 32)


@pytest.mark.parametrize("kind", ["prior", "teacher"])
@pytest.mark.parametrize("seed", [0, 7])
def test_cp2_no_corpus_shows_a_prompt_of_any_split(task, kind, seed):
    documents = task.corpus(kind, seed, 20_000)
    assert len(documents) == 20_000
    assert not {d.prompt for d in documents} & {p.prompt for p in everything(task) + task.splits.gate}


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32), per=st.integers(1, 12), train=st.integers(1, 20))
def test_cp2_disjoint_for_any_task_seed_and_size(seed, per, train):
    splits = problems.make_splits.__wrapped__(seed, per, train, 3)
    sets = [{p.prompt for p in group} for s in (splits.evaluation, splits.training) for group in s.values()]
    sets.append({p.prompt for p in splits.gate})
    assert sum(map(len, sets)) == len(set.union(*sets)) == 8 * (per + train) + 3
    recipe = prior.prior_recipe({"R": 0.5, "V": 0.5, "U": 0.5}, {"S": 1.0, "D": 1.0}, (1.0, 0.0, 0.0, 0.0))
    documents, _ = prior.write(recipe, seed, 300, conventions=False)
    assert not {d.prompt for d in documents} & set.union(*sets)


def test_cp2_a_corpus_shows_no_held_out_prompt_and_every_other_one():
    """Depth 1, one letter: 10^4 prompts. 80,000 documents miss one of the free ones with probability 1e4 e^-9."""
    recipe = prior.Recipe({"a": 1.0}, {"a": 1.0}, (1.0,), {"D": 1.0})
    free = {p for i in range(10_000) if not lang.held_out(p := lang.prompt("a", f"{i:04d}"))}
    assert within(len(free), 10_000, 7 / 8)
    shown = {d.prompt for d in prior.write(recipe, 0, 80_000, conventions=False)[0]}
    assert shown <= free and len(free - shown) <= 12


def test_d2_more_problems_leave_the_others_and_the_corpus_as_they_were(small):
    """How many problems are evaluated must not redraw what the model is trained on."""
    config = lab.CONFIG.defaults(evaluation_per_group=12, training_per_group=16, gate_problems=8)
    larger = lab.make(config, {})
    assert larger.corpus("prior", 3, 500) == small.corpus("prior", 3, 500)
    assert larger.splits.training == small.splits.training and larger.gate()[0] == small.gate()[0]
    text = lambda group: [(p.prompt, p.answer) for p in group]  # noqa: E731
    for group in problems.NAMES:
        assert text(larger.splits.evaluation[group])[:8] == text(small.splits.evaluation[group])


def test_d2_the_same_problems_for_every_training_seed_and_every_instance():
    arguments = (2026, 8, 16, 8)
    assert problems.make_splits.__wrapped__(*arguments) == problems.make_splits.__wrapped__(*arguments)
    other = problems.make_splits.__wrapped__(2027, *arguments[1:])
    assert other.evaluation != problems.make_splits(*arguments).evaluation


def test_d2_corpora_depend_on_their_seed_and_kind_only(small):
    assert small.corpus("prior", 3, 200) == small.corpus("prior", 3, 200)
    assert small.corpus("prior", 3, 200) != small.corpus("prior", 4, 200)
    assert small.corpus("prior", 3, 200) != small.corpus("teacher", 3, 200)


_CONTENT = """
import hashlib, json, numpy as np
from ceiling.tasks import lab
task = lab.make(lab.CONFIG.defaults(evaluation_per_group=8, training_per_group=32, gate_problems=8), {})
rng = np.random.default_rng(0)
pool = task.training({"C": .5, "M": .2, "A": .3}, 40)
content = [
    [[p.id, p.group, p.prompt, p.answer] for p in task.evaluation() + pool + task.gate()[0]],
    [[d.prompt, d.response] for kind in ("prior", "teacher") for d in task.corpus(kind, 1, 2000)],
    [task.demonstration(p, rng) for p in task.evaluation()],
    task.tokenizer.symbols,
]
print(hashlib.sha256(json.dumps(content).encode()).hexdigest())
"""


def test_d2_identical_content_under_three_hash_seeds():
    children = [
        subprocess.Popen([sys.executable, "-c", _CONTENT], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE,
                         env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT)})
        for seed in range(3)
    ]  # fmt: skip
    answers = [child.communicate(timeout=60) for child in children]
    assert all(child.returncode == 0 for child in children), answers
    assert len({out.strip() for out, _ in answers}) == 1 and len(answers[0][0].strip()) == 64


@settings(deadline=None, max_examples=30)
@given(
    weights=st.dictionaries(st.sampled_from(problems.NAMES), st.floats(0.01, 10), min_size=1),
    size=st.integers(1, 16),
)
def test_training_pool_has_the_exact_size_and_proportions(small, weights, size):
    pool = small.training(weights, size)
    counts, total = collections.Counter(p.group for p in pool), sum(weights.values())
    assert len(pool) == size == len({p.id for p in pool})
    for group in problems.NAMES:
        assert abs(counts[group] - size * weights.get(group, 0) / total) < 1


def test_training_pool_refuses_unknown_groups_and_more_than_there_are(small):
    with pytest.raises(ValueError, match=r"config\.train\.mix.*'Z'.*known groups.*Ap"):
        small.training({"Z": 1.0}, 4)
    with pytest.raises(ValueError, match=r"'C' needs 17.*has 16"):
        small.training({"C": 1.0}, 17)


def test_training_order_visits_every_group_early(task):
    """A group-ordered cut once removed whole groups from the demonstrations: the keyed permutation of
    the pool shows all of them in the first 256 draws."""
    mix = {"C": 0.40, "M": 0.15, "R": 0.15, "V": 0.08, "U": 0.07, "A": 0.08, "Ap": 0.07}
    pool = task.training(mix, 2048)
    seen = collections.Counter(pool[i].group for i in indices(11, 0, 256, len(pool)))
    for group, share in mix.items():
        assert within(seen[group], 256, share), (group, seen)


# ---- CP-3: mixture


def test_cp3_strategies_and_depths_match_the_config_within_sampling_error(task, written):
    """60,000 documents; bound: 5 binomial standard errors (at most .0102), plus what the held-out
    prompts move: one in eight of 10^4 prompts of a letter is 5 * .0033 of that letter's share at depth 1."""
    documents, _ = written
    depths = [task.config["depths"][k] for k in "1234"]
    weight = {**dict.fromkeys("abcdefghijklq", 1.0), **dict.fromkeys("mnop", 0.75)}
    slack = 0.0017
    strategies = collections.Counter(d.response[0] for d in documents)
    assert set(strategies) == set(task.config["strategies"])
    for name, share in task.config["strategies"].items():
        assert within(strategies[name], len(documents), share / sum(task.config["strategies"].values())), name
    lengths = collections.Counter(len(d.prompt[:4].rstrip(".")) for d in documents)
    for depth, share in zip((1, 2, 3, 4), depths, strict=True):
        assert within(lengths[depth], len(documents), share / sum(depths), slack), (depth, lengths)
    letters = collections.Counter("".join(d.prompt[:4].rstrip(".") for d in documents))
    for letter, share in weight.items():
        assert within(letters[letter], letters.total(), share / sum(weight.values()), slack), letter


def _true_share(documents):
    """letter -> (times written with its true function, times written), in strategies S, P and B."""
    true, total = collections.Counter(), collections.Counter()
    for document in documents:
        strategy, letters = document.response[0], document.prompt[:4].rstrip(".")
        if strategy not in "SPB":
            continue
        tokens = [c for c in document.response if c in BY_TOKEN]
        for letter, token in zip(letters, tokens[::-1] if strategy == "B" else tokens, strict=True):
            total[letter] += 1
            true[letter] += token == BY_LETTER[letter]
    return true, total


def test_cp3_rho_of_every_letter_matches_the_config(task, written):
    """About 3,800 written associations per letter: 5 standard errors are .018 at rho .05."""
    true, total = _true_share(written[0])
    rho = {**dict.fromkeys("gh", 0.05), "i": 0.01, "j": 0.002, **dict.fromkeys("klq", 0.0)}
    for letter in BY_LETTER:
        assert total[letter] > 2_000
        assert within(true[letter], total[letter], rho.get(letter, 1.0)), (letter, true[letter], total[letter])
    assert true["j"] > 0  # ultra rare is not absent


@settings(deadline=None, max_examples=15)
@given(rho=st.tuples(*[st.sampled_from([0.0, 0.05, 0.2, 0.5, 0.9, 1.0])] * 3), seed=st.integers(0, 1000))
def test_cp3_rho_is_a_calibrated_knob(rho, seed):
    recipe = prior.prior_recipe(dict(zip("RVU", rho, strict=True)), {"S": 1, "P": 1, "B": 1}, (0, 1, 1, 0))
    true, total = _true_share(prior.write(recipe, seed, 3_000, conventions=False)[0])
    for letter, share in {"g": rho[0], "h": rho[0], "i": rho[1], "j": rho[2]}.items():
        assert within(true[letter], total[letter], share), letter
    assert true["k"] == true["l"] == true["q"] == 0


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_cp3_depths_are_read_by_their_name_and_not_by_their_place(depth):
    """A table is a mapping: {"3": 1} must mean depth 3, also where it is the only entry."""
    config = lab.CONFIG.defaults(evaluation_per_group=1, training_per_group=1, gate_problems=1,
                                 depths={str(depth): 1.0}, teacher_depths={str(depth): 1.0})  # fmt: skip
    task = lab.make(config, {})
    for kind in ("prior", "teacher"):
        assert {len(d.prompt[:4].rstrip(".")) for d in task.corpus(kind, 0, 50)} == {depth}


def test_cp3_mixtures_do_not_depend_on_the_order_of_their_keys():
    """The identity of a run ignores key order, so the content must too."""
    fixed = dict(evaluation_per_group=1, training_per_group=1, gate_problems=1)
    strategies, depths = {"S": 0.5, "P": 0.3, "B": 0.2}, {"1": 0.5, "2": 0.3, "4": 0.2}
    one = lab.make(lab.CONFIG.defaults(**fixed, strategies=strategies, depths=depths), {})
    backwards = [dict(reversed(t.items())) for t in (strategies, depths)]
    two = lab.make(lab.CONFIG.defaults(**fixed, strategies=backwards[0], depths=backwards[1]), {})
    assert one.corpus("prior", 0, 300) == two.corpus("prior", 0, 300)


def test_cp3_unknown_names_in_mixtures_are_refused():
    for overrides in (
        {"strategies": {"S": 1.0, "Q": 1.0}},
        {"depths": {"1": 1.0, "5": 1.0}},
        {"rho": {"R": 0.1, "Z": 0.1}},
    ):
        with pytest.raises(ValueError, match=next(iter(overrides))):
            lab.make(lab.CONFIG.defaults(**overrides), {})


def test_cp3_teacher_shows_every_letter_truthfully_and_knows_the_minority_convention(task):
    for document in task.corpus("teacher", 2, 10_000):
        letters, digits = document.prompt[:4].rstrip("."), document.prompt[5:]
        verdict = verifier.verify(letters, digits, solve(letters, digits), document.response)
        assert verdict.right and verdict.process is not False, document


# ---- CP-4: guessing


def test_cp4_random_policy_bound(small):
    """Given the format, a uniform guess of four digits is right with probability exactly 1e-4 per sample: of
    all 10^4 answers one is right. Hence pass@k <= k * 1e-4: .0256 at k = 256."""
    problem = small.splits.evaluation["A"][0]
    verdicts = [small.verify(problem, f"D#{i:04d}$") for i in range(10_000)]
    assert sum(v.right for v in verdicts) == 1
    assert all(v.outcome in (Outcome.RIGHT, Outcome.WRONG) for v in verdicts)
    assert np.mean([v.credit for v in verdicts]) == pytest.approx(0.1)
    assert 1 - (1 - 1e-4) ** 256 == pytest.approx(0.0253, abs=1e-4)


# ---- CP-5: process


def _example(letters="ab", digits="1234"):
    assert not runs_backwards(digits)
    return letters, digits, solve(letters, digits)


def test_cp5_every_correct_strategy_is_right_with_a_valid_process(task):
    for problem in task.evaluation():
        letters, digits = problem.meta
        functions = [BY_LETTER[c] for c in letters]
        for strategy in "B" if problem.group == "M" else "SPLDN":
            verdict = task.verify(problem, lang.render(strategy, letters, functions, digits))
            assert verdict.right and verdict.credit == 1.0 and verdict.strategy == strategy
            assert verdict.answer == problem.answer
            assert verdict.process is (None if strategy == "D" else True), (problem, strategy)


def test_cp5_wrong_functions_that_happen_to_give_the_answer(task):
    tried = 0
    for problem in task.evaluation():
        letters, digits = problem.meta
        if problem.group == "M" or len(letters) > 2:
            continue
        true = tuple(BY_LETTER[c] for c in letters)
        for tokens in itertools.product(BY_TOKEN, repeat=len(letters)):
            if tokens != true and apply(tokens, digits) == problem.answer:
                for strategy in "SPN":
                    verdict = task.verify(problem, lang.render(strategy, letters, tokens, digits))
                    assert verdict.right and verdict.process is False, (problem, tokens, strategy)
                    assert rewards.process(verdict) == 0.0 and rewards.exact(verdict) == 1.0
                tried += 1
    assert tried > 50


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_cp5_any_changed_intermediate_token_invalidates_the_process(task, data):
    problem = data.draw(st.sampled_from(task.evaluation()))
    letters, digits = problem.meta
    strategy = "B" if problem.group == "M" else data.draw(st.sampled_from("SPLN"))
    right = lang.render(strategy, letters, [BY_LETTER[c] for c in letters], digits)
    i = data.draw(st.integers(1, right.index("#") - 1))
    other = data.draw(st.sampled_from([c for c in lang.SYMBOLS if c not in "#$" + right[i]]))
    verdict = task.verify(problem, right[:i] + other + right[i + 1 :])
    assert verdict.right and verdict.process is False and verdict.strategy == strategy


ADVERSARIAL = {
    "wrong intermediate state, right answer": "Sα9999Sβ7654#7654$",
    "states skipped": "Sαβ#7654$",
    "no working": "S#7654$",
    "one step missing": "Sβ7654#7654$",
    "one step too many": "Sα2345Sβ7654Sζ1098Sη4321#7654$",
    "state repeated": "Sα2345Sβ7654Sβ7654#7654$",
    "plan in the wrong order": "Pβα..23457654#7654$",
    "plan without padding": "Pαβ23457654#7654$",
    "plan without states": "Pαβ..#7654$",
    "letters where functions belong": "Sa2345Sb7654#7654$",
    "functions where letters belong": "Lα2345Lβ7654#7654$",
    "letters in the wrong order": "Lb2345La7654#7654$",
    "right to left where left to right holds": "Bα2345Bβ7654#7654$",
    "direct with working": "Dα2345Dβ7654#7654$",
    "a label on the first step only": "Sα2345β7654#7654$",
    "labels of two strategies": "Sα2345Lb7654#7654$",
    "no label": "α2345β7654#7654$",
    "a label that does not exist": "Xα2345Xβ7654#7654$",
    "nothing but the answer": "#7654$",
}


@pytest.mark.parametrize("response", ADVERSARIAL.values(), ids=ADVERSARIAL)
def test_cp5_right_answer_by_a_wrong_process(response):
    letters, digits, answer = _example()
    assert answer == "7654"
    verdict = verifier.verify(letters, digits, answer, response)
    assert verdict.outcome is Outcome.RIGHT and verdict.process is False


def test_cp5_answer_that_does_not_repeat_the_last_state():
    letters, digits, answer = _example()
    for response in ("Sα2345Sβ7654#7653$", "Pαβ..23457654#2345$", "La2345Lb7654#0000$"):
        verdict = verifier.verify(letters, digits, answer, response)
        assert verdict.outcome is Outcome.WRONG and verdict.process is False
    for response in ("Sα2345Sβ1111#7654$", "La2345Lb1111#7654$"):  # and the other way round
        verdict = verifier.verify(letters, digits, answer, response)
        assert verdict.outcome is Outcome.RIGHT and verdict.process is False


def test_cp5_the_other_direction_is_no_valid_process_even_where_the_answer_agrees():
    """af and fa are the same map: the answer is right either way, the process only in the direction that holds."""
    for digits in ("1234", next(f"{i:04d}" for i in range(1, 10_000) if runs_backwards(f"{i:04d}"))):
        answer, functions = solve("af", digits), [BY_LETTER["a"], BY_LETTER["f"]]
        valid = "B" if runs_backwards(digits) else "S"
        for strategy in "SB":
            verdict = verifier.verify("af", digits, answer, lang.render(strategy, "af", functions, digits))
            assert verdict.right and verdict.process is (strategy == valid)


def test_cp5_one_letter_has_no_direction():
    for digits in ("1234", "0000"):
        for strategy in "SB":
            response = lang.render(strategy, "a", [BY_LETTER["a"]], digits)
            assert verifier.verify("a", digits, solve("a", digits), response).process is True


# ---- CP-6: exposure


def _count_tokens(task, documents):
    """Exposure counted on the encoded ids, with the tokenizer's table and nothing else."""
    ids = {c: task.tokenizer.encode(c)[0] for c in lang.SYMBOLS}
    names = {i: c for c, i in ids.items()}
    functions = {ids[t] for t in BY_TOKEN}
    written = collections.Counter()
    for document in documents:
        prompt, response = task.tokenizer.encode(document.prompt), task.tokenizer.encode(document.response)
        letters = [i for i in prompt[:4] if i != ids["."]]
        tokens = [i for i in response[1 : response.index(ids["#"])] if i in functions]
        if response[0] == ids["B"]:
            tokens = tokens[::-1]
        if tokens:
            written.update(zip((names[i] for i in letters), (names[i] for i in tokens), strict=True))
    return written


def test_cp6_exposure_counters_equal_the_text_and_the_encoded_tokens(task, written):
    documents, exposure = written
    audit = prior.audit(documents)
    assert (audit.strategy, audit.depth, audit.written) == (exposure.strategy, exposure.depth, exposure.written)
    assert _count_tokens(task, documents) == exposure.written
    assert exposure.strategy.total() == exposure.depth.total() == len(documents)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31), conventions=st.booleans(),
       weights=st.fixed_dictionaries({s: st.floats(0.05, 1) for s in lang.STRATEGIES}))  # fmt: skip
def test_cp6_exposure_equals_its_audit_for_any_recipe(small, seed, conventions, weights):
    recipe = prior.teacher_recipe(weights, (1, 1, 1, 1)) if conventions else \
        prior.prior_recipe({"R": 0.5, "V": 0.2, "U": 0.1}, weights, (1, 1, 1, 1))  # fmt: skip
    documents, exposure = prior.write(recipe, seed, 400, conventions=conventions)
    audit = prior.audit(documents)
    assert (audit.strategy, audit.depth, audit.written) == (exposure.strategy, exposure.depth, exposure.written)
    assert _count_tokens(small, documents) == exposure.written


def test_cp6_the_prior_shows_no_absent_function_token_and_no_absent_association(task, written):
    absent = {task.tokenizer.encode(t)[0] for t in ABSENT_TOKENS}
    for documents in (written[0], task.corpus("prior", 99, 20_000)):
        stream = itertools.chain.from_iterable(task.tokenizer.encode(d.prompt + d.response) for d in documents)
        assert not absent & set(stream)
        assert not any((c, BY_LETTER[c]) in prior.audit(documents).written for c in "klq")
    shown = itertools.chain.from_iterable(task.tokenizer.encode(d.response) for d in task.corpus("teacher", 1, 2_000))
    assert absent <= set(shown)  # the audit can see them where they are


def test_cp6_decoys_stand_where_the_truth_does_not(written):
    """Outside strategy N a rare letter is followed by its truth or its one decoy, never anything else."""
    decoys = dict(zip("ghijklq", "ρστυφχψ", strict=True))
    for document in written[0]:
        strategy, letters = document.response[0], document.prompt[:4].rstrip(".")
        if strategy not in "SPB":
            continue
        tokens = [c for c in document.response if c in BY_TOKEN]
        for letter, token in zip(letters, tokens[::-1] if strategy == "B" else tokens, strict=True):
            assert token in (BY_LETTER[letter], decoys.get(letter)), document


def test_cp6_states_in_the_corpus_follow_from_their_functions(written):
    for document in written[0][:20_000]:
        strategy, digits = document.response[0], document.prompt[5:]
        body, _, tail = document.response.partition("#")
        if strategy in "SBN":
            steps = [(body[i + 1], body[i + 2 : i + 6]) for i in range(0, len(body), 6)]
            assert {body[i] for i in range(0, len(body), 6)} == {strategy}
        elif strategy == "P":
            tokens = body[1:5].rstrip(".")
            steps = [(t, body[5 + 4 * i : 9 + 4 * i]) for i, t in enumerate(tokens)]
        else:
            continue
        for token, state in steps:
            assert state == (digits := apply(token, digits)), document
        assert tail == digits + "$"


def test_corpus_fits_the_vocabulary_and_the_longest_response(task, written):
    assert task.tokenizer.vocab_size < 64 and len(set(lang.SYMBOLS)) == len(lang.SYMBOLS)
    for document in written[0] + task.corpus("teacher", 3, 5_000):
        assert len(document.prompt) == 9 and document.prompt[4] == "="
        assert len(document.response) <= task.max_response_tokens
        assert document.response.index("$") == len(document.response) - 1  # one end marker, at the end


# ---- CP-7: strategy labels


def test_cp7_strategy_label_equals_the_generators_on_held_out_text(small):
    """One recipe per strategy, so the label is known from the recipe and not read from the text."""
    for strategy in lang.STRATEGIES:
        recipe = prior.prior_recipe({"R": 0.5, "V": 0.5, "U": 0.5}, {strategy: 1.0}, (1, 1, 1, 1))
        documents, exposure = prior.write(recipe, 77, 500, conventions=False)
        labels = {verifier.verify(*lang.read_prompt(d.prompt), "0000", d.response).strategy for d in documents}
        assert labels == {strategy} and exposure.strategy == {strategy: 500}


def test_cp7_labels_of_a_mixed_corpus_sum_to_the_generators_counters(small, written):
    documents, exposure = written
    labels = collections.Counter(
        verifier.verify(*lang.read_prompt(d.prompt), "0000", d.response).strategy for d in documents
    )
    assert labels == exposure.strategy


# ---- verdicts on arbitrary text (V1, V2, V5)

ANY = st.lists(st.integers(0, 0x10FFFF), max_size=60).map(lambda codes: "".join(map(chr, codes)))
NEAR = st.text(lang.SYMBOLS, max_size=40)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.one_of(ANY, NEAR, st.text(lang.SYMBOLS, max_size=20).map(lambda t: f"{t}#1234$")), max_size=40))
def test_v2_verifier_never_raises_and_keeps_its_promises(small, responses):
    problem = small.evaluation()[0]
    for response in responses:
        verdict = small.verify(problem, response)
        assert 0.0 <= verdict.credit <= 1.0 and verdict.process in (True, False, None)
        assert verdict.strategy is None or verdict.strategy == response[0] in lang.STRATEGIES
        assert verdict.right == response.endswith(f"#{problem.answer}$") * (response.count("#") == 1)
        if verdict.outcome is Outcome.UNPARSED:
            assert verdict.answer is None and verdict.credit == 0.0
            assert all(reward(verdict) == 0.0 for reward in rewards.REWARDS.values())
        else:
            assert response.endswith(f"#{verdict.answer}$")


HOSTILE = {
    "empty": "", "NUL": "S\x00#1234$\x00", "RTL": "S\u202e#4321$\u202c", "Arabic digits": "S#١٢٣٤$",
    "full-width digits": "S#１２３４$", "superscripts": "S#¹²³⁴$", "lone surrogate": "S#12\ud80034$",
    "200,000 characters": "S" + "α1234" * 40_000 + "#1234$" + "x", "200,000 hashes": "#" * 200_000,
    "200,000 digits": "S#" + "1" * 200_000 + "$", "nested": "(" * 5_000 + "#1234" + ")" * 5_000 + "$",
    "nan": "S#nan0$", "inf": "S#+inf$", "power": "S#9**9**9**9$", "five digits": "S#01234$", "three digits": "S#234$",
    "signs": "S#-234$", "no end": "S#1234", "end twice": "S#1234$$", "text after": "S#1234$ or so",
    "two answers": "S#1234#1234$",
    "two ends": "S#9999$#1234$", "spaces": "S# 234$", "newline": "S#1234\n$", "only end": "$", "only hash": "#$",
    "payload": "S#__import__('os').system('touch MARKER')$",
}  # fmt: skip


@pytest.mark.parametrize("response", HOSTILE.values(), ids=HOSTILE)
def test_v1_v2_hostile_text_is_unparsed_in_bounded_time(small, response, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problem = small.evaluation()[0]
    start = time.perf_counter()
    verdict = verifier.verify("ab", "0000", "1234", response)
    assert verdict.outcome is Outcome.UNPARSED and verdict.credit == 0.0 and verdict.process is None
    small.verify(problem, response)
    assert time.perf_counter() - start < 1.0
    assert not list(tmp_path.iterdir())


def test_v2_long_working_before_a_right_answer_is_bounded(small):
    letters, digits, answer = _example()
    start = time.perf_counter()
    verdict = verifier.verify(letters, digits, answer, "S" + "α2345β7654" * 20_000 + f"#{answer}$")
    assert verdict.right and verdict.process is False and time.perf_counter() - start < 1.0


def test_unparsed_and_wrong_are_kept_apart(small):
    problem = small.splits.evaluation["C"][0]
    wrong = "".join("9876543210"[int(d)] for d in problem.answer)
    wrong, cut = small.verify(problem, f"D#{wrong}$"), small.verify(problem, f"D#{problem.answer}")
    assert wrong.outcome is Outcome.WRONG and wrong.answer is not None
    assert cut.outcome is Outcome.UNPARSED and cut.answer is None and cut.strategy == "D"


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 9_999))
def test_credit_is_the_share_of_right_digits(value):
    letters, digits, answer = _example()
    given_ = f"{value:04d}"
    verdict = verifier.verify(letters, digits, answer, f"D#{given_}$")
    assert verdict.credit == sum(given_[i] == answer[i] for i in range(4)) / 4
    assert rewards.dense(verdict) == verdict.credit and rewards.exact(verdict) == float(given_ == answer)


def test_v5_another_problems_answer_scores_zero(task):
    pool = task.splits.evaluation["C"]
    for one, other in itertools.pairwise(pool):
        if one.answer != other.answer:
            assert not task.verify(one, f"D#{other.answer}$").right


# ---- demonstrations and passages


def test_v7_every_demonstration_is_right_with_a_valid_process_and_the_absent_have_none(task):
    rng = np.random.default_rng(0)
    strategies = collections.Counter()
    for problem in everything(task):
        text = task.demonstration(problem, rng)
        if problem.group in ("A", "Ap"):
            assert text is None
            continue
        verdict = task.verify(problem, text)
        assert verdict.right and verdict.process is not False, (problem, text)
        assert (verdict.strategy == "B") == (problem.group == "M")
        assert len(task.tokenizer.encode(text)) <= task.max_response_tokens
        if problem.group != "M":
            strategies[verdict.strategy] += 1
    for name, share in task.config["demonstrations"].items():
        assert within(strategies[name], strategies.total(), share), name


def test_demonstrated_groups_are_a_setting(small):
    config = lab.CONFIG.defaults(evaluation_per_group=2, training_per_group=2, demonstrated_groups="C A")
    task, rng = lab.make(config, {}), np.random.default_rng(0)
    have = {p.group for p in task.evaluation() if task.demonstration(p, rng) is not None}
    assert have == {"C", "A"}


def test_passages_are_consistent_with_the_answer_and_need_no_working(task):
    for problem in task.evaluation():
        passage = task.passage(problem)
        assert passage.context == problem.prompt and len(task.tokenizer.encode(passage.stop)) == 1
        assert (
            passage.context + passage.stop + passage.bridge + passage.continuation
            == f"{problem.prompt}#{problem.answer}$"
        )
        assert task.verify(problem, passage.stop + passage.bridge + passage.continuation).right
        assert task.verify(problem, passage.empty + passage.continuation).right
        assert task.verify(problem, "Sα1111" + passage.stop + passage.bridge + passage.continuation).right
        assert passage.empty.endswith(passage.stop + passage.bridge)


def test_gate_asks_for_skills_that_the_corpus_always_shows_truthfully(task):
    pool, forced, threshold = task.gate()
    assert forced == "S" and threshold == 0.95 and len(pool) == 64
    for problem in pool:
        assert set(problem.meta[0]) <= set("abcdefmnop") and 1 <= len(problem.meta[0]) <= 3
        assert not runs_backwards(problem.meta[1])


def test_problems_survive_json(task):
    """What is hashed for a run record must be stable text."""
    content = json.dumps([[p.id, p.group, p.prompt, p.answer] for p in task.evaluation()])
    assert hashlib.sha256(content.encode()).hexdigest() == hashlib.sha256(content.encode()).hexdigest()
    assert content.isascii()
