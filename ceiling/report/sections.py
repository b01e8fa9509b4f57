"""The first five sections: what was asked, the curves, the honest pair, what is new, diversity.

Each section is a function of the view that returns HTML. A section with nothing to show says how far the run
is instead of failing, so the page can be written after every stage.
"""

from ceiling.evals.summary import METRICS
from ceiling.report import bars, figures, planes
from ceiling.report.panels import alone, arranged, described, grid, pending, pooled, rows_for
from ceiling.report.tables import Raw, chip, details, matrix, table, text, verdict_key
from ceiling.report.units import estimate, number, percent, seconds
from ceiling.report.view import View

QUESTION = "Did training take the model past what its pretraining made possible, or only re-weight it?"


def headline(view: View) -> str:
    """Question, status in one sentence, the verdict matrix, and the plane of the two changes."""
    rows = view.rows("verdicts")
    parts = [f'<p class="status">{text(status(view))}</p>', _tiles(view)]
    cells = matrix(view) if rows or not view.complete else ""
    if cells:
        parts += [cells, verdict_key()]
    shown = pooled(view, rows) or alone(view, rows)[:2]
    panels = []
    for group in shown:
        inside = set(group.members)
        panels.append(
            planes.landing(
                rows_for(rows, group),
                view.looks,
                name=f"landing-{group.name}",
                title=group.heading,
                faint=[r for r in rows if r["group"] in inside],
                k=view.meta.get("verdict_k"),
            )
        )
    caption = (
        "Right is better at one try, up is reaching more at the largest k that carries a verdict. "
        "Training that only re-weights moves right along the zero line. Bars are intervals; small dots are "
        "the single groups."
    )
    parts += [
        grid(panels, caption, ["verdicts"], size="wide"),
        details("Every verdict with its reason", reasons(view)),
    ]
    parts.append(details("What the groups and the arms are", described(view)))
    return "".join(parts) + pending(view, "verdicts")


def curves(view: View) -> str:
    rows, verdict_k = view.rows("curves"), view.meta.get("verdict_k")
    dotted = f" The dotted line is k = {verdict_k}, where verdicts are read." if verdict_k else ""
    says = "Chance that at least one of k samples is right. Bands are intervals over problems and seeds."
    parts = []
    for large, groups in arranged(view, rows):
        panels = [
            figures.pass_at_k(
                rows_for(rows, g),
                view.looks,
                name=f"curves-{g.name}",
                title=g.heading,
                large=large,
                verdict_k=verdict_k,
            )
            for g in groups
        ]
        caption = f"{says}{dotted}" if large or not any(parts) else "The same, one panel per group."
        parts.append(grid(panels, caption, ["curves"], size="wide" if large else "narrow"))
    listed = by_k("pass@k with intervals", view, rows)
    return "".join(parts) + details("pass@k in numbers", listed) + pending(view, "curves")


def pair(view: View) -> str:
    """Differences to the base and where they change sign; `meta.pairs` may single out arms to compare."""
    rows, crossings = view.rows("differences"), view.rows("crossings")
    limits = figures.span(rows)
    sure = [row for row in crossings if (row.get("share") or 0) >= 0.5]
    parts = [_pairs(view, rows, sure)]
    for large, groups in arranged(view, rows):
        panels = [
            figures.differences(
                rows_for(rows, g),
                view.looks,
                name=f"differences-{g.name}",
                title=g.heading,
                null=view.null,
                crossings=rows_for(sure, g),
                limits=limits,
                large=large,
            )
            for g in groups
        ]
        caption = (
            "Paired difference to the base on the same problems. Above zero the arm reaches more. A ring "
            "marks a crossing found in at least half of the bootstrap resamples; the grey band is a second "
            "draw of the base."
        )
        parts.append(
            grid(
                panels,
                caption if large or not any(parts[1:]) else "The same, one panel per group.",
                ["differences", "crossings"],
                size="wide" if large else "narrow",
            )
        )
    parts += [_crossing_table(view, crossings), pending(view, "differences")]
    return "".join(parts)


def new(view: View) -> str:
    rows = view.rows("sets")
    panels = [
        bars.solvable(rows_for(rows, g), view.looks, name=f"sets-{g.name}", title=g.heading)
        for g in [*alone(view, rows), *pooled(view, rows)]
    ]
    keys = "".join(
        f'<span class="key"><i class="fill {key}"></i>{text(words)}</span>' for key, words, *_ in bars.SETS
    )
    caption = "Problems by who solves them at least once, averaged over seeds; one bar per arm."
    groups = pooled(view, view.rows("likelihood")) or alone(view, view.rows("likelihood"))
    nll = [
        bars.likelihood(
            rows_for(view.rows("likelihood"), g), view.looks, name=f"likelihood-{g.name}", title=g.heading
        )
        for g in groups
    ]
    words = (
        "How surprised the base is by what an arm writes. Where both marks coincide the arm writes what the "
        "base could have written; a long line is text the prior held unlikely."
    )
    return (
        (f'<p class="keys">{keys}</p>' if panels else "")
        + grid(panels, caption, ["sets"], size="medium")
        + details("New and lost problems, with the upper bound for the base", _new_table(view))
        + grid(nll, words, ["likelihood"], size="medium")
        + pending(view, "sets")
    )


