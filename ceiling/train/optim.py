"""The optimiser and its schedule, the same for every regime.

The learning rate is not a function of the step but of the share of the budget spent: arms with
cheaper steps take more of them, and all follow the same schedule over the same ledger axis.
"""

import math

import jax
import jax.numpy as jnp
import optax

from ceiling.config import Section, number, text

CONFIG = Section(
    lr=number(1e-3, low=0, high=10, doc="peak learning rate"),
    schedule=text("cosine", choices=("constant", "linear", "cosine"), doc="over the share of the budget"),
    warmup=number(0.03, low=0, high=1, doc="share of the budget spent warming up"),
    final_lr=number(0.1, low=0, high=1, doc="learning rate at the end, as a share of the peak"),
    b1=number(0.9, low=0, high=1),
    b2=number(0.98, low=0, high=1),
    weight_decay=number(0.01, low=0),
    clip_norm=number(1.0, low=0, doc="global gradient norm"),
)


def make(config) -> optax.GradientTransformationExtraArgs:
    """AdamW without its learning rate, which `train.step` applies: updates are directions. `update` is also given the
    global norm of the gradients, `norm=`, which the step reports."""
    return optax.chain(
        _clip(config["clip_norm"]),
        optax.scale_by_adam(b1=config["b1"], b2=config["b2"]),
        optax.add_decayed_weights(config["weight_decay"], mask=_decayed),
    )


def _clip(limit: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm` for a step that knows the norm, by one factor that is fused into what reads the
    gradients; optax divides every element, in every kernel that XLA makes of them."""

    def update(grads, state, params=None, *, norm):
        factor = jnp.where(norm > limit, limit / norm, 1.0)
        return jax.tree.map(lambda g: g * factor, grads), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def learning_rate(config, progress: float) -> float:
    """Learning rate when `progress` (0..1) of the budget is spent."""
    warmup = config["warmup"]
    if progress < warmup:
        return config["lr"] * (progress + 1e-3) / (warmup + 1e-3)
    t = min(1.0, (progress - warmup) / max(1e-9, 1 - warmup))
    shape = {"constant": 1.0, "linear": 1 - t, "cosine": 0.5 * (1 + math.cos(math.pi * t))}
    floor = config["final_lr"] if config["schedule"] != "constant" else 0.0
    return config["lr"] * (floor + (1 - floor) * shape[config["schedule"]])


def _decayed(params):
    """Matrices decay; norm scales, biases and steering vectors do not: by name, not by rank (rows are stacked)."""
    spared = lambda name: name.endswith("norm") or name.startswith("b") or name == "steer"  # noqa: E731
    return {name: _decayed(leaf) if isinstance(leaf, dict) else not spared(name) for name, leaf in params.items()}
