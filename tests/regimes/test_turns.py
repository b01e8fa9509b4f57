"""What a tool wrote is no target, wherever it stands: in a text, in an episode, in a record."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from ceiling.data.tokens import CharTokenizer
from ceiling.evals.records import Samples, turn_lengths
from ceiling.regimes.base import Sample, response_example, text_example
from ceiling.rollout.engine import Completions, turn_spans

tokenizer = CharTokenizer("ab<>[]=$", eos="$")


def encode(text):
    return np.asarray(tokenizer.encode(text), np.int32)


def targets(example):
    return tokenizer.decode(example.tokens[example.mask > 0])


def test_of_turns_the_agents_own_are_targets():
    example = text_example(encode, "ab=", ("<a>", "[b]", "<b>", "[a]", "=b$"))
    assert tokenizer.decode(example.tokens) == "ab=<a>[b]<b>[a]=b$"
    assert targets(example) == "<a><b>=b$"


def test_a_text_and_a_single_turn_are_the_same():
    one, other = text_example(encode, "ab", "=a$"), text_example(encode, "ab", ("=a$",))
    assert np.array_equal(one.tokens, other.tokens) and np.array_equal(one.mask, other.mask)


def test_own_empty_turns_are_kept_apart_from_what_a_tool_wrote():
    assert targets(text_example(encode, "a", ("", "[b]", "=b$"))) == "=b$"
    assert targets(text_example(encode, "a", ("<b>", "[b]", ""))) == "<b>"


def test_X2_log_probs_of_own_tokens_lie_on_their_places():
    response = encode("<a>[b]=b$")
    own = np.array([c not in "[b]" or i > 5 for i, c in enumerate("<a>[b]=b$")])
    logprobs = -np.arange(1.0, own.sum() + 1, dtype=np.float32)
    sample = Sample(encode("ab"), response, logprobs, True, None, own)
    example = response_example(sample, behaviour=logprobs, advantage=2.0)
    assert targets(example) == "<a>=b$"
    assert np.array_equal(example.extra["behaviour"][example.mask > 0], logprobs)
    assert not example.extra["behaviour"][example.mask == 0].any() and example.extra["advantage"] == 2.0


@pytest.mark.parametrize("size", range(6))
def test_turns_of_every_pattern_come_back_from_their_lengths(size):
    for pattern in itertools.product((True, False), repeat=size):
        own = np.array(pattern, bool)
        spans = turn_spans(own)
        assert len(spans) % 2 == 1 and [a for a, _ in spans[1:]] == [b for _, b in spans[:-1]]
        assert all(own[a:b].all() if i % 2 == 0 else not own[a:b].any() for i, (a, b) in enumerate(spans))
        table = pa.table({"tokens": [list(range(size))], "turns": [turn_lengths(own)]})
        assert np.array_equal(Samples(table, {"n": 1, "problems": 1}).own(0, 0), own)


def test_an_episode_is_read_as_turns_and_a_single_response_as_text():
    tokens = encode("<a>[b]=b$")[None, None]
    own = np.array([True] * 3 + [False] * 3 + [True] * 3)[None, None]
    out = Completions(tokens, np.zeros((1, 1, 9), np.float32), np.array([[9]]), np.array([[True]]), 0)
    assert out.text(0, 0, tokenizer.decode) == "<a>[b]=b$"
    out.own = own
    assert out.text(0, 0, tokenizer.decode) == ("<a>", "[b]", "=b$")
