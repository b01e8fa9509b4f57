r"""How a call of the search engine looks in text, and what its answer stands in.

    world       <417k>                                                     [417k=582]
    search_r1   <search> capital of France </search>                       <information>...</information>
    hermes      <tool_call>{"name": "search", "arguments": {"query": "capital of France"}}</tool_call>
                                                                           <tool_response>...</tool_response>

A call that cannot be read is answered with one line of text, which the model sees as its observation; it is no error
of the run. Nothing of the call stands in that line, so that it cannot carry tags.

Example:
    HERMES.query('<tool_call>{"name": "search"}</tool_call>')    # Malformed: 'error: "arguments" needs a text "query"'

Sources: Search-R1 (arXiv 2503.09516) for the tags; the Hermes function calling format of Nous Research.
"""

import dataclasses
import json
from collections.abc import Callable

from ceiling.tasks.base import Turns
from ceiling.tasks.search import language as lang


class Malformed(Exception):
    """What the model is told of a call that cannot be read."""


@dataclasses.dataclass(frozen=True)
class Calls:
    """opening and closing: around every observation. failed, nothing, unopened: its body where the search failed,
    where nothing was found, and where a call has an `end` and no `start`. read: from what stands between the two to the
    query, or raises Malformed. instructions: of a prompt, with {question} in it."""

    start: str
    end: str
    opening: str
    closing: str
    failed: str
    nothing: str
    unopened: str
    read: Callable[[str], str]
    instructions: str = ""

    def query(self, turn: str) -> str:
        """The query of an own turn that ends with a call, or with a token that has more text than the call's end.
        Raises Malformed."""
        _, start, inside = turn.rpartition(self.end)[0].rpartition(self.start)
        if not start:
            raise Malformed(self.unopened)
        return self.read(inside)

    def queries(self, turns: Turns) -> tuple[str | None, ...]:
        """What was asked, in order; None for a call that cannot be read."""
        out = []
        for turn in turns[:-1:2]:
            try:
                out.append(self.query(turn))
            except Malformed:
                out.append(None)
        return tuple(out)

    def bodies(self, turns: Turns) -> tuple[str, ...]:
        """What came back, in order."""
        return tuple(turn.removeprefix(self.opening).removesuffix(self.closing) for turn in turns[1::2])


def _text(inside: str) -> str:
    query = inside.strip()
    if not query:
        raise Malformed("error: the query is empty")
    return query


def _json(inside: str) -> str:
    try:
        call = json.loads(inside)
    except (ValueError, RecursionError):
        raise Malformed("error: the call is not JSON") from None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise Malformed('error: the call needs a "name" and "arguments"')
    if call["name"] != "search":
        raise Malformed("error: no such tool; the only one is search")
    arguments = call.get("arguments")
    if not isinstance(arguments, dict) or not isinstance(arguments.get("query"), str):
        raise Malformed('error: "arguments" needs a text "query"')
    return _text(arguments["query"])


_ASKED = (
    "Find the answer to the question below. Think first, and again whenever you have learned something. {how} You may "
    "search several times. When you know the answer, write it alone between <answer> and </answer>, for example "
    "<answer>Ottawa</answer>.\n\nQuestion: {question}\n"
)
_R1_HOW = "Where you lack a fact, write <search> a query </search>: what is found comes between <information> tags."
_HERMES_HOW = (
    'Where you lack a fact, write <tool_call>{"name": "search", "arguments": {"query": "a query"}}</tool_call>: what '
    "is found comes between <tool_response> tags. The query is a text; search is the only tool."
)
_FAILED, _NOTHING = "error: the search failed", "nothing was found"

WORLD = Calls("<", lang.TAG, lang.OPENING, lang.CLOSING, *[lang.FAILED] * 3, read=str)
SEARCH_R1 = Calls(
    "<search>", "</search>", "\n\n<information>", "</information>\n\n", _FAILED, _NOTHING,
    "error: no <search> before </search>", _text, _ASKED.replace("{how}", _R1_HOW),
)  # fmt: skip
HERMES = Calls(
    "<tool_call>", "</tool_call>", "\n<tool_response>\n", "\n</tool_response>\n", _FAILED, _NOTHING,
    "error: no <tool_call> before </tool_call>", _json, _ASKED.replace("{how}", _HERMES_HOW),
)  # fmt: skip
FORMATS = {"search_r1": SEARCH_R1, "hermes": HERMES}
