"""Finished stages -> the tables of a run -> report.html, results.json and CSV files.

Nothing here is stored state: every number is recomputed from the per-sample records, the ledgers and
the metrics files. Stages that are not finished are simply absent, so the same code writes the first
report after a few minutes and the last one.
"""

import dataclasses
import json
import pathlib
import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from ceiling import report, schema
from ceiling.config import digest
from ceiling.evals import diversity, summary
from ceiling.evals.evalset import DISTINCT_TOKENS
from ceiling.evals.records import Samples
from ceiling.regimes import base as regimes
from ceiling.schema import NULL
from ceiling.tasks.base import Outcome
from ceiling.version import __version__

if TYPE_CHECKING:
    import pandas

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "datasets", "ml_collections", "numpy")
_MEASURES = ("curves", "differences", "verdicts", "crossings", "sets", "cover", "sampling_gap", "diversity",
             "strategies")  # fmt: skip
_CURVE_POINTS = 120  # training curves are thinned to about this many points per metric
# Stages that are not arms but have a ledger.
_SOURCES = (("prior", "pretraining", "the base model's own training"),
            ("labels", "labels", "majority answers of a start, drawn once"),
            ("sae", "sparse autoencoder", "trained on a start's activations; no part of a budget"),
            ("teacher", "teacher's training", "the base continued on what the prior lacks"))  # fmt: skip
_NOT_METRICS = ("step", "flops", "skipped", "lr")


