"""ceiling: does reward training take a language model past what its pretraining made possible?

Trainers for SFT, distillation, GRPO and RLP on one model definition, one compute ledger, one sampler,
one evaluator, and verdicts with intervals.

    import ceiling
    result = ceiling.run(config, "runs/mine")             # resumable; result.verdicts, .curves, .ledger
    samples = ceiling.evaluate(policy, task, n=64, seed=1)   # one record per sample
    table = ceiling.sweep(config, points, "runs/rates").table   # a run per point; resumable
    ceiling.compare(["runs/a", "runs/b"]).write("runs/compare.html")   # runs side by side
"""

import importlib

from ceiling.version import __version__

_WHERE = {
    "run": "ceiling.experiment", "defaults": "ceiling.schema", "arm": "ceiling.schema",
    "validate": "ceiling.schema", "evaluate": "ceiling.evals.sample", "Policy": "ceiling.model.policy",
    "ConfigError": "ceiling.config", "sweep": "ceiling.sweeps.run",
    "compare": "ceiling.comparison",
}  # fmt: skip
_ROOMS = ("config", "data", "evals", "ledger", "model", "regimes", "report", "rollout", "tasks", "train")

__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str):
    """Public names are loaded on first use: `import ceiling` stays fast and does not start jax."""
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"ceiling.{name}")
    raise AttributeError(f"module 'ceiling' has no attribute {name!r}")
