"""The generated world's language: questions, queries, documents, and episodes that work a question out.

A question is a start entity and one to three relations, "417AB?": what is B of A of 417? Documents do not say A, they
say its *alias*, a keyword: "417k=582". So that *which* keyword a relation means (the association) and *searching*
(asking, copying, chaining) are separate skills: the corpus can make the one rare while the other is common.

An episode is one of three strategies, and all of them answer right if the aliases are:

    H  hop by hop        <417k>[417k=582]<582m>[582m=903]=903$
    V  verified          H, with its last query asked twice
    J  joint             <417km>[417km=903]=903$   where no such document is, [417k=582] comes and the search goes on

It may begin with a plan, the aliases of the question's relations: "km#<417k>...". Own text up to "#" is a thought. What
an agent copies into its next call or answer lies five tokens back.
"""

import re
from collections.abc import Callable

from ceiling.tasks.base import Turns

DIGITS, KEYWORDS = "0123456789", "abcdefgh"
ENTITIES = tuple(f"{i:03d}" for i in range(1000))
COMMON, RARE, ABSENT = "ABCD", "EF", "G"
RELATIONS = COMMON + RARE + ABSENT
TRUTH = dict(zip(RELATIONS, "fchabge", strict=True))  # relation -> its alias; none has "d"
# The aliases that stand in place of the truth are those of another rare relation: every corpus asks for all of them.
DECOY_OF = {"E": TRUTH["G"], "F": TRUTH["E"], "G": TRUTH["F"]}
STRATEGIES = {"H": "hop by hop", "J": "joint queries", "V": "hop by hop, the last query twice"}
DEPTHS = (1, 2, 3)
SYMBOLS = "?<>[]=#$" + DIGITS + RELATIONS + KEYWORDS

OPENING, CLOSING, TAG, FAILED = "[", "]", ">", "?"
MAX_CALLS = 6
MAX_OBSERVATION = 11  # a joint document
MAX_RESPONSE = 88  # three hops with a reflection before every action are 85; verified and after a plan they are 73

_QUERY = re.compile(r"([0-9]{3})([a-h]{1,2})")
_THOUGHT = r"(?:[^<>=\[\]#$]*#)?"
_CALL = re.compile(rf"{_THOUGHT}<{_QUERY.pattern}>")
_ANSWER = re.compile(rf"{_THOUGHT}=[0-9]{{3}}\$")
_FACT = re.compile(r"([0-9]{3})([a-h]{1,2})=([0-9]{3})")


def question(start: str, relations: str) -> str:
    return f"{start}{relations}?"


def fact(entity: str, keys: str, object_: str) -> str:
    """Document of one keyword, or of two that are followed in turn."""
    return f"{entity}{keys}={object_}"


def words(text: str) -> list[str]:
    """Words of a query or a document that the search engine matches: its subjects and, with their places, its
    keywords. What a document says of them, after "=", is not matched."""
    subject, keys = re.match(r"([^=a-h]*)([a-h]*)", text).groups()
    return re.findall(r"[0-9]+", subject) + [f"{place}{key}" for place, key in enumerate(keys, 1)]


def read_query(query: str) -> tuple[str, str] | None:
    """(entity, keywords) of a well-formed query."""
    match = _QUERY.fullmatch(query)
    return match and match.groups()


def read_document(text: str) -> dict[tuple[str, str], str]:
    """(entity, keywords) -> object: what a document says; empty where it is none."""
    match = _FACT.fullmatch(text)
    return {match.groups()[:2]: match[3]} if match else {}


def episode(strategy: str, start: str, keys: str, ask: Callable[[str], str], plan: str = "") -> Turns:
    """The turns of an agent that works `keys` out by `strategy`. ask: from a query to the document it finds."""
    turns: list[str] = []
    own, at, left, query = plan, start, keys, ""

    def call() -> str:
        body = ask(query)
        turns.extend((f"{own}<{query}>", OPENING + body + CLOSING))
        return body

    while left:
        query = at + left[: 1 + (strategy == "J")]
        (((_, used), at),) = read_document(call()).items()
        own, left = "", left[len(used) :]
    if strategy == "V":
        call()
    return (*turns, f"{own}={at}$")


def feasible(strategy: str, depth: int) -> str:
    """The strategy, or H where it is none of its own: there is nothing to join in one hop."""
    return "H" if (strategy, depth) == ("J", 1) else strategy


def well_formed(turns: Turns) -> bool:
    """Whether every call is a query and the last turn an answer, each after at most one thought."""
    return all(_CALL.fullmatch(turn) for turn in turns[:-1:2]) and bool(_ANSWER.fullmatch(turns[-1]))
