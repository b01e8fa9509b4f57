"""Tokenisers small enough to read: characters for the lab, bytes for any text file.

These, and a checkpoint's own (`tokenizer_file.py`), have
    pad_id, eos_id, vocab_size      ids; the end of text
    eos                             the text of the end token
    stop_ids                        every id that ends a response, eos_id first
    bos_ids                         what a document must start with, () where nothing is needed
    special                         texts that are control tokens: user text must not contain them
    identity                        SHA-256 of everything that decides what text becomes which ids
    encode(text) -> list[int], decode(ids) -> str, split_end(text) -> (body, ended)
Id 0 of the two here is padding and never produced by `encode`.
"""

import dataclasses
import functools
import hashlib


class _Small:
    """What the two have in common: one end token, nothing at the start."""

    bos_ids = ()

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return (self.eos_id,)

    @property
    def special(self) -> tuple[str, ...]:
        return (self.eos,)

    @property
    def identity(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def split_end(self, text: str) -> tuple[str, bool]:
        """A response without its end token, and whether it had one (else it was cut)."""
        body = text.removesuffix(self.eos)
        return body, body != text


@dataclasses.dataclass(frozen=True)
class CharTokenizer(_Small):
    """One token per character of `symbols`; `eos` is one of them. encode refuses other characters."""

    symbols: str
    eos: str
    pad_id: int = 0

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {c: i + 1 for i, c in enumerate(self.symbols)}

    @property
    def eos_id(self) -> int:
        return self._ids[self.eos]

    @property
    def vocab_size(self) -> int:
        return len(self.symbols) + 1

    def encode(self, text: str) -> list[int]:
        try:
            return [self._ids[c] for c in text]
        except KeyError as error:
            raise ValueError(f"tokenizer: character {error} is not in the alphabet {self.symbols!r}") from None

    def decode(self, ids) -> str:
        return "".join(self.symbols[i - 1] if i else "" for i in ids)


@dataclasses.dataclass(frozen=True)
class ByteTokenizer(_Small):
    """UTF-8 bytes shifted past padding (0) and end of text (1). The end of text is written as
    `eos`, a control character that real text does not contain; decode replaces broken UTF-8."""

    eos: str = "\x03"
    pad_id: int = 0
    eos_id: int = 1
    vocab_size: int = 258

    def encode(self, text: str) -> list[int]:
        return [1 if b == 3 else b + 2 for b in text.encode("utf-8")]

    def decode(self, ids) -> str:
        return bytes(3 if i == 1 else i - 2 for i in ids if i).decode("utf-8", errors="replace")
