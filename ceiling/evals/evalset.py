"""Evaluation samples of all arms and training seeds over the same problems: what `summary` makes its rows from.

While a run is filling up an arm may have fewer seeds than the base. Groups of problems are reported apart;
`EvalSet.aggregates` names unions of groups ("training mix": ["C", "R"]) that are treated as further groups, every
problem weighing the same.

Shapes: S training seeds, P problems, n samples per problem.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

DISTINCT_TOKENS = 512  # of a problem's samples, over which distinct-2 is taken


@dataclasses.dataclass(frozen=True)
class Cell:
    """Samples of one arm and training seed. Labels: -1 = none. process: 1 valid, 0 invalid, -1 not judged. response:
    equal for equal token sequences on one problem. distinct_2: different bigrams / bigrams among the first
    DISTINCT_TOKENS tokens of a problem's samples, nan where they have fewer. Of episodes: call and document, the calls
    of a sample and the documents that they reached, in order, then -1; trajectory: equal for equal calls in order."""

    count_P: np.ndarray
    strategy_Pn: np.ndarray | None = None
    answer_Pn: np.ndarray | None = None
    correct_Pn: np.ndarray | None = None
    process_Pn: np.ndarray | None = None
    length_Pn: np.ndarray | None = None
    response_Pn: np.ndarray | None = None
    distinct_2_P: np.ndarray | None = None
    trajectory_Pn: np.ndarray | None = None
    call_PnC: np.ndarray | None = None
    document_PnC: np.ndarray | None = None


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
        """Names of the arms that have a cell, in the order of the cells."""
        return list(dict.fromkeys(arm for arm, _ in self.cells))

    def seeds(self, *arms: str) -> list[int]:
        """Training seeds that all of the named arms have, in order."""
        have = [{seed for arm, seed in self.cells if arm == name} for name in arms]
        return sorted(set.intersection(*have))

    def count_SP(self, arm: str, seeds: Sequence[int]):
        """Right samples, int64[S, P]."""
        return np.stack([np.asarray(self.cells[arm, seed].count_P, np.int64) for seed in seeds])

    @functools.cached_property
    def slices(self) -> dict[str, np.ndarray]:
        """Problem indices by group, then by aggregate."""
        groups_P = np.asarray(self.groups)
        names = {group: [group] for group in dict.fromkeys(self.groups)} | dict(self.aggregates)
        return {name: np.flatnonzero(np.isin(groups_P, list(members))) for name, members in names.items()}


def _check_cell(where: str, cell: Cell, n: int, problems: int):
    count_P = np.asarray(cell.count_P)
    if count_P.shape != (problems,) or not np.issubdtype(count_P.dtype, np.integer):
        raise ValueError(f"{where}: count_P must be integers of shape ({problems},), got {count_P.shape}")
    if count_P.min() < 0 or count_P.max() > n:
        raise ValueError(f"{where}: counts must lie in 0 .. n = {n}; evaluate every arm with the same n")
    for field in dataclasses.fields(cell)[1:]:
        value, shape = getattr(cell, field.name), (problems, n)[: 1 if field.name.endswith("_P") else 2]
        own = np.shape(value)[:2] if field.name.endswith("_PnC") else np.shape(value)
        if value is not None and own != shape:
            raise ValueError(f"{where}: {field.name} must have shape {shape}, got {np.shape(value)}")
    if cell.correct_Pn is not None and not np.array_equal(np.asarray(cell.correct_Pn).sum(axis=1), count_P):
        raise ValueError(f"{where}: correct_Pn does not add up to count_P; reload both from the same records")
