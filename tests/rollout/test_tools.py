"""Tools on the host: what is a call, what becomes of an answer, and calls that do not behave."""

import dataclasses
import random
import re
import threading
import time

import numpy as np
import pytest

from ceiling.data.tokens import ByteTokenizer
from ceiling.rollout import tools
from ceiling.rollout.tools import Pool, Wording, without


@dataclasses.dataclass(frozen=True)
class Words:
    """A tokenizer of whole words, longest first, that refuses other text."""

    words: tuple = ("<", "/s", ">", ">\n", "a", "b", "<end>", "]")
    special: tuple = ("<end>",)

    @property
    def vocab_size(self):
        return len(self.words)

    def encode(self, text):
        found = re.findall("|".join(sorted(map(re.escape, self.words), key=len, reverse=True)), text)
        if "".join(found) != text:
            raise ValueError("not in the vocabulary")
        return [self.words.index(word) for word in found]

    def decode(self, ids):
        return "".join(self.words[i] for i in ids)


@dataclasses.dataclass
class Settings:
    tags: tuple = ("</s>",)
    opening: str = ">\n"
    closing: str = "]"
    max_observation_tokens: int = 6
    failed: str = "bb"


WORDS = Wording(Settings(), Words())


def ids(text):
    return np.asarray(Words().encode(text))


def test_a_call_is_text_whose_last_token_completes_a_tag_alone_or_with_more():
    assert set(WORDS.pauses) == {2, 3, 6}, "every token with the tag's last character"
    assert WORDS.call(ids("a</s>")) == "a</s>"
    assert WORDS.call(ids("a</s>\n")) == "a</s>\n"
    assert WORDS.call(ids("</s>a>")) is None, "the tag was completed before"
    assert WORDS.call(ids("a>")) is None
    assert WORDS.call(ids("</s></s>")) == "</s></s>"


def test_a_tag_of_several_bytes_is_seen_at_its_last():
    words = Wording(dataclasses.replace(Settings(), tags=("→",)), ByteTokenizer())
    tokens = np.asarray(ByteTokenizer().encode("a→"))
    assert set(tokens[1:]) <= set(words.pauses) and tokens[0] not in words.pauses
    assert [words.call(tokens[:k]) for k in range(1, 5)] == [None, None, None, "a→"]


def test_an_observation_is_cut_cleared_and_never_refused():
    text = lambda body: (Words().decode(WORDS.observation(body)[0]), WORDS.observation(body)[1])  # noqa: E731
    assert text("ab") == (">\nab]", True)
    assert text("") == (">\n]", True)
    assert text("abababab") == (">\nabab]", True), "cut before the closing"
    assert text("a</s>]b") == (">\nab]", True), "tags, control tokens and the closing are taken out"
    assert text("a<]/s>b") == (">\nab]", True), "and what appears when they are"
    assert text("xyz") == (">\nbb]", False), "the tokenizer's refusal"
    assert text(None) == (">\nbb]", False)
    started = time.monotonic()
    assert len(WORDS.observation("<end>" * 2_000_000)[0]) <= 6
    assert time.monotonic() - started < 0.5, "ten megabytes are not looked at"


def test_nothing_banned_is_left_by_brute_force():
    rng, changed = random.Random(0), 0
    for _ in range(2000):
        banned = ["".join(rng.choices("ab<", k=rng.randint(1, 3))) for _ in range(2)]
        text = "".join(rng.choices("ab<", k=rng.randint(0, 12)))
        left = without(text, banned)
        assert not any(b in left for b in banned)
        assert left == text or any(b in text for b in banned)
        letters = iter(text)
        assert all(character in letters for character in left), "something was added or moved"
        changed += left != text
    assert changed > 500
    assert without("ab", ["", "c"]) == "ab"


