"""The page of a sweep: one figure, a panel per problem group, an arm's line through the points; and the table."""

import math

from ceiling.report import page, panels, view
from ceiling.report.svg import canvas, heading, render, role
from ceiling.report.tables import table as html_table
from ceiling.report.units import estimate, flops, number, scaled
from ceiling.sweeps import table

SIZE = (372, 250)


def html(there: list, rows: list[dict], count: int, x: str, y: str) -> str:
    """The page as a string. there: (point, its results.json) of finished points; count: of all points."""
    looks = view.build(there[0][1]).looks if there else {}
    groups = view.build(there[0][1]).every if there else {}
    configs = {point.name: point.config for point, _ in there}
    drawn = []
    for name in dict.fromkeys(row["group"] for row in rows):
        curves, base = lines([row for row in rows if row["group"] == name], configs, x, table.METRICS[y])
        if curves:
            title = groups[name].heading if name in groups else name
            drawn.append(panel(curves, base, looks, name=name, title=title, x=x, y=y))
    present = {row["arm"] for row in rows}
    shown = {arm: look for arm, look in looks.items() if arm in present}
    said = f"{len(there)} of {count} points are finished."
    caption = f"{y} against {table.axis_title(x)}; bars are 95 % intervals over problems and training seeds."
    figure = panels.grid(drawn, caption, size="medium") or '<p class="pending">No point yet.</p>'
    body = (("figure", "Figure", "The points in a figure", figure),
            ("table", "Table", "The points in numbers", _table(rows, looks, x, configs)))  # fmt: skip
    return page.document("ceiling sweep", f"<p>{said}</p><h1>Sweep</h1>", body, page.legend(shown), page.style(shown))


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
    heading(figure, title)
    xs = sorted({point[0] for points in curves.values() for point in points})
    logarithmic = xs[0] > 0 and xs[-1] >= 3 * xs[0]
    place = math.log10 if logarithmic else float
    for height in sorted(set(base)):
        axes.axhline(height, color=role("ink"), linewidth=1.4, linestyle=(0, (4, 2)), gid="arm-900")
    for arm, points in curves.items():
        look = looks[arm]
        style = dict(color=look.colour, gid=look.gid)
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
    axes.text(0, 1.0, y, transform=axes.transAxes, fontsize=11, color=role("muted"), va="bottom")
    axes.set_xlabel(table.axis_title(x), fontsize=11, color=role("muted"))
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
    cells = []
    for row in rows:
        own = None if x == table.FLOPS else table.value_at(configs[row["point"]], x, arm=row["arm"], group=row["group"])
        at_1, at_k = (estimate(*(row[f"pass_at_{k}{end}"] for end in ("", "_lo", "_hi"))) for k in "1k")
        cells.append([
            row["point"], None if own is None else f"{own:.4g}",
            looks[row["arm"]].title if row["arm"] in looks else row["arm"], row["group"], at_1,
            f"{at_k}, k = {number(row['k'])}", row["verdict"], flops(row["student_flops"]),
        ])  # fmt: skip
    headers = ["point", table.axis_title(x), "arm", "group", "pass@1", "pass@k", "verdict", "student FLOPs"]
    return html_table("Points, arms and groups", headers, cells)
