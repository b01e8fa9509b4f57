"""The page of a sweep: one figure, a panel per problem group, an arm's line through the points; and the table."""

import math
from html import escape
from pathlib import Path

from ceiling import report
from ceiling.report import view
from ceiling.report.svg import ARM_COLOURS, canvas, heading, render, role
from ceiling.report.tables import chip
from ceiling.report.units import ABSENT, estimate, flops, number, scaled
from ceiling.sweeps import table

SIZE = (372, 250)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def html(there: list, rows: list[dict], count: int, x: str, y: str) -> str:
    """The page as a string. there: (point, its results.json) of finished points; count: of all points."""
    looks = view.build(there[0][1]).looks if there else {}
    groups = view.build(there[0][1]).every if there else {}
    configs = {point.name: point.config for point, _ in there}
    panels = []
    for name in dict.fromkeys(row["group"] for row in rows):
        curves, base = lines([row for row in rows if row["group"] == name], configs, x, table.METRICS[y])
        if curves:
            title = groups[name].heading if name in groups else name
            panels.append(f"<figure>{panel(curves, base, looks, name=name, title=title, x=x, y=y)}</figure>")
    legend = "".join(f'<span class="pick">{chip(looks[arm])}</span>' for arm in dict.fromkeys(r["arm"] for r in rows)
                     if arm in looks)  # fmt: skip
    said = f"{len(there)} of {count} points are finished. {escape(y)} against {escape(table.axis_title(x))}; bars are "
    said += "95 % intervals over problems and training seeds."
    figure = f'<div class="grid medium">{"".join(panels)}</div>' if panels else '<p class="pending">No point yet.</p>'
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy" '
        f'content="{_POLICY}"><title>ceiling sweep</title><style>{_css(looks)}</style></head>\n<body><header>'
        f'<h1>Sweep</h1><p>{said}</p></header><div class="bar"><div class="legend">{legend}</div></div>'
        f"<main><section>{figure}</section><section>{_table(rows, looks, x, configs)}</section></main></body></html>\n"
    )


def lines(rows: list[dict], configs: dict, x: str, column: str) -> tuple[dict, list[float]]:
    """arm -> [(x, mean, lo, hi)] in the order of x, and the heights of a base that has no x of its own."""
    curves, base = {}, []
    for row in rows:
        if row[column] is None:
            continue
        at = row["student_flops"] if x == table.FLOPS else table.value_at(configs[row["point"]], x, arm=row["arm"],
                                                                          group=row["group"])  # fmt: skip
        if row["arm"] == "base" and not at:
            base.append(row[column])
        elif at is not None:
            curves.setdefault(row["arm"], []).append((at, row[column], row[f"{column}_lo"], row[f"{column}_hi"]))
    return {arm: sorted(points, key=lambda point: point[0]) for arm, points in curves.items()}, base


def panel(curves: dict, base: list[float], looks: dict, *, name: str, title: str, x: str, y: str) -> str:
    """An inline SVG. Logarithmic in x where all x are positive and the largest is three times the smallest or more."""
    figure, axes = canvas(*SIZE, left=36, right=16, top=44, bottom=46)
    heading(figure, title, limit=46)
    xs = sorted({point[0] for points in curves.values() for point in points})
    logarithmic = xs[0] > 0 and xs[-1] >= 3 * xs[0]
    place = math.log10 if logarithmic else float
    for height in sorted(set(base)):
        axes.axhline(height, color=role("ink"), linewidth=1.4, linestyle=(0, (4, 2)), gid="arm-900")
    for arm, points in curves.items():
        look = looks[arm]
        style = dict(color=look.colour, gid=f"arm-{look.index}")
        dash = (0, look.dash) if look.dash else "solid"
        axes.plot([place(p[0]) for p in points], [p[1] for p in points], linewidth=look.width, linestyle=dash,
                  marker=look.marker, markersize=4, markeredgewidth=0, **style)  # fmt: skip
        for at, _, lo, hi in points:
            if lo is not None and hi is not None:
                axes.plot([place(at)] * 2, [lo, hi], linewidth=0.9, alpha=0.6, **style)
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
    shown = _apart([place(at) for at in xs], xs)
    label = scaled if x == table.FLOPS or xs[-1] >= 1e5 else "{:.3g}".format
    axes.set_xticks([place(at) for at in shown], [label(at) for at in shown])
    axes.text(0, 1.0, y, transform=axes.transAxes, fontsize=10, color=role("muted"), va="bottom")
    axes.set_xlabel(table.axis_title(x), fontsize=10, color=role("muted"))
    words = [f"{looks[arm].title} {points[0][1]:.2f} at {label(points[0][0])}, {points[-1][1]:.2f} at "
             f"{label(points[-1][0])}" for arm, points in curves.items()]  # fmt: skip
    return render(figure, f"sweep-{name}", title=f"{y}: {title}", description="; ".join(words))


def _apart(places: list[float], values: list[float]) -> list[float]:
    """The values whose ticks have room: each a sixth of the axis from the one before."""
    shown, last = [], -math.inf
    for place, value in zip(places, values, strict=True):
        if place - last >= (places[-1] - places[0]) / 6:
            shown.append(value)
            last = place
    return shown


def _table(rows: list[dict], looks: dict, x: str, configs: dict) -> str:
    head = "".join(f"<th>{escape(c)}</th>" for c in ("point", table.axis_title(x), "arm", "group", "pass@1", "pass@k",
                                                     "verdict", "student FLOPs"))  # fmt: skip
    body = ""
    for row in rows:
        own = None if x == table.FLOPS else table.value_at(configs[row["point"]], x, arm=row["arm"], group=row["group"])
        cells = (
            escape(row["point"]), ABSENT if own is None else f"{own:.4g}",
            escape(looks[row["arm"]].title if row["arm"] in looks else row["arm"]), escape(row["group"]),
            estimate(*(row[f"pass_at_1{end}"] for end in ("", "_lo", "_hi"))),
            f"{estimate(*(row[f'pass_at_k{end}'] for end in ('', '_lo', '_hi')))}, k = {number(row['k'])}",
            escape(row["verdict"] or ABSENT), flops(row["student_flops"]),
        )  # fmt: skip
        body += f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _css(looks: dict) -> str:
    """The report's style, and the arms' colours for light and dark."""
    pairs = {look.index: ARM_COLOURS[look.index % len(ARM_COLOURS)] for look in looks.values() if look.index < 900}
    light, dark = ("".join(f"--arm-{i}:{pair[side]};" for i, pair in pairs.items()) for side in (0, 1))
    style = Path(report.__file__).with_name("style.css").read_text("utf-8")
    return f"{style}:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
