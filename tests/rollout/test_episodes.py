"""Episodes of several turns: nothing is processed twice, nothing waits, and what a tool does can do no harm."""

import dataclasses
import json
import random
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from ceiling.data.packing import Example
from ceiling.data.tokens import CharTokenizer
from ceiling.model import Policy, make_mesh, place
from ceiling.model.steering import with_vectors
from ceiling.rollout import episodes, generate
from ceiling.rollout.episodes import Scene, converse
from ceiling.rollout.scoring import score
from ceiling.tasks.base import Problem

TOKENIZER = CharTokenizer("abcdefghij?!<>.", eos=".")
PROMPTS = [TOKENIZER.encode(text) for text in ("abc", "d", "aghij", "abc", "bb", "fade")]
PROBLEMS = [Problem(id, "all", "", "") for id in range(len(PROMPTS))]
N, R = 4, 28


def reply(problem, turn):
    """One to four letters that tell of both arguments."""
    return "".join("abcdefghij"[(len(turn) + problem.id + k) % 10] for k in range(1 + len(turn) % 4))


@dataclasses.dataclass
class Oracle:
    """Tags of one character and of two, so that a random model calls by chance."""

    answer: Callable = reply
    tags: tuple = ("?", "!", "hh")
    opening: str = "<"
    closing: str = ">"
    max_calls: int = 2
    max_observation_tokens: int = 6
    timeout_s: float = 30.0
    workers: int = 0
    failed: str = "ff"

    def call(self, problem, turn):
        return self.answer(problem, turn)


@pytest.fixture(scope="module")
def policy(make_model):
    config, params = make_model(seed=6, vocab_size=TOKENIZER.vocab_size)  # one that calls often, and stops
    return Policy(params, config, TOKENIZER.stop_ids)


def play(policy, environment=None, prompts=PROMPTS, **changes):
    settings = dict(n=N, max_new_tokens=R, temperature=1.0, top_p=1.0, seed=0, slots=7)
    scene = Scene(environment or Oracle(), TOKENIZER, PROBLEMS)
    return converse(policy, prompts, scene=scene, **{**settings, **changes})


@pytest.fixture(scope="module")
def usual(policy):
    return play(policy)


def each(out):
    """(prompt, sample) of every episode."""
    return [(i, j) for i in range(len(PROMPTS)) for j in range(out.lengths.shape[1])]


def program_sizes():
    """How often each program of the engine was compiled."""
    return [f._cache_size() for f in (episodes._prefill, episodes._fork, episodes._decode, episodes._extend)]


def turns(out):
    return [out.text(i, j, TOKENIZER.decode) for i, j in each(out)]


def same(a, b):
    """To the last bit."""
    for field in ("tokens", "own", "lengths", "stopped", "logprobs"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)


def gap(policy, out, temperature=1.0):
    """Largest difference between recorded log-probabilities and those of one pass over the whole transcript."""
    examples = []
    for i, j in each(out):
        own = np.concatenate([np.zeros(len(PROMPTS[i]), bool), out.written(i, j)])
        examples.append(Example(np.concatenate([PROMPTS[i], out.response(i, j)]), own.astype(np.float32)))
    scored = score(policy.params, policy.config, examples, max_tokens=R + 8, temperature=temperature)[0]
    recorded = [out.logprobs[i, j, : out.lengths[i, j]][out.written(i, j)] for i, j in each(out)]
    return max(np.abs(a - b).max() for a, b in zip(recorded, scored, strict=True))


