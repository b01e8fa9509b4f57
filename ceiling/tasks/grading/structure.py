r"""The structure of an answer: a tree is a leaf (text) or (kind, [trees]).

Kinds: "list" (also sets and both values of \pm) and "union" have no order; brackets such as "()" or "[)" are tuples
and intervals; "matrix" holds "row"s. Leaves are compared by `expressions`.
"""

import re

from ceiling.tasks import numeric

MAX_DEPTH = 50  # nested brackets
MAX_PARTS = 20  # elements of a list, a tuple or a matrix
UNORDERED = ("list", "union")


def tree(text: str, whole_numbers: bool = True):
    """The tree of an answer without outer LaTeX (`numeric.tidy`), or None if brackets do not match, are nested too
    deep or hold too much. whole_numbers: 1,234 is a number rather than a list."""
    text = text.strip()
    if whole_numbers and numeric.read(text) is not None:
        return text
    if too_deep(text):
        return None
    name, value = split_name(text)
    for attempt in (_matrix, _list, _union, _tuple):
        if (found := attempt(value)) is not None:
            return found if found[1] and len(found[1]) <= MAX_PARTS and None not in found[1] else None
    return _leaf(f"{name}={value}" if name else value)


def leaves(node):
    """Every leaf of a tree; None where there is no tree."""
    if node is None or isinstance(node, str):
        yield node
    else:
        for part in node[1]:
            yield from leaves(part)


def split_name(text: str) -> tuple[str, str]:
    r"""(name, rest) of `name = rest` and `name \in rest` with exactly one sign, else ("", text)."""
    parts = _ASSIGNS.split(text)
    if len(parts) == 2 and _NAME.fullmatch(parts[0].strip()) and parts[1].strip():
        return re.sub(r"\s+", "", parts[0]), parts[1].strip()
    return "", text


def too_deep(text: str, limit: int = MAX_DEPTH) -> bool:
    """Brackets that do not match, or more than `limit` of them within each other."""
    depths = _depths(text)
    return depths is None or max(depths, default=0) > limit


def _matrix(text: str):
    if (match := _MATRIX.fullmatch(text)) is None:
        return None
    rows = [row.split("&") for row in match[2].split(r"\\") if row.strip()]
    if len(rows) > MAX_PARTS:
        return "matrix", []
    return "matrix", [("row", list(map(tree, row))) if len(row) <= MAX_PARTS else None for row in rows]


def _list(text: str):
    braces = _BRACES.fullmatch(text)
    inside = braces is not None and _depths(braces[1]) is not None
    parts = _split(_AND_OR.sub(",", braces[1] if inside else text), ",")
    if not inside and len(parts) == 1 and r"\pm" not in text:
        return None
    if len(parts) > MAX_PARTS or _split(text, r"\cup")[1:] or _tuple(text):
        return ("list", []) if len(parts) > MAX_PARTS else None
    signed = [half for part in parts for half in _both_signs(part)]
    return "list", [tree(part, whole_numbers=False) if part else None for part in signed]


def _union(text: str):
    parts = _split(text, r"\cup")
    return ("union", [tree(part, whole_numbers=False) for part in parts[:MAX_PARTS]]) if len(parts) > 1 else None


def _tuple(text: str):
    if text[:1] not in ("(", "[") or text[-1:] not in (")", "]") or not all(d > 0 for d in _depths(text)[1:-1]):
        return None
    parts = _split(text[1:-1], ",") if _depths(text[1:-1]) is not None else []
    return (text[0] + text[-1], list(map(tree, parts[: MAX_PARTS + 1]))) if len(parts) > 1 else None


def _leaf(text: str) -> str:
    """A leaf without the unit that follows it."""
    unit = _UNIT.search(text)
    if unit is None or numeric.changes_the_value(unit[1].split()):
        return text
    return text[: unit.start()] or text


def _both_signs(text: str) -> list[str]:
    r"""The two values of a part with \pm, or the part."""
    if r"\pm" not in text:
        return [text]
    upper = text.replace(r"\pm", "+").replace(r"\mp", "-").lstrip("+ ")
    return [upper, text.replace(r"\pm", "-").replace(r"\mp", "+")]


def _split(text: str, separator: str) -> list[str]:
    """Text split at separators outside of all brackets, which must match."""
    depths = _depths(text)
    cuts = [m.start() for m in re.finditer(re.escape(separator), text) if depths[m.start()] == 0]
    edges = [-len(separator), *cuts, len(text)]
    return [text[a + len(separator) : b].strip() for a, b in zip(edges, edges[1:], strict=False)]


def _depths(text: str) -> list[int] | None:
    """Bracket depth at each character; None if brackets do not match. ( may close with ], as intervals do."""
    stack, depths = [], []
    for match in re.finditer(r"\\.|.", text, re.DOTALL):
        token = match[0]
        if token in _CLOSED_BY:
            stack.append(_CLOSED_BY[token])
        depths += [len(stack)] * len(token)
        if token in _CLOSING and (not stack or token not in stack.pop()):
            return None
    return None if stack else depths


_CLOSED_BY = {"(": (")", "]"), "[": (")", "]"), "{": ("}",), "\\{": ("\\}",)}
_CLOSING = {")", "]", "}", "\\}"}
_MATRIX = re.compile(r"\\begin\{([pb]matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_BRACES = re.compile(r"\\\{(.*)\\\}", re.DOTALL)
_AND_OR = re.compile(r",?\s*(?:\\text\{\s*(?:and|or)\s*\}|\s(?:and|or)\s)\s*")
_ASSIGNS = re.compile(r"(?<![<>!\\])=|\\in(?![A-Za-z])")
_NAME = re.compile(
    r"""(?!not\b) (?:\\(?:angle|overline|vec|triangle)\s*)?
    (?: \\text\{[A-Za-z ]{1,30}\} | [A-Za-z]{1,12} | \\[a-z]+ | \{\w{1,3}\} | [A-Za-z](?:\s*[+-]\s*[A-Za-z]){1,3} )
    '? (?:_\w|_\{\w{1,8}\})? (?:\([^()=]{1,20}\))?""",
    re.VERBOSE | re.ASCII,
)
_UNIT = re.compile(r"(?<!\\)\s*\\text\{\s([a-z .]+)\}(?:\^(?:[1-3]|\{[1-3]\}))?$")
