"""The experiment with agents that configs/agents.py runs and claims vary: arms from one prior, at one budget, or at one
number of updates where a method is defined so."""

import dataclasses
import functools

import ceiling
from ceiling.claims import lab
from ceiling.claims.base import Scale
from ceiling.tasks.search.recipe import LR, MIX, MODEL, PRIOR, ROWS, TEACHER, THOUGHTS

COVERED = "C"  # what the narrow expert demonstrates
UNCOVERED = "R W"  # what it does not, and the prior seldom does
# Episodes are longer than the lab's texts: shares of its numbers of problems, samples and pretraining steps.
LESS = {"problems": 2 / 3, "n": 1 / 8, "k": 1 / 8, "prior": 2 / 3, "teacher": 3 / 7}
UPDATES = 36  # of the arms at equal update counts (EE-3), on problems that the expert knows
FIRST = 12  # of these, on next states


def _arm(regime: str, title: str, **settings):
    return ceiling.arm(regime, title=title, **{"lr": LR[regime], **ROWS, **settings})


_grpo, _sft = (functools.partial(_arm, regime) for regime in ("grpo", "sft"))
_KNOWN = dict(prompts_per_step=16, pool=512, mix={COVERED: 1.0}, source="expert")
_imitate, _early = (functools.partial(_arm, regime, **_KNOWN) for regime in ("sft", "early_experience"))
ARMS = {
    "grpo": _grpo("GRPO"),
    "sft": _sft("SFT, diverse demonstrations"),
    "expert": _sft("SFT, narrow expert", source="expert"),
    "distill": _arm("distill", "distillation"),
    "rlp": _arm("rlp", "RLP", **THOUGHTS),
    "half": _sft("SFT, narrow expert, half", source="expert", spend=0.5),
    "half_grpo": _grpo("that, then GRPO", start="half", spend=0.5),
    # At equal update counts, whatever they cost.
    "il": _imitate("imitation", steps=UPDATES),
    "pause": _imitate("imitation, first part", steps=FIRST, control=True),
    "pause_il": _imitate("imitation in two parts", start="pause", steps=UPDATES - FIRST),
    "world": _early("next states", kind="world_model", alternatives=8, source="none", steps=FIRST, control=True),
    "world_il": _imitate("next states, then imitation", start="world", steps=UPDATES - FIRST),
    "reflection": _early("self-reflection", kind="reflection", alternatives=4, steps=UPDATES),
}


def experiment(scale: Scale, names: str):
    """A configuration of the generated search world at a scale, with these of the ARMS."""
    if scale.prior >= lab.SMOKE:
        scale = dataclasses.replace(scale, **{key: round(share * getattr(scale, key)) for key, share in LESS.items()})
    config = ceiling.defaults("search", arms={name: ARMS[name].copy_and_resolve_references() for name in names.split()})
    config.train.mix = MIX
    config.model.update(MODEL)
    config.prior.update({**PRIOR, "steps": scale.prior})
    config.teacher.update({**TEACHER, "steps": scale.teacher})
    return lab.sized(config, scale)
