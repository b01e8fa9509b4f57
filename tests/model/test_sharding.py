"""Meshes: weights really are sharded, and nothing changes in the logits."""

import jax
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import AxisType

from ceiling.data.packing import WHOLE, Cells
from ceiling.model import Policy, forward, make_mesh, place, table
from ceiling.model.sharding import batch_sharding, param_shardings, replicated
from ceiling.model.transformer import hidden, unembed

SHAPE = dict(odd=True, layers=1, vocab_size=16, heads=4, kv_heads=2, ffn=24, width=16)
MESHES = [(2, 2, 2), (8, 1, 1), (1, 1, 2), (1, 8, 1)]
# Which mesh axis splits each dimension, written out by hand from the rule: width over fsdp, and heads,
# feed-forward and vocabulary over tensor.
SPLIT = {
    "embed": ("tensor", "fsdp"), "head": ("fsdp", "tensor"), "final_norm": (None,),
    "attn_norm": (None, None), "mlp_norm": (None, None), "q_norm": (None, None), "k_norm": (None, None),
    "wq": (None, "fsdp", "tensor", None), "wk": (None, "fsdp", "tensor", None), "wv": (None, "fsdp", "tensor", None),
    "wo": (None, "tensor", None, "fsdp"),
    "bq": (None, "tensor", None), "bk": (None, "tensor", None), "bv": (None, "tensor", None),
    "w_gate": (None, "fsdp", "tensor"), "w_up": (None, "fsdp", "tensor"), "w_down": (None, "tensor", "fsdp"),
}  # fmt: skip


def test_eight_devices_are_there():
    assert jax.device_count() >= 8, "tests/conftest.py asks for eight CPU devices before jax starts"


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_sharded_forward_equals_one_device_and_weights_are_split(make_model, sizes):
    config, params = make_model(**SHAPE)
    mesh = make_mesh(*sizes)
    assert mesh.size == np.prod(sizes) and set(mesh.axis_types) == {AxisType.Auto}
    tokens_BT = np.random.default_rng(0).integers(1, 16, (8, 6)).astype(np.int32)
    run = jax.jit(forward, static_argnums=1)
    expected = run(params, config, tokens_BT)
    placed = place(params, config, mesh)
    for path, leaf in traverse_util.flatten_dict(placed, sep="/").items():
        axes = SPLIT[path.removeprefix("layers/")]
        piece = tuple(n // (mesh.shape[a] if a else 1) for n, a in zip(leaf.shape, axes, strict=True))
        assert {s.data.shape for s in leaf.addressable_shards} == {piece}, path
        assert len(leaf.addressable_shards) == mesh.size
    here = jax.device_put(tokens_BT, batch_sharding(mesh))
    assert {s.data.shape for s in here.addressable_shards} == {(8 // (sizes[0] * sizes[1]), 6)}
    logits = run(placed, config, here)
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cells", [WHOLE, Cells(2, 2)], ids=["whole", "cells"])
def test_gradients_keep_the_sharding_of_their_weights(make_model, cells):
    config, params = make_model(**SHAPE)
    mesh = make_mesh(2, 2, 2)
    tokens_BT = np.random.default_rng(0).integers(1, 16, (8, 6)).astype(np.int32)
    logits = lambda p, t: unembed(p, config, hidden(p, config, t, cells=cells))  # noqa: E731
    gradient = lambda p, t: jax.grad(lambda p: (logits(p, t) ** 2).mean())(p)  # noqa: E731
    split = jax.jit(gradient, out_shardings=param_shardings(config, mesh))(
        place(params, config, mesh), jax.device_put(tokens_BT, batch_sharding(mesh))
    )
    whole = jax.jit(gradient)(params, tokens_BT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), split, whole)


@pytest.mark.parametrize(
    ("fields", "sizes", "weight"),
    [
        (dict(vocab_size=13), (1, 1, 2), "embed"),
        (dict(vocab_size=16, width=20), (1, 8, 1), "embed"),
        (dict(vocab_size=16, heads=4, kv_heads=1), (1, 1, 2), "layers/wk"),
        (dict(vocab_size=16, ffn=27), (1, 1, 2), "layers/w_gate"),
    ],
    ids=str,
)
def test_an_indivisible_dimension_is_refused_with_the_weights_name(make_model, fields, sizes, weight):
    config, params = make_model(**fields)
    with pytest.raises(ValueError, match=rf"mesh: {weight} has a dimension of \d+, not divisible .*config\.mesh"):
        place(params, config, make_mesh(*sizes))


def test_a_mesh_larger_than_the_devices_is_refused_with_both_numbers():
    n = jax.device_count()
    with pytest.raises(ValueError, match=rf"{n}\*2\*1 = {2 * n}, but jax sees {n} device"):
        make_mesh(n, 2, 1)


def test_batch_sharding_splits_the_named_axis_only():
    mesh = make_mesh(2, 2, 2)
    micro = jax.device_put(np.zeros((3, 8, 5)), batch_sharding(mesh, leading=1))
    assert {s.data.shape for s in micro.addressable_shards} == {(3, 2, 5)}
    everywhere = jax.device_put(np.zeros((3, 8)), replicated(mesh))
    assert {s.data.shape for s in everywhere.addressable_shards} == {(3, 8)}


def test_policy_knows_its_mesh_and_keeps_config_static(make_model):
    config, params = make_model(**SHAPE)
    mesh = make_mesh(2, 2, 2)
    assert Policy(params, config, (1,)).mesh is None
    policy = Policy(place(params, config, mesh), config, (1,))
    assert policy.mesh == mesh
    assert len(jax.tree.leaves(policy)) == len(table(config)), "only the weights are traced"
