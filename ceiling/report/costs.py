"""The last five sections: budget, training, information gain, how to read the page, configuration."""

from collections import defaultdict
from html import escape

from ceiling.report import bars, figures
from ceiling.report.panels import grid, pending, reads
from ceiling.report.tables import Raw, chip, details, flatten, nested, table, verbatim
from ceiling.report.units import estimate, flops, number, seconds
from ceiling.report.view import View

# Metrics worth a panel come first; the rest follow as they appear, and every one is in training.csv.
METRICS = ("reward", "accuracy", "loss", "entropy", "thought_length", "information_gain_nats", "kl")
MOST_METRICS = 12

TERMS = (
    (
        "pass@k",
        "Chance that at least one of k samples of a problem is right, estimated without bias from n samples "
        "of which c are right: 1 − C(n−c, k) / C(n, k), averaged over problems. k never exceeds n.",
    ),
    (
        "interval",
        "Taken over problems and over training seeds together, so it covers both a different draw of "
        "problems and a different training run.",
    ),
    (
        "difference to the base",
        "Paired: the same problems, the same prompts, the same number of samples on both sides.",
    ),
    (
        "null arm",
        "The base, sampled again with other noise. Whatever it appears to gain or lose is noise, and a "
        "claim has to exceed it.",
    ),
    (
        "resolution",
        "How far a second draw of the base moves pass@K: the larger end of the null arm's interval, and "
        "never less than what one correct sample can move. Smaller changes cannot be told from chance.",
    ),
    (
        "expanded",
        "Reaches further: the whole interval of the change at K lies above the resolution, and every seed "
        "agrees on the sign. More problems are reached; whether they are new is a separate question.",
    ),
    (
        "contracted",
        "The mirror image: the whole interval lies below minus the resolution, in every seed. Problems that "
        "were in reach were lost.",
    ),
    (
        "re-weighted",
        "The change at K lies within the margin (or the resolution, where that is larger) while pass@1 did "
        "change: the reach is the same and probability was moved around inside it.",
    ),
    (
        "not resolved",
        "Everything else, and always with fewer than three training seeds.",
    ),
    (
        "new problem",
        "A problem, in one seed, that the base solved in none of its samples and the arm solves. That bounds "
        "the base's chance per sample, it does not make it zero; the bound stands in the table.",
    ),
    (
        "designed trap",
        "A group built to isolate one mechanism. It is shown, always labelled, and never part of a "
        "headline count.",
    ),
    (
        "crossing",
        "The k at which an arm's curve falls below the base's; given with the share of resamples that "
        "cross at all.",
    ),
    (
        "student and teacher FLOPs",
        "Arms stop at the same student-side FLOPs (sampling, scoring, training). What a "
        "teacher and the evaluation spent is charged beside it, hatched.",
    ),
)


def budget(view: View) -> str:
    return spent(view, ["ledger"]) + pending(view, "ledger")


def spent(view: View, tables=()) -> str:
    """What every arm spent, as bars and in numbers; `tables` are those of its data that lie beside the page."""
    rows = view.rows("ledger")
    # The student's phases first, so that they take the solid colours in a stable order.
    ordered = sorted(rows, key=lambda row: not row.get("student"))
    phases = list(dict.fromkeys(row["phase"] for row in ordered))
    target = (view.results.get("budget") or {}).get("target_flops")
    axis = (view.results.get("budget") or {}).get("axis")
    own = {row["phase"] for row in rows if row.get("student")}
    keys = "".join(
        f'<span class="key"><i class="fill {bars.phase_role(i) if phase in own else "teacher"}"></i>'
        f"{escape(str(phase))}{'' if phase in own else ' (not the student)'}</span>"
        for i, phase in enumerate(phases)
    )
    title = "FLOPs per arm, mean over seeds"
    panels = (
        [bars.budget(rows, view.looks, name="budget", title=title, phases=phases, target=target)]
        if rows
        else []
    )
    matched = f" Arms are matched on {axis} FLOPs." if axis else ""
    caption = f"What each arm spent, by phase.{matched}" + (" The dashed line is the budget." if target else "")
    return (
        (f'<p class="keys">{keys}</p>' if rows else "")
        + grid(panels, caption, tables, size="wide")
        + _ledger_table(view)
        + details("The ledger by phase", _phase_table(view, phases))
    )


