"""Several runs side by side: what differs between them, what each of them says, and paired differences.

    comparison = ceiling.compare(["runs/a", "runs/b"])
    comparison.settings.to_pandas()
    comparison.write("runs/compare.html")

Everything is read from the runs' results.json. Paired differences alone go back to the samples of the runs, and are
there only where these lie beside it and are of the same problems.
"""

import dataclasses
import glob
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterator, Sequence

import pyarrow
import pyarrow.parquet as pq

from ceiling import report
from ceiling.config import ConfigError
from ceiling.evals import summary
from ceiling.evals.records import Samples
from ceiling.report.compare import Run, html, shared_aggregates
from ceiling.report.tables import flatten
from ceiling.report.units import clean
from ceiling.results import Table
from ceiling.version import __version__

_META = {"name": str, "version": str, "config": dict, "device": str, "packages": dict, "arms": list, "task": dict,
         "aggregates": dict, "seeds": list, "n": int, "ks": list, "verdict_k": int, "stages": dict, "complete": bool,
         "base": str}  # fmt: skip
_ROWS = {"curves": {"arm", "group", "k", "mean"}, "verdicts": {"arm", "group", "verdict"},
         "ledger": {"arm", "seed", "phase", "flops"}, "counters": {"arm", "seed", "name", "value"}}  # fmt: skip
_NUMBERS = {"k", "mean", "lo", "hi", "flops", "tokens", "sequences", "seconds", "seeds", "n", "value",
            *(f"{name}{end}" for name in ("delta_1", "delta_k", "null_k") for end in ("", "_lo", "_hi"))}  # fmt: skip
