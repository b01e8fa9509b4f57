"""Adapters and steering vectors are a setting of any regime: they alone change and hold optimiser state; adapters are
exported merged."""

import dataclasses
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ceiling.regimes
from ceiling.data.packing import stack
from ceiling.model import steering
from ceiling.model.lora import add_lora, merge_lora, trainable
from ceiling.model.policy import Policy
from ceiling.model.sequences import Forward
from ceiling.model.transformer import forward
from ceiling.regimes.base import load
from ceiling.train import optim
from ceiling.train.step import init_state, join, make_step, split

REGIMES = sorted(m.name for m in pkgutil.iter_modules(ceiling.regimes.__path__) if m.name != "base")


def flat(tree):
    return {"/".join(str(k.key) for k in path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def adapted(toy):
    model = dataclasses.replace(toy.model, lora_rank=2, lora_targets=("wq", "w_down"))
    return model, add_lora(jax.tree.map(jnp.array, toy.params), model, jax.random.key(0))


def steered(toy):
    model = dataclasses.replace(toy.model, steering=True)
    vectors_LD = jnp.zeros((model.layers, model.width))
    return model, steering.with_vectors(jax.tree.map(jnp.array, toy.params), model, vectors_LD)


@pytest.mark.parametrize("start", [adapted, steered])
@pytest.mark.parametrize("name", REGIMES)
def test_BO3_a_step_changes_the_adapters_and_nothing_else(name, start, toy):
    regime, cfg = load(name), toy.arm(name)
    model, params = start(toy)
    before, mine = flat(params), trainable(model)
    if start is steered:
        assert mine == {"layers/steer"}
    _, examples = toy.gather(regime, cfg, toy.task, toy.model, toy.params, toy.models)
    batch = stack([toy.batch_of(examples)])
    optimiser, after = optim.make(cfg), regime.after_update
    step = make_step(
        lambda p, b, f: regime.loss(p, b, f, Forward(model), cfg), optimiser,
        after and (lambda aux, p: after(aux, p, cfg)), mine,
    )  # fmt: skip
    aux = regime.init_aux(params, cfg) if regime.init_aux else None
    state = init_state(params, optimiser, aux, mine)
    held = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert held == 2 * sum(before[path].size for path in mine), "two moments of the adapters and of nothing else"
    frozen = {n: Policy(toy.models[n], toy.model, ()) for n in regime.frozen(cfg)}
    for _ in range(2):  # B starts at 0, so A has a gradient from the second step on
        state, metrics = step(state, batch, frozen, jnp.float32(1e-2))
    assert np.isfinite(float(metrics["loss"])) and float(metrics["skipped"]) == 0
    for path, leaf in flat(state.params).items():
        assert np.array_equal(leaf, before[path]) == (path not in mine), path


def test_merged_adapters_compute_the_same_function(toy):
    model = dataclasses.replace(toy.model, lora_rank=3, lora_targets=("wv", "wo"))
    params = add_lora(jax.tree.map(jnp.array, toy.params), model, jax.random.key(1))
    noise = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * noise.normal(size=x.shape).astype(np.float32), params)
    tokens = noise.integers(1, 20, (2, 7))
    plain, merged = merge_lora(params, model)
    assert dataclasses.replace(plain, lora_targets=toy.model.lora_targets) == toy.model
    np.testing.assert_allclose(forward(merged, plain, tokens), forward(params, model, tokens), atol=2e-5)


def test_split_and_join_are_inverse(toy):
    whole = flat(toy.params)
    for chosen in (None, frozenset(), frozenset(["layers/wq", "embed"])):
        mine, rest = split(toy.params, chosen)
        assert flat(mine).keys() == (whole.keys() if chosen is None else chosen)
        assert flat(join(mine, rest)).keys() == whole.keys()
