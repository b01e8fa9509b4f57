"""A stage's policy as a Hugging Face directory: the same function, its tokenizer, and refusals in one line."""

import dataclasses
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ceiling import schema
from ceiling.config import ConfigError
from ceiling.data import tokenizer_file
from ceiling.export import export
from ceiling.model import hf
from ceiling.model.lora import add_lora
from ceiling.model.steering import with_vectors
from ceiling.model.transformer import forward
from ceiling.train.checkpoint import save_params

ROOT = pathlib.Path(__file__).parents[1]
TOKENS = np.arange(24, dtype=np.int32).reshape(2, 12)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("make_model", ROOT / "scripts" / "make_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path_factory.mktemp("prior") / "model"
    sizes = dict(vocab_size=300, width=16, ffn=24, layers=2, heads=2, kv_heads=1, head_dim=8)
    module.make(path, family="qwen3", text=None, seed=0, dtype="float32", **sizes)
    return path


def make_stage(path, model: dict, **settings):
    path.mkdir()
    section = {**schema.MODEL.defaults().to_dict(), **model}
    mesh = {"data": 1, "fsdp": 8, "tensor": 1}
    (path / "stage.json").write_text(json.dumps({"settings": {"model": section, "mesh": mesh, **settings}}))
    return path


@pytest.fixture
def adapted(checkpoint, tmp_path):
    """A stage of an arm with adapters, none of them zero; (directory, logits of its policy)."""
    base, params = hf.load(checkpoint)
    config = dataclasses.replace(base, lora_rank=2, lora_alpha=8.0, lora_targets=("wq", "w_down"))
    params = add_lora(params, config, jax.random.key(1))
    layers = params["layers"]
    for name in ("wq_lora_b", "w_down_lora_b"):
        layers[name] = 0.3 * jax.random.normal(jax.random.key(2), layers[name].shape)
    stage = make_stage(tmp_path / "stage", {"path": str(checkpoint)})
    save_params(stage / "params", params)
    (stage / "policy.json").write_text(json.dumps(
        {"model": {"lora_rank": 2, "lora_alpha": 8.0, "lora_targets": ["wq", "w_down"]}}))  # fmt: skip
    return stage, forward(params, config, TOKENS)


def test_adapters_are_merged_and_the_function_is_the_same(adapted, checkpoint, tmp_path):
    stage, logits = adapted
    export(stage, tmp_path / "out")
    config, params = hf.load(tmp_path / "out")
    assert config.lora_rank == 0
    np.testing.assert_allclose(forward(params, config, TOKENS), logits, atol=1e-5)
    base = forward(hf.load(checkpoint)[1], config, TOKENS)
    assert np.abs(base - logits).max() > 1e-2, "adapters that change nothing would pass unmerged"


def test_the_tokenizer_and_its_end_tokens_come_along(adapted, checkpoint, tmp_path):
    export(adapted[0], tmp_path / "out")
    ours, theirs = (tokenizer_file.load(path) for path in (tmp_path / "out", checkpoint))
    assert ours.identity == theirs.identity
    assert hf.stop_ids(tmp_path / "out") == hf.stop_ids(checkpoint)


def test_dtype_rounds_every_weight_once(adapted, tmp_path):
    export(adapted[0], tmp_path / "full")
    export(adapted[0], tmp_path / "half", "bfloat16")
    config, half = hf.load(tmp_path / "half")
    assert config.param_dtype == "bfloat16"
    full = hf.load(tmp_path / "full")[1]
    for a, b in zip(jax.tree.leaves(full), jax.tree.leaves(half), strict=True):
        np.testing.assert_array_equal(a.astype(jnp.bfloat16), b)


def test_a_prior_is_the_checkpoint_it_points_at(checkpoint, tmp_path):
    stage = make_stage(tmp_path / "prior", {"path": str(checkpoint)})
    (stage / "checkpoint.json").write_text(json.dumps({"path": str(checkpoint)}))
    export(stage, tmp_path / "out")
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "out" / file).read_bytes() == (checkpoint / file).read_bytes(), file


def test_a_model_from_scratch_is_exported_without_a_tokenizer(make_model, tmp_path):
    import ceiling

    task = ceiling.defaults("lab").task.to_dict()
    vocab_size = schema.load_task({"task": task, "data": {"path": ""}, "model": {"path": ""}}).tokenizer.vocab_size
    sizes = dict(width=16, ffn=24, layers=1, heads=2, kv_heads=1, head_dim=8, qkv_bias=True, tied=False)
    config, params = make_model(vocab_size=vocab_size, **sizes)
    stage = make_stage(tmp_path / "stage", sizes, task=task, data={"path": ""})
    save_params(stage / "params", params)
    export(stage, tmp_path / "out")
    loaded, weights = hf.load(tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    np.testing.assert_array_equal(forward(weights, loaded, TOKENS % 8), forward(params, config, TOKENS % 8))


def test_a_stage_that_points_at_another_has_its_tokenizer(adapted, checkpoint, tmp_path):
    """An arm that only decodes its own way: its weights and its end tokens are its start's."""
    start, logits = adapted
    stage = make_stage(tmp_path / "decoded", {"path": str(checkpoint)})
    (stage / "checkpoint.json").write_text(json.dumps({"stage": "../stage"}))
    export(stage, tmp_path / "out")
    config, params = hf.load(tmp_path / "out")
    np.testing.assert_allclose(forward(params, config, TOKENS), logits, atol=1e-5)
    assert (tmp_path / "out" / "tokenizer.json").exists() and start.name == "stage"


def test_a_steered_policy_has_no_place_in_the_layout(checkpoint, tmp_path):
    base, params = hf.load(checkpoint)
    steered = dataclasses.replace(base, steering=True)
    stage = make_stage(tmp_path / "steered", {"path": str(checkpoint)})
    save_params(stage / "params", with_vectors(params, steered, np.ones((base.layers, base.width))))
    (stage / "policy.json").write_text(json.dumps({"model": {"steering": True}}))
    refused("its policy is steered, and the Hugging Face layout has no place for vectors", stage, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def refused(message, *arguments):
    with pytest.raises((ConfigError, ValueError), match=message) as error:
        export(*arguments)
    assert "\n" not in str(error.value)


def test_refusals(adapted, checkpoint, tmp_path):
    stage, _ = adapted
    refused("no stage.json there; name a directory of a run", tmp_path, tmp_path / "out")
    refused("holds no weights; name a prior", make_stage(tmp_path / "evaluate", {}), tmp_path / "out")
    refused("holds weights already", stage, checkpoint)
    (stage / "stage.json").write_text("{}")
    refused("stage.json: damaged", stage, tmp_path / "out")
    moved = make_stage(tmp_path / "moved", {"path": str(tmp_path / "gone")})
    (moved / "params").mkdir()
    refused("no config.json there; download the checkpoint first", moved, tmp_path / "out")
    assert not (tmp_path / "out").exists()
