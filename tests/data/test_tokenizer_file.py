"""A checkpoint's tokenizer: the surface of the small ones, its end tokens, its start, its identity (X-7, C4)."""

import json

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ceiling.config import ConfigError
from ceiling.data.tokenizer_file import check_vocabulary, load
from ceiling.data.tokens import ByteTokenizer, CharTokenizer

SURFACE = ("pad_id", "eos_id", "vocab_size", "eos", "stop_ids", "bos_ids", "special", "identity")
ALL = {"char": CharTokenizer("ab 1#;", eos=";"), "byte": ByteTokenizer()}


@pytest.fixture(params=["char", "byte", "file"])
def any_tokenizer(request, checkpoint):
    return ALL[request.param] if request.param in ALL else load(checkpoint())


def test_all_tokenizers_have_one_surface(any_tokenizer):
    t = any_tokenizer
    assert all(getattr(t, name) is not None for name in SURFACE)
    assert t.stop_ids[0] == t.eos_id and t.encode(t.eos) == [t.eos_id] and t.decode([t.eos_id]) == t.eos
    assert t.eos in t.special and len(t.identity) == 64 and t.bos_ids == ()
    assert all(0 <= i < t.vocab_size for i in t.encode("ab 1#" + t.eos))
    assert t.split_end("a 1" + t.eos) == ("a 1", True) and t.split_end("a 1") == ("a 1", False)
    assert t.split_end(t.eos + "a") == (t.eos + "a", False) and t.split_end("") == ("", False)
    assert t.split_end("a" + 2 * t.eos) == ("a" + t.eos, True), "one end token ends a response"
    check_vocabulary(t, t.vocab_size)
    last = t.vocab_size - 1
    with pytest.raises(ConfigError, match=f"ids up to {last}, the model's vocabulary is {last}"):
        check_vocabulary(t, last)


def test_identities_differ():
    assert len({CharTokenizer("ab;", eos=";").identity, CharTokenizer("ba;", eos=";").identity,
                CharTokenizer("ab;", eos="a").identity, ByteTokenizer().identity}) == 4  # fmt: skip
    assert ByteTokenizer().identity == ByteTokenizer().identity


@pytest.fixture
def tokenizer(checkpoint):
    return load(checkpoint())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_round_trip_of_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_merges_are_used_and_pieces_join(tokenizer):
    assert len(tokenizer.encode("#### 12 pens")) < len("#### 12 pens")
    pieces = ["Q: 2\nA: ", "so ", "####", " 4", tokenizer.eos]
    assert tokenizer.decode([i for p in pieces for i in tokenizer.encode(p)]) == "".join(pieces)
    assert tokenizer.decode(iter(map(int, tokenizer.encode("a")))) == "a"


def test_special_tokens_are_single_ids_kept_by_decode_and_none_is_added(checkpoint):
    tokenizer = load(checkpoint(bos=True))
    ids = tokenizer.encode("<|turn|>hi<|turn_end|>")
    assert tokenizer.decode(ids) == "<|turn|>hi<|turn_end|>" and ids[-1] == tokenizer.eos_id
    assert tokenizer.encode("hi") == ids[1:-1]
    assert set(tokenizer.special) == {"<|begin|>", "<|end|>", "<|turn_end|>", "<|turn|>", "<|pad|>"}


def test_every_end_token_of_every_file_stops_and_the_named_one_is_written(checkpoint):
    directory = checkpoint()
    core = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    end, turn_end = core.token_to_id("<|end|>"), core.token_to_id("<|turn_end|>")
    tokenizer = load(directory)
    assert tokenizer.stop_ids == (turn_end, end) and tokenizer.eos == "<|turn_end|>"
    assert tokenizer.split_end("4<|end|>") == ("4", True) == tokenizer.split_end("4<|turn_end|>")
    assert tokenizer.split_end("4<|turn|>") == ("4<|turn|>", False)
    # Without a name the generation settings' first counts; the model's settings come last.
    (directory / "tokenizer_config.json").write_text("{}")
    (directory / "config.json").write_text(json.dumps({"eos_token_id": core.token_to_id("<|pad|>")}))
    assert load(directory).stop_ids == (end, turn_end, core.token_to_id("<|pad|>"))
    for name in ("generation_config.json", "config.json"):
        (directory / name).unlink()
    with pytest.raises(ConfigError, match=r"its end tokens \[\] .* set eos_token in tokenizer_config.json"):
        load(directory)
    (directory / "config.json").write_text('{"eos_token_id": 99999}')
    with pytest.raises(ConfigError, match=r"its end tokens \[99999\] are not in"):
        load(directory)


