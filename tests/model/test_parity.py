"""Both directions against transformers itself (N6); skipped where torch is missing. test_hf.py keeps the first
direction in the ordinary run through the committed goldens."""

import dataclasses
import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from ceiling.model import ModelConfig, Policy, forward, hf
from ceiling.model.config import table, unflatten
from ceiling.rollout import generate

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: requirements-parity.txt")
pytest.importorskip("transformers", reason="parity needs torch and transformers: requirements-parity.txt")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

ROOT = pathlib.Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
NAMES = sorted(p.name for p in GOLDENS.iterdir())
run = jax.jit(forward, static_argnums=1)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_goldens", ROOT / "scripts" / "make_goldens.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_N6_the_script_recreates_the_committed_goldens(script, tmp_path):
    script.write(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == NAMES
    for name in NAMES:
        new, old = tmp_path / name, GOLDENS / name
        for key, value in load_file(old / "model.safetensors").items():
            np.testing.assert_array_equal(load_file(new / "model.safetensors")[key], value, err_msg=f"{name} {key}")
        configs = [json.loads((folder / "config.json").read_text()) for folder in (new, old)]
        assert all(config.pop("transformers_version") for config in configs) and configs[0] == configs[1]
        with np.load(new / "expected.npz") as one, np.load(old / "expected.npz") as two:
            assert one.files == two.files
            for key in two.files:
                np.testing.assert_allclose(one[key], two[key], atol=1e-5, err_msg=f"{name} {key}")


def our_own(name: str, **changes) -> tuple[ModelConfig, dict]:
    """Weights that never were in torch, in the architecture of a golden."""
    config = dataclasses.replace(hf.read_config(GOLDENS / name), **changes)
    rng = np.random.default_rng(5)

    def draw(spec):
        center, std = (0.0 if config.norm_offset else 1.0, 0.3) if spec.axes[-1] == "norm" else (0.0, 0.25)
        return (center + std * rng.normal(size=spec.shape)).astype(spec.dtype)

    return config, unflatten({path: jax.numpy.asarray(draw(spec)) for path, spec in table(config).items()})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_N6_transformers_opens_what_we_export_and_agrees(script, name, tied, tmp_path):
    config, params = our_own(name, tied=tied)
    hf.save(tmp_path, config, params, shard_bytes=30_000)
    expected = script.check(tmp_path)
    for side in ("left", "right", "packed"):
        mask_BT = expected["packed_segments"] if side == "packed" else expected[f"{side}_mask"]
        logits = run(params, config, expected[f"{side}_tokens"], segments_BT=mask_BT)[mask_BT > 0]
        assert np.std(expected[f"{side}_logits"]) > 0.3
        assert np.abs(logits - expected[f"{side}_logits"]).max() < 1e-4, side
    out = generate(Policy(params, config, ()), [expected["prompt"]], n=1, max_new_tokens=len(expected["greedy"]),
                   temperature=0.0, seed=0)  # fmt: skip
    np.testing.assert_array_equal(out.tokens[0, 0], expected["greedy"])


@pytest.mark.parametrize("name", NAMES)
def test_N6_bfloat16_is_as_near_as_bfloat16_allows(script, name, tmp_path):
    """transformers in bfloat16 and we in bfloat16 differ by no more than either differs from float32."""
    config, params = our_own(name)
    hf.save(tmp_path / "exact", config, params)
    half_config, half = hf.load(tmp_path / "exact", dtype="bfloat16")
    hf.save(tmp_path / "half", half_config, half)
    tokens = np.concatenate(script.sequences(config.vocab_size))[None]
    logits = {}
    for kind in ("exact", "half"):
        model = script.transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / kind, attn_implementation="eager", dtype="auto"
        )
        assert str(model.dtype) == {"exact": "torch.float32", "half": "torch.bfloat16"}[kind]
        logits[kind] = script.logits(model.eval(), tokens)
    ours = np.asarray(run(half, half_config, tokens))
    ours_off, theirs_off = (np.abs(x - logits["exact"]).mean() for x in (ours, logits["half"]))
    assert 0 < ours_off < 1.5 * theirs_off
    assert np.abs(ours - logits["half"]).mean() < 1.5 * theirs_off