def training(view: View) -> str:
    rows = view.rows("training")
    found = list(dict.fromkeys(row["metric"] for row in rows))
    found.sort(key=lambda metric: METRICS.index(metric) if metric in METRICS else len(METRICS))
    panels = [
        figures.training(
            [r for r in rows if r["metric"] == metric],
            view.looks,
            name=f"training-{metric}",
            title=str(metric).replace("_", " "),
        )
        for metric in found[:MOST_METRICS]
    ]
    more = (
        f" {len(found) - MOST_METRICS} further metrics are in the data." if len(found) > MOST_METRICS else ""
    )
    caption = f"Against the FLOPs charged to the arm so far, so that equal positions cost the same.{more}"
    return grid(panels, caption, ["training"]) + pending(view, "training")


def gain(view: View) -> str:
    rows = view.rows("rlp")
    arms = [look for look in view.looks.values() if any(row["arm"] == look.name for row in rows)]
    panels = [
        bars.gains(
            [r for r in rows if r["arm"] == look.name], view.looks, name=f"rlp-{look.name}", title=look.title
        )
        for look in arms
    ]
    cells = [
        [
            chip(view.looks[r["arm"]]),
            str(r["metric"]).replace("_", " "),
            str(r.get("seed")),
            estimate(r.get("value"), r.get("lo"), r.get("hi"), sign=True),
        ]
        for r in rows
    ]
    caption = (
        "How much a thought raises the log-probability of the answer. The raw gain counts what a mere "
        "wrapper token is worth; the wrapped baseline does not. An empty or a shuffled thought should gain "
        "nothing."
    )
    listed = table("Information gain in nats", ["arm", "baseline", "seed", "gain"], cells) if cells else ""
    return (
        grid(panels, caption, ["rlp"], size="medium")
        + details("Information gain in numbers", listed)
        + pending(view, "rlp")
    )


def reading(view: View) -> str:
    """Null arm, gates, and the terms in words."""
    null = view.results.get("null") or {}
    parts = [_null_table(view, name, item) for name, item in null.items() if item not in (None, {}, [])]
    if view.rows("gates"):
        cells = [
            [
                str(r.get("name")).replace("_", " "),
                str(r.get("seed")),
                r.get("value"),
                r.get("threshold"),
                _passed(r.get("passed")),
            ]
            for r in view.rows("gates")
        ]
        parts.append(table("Gates on pretraining", ["gate", "seed", "value", "threshold", "result"], cells))
    if not null or not view.rows("gates"):
        if not view.complete:
            parts.append(f'<p class="pending">Not finished yet: {escape(view.progress)}.</p>')
    terms = "".join(f"<dt>{escape(term)}</dt><dd>{escape(words)}</dd>" for term, words in TERMS)
    margin, k, n = (view.meta.get(key) for key in ("margin", "verdict_k", "n"))
    said = [
        f"{what} {number(v)}" for what, v in (("margin", margin), ("K =", k), ("n =", n)) if v is not None
    ]
    here = f"<p>In this run: {escape(', '.join(said))}.</p>" if said else ""
    return f'<div class="side">{"".join(parts)}</div>' + here + f'<dl class="terms">{terms}</dl>'


def configuration(view: View) -> str:
    meta = view.meta
    environment = [
        ["experiment", meta.get("name")],
        ["ceiling", meta.get("version")],
        ["configuration hash", meta.get("config_hash")],
        ["device", meta.get("device")],
        ["time in all stages", seconds(meta.get("wall_s"))],
        ["seeds", ", ".join(str(seed) for seed in meta.get("seeds") or []) or None],
        *[[name, version] for name, version in (meta.get("packages") or {}).items()],
    ]
    config = [[key, value] for key, value in flatten(meta.get("config") or {})]
    notes = "".join(f"<li>{escape(str(note))}</li>" for note in meta.get("notes") or [])
    shown = [[key, value if value is None else str(value)] for key, value in environment]
    return (
        (f'<ul class="notes">{notes}</ul>' if notes else "")
        + details("Environment", table("Environment", ["name", "value"], shown))
        + details(
            f"Full configuration ({len(config)} keys)",
            table("Resolved configuration", ["key", "value"], [[k, verbatim(v)] for k, v in config])
            if config
            else "",
        )
        + '<p>Everything on this page: <a href="results.json">results.json</a>.</p>'
    )


