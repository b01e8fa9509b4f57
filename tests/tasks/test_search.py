"""Search in the generated world: oracle, splits, corpus, verdicts, calls, early experience (invariants CP-1 to CP-7,
V2, V5, V7, D2, EE-4 to EE-6)."""

import collections
import dataclasses
import itertools
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceiling.config import ConfigError
from ceiling.tasks import search
from ceiling.tasks.base import Outcome
from ceiling.tasks.search import language as lang
from ceiling.tasks.search import prior

ALIAS = {"A": "f", "B": "c", "C": "h", "D": "a", "E": "b", "F": "g", "G": "e"}
DECOY = {"E": "e", "F": "b", "G": "g"}
Z = 5.0  # binomial standard errors that a measured share may be off: 6e-7 per comparison by chance


@pytest.fixture(scope="module")
def task():
    return search.make(search.CONFIG.defaults(), {"path": ""})


@pytest.fixture(scope="module")
def facts(task):
    """(entity, keyword) -> object, read from the one-keyword documents alone."""
    found = [re.fullmatch(r"(...)([a-h])=(...)", text) for text in task.environment.store.documents]
    return {(m[1], m[2]): m[3] for m in found if m}


@pytest.fixture(scope="module")
def written(task):
    """(documents, the generator's own counters) of a prior corpus."""
    return prior.write(task.recipe("prior"), 5, 12_000)


def everything(task):
    splits = task.splits
    return [p for s in (splits.evaluation, splits.training) for group in s.values() for p in group] + splits.gate


def walk(facts, start, keys):
    for key in keys:
        start = facts[start, key]
    return start


def within(count, total, share):
    return abs(count / total - share) <= Z * math.sqrt(share * (1 - share) / total)


def played(task, problem, *own):
    """The turns of an agent that writes `own` in turn, in the task's environment."""
    turns = []
    for text in own[:-1]:
        turns += [text, f"[{task.environment.call(problem, text)}]"]
    return (*turns, own[-1])


# ---- CP-1, CP-2, D2


def test_cp1_oracle_agrees_with_a_walk_over_the_documents_on_10000_items(task, facts):
    assert len(facts) == 120 * 8 and set(facts.values()) <= {entity for entity, _ in facts}
    for problem in everything(task):
        start, relations = re.match(r"(\d{3})([A-G]+)\?", problem.prompt).groups()
        assert problem.meta == (start, relations)
        assert problem.answer == walk(facts, start, [ALIAS[c] for c in relations]), problem
    rng, entities = np.random.default_rng(0), sorted({entity for entity, _ in facts})
    for start, path in zip(rng.choice(entities, 10_000), rng.choice(list(ALIAS), (10_000, 3)), strict=True):
        assert task.splits.world.follow(start, search.world.aliases("".join(path))) == walk(
            facts, start, [ALIAS[c] for c in path])  # fmt: skip


def test_cp1_joint_documents_say_what_the_facts_say(task, facts):
    documents = set(task.environment.store.documents)
    joint = [m for m in (re.fullmatch(r"(...)([a-h]{2})=(...)", text) for text in documents) if m]
    assert all(m[3] == walk(facts, m[1], m[2]) for m in joint) and within(len(joint), 120 * 64, 0.5)
    assert len(documents) == len(task.environment.store.documents) == 120 * 8 + len(joint)


def test_cp2_no_start_of_a_split_is_one_of_another_and_no_corpus_question_starts_at_an_entity(task, facts, written):
    splits = task.splits
    starts = [{p.meta[0] for g in s.values() for p in g} for s in (splits.evaluation, splits.training)]
    starts.append({p.meta[0] for p in splits.gate})
    assert not any(a & b for a, b in itertools.combinations(starts, 2))
    assert not {d.prompt[:3] for d in written[0]} & {entity for entity, _ in facts}
    problems = everything(task)
    assert len({p.id for p in problems}) == len(problems) == 6 * (32 + 512) + 64
    assert len({(p.group, p.meta) for p in problems if p not in splits.gate}) == len(problems) - 64
    assert collections.Counter(p.group for p in task.evaluation()) == dict.fromkeys("CRVAXW", 32)


def test_d2_more_problems_leave_the_others_and_the_corpus_as_they_were(task):
    larger = search.make(search.CONFIG.defaults(evaluation_per_group=40), {"path": ""})
    assert larger.splits.training == task.splits.training and larger.gate() == task.gate()
    assert larger.corpus("teacher", 3, 50) == task.corpus("teacher", 3, 50) != task.corpus("teacher", 4, 50)
    text = lambda group: [(p.prompt, p.answer) for p in group]  # noqa: E731
    for group, problems in task.splits.evaluation.items():
        assert text(larger.splits.evaluation[group])[:32] == text(problems)