def test_an_episode_is_what_its_model_and_its_tools_say_in_turn(usual):
    """Read from the texts alone: every turn but the last ends with its first tag, every tool answers what it was
    asked, and an episode is finished where the model ends it, or else cut: at R tokens, with one call too many, or
    where the answer and one more token would not fit."""
    ends = dict.fromkeys(("stopped", "full", "calls", "room"), 0)
    for (i, j), text in zip(each(usual), turns(usual), strict=True):
        said, heard = text[::2], text[1::2]
        for turn, observation in zip(said, heard, strict=False):
            assert turn.endswith(Oracle.tags) and observation == f"<{reply(PROBLEMS[i], turn)}>"
        assert len(heard) <= 2 and not any(tag in turn[:-1] for turn in said for tag in Oracle.tags)
        length, last = usual.lengths[i, j], said[-1]
        if last.endswith(Oracle.tags):
            end = "room" if length + len(f"<{reply(PROBLEMS[i], last)}>") + 1 > R else "calls"
        else:
            end = "stopped" if last.endswith(".") else "full"
        assert usual.stopped[i, j] == (end == "stopped")
        assert end != "full" or length == R
        assert end != "calls" or len(heard) == 2
        ends[end] += 1
        assert not usual.own[i, j, length:].any() and not usual.logprobs[i, j][~usual.own[i, j]].any()
    assert min(ends.values()) >= 1, ends
    observed = "".join(observation for text in turns(usual) for observation in text[1::2])
    assert usual.events["observation tokens"] == len(observed) > 100
    assert usual.events["tool errors"] == usual.events["tool timeouts"] == 0


def test_prefix_reuse_an_episode_costs_its_length_and_not_the_sum_over_its_turns(usual):
    """All of it is processed once, but for the last token, which is drawn and never fed; a prompt once for all."""
    assert usual.events["tokens processed"] == sum(map(len, PROMPTS)) + int(usual.lengths.sum()) - usual.lengths.size
    assert usual.executed_tokens >= usual.events["tokens processed"]


def test_X2_log_probs_across_turns_are_those_of_one_pass_over_the_transcript(policy, usual):
    assert gap(policy, usual) <= 1e-5


@pytest.mark.exact
def test_X2_holds_with_unrolled_layers_windows_and_steering_vectors(make_model):
    config, params = make_model(vocab_size=TOKENIZER.vocab_size, odd=True, scan_layers=False, steering=True, window=9,
                                global_every=2)  # fmt: skip
    steered = Policy(params, config, TOKENIZER.stop_ids)
    out = play(steered, temperature=0.7, seed=3)
    assert out.events["tool calls"] >= 10 and gap(steered, out, 0.7) <= 1e-5
    still = with_vectors(params, config, np.zeros((config.layers, config.width)))
    assert gap(steered.replace(params=still), out, 0.7) > 1e-3, "the vectors did nothing"


def test_without_a_call_an_episode_is_what_generate_draws(policy):
    """Tags that the model cannot spell: one that pauses nowhere, and one that pauses at every h."""
    drawn = generate(policy, PROMPTS, n=N, max_new_tokens=R, temperature=1.0, top_p=1.0, seed=0)
    for tag in ("@", "@h"):
        out = play(policy, Oracle(tags=(tag,)))
        for field in ("tokens", "lengths", "stopped"):
            np.testing.assert_array_equal(getattr(out, field), getattr(drawn, field))
        np.testing.assert_allclose(out.logprobs, drawn.logprobs, atol=1e-5)
        assert out.events["tool calls"] == 0 and out.own.sum() == out.lengths.sum()


def test_episodes_do_not_depend_on_what_else_is_asked_for(policy, usual):
    order = [4, 1, 5, 0, 3, 2]
    scene = Scene(Oracle(), TOKENIZER, [PROBLEMS[i] for i in order])
    out = converse(policy, [PROMPTS[i] for i in order], scene=scene, n=2, first_sample=1, problem_ids=order, seed=0,
                   max_new_tokens=R, temperature=1.0, top_p=1.0, slots=7)  # fmt: skip
    for field in ("tokens", "own", "lengths", "stopped", "logprobs"):
        np.testing.assert_array_equal(getattr(out, field), getattr(usual, field)[order, 1:3], err_msg=field)


def test_greedy_is_the_limit_of_low_temperatures_whatever_the_slots_and_devices(policy):
    """Two slots, so prompts are prefilled two at a time; on a mesh, so every program must keep the cache's layout."""
    mesh = make_mesh(data=2, tensor=2)
    apart = policy.replace(params=place(policy.params, policy.config, mesh))
    cold, sizes = play(policy, temperature=1e-5), program_sizes()
    out = play(apart, temperature=0.0, slots=2)
    assert out.events["tool calls"] >= 4 and program_sizes() == [size + 1 for size in sizes]
    np.testing.assert_array_equal(out.tokens, cold.tokens)
    np.testing.assert_array_equal(out.tokens[:, 0], out.tokens[:, -1])


