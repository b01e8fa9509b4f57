"""The lab's language: letters that name maps on 4-digit strings, and ways to work them out.

A prompt is four operation slots (applied left to right, "." pads), "=" and four digits: "ab..=1234". A
response starts with its strategy's label and ends with "#dddd$". Inside it, each function has a token of its
own, so that *which* map a letter means (the association) and *executing* a map are separate skills: the corpus
can make the one rare while the other is common.

A step is its strategy's label, a name and the state after it. So the state before it, be it the prompt's or the
last step's, always lies six tokens back. Where the two distances differed, some seeds learned every step but the
first one, and nothing that starts from a prompt.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np

DIGITS = "0123456789"
STATES = tuple(f"{i:04d}" for i in range(10_000))
SLOTS = 4
MAX_RESPONSE = 30


@dataclasses.dataclass(frozen=True)
class Map:
    """y_i = scale * x_(source_i) + offset_i, mod 10. Digit-wise unless a source is another place."""

    scale: int
    offset: tuple[int, int, int, int]
    source: tuple[int, int, int, int] = (0, 1, 2, 3)

    def __call__(self, digits_N4: np.ndarray) -> np.ndarray:
        return (self.scale * digits_N4[..., self.source] + np.array(self.offset)) % 10


def _add(*offset: int) -> Map:
    return Map(1, offset * 4 if len(offset) == 1 else offset)


# Function tokens, by how often the corpus shows a letter followed by them.
COMMON = {"α": _add(1), "β": Map(-1, (9,) * 4), "γ": Map(2, (0,) * 4),
          "δ": _add(1, 9, 1, 9), "ε": _add(0, 5, 0, 5), "ζ": _add(4)}  # fmt: skip
SKILLS = {"η": _add(3), "θ": _add(2, 0, 0, 2), "ι": _add(9), "κ": _add(0, 3, 3, 0)}
# ν reads every digit from the next place, so that no digit-wise map earns more than chance credit on it.
ABSENT = {"λ": Map(3, (0,) * 4), "μ": Map(7, (0,) * 4), "ν": Map(1, (1, 4, 7, 2), source=(1, 2, 3, 0))}
DECOYS = {"ρ": _add(6), "σ": _add(2), "τ": _add(3, 0, 3, 0), "υ": _add(4, 4, 0, 0),
          "φ": _add(7), "χ": _add(0, 0, 6, 6), "ψ": _add(8, 0, 8, 0)}  # fmt: skip
FUNCTIONS = COMMON | SKILLS | ABSENT | DECOYS

# Letter -> its true function. Decoys take the place of the truth with probability 1 - rho.
COMMON_LETTERS = dict(zip("abcdef", COMMON, strict=True))
RARE_LETTERS = dict(zip("ghij", SKILLS, strict=True))
ABSENT_LETTERS = dict(zip("klq", ABSENT, strict=True))
ALIAS_LETTERS = dict(zip("mnop", SKILLS, strict=True))  # always true: the skill is known, the name rare
TRUTH = COMMON_LETTERS | RARE_LETTERS | ABSENT_LETTERS | ALIAS_LETTERS
DECOY_OF = dict(zip("ghijklq", DECOYS, strict=True))

STRATEGIES = {
    "S": "step by step: the label, each function token, the state after it",
    "P": "plan first: the label, all function tokens (padded to four), then the states",
    "L": "letter by letter: like S, but naming the letter and not its function",
    "D": "direct: the answer alone",
    "B": "right to left: like S, operations in reverse order",
    "N": "noisy: like S, each function replaced by a random common one half of the time",
}
SYMBOLS = "=#$." + DIGITS + "".join(TRUTH) + "".join(FUNCTIONS) + "".join(STRATEGIES)
MARKS = "?✗✓"  # critic.py: what is said of this? It is wrong; it is right. Only labs with critiques have these symbols


def text_of(digits_4: np.ndarray) -> str:
    return "".join(DIGITS[d] for d in digits_4)


def prompt(letters: str, digits: str) -> str:
    return letters.ljust(SLOTS, ".") + "=" + digits


def held_out(prompt: str) -> bool:
    """Whether a prompt belongs to the problems, one in eight by hash: no corpus ever shows it. So the corpus does
    not depend on which problems, or how many, are drawn from them."""
    return hashlib.blake2b(prompt.encode(), digest_size=1).digest()[0] % 8 == 0


def read_prompt(text: str) -> tuple[str, str]:
    """(letters, digits) of a prompt."""
    return text[:SLOTS].rstrip("."), text[SLOTS + 1 : SLOTS + 5]


@functools.cache
def after(function: str) -> np.ndarray:
    """int[10000]: the state after one function token, for every state as a number."""
    digits_N4 = np.arange(10_000)[:, None] // (1000, 100, 10, 1) % 10
    return FUNCTIONS[function](digits_N4) @ (1000, 100, 10, 1)


def step(function: str, digits: str) -> str:
    """State after one function token."""
    return STATES[after(function)[int(digits)]]


def run(functions: Sequence[str], digits: str) -> list[str]:
    """States after each function token, in order."""
    out = []
    for name in functions:
        digits = step(name, digits)
        out.append(digits)
    return out


def render(strategy: str, letters: str, functions: Sequence[str], digits: str) -> str:
    """The response that works `functions`, meant by `letters`, out by `strategy`. B reverses both; N is
    given the functions that it wanders into."""
    if strategy == "B":
        letters, functions = letters[::-1], functions[::-1]
    states = run(functions, digits)
    if strategy == "P":
        work = "P" + "".join(functions).ljust(SLOTS, ".") + "".join(states)
    elif strategy == "D":
        work = "D"
    else:
        spoken = letters if strategy == "L" else functions
        work = "".join(strategy + name + state for name, state in zip(spoken, states, strict=True))
    return f"{work}#{states[-1]}$"


def trap(digits: str) -> bool:
    """Whether group M's minority convention (right to left) holds for these digits."""
    a, b, c, d = map(int, digits)
    return (3 * a + 7 * b + 2 * c + 6 * d) % 7 == 0


def truth(letters: str, digits: str) -> str:
    """The answer: true functions left to right, or right to left where `trap` holds."""
    functions = [TRUTH[c] for c in letters]
    return run(functions[::-1] if trap(digits) else functions, digits)[-1]