def test_groups_hold_what_they_say(task, facts):
    special = {"R": "E", "V": "F", "A": "G"}
    for problem in everything(task):
        start, path = problem.meta
        assert len(path) == (3 if problem.group == "X" else 2)
        assert [c for c in path if c not in "ABCD"] == list(special.get(problem.group, ""))
        if problem.group in special:  # the alias that the corpus shows instead misleads
            assert walk(facts, start, [DECOY.get(c, ALIAS[c]) for c in path]) != problem.answer
        if problem.group == "W":
            call, object_ = re.fullmatch(r".{6}<(.{4})>\[\1=(...)\]", problem.prompt).groups()
            assert call[:3] == start and facts[start, call[3]] == object_ != facts[start, ALIAS[path[0]]]


# ---- CP-3, CP-6: what the corpus shows


def audit(documents):
    """Counts read back from the text alone, with no code of the generator: (strategy, depth, opening, alias)."""
    counts = [collections.Counter() for _ in range(4)]
    for document in documents:
        path = re.match(r"\d{3}([A-G]+)\?", document.prompt)[1]
        own = list(document.response[::2])
        opening = {"?": "empty plan"}.get(own[0][0], "plan") if "#" in own[0] else None
        plan, _, own[0] = own[0].rpartition("#")
        asked = [re.fullmatch(r"<\d{3}(.+)>", turn)[1] for turn in own[:-1]]
        if any(len(keys) == 2 for keys in asked):
            bodies = [re.match(r"\[\d{3}([a-h]+)=", turn)[1] for turn in document.response[1::2]]
            strategy, keys = "J", "".join(bodies)
        else:
            strategy, keys = ("V", "".join(asked[:-1])) if len(asked) > len(path) else ("H", "".join(asked))
        assert len(keys) == len(path) and plan in ("", "?", keys)
        for counter, value in zip(counts, (strategy, len(path), opening), strict=False):
            counter.update([value] if value else [])
        counts[2].update(["recovery"] if "<" in document.prompt else [])
        counts[3].update(zip(path, keys, strict=True))
    return counts


def test_cp6_exposure_counters_equal_an_audit_of_the_text(task, written):
    for documents, exposure in (written, prior.write(task.recipe("teacher"), 1, 1_000)):
        assert audit(documents) == [getattr(exposure, field.name) for field in dataclasses.fields(exposure)]


def test_cp3_shares_of_the_corpus_are_those_of_the_config(task, written):
    documents, exposure = written
    N = len(documents)
    shares = {"J": 0.20 * 0.6, "V": 0.35}  # no joint query of one hop: H instead
    for strategy, share in (shares | {"H": 1 - sum(shares.values())}).items():
        assert within(exposure.strategy[strategy], N, share), strategy
    for depth, share in {1: 0.4, 2: 0.5, 3: 0.1}.items():
        assert within(exposure.depth[depth], N, share)
    for opening, share in {"plan": 0.3, "empty plan": 0.1, "recovery": 0.03}.items():
        assert within(exposure.opening[opening], N, share)
    for relation, rho in {"E": 0.05, "F": 0.01, "G": 0.0, "A": 1.0}.items():
        # A relation may stand twice in a question, with one alias: documents are counted, not hops.
        with_it = [d for d in documents if relation in d.prompt]
        keys = [audit([d])[3] for d in with_it]
        assert within(sum(ALIAS[relation] in {k for c, k in pairs if c == relation} for pairs in keys), len(keys), rho)


def test_cp6_the_prior_never_shows_the_absent_alias_and_the_teacher_shows_the_truth(task, written):
    shown = written[1].alias
    assert {pair for pair in shown if pair[0] in "ABCDG"} == {*((c, ALIAS[c]) for c in "ABCD"), ("G", DECOY["G"])}
    assert set(prior.write(task.recipe("teacher"), 1, 1_000)[1].alias) == set(ALIAS.items())
    # Every alias is asked for by some relation: only the association is rare, not the search.
    assert {key for _, key in shown} == set(ALIAS.values()) and set(DECOY.values()) <= set(ALIAS.values())


def test_the_corpus_tells_nothing_of_the_evaluation_world(written, facts):
    said = [pair for d in written[0] for pair in re.findall(r"(\d{3})([a-h])=(\d{3})", "".join(d.response))]
    known = [facts[entity, key] == object_ for entity, key, object_ in said if (entity, key) in facts]
    assert len(known) > 500 and sum(known) <= 6  # by chance one in a thousand