def diversity(view: View) -> str:
    rows = view.rows("diversity")
    labels = {
        "strategy_entropy": "strategy entropy (nats)",
        "distinct_correct": "distinct correct strategies",
        "answer_entropy": "answer entropy (nats)",
    }
    measured = [key for key in labels if any(row.get(key) is not None for row in rows)][:2]
    accuracy = {(r["arm"], r["group"]): r.get("mean") for r in view.rows("curves") if r.get("k") == 1}
    panels = []
    for group in pooled(view, rows) or alone(view, rows)[:4]:
        for key in measured:
            points = [
                (r["arm"], accuracy.get((r["arm"], group.name)), r.get(key)) for r in rows_for(rows, group)
            ]
            if any(x is not None and y is not None for _, x, y in points):
                panels.append(
                    planes.plane(
                        points,
                        view.looks,
                        name=f"diversity-{key}-{group.name}",
                        title=group.heading,
                        y_label=labels[key],
                    )
                )
    caption = "Right is more accurate, up is more ways of solving. Rays start at the base."
    return (
        grid(panels, caption, ["diversity", "curves"], size="wide")
        + details("Diversity in numbers", _diversity_table(view))
        + pending(view, "diversity")
    )


def status(view: View) -> str:
    """One sentence: the tally of verdicts outside traps and controls, or how far the run is."""
    single = {g.name for g in view.groups.values() if not g.trap}
    arms = {look.name for look in view.looks.values() if look.kind == "arm" and not look.control}
    rows = [r for r in view.rows("verdicts") if r["group"] in single and r["arm"] in arms]
    tally = {}
    for row in rows:
        tally[row.get("verdict")] = tally.get(row.get("verdict"), 0) + 1
    order = ("expanded", "re-weighted", "contracted", "not resolved")
    counts = ", ".join(f"{tally[verdict]} {verdict}" for verdict in order if verdict in tally)
    sizes = (len({r["arm"] for r in rows}), "trained arm"), (len({r["group"] for r in rows}), "group")
    where = " and ".join(f"{size} {noun}{'s' if size != 1 else ''}" for size, noun in sizes)
    left_out = " (controls and designed traps not counted)" if len(view.groups) > 1 else ""
    if view.complete:
        return f"Over {where}{left_out}: {counts}." if rows else "Finished; this run carries no verdict."
    so_far = f" So far, over {where}{left_out}: {counts}." if rows else ""
    return f"Not finished yet: {view.progress}. What follows is provisional.{so_far}"


def _tiles(view: View) -> str:
    meta = view.meta
    stages = meta.get("stages") or {}
    tiles = [
        ("training seeds", len(meta["seeds"]) if meta.get("seeds") else None),
        ("samples per problem", number(meta["n"]) if meta.get("n") else None),
        ("verdicts read at k", meta.get("verdict_k")),
        ("margin", meta.get("margin")),
        ("time in all stages", seconds(meta["wall_s"]) if meta.get("wall_s") else None),
        ("device", meta.get("device")),
    ]
    body = "".join(
        f"<div><dt>{name}</dt><dd>{text(value)}</dd></div>" for name, value in tiles if value is not None
    )
    bar = ""
    if not view.complete and stages.get("total"):
        done, total = stages.get("done") or 0, stages["total"]
        bar = f'<progress value="{done}" max="{total}" aria-label="stages done">{done} of {total}</progress>'
    return f'<dl class="tiles">{body}</dl>{bar}' if body or bar else ""


def _pairs(view: View, rows, crossings) -> str:
    """Panels of `meta.pairs` ({title, arms, group, description}): arms that differ in one thing only."""
    panels, notes = [], []
    for number_, item in enumerate(view.meta.get("pairs") or []):
        arms, group = list(item.get("arms") or []), item.get("group")
        chosen = [r for r in rows if r["group"] == group and r["arm"] in [*arms, view.null]]
        if not any(row["arm"] != view.null for row in chosen):
            continue
        rings = [r for r in crossings if r["group"] == group and r["arm"] in arms]
        curve = [r for r in view.rows("curves") if r["group"] == group and r["arm"] in [view.base, *arms]]
        title = f"{item.get('title') or 'pair'}: {view.group_title(group)}"
        panels.append(
            figures.pass_at_k(curve, view.looks, name=f"pair-curves-{number_}", title=title, large=True)
        )
        panels.append(
            figures.differences(
                chosen,
                view.looks,
                name=f"pair-{number_}",
                title=title,
                null=view.null,
                crossings=rings,
                limits=figures.span(chosen),
                large=True,
            )
        )
        notes.append(str(item.get("description") or ""))
    return grid(panels, " ".join(note for note in notes if note), ["curves", "differences"], size="wide")


