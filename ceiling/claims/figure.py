"""A claim's figure: its effects against their margins, where its arms lie between pass@1 and pass@k, and what it
measured as a function of the prior, if it did."""

import io

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED = "#333333", "#888888"
COLOURS = {"supported": "#00805f", "contradicted": "#d1500a"}
SERIES = ("#333333", "#3b6fd4", "#00805f", "#d1500a")


def draw(content: dict) -> str:
    """The figure of a claim.json as the text of an SVG file; equal content gives equal bytes."""
    tests, arms, points = content["tests"], content["arms"], content.get("measured") or []
    height, below = max(2.6, 0.42 * max(len(tests), len(arms) * 0.55) + 1.2), 3.2 if points else 0.0
    figure = Figure(figsize=(10, height + below), layout="constrained")
    FigureCanvasSVG(figure)
    top, *bottom = figure.subfigures(2, 1, height_ratios=(height, below)) if points else [figure]
    effects, plane = top.subplots(1, 2, width_ratios=(1.15, 1))
    _effects(effects, tests)
    _plane(plane, arms, content["groups"])
    if points:
        names = list(dict.fromkeys(point["axis"] for point in points))
        for axes, axis in zip(bottom[0].subplots(1, len(names), squeeze=False)[0], names, strict=True):
            _measured(axes, axis, [point for point in points if point["axis"] == axis])
    figure.suptitle(f"{content['id']}. {content['title']}: {content['verdict']}", color=INK, fontsize=12)
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": content["id"]}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    return buffer.getvalue()


def _effects(axes, tests: list[dict]) -> None:
    """Intervals in units of their own, shifted so that the margin is 0."""
    for row, test in enumerate(reversed(tests)):
        interval = test["interval"]
        if interval is None:
            axes.text(0, row, "undefined", color=MUTED, va="center", ha="center", fontsize=8)
            continue
        mean, margin = interval["mean"], test["margin"]
        lo, hi = (mean if limit is None else limit for limit in (interval["lo"], interval["hi"]))
        colour = COLOURS.get(test["verdict"], MUTED)
        axes.plot([lo - margin, hi - margin], [row, row], color=colour, linewidth=2)
        axes.plot(mean - margin, row, "o", color=colour, markersize=5)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(tests)), [test["test"] for test in reversed(tests)], fontsize=9)
    axes.set_ylim(-0.6, len(tests) - 0.4)
    axes.set_xlabel("effect minus its margin (right of the line: as the finding predicts)", fontsize=9, color=INK)
    _quiet(axes)


def _plane(axes, arms: list[dict], groups: str) -> None:
    """One dot per arm, numbered; the base is the square."""
    for number, arm in enumerate(arms, start=1):
        base = arm["arm"] == "base"
        colour = INK if base else MUTED if arm["control"] else "#3b6fd4"
        where = "" if arm["experiment"] == "main" else f" ({arm['experiment']})"
        axes.plot(arm["at_1"], arm["at_k"], "s" if base else "o", color=colour, markersize=5,
                  label=f"{number} {arm['title']}{where}")  # fmt: skip
        axes.annotate(str(number), (arm["at_1"], arm["at_k"]), xytext=(3, 3), textcoords="offset points", fontsize=7)
    axes.set_xlabel(f"pass@1 on {groups}", fontsize=9, color=INK)
    axes.set_ylabel(f"pass@{arms[0]['k']}", fontsize=9, color=INK)
    axes.legend(fontsize=6.5, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0), handlelength=1)
    _quiet(axes)


def _measured(axes, axis: str, points: list[dict]) -> None:
    """One curve per series through its means at each x; zero has its place at the left edge of the logarithmic axis."""
    smallest = min((point["x"] for point in points if point["x"] > 0), default=1.0)
    series = list(dict.fromkeys(point["series"] for point in points))
    for number, name in enumerate(series):
        colour, marker = SERIES[number % len(SERIES)], "so^D"[number % 4]
        mine = sorted((point for point in points if point["series"] == name), key=lambda point: point["x"])
        at = {x: [p["y"] for p in mine if p["x"] == x] for x in dict.fromkeys(point["x"] for point in mine)}
        axes.plot(list(at), [sum(ys) / len(ys) for ys in at.values()], color=colour, linewidth=1, label=name)
        for point in mine:
            mean = point["y"]
            lo, hi = (mean if limit is None else limit for limit in (point["lo"], point["hi"]))
            axes.plot([point["x"]] * 2, [lo, hi], color=colour, linewidth=0.8, alpha=0.6)
            axes.plot(point["x"], mean, marker, color=colour, markersize=4)
    axes.set_xscale("symlog", linthresh=smallest)
    axes.set_xlim(left=-0.05 * smallest)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(f"{axis} in the prior's corpus", fontsize=9, color=INK)
    axes.legend(fontsize=7, frameon=False)
    _quiet(axes)


def _quiet(axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