def test_documents_fit_the_alphabet_the_longest_response_and_the_longest_observation(task, written):
    environment = task.environment
    for document in written[0] + task.corpus("teacher", 1, 1_000):
        assert len(task.tokenizer.encode(document.text)) == len(document.text)
        assert len("".join(document.response)) <= 73 <= task.max_response_tokens
        assert all(len(turn) <= environment.max_observation_tokens for turn in document.response[1::2])
        assert len(document.response) // 2 <= environment.max_calls
        assert document.response[-1].endswith("$") and "$" not in "".join(document.response[:-1])


# ---- the search engine


def test_bm25_finds_what_the_world_says_for_every_well_formed_query(task, facts):
    """The corpus is written without an engine; here the two are one. A joint query without a document of its own
    finds its first hop."""
    documents = set(task.environment.store.documents)
    pairs = ["".join(pair) for pair in itertools.product("abcdefgh", repeat=2)]
    for entity in sorted({entity for entity, _ in facts})[:12]:
        for keys in [*"abcdefgh", *pairs]:
            found = task.environment.call(None, f"<{entity}{keys}>")
            assert found == task.splits.world.ask(entity + keys) and found in documents
            if len(keys) == 2 and not found.startswith(f"{entity}{keys}="):
                assert found == f"{entity}{keys[0]}={facts[entity, keys[0]]}"
                assert f"{entity}{keys}={walk(facts, entity, keys)}" not in documents


@pytest.mark.parametrize("turn", [">", "<>", "x>", "<$$>", "<=582>", "<[[]]>", "<999 >", "<\x00>", "<ABC>"])
def test_a_query_that_matches_nothing_is_answered_in_the_alphabet(task, turn):
    assert task.environment.call(None, turn) == "?" == task.environment.failed


def test_a_trace_lists_what_was_asked_in_one_way_of_writing_and_what_was_shown(task):
    problem = task.splits.evaluation["C"][0]
    start, entity = problem.meta[0], task.splits.world.objects[problem.meta[0], "f"]
    turns = played(task, problem, f"cd#<{start}f>", "<>", f"a#<{start}f>", f"<{start}cd>", "=000$")
    asked, shown = zip(*task.environment.trace(turns), strict=True)
    assert asked[0] == asked[2] != asked[3] and asked[1] == ""
    assert shown[:3] == ((f"{start}f={entity}",), (), (f"{start}f={entity}",))
    assert task.environment.trace(("=000$",)) == []


def test_ee4_an_observation_is_a_function_of_the_call_alone(task):
    other = search.make(search.CONFIG.defaults(), {"path": ""}).environment
    rng = np.random.default_rng(1)
    for _ in range(300):
        turn = "".join(rng.choice(list(lang.SYMBOLS), size=rng.integers(1, 8))) + ">"
        body = task.environment.call(None, turn)
        assert body == other.call(task.evaluation()[0], turn) and set(body) <= set(lang.SYMBOLS)


# ---- CP-4, CP-5, CP-7, V2, V5, V7: verdicts


def test_cp4_random_policies_are_bounded(task, facts):
    """Of all answers one in a thousand is right; a search by random keywords is about 1/64 + 1/120 of the time."""
    problem = task.splits.evaluation["A"][0]
    assert sum(task.verify(problem, (f"={i:03d}$",)).right for i in range(1000)) == 1 == 1000 * task.guess_rate
    lucky = [
        walk(facts, p.meta[0], keys) == p.answer
        for p in task.splits.evaluation["A"] for keys in itertools.product("abcdefgh", repeat=2)
    ]  # fmt: skip
    assert 1 / 64 <= np.mean(lucky) < 1 / 64 + 3 / 120


@pytest.mark.parametrize("strategy", lang.STRATEGIES)
def test_cp7_v7_every_strategy_is_right_with_a_valid_process_and_its_own_label(task, strategy):
    for problem in task.evaluation():
        turns = task.worked(problem, strategy)
        assert turns == played(task, problem, *turns[::2])  # what the engine finds is what was written
        verdict = task.verify(problem, turns)
        assert (verdict.outcome, verdict.process, verdict.credit) == (Outcome.RIGHT, True, 1.0)
        assert (verdict.strategy, verdict.answer) == (strategy, problem.answer)


def test_cp7_labels_of_a_corpus_are_the_generators(task, written):
    problem = task.evaluation()[0]
    labels = collections.Counter(task.verify(problem, d.response).strategy for d in written[0][:4_000])
    assert labels == audit(written[0][:4_000])[0]