def _ledger_table(view: View) -> str:
    """One row per arm: both FLOP axes, tokens, time, every counter, and what the arm may read."""
    rows, counters = view.rows("ledger"), view.rows("counters")
    seeds = defaultdict(set)
    sums, counts = defaultdict(float), defaultdict(list)
    for r in rows:
        seeds[r["arm"]].add(r.get("seed"))
        sums[r["arm"], "student" if r.get("student") else "teacher"] += r.get("flops") or 0
        for key in ("tokens", "sequences", "seconds"):
            sums[r["arm"], key] += r.get(key) or 0
    for r in counters:
        if r.get("value") is not None:
            counts[r["arm"], r["name"]].append(r["value"])
    names = list(dict.fromkeys(r["name"] for r in counters))
    cells = []
    for look in view.looks.values():
        present = look.name in seeds or any((look.name, name) in counts for name in names)
        if not present:
            continue
        share = max(1, len(seeds[look.name]))
        total = {
            key: sums[look.name, key] / share if look.name in seeds else None
            for key in ("student", "teacher", "tokens", "sequences", "seconds")
        }
        counted = [_mean(counts.get((look.name, name))) for name in names]
        cells.append(
            [
                chip(look),
                flops(total["student"]),
                flops(total["teacher"]),
                _count(total["tokens"]),
                _count(total["sequences"]),
                seconds(total["seconds"]),
                *map(_count, counted),
                reads(view, look.name),
            ]
        )
    headers = [
        "arm",
        "student",
        "teacher, evaluation",
        "tokens",
        "sequences",
        "time",
        *[str(name).replace("_", " ") for name in names],
        "may read",
    ]
    return table("Ledger per arm, mean over seeds", headers, cells, kind="ledger") if cells else ""


def _phase_table(view: View, phases) -> str:
    sums, seeds = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0]), defaultdict(set)
    for r in view.rows("ledger"):
        seeds[r["arm"]].add(r.get("seed"))
        entry = sums[r["arm"], r["phase"], str(r.get("model") or ""), bool(r.get("student"))]
        for i, key in enumerate(("flops", "tokens", "sequences", "seconds")):
            entry[i] += r.get(key) or 0
    cells = []
    for (arm, phase, model, student), values in sums.items():
        spent = [value / len(seeds[arm]) for value in values]
        cells.append(
            [
                chip(view.looks[arm]),
                phase,
                model,
                "student" if student else "not the student",
                flops(spent[0]),
                _count(spent[1]),
                _count(spent[2]),
                seconds(spent[3]),
            ]
        )
    headers = ["arm", "phase", "model", "side", "FLOPs", "tokens", "sequences", "time"]
    return table("Ledger by phase, mean over seeds", headers, cells, kind="long") if cells else ""


def _null_table(view: View, name: str, item) -> str:
    """What the null arm measured, with groups and arms by their titles."""
    if isinstance(item, dict):
        titles = {**{g: view.group_title(g) for g in view.every}, **{a: view.title(a) for a in view.looks}}
        item = {titles.get(key, key): value for key, value in item.items()}
    if isinstance(item, list) and all(isinstance(row, dict) for row in item):
        item = [row | ({"group": view.group_title(row["group"])} if "group" in row else {}) for row in item]
    return nested(f"Null arm: {str(name).replace('_', ' ')}", item)


def _passed(value) -> Raw:
    if value is None:
        return Raw("–")
    return Raw('<span class="pass">✓ passed</span>' if value else '<span class="fail">✗ failed</span>')


def _mean(values):
    return sum(values) / len(values) if values else None


def _count(value) -> str:
    return number(round(value) if value is not None and abs(value) >= 100 else value, 1)
