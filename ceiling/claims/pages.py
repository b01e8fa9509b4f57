"""docs/claims.md and a page with a figure per claim, from the content of claim.json. Nothing here is a measurement."""

import pathlib
import re

from ceiling.claims.figure import draw

_NOTE = "<!-- Written by `python -m ceiling.claims --docs docs`: edit the claims, not this page. -->"


def write(contents: list[dict], docs: pathlib.Path) -> None:
    """claims.md, and claims/<id>.md with claims/<id>.svg for every claim. contents: claim.json of each. Rows and pages
    of claims that are not among them, run in another work directory, stay as they are."""
    home, page_of_all = docs / "claims", docs / "claims.md"
    home.mkdir(parents=True, exist_ok=True)
    before = page_of_all.read_text().splitlines() if page_of_all.exists() else ()
    rows = {match[1]: line for line in before if (match := re.match(r"\| \[(\w+)\]\(claims/", line))}
    rows |= {content["id"]: row(content) for content in contents}
    page_of_all.write_text(table([rows[name] for name in sorted(rows)]))
    for content in contents:
        (home / f"{content['id']}.md").write_text(page(content))
        (home / f"{content['id']}.svg").write_text(draw(content))


def row(c: dict) -> str:
    """A claim's line in the table."""
    tests = "<br>".join(f"{t['test']}: {effect(t)}, {t['verdict']}" for t in c["tests"])
    return f"| [{c['id']}](claims/{c['id']}.md) | {c['finding']} | **{c['verdict']}** | {tests} |"


def table(rows: list[str]) -> str:
    """The table of all claims that were run."""
    return "\n".join([
        "# Claims about the ceiling", "", _NOTE, "",
        "Each published finding is an experiment with a test that was fixed before it ran. `python -m ceiling.claims` "
        "runs them all, `python -m ceiling.claims C1` one.", "",
        "**How a verdict is made.** A test states an effect that the finding predicts to lie above a margin. Its 95 % "
        "interval is over training seeds and problems, both random. *Supported*: the interval lies above the margin, "
        "and still does without any one seed; *contradicted*: below it, likewise; else *not resolved at this scale*. "
        "A claim is supported if all of its tests are, and contradicted if one is at the level corrected for their "
        "number. C0 applies the same rules to arms that are the base, drawn again; a rate of calls that pool the seeds "
        "has the exact interval of its cases, and the calls are made anew without each seed.", "",
        "These are verdicts about the lab, a small transformer on a generated prior. They say what the finding does "
        "there, at this size and budget, and no more.", "",
        "| | finding | verdict | tests: effect [95 % interval] against its margin |", "|---|---|---|---|", *rows, "",
    ])  # fmt: skip


def page(c: dict) -> str:
    """A claim's own page."""
    s = c["scale"]
    tests = [f"| {t['test']} | {t['statement']} | {effect(t)} | {t['verdict']}{_why(t)} |" for t in c["tests"]]
    arms = [
        f"| {a['experiment']} | {a['title']}{' (control)' if a['control'] else ''} | {', '.join(a['reads']) or '-'} "
        f"| {a['at_1']:.3f} ({_signed(a['at_1_change'])}) | {a['at_k']:.3f} ({_signed(a['at_k_change'])}) "
        f"| {a['student_flops']:.2e} | {a['teacher_flops']:.2e} | {a.get('tool_calls', 0):.0f} | {a['seconds']:.0f} |"
        for a in c["arms"]
    ]  # fmt: skip
    k = c["arms"][0]["k"]
    lines = [
        f"# {c['id']}. {c['title']}: {c['verdict']}", "", _NOTE, "", c["finding"],
        "Sources: " + ", ".join(f"[{x}](https://arxiv.org/abs/{x})" for x in c["sources"]) + ".", "",
        f"**What would have refuted it.** {c['refuted_by']}", "",
        f"**Scale** {s['name']}: seeds {', '.join(map(str, s['seeds']))}, {s['flops']:.2g} FLOP an arm (times its "
        f"`spend`), {s['problems']} problems a group, n = {s['n']}.", "",
        f"![Effects and arms of {c['id']}]({c['id']}.svg)", "",
        "## Tests", "", "| test | statement | effect, margin | verdict |", "|---|---|---|---|", *tests, "",
        f"## Arms and their ledgers (groups {c['groups']})", "",
        f"| experiment | arm | reads | pass@1 (change) | pass@{k} (change) | student FLOP | teacher FLOP | tool calls "
        "| seconds |",
        "|---|---|---|---|---|---|---|---|---|", *arms, "",
    ]  # fmt: skip
    if points := c.get("measured"):
        lines += ["## Measured against the prior", "", "Means over seeds and problems with 95 % intervals; no verdict "
                  "rests on them.", "", "| | in the corpus | experiment | group | series | mean |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        lines += [f"| {p['axis']} | {p['x']:.3g} | {p['experiment']} | {p['group']} | {p['series']} "
                  f"| {_signed([p['y'], p['lo'], p['hi']], '.3f')} |" for p in points] + [""]  # fmt: skip
    if c["tried"]:
        lines += ["## What was tried", "", c["tried"], ""]
    return "\n".join(lines)


def effect(test: dict) -> str:
    """'+0.31 [+0.20, +0.42] > 0' of one test of claim.json."""
    interval, limit = test["interval"], f"> {test['margin']:g}"
    if interval is None:
        return f"undefined {limit}"
    return f"{_signed([interval['mean'], interval['lo'], interval['hi']])} {limit}"


def _signed(interval, form: str = "+.3f") -> str:
    mean, lo, hi = interval
    return f"{mean:{form}}" if lo is None or hi is None or lo != lo else f"{mean:{form}} [{lo:{form}}, {hi:{form}}]"


def _why(test: dict) -> str:
    return f" ({test['reason']})" if test["reason"] else ""
