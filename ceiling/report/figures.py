"""Line figures: pass@k, differences to the base, training curves.

Each function takes rows (of one panel) and the looks of the arms and returns an inline SVG string. A panel is
one figure: the page flows panels into as many columns as fit, so that they stay legible on a telephone.
Bars and intervals are in bars.py, planes in planes.py.
"""

import math
from collections import defaultdict

from ceiling.report.bars import flop_axis
from ceiling.report.svg import canvas, heading, render, role, room

SMALL = (288, 210)
LARGE = (372, 300)  # a telephone's width: set text is never scaled below its size there
MOST_LABELS = 12  # lines of a large figure that are named beside it


def pass_at_k(rows, looks, *, name, title, verdict_k=None, large=False) -> str:
    """pass@k against k (log2) with interval bands; the large form carries direct labels."""
    series = _by(rows, "arm")
    figure, axes = _frame(large, title, looks, series)
    for look in _order(looks, series):
        points = _sorted(series[look.name], "k")
        _band(axes, look, [_x(r) for r in points], points)
        _line(axes, look, [_x(r) for r in points], [r["mean"] for r in points])
    axes.set_ylim(-0.02, 1.02)
    _ticks(axes, "y", [0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
    _k_axis(axes, rows, verdict_k)
    axes.text(0, 1.0, "pass@k", transform=axes.transAxes, fontsize=11, color=role("muted"), va="bottom")
    _end_labels(figure, axes, looks, series if large else {})
    return render(figure, name, title=f"pass@k: {title}", description=_curve_words(series, looks, "pass@k"))


def differences(
    rows, looks, *, name, title, null=None, crossings=(), limits=None, large=False, pair=("arm", "base")
) -> str:
    """Paired differences against k, of the first of a `pair` to the second, with the null arm's band around zero and
    rings where an arm crosses."""
    series = _by(rows, "arm")
    figure, axes = _frame(large, title, looks, series)
    _zero_band(axes, _sorted(series.get(null, []), "k"))
    shown = {arm: points for arm, points in series.items() if arm != null}
    for look in _order(looks, shown):
        points = _sorted(series[look.name], "k")
        _band(axes, look, [_x(r) for r in points], points)
        _line(axes, look, [_x(r) for r in points], [r["mean"] for r in points])
    axes.axhline(0, color=role("ink"), linewidth=1)
    for row in crossings:
        if row.get("k") and row["arm"] in shown:
            axes.plot(
                [math.log2(row["k"])],
                [0],
                "o",
                markersize=6,
                markerfacecolor=role("paper"),
                markeredgecolor=looks[row["arm"]].colour,
                gid=looks[row["arm"]].gid,
            )
    low, high = limits or span(rows)
    axes.set_ylim(low, high)
    step = next((s for s in (0.05, 0.1) if high - low < 8 * s), 0.25)
    ticks = [round(t * step, 2) for t in range(-20, 21) if low <= t * step <= high]
    _ticks(
        axes, "y", ticks, ["0" if t == 0 else f"{t:+g}".replace("-", "−").replace("0.", ".") for t in ticks]
    )
    _k_axis(axes, rows, None)
    axes.text(
        0, 1.0, "pass@k, " + " − ".join(pair), transform=axes.transAxes, fontsize=11, color=role("muted"), va="bottom"
    )
    _end_labels(figure, axes, looks, shown if large else {})
    words = _curve_words(shown, looks, f"the difference to the {pair[1]}")
    return render(figure, name, title=f"Difference to the {pair[1]}: {title}", description=words)


def training(rows, looks, *, name, title) -> str:
    """One training metric against the FLOPs charged so far, a line per seed, averaged down to 60 points."""
    series = _by(rows, "arm")
    figure, axes = _frame(False, title, looks, series, left=46)
    for look in _order(looks, series):
        for seed_rows in _by(series[look.name], "seed").values():
            points = [r for r in _sorted(seed_rows, "flops") if r.get("flops") is not None]
            xs, ys = (thin([r[key] for r in points], 60) for key in ("flops", "value"))
            _line(axes, look, xs, ys, width=0.6 * look.width, marks=False, alpha=0.75)
    axes.set_xlim(0, max([row["flops"] for row in rows if row.get("flops")], default=1))
    flop_axis(axes)
    axes.yaxis.get_major_locator().set_params(nbins=4)
    words = f"{title} during training for {_names(looks, series)}; one line per seed."
    return render(figure, name, title=f"Training: {title}", description=words)


def span(rows) -> tuple[float, float]:
    """y limits that hold all differences of several panels, so that the panels can be compared."""
    values = [row[key] for row in rows for key in ("mean", "lo", "hi") if row.get(key) is not None]
    return max(-1.05, min([-0.1, *values]) - 0.04), min(1.05, max([0.1, *values]) + 0.04)


def thin(values, most: int) -> list:
    """Means over consecutive chunks, at most `most` of them; a chunk without a value is a gap."""
    size = max(1, math.ceil(len(values) / most))
    chunks = [[v for v in values[i : i + size] if v is not None] for i in range(0, len(values), size)]
    return [sum(chunk) / len(chunk) if chunk else None for chunk in chunks]


def _frame(large, title, looks, series, left=36):
    width, height = LARGE if large else SMALL
    labels = [looks[arm].label for arm in series if arm in looks] if large and len(series) <= MOST_LABELS else []
    right = 10 + room(labels) if labels else 12
    figure, axes = canvas(width, height, left=left, right=right, top=44, bottom=32)
    heading(figure, title)
    return figure, axes


def _by(rows, key) -> dict:
    groups = defaultdict(list)
    for row in rows:
        groups[row.get(key)].append(row)
    return dict(groups)


def _sorted(rows, key) -> list:
    return sorted(rows, key=lambda row: row.get(key) or 0)


def _order(looks, series) -> list:
    """Controls below, the arms over them, the base on top of all."""
    rank = {"null": 0, "arm": 2, "base": 3}
    present = [looks[arm] for arm in series if arm in looks]
    return sorted(present, key=lambda look: (rank[look.kind] - look.control, -look.index))


def _names(looks, series) -> str:
    return ", ".join(look.title for look in looks.values() if look.name in series) or "no arm yet"


def _x(row) -> float:
    return math.log2(row["k"])


def _nan(values) -> list:
    """matplotlib's gap; it breaks the path and never reaches the file."""
    return [math.nan if value is None else value for value in values]


def _line(axes, look, xs, ys, *, width=None, marks=True, alpha=1.0):
    style = (0, look.dash) if look.dash else "solid"
    axes.plot(
        _nan(xs),
        _nan(ys),
        color=look.colour,
        linewidth=width or look.width,
        linestyle=style,
        alpha=alpha,
        marker=look.marker if marks and look.kind == "arm" else None,
        markersize=3.6 if not look.control else 3,
        markeredgewidth=0,
        gid=look.gid,
        solid_capstyle="round",
    )


def _band(axes, look, xs, rows):
    if (
        look.kind == "null"
        or any(row.get("lo") is None or row.get("hi") is None for row in rows)
        or len(rows) < 2
    ):
        return
    axes.fill_between(
        xs,
        [r["lo"] for r in rows],
        [r["hi"] for r in rows],
        color=look.colour,
        linewidth=0,
        alpha=0.07 if look.control else 0.13,
        gid=look.gid,
    )


def _zero_band(axes, rows):
    """What a second draw of the base differs by: changes inside it mean nothing."""
    rows = [row for row in rows if row.get("lo") is not None and row.get("hi") is not None]
    if rows:
        axes.fill_between(
            [_x(r) for r in rows],
            [r["lo"] for r in rows],
            [r["hi"] for r in rows],
            color=role("same"),
            linewidth=0,
            alpha=0.55,
        )


def _ticks(axes, which, places, labels):
    (axes.set_yticks if which == "y" else axes.set_xticks)(places, labels)


def _k_axis(axes, rows, verdict_k):
    ks = sorted({row["k"] for row in rows if row.get("k")}) or [1]
    exponents = range(0, max(1, math.ceil(math.log2(ks[-1]))) + 1)
    shown = [e for e in exponents if e % (1 if len(exponents) <= 6 else 2) == 0]
    _ticks(axes, "x", shown, [f"{2**e:,}" if e else "k = 1" for e in shown])
    axes.set_xlim(-0.15, max(1, math.log2(ks[-1])) + 0.15)
    if verdict_k and ks[0] <= verdict_k <= ks[-1]:
        axes.axvline(math.log2(verdict_k), color=role("muted"), linewidth=0.8, linestyle=(0, (1, 2)))


def _end_labels(figure, axes, looks, series):
    """Arm labels at the right end of their lines, pushed apart where the ends lie close together; none where there are
    more lines than labels have room."""
    if len(series) > MOST_LABELS:
        return
    ends = []
    for arm, rows in series.items():
        points = [row for row in _sorted(rows, "k") if row.get("mean") is not None]
        if points and arm in looks:
            ends.append([points[-1]["mean"], points[-1]["mean"], looks[arm], _x(points[-1])])
    ends.sort(key=lambda end: end[0])
    low, high = axes.get_ylim()
    pixels = figure.get_figheight() * 72 * axes.get_position().height
    gap = (high - low) * 13.5 / pixels
    for i in range(1, len(ends)):
        ends[i][0] = max(ends[i][0], ends[i - 1][0] + gap)
    ceiling = high + gap  # one label may stand above the frame
    for end in reversed(ends):
        end[0], ceiling = min(end[0], ceiling), min(end[0], ceiling) - gap
    left, edge = axes.get_xlim()
    step = (edge - left) / 100
    for place, value, look, x in ends:
        axes.plot(
            [x + step, edge + 2 * step],
            [value, place],
            color=look.colour,
            linewidth=0.7,
            alpha=0.6,
            clip_on=False,
            gid=look.gid,
        )
        axes.text(
            edge + 3 * step,
            place,
            look.label,
            fontsize=11,
            color=look.colour,
            va="center",
            clip_on=False,
            gid=look.gid,
        )


def _curve_words(series, looks, what) -> str:
    """The figure in words: first and last value of every arm."""
    words = []
    for arm, rows in series.items():
        points = [row for row in _sorted(rows, "k") if row.get("mean") is not None]
        if points and arm in looks:
            first, last = points[0], points[-1]
            ends = [f"{row['mean']:.2f} at k={row['k']}" for row in (first, last)]
            words.append(f"{looks[arm].title} {', '.join(ends)}")
    return f"{what[0].upper()}{what[1:]} by arm. " + "; ".join(words)
