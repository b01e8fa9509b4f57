"""A small lab whose verifier is lenient enough for an untrained model, and one place that makes trainers."""

import types

import jax
import numpy as np
import pytest

import ceiling
from ceiling.model import config as model_config
from ceiling.model.policy import Policy
from ceiling.model.sharding import make_mesh, place
from ceiling.regimes.base import load
from ceiling.tasks import base
from ceiling.tasks.base import Outcome, Verdict
from ceiling.train.loop import Budget, Trainer


def fresh(model, seed):
    """Random weights from NumPy: jax's own initialiser costs seconds of compilation."""
    rng = np.random.default_rng(seed)
    draw = lambda row: np.ones(row.shape) if row.std is None else rng.normal(0, row.std, row.shape)  # noqa: E731
    rows = model_config.table(model).items()
    return model_config.unflatten({name: draw(row).astype(np.float32) for name, row in rows})


@pytest.fixture(scope="session")
def lab():
    config = ceiling.defaults("lab").task
    config.update(evaluation_per_group=2, training_per_group=64, gate_problems=2)
    task = base.load(config.to_dict(), {"path": ""})

    def parity(problem, response):
        """An untrained model is never right in the lab; by the parity of its first character it sometimes is."""
        right = bool(response) and ord(response[0]) % 2 == 0
        return Verdict(Outcome.RIGHT if right else Outcome.WRONG, response[:1], float(right))

    task.verify = parity
    model = model_config.ModelConfig(
        vocab_size=task.tokenizer.vocab_size, width=16, ffn=32, layers=1, heads=2, kv_heads=1, head_dim=8, tied=False,
        embed_std=1.0, scan_layers=False,
    )  # fmt: skip
    weights = fresh(model, 0)

    def trainer(regime, budget, *, seed=1, mesh=None, task=task, models=None, problems=None, **overrides) -> Trainer:
        name = regime if isinstance(regime, str) else regime.name
        overrides = {"prompts_per_step": 4, "samples_per_prompt": 2, "pool": 32, "mix": {"C": 1.0}, **overrides}
        mesh = mesh or make_mesh()
        start = place(jax.tree.map(np.array, weights), model, mesh)
        record = load(name) if isinstance(regime, str) else regime
        return Trainer(record, ceiling.arm(name, **overrides).to_dict(), Policy(start, model, ()), task,
                       models=models or {}, seed=seed, budget=budget, mesh=mesh, problems=problems,
                       corpus=lambda at, n: task.corpus("prior", 1000 + at, n) if n else [])  # fmt: skip

    return types.SimpleNamespace(task=task, model=model, weights=weights, trainer=trainer, Budget=Budget, fresh=fresh)
