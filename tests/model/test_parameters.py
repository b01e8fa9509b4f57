"""The parameter table and every ModelConfig field."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ceiling.model import ModelConfig, abstract, forward, init, make_mesh, parameter_count, table, token_logprobs
from ceiling.model.families import to_hf
from ceiling.model.sharding import RULES, param_shardings

BASE = ModelConfig(vocab_size=12, width=16, ffn=24, layers=2, heads=4, kv_heads=2, head_dim=8, embed_std=0.5,
                   qkv_bias=True, qk_bias_std=0.3)  # fmt: skip
FAMILY_LIKE = dict(norms="both", norm_offset=True, qk_norm="head", activation="gelu", embed_scale=True,
                   query_scale=0.2, window=3, global_every=2, local_rope_base=30.0)  # fmt: skip
CONFIGS = [
    BASE,
    dataclasses.replace(BASE, qk_norm="width", norms="post", lora_rank=3),
    dataclasses.replace(BASE, **FAMILY_LIKE),
    dataclasses.replace(BASE, tied=False, qk_norm="head"),
    dataclasses.replace(BASE, qkv_bias=False, kv_heads=4, layers=1, param_dtype="bfloat16"),
]
# Another value for every field, and what it must change. A new field without a line here fails.
# Some fields matter only beside others: the third entry.
LLAMA3 = dict(rope_scaling="llama3", rope_factor=4.0, rope_trained_tokens=8)
LOCAL = dict(window=3, global_every=2)
LORA = dict(lora_rank=4)
VARIANTS = {
    "vocab_size": (17, "shapes"), "width": (24, "shapes"), "ffn": (32, "shapes"), "layers": (3, "shapes"),
    "heads": (6, "shapes"), "kv_heads": (4, "shapes"), "head_dim": (4, "shapes"),
    "tied": (False, "shapes"), "qk_norm": ("head", "shapes"), "qkv_bias": (False, "shapes"),
    "norms": ("both", "shapes"), "steering": (True, "shapes"), "lora_rank": (2, "shapes"),
    "lora_targets": (("wq", "wo"), "shapes", LORA),
    "rope_base": (100.0, "logits"), "norm_eps": (1e-2, "logits"), "compute_dtype": ("bfloat16", "logits"),
    "norm_offset": (True, "logits"), "activation": ("gelu", "logits"), "embed_scale": (True, "logits"),
    "query_scale": (0.1, "logits"), "window": (3, "logits"), "global_every": (2, "logits", dict(window=3)),
    "local_rope_base": (30.0, "logits", LOCAL), "rope_scaling": ("linear", "logits", dict(rope_factor=4.0)),
    "rope_factor": (2.0, "logits", dict(rope_scaling="linear")), "rope_low": (0.1, "logits", LLAMA3),
    "rope_high": (1.5, "logits", LLAMA3), "rope_trained_tokens": (64, "logits", LLAMA3),
    "lora_alpha": (2.0, "logits", LORA),
    "embed_std": (0.1, "init"), "qk_bias_std": (0.7, "init"), "param_dtype": ("bfloat16", "init"),
    "scan_layers": (False, "program"), "remat": ("block", "program"),
    "attention": ("cudnn", "kernel", dict(compute_dtype="bfloat16")), "head_chunk_tokens": (3, "program"),
    "max_positions": (99, "export", dict(qkv_bias=False)),
}  # fmt: skip
TOKENS = jnp.asarray(np.random.default_rng(0).integers(1, 12, (2, 9)), jnp.int32)


@functools.partial(jax.jit, static_argnums=1)
def logits_of(params, config):
    return forward(params, config, TOKENS)


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


@pytest.mark.parametrize("config", CONFIGS)
def test_table_init_abstract_shardings_and_count_agree(config):
    rows = table(config)
    params = flat(init.eval_shape(config, jax.random.key(0)))
    shapes = flat(abstract(config))
    shardings = flat(param_shardings(config, make_mesh(2, 2, 2)))
    assert rows.keys() == params.keys() == shapes.keys() == shardings.keys()
    for path, spec in rows.items():
        assert params[path].shape == shapes[path].shape == spec.shape, path
        assert str(params[path].dtype) == str(shapes[path].dtype) == spec.dtype == config.param_dtype, path
        assert len(spec.axes) == len(spec.shape), path
        assert len(shardings[path].spec) <= len(spec.shape), path
    assert parameter_count(config) == sum(x.size for x in params.values())


def test_table_uses_only_axis_names_that_have_a_rule():
    named = {axis for config in CONFIGS for spec in table(config).values() for axis in spec.axes}
    assert named <= {name for name, _ in RULES}


def test_init_follows_the_std_of_each_row():
    config = dataclasses.replace(BASE, qk_norm="head", tied=False)
    params = flat(init(config, jax.random.key(3)))
    for path, spec in table(config).items():
        value = np.asarray(params[path], np.float64)
        if spec.std is None:
            assert np.all(value == 1), path
        elif spec.std == 0:
            assert np.all(value == 0), path
        else:
            tolerance = 5 / math.sqrt(2 * value.size)
            assert value.std() == pytest.approx(spec.std, rel=tolerance), path
            assert abs(value.mean()) < 5 * spec.std / math.sqrt(value.size), path


def test_init_noise_belongs_to_the_path_alone():
    key = jax.random.key(0)
    few = flat(init(dataclasses.replace(BASE, qkv_bias=False), key))
    many = flat(init(dataclasses.replace(BASE, tied=False, qk_norm="head"), key))
    for path, value in few.items():
        np.testing.assert_array_equal(value, many[path], err_msg=path)
    same_shape = [np.asarray(many[f"layers/{n}"]) for n in ("w_gate", "w_up")]
    assert not np.array_equal(*same_shape), "two weights share their noise"
    assert not np.array_equal(few["embed"], init(BASE, jax.random.key(1))["embed"])
    square = flat(init(dataclasses.replace(BASE, kv_heads=4), key))
    trio = [np.asarray(square[f"layers/{n}"]) for n in ("wq", "wk", "wv")]
    assert not any(np.array_equal(a, b) for a, b in ((trio[0], trio[1]), (trio[1], trio[2]), (trio[0], trio[2])))


def test_config_is_hashable_and_its_errors_name_the_field():
    assert len({BASE, dataclasses.replace(BASE), dataclasses.replace(BASE, layers=5)}) == 2
    with pytest.raises(ValueError, match=r"model\.heads=4 .* model\.kv_heads=3"):
        dataclasses.replace(BASE, kv_heads=3)
    with pytest.raises(ValueError, match=r"model\.head_dim=7"):
        dataclasses.replace(BASE, head_dim=7)
    with pytest.raises(ValueError, match=r"model\.norms='sandwich' is not known; use 'pre' \| 'post' \| 'both'"):
        dataclasses.replace(BASE, norms="sandwich")
    with pytest.raises(ValueError, match=r"model\.rope_low=4.* must be below model\.rope_high=4"):
        dataclasses.replace(BASE, rope_scaling="llama3", rope_low=4.0, rope_high=4.0)
    for targets in ("", "wq wq", "wq bq"):
        with pytest.raises(ValueError, match=rf"model\.lora_targets='{targets}' must name projections, each once"):
            dataclasses.replace(BASE, lora_rank=2, lora_targets=targets)
    assert dataclasses.replace(BASE, lora_targets="wq wv").lora_targets == ("wq", "wv")
    assert hash(dataclasses.replace(BASE, lora_targets=["wq"])) == hash(dataclasses.replace(BASE, lora_targets="wq"))
    assert dataclasses.replace(BASE, heads=6).groups == 3


def test_every_config_field_has_a_variant():
    assert set(VARIANTS) == {f.name for f in dataclasses.fields(ModelConfig)}


def _shapes(config):
    return {path: spec.shape for path, spec in table(config).items()}


def _program(config, params):
    def loss(params):
        x_MD = jnp.ones((7, config.width)) * params["final_norm"]
        logp_M, _ = token_logprobs(params, config, x_MD, jnp.zeros(7, jnp.int32))
        return jnp.sum(logp_M) + jnp.sum(forward(params, config, TOKENS))

    return jax.jit(jax.grad(loss)).lower(params).as_text()


def awake(params):
    """Fresh adapters add nothing; give them something to add."""
    return traverse_util.path_aware_map(lambda path, x: x + 0.1 if path[-1].endswith("_lora_b") else x, params)


@pytest.mark.parametrize("field", VARIANTS)
def test_every_config_field_changes_something(field):
    value, what, beside = (*VARIANTS[field], {})[:3]
    base = dataclasses.replace(BASE, **beside)
    assert value != getattr(base, field)
    other = dataclasses.replace(base, **{field: value})
    if what == "shapes":
        assert _shapes(base) != _shapes(other)
        logits = jax.eval_shape(lambda p: forward(p, other, TOKENS), abstract(other))
        assert logits.shape == (*TOKENS.shape, other.vocab_size)
        return  # that every weight of the table is used: test_every_weight_matters
    assert _shapes(base) == _shapes(other)
    params = awake(init(base, jax.random.key(0)))
    if what == "logits":
        difference = np.abs(logits_of(params, base) - logits_of(params, other)).max()
        assert difference > 1e-3
    elif what == "export":
        assert to_hf(base) != to_hf(other)
    elif what == "init":
        mine, others = flat(init(base, jax.random.key(0))), flat(init(other, jax.random.key(0)))
        same = {p for p in mine if mine[p].dtype == others[p].dtype and np.array_equal(mine[p], others[p])}
        changed = {"embed_std": {"embed"}, "qk_bias_std": {"layers/bq", "layers/bk"}, "param_dtype": set(mine)}[field]
        assert mine.keys() - same == changed
    elif what == "kernel":  # that it computes the same: test_transformer.py, by the kernel that a CPU has
        with pytest.raises(ValueError, match=r"model.attention='cudnn' needs an NVIDIA GPU.*config.model.attention="):
            forward(params, other, TOKENS)
    else:
        assert _program(base, params) != _program(other, params)


MODELS = [dict(), dict(odd=True), FAMILY_LIKE, dict(norms="post", qk_norm="width"), LORA]


@pytest.mark.parametrize("fields", MODELS, ids=str)
def test_every_weight_matters(make_model, fields):
    """A row of the table that forward does not read would have no gradient."""
    config, params = make_model(**fields)
    weights_V = jnp.linspace(-1, 1, config.vocab_size)
    loss = lambda p: jnp.sum(jnp.tanh(forward(p, config, TOKENS)) * weights_V)  # noqa: E731
    gradient = flat(jax.jit(jax.grad(loss))(params))
    assert gradient.keys() == table(config).keys()
    for path, g in gradient.items():
        layers = [g] if "/" not in path else g
        for layer, part in enumerate(layers):
            assert np.abs(part).max() > 1e-6, (path, layer)
