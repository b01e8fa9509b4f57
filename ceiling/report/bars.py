"""Bars and intervals: solvable sets, the budget, likelihood under the base, information gain.

The same contract as figures.py: rows of one panel in, an inline SVG string out.
"""

from collections import defaultdict

from matplotlib.ticker import FuncFormatter, MaxNLocator

from ceiling.report.svg import ROLES, canvas, heading, render, role, room
from ceiling.report.units import scaled

WIDTH = 372
ROW = 20

# key, what it says, colour role, opacity, hatch: lost and new can be told apart without colour. What the
# base solves (both, then lost) comes first, so that it ends at the same place in every bar.
SETS = (
    ("both", "solved by both", "same", 0.75, None),
    ("base_only", "lost: solved by the base only", "loss", 1.0, "////"),
    ("tuned_only", "new: solved after training only", "gain", 1.0, None),
    ("neither", "solved by neither", "grid", 0.35, None),
)


def solvable(rows, looks, *, name, title) -> str:
    """Stacked bars, one per arm: problems solved by both, new, lost, by neither; averaged over seeds."""
    means = _means(rows, [key for key, *_ in SETS])
    figure, axes, arms = _rows_frame(means, looks, title, bottom=22, right=92)
    words, total = [], max([sum(m.values()) for m in means.values()], default=1) or 1
    inner = figure.get_figwidth() * 72 * axes.get_position().width
    columns = [
        total * (1 + pixels / inner) for pixels in (42, 90)
    ]  # right edges of the two columns of counts
    for place, look in enumerate(arms):
        left = 0
        for key, _, tone, alpha, hatch in SETS:
            value = means[look.name][key]
            _bar(axes, place, left, value, role(tone), alpha, hatch)
            left += value
        new, lost = means[look.name]["tuned_only"], means[look.name]["base_only"]
        for count, tone, sign, x in ((new, "gain", "+", columns[0]), (lost, "loss", "−", columns[1])):
            if count:
                shown = f"{sign}{round(count, 1):g}"
                axes.text(
                    x, place, shown, fontsize=11, ha="right", va="center", color=role(tone), weight="bold"
                )
        words.append(f"{look.title}: {new:.3g} new, {lost:.3g} lost")
    axes.set_xlim(0, total)
    _few_ticks(axes, lambda value: f"{value:.0f}")
    for x, word in zip(columns, ("new", "lost"), strict=True):
        axes.text(x, -0.75, word, fontsize=11, ha="right", color=role("muted"))
    return render(figure, name, title=f"Solvable sets: {title}", description="; ".join(words))


def budget(rows, looks, *, name, title, phases, target=None) -> str:
    """FLOPs by phase, one bar per arm, averaged over seeds; what is not the student's is hatched."""
    totals, arms = _phase_means(rows), []
    present = {arm: None for arm, *_ in totals}
    figure, axes, arms = _rows_frame(present, looks, title, bottom=24)
    words, longest = [], target or 0
    for place, look in enumerate(arms):
        left = student = 0
        for own in (True, False):
            for phase in phases:
                value = totals.get((look.name, phase, own), 0)
                colour = role(phase_role(phases.index(phase)))
                _bar(
                    axes,
                    place,
                    left,
                    value,
                    colour if own else role("paper"),
                    1.0,
                    None if own else "////",
                    edge=None if own else role("muted"),
                )
                left += value
            student = left if own else student
        longest = max(longest, left)
        words.append(
            f"{look.title}: {scaled(student, 'FLOP')} by the student, {scaled(left - student, 'FLOP')} beside it"
        )
    if target:
        axes.axvline(target, color=role("ink"), linewidth=1.2, linestyle=(0, (4, 2)))
        axes.text(
            target, -0.75, f"budget {scaled(target, 'FLOP')}", fontsize=11, ha="right", color=role("ink")
        )
    axes.set_xlim(0, 1.04 * longest or 1)
    flop_axis(axes)
    return render(figure, name, title=f"Budget: {title}", description="; ".join(words))


def likelihood(rows, looks, *, name, title) -> str:
    """An arm's own samples: nats per token under itself (filled) and the base (open)."""
    keys = ("nll_under_self", "nll_under_base")
    means = _means(rows, keys)
    figure, axes, arms = _rows_frame(means, looks, title, bottom=40)
    words, top = [], 0.1
    for place, look in enumerate(arms):
        own, base = (means[look.name][key] for key in keys)
        top = max(top, own, base)
        axes.plot([own, base], [place, place], color=look.colour, linewidth=1.6, gid=look.gid)
        axes.plot([own], [place], "o", markersize=6, color=look.colour, gid=look.gid)
        axes.plot(
            [base],
            [place],
            "o",
            markersize=6,
            markerfacecolor=role("paper"),
            markeredgecolor=look.colour,
            gid=look.gid,
        )
        words.append(f"{look.title}: {own:.2f} under itself, {base:.2f} under the base")
    axes.set_xlim(-0.03 * top, 1.06 * top)
    _few_ticks(axes, lambda value: f"{value:.2g}")
    _below(figure, axes, "nats per token (filled: under itself, open: base)")
    return render(figure, name, title=f"Likelihood: {title}", description="; ".join(words))


