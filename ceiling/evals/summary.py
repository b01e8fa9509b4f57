"""Loaded evaluation samples, turned into plain rows for tables and figures.

Every function takes an `EvalSet` and returns a list of flat dicts of python str, int, float and None (never
nan), so a row can be written to JSON or CSV as it is. All numbers are recomputed from counts and labels;
intervals are over training seeds and problems (`stats.crossed_interval`), and every comparison is paired:
same seed's base, same problems. While a run is filling up an arm may have fewer seeds than the base; a
comparison uses the seeds both have, and a row's `seeds` says how many.

Groups of problems are reported apart. `EvalSet.aggregates` names unions of groups ("training mix": ["C",
"R"]) that are treated as further groups, every problem weighing the same.

    >>> cells = {("base", s): Cell([4, 0]) for s in range(3)} | {("tuned", s): Cell([8, 1]) for s in range(3)}
    >>> rows = differences(EvalSet(8, ["C", "C"], cells), "base", [1])
    >>> rows[0]["arm"], rows[0]["group"], rows[0]["mean"]
    ('tuned', 'C', 0.3125)

Shapes: S training seeds, P problems, n samples per problem, K budgets, X labels.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from ceiling.evals import diversity, verdicts
from ceiling.evals.passk import cover_at, pass_at_k, solvable_sets
from ceiling.evals.stats import bootstrap_crossing, crossed_interval

METRICS = (
    "strategy_entropy",
    "distinct_strategies",
    "distinct_correct",
    "answer_entropy",
    "process_valid_share",
    "mean_length",
)
TAUS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9)


@dataclasses.dataclass(frozen=True)
class Cell:
    """Samples of one arm and training seed. Labels: -1 = none. process: 1 valid, 0 invalid, -1 not judged."""

    count_P: np.ndarray
    strategy_Pn: np.ndarray | None = None
    answer_Pn: np.ndarray | None = None
    correct_Pn: np.ndarray | None = None
    process_Pn: np.ndarray | None = None
    length_Pn: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """All arms and seeds over the same problems: n samples each, a group per problem, cells[arm, seed]."""

    n: int
    groups: Sequence[str]
    cells: Mapping[tuple[str, int], Cell]
    strategy_names: Sequence[str] = ()
    aggregates: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not len(self.groups) or not self.cells:
            raise ValueError("EvalSet: no problems or no cells; load at least one evaluated arm")
        for (arm, seed), cell in self.cells.items():
            _check_cell(f"EvalSet: arm {arm!r} seed {seed}", cell, self.n, len(self.groups))
        for name, members in self.aggregates.items():
            unknown = sorted(set(members) - set(self.groups))
            if unknown or name in set(self.groups):
                raise ValueError(
                    f"EvalSet: aggregate {name!r} needs its own name and known groups; unknown: {unknown}"
                )

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(arm for arm, _ in self.cells))

    def seeds(self, *arms: str) -> list[int]:
        """Training seeds that all of the named arms have, in order."""
        have = [{seed for arm, seed in self.cells if arm == name} for name in arms]
        return sorted(set.intersection(*have))

    def count_SP(self, arm: str, seeds: Sequence[int]):
        return np.stack([np.asarray(self.cells[arm, seed].count_P, np.int64) for seed in seeds])

    @functools.cached_property
    def slices(self) -> dict[str, np.ndarray]:
        """Problem indices by group, then by aggregate."""
        groups_P = np.asarray(self.groups)
        names = {group: [group] for group in dict.fromkeys(self.groups)} | dict(self.aggregates)
        return {name: np.flatnonzero(np.isin(groups_P, list(members))) for name, members in names.items()}


def curves(evalset: EvalSet, ks: Sequence[int], *, level: float = 0.95) -> list[dict]:
    """pass@k per arm, group and k: {arm, group, k, mean, lo, hi, seeds}."""
    rows = []
    for arm in evalset.arms:
        seeds = evalset.seeds(arm)
        value_SPK = _curve_SPK(evalset, arm, seeds, ks)
        for group, index in evalset.slices.items():
            for j, k in enumerate(ks):
                span = _span(value_SPK[:, index, j], level, 0.0, 1.0)
                rows.append({"arm": arm, "group": group, "k": int(k), **span, "seeds": len(seeds)})
    return rows


def differences(evalset: EvalSet, base: str, ks: Sequence[int], *, level: float = 0.95) -> list[dict]:
    """pass@k(arm) - pass@k(base), paired: {arm, group, k, mean, lo, hi, seeds}."""
    rows = []
    for arm, seeds in _opponents(evalset, base):
        d_SPK = _curve_SPK(evalset, arm, seeds, ks) - _curve_SPK(evalset, base, seeds, ks)
        for group, index in evalset.slices.items():
            for j, k in enumerate(ks):
                span = _span(d_SPK[:, index, j], level, -1.0, 1.0)
                rows.append({"arm": arm, "group": group, "k": int(k), **span, "seeds": len(seeds)})
    return rows


def verdict_rows(
    evalset: EvalSet, base: str, null: str, k: int, margin: float, *, level: float = 0.95, min_hits: int = 2
) -> list[dict]:
    """One `verdicts.judge` per arm and group, flattened, over the seeds that arm, base and null share."""
    rows = []
    for arm, _ in _opponents(evalset, base):
        if arm == null:
            continue
        seeds = evalset.seeds(arm, base, null)
        for group, index in evalset.slices.items():
            row = {"arm": arm, "group": group}
            if not seeds:
                why = "no training seed with the arm, its base and the null arm"
                rows.append(
                    row | {"verdict": verdicts.UNRESOLVED, "reason": f"{verdicts.UNRESOLVED}: {why}."}
                )
                rows[-1] |= {"seeds": 0, "n": int(evalset.n), "k": int(k), "margin": float(margin)}
                continue
            counts = (evalset.count_SP(name, seeds)[:, index] for name in (base, arm, null))
            verdict = verdicts.judge(*counts, evalset.n, k=k, margin=margin, level=level, min_hits=min_hits)
            for field in dataclasses.fields(verdict):
                value = getattr(verdict, field.name)
                if dataclasses.is_dataclass(value):
                    for part, suffix in (("mean", ""), ("lo", "_lo"), ("hi", "_hi")):
                        row[field.name + suffix] = _plain(getattr(value, part))
                else:
                    row[field.name] = _plain(value)
            rows.append(row | {"margin": float(margin)})
    return rows


def null_rows(evalset: EvalSet, base: str, null: str, k: int | None = None) -> list[dict]:
    """False expansion of the null draw: {group, k, rate, expected, gained, lost, z, cells, seeds}."""
    seeds = evalset.seeds(base, null)
    rows = []
    for group, index in evalset.slices.items() if seeds else ():
        base_SP, null_SP = (evalset.count_SP(name, seeds)[:, index] for name in (base, null))
        rate = verdicts.false_expansion_rate(base_SP, null_SP, evalset.n, k)
        row = {"group": group, "k": int(k or evalset.n), "cells": int(base_SP.size), "seeds": len(seeds)}
        rows.append(row | {key: _plain(value) for key, value in dataclasses.asdict(rate).items()})
    return rows


def crossing_rows(
    evalset: EvalSet, base: str, ks: Sequence[int], *, draws: int = 2000, seed: int
) -> list[dict]:
    """Where each arm falls below the base: {arm, group, share, k, k_lo, k_median, k_hi, seeds}."""
    rows = []
    for arm, seeds in _opponents(evalset, base):
        base_SPK, arm_SPK = (_curve_SPK(evalset, name, seeds, ks) for name in (base, arm))
        for group, index in evalset.slices.items():
            found = bootstrap_crossing(base_SPK[:, index], arm_SPK[:, index], ks, draws=draws, seed=seed)
            rows.append({"arm": arm, "group": group, **dataclasses.asdict(found), "seeds": len(seeds)})
    return rows


def set_rows(evalset: EvalSet, base: str) -> list[dict]:
    """Per seed: {arm, group, seed, both, base_only, tuned_only, neither, srr, ndr, sds, nscr}."""
    rows = []
    for arm, seeds in _opponents(evalset, base):
        for seed in seeds:
            base_P, arm_P = (evalset.count_SP(name, [seed])[0] for name in (base, arm))
            for group, index in evalset.slices.items():
                sets = dataclasses.asdict(solvable_sets(base_P[index], arm_P[index]))
                rows.append({"arm": arm, "group": group, "seed": int(seed), **sets})
    return rows


def cover_rows(evalset: EvalSet, taus: Sequence[float] = TAUS) -> list[dict]:
    """Share of problems solved at a rate of at least tau: {arm, group, tau, mean, seeds}."""
    rows = []
    for arm in evalset.arms:
        count_SP = evalset.count_SP(arm, evalset.seeds(arm))
        for group, index in evalset.slices.items():
            cover_T = cover_at(evalset.n, count_SP[:, index], np.asarray(taus)).mean(axis=0)
            for tau, mean in zip(taus, cover_T, strict=True):
                rows.append(
                    {
                        "arm": arm,
                        "group": group,
                        "tau": float(tau),
                        "mean": float(mean),
                        "seeds": len(count_SP),
                    }
                )
    return rows


def diversity_rows(evalset: EvalSet, base: str, *, m: int = 8, level: float = 0.95) -> list[dict]:
    """Per arm and group: for each of METRICS the mean with _lo, _hi, and the paired _delta to the base.

    strategy_entropy, answer_entropy: nats, plug-in, over all samples that carry a label, right or wrong;
    comparable because n is the same for all arms. distinct_strategies: seen among n. distinct_correct:
    expected number of strategies among m correct samples. process_valid_share: of the correct samples whose
    process was judged. mean_length: tokens. A metric that is undefined on a problem in some seed (fewer than
    m correct samples, say) leaves that problem out; `<metric>_problems` says how many were left. An arm's own
    mean then rests on problems of its own, so compare arms by the delta, which uses only problems defined on
    both sides in every shared seed.
    """
    metrics = {key: _metrics(cell, m) for key, cell in evalset.cells.items()}
    rows = []
    for arm in evalset.arms:
        own, shared = evalset.seeds(arm), evalset.seeds(arm, base) if arm != base else []
        for group, index in evalset.slices.items():
            row = {"arm": arm, "group": group, "m": int(m), "seeds": len(own), "shared_seeds": len(shared)}
            for name in METRICS:
                value_SP = np.stack([metrics[arm, seed][name][index] for seed in own])
                row |= _defined(name, value_SP, level)
                delta_SP = np.full((1, len(index)), np.nan)
                if shared:
                    pairs = [metrics[arm, seed][name] - metrics[base, seed][name] for seed in shared]
                    delta_SP = np.stack(pairs)[:, index]
                row |= _defined(f"{name}_delta", delta_SP, level)
            rows.append(row)
    return rows


def strategy_rows(evalset: EvalSet) -> list[dict]:
    """Share of each strategy among all samples and among correct ones: {arm, group, strategy, share, ...}."""
    rows = []
    for arm in evalset.arms:
        cells = [evalset.cells[arm, seed] for seed in evalset.seeds(arm)]
        if any(cell.strategy_Pn is None or cell.correct_Pn is None for cell in cells):
            continue
        strategy_SPn = np.stack([cell.strategy_Pn for cell in cells])
        correct_SPn = np.stack([cell.correct_Pn for cell in cells]).astype(bool)
        for group, index in evalset.slices.items():
            label, right = strategy_SPn[:, index], correct_SPn[:, index]
            for x, name in enumerate(evalset.strategy_names):
                share = float(np.mean(label == x))
                among = float(np.mean(label[right] == x)) if right.any() else None
                rows.append(
                    {
                        "arm": arm,
                        "group": group,
                        "strategy": name,
                        "share": share,
                        "share_of_correct": among,
                        "seeds": len(cells),
                    }
                )
    return rows


def _curve_SPK(evalset: EvalSet, arm: str, seeds, ks):
    """pass@k of one arm by looking counts up in a table over c = 0 .. n."""
    table_CK = pass_at_k(evalset.n, np.arange(evalset.n + 1)[:, None], np.asarray(ks)[None, :])
    return table_CK[evalset.count_SP(arm, seeds)]


def _opponents(evalset: EvalSet, base: str):
    """(arm, seeds shared with the base) for every other arm that shares one."""
    if base not in evalset.arms:
        raise ValueError(f"summary: base arm {base!r} has no cells; have {evalset.arms}")
    for arm in evalset.arms:
        if arm != base and (seeds := evalset.seeds(arm, base)):
            yield arm, seeds


def _span(value_SP, level: float, low: float, high: float, prefix: str = "") -> dict:
    """Mean and limits, clipped to the range the quantity can take."""
    interval = crossed_interval(value_SP, level)
    lo, hi = (_plain(np.clip(limit, low, high)) for limit in (interval.lo, interval.hi))
    names = (prefix, f"{prefix}_lo", f"{prefix}_hi") if prefix else ("mean", "lo", "hi")
    return dict(zip(names, (interval.mean, lo, hi), strict=True))


def _defined(name: str, value_SP, level: float) -> dict:
    """_span over the problems that are defined in every seed; Nones where there is none."""
    kept_SP = value_SP[:, np.isfinite(value_SP).all(axis=0)]
    problems = {f"{name}_problems": int(kept_SP.shape[1])}
    if not kept_SP.size:
        return {name: None, f"{name}_lo": None, f"{name}_hi": None} | problems
    return _span(kept_SP, level, -np.inf, np.inf, name) | problems


def _metrics(cell: Cell, m: int) -> dict:
    """METRICS of one cell, f64[P] each; nan where undefined."""
    out = {name: np.full(len(cell.count_P), np.nan) for name in METRICS}
    if cell.strategy_Pn is not None:
        count_PX = diversity.row_counts(cell.strategy_Pn)
        out["strategy_entropy"] = diversity.label_entropy(count_PX)
        seen_P = diversity.distinct(count_PX).astype(np.float64)
        out["distinct_strategies"] = np.where(seen_P > 0, seen_P, np.nan)
        if cell.correct_Pn is not None:
            correct_PX = diversity.row_counts(cell.strategy_Pn, cell.correct_Pn)
            out["distinct_correct"] = diversity.distinct_at(correct_PX, m)
    if cell.answer_Pn is not None:
        out["answer_entropy"] = diversity.label_entropy(diversity.row_counts(cell.answer_Pn))
    if cell.process_Pn is not None and cell.correct_Pn is not None:
        process_Pn = np.asarray(cell.process_Pn)
        judged_Pn = np.asarray(cell.correct_Pn, bool) & (process_Pn >= 0)
        judged_P, valid_P = judged_Pn.sum(axis=1), (judged_Pn & (process_Pn == 1)).sum(axis=1)
        out["process_valid_share"] = np.where(judged_P > 0, valid_P / np.maximum(judged_P, 1), np.nan)
    if cell.length_Pn is not None:
        out["mean_length"] = np.asarray(cell.length_Pn, np.float64).mean(axis=1)
    return out


def _check_cell(where: str, cell: Cell, n: int, problems: int):
    count_P = np.asarray(cell.count_P)
    if count_P.shape != (problems,) or not np.issubdtype(count_P.dtype, np.integer):
        raise ValueError(f"{where}: count_P must be integers of shape ({problems},), got {count_P.shape}")
    if count_P.min() < 0 or count_P.max() > n:
        raise ValueError(f"{where}: counts must lie in 0 .. n = {n}; evaluate every arm with the same n")
    for field in dataclasses.fields(cell)[1:]:
        value = getattr(cell, field.name)
        if value is not None and np.shape(value) != (problems, n):
            raise ValueError(
                f"{where}: {field.name} must have shape ({problems}, {n}), got {np.shape(value)}"
            )
    if cell.correct_Pn is not None and not np.array_equal(np.asarray(cell.correct_Pn).sum(axis=1), count_P):
        raise ValueError(f"{where}: correct_Pn does not add up to count_P; reload both from the same records")


def _plain(value):
    """Python str, int, float or None from a scalar; nan and infinity become None."""
    if isinstance(value, str) or value is None:
        return value
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
