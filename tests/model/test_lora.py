"""Adapters: fresh ones change nothing, merged ones are the same function, only they are trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ceiling.model import Policy, forward, make_mesh, place, table
from ceiling.model.config import PROJECTIONS
from ceiling.model.lora import add_lora, merge_lora, trainable
from ceiling.model.sharding import param_shardings
from ceiling.rollout import generate

run = jax.jit(forward, static_argnums=1)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(1, 13, (2, 7)), jnp.int32)
SHAPE = dict(vocab_size=16, kv_heads=2, heads=4, qkv_bias=True, tied=False)


def flat(params):
    return traverse_util.flatten_dict(params, sep="/")


def test_trainable_is_everything_or_the_adapters_alone(make_model):
    config, _ = make_model()
    assert trainable(config) == table(config).keys()
    adapted = dataclasses.replace(config, lora_rank=4, lora_targets="wo w_up")
    names = ("wo_lora_a", "wo_lora_b", "w_up_lora_a", "w_up_lora_b")
    assert trainable(adapted) == {f"layers/{name}" for name in names}
    assert table(adapted).keys() - table(config).keys() == trainable(adapted)
    L, D, N, H, F, r = config.layers, config.width, config.heads, config.head_dim, config.ffn, 4
    shapes = {name: table(adapted)[f"layers/{name}"].shape for name in names}
    assert shapes == dict(zip(names, [(L, N, H, r), (L, r, D), (L, D, r), (L, r, F)], strict=True))


@pytest.mark.parametrize("scan_layers", [True, False])
def test_fresh_adapters_change_no_bit_and_keep_the_base(make_model, scan_layers):
    config, params = make_model(**SHAPE, scan_layers=scan_layers)
    adapted = dataclasses.replace(config, lora_rank=3)
    with_lora = add_lora(params, adapted, jax.random.key(1))
    assert flat(with_lora).keys() == table(adapted).keys()
    for path, leaf in flat(params).items():
        assert flat(with_lora)[path] is leaf
    for path in trainable(adapted):
        values = np.asarray(flat(with_lora)[path])
        assert np.all(values == 0) if path.endswith("_b") else values.std() == pytest.approx(
            table(adapted)[path].std, rel=0.5)  # fmt: skip
    np.testing.assert_array_equal(run(with_lora, adapted, TOKENS), run(params, config, TOKENS))
    other = add_lora(params, adapted, jax.random.key(2))
    assert not np.array_equal(other["layers"]["wq_lora_a"], with_lora["layers"]["wq_lora_a"])


@pytest.mark.parametrize("targets", [PROJECTIONS, *((name,) for name in PROJECTIONS)], ids=lambda t: "+".join(t))
def test_merged_adapters_are_the_same_function(make_model, targets):
    config, params = make_model(**SHAPE, lora_rank=3, lora_targets=targets, lora_alpha=5.0)
    merged_config, merged = merge_lora(params, config)
    assert merged_config.lora_rank == 0 and flat(merged).keys() == table(merged_config).keys()
    logits = run(params, config, TOKENS)
    np.testing.assert_allclose(run(merged, merged_config, TOKENS), logits, atol=2e-5, rtol=2e-5)
    without = {path: leaf for path, leaf in flat(params).items() if path in table(merged_config)}
    base = run(traverse_util.unflatten_dict(without, sep="/"), merged_config, TOKENS)
    assert np.abs(base - logits).max() > 1e-2, "the adapter must matter"
    changed = {p for p, leaf in flat(merged).items() if not np.array_equal(leaf, flat(params)[p])}
    assert changed == {f"layers/{name}" for name in targets}


def test_merging_multiplies_in_float32_and_keeps_the_dtype(make_model):
    config, params = make_model(**SHAPE, lora_rank=3, param_dtype="bfloat16")
    _, merged = merge_lora(params, config)
    p = {k: np.asarray(v, np.float64) for k, v in params["layers"].items()}
    product = np.einsum("lnhr,lrd->lnhd", p["wo_lora_a"], p["wo_lora_b"]) * config.lora_alpha / config.lora_rank
    expected = jnp.asarray(p["wo"] + product, jnp.float32).astype(jnp.bfloat16)
    assert merged["layers"]["wo"].dtype == jnp.bfloat16
    assert np.mean(np.asarray(merged["layers"]["wo"]) == np.asarray(expected)) > 0.99, "rounded once, at the end"


def test_merging_without_adapters_is_the_identity(make_model):
    config, params = make_model()
    again, same = merge_lora(params, config)
    assert again == config and all(a is b for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(same), strict=True))


def test_gradients_of_the_adapters_alone(make_model):
    config, params = make_model(**SHAPE, lora_rank=3)
    names = trainable(config)
    mine = {p: x for p, x in flat(params).items() if p in names}

    def loss(mine):
        return jnp.sum(jnp.tanh(forward(traverse_util.unflatten_dict(flat(params) | mine, sep="/"), config, TOKENS)))

    gradient = jax.jit(jax.grad(loss))(mine)
    assert len(gradient) == 14
    for path, g in gradient.items():
        assert all(np.abs(part).max() > 1e-6 for part in g), path


def test_adapters_live_on_the_mesh_of_their_base(make_model):
    config, params = make_model(**SHAPE, ffn=24)
    mesh = make_mesh(2, 2, 2)
    adapted = dataclasses.replace(config, lora_rank=3)
    placed = add_lora(place(params, config, mesh), adapted, jax.random.key(0))
    wanted = flat(param_shardings(adapted, mesh))
    for path, leaf in flat(placed).items():
        assert leaf.sharding.is_equivalent_to(wanted[path], leaf.ndim), path
    assert placed["layers"]["wo_lora_a"].sharding.shard_shape((2, 4, 8, 3)) == (2, 2, 8, 3)
    _, merged = merge_lora(placed, adapted)
    for path, leaf in flat(merged).items():
        assert leaf.sharding.is_equivalent_to(wanted[path], leaf.ndim), path


def test_X2_the_sampler_uses_the_adapters(make_model):
    config, params = make_model(**SHAPE, lora_rank=3)
    draw = lambda policy: generate(policy, [[1, 2, 3]], n=4, max_new_tokens=6, seed=0)  # noqa: E731
    out = draw(Policy(params, config, ()))
    merged_config, merged = merge_lora(params, config)
    same = draw(Policy(merged, merged_config, ()))
    np.testing.assert_array_equal(out.tokens, same.tokens)
    np.testing.assert_allclose(out.logprobs, same.logprobs, atol=1e-4)


def test_adding_twice_or_nothing_is_refused(make_model):
    config, params = make_model()
    with pytest.raises(ValueError, match="lora_rank=0: nothing to add"):
        add_lora(params, config, jax.random.key(0))
    adapted = dataclasses.replace(config, lora_rank=2)
    params = add_lora(params, adapted, jax.random.key(0))
    with pytest.raises(ValueError, match="hold adapters already"):
        add_lora(params, adapted, jax.random.key(0))
