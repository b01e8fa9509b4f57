"""Planes: where each arm lands, and accuracy against diversity. One mark per arm, labelled beside it.

The same contract as figures.py: rows or points of one panel in, an inline SVG string out.
"""

from matplotlib.ticker import FuncFormatter, MaxNLocator

from ceiling.report.svg import canvas, heading, render, role, room

SIZE = (372, 300)


def landing(rows, looks, *, name, title, faint=(), k=None) -> str:
    """Change of pass@1 against change of pass@K: sharper to the right, further up.

    `rows` are verdict rows of one group (marks with intervals), `faint` those of other groups (small dots).
    """
    figure, axes = canvas(*SIZE, left=58, right=14, top=32, bottom=42)
    heading(figure, title)
    axes.grid(axis="x", color=role("grid"), linewidth=0.8)
    xs, ys = [], []
    for row in [*faint, *rows]:
        xs += [row[key] for key in ("delta_1", "delta_1_lo", "delta_1_hi") if row.get(key) is not None]
        ys += [row[key] for key in ("delta_k", "delta_k_lo", "delta_k_hi") if row.get(key) is not None]
    axes.set_xlim(*_padded(xs))
    low, high = _padded(ys)
    # Room for the words in the corners.
    axes.set_ylim(min(low, -0.25 * high), max(high, -0.25 * low) + 0.06 * (high - low))
    axes.axhline(0, color=role("ink"), linewidth=1)
    axes.axvline(0, color=role("ink"), linewidth=1)
    box, words, taken = axes.get_window_extent(), [], []
    for x, y, text in ((1, 1, "reaches further"), (1, 0, "sharper, reaches less"), (0, 0, "loses both")):
        left, low = box.x1 - room([text]) if x else box.x0, box.y1 - 20 if y else box.y0
        words.append((left, low, left + room([text]), low + 20))
        axes.text(
            0.985 if x else 0.015,
            0.975 if y else 0.025,
            text,
            transform=axes.transAxes,
            fontsize=11,
            ha="right" if x else "left",
            va="top" if y else "bottom",
            style="italic",
            color=role("muted"),
        )
    for row in faint:
        _mark(axes, looks[row["arm"]], row.get("delta_1"), row.get("delta_k"), size=3, alpha=0.45)
    points = []
    for row in rows:
        look, x, y = looks[row["arm"]], row.get("delta_1"), row.get("delta_k")
        if x is None or y is None:
            continue
        for line in _cross(row, x, y):
            axes.plot(*line, color=look.colour, linewidth=1, alpha=0.8, gid=look.gid)
            (left, low), (right, high) = axes.transData.transform(list(zip(*line, strict=True)))
            taken.append((left - 1, low - 1, right + 1, high + 1))
        _mark(axes, look, x, y, size=7)
        points.append((look, x, y))
    _point_labels(axes, points, taken, words)
    _few_ticks(axes.xaxis, axes.yaxis)
    axes.set_xlabel("change of pass@1", color=role("muted"), fontsize=11)
    axes.set_ylabel(f"change of pass@{k}" if k else "change of pass@K", color=role("muted"), fontsize=11)
    said = "; ".join(f"{p.title}: pass@1 {x:+.2f}, pass@K {y:+.2f}" for p, x, y in points)
    return render(figure, name, title=f"Where each arm lands: {title}", description=said)


def plane(points, looks, *, name, title, y_label) -> str:
    """pass@1 against a measure of diversity; points are (arm, x, y), rays start at the base."""
    figure, axes = canvas(*SIZE, left=58, right=14, top=32, bottom=42)
    heading(figure, title)
    axes.grid(axis="x", color=role("grid"), linewidth=0.8)
    kept = [(looks[arm], x, y) for arm, x, y in points if x is not None and y is not None]
    axes.set_xlim(-0.03, 1.03)
    top = max([y for _, _, y in kept], default=1)
    axes.set_ylim(min(0, *[y for _, _, y in kept], 0) - 0.04 * top, 1.12 * top or 1)
    origin = next(((x, y) for look, x, y in kept if look.kind == "base"), None)
    for look, x, y in kept:
        if origin and look.kind == "arm":
            axes.plot(
                [origin[0], x],
                [origin[1], y],
                color=look.colour,
                linewidth=0.8,
                alpha=0.5,
                gid=look.gid,
            )
        _mark(axes, look, x, y, size=7)
    _point_labels(axes, kept)
    _few_ticks(axes.xaxis, axes.yaxis)
    axes.set_xlabel("pass@1", color=role("muted"), fontsize=11)
    axes.set_ylabel(y_label, color=role("muted"), fontsize=11)
    words = "; ".join(f"{look.title}: pass@1 {x:.2f}, {y:.2f}" for look, x, y in kept)
    return render(figure, name, title=f"Accuracy and diversity: {title}", description=f"{y_label}. {words}")


