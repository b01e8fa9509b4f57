"""The null arms: the same prior, drawn again and again, called by every rule that the other claims use."""

import numpy as np

from ceiling.claims.base import Claim, Rate, Test
from ceiling.claims.lab import TRAINED, experiment, unchanged
from ceiling.evals.verdicts import EXPANDED, judge

DRAWS = 20
NAMES = [f"null{i}" for i in range(1, DRAWS + 1)]


def experiments(scale):
    arms = {name: unchanged(f"base, draw {i}", draw=i) for i, name in enumerate(NAMES, start=2)}
    return {"main": experiment(scale, arms)}


def called_expanded(evidence):
    """bool[groups * null draws]: what the verdict rule, which pools the seeds, says of each null draw on each group."""
    main = evidence["main"]
    count = {arm: main.evalset.count_SP(arm, main.seeds) for arm in ("base", "base_redraw", *NAMES)}
    return np.array([
        judge(count["base"][:, here], count[arm][:, here], count["base_redraw"][:, here], main.evalset.n,
              k=main.k, margin=0.05).verdict == EXPANDED
        for here in map(main.index, TRAINED.split() + ["X"]) for arm in NAMES
    ])  # fmt: skip


def no_change(evidence):
    """0.02 minus the absolute mean change at k of a null draw, per seed."""
    main = evidence["main"]
    changes = [main.gain(arm, "base", main.k, TRAINED).mean(axis=1) for arm in NAMES]
    return 0.02 - np.abs(np.mean(changes, axis=0))


CLAIM = Claim(
    id="C0", title="Null arms", sources=("2504.13837",), experiments=experiments, groups=TRAINED,
    finding="Drawing the same base again expands nothing: 20 null arms, called by the rule that calls the others.",
    tests=(
        Rate("false expansions", "At most 5 % of (null arm, group) cells are called expanded.", called_expanded,
             limit=0.05, unit="0.05 - share"),
        Test("no drift", "A null draw changes pass@k by less than 0.02 on average.", no_change, unit="0.02 - |change|"),
    ),
    refuted_by="More than one null cell in twenty called expanded, or a mean change of two points.",
)  # fmt: skip
