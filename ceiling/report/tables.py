"""HTML tables: everything escaped, reachable with the keyboard, scrolling on a narrow screen.

table("Gates", ["gate", "value"], [["executor accuracy", "0.981"]])
"""

from html import escape

from ceiling.report.units import ABSENT, clean, interval, number, signed
from ceiling.report.view import View

VERDICTS = {  # verdict -> (CSS class, glyph): the glyph carries the verdict where colour does not
    "expanded": ("expanded", "▲"),
    "re-weighted": ("reweighted", "◆"),
    "contracted": ("contracted", "▼"),
    "not resolved": ("unresolved", "?"),
}


class Raw(str):
    """HTML that is already escaped."""


def text(value) -> str:
    """A cell's content: Raw as it is, numbers formatted, anything else escaped."""
    if isinstance(value, Raw):
        return value
    return escape(number(value) if value is None or isinstance(value, int | float) else str(value))


def table(caption: str, headers, rows, *, kind: str = "") -> str:
    """A captioned table in a focusable scroll region; the first cell of each row is its header."""
    head = "".join(f'<th scope="col">{text(item)}</th>' for item in headers)
    body = "".join(
        "<tr>" + f'<th scope="row">{text(row[0])}</th>' + "".join(_cell(item) for item in row[1:]) + "</tr>"
        for row in rows
        if row
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="{kind}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>" if body else ""


def nested(caption: str, value) -> str:
    """Any JSON value as tables: dicts of dicts and lists of dicts by column, the rest name and value."""
    value = clean(value)
    if isinstance(value, dict) and value and all(isinstance(item, dict) for item in value.values()):
        inner = {key: None for item in value.values() for key in item}
        flat = not any(isinstance(v, dict | list) for item in value.values() for v in item.values())
        if flat:
            rows = [[key, *[item.get(column) for column in inner]] for key, item in value.items()]
            return table(caption, ["", *[_words(column) for column in inner]], rows)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        columns = list(dict.fromkeys(key for item in value for key in item))
        rows = [[item.get(column) for column in columns] for item in value]
        return table(caption, [_words(column) for column in columns], rows)
    return table(caption, ["name", "value"], [[key, item] for key, item in flatten(value)])


def flatten(value, prefix: str = "") -> list[tuple[str, object]]:
    """Dotted keys and leaf values, as the command line spells an override; a list of leaves is one leaf."""
    if isinstance(value, dict):
        items = [flatten(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
        return [pair for item in items for pair in item]
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        items = [flatten(item, f"{prefix}.{i}") for i, item in enumerate(value)]
        return [pair for item in items for pair in item]
    if isinstance(value, list):
        return [(prefix, verbatim(value))]
    return [(prefix, value if isinstance(value, float | str) or value is None else str(value))]


def verbatim(value) -> str | None:
    """A leaf of a configuration as it is, not rounded: it is meant to be copied."""
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "(empty)"
    return value if value is None else str(value)


def badge(group) -> Raw:
    """The label of a designed trap, wherever its group is named in HTML."""
    return Raw(f'<span class="badge">{escape(group.note)}</span>') if group.note else Raw("")


def chip(look) -> Raw:
    """An arm's name with the line that stands for it in the figures."""
    dash = f' stroke-dasharray="{" ".join(str(part * 2) for part in look.dash)}"' if look.dash else ""
    return Raw(
        f'<span class="arm"><svg class="swatch" viewBox="0 0 26 8" aria-hidden="true"><path d="M1 4H25" '
        f'style="stroke:{look.css}" stroke-width="{1.3 * look.width:.2f}"{dash}/></svg>'
        f"{escape(look.title)}</span>"
    )


def matrix(view: View) -> str:
    """The verdict matrix: one row per arm, one column per group, then the aggregates."""
    found = {(row["arm"], row["group"]): row for row in view.rows("verdicts")}
    groups = [g for g in view.every.values() if any(key[1] == g.name for key in found) or not g.aggregate]
    judged = {arm for arm, _ in found}
    arms = [p for p in view.looks.values() if p.kind == "arm" or (p.kind == "null" and p.name in judged)]
    if not arms or not groups:
        return ""
    arms.sort(key=lambda look: (look.kind == "null", look.control))
    head = "".join(_group_head(group) for group in groups)
    body = "".join(
        f'<tr class="{"control" if look.control else look.kind}"><th scope="row">{chip(look)}'
        + ("<small>control</small>" if look.control else "")
        + "</th>"
        + "".join(_verdict(found.get((look.name, group.name)), group, look, view) for group in groups)
        + "</tr>"
        for look in arms
    )
    caption = "Verdict for every arm in every group"
    kind = "matrix many" if len(groups) > 4 else "matrix"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table class="{kind}">'
        f'<caption class="quiet">{caption}</caption><thead><tr><th scope="col">arm</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def verdict_key() -> str:
    items = "".join(
        f'<span class="key {kind}"><b aria-hidden="true">{glyph}</b> {name}</span>'
        for name, (kind, glyph) in VERDICTS.items()
    )
    return f'<p class="keys">{items}</p>'


def _group_head(group) -> str:
    prior = f"<small>{escape(group.prior)}</small>" if group.prior else ""
    kind = "trap" if group.trap else "pooled" if group.aggregate else ""
    title = f' title="{escape(group.description)}"' if group.description else ""
    return f'<th scope="col" class="{kind}"{title}>{escape(group.title)}{prior}{badge(group)}</th>'


def _verdict(row, group, look, view: View) -> str:
    extra = " trap" if group.trap else " pooled" if group.aggregate else ""
    if row is None:
        shown = ABSENT if view.done(look.name) else "…"
        label = "no verdict" if view.done(look.name) else "not finished yet"
        return f'<td class="verdict missing{extra}" title="{label}">{shown}</td>'
    verdict = str(row.get("verdict") or "not resolved")
    kind, glyph = VERDICTS.get(verdict, VERDICTS["not resolved"])
    deltas = (("1", "delta_1"), (row.get("k") or view.meta.get("verdict_k") or "K", "delta_k"))
    small = "".join(
        f'<small title="{escape(interval(row.get(f"{key}_lo"), row.get(f"{key}_hi"), sign=True))}">'
        f"@{escape(str(k))} {signed(row.get(key), 2)}</small>"
        for k, key in deltas
    )
    reason = escape(str(row.get("reason") or verdict))
    return (
        f'<td class="verdict {kind}{extra}" title="{reason}"><b><span aria-hidden="true">{glyph}</span> '
        f"{escape(verdict)}</b>{small}</td>"
    )


def _cell(value) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    shown = text(value)
    digits = sum(c.isdigit() for c in shown)
    kind = ' class="num"' if is_number or (not isinstance(value, Raw) and digits * 3 > len(shown)) else ""
    return f"<td{kind}>{shown}</td>"


def _words(name) -> str:
    return str(name).replace("_", " ")
