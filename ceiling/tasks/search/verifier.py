"""Verdict on an episode: the answer in the agent's own last words, and how it came there.

The answer stands after the last "=" of the last own turn, ended by "$"; whatever observations hold is none. The
process is valid when every turn is well-formed, every hop of the true chain was observed, and the answer is its end:
a right guess, or a wrong path that happens to end right, is not. Credit is the share of the chain's hops observed.
"""

import re

from ceiling.tasks.base import Outcome, Turns, Verdict
from ceiling.tasks.search import language as lang
from ceiling.tasks.search.calls import WORLD
from ceiling.tasks.search.world import World, aliases

_ANSWER = re.compile(r"=([0-9]{3})\$")


def verify(world: World, start: str, path: str, answer: str, turns: Turns) -> Verdict:
    strategy, given = strategy_of(turns), answer_of(turns)
    credit = sum(reached(world, start, path, turns)) / len(path)
    if given is None:
        return Verdict(Outcome.UNPARSED, credit=credit, strategy=strategy)
    right = given == answer
    process = right and credit == 1 and lang.well_formed(turns)
    return Verdict(Outcome.RIGHT if right else Outcome.WRONG, given, credit, process, strategy)


def answer_of(turns: Turns) -> str | None:
    """The three digits of the answer, None where the last own turn has none."""
    last = turns[-1]
    match = _ANSWER.fullmatch(last[max(last.rfind("="), 0) :])
    return match and match[1]


def reached(world: World, start: str, path: str, turns: Turns) -> list[bool]:
    """Whether an observation shows each hop of the true chain, from its own entity and by its own keyword."""
    said = {key: value for body in WORLD.bodies(turns) for key, value in lang.read_document(body).items()}
    keys, at, out = aliases(path), start, [False] * len(path)
    for i, key in enumerate(keys):
        out[i] |= (at, key) in said
        if (at, keys[i : i + 2]) in said and i + 1 < len(keys):
            out[i] = out[i + 1] = True
        at = world.objects[at, key]
    return out


def strategy_of(turns: Turns) -> str | None:
    """The label that the calls show; None where one is malformed, or there is none."""
    asked = [lang.read_query(query or "") for query in WORLD.queries(turns)]
    if not asked or None in asked:
        return None
    if any(len(keys) == 2 for _, keys in asked):
        return "J"
    return "V" if len(asked) > 1 and asked[-1] == asked[-2] else "H"