@pytest.mark.parametrize(("field", "value", "message"), [
    ("tags", (), "tags"), ("tags", ("",), "tags"), ("max_observation_tokens", 2, "must leave room"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        Wording(dataclasses.replace(Settings(), **{field: value}), Words())


def test_an_observation_without_a_token_of_its_own_is_refused():
    with pytest.raises(ValueError, match="at least 1 together"):  # two turns of the agent would run into one
        Wording(dataclasses.replace(Settings(), opening="", closing=""), Words())


# --- the pool ------------------------------------------------------------------------------------------------------


@pytest.fixture
def gate(monkeypatch):
    """Opened when the test is over, so that no thread outlives it."""
    monkeypatch.setattr(tools, "_abandoned", [])
    opened = threading.Event()
    yield opened
    opened.set()


def drain(pool):
    """{key: (text, status)} of all that is open."""
    out = {}
    while len(pool):
        out |= {key: (text, status) for key, text, status in pool.finished(wait=True)}
    return out


def behave(kind):
    if kind == "raises":
        raise KeyError(kind)
    if kind == "exits":
        raise SystemExit(1)
    return 7 if kind == "number" else kind


@pytest.mark.parametrize("workers", [0, 2])
def test_a_call_that_fails_is_an_error_and_no_more(workers):
    with Pool(behave, workers, 10.0) as pool:
        for kind in ("fine", "raises", "exits", "number"):
            pool.submit(kind, (kind,))
        error = (None, "error")
        assert drain(pool) == {"fine": ("fine", "ok"), "raises": error, "exits": error, "number": error}
        assert pool.finished() == pool.finished(wait=True) == [], "nothing is open, and nothing is waited for"


class Meter:
    """Most calls at once."""

    def __init__(self):
        self.lock, self.now, self.most = threading.Lock(), 0, 0

    def __call__(self, key):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.005)
        with self.lock:
            self.now -= 1
        return str(key)


def test_no_more_calls_than_workers_at_once():
    meter = Meter()
    with Pool(meter, 3, 10.0) as pool:
        for key in range(20):
            pool.submit(key, (key,))
        assert drain(pool) == {key: (str(key), "ok") for key in range(20)}
    assert meter.most == 3


def test_calls_that_hang_are_given_up_and_their_places_taken(gate):
    meter = Meter()
    with Pool(lambda call, key: call(key), 2, 0.25) as pool:
        for key in range(6):
            pool.submit(key, (lambda key: gate.wait(30) and "late", key) if key < 3 else (str, key))
        results = drain(pool)
        assert [results[key] for key in range(6)] == [(None, "timeout")] * 3 + [(str(key), "ok") for key in (3, 4, 5)]
        gate.set()
        time.sleep(0.1)  # what hung now answers
        for key in range(6):
            pool.submit(key, (meter, key))
        assert drain(pool) == {key: (str(key), "ok") for key in range(6)}, "what hung answers for no later call"
    assert meter.most <= 2, "a thread that hung does not come back to work beside the one in its place"


def test_an_answer_that_is_late_is_late_whenever_it_is_looked_for():
    with Pool(lambda: time.sleep(0.1) or "late", 1, 0.05) as pool:
        pool.submit("key", ())
        time.sleep(0.25)
        assert pool.finished() == [("key", None, "timeout")]


def test_a_tool_that_only_hangs_ends_the_run_in_one_line(gate, monkeypatch):
    monkeypatch.setattr(tools, "ABANDONED", 2)
    with pytest.raises(RuntimeError, match="3 tool calls hang.*timeout_s"), Pool(gate.wait, 3, 0.05) as pool:
        for key in range(3):
            pool.submit(key, (30,))
        drain(pool)
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "tool"), "none keeps a program alive"


def test_a_closed_pool_starts_nothing_more():
    started = []
    pool = Pool(lambda key: started.append(key) or time.sleep(0.05), 1, 10.0)
    for key in range(9):
        pool.submit(key, (key,))
    pool.close()
    time.sleep(0.2)
    assert len(started) <= 1
