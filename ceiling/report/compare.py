"""The page that sets several runs side by side: the report's look and its figures, with a line for every arm of every
run.

An arm has one colour in all runs, a run one dash and one mark, and both have check boxes. In labels of figures
"grpo 2" is arm grpo of the second run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from urllib.parse import quote

from ceiling.report import costs, figures, sections
from ceiling.report.page import boxes, document, legend, style
from ceiling.report.panels import arranged, grid, rows_for
from ceiling.report.tables import Raw, details, matrix, table, text, verbatim, verdict_key
from ceiling.report.units import number, seconds
from ceiling.report.view import DASHES, MARKERS, View, build


@dataclass(frozen=True)
class Run:
    """One run as its results.json tells it; name: the shortest path that tells it from the others."""

    name: str
    directory: Path
    results: dict

    @property
    def meta(self) -> dict:
        return self.results["meta"]

    @cached_property
    def view(self) -> View:
        return build(self.results)


def html(runs: Sequence[Run], settings, paired, notes, links) -> str:
    """The page as a string; the same runs give the same string.

    settings: rows {kind, key, run, value}. paired: rows {arm, group, k, run, against, mean, lo, hi, seeds}. notes:
    lines on what could not be paired. links: per run, the way from the page to its report (or None) and its results.
    """
    arms, view = _arms(runs), combined(runs)
    body = (
        ("runs", "Runs", "The runs", _runs(runs, links)),
        ("settings", "Settings", "What differs between them", _settings(runs, settings)),
        ("verdicts", "Verdicts", "Verdicts", _verdicts(view)),
        ("curves", "pass@k", "pass@k curves", _curves(view)),
        ("paired", "Paired", f"Paired differences to {runs[0].name}", _paired(runs, view, paired, notes)),
        ("budget", "Budget", "What they cost", costs.spent(view)),
    )
    shown = [(f"only-{i}", Raw(f"<b>{i + 1}</b>&nbsp;{escape(run.name)}")) for i, run in enumerate(runs)]
    tasks = escape(str(runs[0].meta["task"].get("name")))
    return document(
        "ceiling: runs compared",
        f"<p>{len(runs)} runs on task <b>{tasks}</b></p><h1>Runs side by side</h1>",
        body,
        legend(arms) + boxes("Runs shown in the figures", shown),
        style(arms, len(runs)),
    )


def combined(runs: Sequence[Run]) -> View:
    """All runs as one view in which arm NAME of the i-th run is called "NAME i", null arms aside."""
    arms, views = _arms(runs), [run.view for run in runs]
    looks, declared = {}, {}
    for arm, look in arms.items():
        for i, view in enumerate(views):
            if arm in view.looks and arm != view.null:
                name = f"{arm} {i + 1}"
                looks[name] = replace(
                    look,
                    name=name,
                    title=f"{view.title(arm)} · {runs[i].name}",
                    dash=DASHES[i % len(DASHES)],
                    marker=MARKERS[i % len(MARKERS)],
                    run=i,
                )
                declared[name] = {**view.declared.get(arm, {}), "complete": view.complete}
    pooled = shared_aggregates(runs)
    aggregates = {name: group for name, group in views[0].aggregates.items() if name in pooled}
    groups, results = views[0].groups, {}
    for key in ("curves", "verdicts", "ledger", "counters"):
        results[key] = [
            row | {"arm": f"{row['arm']} {i + 1}"}
            for i, view in enumerate(views)
            for row in view.rows(key)
            if row["arm"] != view.null and row.get("group") in (None, *groups, *aggregates)
        ]
    results["meta"] = {"complete": all(view.complete for view in views)}
    targets = [view.results.get("budget") for view in views]
    results["budget"] = targets[0] if all(target == targets[0] for target in targets) else None
    return View(results, looks, groups, aggregates, declared)


def shared_aggregates(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Aggregates that pool the same groups in every run."""
    first, *others = [run.meta["aggregates"] for run in runs]
    return {name: members for name, members in first.items() if all(o.get(name) == members for o in others)}


def _arms(runs) -> dict:
    """Looks of all arms of all runs, the first run's first: what an arm's colour is on this page."""
    views = [run.view for run in runs]
    declared = {arm["name"]: arm for view in reversed(views) for arm in view.meta["arms"]}
    order = dict.fromkeys(arm["name"] for view in views for arm in view.meta["arms"])
    rows = [{"arm": arm} for view in views for arm in view.looks]
    meta = views[0].meta | {"arms": [declared[name] for name in order]}
    looks = build({"meta": meta, "curves": rows}).looks
    return {name: replace(look, dash=None) for name, look in looks.items() if look.kind != "null"}