class Table(list[dict[str, Any]]):
    """Rows as plain dicts, and as a pandas DataFrame when asked."""

    def to_pandas(self) -> "pandas.DataFrame":
        """One row each; a column for every key that any of them has."""
        import pandas

        return pandas.DataFrame(list(self))


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run measured. docs/reading.md has the columns of every table.

    verdicts: a row per arm and group, at budget k = eval.verdict_k. curves: pass@k (mean, lo, hi) per arm, group and k.
    ledger: FLOP, tokens, sequences and seconds per arm, seed, phase and model. tables: the whole of results.json, as
    plain values; `table` gives any other list of rows. report: the page, or results.json if config.report.html is off.
    """

    verdicts: Table
    curves: Table
    ledger: Table
    tables: dict[str, Any]
    report: pathlib.Path

    def table(self, name: str) -> Table:
        """The rows under a key of results.json, such as "differences". Raises KeyError, with the known keys."""
        known = [key for key, value in self.tables.items() if isinstance(value, list)]
        if name not in known:
            raise KeyError(f"no table {name!r}; there are {', '.join(known)}")
        return Table(self.tables[name])


def write(config: dict, stages, finished, workdir: pathlib.Path, *, complete: bool) -> Result:
    """Recompute all tables from `finished` stages and write the report files into workdir."""
    tables = collect(config, stages, finished, workdir, complete=complete)
    path = report.write(tables, workdir, html=config["report"]["html"])
    return Result(*(Table(tables[name]) for name in ("verdicts", "curves", "ledger")), tables, path)


def collect(config: dict, stages, finished, workdir: pathlib.Path, *, complete: bool) -> dict:
    """The whole content of results.json; its keys are documented in docs/reading.md."""
    task = schema.load_task(config)
    gates = _json_rows(finished, workdir, "gate.json")
    failed = _failed(finished, workdir)
    tables = {
        "meta": _meta(config, stages, finished, workdir, task, failed, complete),
        "gates": gates, "budget": {"unit": "FLOP", "axis": config["budget"]["axis"],
                                   "target_flops": config["budget"]["flops"]},
        "likelihood": _json_rows(finished, workdir, "likelihood.json"),
        "rlp": _json_rows(finished, workdir, "gain.json"),
        "training": _training(finished, workdir), **_ledgers(finished, workdir),
        **{name: [] for name in _MEASURES},
        "null": {"false_expansion": []},
    }  # fmt: skip
    if found := evalset(config, task, finished, workdir):
        tables |= _measures(config, found)
    return tables


def evalset(config: dict, task, finished, workdir: pathlib.Path) -> summary.EvalSet | None:
    """The samples of every finished evaluation, if there is one, without those of seeds whose prior failed its gate."""
    cells, strategies, n = _cells(finished, workdir, _failed(finished, workdir))
    if not cells:
        return None
    return summary.EvalSet(
        n=n, groups=[p.group for p in task.evaluation()], cells=cells, strategy_names=strategies,
        aggregates={name: groups.split() for name, groups in config["aggregates"].items()},
    )  # fmt: skip


def _failed(finished, workdir: pathlib.Path) -> set[int]:
    return {stage.seed for stage in finished if stage.kind == "prior" and unfit(stage.directory(workdir))}


def unfit(prior: pathlib.Path) -> bool:
    """Whether the prior in this stage directory failed its gate: nothing that starts from it counts."""
    gate = prior / "gate.json"
    return gate.exists() and not json.loads(gate.read_text())["passed"]


def _measures(config: dict, evalset: summary.EvalSet) -> dict:
    """Everything that follows from counts and labels."""
    ks, k, margin = config["eval"]["ks"], config["eval"]["verdict_k"], config["eval"]["margin"]
    out = {"curves": summary.curves(evalset, ks), "cover": summary.cover_rows(evalset),
           "strategies": summary.strategy_rows(evalset)}  # fmt: skip
    if "base" in evalset.arms:
        out["differences"] = summary.differences(evalset, "base", ks)
        out["sets"] = summary.set_rows(evalset, "base")
        out["sampling_gap"] = summary.gap_rows(evalset, "base", k)
        out["diversity"] = summary.diversity_rows(evalset, "base")
        out["crossings"] = summary.crossing_rows(evalset, "base", [k_ for k_ in ks if k_ <= k], seed=0)
        if NULL in evalset.arms:
            out["verdicts"] = summary.verdict_rows(evalset, "base", NULL, k, margin)
            out["null"] = {"false_expansion": summary.null_rows(evalset, "base", NULL)}
    return out


def _cells(finished, workdir: pathlib.Path, failed: set[int]):
    """((arm, seed) -> Cell, strategy names, n) from the records of finished evaluations."""
    cells, names, n = {}, [], 0
    for stage in finished:
        if stage.kind != "evaluate" or stage.seed in failed:
            continue
        samples = Samples.load(stage.directory(workdir) / "records.parquet")
        n = samples.n
        local, labels = samples.labels("strategy")
        names += [label for label in labels if label and label not in names]
        shared = np.array([names.index(label) if label else -1 for label in labels] + [-1], np.int32)
        answers, _ = samples.labels("answer")
        right = samples.matrix("outcome") == Outcome.RIGHT
        has_strategy = any(labels)
        cells[stage.arm, stage.seed] = summary.Cell(
            count_P=right.sum(axis=1), correct_Pn=right, answer_Pn=answers,
            strategy_Pn=shared[local] if has_strategy else None, process_Pn=samples.matrix("process"),
            length_Pn=samples.lengths, response_Pn=samples.responses, distinct_2_P=_distinct_2(samples),
            **_episodes(samples),
        )  # fmt: skip
    return cells, names, n


def _episodes(samples: Samples) -> dict:
    """What a cell has of episodes beside the rest."""
    if "calls" not in samples.table.column_names:
        return {}
    call_PnC, document_PnC = samples.label_lists("calls"), samples.label_lists("documents")
    _, trajectory = np.unique(call_PnC.reshape(-1, call_PnC.shape[2]), axis=0, return_inverse=True)
    return {"call_PnC": call_PnC, "document_PnC": document_PnC, "trajectory_Pn": trajectory.reshape(call_PnC.shape[:2])}


def _distinct_2(samples: Samples) -> np.ndarray:
    """distinct-2 of every problem, over as many tokens for all."""
    lengths_Pn, tokens = samples.lengths, samples.table["tokens"].combine_chunks().flatten().to_numpy()
    problems = zip(np.split(tokens, np.cumsum(lengths_Pn.sum(axis=1))[:-1]), lengths_Pn, strict=True)
    return np.array([diversity.distinct_n(*own, 2, budget=DISTINCT_TOKENS) for own in problems])


def _json_rows(finished, workdir: pathlib.Path, name: str) -> list[dict]:
    """Rows of one JSON file of every finished stage that wrote it, with arm and seed."""
    rows = []
    for stage in finished:
        path = stage.directory(workdir) / name
        if path.exists():
            content = json.loads(path.read_text())
            for row in content if isinstance(content, list) else [content]:
                rows.append({"arm": stage.arm, "seed": stage.seed, **row})
    return rows


def _ledgers(finished, workdir: pathlib.Path) -> dict:
    """Ledger rows and counters of every finished stage, by arm (prior and teacher under their own name)."""
    rows, counters = [], []
    for stage in finished:
        path = stage.directory(workdir) / "ledger.json"
        if stage.kind in ("trial", "tune") or not path.exists():
            continue  # an arm's own ledger has what its trials cost
        content = json.loads(path.read_text())
        where = {"arm": stage.arm or stage.kind, "seed": stage.seed}
        rows += [{**where, **entry} for entry in content["entries"]]
        counted = {**content["counters"], "unique problems": len(content["problems"])}
        if stage.kind == "arm":
            counters += [{**where, "name": name, "value": value} for name, value in counted.items()]
    return {"ledger": rows, "counters": counters}


def _training(finished, workdir: pathlib.Path) -> list[dict]:
    """Training metrics against the ledger, thinned."""
    rows = []
    for stage in finished:
        path = stage.directory(workdir) / "metrics.jsonl"
        if stage.kind != "arm" or not path.exists():
            continue
        curve = [json.loads(line) for line in path.read_text().splitlines()]
        for point in curve[:: max(1, len(curve) // _CURVE_POINTS)]:
            rows += [
                {"arm": stage.arm, "seed": stage.seed, "flops": point["flops"], "metric": name, "value": value}
                for name, value in point.items() if name not in _NOT_METRICS
            ]  # fmt: skip
    return rows


def _meta(config, stages, finished, workdir, task, failed, complete) -> dict:
    arms = [{"name": "base", "title": "base", "regime": "none", "reads": [], "control": False,
             "description": "the pretrained prior"},
            {"name": NULL, "title": "base, drawn again", "regime": "none", "reads": [], "control": True,
             "description": "null arm: the same prior, fresh samples"}]  # fmt: skip
    for name, entry in config["arms"].items():
        arm = {"name": name, "title": entry["title"] or name, "control": entry["control"]}
        if entry["spend"]:
            arm |= {"regime": entry["regime"], "reads": list(regimes.load(entry["regime"]).reads(entry)),
                    "description": regimes.summary_line(entry["regime"])}  # fmt: skip
        else:
            arm |= {"regime": "none", "reads": [], "description": "no training: its start, steered or decoded its way"}
        arms.append(arm)
    arms += [{"name": name, "title": title, "regime": "sft", "reads": ["text"], "control": False, "source": True,
              "description": description} for name, title, description in _SOURCES]  # fmt: skip
    notes = [f"seed {s}: the prior failed its gate and is left out of every figure and verdict" for s in sorted(failed)]
    if task.guess_rate is not None:
        k = config["eval"]["verdict_k"]
        notes.append(f"guessing: a random well-formed answer is right with probability {task.guess_rate:g}, "
                     f"which alone gives pass@{k} = {1 - (1 - task.guess_rate) ** k:.4f}")  # fmt: skip
    return {
        "name": config["name"], "version": __version__, "config": config, "config_hash": digest(config),
        "device": _device(),
        "packages": {p: metadata.version(p) for p in _PACKAGES} | {"python": platform.python_version()},
        "wall_s": _stage_seconds(finished, workdir), "seeds": list(config["seeds"]), "n": config["eval"]["n"],
        "ks": list(config["eval"]["ks"]), "verdict_k": config["eval"]["verdict_k"], "margin": config["eval"]["margin"],
        "stages": {"done": len(finished), "total": sum(s.kind == "prior" or s.seed not in failed for s in stages)},
        "complete": complete, "notes": notes,
        "task": {"name": task.name, "groups": [dataclasses.asdict(g) for g in task.groups]},
        "aggregates": {name: groups.split() for name, groups in config["aggregates"].items()},
        "arms": arms, "base": "base", "null": NULL, "pairs": _pairs(config),
    }  # fmt: skip


def _pairs(config) -> list[dict]:
    """The pair of arms that the report sets side by side, if the configuration names one."""
    if not config["report"]["pair"]:
        return []
    first, second, group = config["report"]["pair"].split()
    titles = [config["arms"][name]["title"] or name for name in (first, second)]
    return [{"title": f"{titles[0]} and {titles[1]} on group {group}", "arms": [first, second], "group": group,
             "description": "the same problems, the same prior; the arms differ in their training mix"}]  # fmt: skip


def _stage_seconds(finished, workdir: pathlib.Path) -> float:
    """Seconds of work in all finished stages (not wall-clock: stages run side by side)."""
    return float(sum(json.loads((s.directory(workdir) / "stage.json").read_text())["seconds"] for s in finished))


def _device() -> str:
    """Name of the processor that this run computes on, without starting an accelerator for it."""
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        names = [line.partition(":")[2].strip() for line in lines]
        return f"{len(names)} x {names[0]}" if names else platform.machine()
    return platform.processor() or platform.machine()
