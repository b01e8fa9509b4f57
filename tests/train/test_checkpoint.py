"""Parameters on disk: bit-exact, refused with both values when they differ (R6)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ceiling.model import make_mesh
from ceiling.model.sharding import param_shardings
from ceiling.train.checkpoint import load_params, save_params

SHAPE = dict(odd=True, vocab_size=16, heads=4, kv_heads=2)


@pytest.fixture(scope="module")
def saved(make_model, tmp_path_factory):
    config, params = make_model(**SHAPE)
    path = tmp_path_factory.mktemp("checkpoint") / "params"
    save_params(path, params)
    return path, config, params


def equal_bits(a, b):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8))


def test_save_and_load_are_bit_exact(saved):
    path, config, params = saved
    loaded = load_params(path, config, make_mesh())
    jax.tree.map(equal_bits, loaded, params)


def test_odd_values_and_bfloat16_survive(make_model, tmp_path):
    config, params = make_model(param_dtype="bfloat16")
    odd = jnp.array([jnp.nan, jnp.inf, -0.0, 1e-30], jnp.bfloat16)
    params = {**params, "final_norm": params["final_norm"].at[:4].set(odd)}
    save_params(tmp_path / "p", params)
    jax.tree.map(equal_bits, load_params(tmp_path / "p", config, make_mesh()), params)


def test_load_onto_eight_devices_is_sharded_and_equal(saved):
    path, config, params = saved
    mesh = make_mesh(2, 2, 2)
    loaded = load_params(path, config, mesh)
    jax.tree.map(equal_bits, loaded, params)
    jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(f"{x.sharding}, wanted {s}"),
                 loaded, param_shardings(config, mesh))  # fmt: skip
    wq = loaded["layers"]["wq"]
    assert {s.data.shape for s in wq.addressable_shards} == {(2, wq.shape[1] // 2, wq.shape[2] // 2, wq.shape[3])}


def test_saved_from_eight_devices_loads_on_one(saved, tmp_path):
    path, config, params = saved
    save_params(tmp_path / "p", load_params(path, config, make_mesh(2, 2, 2)))
    jax.tree.map(equal_bits, load_params(tmp_path / "p", config, make_mesh()), params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(param_dtype="bfloat16"), r"embed is .*float32.* on disk, the config wants .*bfloat16"),
        (dict(ffn=32), r"w_\w+ is .*24.* on disk, the config wants .*32"),
        (dict(layers=3), r"layers/\w+ is \(\(2, .* on disk, the config wants \(\(3, "),
        (dict(tied=True), r"which weights exist: head"),
        (dict(qk_norm=""), r"which weights exist: layers/k_norm, layers/q_norm"),
    ],
    ids=str,
)
def test_R6_another_dtype_shape_or_set_of_weights_is_refused(saved, change, message):
    path, config, _ = saved
    with pytest.raises(ValueError, match=message):
        load_params(path, dataclasses.replace(config, **change), make_mesh())
