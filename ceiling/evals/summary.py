"""Loaded evaluation samples, turned into plain rows for tables and figures.

Every function takes an `EvalSet` and returns a list of flat dicts of python str, int, float and None (never
nan), so a row can be written to JSON or CSV as it is. All numbers are recomputed from counts and labels;
intervals are over training seeds and problems (`stats.crossed_interval`), and every comparison is paired:
same seed's base, same problems. While a run is filling up an arm may have fewer seeds than the base; a
comparison uses the seeds both have, and a row's `seeds` says how many.

    >>> cells = {("base", s): Cell([4, 0]) for s in range(3)} | {("tuned", s): Cell([8, 1]) for s in range(3)}
    >>> rows = differences(EvalSet(8, ["C", "C"], cells), "base", [1])
    >>> rows[0]["arm"], rows[0]["group"], rows[0]["mean"]
    ('tuned', 'C', 0.3125)

Shapes: S training seeds, P problems, n samples per problem, K budgets, X labels.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ceiling.evals import diversity, verdicts
from ceiling.evals.evalset import Cell, EvalSet
from ceiling.evals.passk import cover_at, pass_at_k, solvable_sets
from ceiling.evals.stats import bootstrap_crossing, crossed_interval

METRICS = (
    "strategy_entropy",
    "distinct_strategies",
    "distinct_correct",
    "answer_entropy",
    "answer_entropy_corrected",
    "unique_answers",
    "unique_answers_equal_tokens",
    "distinct_responses",
    "distinct_2",
    "process_valid_share",
    "mean_length",
    "calls",
    "trajectory_entropy",
    "distinct_calls",
    "distinct_calls_correct",
    "distinct_documents",
    "distinct_documents_correct",
)
TAUS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9)


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
    """Per seed: {arm, group, seed, both, base_only, tuned_only, neither} and the ratios of `passk.SolvableSets`."""
    rows = []
    for arm, seeds in _opponents(evalset, base):
        for seed in seeds:
            base_P, arm_P = (evalset.count_SP(name, [seed])[0] for name in (base, arm))
            for group, index in evalset.slices.items():
                sets = dataclasses.asdict(solvable_sets(base_P[index], arm_P[index]))
                rows.append({"arm": arm, "group": group, "seed": int(seed), **sets})
    return rows


def gap_rows(evalset: EvalSet, base: str, k: int, *, level: float = 0.95) -> list[dict]:
    """Delta_SE = pass@k(base) - pass@1(arm), paired (2504.13837; 256 there): what the arm leaves to sampling; lower is
    better. {arm, group, k, delta_se, delta_se_lo, delta_se_hi, seeds}."""
    rows = []
    for arm, seeds in _opponents(evalset, base):
        gap_SP = _curve_SPK(evalset, base, seeds, [k])[..., 0] - _curve_SPK(evalset, arm, seeds, [1])[..., 0]
        for group, index in evalset.slices.items():
            span = _span(gap_SP[:, index], level, -1.0, 1.0, "delta_se")
            rows.append({"arm": arm, "group": group, "k": int(k), **span, "seeds": len(seeds)})
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
    comparable because n is the same for all arms; answer_entropy_corrected: by Miller and Madow.
    distinct_strategies, unique_answers: seen among n. unique_answers_equal_tokens: seen within as many tokens
    as the arm that wrote least has on that problem and seed. distinct_correct, distinct_responses: expected
    number of strategies, and of different token sequences, among m correct samples (their answers are one).
    distinct_2: different bigrams / bigrams of the first DISTINCT_TOKENS tokens. process_valid_share: of the
    correct samples whose process was judged. mean_length: tokens. Of episodes: calls: mean number;
    trajectory_entropy: nats, of the calls in order; distinct_calls, distinct_documents: expected different ones among
    m samples, and _correct: among m correct ones. A metric that is undefined on a problem in
    some seed (fewer than m correct samples, say) leaves that problem out; `<metric>_problems` says how many were
    left. An arm's own mean then rests on problems of its own, so compare arms by the delta, which uses only
    problems defined on both sides in every shared seed.
    """
    budgets = {seed: _least_tokens(evalset, seed) for _, seed in evalset.cells}
    values = {key: metrics(cell, m, budgets[key[1]]) for key, cell in evalset.cells.items()}
    rows = []
    for arm in evalset.arms:
        own, shared = evalset.seeds(arm), evalset.seeds(arm, base) if arm != base else []
        for group, index in evalset.slices.items():
            row = {"arm": arm, "group": group, "m": int(m), "seeds": len(own), "shared_seeds": len(shared)}
            for name in METRICS:
                value_SP = np.stack([values[arm, seed][name][index] for seed in own])
                row |= _defined(name, value_SP, level)
                delta_SP = np.full((1, len(index)), np.nan)
                if shared:
                    pairs = [values[arm, seed][name] - values[base, seed][name] for seed in shared]
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


