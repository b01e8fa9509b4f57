"""What sections share: which groups have rows, the grid of panels, the line on missing parts."""

from html import escape

from ceiling.report.tables import Raw, badge, chip, table
from ceiling.report.view import TABLES, Group, View


def rows_for(rows, group: Group) -> list[dict]:
    return [row for row in rows if row.get("group") == group.name]


def alone(view: View, rows) -> list[Group]:
    """Groups of problems that have rows."""
    return [group for group in view.groups.values() if rows_for(rows, group)]


def pooled(view: View, rows) -> list[Group]:
    """Aggregates that have rows."""
    return [group for group in view.aggregates.values() if rows_for(rows, group)]


def arranged(view: View, rows) -> list[tuple[bool, list[Group]]]:
    """(large?, groups): aggregates large, groups small; one or two groups without aggregates are large."""
    large, small = pooled(view, rows), alone(view, rows)
    return [(True, small)] if not large and len(small) <= 2 else [(True, large), (False, small)]


def grid(panels, caption: str, tables=(), *, size: str = "narrow") -> str:
    """Panels side by side with one caption and links to the data; size is narrow, medium or wide."""
    if not panels:
        return ""
    links = " ".join(f'<a href="csv/{name}.csv">{name}.csv</a>' for name in tables)
    cells = "".join(f'<div class="panel">{panel}</div>' for panel in panels)
    data = f' <span class="data">Data: {links}</span>' if links else ""
    return (
        f'<figure><div class="grid {size}">{cells}</div>'
        f"<figcaption>{escape(caption)}{data}</figcaption></figure>"
    )


def pending(view: View, name: str) -> str:
    """What a table still lacks: nothing when it is whole, one line otherwise."""
    rows = view.rows(name)
    if view.complete:
        return "" if rows else '<p class="pending">Not part of this experiment.</p>'
    arms = [a for a in view.declared if a not in {row.get("arm") for row in rows}] if rows else []
    keyed = "group" in TABLES[name].split()
    groups = [g.title for g in view.groups.values() if not rows_for(rows, g)] if rows and keyed else []
    if name in ("verdicts", "differences", "sets", "rlp"):
        arms = [arm for arm in arms if arm != view.base]  # the base has no difference to itself
    if name == "verdicts":
        arms = [arm for arm in arms if arm != view.null]  # nor is the null arm judged against itself
    missing = "; ".join(
        f"no rows yet for {what} {', '.join(items)}"
        for what, items in (("arms", [view.title(a) for a in arms]), ("groups", groups))
        if items and name != "rlp"
    )
    said = f"Not finished yet: {view.progress}{'; ' + missing if missing else ''}."
    return f'<p class="pending">{escape(said)}</p>'


def described(view: View) -> str:
    """Tables of the groups and the arms as the configuration declares them."""
    groups = [
        [Raw(f"{escape(g.title)} {badge(g)}"), g.name, g.prior, g.description or ", ".join(g.members)]
        for g in view.every.values()
    ]
    arms = [
        [
            chip(look),
            view.declared.get(look.name, {}).get("regime"),
            "control" if look.control else look.kind if look.kind != "arm" else "arm",
            reads(view, look.name),
            view.declared.get(look.name, {}).get("description"),
        ]
        for look in view.looks.values()
    ]
    return (table("Groups", ["group", "name", "prior", "what"], groups, kind="long") if groups else "") + (
        table("Arms", ["arm", "regime", "kind", "may read", "what"], arms, kind="long") if arms else ""
    )


def reads(view: View, arm: str) -> str:
    """What an arm is allowed to see, as it declares it."""
    return ", ".join(str(item) for item in view.declared.get(arm, {}).get("reads") or []) or "–"