def _few_ticks(*sides) -> None:
    """As many as have room, without zeros at their ends."""
    for side in sides:
        side.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{round(value, 6):g}".replace("-", "−")))


def _mark(axes, look, x, y, *, size, alpha=1.0):
    if x is None or y is None:
        return
    hollow = look.control or look.kind != "arm"
    axes.plot(
        [x],
        [y],
        look.marker,
        markersize=size,
        alpha=alpha,
        markeredgecolor=look.colour,
        markeredgewidth=1.4,
        markerfacecolor=role("paper") if hollow else look.colour,
        gid=look.gid,
    )


def _cross(row, x, y) -> list:
    """The two intervals of a verdict row through its point, as (xs, ys)."""
    lines = []
    for keys, horizontal in ((("delta_1_lo", "delta_1_hi"), True), (("delta_k_lo", "delta_k_hi"), False)):
        low, high = (row.get(key) for key in keys)
        if low is not None and high is not None:
            lines.append(([low, high], [y, y]) if horizontal else ([x, x], [low, high]))
    return lines


def _padded(values) -> tuple[float, float]:
    low, high = min([0, *values]), max([0, *values])
    pad = 0.08 * (high - low) or 0.12
    return low - pad, high + pad


# Where a label may stand, from its mark: (side, pixels up). Close by first, then further off with a leader.
_PLACES = [(1, 0), (-1, 0), (0, 15), (0, -15), (1, 13), (1, -13), (-1, 13), (-1, -13)]
_PLACES += [(side, up) for up in (27, -27, 40, -40, 53, -53, 66, -66, 79, -79) for side in (1, -1, 0)]


def _point_labels(axes, points, taken=(), words=()):
    """Labels beside marks: the first place that covers no mark and no text. taken, words: boxes (left, bottom, right,
    top in pixels) that hold lines and text already."""
    box, labels = axes.get_window_extent(), [*words]
    marks = [tuple(axes.transData.transform((x, y))) for _, x, y in points]
    taken = [*taken, *((px - 6, py - 6, px + 6, py + 6) for px, py in marks)]
    back = axes.transData.inverted()
    for (look, x, y), (px, py) in zip(points, marks, strict=True):
        width = room([look.label])
        options = []
        for order, (side, up) in enumerate(_PLACES):
            left = px - width / 2 if side == 0 else px + 9 if side > 0 else px - 9 - width
            new = (left, py + up - 7, left + width, py + up + 7)
            outside = new[0] < box.x0 or new[2] > box.x1 + 8 or new[1] < box.y0 or new[3] > box.y1
            options.append((_hits(new, taken) + 10 * _hits(new, labels) + 12 * outside, order, new))
        _, order, best = min(options)
        labels.append(best)
        side, up = _PLACES[order]
        if abs(up) > 20:
            end = back.transform((px + 9 * side, py + up - (6 if up > 0 else -6)))
            axes.plot([x, end[0]], [y, end[1]], color=look.colour, linewidth=0.6, gid=look.gid)
        place = back.transform((best[0], best[1] + 7))
        axes.text(
            *place,
            look.label,
            fontsize=11,
            color=look.colour,
            va="center",
            gid=look.gid,
            clip_on=False,
        )


def _hits(new, boxes) -> int:
    return sum(new[0] < b[2] and b[0] < new[2] and new[1] < b[3] and b[1] < new[3] for b in boxes)