@pytest.mark.parametrize(
    ("bos", "setting", "expected"),
    [(True, {}, 1), (True, {"add_bos_token": True}, 1), (True, {"add_bos_token": False}, 0), (False, {}, 0),
     (False, {"add_bos_token": True}, 1), (False, {"add_bos_token": False}, 0),
     (False, {"add_bos_token": True, "bos_token": None}, 0)],
)  # fmt: skip
def test_what_a_document_must_start_with(checkpoint, bos, setting, expected):
    tokenizer = load(checkpoint(bos=bos, **setting))
    assert len(tokenizer.bos_ids) == expected
    assert tokenizer.decode(tokenizer.bos_ids) == "<|begin|>" * expected


def test_pad_falls_back_to_the_end(checkpoint):
    assert load(checkpoint()).pad_id != load(checkpoint()).eos_id
    for name, setting in (("a", {"pad_token": None}), ("b", {"pad_token": "<|not there|>"})):
        tokenizer = load(checkpoint(name, **setting))
        assert tokenizer.pad_id == tokenizer.eos_id


def test_x7_the_identity_is_of_tokenizer_template_and_special_tokens(checkpoint):
    base = load(checkpoint("base")).identity
    assert base == load(checkpoint("copy")).identity
    others = [
        checkpoint("template", template="{{ messages }}"), checkpoint("eos", eos_token="<|end|>"),
        checkpoint("bos", add_bos_token=True), checkpoint("pad", pad_token=None),
    ]  # fmt: skip
    (plain := checkpoint("ends") / "generation_config.json").unlink()
    words = checkpoint("words") / "tokenizer.json"
    words.write_text(words.read_text().replace('"<|turn|>"', '"<|role|>"'))
    identities = {base, *(load(d).identity for d in [*others, plain.parent, words.parent])}
    assert len(identities) == 7


def test_the_template_is_found_wherever_it_is_kept(checkpoint):
    assert load(checkpoint("none")).chat_template is None
    assert load(checkpoint("text", template="T")).chat_template == "T"
    named = [{"name": "tool_use", "template": "U"}, {"name": "default", "template": "D"}]
    assert load(checkpoint("named", template=named)).chat_template == "D"
    assert load(checkpoint("odd", template=7)).chat_template is None
    (checkpoint("file", template="T") / "chat_template.jinja").write_text("F")
    assert load(checkpoint("file", template="T")).chat_template == "F"


def refused(directory):
    with pytest.raises(ConfigError) as error:
        load(directory)
    assert "\n" not in str(error.value) and str(directory) in str(error.value)
    return str(error.value)


def test_c4_what_cannot_be_read_is_refused(checkpoint, tmp_path):
    assert "no tokenizer.json" in refused(tmp_path / "nowhere") and "beside the weights" in refused(tmp_path)
    directory = checkpoint()
    text = (directory / "tokenizer.json").read_text()
    for broken in ("", "{}", text[: len(text) // 2], '{"model": {"type": "Nope"}}'):
        (directory / "tokenizer.json").write_text(broken)
        assert "fetch it again" in refused(directory)
    (directory / "tokenizer.json").write_text(text)
    for broken in ("{", "[]", "[" * 100_000):
        (directory / "tokenizer_config.json").write_text(broken)
        assert "tokenizer_config.json: not" in refused(directory)


def test_a_tokenizer_that_puts_a_space_before_every_text_is_refused(checkpoint):
    directory = checkpoint()
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    file.write_text(json.dumps(content))
    assert "cannot be encoded apart" in refused(directory)


def test_truncation_and_padding_of_the_file_are_not_ours(checkpoint):
    directory = checkpoint()
    core = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    core.enable_truncation(4)
    core.enable_padding(length=64)
    core.save(str(directory / "tokenizer.json"))
    assert load(directory).decode(load(directory).encode("a longer text of words")) == "a longer text of words"