def _runs(runs, links) -> str:
    rows = []
    for i, (run, (report, results)) in enumerate(zip(runs, links, strict=True)):
        meta = run.meta
        done, total = (meta["stages"].get(key) for key in ("done", "total"))
        state = "finished" if meta["complete"] else f"not finished: {done} of {total} stages"
        rows.append(
            [
                Raw(f"<b>{i + 1}</b>&nbsp;{escape(run.name)}"),
                Raw(_link(report, "report") if report else "no report"),
                Raw(_link(results, "results.json")),
                meta["name"],
                Raw(text(state) if meta["complete"] else f'<span class="fail">{text(state)}</span>'),
                number(len(meta["seeds"])),
                number(meta["n"]),
                number(meta["verdict_k"]),
                seconds(meta.get("wall_s")),
                meta["version"],
                meta["device"],
            ]
        )
    headers = ["run", "", "", "experiment", "state", "seeds", "n", "K", "time in all stages", "ceiling", "device"]
    said = "".join(f"<li>{text(f'{run.name}: {note}')}</li>" for run in runs for note in run.meta.get("notes") or [])
    unfinished = [run.name for run in runs if not run.meta["complete"]]
    warning = f"Not finished: {', '.join(unfinished)}. What is said of it is provisional." if unfinished else ""
    return (
        (f'<p class="pending">{text(warning)}</p>' if warning else "")
        + table("The runs", headers, rows, kind="long")
        + (f'<ul class="notes">{said}</ul>' if said else "")
    )


def _link(target: str, words: str) -> str:
    return f'<a href="{escape(quote(target))}">{words}</a>'


def _settings(runs, settings) -> str:
    """Keys by runs: configuration, then environment."""
    parts = []
    for kind, caption, none in (
        ("configuration", "Configuration keys that differ", "The configurations are the same."),
        ("environment", "Versions and devices that differ", "Versions and device are the same."),
    ):
        cells = {(row["key"], row["run"]): row["value"] for row in settings if row["kind"] == kind}
        keys = dict.fromkeys(key for key, _ in cells)
        rows = [[key, *[verbatim(cells[key, run.name]) for run in runs]] for key in keys]
        headers = ["key", *[f"{i + 1} {run.name}" for i, run in enumerate(runs)]]
        parts.append(table(caption, headers, rows, kind="settings") if rows else f"<p>{none}</p>")
    return "".join(parts)


def _verdicts(view: View) -> str:
    if not view.rows("verdicts"):
        return '<p class="pending">No run has a verdict yet.</p>'
    return matrix(view) + verdict_key() + details("Every verdict with its reason", sections.reasons(view))


def _curves(view: View) -> str:
    rows, parts = view.rows("curves"), []
    for pooled, groups in arranged(view, rows):
        panels = []
        for group in groups:
            mine, name = rows_for(rows, group), f"curves-{group.name}"
            panels.append(figures.pass_at_k(mine, view.looks, name=name, title=group.heading, large=pooled))
        says = "Chance that at least one of k samples is right. Colour is the arm, dash and mark the run."
        parts.append(grid(panels, says if not any(parts) else "The same, one panel per group.", size=_size(pooled)))
    return "".join(parts) + details("pass@k in numbers", sections.by_k("pass@k with intervals", view, rows))


def _paired(runs, view: View, paired, notes) -> str:
    """Differences of every run to the first, arm by arm, where both drew samples on the same problems."""
    said = "".join(f"<li>{text(note)}</li>" for note in notes)
    not_paired = f'<ul class="notes">{said}</ul>' if said else ""
    if not paired:
        return f'<p class="pending">Nothing is paired.</p>{not_paired}'
    number_of = {run.name: i + 1 for i, run in enumerate(runs)}
    rows = [row | {"arm": f"{row['arm']} {number_of[row['run']]}"} for row in paired]
    rows = [row for row in rows if row["group"] in view.every]
    limits, parts = figures.span(rows), []
    for pooled, groups in arranged(view, rows):
        panels = []
        for group in groups:
            panels.append(
                figures.differences(
                    rows_for(rows, group),
                    view.looks,
                    name=f"paired-{group.name}",
                    title=group.heading,
                    limits=limits,
                    large=pooled,
                    pair=("run", "first run"),
                )
            )
        says = (
            "The same arm in two runs, on the same problems, training seed by training seed: above zero it reaches "
            "more than in the first run. Bands are intervals over problems and seeds."
        )
        parts.append(grid(panels, says if not any(parts) else "The same, one panel per group.", size=_size(pooled)))
    listed = sections.by_k(f"Paired differences of pass@k to {runs[0].name}", view, rows, sign=True)
    return "".join(parts) + details("Paired differences in numbers", listed) + not_paired


def _size(pooled: bool) -> str:
    return "wide" if pooled else "narrow"