def gains(rows, looks, *, name, title) -> str:
    """Information gain in nats with intervals, one line per baseline, one mark per seed; zero is no gain."""
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    left, height = 8 + room(metrics), 74 + 34 * max(1, len(metrics))
    figure, axes = canvas(WIDTH, height, left=left, right=16, top=30, bottom=40)
    heading(figure, title)
    _row_axis(axes, [metric.replace("_", " ") for metric in metrics], [role("ink")] * len(metrics))
    marks = _marks_per_metric(rows)
    words = []
    for place, metric in enumerate(metrics):
        for step, row in enumerate(marks[metric]):
            look = looks[row["arm"]]
            y = place + 0.22 * (step - (len(marks[metric]) - 1) / 2)
            if row.get("lo") is not None and row.get("hi") is not None:
                axes.plot(
                    [row["lo"], row["hi"]], [y, y], color=look.colour, linewidth=1.3, gid=look.gid
                )
            axes.plot(
                [row["value"]], [y], look.marker, markersize=5, color=look.colour, gid=look.gid
            )
            words.append(f"{metric} seed {row.get('seed')}: {row['value']:.1f}")
    axes.axvline(0, color=role("ink"), linewidth=1)
    axes.grid(axis="x", color=role("grid"), linewidth=0.8)
    axes.margins(x=0.08)
    axes.xaxis.get_major_locator().set_params(nbins=5)
    _below(figure, axes, "information gain on the answer (nats)")
    return render(figure, name, title=f"Information gain: {title}", description="; ".join(words))


def flop_axis(axes) -> None:
    """Round ticks from zero; the last one carries the unit."""
    top = axes.get_xlim()[1]
    places = [place for place in MaxNLocator(nbins=4).tick_values(0, top) if place <= top]
    axes.set_xticks(places, ["0", *[scaled(place) for place in places[1:-1]], scaled(places[-1], "FLOP")])


def phase_role(index: int) -> str:
    """The colour role of the n-th phase of the ledger."""
    phases = [key for key in ROLES if key.startswith("phase-")]
    return phases[index % len(phases)]


def _rows_frame(present, looks, title, *, bottom, right=14):
    """A frame with one row per arm that has data, in the order of the looks, first arm on top."""
    arms = [look for look in looks.values() if look.name in present]
    height = 36 + bottom + ROW * max(1, len(arms))
    left = 8 + room(look.label for look in arms)
    figure, axes = canvas(WIDTH, height, left=left, right=right, top=36, bottom=bottom)
    heading(figure, title)
    _row_axis(axes, [look.label for look in arms], [look.colour for look in arms])
    return figure, axes, arms


def _row_axis(axes, labels, colours):
    axes.grid(False)
    axes.set_ylim(max(1, len(labels)) - 0.4, -0.6)
    axes.set_yticks(range(len(labels)), labels)
    for tick, colour in zip(axes.get_yticklabels(), colours, strict=True):
        tick.set_color(colour)
        tick.set_fontsize(11)


def _bar(axes, place, left, width, colour, alpha, hatch, edge=None):
    if not width:
        return
    axes.barh(
        [place],
        [width],
        left=[left],
        height=0.72,
        color=colour,
        alpha=alpha,
        hatch=hatch,
        edgecolor=edge or role("paper"),
        linewidth=0.8,
    )


def _few_ticks(axes, show):
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))


def _below(figure, axes, text):
    y = -34 / _inner(figure, axes)
    axes.text(1, y, text, transform=axes.transAxes, fontsize=11, color=role("muted"), ha="right")


def _inner(figure, axes) -> float:
    """Height of the axes in pixels."""
    return figure.get_figheight() * 72 * axes.get_position().height


def _means(rows, keys) -> dict[str, dict[str, float]]:
    """Mean of each key per arm; arms for which a key was never measured are left out."""
    values = defaultdict(lambda: {key: [] for key in keys})
    for row in rows:
        for key in keys:
            if row.get(key) is not None:
                values[row["arm"]][key].append(row[key])
    full = {arm: lists for arm, lists in values.items() if all(lists.values())}
    return {arm: {key: sum(v) / len(v) for key, v in lists.items()} for arm, lists in full.items()}


def _phase_means(rows) -> dict:
    """(arm, phase, student?) -> FLOPs, summed over models and averaged over the arm's seeds."""
    sums, seeds = defaultdict(float), defaultdict(set)
    for row in rows:
        seeds[row["arm"]].add(row.get("seed"))
        sums[row["arm"], row["phase"], bool(row.get("student"))] += row.get("flops") or 0
    return {key: value / len(seeds[key[0]]) for key, value in sums.items()}


def _marks_per_metric(rows) -> dict:
    marks = defaultdict(list)
    for row in rows:
        if row.get("value") is not None:
            marks[row["metric"]].append(row)
    return marks