def _least_tokens(evalset: EvalSet, seed: int):
    """Tokens that every arm of a training seed has written on each problem, int64[P]; None if no lengths are known."""
    cells = [cell for (_, at), cell in evalset.cells.items() if at == seed and cell.length_Pn is not None]
    return np.min([np.sum(cell.length_Pn, axis=1) for cell in cells], axis=0) if cells else None


def metrics(cell: Cell, m: int, budget_P=None) -> dict:
    """METRICS of one cell, f64[P] each; nan where undefined. budget_P: tokens of unique_answers_equal_tokens."""
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
        count_PX = diversity.row_counts(cell.answer_Pn)
        out["answer_entropy"] = diversity.label_entropy(count_PX)
        out["answer_entropy_corrected"] = diversity.label_entropy(count_PX, miller_madow=True)
        out["unique_answers"] = diversity.distinct(count_PX).astype(np.float64)
        if budget_P is not None and cell.length_Pn is not None:
            within_P = diversity.distinct_within(cell.answer_Pn, cell.length_Pn, budget_P)
            out["unique_answers_equal_tokens"] = within_P
    if cell.response_Pn is not None and cell.correct_Pn is not None:
        correct_PX = diversity.row_counts(cell.response_Pn, cell.correct_Pn)
        out["distinct_responses"] = diversity.distinct_at(correct_PX, m)
    if cell.distinct_2_P is not None:
        out["distinct_2"] = np.asarray(cell.distinct_2_P, np.float64)
    if cell.process_Pn is not None and cell.correct_Pn is not None:
        process_Pn = np.asarray(cell.process_Pn)
        judged_Pn = np.asarray(cell.correct_Pn, bool) & (process_Pn >= 0)
        judged_P, valid_P = judged_Pn.sum(axis=1), (judged_Pn & (process_Pn == 1)).sum(axis=1)
        out["process_valid_share"] = np.where(judged_P > 0, valid_P / np.maximum(judged_P, 1), np.nan)
    if cell.length_Pn is not None:
        out["mean_length"] = np.asarray(cell.length_Pn, np.float64).mean(axis=1)
    if cell.call_PnC is not None:
        out["calls"] = np.sum(cell.call_PnC >= 0, axis=2).mean(axis=1)
        out["trajectory_entropy"] = diversity.label_entropy(diversity.row_counts(cell.trajectory_Pn))
        for name, label_PnC in (("calls", cell.call_PnC), ("documents", cell.document_PnC)):
            every_Pn, right_Pn = np.ones(label_PnC.shape[:2], bool), cell.correct_Pn
            out[f"distinct_{name}"] = diversity.distinct_of_sets(label_PnC, every_Pn, m)
            out[f"distinct_{name}_correct"] = diversity.distinct_of_sets(label_PnC, right_Pn, m)
    return out


def _plain(value):
    """Python str, int, float or None from a scalar; nan and infinity become None."""
    if isinstance(value, str) or value is None:
        return value
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
