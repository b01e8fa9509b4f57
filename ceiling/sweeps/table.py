"""One table over all points of a sweep, as JSON and CSV, and the page with its figure.

Every number is read from the points' own results.json, so that a table of half a sweep is written the same way.
"""

import csv
import io
import json
import pathlib

from ceiling import schema
from ceiling.config import ConfigError, Field, Section, digest
from ceiling.report.units import clean
from ceiling.sweeps.points import Point

COLUMNS = ("point", "arm", "group", "pass_at_1", "pass_at_1_lo", "pass_at_1_hi", "pass_at_k", "pass_at_k_lo",
           "pass_at_k_hi", "k", "verdict", "student_flops", "seeds")  # fmt: skip
METRICS = {"pass@k": "pass_at_k", "pass@1": "pass_at_1"}
FLOPS = "flops"


def results_of(point: Point, workdir: pathlib.Path) -> dict | None:
    """The results.json of a finished point: complete, and of this very configuration."""
    path = workdir / point.name / "results.json"
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    meta = content["meta"]
    return content if meta["complete"] and meta["config_hash"] == digest(point.config) else None


def finished(point: Point, workdir: pathlib.Path) -> bool:
    return results_of(point, workdir) is not None


def rows_of(point: Point, content: dict) -> list[dict]:
    """A row per arm and group: COLUMNS, then the point's overrides by their keys, sections and empty texts aside."""
    meta, rows = content["meta"], []
    verdicts = {(row["arm"], row["group"]): row["verdict"] for row in content["verdicts"]}
    at = {(row["arm"], row["group"], row["k"]): row for row in content["curves"]}
    k = meta["verdict_k"]
    for arm, group in dict.fromkeys((row["arm"], row["group"]) for row in content["curves"]):
        if arm == meta["null"]:
            continue
        row = {"point": point.name, "arm": arm, "group": group}
        for column, places in (("pass_at_1", 1), ("pass_at_k", k)):
            curve = at.get((arm, group, places), {})
            row |= {column: curve.get("mean"), f"{column}_lo": curve.get("lo"), f"{column}_hi": curve.get("hi")}
        row |= {"k": k, "verdict": verdicts.get((arm, group)), "student_flops": _student_flops(content, arm),
                "seeds": at[arm, group, k]["seeds"] if (arm, group, k) in at else None}  # fmt: skip
        rows.append(row | {key: value for key, value in point.overrides.items()
                           if value != "" and not isinstance(value, (dict, list))})  # fmt: skip
    return rows


def _student_flops(content: dict, arm: str) -> float:
    """FLOPs per training seed that the arm's budget counts as its own; its evaluation is in none."""
    mine = [r for r in content["ledger"] if r["arm"] == arm and r["phase"] != "evaluate" and r["student"]]
    return sum(r["flops"] for r in mine) / (len({r["seed"] for r in mine}) or 1)


def default_axis(points: list[Point]) -> str:
    """The key that is swept, if it is a number's; where several are and differ in one place, that place is `*`:
    arms.*.lr."""
    swept = dict.fromkeys(key for point in points for key in point.overrides)
    keys = [key.split(".") for key in swept if any(_has_number(point.config, key.split(".")) for point in points)]
    axis = keys[0] if keys else [FLOPS]
    if len({len(key) for key in keys}) == 1:
        differ = [len(set(parts)) > 1 for parts in zip(*keys, strict=True)]
        if sum(differ) == 1 and _is_named(points[0].config, axis[: differ.index(True)]):
            axis = ["*" if many else part for many, part in zip(differ, axis, strict=True)]
    return ".".join(axis)


def _is_named(config: dict, path: list[str]) -> bool:
    """Whether what stands at a path is told apart by arms or groups: the arms, or a table of numbers."""
    node = schema.section(config)
    for part in path:
        node = node.entries.get(part) if isinstance(node, Section) else None
    return path == ["arms"] or isinstance(node, Field) and node.kind == "table"


def value_at(config: dict, key: str, *, arm: str = "", group: str = "") -> float | None:
    """The number at a dotted key, `*` being the arm or the group; None where there is none."""
    node = config
    for part in key.split("."):
        names = (arm, group) if part == "*" else (part,)
        name = next((name for name in names if isinstance(node, dict) and name in node), None)
        if name is None:
            return None
        node = node[name]
    return float(node) if _has_number(node, []) else None


def check_axes(points: list[Point], x: str, y: str) -> None:
    """ConfigError if the figure has no such axes."""
    if y and y not in METRICS:
        raise ConfigError(f"y={y!r} is not a metric of the table; use {' or '.join(METRICS)}")
    path = x.split(".")
    named = "*" not in path or _is_named(points[0].config, path[: path.index("*")])
    if x and x != FLOPS and not (named and any(_has_number(point.config, path) for point in points)):
        raise ConfigError(f"x={x!r} is no number of the configuration; use {FLOPS} or a key, e.g. "
                          f"{default_axis(points)} (* is the arm or the group)")  # fmt: skip


def _has_number(node, path: list[str]) -> bool:
    """Whether a number stands at the end of a path, `*` being any name."""
    if not path:
        return isinstance(node, (int, float)) and not isinstance(node, bool)
    names = node if path[0] == "*" else path[:1]
    return isinstance(node, dict) and any(_has_number(node[name], path[1:]) for name in names if name in node)


def write(points: list[Point], workdir: pathlib.Path, x: str = "", y: str = "") -> tuple[list[dict], pathlib.Path]:
    """Write results.json, sweep.csv and sweep.html over the finished points; returns rows and the page's path."""
    from ceiling.sweeps import page  # Matplotlib takes longer to import than a point to be refused

    x, y = x or default_axis(points), y or next(iter(METRICS))
    there = [(point, content) for point in points if (content := results_of(point, workdir))]
    rows = clean([row for point, content in there for row in rows_of(point, content)])
    content = {"x": x, "y": y, "rows": rows, "points": [
        {"name": p.name, "overrides": p.overrides, "finished": any(p is q for q, _ in there)} for p in points
    ]}  # fmt: skip
    (workdir / "results.json").write_text(json.dumps(clean(content), indent=1) + "\n")
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys([*COLUMNS, *(key for row in rows for key in row)])),
                            lineterminator="\n")  # fmt: skip
    writer.writeheader()
    writer.writerows(rows)
    (workdir / "sweep.csv").write_text(buffer.getvalue())
    path = workdir / "sweep.html"
    path.write_text(page.html(there, rows, len(points), x, y), encoding="utf-8")
    return rows, path


def axis_title(x: str) -> str:
    return "student FLOPs" if x == FLOPS else x.replace("*", "(own)")