def test_EE4_when_tools_answer_changes_nothing_and_compiles_nothing(policy, usual):
    """To the last bit, and so for other prompts and other lengths of everything: no new program."""
    rng, sizes = random.Random(0), program_sizes()

    def late(problem, turn):
        time.sleep(rng.choice((0.0, 0.002, 0.02)))
        return reply(problem, turn)

    for workers in (1, 5):
        same(play(policy, Oracle(late, workers=workers)), usual)
    play(policy, Oracle(lambda problem, turn: "", max_calls=9), prompts=PROMPTS[::-1], seed=8, temperature=0.5)
    assert program_sizes() == sizes


def test_a_slot_that_waits_for_its_tool_holds_up_no_other(policy, usual):
    """The first prompt's tools answer when the last prompt's are called: all others pass by."""
    last = threading.Event()

    def straggling(problem, turn):
        if problem.id == len(PROMPTS) - 1:
            last.set()
        elif problem.id == 0:
            assert last.wait(20)
        return reply(problem, turn)

    same(play(policy, Oracle(straggling, workers=7)), usual)


def test_tools_that_hang_raise_flood_or_imitate_do_no_harm(policy):
    """Each prompt has a tool of its own bad kind; the model reads a text in any case, and no loss does."""
    over, flood = threading.Event(), "ab" * 5_000_000
    bodies = ["ff", "ff", "abab", "d", "ff", "ff"]

    def bad(problem, turn):
        return (lambda: over.wait(30) and "late", lambda: 1 / 0, lambda: flood, lambda: ".?d>",
                lambda: None, lambda: "\ud800")[problem.id]()  # fmt: skip

    started = time.monotonic()
    out = play(policy, Oracle(bad, workers=8, timeout_s=0.4))
    assert time.monotonic() - started < 15
    over.set()
    heard = [[text for j in range(N) for text in out.text(i, j, TOKENIZER.decode)[1::2]] for i in range(len(PROMPTS))]
    assert all(heard) and [set(texts) for texts in heard] == [{f"<{body}>"} for body in bodies]
    assert out.events["tool timeouts"] >= len(heard[0])
    assert out.events["tool errors"] >= sum(len(heard[i]) for i in (1, 4, 5))
    assert gap(policy, out) <= 1e-5
    for (i, j), text in zip(each(out), turns(out), strict=True):
        assert out.stopped[i, j] == text[-1].endswith("."), "an end that a tool wrote ended an episode"


def test_the_opening_belongs_to_the_first_turn_alone(policy):
    asked, h = [], TOKENIZER.encode("h")

    def listening(problem, turn):
        asked.append(turn)
        return "a"

    out = play(policy, Oracle(listening), prompts=[[*prompt, *h] for prompt in PROMPTS], opening=h)
    texts = [("h" + text[0], *text[1:]) for text in turns(out)]
    assert "hh" in asked, "a tag that the opening began"
    answered, said = ({turn for text in texts for turn in text[:stop:2]} for stop in (-1, None))
    assert answered <= set(asked) <= said


def test_a_follower_hears_of_the_tools_and_runs_none(policy, usual, monkeypatch):
    told, ran = [], []
    monkeypatch.setattr(episodes.hosts, "led", lambda call: told.append(json.dumps(call())) or json.loads(told[-1]))
    same(play(policy), usual)
    monkeypatch.setattr(episodes.hosts, "leader", lambda: False)
    monkeypatch.setattr(episodes.hosts, "led", lambda call: json.loads(told.pop(0)))
    same(play(policy, Oracle(lambda problem, turn: ran.append(turn) or "", workers=1)), usual)
    assert not told and not ran


def test_a_scene_has_a_problem_for_every_prompt(policy):
    with pytest.raises(ValueError, match="6 problems for 2 prompts"):
        play(policy, prompts=PROMPTS[:2])