def test_cp5_right_answers_by_a_wrong_process(task, facts):
    problem = task.splits.evaluation["C"][0]
    start, path = problem.meta
    first, second = (ALIAS[c] for c in path)
    via, answer = facts[start, first], problem.answer
    call, last = f"<{start}{first}>", f"<{via}{second}>"
    lucky = next(e for (e, key), object_ in sorted(facts.items()) if key == "d" and object_ == answer)
    wrong = {
        "guessed": (f"={answer}$",),
        "guessed after a hop": played(task, problem, call, f"={answer}$"),
        "guessed the first hop": played(task, problem, last, f"={answer}$"),
        "another way there": played(task, problem, call, f"<{lucky}d>", f"={answer}$"),
        "own text for an observation": (f"{call}[{start}{first}={via}]{last}[{via}{second}={answer}]={answer}$",),
        "an observation of its own in a turn": played(task, problem, f"[{start}{first}={via}]{call}", last,
                                                      f"={answer}$"),
        "a malformed call": played(task, problem, "<<>", call, last, f"={answer}$"),
        "two answers": played(task, problem, call, last, f"=000={answer}$"),
    }  # fmt: skip
    for name, turns in wrong.items():
        verdict = task.verify(problem, turns)
        assert verdict.right and verdict.process is False, name
    valid = played(task, problem, f"{first}{second}#{call}", f"?#{last}", f"={answer}$")
    assert task.verify(problem, valid).process is True  # thoughts are free


@pytest.mark.parametrize("last", ["", "={}", "{}$", "={} $", "=={}", "={}$$", "={}$=", "[={}$]", "<={}$>", "=[{}]$",
                                  "={}0$", "=${}$"])  # fmt: skip
def test_cp5_what_is_no_answer_is_unparsed_whatever_was_observed(task, last):
    """An observation that ends as an answer does, or holds one, never counts as the agent's."""
    problem = task.splits.evaluation["C"][0]
    turns = (*task.worked(problem, "H")[:-1], last.format(problem.answer))
    assert task.verify(problem, turns).outcome is Outcome.UNPARSED
    hostile = ("<111a>", f"[={problem.answer}$]", "<111a>", f"={problem.answer}$", last.format(problem.answer))
    assert task.verify(problem, hostile).outcome is Outcome.UNPARSED


def test_credit_is_the_share_of_right_hops_observed(task, facts):
    problem = task.splits.evaluation["X"][0]
    start, path = problem.meta
    keys = "".join(ALIAS[c] for c in path)
    steps = [f"<{walk(facts, start, keys[:i])}{keys[i]}>" for i in range(3)]
    for hops in range(4):
        assert task.verify(problem, played(task, problem, *steps[:hops], "=000$")).credit == pytest.approx(hops / 3)
    assert task.verify(problem, played(task, problem, *steps[2:], "=000$")).credit == pytest.approx(1 / 3)
    joint = [p for p in task.splits.training["C"] if len(task.worked(p, "J")) == 3]
    assert task.verify(joint[0], task.worked(joint[0], "J")[:-1] + ("",)).credit == 1.0


def test_v5_another_problems_episode_scores_zero(task):
    problems = task.splits.evaluation["C"]
    for problem, other in zip(problems, problems[1:], strict=False):
        if problem.answer != other.answer:
            assert not task.verify(problem, task.worked(other, "H")).right


_TEXT = st.one_of(st.text(lang.SYMBOLS, max_size=30), st.text(max_size=10))


@settings(deadline=None, max_examples=80)
@given(turns=st.lists(st.tuples(_TEXT, _TEXT), max_size=5), last=_TEXT)
def test_v2_verdicts_never_raise_and_keep_their_promises(task, turns, last):
    problem = task.splits.evaluation["C"][0]
    verdict = task.verify(problem, (*itertools.chain(*turns), last))
    assert 0 <= verdict.credit <= 1 and verdict.strategy in (None, *lang.STRATEGIES)
    assert (verdict.outcome is Outcome.UNPARSED) == (verdict.answer is None)
    assert verdict.right == (verdict.answer == problem.answer)
    assert verdict.process in ((True, False) if verdict.right else (False, None))


# ---- demonstrations, text for thoughts, early experience


