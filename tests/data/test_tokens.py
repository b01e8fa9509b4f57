"""Tokenisers: round trips, refusals, the end of text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceiling.data.tokens import ByteTokenizer, CharTokenizer

checked = settings(max_examples=25, deadline=None)
CHARS = CharTokenizer("abc+-0123;", eos=";")
BYTES = ByteTokenizer()


@checked
@given(st.text(alphabet=CHARS.symbols, max_size=30))
def test_char_round_trip(text):
    ids = CHARS.encode(text)
    assert CHARS.decode(ids) == text
    assert len(ids) == len(text) and all(0 < i < CHARS.vocab_size for i in ids)


def test_char_ids_are_distinct_and_padding_is_none_of_them():
    ids = CHARS.encode(CHARS.symbols)
    assert sorted(ids) == list(range(1, CHARS.vocab_size)) and CHARS.pad_id == 0
    assert CHARS.encode(";") == [CHARS.eos_id]
    assert CHARS.decode([0, *CHARS.encode("ab"), 0]) == "ab"


@pytest.mark.parametrize("text", ["d", "aA", "a b", "\n", "é", "\x00"])
def test_char_refuses_what_is_not_in_the_alphabet(text):
    with pytest.raises(ValueError, match="not in the alphabet"):
        CHARS.encode(text)


@checked
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_byte_round_trip_of_any_unicode(text):
    ids = BYTES.encode(text)
    assert BYTES.decode(ids) == text
    assert len(ids) == len(text.encode()) and all(0 < i < BYTES.vocab_size for i in ids)


def test_byte_end_of_text_and_padding():
    assert BYTES.encode("a" + BYTES.eos) == [ord("a") + 2, BYTES.eos_id]
    assert BYTES.decode([BYTES.eos_id]) == BYTES.eos
    assert BYTES.decode([0, *BYTES.encode("né"), 0, 0]) == "né"
    assert BYTES.encode("\x00") == [2], "a NUL byte is not padding"
    assert BYTES.eos_id not in BYTES.encode("".join(map(chr, set(range(300)) - {3})))


def test_byte_decode_survives_any_ids():
    assert "\ufffd" in BYTES.decode([0xFF + 2, ord("a") + 2])
    assert isinstance(BYTES.decode(range(BYTES.vocab_size)), str)


def test_byte_refuses_a_lone_surrogate():
    with pytest.raises(ValueError):
        BYTES.encode("\ud800")
