"""A checkpoint's own tokenizer: `tokenizer.json` and the settings beside it, through `tokenizers` alone.

Text of a control token ("<|im_end|>") becomes that token in `encode`, because rendered prompts contain them; user
text that contains one is refused before it gets here (`prompts.py`). Nothing is added by a post-processor: what a
document must start with is told by `bos_ids`, and prompts carry it as text.

Example:
    tokenizer = load("checkpoints/qwen")
    tokenizer.decode(tokenizer.encode("2 + 2 = 4"))
"""

import functools
import hashlib
import json
import pathlib

import tokenizers

from ceiling.config import ConfigError

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json")


class FileTokenizer:
    """The surface of `tokens.py` over a checkpoint's files. source: the directory; chat_template: its Jinja
    template or None; named: its named tokens, e.g. {"bos_token": "<s>"}."""

    def __init__(self, directory: pathlib.Path, core: tokenizers.Tokenizer, settings: dict):
        self.source = str(directory)
        self._core = core
        self.vocab_size = max(core.get_vocab(with_added_tokens=True).values()) + 1
        self.chat_template = _chat_template(directory, settings["tokenizer_config.json"])
        self.named = _named_tokens(settings)
        self.stop_ids = self._stop_ids(settings)
        self.eos_id = self.stop_ids[0]
        self.eos = core.id_to_token(self.eos_id)
        pad = self._named_id("pad_token")
        self.pad_id = self.eos_id if pad is None else pad  # padding is masked wherever it stands
        self.bos_ids = self._bos_ids(settings["tokenizer_config.json"])
        added = core.get_added_tokens_decoder()
        stops = [core.id_to_token(i) for i in self.stop_ids]
        self.special = tuple(dict.fromkeys([*stops, *(t.content for t in added.values() if t.special)]))
        self._refuse_added_spaces()

    def encode(self, text: str) -> list[int]:
        return self._core.encode(text, add_special_tokens=False).ids

    def decode(self, ids) -> str:
        return self._core.decode([int(i) for i in ids], skip_special_tokens=False)

    def split_end(self, text: str) -> tuple[str, bool]:
        """A response without its end token, and whether it had one (else it was cut)."""
        for stop in self.stop_ids:
            end = self._core.id_to_token(stop)
            if text.endswith(end):
                return text.removesuffix(end), True
        return text, False

    @functools.cached_property
    def identity(self) -> str:
        special = {"named": self.named, "stop": self.stop_ids, "bos": self.bos_ids, "template": self.chat_template}
        sha = hashlib.sha256((pathlib.Path(self.source) / "tokenizer.json").read_bytes())
        sha.update(json.dumps(special, sort_keys=True).encode())
        return sha.hexdigest()

    @functools.cached_property
    def vocabulary(self) -> str:
        """SHA-256 of which id means which token: equal for two tokenizers whose ids may be exchanged."""
        ids = self._core.get_vocab(with_added_tokens=True)
        return hashlib.sha256(json.dumps(ids, sort_keys=True).encode()).hexdigest()

    def _stop_ids(self, settings: dict) -> tuple[int, ...]:
        """The named end token first, then every end id of the generation and model settings."""
        found = [self._named_id("eos_token")]
        for name in ("generation_config.json", "config.json"):
            ids = settings[name].get("eos_token_id")
            found += [] if ids is None else ids if isinstance(ids, list) else [ids]
        found = [i for i in dict.fromkeys(found) if i is not None]
        if not found or not all(isinstance(i, int) and self._core.id_to_token(i) is not None for i in found):
            raise ConfigError(
                f"{self.source}: its end tokens {found} are not in tokenizer.json; set eos_token in "
                "tokenizer_config.json or eos_token_id in generation_config.json"
            )
        return tuple(found)

    def _bos_ids(self, config: dict) -> tuple[int, ...]:
        """What the checkpoint's own post-processor puts before a text, unless its settings say otherwise."""
        if config.get("add_bos_token") is False:
            return ()
        whole, bare = self._core.encode("a").ids, self.encode("a")
        prefix = next((whole[:i] for i in range(len(whole)) if whole[i : i + len(bare)] == bare), [])
        if not prefix and config.get("add_bos_token") and self._named_id("bos_token") is not None:
            prefix = [self._named_id("bos_token")]
        return tuple(prefix)

    def _named_id(self, name: str) -> int | None:
        return self._core.token_to_id(self.named[name]) if name in self.named else None

    def _refuse_added_spaces(self) -> None:
        """Prompt and response are encoded apart: a tokenizer that puts a space before every text would put one
        between them, and the trained text would not be the sampled one."""
        if self.decode(self.encode("A:") + self.encode("b")).strip() != "A:b":
            raise ConfigError(
                f"{self.source}: its tokenizer puts a space before every piece of text, so prompt and response cannot "
                "be encoded apart; use a checkpoint with a byte-level tokenizer, or set its prepend_scheme to never"
            )


def load(directory) -> FileTokenizer:
    """The tokenizer of a checkpoint directory. Raises ConfigError in one line."""
    directory = pathlib.Path(directory)
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise ConfigError(
            f"{directory}: no tokenizer.json; save it beside the weights (tokenizer.model and vocab.json are not read)"
        )
    try:
        core = tokenizers.Tokenizer.from_str(file.read_text("utf-8"))
    except Exception as error:  # noqa: BLE001 - `tokenizers` raises bare Exception for whatever it cannot read
        raise ConfigError(f"{file}: cannot be read ({' '.join(str(error).split())[:200]}); fetch it again") from None
    core.no_truncation()
    core.no_padding()
    return FileTokenizer(directory, core, {name: _json(directory / name) for name in _SETTINGS})


def check_vocabulary(tokenizer, vocab_size: int) -> None:
    """Refuse a tokenizer whose ids the model's table does not have (a smaller one is fine: tables are padded)."""
    if tokenizer.vocab_size > vocab_size:
        source = getattr(tokenizer, "source", type(tokenizer).__name__)
        raise ConfigError(
            f"{source}: its tokenizer has ids up to {tokenizer.vocab_size - 1}, the model's vocabulary is "
            f"{vocab_size}; use the tokenizer that came with the weights"
        )


def _json(path: pathlib.Path) -> dict:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error}); fetch it again") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: not a JSON object; fetch it again")
    return value


def _named_tokens(settings: dict) -> dict[str, str]:
    """{"bos_token": text, ...}: a value is a string or an object with its `content`."""
    found = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
            value = settings[name].get(key)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str) and value:
                found[key] = value
    return found


def _chat_template(directory: pathlib.Path, config: dict) -> str | None:
    """The template file, or the settings' own (a string, or a list of named ones of which "default" counts)."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    value = config.get("chat_template")
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}.get("default")
    return value if isinstance(value, str) else None