_MOST_TRIED = 1000  # ways to choose one evaluation per training seed, where a run directory holds several


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Tables over several runs; in each, `run` is the run's name: the end of its path that tells it from the others.

    runs: run, directory, experiment, task, version, device, complete, stages_done, stages_total, seeds, n, verdict_k,
    wall_s (seconds in all stages), report (None where there is no page).
    settings: kind (configuration or environment), key, run, value; keys that are the same in all runs are left out, and
    value is None where a run has no such key.
    verdicts, curves, ledger: every run's own rows (docs/reading.md), null arms aside.
    paired: arm, group, k, run, against, mean, lo, hi, seeds: pass@k of the arm in `run` minus that in `against`, the
    first run, over the training seeds both have; interval over seeds and problems.
    notes: a line for everything that could not be paired. contents: the runs themselves.
    """

    runs: Table
    settings: Table
    verdicts: Table
    curves: Table
    ledger: Table
    paired: Table
    notes: tuple[str, ...]
    contents: tuple[Run, ...] = dataclasses.field(repr=False)

    def write(self, path) -> pathlib.Path:
        """Write the comparison as one HTML page, with links to the runs' own pages, and return its path. ConfigError if
        `path` is no .html file or belongs to one of the runs."""
        path = pathlib.Path(path)
        if path.suffix != ".html" or path.is_dir():
            raise ConfigError(f"{path}: a comparison is written as an .html file")
        if any(path.resolve() == (run.directory / "report.html").resolve() for run in self.contents):
            raise ConfigError(f"{path} is the report of one of the runs; name another file")
        path.parent.mkdir(parents=True, exist_ok=True)
        links = []
        for run in self.contents:
            files = [run.directory / name for name in ("report.html", "results.json")]
            links.append([os.path.relpath(file, path.parent) if file.exists() else None for file in files])
        report.replace(path, html(self.contents, self.settings, self.paired, self.notes, links))
        return path


def compare(directories: Sequence) -> Comparison:
    """Set runs side by side.

    directories: two or more run directories (--workdir of a run). Raises ConfigError, in one line, where one is none,
    is named twice, holds results that cannot be read, or those of another task or other groups than the first's.
    """
    paths = [pathlib.Path(directory) for directory in directories]
    if len(paths) < 2:
        raise ConfigError("a comparison needs two run directories or more")
    for first, second in itertools.combinations(paths, 2):
        if first.resolve() == second.resolve():
            raise ConfigError(f"{first} and {second} are the same directory")
    runs = [Run(name, path, _read(path)) for name, path in zip(_names(paths), paths, strict=True)]
    for run in runs[1:]:
        _check_groups(runs[0], run)
    paired, notes = _paired(runs)
    own = {name: _own_rows(runs, name) for name in ("verdicts", "curves", "ledger")}
    return Comparison(Table(map(_row, runs)), Table(_settings(runs)), **own, paired=Table(paired), notes=tuple(notes),
                      contents=tuple(runs))  # fmt: skip


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """The shortest end of every path that no other path ends with."""
    parts = [pathlib.Path(os.path.abspath(path)).parts for path in paths]
    names = []
    for mine in parts:
        others = [other for other in parts if other is not mine]
        size = next(n for n in range(1, len(mine) + 1) if all(other[-n:] != mine[-n:] for other in others))
        names.append(str(pathlib.Path(*mine[-size:])))
    return names


def _read(directory: pathlib.Path) -> dict:
    """results.json of a run, checked as far as a comparison relies on it."""
    path = directory / "results.json"
    if not path.is_file():
        raise ConfigError(f"{directory}: no results.json there; name the directory that a run was given as --workdir")
    try:
        content = clean(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {_one_line(error)}") from None
    if isinstance(content, dict) and {"points", "rows"} <= set(content):
        raise ConfigError(f"{directory} is a sweep; name its points, the folders in it")
    if fault := _fault(content):
        meta = content.get("meta") if isinstance(content, dict) else None
        version = meta.get("version", "unknown") if isinstance(meta, dict) else "unknown"
        raise ConfigError(_one_line(
            f"{path} is not what a run of ceiling {__version__} writes: {fault} (its version: {version})"
        ))  # fmt: skip
    return content


def _fault(content) -> str:
    """What results.json lacks of what a comparison reads; empty where it lacks nothing."""
    if not isinstance(content, dict) or not isinstance(content.get("meta"), dict):
        return "no meta"
    meta = content["meta"]
    for key, kind in _META.items():
        if not isinstance(meta.get(key), kind):
            return f"no meta.{key}"
    for key, items in (("meta.arms", meta["arms"]), ("meta.task.groups", meta["task"].get("groups"))):
        if not _all(items, {"name"}) or not all(isinstance(item["name"], str) for item in items):
            return f"no {key} with names"
    if not all(isinstance(members, list) for members in meta["aggregates"].values()):
        return "no meta.aggregates"
    for name, keys in _ROWS.items():
        if not _all(content.get(name), keys):
            return f"no {name} with {', '.join(sorted(keys))}"
        for row in content[name]:
            odd = [key for key in _NUMBERS & set(row) if not isinstance(row[key], (int, float, type(None)))]
            if odd or row.get("k", 1) is None or row.get("k", 1) < 1:
                return f"{name} has a row whose {odd[0] if odd else 'k'} is no number"
    return ""


def _all(items, keys: set) -> bool:
    """Whether this is a list of objects that have these keys."""
    return isinstance(items, list) and all(isinstance(item, dict) and keys <= set(item) for item in items)


def _check_groups(first: Run, run: Run) -> None:
    """ConfigError where two runs are not about the same groups of the same task."""
    (task, groups), (own_task, own) = ((r.meta["task"].get("name"), _groups(r)) for r in (first, run))
    if task != own_task or set(groups) != set(own):
        raise ConfigError(_one_line(
            f"{run.directory} has the groups {', '.join(own)} of task {own_task}, {first.directory} has "
            f"{', '.join(groups)} of task {task}; only runs on the same groups can be compared"
        ))  # fmt: skip


def _groups(run: Run) -> list[str]:
    return [group["name"] for group in run.meta["task"]["groups"]]


def _row(run: Run) -> dict:
    meta, stages = run.meta, run.meta["stages"]
    page = run.directory / "report.html"
    return {
        "run": run.name, "directory": str(run.directory), "experiment": meta["name"], "task": meta["task"].get("name"),
        "version": meta["version"], "device": meta["device"], "complete": meta["complete"],
        "stages_done": stages.get("done"), "stages_total": stages.get("total"), "seeds": len(meta["seeds"]),
        "n": meta["n"], "verdict_k": meta["verdict_k"], "wall_s": meta.get("wall_s"),
        "report": str(page) if page.exists() else None,
    }  # fmt: skip


def _own_rows(runs: Sequence[Run], name: str) -> Table:
    return Table({"run": run.name, **row} for run in runs for row in run.results[name] if row["arm"] != run.view.null)


def _settings(runs: Sequence[Run]) -> Iterator[dict]:
    """Rows of Comparison.settings."""
    environment = [{"ceiling": r.meta["version"], "device": r.meta["device"], **r.meta["packages"]} for r in runs]
    for kind, trees in (("configuration", [run.meta["config"] for run in runs]), ("environment", environment)):
        for key, values in differing(trees):
            for run, value in zip(runs, values, strict=True):
                yield {"kind": kind, "key": key, "run": run.name, "value": value}


def differing(trees: Sequence, prefix: str = "") -> Iterator[tuple[str, list]]:
    """(dotted key, its value in every tree; None where there is none) of every leaf that is not the same in all trees.
    A section that some trees lack is one entry, with the number of its settings.

    >>> list(differing([{"lr": 1, "a": {"b": 2}}, {"lr": 1, "a": {"b": 3}}]))
    [('a.b', [2, 3])]
    """
    if all(isinstance(tree, dict) for tree in trees):
        for key in dict.fromkeys(key for tree in trees for key in tree):
            yield from differing([tree.get(key) for tree in trees], f"{prefix}.{key}" if prefix else key)
    elif any(tree != trees[0] for tree in trees):
        yield prefix, [f"({len(flatten(tree))} settings)" if isinstance(tree, dict) else tree for tree in trees]


def _paired(runs: Sequence[Run]) -> tuple[list[dict], list[str]]:
    """Rows of every run against the first, and why an arm that both have is not among them."""
    first, *others = runs
    aggregates, drawn, rows, notes = shared_aggregates(runs), {}, [], []

    def samples(run: Run, arm: str):
        if (run.name, arm) not in drawn:
            drawn[run.name, arm] = _samples(run, arm)
        return drawn[run.name, arm]

    for run in others:
        shared = [arm for arm in _arms(first) if arm in _arms(run)]
        if not shared:
            notes.append(f"{run.name}: not paired, no arm with samples in common with {first.name}")
        reasons: dict[str, list[str]] = {}
        for arm in shared:
            here, there = samples(run, arm), samples(first, arm)
            if why := _unlike(run, here, first, there):
                reasons.setdefault(why, []).append(run.view.title(arm))
                continue
            ks = [k for k in run.meta["ks"] if k in first.meta["ks"]]
            for row in _differences(here, there, ks, aggregates):
                rows.append({**row, "arm": arm, "run": run.name, "against": first.name})
        notes += [f"{run.name}: {', '.join(arms)} not paired, {why}" for why, arms in reasons.items()]
    return rows, notes


def _arms(run: Run) -> list[str]:
    """Arms with a curve, the null arm aside."""
    return list(dict.fromkeys(row["arm"] for row in run.results["curves"] if row["arm"] != run.view.null))


def _unlike(run: Run, here: dict[int, Samples], first: Run, there: dict[int, Samples]) -> str:
    """Why samples of an arm in two runs are not paired; empty where they are."""
    for which, found in ((run, here), (first, there)):
        if not found:
            return f"the samples that {which.name}'s results come from are not in its directory"
    seeds = set(here) & set(there)
    if not seeds:
        return "no training seed in common"
    pairs = [(here[seed], there[seed]) for seed in sorted(seeds)]
    if any(a.meta["prompts_sha256"] != b.meta["prompts_sha256"] or a.groups != b.groups for a, b in pairs):
        return "other evaluation problems"
    if any(a.n != b.n for a, b in pairs):
        return f"{pairs[0][0].n} and {pairs[0][1].n} samples per problem"
    return ""


def _differences(here: dict[int, Samples], there: dict[int, Samples], ks, aggregates) -> list[dict]:
    """pass@k here minus there, over the seeds that both have."""
    cells = {}
    for name, found in (("there", there), ("here", here)):
        cells |= {(name, seed): _cell(samples) for seed, samples in found.items()}
    some = next(iter(here.values()))
    own = {name: members for name, members in aggregates.items() if set(members) <= set(some.groups)}
    evalset = summary.EvalSet(n=some.n, groups=some.groups, cells=cells, aggregates=own)
    return summary.differences(evalset, "there", [k for k in ks if k <= some.n])


def _cell(samples: Samples) -> summary.Cell:
    return summary.Cell(count_P=samples.counts[:, 1])


def _samples(run: Run, arm: str) -> dict[int, Samples]:
    """Training seed -> the samples that a run's curves of an arm come from, without their texts; empty where they are
    not to be found. A directory in which settings were changed holds several evaluations of an arm: those are taken
    that give the curves."""
    found: dict[int, list[Samples]] = {}
    for seed in run.meta["seeds"]:
        places = run.directory.glob(f"stages/seed{seed}/{glob.escape(arm)}.evaluate/*/records.parquet")
        if each := [samples for place in sorted(places) if (samples := _outcomes(place))]:
            found[seed] = each
    own = [row for row in run.results["curves"] if row["arm"] == arm and row["mean"] is not None]
    wanted = {(row["group"], row["k"]): row["mean"] for row in own}
    ks = sorted({k for _, k in wanted})
    for choice in itertools.islice(itertools.product(*found.values()), _MOST_TRIED if found else 0):
        chosen, some = dict(zip(found, choice, strict=True)), choice[0]
        if any(samples.n != some.n or samples.groups != some.groups for samples in choice) or max(ks) > some.n:
            continue
        cells = {(arm, seed): _cell(samples) for seed, samples in chosen.items()}
        curves = summary.curves(summary.EvalSet(n=some.n, groups=some.groups, cells=cells), ks)
        means = {(row["group"], row["k"]): row["mean"] for row in curves}
        if all(key in wanted and math.isclose(mean, wanted[key], abs_tol=1e-9) for key, mean in means.items()):
            return chosen
    return {}


def _outcomes(path: pathlib.Path) -> Samples | None:
    """Samples with their outcomes alone: texts of a large model are gigabytes. None where the file is no such file."""
    try:
        table = pq.read_table(path, columns=["outcome"])
        meta = json.loads(table.schema.metadata[b"ceiling"])
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException):
        return None
    return Samples(table, meta) if {"n", "problems", "groups", "prompts_sha256"} <= set(meta) else None


def _one_line(text) -> str:
    return " ".join(str(text).split())
