"""The experiment with agents that claims vary: the search task's prior, and arms at one ledger value."""

import dataclasses
import functools

import ceiling
from ceiling.claims import lab
from ceiling.claims.base import Scale
from ceiling.tasks.search.recipe import LR, MIX, MODEL, PRIOR, ROWS, TEACHER

COVERED = "C"  # what the narrow expert demonstrates
UNCOVERED = "R X W"  # what it does not, and the prior can do at times
REACHED = "C R"


def experiment(scale: Scale, arms: dict):
    """A configuration of the generated search world at a scale. An episode costs several texts of the lab, so fewer are
    drawn."""
    scale = dataclasses.replace(scale, n=min(scale.n, 128), k=min(scale.k, 64))
    config = ceiling.defaults("search", arms=arms)
    config.train.mix = MIX
    config.model.update(MODEL)
    config.prior.update({**PRIOR, "steps": scale.prior})
    config.teacher.update({**TEACHER, "steps": scale.teacher})
    return lab.sized(config, scale)


def _arm(regime: str, title: str, **settings):
    return ceiling.arm(regime, title=title, **{"lr": LR[regime], **ROWS, **settings})


grpo, sft, early = (functools.partial(_arm, regime) for regime in ("grpo", "sft", "early_experience"))
