"""The null arms: the same prior, drawn again and again, called by every rule that the other claims use."""

import numpy as np

from ceiling.claims.base import Claim, Test
from ceiling.claims.lab import TRAINED, experiment, unchanged
from ceiling.evals.verdicts import EXPANDED, judge

DRAWS = 20
NAMES = [f"null{i}" for i in range(1, DRAWS + 1)]


def experiments(scale):
    arms = {name: unchanged(f"base, draw {i}", draw=i) for i, name in enumerate(NAMES, start=2)}
    return {"main": experiment(scale, arms)}


def false_expansions(evidence):
    """0.05 minus the share of null draws that the verdict rule calls expanded on a group, by group."""
    main = evidence["main"]
    count = {arm: main.evalset.count_SP(arm, main.seeds) for arm in ("base", "base_redraw", *NAMES)}
    share = []
    for group in TRAINED.split() + ["X"]:
        here = main.index(group)
        cells = [
            judge(count["base"][:, here], count[arm][:, here], count["base_redraw"][:, here], main.evalset.n,
                  k=main.k, margin=0.05).verdict == EXPANDED
            for arm in NAMES
        ]  # fmt: skip
        share.append(np.mean(cells))
    return np.full(len(main.seeds), 0.05 - np.mean(share))


def no_change(evidence):
    """0.02 minus the absolute mean change at k of a null draw, per seed."""
    main = evidence["main"]
    changes = [main.gain(arm, "base", main.k, TRAINED).mean(axis=1) for arm in NAMES]
    return 0.02 - np.abs(np.mean(changes, axis=0))


CLAIM = Claim(
    id="C0", title="Null arms", sources=("2504.13837",), experiments=experiments, groups=TRAINED,
    finding="Drawing the same base again expands nothing: 20 null arms, called by the rule that calls the others.",
    tests=(
        Test("false expansions", "At most 5 % of (null arm, group) cells are called expanded.", false_expansions,
             unit="0.05 - share"),
        Test("no drift", "A null draw changes pass@k by less than 0.02 on average.", no_change, unit="0.02 - |change|"),
    ),
    refuted_by="More than one null cell in twenty called expanded, or a mean change of two points.",
)  # fmt: skip