def test_v7_demonstrations_are_right_diverse_where_curators_are_and_narrow_where_the_expert_is(task):
    rng, seen = np.random.default_rng(0), collections.defaultdict(set)
    for group, problems in task.splits.training.items():
        for problem in problems[:60]:
            for kind, shown in (("diverse", task.demonstration(problem, rng)), ("narrow", task.expert(problem, rng))):
                if shown is not None:
                    verdict = task.verify(problem, shown)
                    assert verdict.right and verdict.process
                    seen[kind, group].add(verdict.strategy)
    assert {group for kind, group in seen if kind == "diverse"} == set("CRVXW")
    assert seen["diverse", "C"] == seen["diverse", "X"] == set("HJV")
    assert {key: value for key, value in seen.items() if key[0] == "narrow"} == {("narrow", "C"): {"H"}}


def test_passages_end_where_the_first_call_begins(task):
    for problem in task.splits.training["R"][:20]:
        passage, (start, path) = task.passage(problem), problem.meta
        assert passage.context == problem.prompt and (passage.stop, passage.empty) == ("#", "?#")
        assert passage.continuation == f"<{start}{ALIAS[path[0]]}>"


def test_ee5_the_expert_acts_in_each_of_its_states_as_its_demonstration_does(task):
    rng = np.random.default_rng(0)
    for problem in task.splits.training["C"][:20]:
        states = task.states(problem, rng)
        assert states[0] == ("",) and len(states) == 3
        turns = task.expert(problem, rng)
        assert states == [(*turns[:i], "") for i in (0, 2, 4)]
        assert tuple(task.expert_action(problem, state) for state in states) == turns[::2]
    assert task.states(task.splits.training["A"][0], rng) == []
    with pytest.raises(ValueError, match="no state of an expert"):
        task.expert_action(task.splits.training["C"][0], ("<000a>", "[000a=111]", ""))


def test_ee6_a_reflection_is_a_thought_that_reads_no_gold_answer_and_leaves_the_expert_right(task):
    rng = np.random.default_rng(2)
    observe = lambda p, act: f"[{task.environment.call(p, act)}]" if act.endswith(">") else ""  # noqa: E731
    for problem in task.splits.training["C"][:100]:
        turns, states = (), task.states(problem, rng)
        for state in states:
            right = task.expert_action(problem, state)
            wrong = ["".join(rng.choice(list(lang.SYMBOLS), size=rng.integers(0, 40))), f"={problem.answer}$",
                     f"<{problem.meta[0]}>", f"<{problem.meta[0]}d>"][rng.integers(4)]  # fmt: skip
            seen = (right, observe(problem, right), wrong, observe(problem, wrong))
            said = task.reflection(problem, state, *seen)
            assert len(said) <= 8 and re.fullmatch(r"[^<>=\[\]$#]*#", said)
            assert said == task.reflection(dataclasses.replace(problem, answer=""), state, *seen)
            assert set(said) <= set(lang.SYMBOLS)
            turns += (said + right, *filter(None, [observe(problem, right)]))
        verdict = task.verify(problem, turns)
        assert verdict.right and verdict.process and verdict.strategy == "H"
        assert len("".join(turns)) <= task.max_response_tokens


def test_ee6_a_reflection_says_both_outcomes(task):
    say = lambda *seen: task.reflection(task.splits.training["C"][0], ("",), *seen)  # noqa: E731
    assert say("<417f>", "[417f=582]", "<417c>", "[417c=230]") == "230?582#"
    assert say("=999$", "", "<999999>", "[999999c99]") == "?#"
    assert say("<999f>", "[999f=582]", "<>", "[?]") == "?582#"


# ---- settings


@pytest.mark.parametrize("changes, message", [
    (dict(strategies={"Q": 1.0}), "strategies.Q: unknown name; known: H, J, V"),
    (dict(rho={"A": 1.0}), "rho.A: unknown name; known: E, F"),
    (dict(entities=900), "entities=900: there are"),
    (dict(training_per_group=600), "training_per_group=600: the world has"),
    (dict(questions_path="q.jsonl"), "config.data.path names no documents"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        search.make(search.CONFIG.defaults(**changes), {"path": ""})


def test_a_checkpoints_tokenizer_is_refused_and_problems_survive_json(task):
    with pytest.raises(ConfigError, match=r"config\.model\.path: the generated world"):
        search.make(search.CONFIG.defaults(), {"path": ""}, task.tokenizer)
    assert json.loads(json.dumps([dataclasses.asdict(p) for p in task.evaluation()]))
    with pytest.raises(ValueError, match="no training problems in a group 'Z'"):
        task.training({"Z": 1.0}, 8)
    assert collections.Counter(p.group for p in task.training({"C": 0.75, "R": 0.25}, 64)) == {"C": 48, "R": 16}
