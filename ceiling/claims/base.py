"""What a claim is: experiments, effects stated before they are run, and the rule that turns effects into a verdict.

A claim is one file `ceiling/claims/<id>_<name>.py` that exports `CLAIM`. Its experiments are ordinary configurations;
its tests are functions of their records. The rule, the same for every claim and fixed here:

1. A test states an effect per training seed (and problem) that the finding predicts to lie above `margin`. Its interval
   is `stats.crossed_interval` over seeds and problems, both random. A problem on which an effect is undefined in some
   seed is left out. A rate test (`Rate`) is about calls that are made over all seeds at once, such as the verdicts on
   null arms; it has no effect per seed, and its interval is Clopper and Pearson's over its cases.
2. supported: the interval lies above the margin, and still does without any one of the seeds (a rate test makes its
   calls anew from the others). contradicted: it lies below the margin, likewise. Everything else, and fewer than
   MIN_SEEDS seeds: not resolved at this scale.
3. A claim is supported if every test is (an intersection of tests needs no correction for their number), contradicted
   if any test is at level 1 - 0.05 / tests, and otherwise not resolved.

Nothing here knows what anybody expects: a test may come out either way, and its page says what would have refuted it.
"""

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping

import numpy as np

import ceiling.claims
from ceiling.config import ConfigError
from ceiling.evals import summary
from ceiling.evals.passk import pass_at_k
from ceiling.evals.stats import Interval, clopper_pearson, crossed_interval

SUPPORTED, CONTRADICTED, UNRESOLVED = "supported", "contradicted", "not resolved at this scale"
MIN_SEEDS = 4  # three are left when each is taken out in turn
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the experiments of every claim are. seeds: training seeds; flops: an arm's budget; n, k: samples per
    problem and the budget of pass@k; problems: per group; prior, teacher: pretraining steps."""

    seeds: tuple[int, ...]
    flops: float
    n: int
    k: int
    problems: int
    prior: int
    teacher: int
    workers: int = 2


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What one experiment left: its tables (results.json) and its samples.

    evalset: counts and labels of every arm and seed over the same problems; k: the scale's budget of pass@k; problems:
    these problems themselves (tasks.base.Problem), in the evalset's order; among: the seeds that all experiments of the
    claim have (None: it has one), so that effects across them pair up."""

    tables: Mapping
    evalset: object
    k: int
    problems: tuple = ()
    among: frozenset[int] | None = None

    @property
    def seeds(self) -> list[int]:
        """Seeds that every arm has: a prior that failed its gate has none."""
        own = self.evalset.seeds(*self.evalset.arms)
        return [seed for seed in own if self.among is None or seed in self.among]

    def passk(self, arm: str, k: int, groups: str) -> np.ndarray:
        """f64[S, P]: pass@k of the problems of `groups` (names in one string)."""
        table_C = pass_at_k(self.evalset.n, np.arange(self.evalset.n + 1), k)
        return table_C[self.evalset.count_SP(arm, self.seeds)[:, self.index(groups)]]

    def index(self, groups: str) -> np.ndarray:
        """Positions of the problems of `groups`."""
        return np.flatnonzero(np.isin(self.evalset.groups, groups.split()))

    def gain(self, arm: str, other: str, k: int, groups: str) -> np.ndarray:
        """f64[S, P]: pass@k of `arm` minus that of `other`, paired by seed and problem."""
        return self.passk(arm, k, groups) - self.passk(other, k, groups)

    def metric(self, name: str, arm: str, groups: str, m: int = 8) -> np.ndarray:
        """f64[S, P]: one of summary.METRICS; nan where it is undefined."""
        cells = [self.evalset.cells[arm, seed] for seed in self.seeds]
        return np.stack([summary.metrics(cell, m)[name] for cell in cells])[:, self.index(groups)]

    def share(self, arm: str, strategy: str, groups: str) -> np.ndarray:
        """f64[S]: share of a strategy among all samples of the problems of `groups`."""
        names = list(self.evalset.strategy_names)
        label = names.index(strategy) if strategy in names else len(names)  # nobody used it
        cells = [self.evalset.cells[arm, seed] for seed in self.seeds]
        return np.array([np.mean(cell.strategy_Pn[self.index(groups)] == label) for cell in cells])

    def rows(self, table: str, arm: str, **where) -> list[dict]:
        """Rows of a table of results.json of one arm, in its order."""
        return [row for row in self.tables[table] if row["arm"] == arm and all(row[k] == v for k, v in where.items())]

    def curve(self, arm: str, metric: str) -> dict[int, list[tuple[float, float]]]:
        """seed -> [(student FLOPs, value)] of a training metric."""
        return {seed: [(row["flops"], row["value"]) for row in self.rows("training", arm, seed=seed, metric=metric)]
                for seed in self.seeds}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Test:
    """effect(evidence by experiment) -> f64[S, P] or f64[S], in `unit`, predicted to lie above margin."""

    name: str
    statement: str
    effect: Callable[[Mapping[str, Evidence]], np.ndarray]
    margin: float = 0.0
    unit: str = "pass@k"

    def intervals(self, evidence: Mapping[str, Evidence]) -> Callable[[float, int | None], Interval]:
        """(level, a seed to leave out or None) -> interval of the effect. Raises Undefined."""
        effect_SP = np.asarray(self.effect(evidence), np.float64)
        effect_SP = effect_SP[:, None] if effect_SP.ndim == 1 else effect_SP
        effect_SP = effect_SP[:, np.isfinite(effect_SP).all(axis=0)]  # problems on which it is defined in every seed
        if not effect_SP.size:
            raise Undefined("it is defined on no problem in every seed")
        seeds = _seeds(evidence)

        def interval(level: float, without: int | None) -> Interval:
            kept_SP = effect_SP if without is None else np.delete(effect_SP, seeds.index(without), axis=0)
            return crossed_interval(kept_SP, level)

        return interval


