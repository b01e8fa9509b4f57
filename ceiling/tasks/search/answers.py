"""Short answers in words: exact match and F1 after SQuAD's normalisation (lower case, no punctuation, no articles).

An answer stands between <answer> tags in the agent's last own turn: the last pair there counts, and nothing inside it
is a tag. What a tool wrote is never read.

Example:
    exact("The Eiffel Tower!", ["Eiffel tower"])        # True
    f1("Eiffel", ["the Eiffel Tower"])                  # 2/3

Sources: the evaluation scripts of SQuAD 1.1 and of HotpotQA (yes, no and noanswer have no partial credit).
"""

import collections
import re
import string
from collections.abc import Iterable

from ceiling.tasks.base import Turns

OPEN, CLOSE = "<answer>", "</answer>"
_PAIR = re.compile(rf"{OPEN}((?:(?!</?answer>).)*){CLOSE}", re.DOTALL)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CLOSED = ("yes", "no", "noanswer")


def normalised(text: str) -> str:
    """SQuAD's normal form, which may be empty."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def exact(said: str, golds: Iterable[str]) -> bool:
    return normalised(said) in {normalised(gold) for gold in golds} - {""}


def f1(said: str, golds: Iterable[str]) -> float:
    """The best of the golds, in [0, 1]."""
    return max((_f1(normalised(said), normalised(gold)) for gold in golds), default=0.0)


def _f1(said: str, gold: str) -> float:
    if said != gold and (said in _CLOSED or gold in _CLOSED):
        return 0.0
    said_words, gold_words = said.split(), gold.split()
    common = sum((collections.Counter(said_words) & collections.Counter(gold_words)).values())
    return 2 * common / (len(said_words) + len(gold_words)) if common else 0.0


def final(turns: Turns) -> str | None:
    """The answer in the last own turn, None where there is none or it is empty."""
    said = _PAIR.findall(turns[-1])
    return said[-1].strip() or None if said else None