def reasons(view: View) -> str:
    rows = [
        [
            chip(view.looks[r["arm"]]),
            view.group_title(r["group"]),
            r.get("verdict"),
            estimate(r.get("delta_1"), r.get("delta_1_lo"), r.get("delta_1_hi"), sign=True),
            estimate(r.get("delta_k"), r.get("delta_k_lo"), r.get("delta_k_hi"), sign=True),
            estimate(None, r.get("null_k_lo"), r.get("null_k_hi"), sign=True).lstrip("– "),
            r.get("seeds"),
            r.get("n"),
            r.get("k"),
            r.get("reason"),
        ]
        for r in view.rows("verdicts")
    ]
    headers = [
        "arm",
        "group",
        "verdict",
        "Δ pass@1",
        "Δ pass@K",
        "null arm at K",
        "seeds",
        "n",
        "K",
        "reason",
    ]
    return table("Verdicts", headers, rows, kind="long") if rows else ""


def by_k(caption: str, view: View, given, *, sign: bool = False) -> str:
    """Rows {arm, group, k, mean, lo, hi} as a table with a column for every k; empty where there are none."""
    ks, cells = sorted({r["k"] for r in given}), {(r["group"], r["arm"], r["k"]): r for r in given}
    rows = []
    for group in view.every.values():
        for look in view.looks.values():
            found = [cells.get((group.name, look.name, k)) for k in ks]
            if any(found):
                shown = [estimate(r["mean"], r.get("lo"), r.get("hi"), sign=sign) if r else None for r in found]
                rows.append([group.heading, chip(look), *shown])
    return table(caption, ["group", "arm", *[f"@{k}" for k in ks]], rows, kind="long") if rows else ""


def _crossing_table(view: View, crossings) -> str:
    """Where each arm falls below the base: arms by groups, interval and share of resamples in the cell."""
    cells = {(r["arm"], r["group"]): r for r in crossings}
    groups = [g for g in view.every.values() if any(key[1] == g.name for key in cells)]
    arms = [look for look in view.looks.values() if any(key[0] == look.name for key in cells)]
    rows = [[chip(look), *[_crossing(cells.get((look.name, g.name))) for g in groups]] for look in arms]
    caption = (
        "The k at which an arm falls below the base, its interval, and the share of resamples that cross"
    )
    return table(caption, ["arm", *[g.heading for g in groups]], rows, kind="crossings") if rows else ""


def _crossing(row) -> Raw:
    if not row:
        return Raw("–")
    share = f"<small>{percent(row.get('share'), 0)}</small>"
    if not row.get("k"):
        return Raw(f"–{share}")
    known = row.get("k_lo") and row.get("k_hi")
    between = f"<small>{number(row['k_lo'], 0)} to {number(row['k_hi'], 0)}</small>" if known else ""
    return Raw(f"<b>{number(row['k'], 0)}</b>{between}{share}")


def _new_table(view: View) -> str:
    """Counts behind "new"; the columns of the null arm say what chance alone would have found."""
    columns = {
        "new_problems": "new problems",
        "null_new_problems": "null arm: new problems",
        "tuned_only": "solved by the arm only",
        "base_only": "solved by the base only",
        "null_tuned_only": "null arm: solved by the second draw only",
    }
    found = [key for key in columns if any(r.get(key) is not None for r in view.rows("verdicts"))]
    rows = []
    for r in view.rows("verdicts"):
        counts = [r.get(key) for key in found]
        shown = [number(len(c) if isinstance(c, list) else c, 1) for c in counts]
        bound = r.get("base_upper")
        rows.append([chip(view.looks[r["arm"]]), view.group_title(r["group"]), *shown])
        rows[-1].append(None if bound is None else f"≤ {percent(bound, 2)}")
    headers = ["arm", "group", *[columns[key] for key in found], "base, chance per sample"]
    return (
        table("New problems: solved by the arm, never by the base", headers, rows) if rows and found else ""
    )


def _diversity_table(view: View) -> str:
    keys = [key for key in METRICS if any(r.get(key) is not None for r in view.rows("diversity"))]
    rows = []
    for r in view.rows("diversity"):
        cells = [view.group_title(r["group"]), chip(view.looks[r["arm"]])]
        for key in keys:
            cells.append(estimate(r.get(key), r.get(f"{key}_lo"), r.get(f"{key}_hi")))
            if any(row.get(f"{key}_delta") is not None for row in view.rows("diversity")):
                delta = r.get(f"{key}_delta")
                cells.append(estimate(delta, r.get(f"{key}_delta_lo"), r.get(f"{key}_delta_hi"), sign=True))
        rows.append(cells)
    headers = ["group", "arm"]
    for key in keys:
        headers.append(key.replace("_", " "))
        if any(row.get(f"{key}_delta") is not None for row in view.rows("diversity")):
            headers.append("− base")
    return table("Diversity with intervals", headers, rows, kind="long") if rows else ""