@dataclasses.dataclass(frozen=True)
class Rate:
    """cases(evidence by experiment) -> bool[U], each what a rule over all seeds said of one case; the rate of True is
    predicted to lie below `limit`, so the effect is limit - rate.

    The interval is Clopper and Pearson's for U cases that are independent given the trained models and the draw they
    are held against: it says how well the rate for these is known. Of other training seeds it says nothing; for them
    the calls are made again without each one, and the verdict must stand. Treating a repeated or jackknifed total as
    one value per seed would give an interval of a width that the cases do not have (zero, where none was called)."""

    name: str
    statement: str
    cases: Callable[[Mapping[str, Evidence]], np.ndarray]
    limit: float
    margin: float = 0.0
    unit: str = "limit - rate"

    def intervals(self, evidence: Mapping[str, Evidence]) -> Callable[[float, int | None], Interval]:
        """(level, a seed to leave out or None) -> interval of limit - rate. Raises Undefined."""

        def interval(level: float, without: int | None) -> Interval:
            seeds = frozenset(_seeds(evidence)) - {without}
            kept = {name: dataclasses.replace(e, among=seeds) for name, e in evidence.items()}
            said_U = np.asarray(self.cases(kept), bool)
            if not said_U.size:
                raise Undefined("there is no case to count")
            lo, hi = clopper_pearson(int(said_U.sum()), said_U.size, level)
            rate = float(said_U.mean())
            limits = self.limit - hi, self.limit - lo
            return Interval(self.limit - rate, *limits, math.nan, math.nan, over_seeds=False, over_problems=False)

        return interval


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a test came to. fragile: seeds without which the verdict would be another; reason: why there is none."""

    test: str
    verdict: str
    interval: Interval | None
    margin: float
    seeds: int
    fragile: tuple[int, ...] = ()
    reason: str = ""
    refuted: bool = False  # contradicted at the level corrected for the number of tests


@dataclasses.dataclass(frozen=True)
class Claim:
    """finding: one sentence from the literature; sources: arXiv ids; experiments(scale) -> {name: configuration};
    groups: those that the table of arms is over; refuted_by: what would have spoken against it; tried: what else was
    tried when it did not come out. measured(evidence by experiment) -> points of a quantity as a function of another
    one, for a panel and a table of the page: {axis, series, x, y, lo, hi, experiment, group}, one panel per axis, one
    curve per series; no verdict rests on them."""

    id: str
    title: str
    finding: str
    sources: tuple[str, ...]
    experiments: Callable[[Scale], dict]
    tests: tuple[Test | Rate, ...]
    refuted_by: str
    groups: str
    tried: str = ""
    measured: Callable[[Mapping[str, Evidence]], list[dict]] | None = None


def paired(evidence: Mapping[str, Evidence]) -> dict[str, Evidence]:
    """The same evidence on the seeds that all experiments have: a prior may fail its gate in one of them alone."""
    shared = frozenset.intersection(*(frozenset(e.seeds) for e in evidence.values()))
    return {name: dataclasses.replace(e, among=shared) for name, e in evidence.items()}


class Undefined(ValueError):
    """An effect that these records cannot show; the message says why."""


def judge(test: Test | Rate, evidence: Mapping[str, Evidence], tests: int) -> Finding:
    """The verdict of one test of a claim that has so many; the rule is in the module's documentation."""
    seeds = _seeds(evidence)

    def unresolved(reason: str, interval: Interval | None = None, fragile: tuple[int, ...] = ()) -> Finding:
        return Finding(test.name, UNRESOLVED, interval, test.margin, len(seeds), fragile, reason)

    try:
        interval_of = test.intervals(evidence)
        interval = interval_of(LEVEL, None)
    except Undefined as why:
        return unresolved(str(why))
    if len(seeds) < MIN_SEEDS:
        return unresolved(f"{len(seeds)} training seeds, a verdict needs {MIN_SEEDS}", interval)
    side = _side(interval, test.margin)
    if side == UNRESOLVED:
        return unresolved("the interval has the margin in it", interval)
    without = [_side(interval_of(LEVEL, seed), test.margin) for seed in seeds]
    if fragile := tuple(seed for seed, other in zip(seeds, without, strict=True) if other != side):
        return unresolved(f"{side} with all seeds, but not without seed {fragile[0]}", interval, fragile)
    strict = _side(interval_of(1 - (1 - LEVEL) / tests, None), test.margin)
    return Finding(test.name, side, interval, test.margin, len(seeds), refuted=strict == CONTRADICTED)


def _seeds(evidence: Mapping[str, Evidence]) -> list[int]:
    return next(iter(evidence.values())).seeds


def _side(interval: Interval, margin: float) -> str:
    if math.isnan(interval.lo):
        return UNRESOLVED
    return SUPPORTED if interval.lo > margin else CONTRADICTED if interval.hi < margin else UNRESOLVED


def overall(findings: list[Finding]) -> str:
    """The verdict of a claim."""
    if any(finding.refuted for finding in findings):
        return CONTRADICTED
    return SUPPORTED if all(finding.verdict == SUPPORTED for finding in findings) else UNRESOLVED


def ids() -> list[str]:
    """Ids of the registered claims, in order."""
    return sorted(module.split("_")[0].upper() for module in _modules())


def load(id: str) -> Claim:
    """The claim of an id such as "C1"; an unknown one is refused with the known ones listed."""
    for module in _modules():
        if module.split("_")[0].upper() == id.upper():
            return importlib.import_module(f"ceiling.claims.{module}").CLAIM
    raise ConfigError(f"claim {id!r} is not registered; known: {', '.join(ids())}")


def _modules() -> list[str]:
    return [m.name for m in pkgutil.iter_modules(ceiling.claims.__path__) if m.name[0] == "c" and m.name[1].isdigit()]
