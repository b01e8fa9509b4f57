"""config.json <-> ModelConfig for every family, the published sizes, and what is refused by name."""

import dataclasses
import json
import pathlib

import pytest

from ceiling.model import ModelConfig, parameter_count
from ceiling.model.families import FAMILIES, NEUTRAL, PRESETS, from_hf, to_hf

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
# Parameters that the published checkpoints hold, tied heads counted once.
PUBLISHED = {
    "qwen2.5-0.5b": 494_032_768, "qwen2.5-math-1.5b": 1_543_714_304, "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976, "llama-3.2-1b": 1_235_814_400, "llama-3.1-8b": 8_030_261_248,
    "olmo-2-1b": 1_484_916_736, "gemma-3-1b": 999_885_952,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": True, "hidden_act": "silu",
    "max_position_embeddings": 131_072, "mlp_bias": False, "attention_bias": False, "attention_dropout": 0.0,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
}  # fmt: skip
GEMMA = {
    "model_type": "gemma3_text", "vocab_size": 262_144, "hidden_size": 1152, "intermediate_size": 6912,
    "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
    "rms_norm_eps": 1e-6, "rope_theta": 1_000_000, "rope_local_base_freq": 10_000, "rope_scaling": None,
    "sliding_window": 512, "sliding_window_pattern": 6, "query_pre_attn_scalar": 256,
    "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": None, "final_logit_softcapping": None,
    "max_position_embeddings": 32_768, "cache_implementation": "hybrid",
}  # fmt: skip


def config_of(config_json, **changes):
    return ModelConfig(**from_hf({**config_json, **changes}))


def without(config_json, *keys):
    return {key: value for key, value in config_json.items() if key not in keys}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    assert PUBLISHED.keys() == PRESETS.keys()
    assert parameter_count(ModelConfig(**PRESETS[name])) == PUBLISHED[name]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_config_json(name):
    config = ModelConfig(**PRESETS[name])
    assert ModelConfig(**from_hf(json.loads(json.dumps(to_hf(config))))) == config


def test_presets_equal_what_the_published_config_says():
    assert config_of(LLAMA) == ModelConfig(**PRESETS["llama-3.2-1b"])
    assert config_of(GEMMA) == ModelConfig(**PRESETS["gemma-3-1b"])


def test_both_spellings_of_rotary_settings_agree():
    new = {**LLAMA["rope_scaling"], "rope_theta": 500_000.0}
    assert config_of(without(LLAMA, "rope_theta", "rope_scaling"), rope_parameters=new) == config_of(LLAMA)
    old = {"type": "linear", "factor": 4.0}
    assert config_of(LLAMA, rope_scaling=old).rope_factor == 4.0
    both = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip
    nested = config_of(without(GEMMA, "rope_theta", "rope_local_base_freq"), rope_parameters=both)
    assert nested == config_of(GEMMA, rope_scaling={"rope_type": "linear", "factor": 8.0})


def test_keys_that_may_be_left_out_have_transformers_defaults():
    bare = without(LLAMA, "num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "tie_word_embeddings")
    config = config_of(bare)
    assert (config.kv_heads, config.head_dim, config.rope_base, config.tied) == (32, 64, 10_000.0, False)
    defaults = ("rope_theta", "rope_local_base_freq", "hidden_activation", "sliding_window_pattern")
    gemma = config_of(without(GEMMA, *defaults))
    assert gemma == config_of(GEMMA) and gemma.tied
    assert config_of(without(GEMMA, "head_dim"), model_type="qwen3").head_dim == 128


@pytest.mark.parametrize("every", [1, 2, 3, 6])
def test_window_patterns(every):
    types = ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(26)]
    listed = config_of(without(GEMMA, "sliding_window_pattern"), layer_types=types)
    assert listed == config_of(GEMMA, sliding_window_pattern=every)
    assert (listed.window, listed.global_every) == ((512, every) if every > 1 else (0, 0))
    assert to_hf(listed)["layer_types"] == types
    local = config_of(GEMMA, layer_types=["sliding_attention"] * 26)
    assert (local.window, local.global_every) == (512, 0)
    with pytest.raises(ValueError, match="layer_types=.* one full_attention layer in every so many"):
        config_of(GEMMA, layer_types=["full_attention", "full_attention"] + ["sliding_attention"] * 24)


def test_query_scale_is_exact_both_ways():
    assert config_of(GEMMA, query_pre_attn_scalar=168).query_scale == 168**-0.5
    assert to_hf(config_of(GEMMA, query_pre_attn_scalar=168))["query_pre_attn_scalar"] == 168
    assert to_hf(config_of(GEMMA))["query_pre_attn_scalar"] == 256
    with pytest.raises(ValueError, match=r"model\.query_scale=0\.3: config\.json holds a whole"):
        to_hf(dataclasses.replace(config_of(GEMMA), query_scale=0.3))


# --- refusals: one line that names the key ------------------------------------------------------------------

UNSUPPORTED = {
    "attention_bias": True, "mlp_bias": True, "attention_dropout": 0.1, "use_sliding_window": True,
    "use_bidirectional_attention": True, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    "partial_rotary_factor": 0.5, "quantization_config": {"bits": 4}, "per_layer_config": [{}],
    "auto_map": {"AutoModel": "x.Y"}, "num_experts": 8, "num_local_experts": 8, "clip_qkv": 8.0,
    "text_config": {}, "vision_config": {},
}  # fmt: skip


@pytest.mark.parametrize("key", UNSUPPORTED)
def test_what_is_not_supported_is_named(key):
    assert UNSUPPORTED.keys() == NEUTRAL.keys()
    with pytest.raises(ValueError, match=rf"^config\.json: {key}=[^\n]* is not supported for llama$"):
        config_of(LLAMA, **{key: UNSUPPORTED[key]})
    for neutral in (None, *NEUTRAL[key]):
        assert config_of(LLAMA, **{key: neutral}) == config_of(LLAMA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model_type="mamba"), "'mamba' is not supported; known: llama, qwen2, qwen3, olmo2, gemma3_text"),
        (dict(model_type="gemma3"), "model_type='gemma3' is not supported"),
        (dict(model_type=["llama"]), "model_type="),
        (dict(rope_scaling={"rope_type": "yarn", "factor": 4.0}), "rope_scaling=.*yarn.* is not supported"),
        (dict(rope_scaling={"type": "dynamic", "factor": 4.0}), "rope_scaling=.*dynamic.* is not supported"),
        (dict(rope_scaling={"rope_type": "default", "mrope_section": [1, 2]}), "mrope_section"),
        (dict(rope_scaling={"rope_type": "linear"}), "factor=None must be a positive number"),
        (dict(rope_scaling={"rope_type": "llama3", "factor": 2.0}), "low_freq_factor=None"),
        (dict(hidden_act="relu"), "hidden_act='relu' is not supported; known: silu"),
        (dict(hidden_act=["silu"]), "hidden_act="),
        (dict(hidden_size=None), "hidden_size=None must be a positive whole number"),
        (dict(hidden_size="2048"), "hidden_size='2048'"), (dict(num_hidden_layers=0), "num_hidden_layers=0"),
        (dict(vocab_size=True), "vocab_size=True"), (dict(rms_norm_eps=-1.0), "rms_norm_eps=-1.0"),
        (dict(rms_norm_eps=float("nan")), "rms_norm_eps=nan"),
        (dict(layer_types=["sliding_attention"] * 16), "layer_types with sliding windows are not supported for llama"),
    ],
    ids=str,
)  # fmt: skip
def test_odd_values_are_refused_by_key(changes, message):
    with pytest.raises(ValueError, match=rf"^config\.json: [^\n]*{message}[^\n]*$"):
        config_of(LLAMA, **changes)


def test_keys_that_transformers_does_not_read_are_ignored():
    extra = dict(sliding_window=4096, max_window_layers=21, pretraining_tp=1, unsloth_fixed=True, use_cache=False)
    assert config_of(LLAMA, **extra) == config_of(LLAMA)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(qkv_bias=True, qk_norm="head"), "no published family has [^\n]*qk_norm='head', qkv_bias=True"),
        (dict(norms="both"), "no published family has norms='both'"),
        (dict(window=4), "llama has no window or query_scale"), (dict(query_scale=0.2), "llama has no window"),
        (dict(width=20, heads=6, kv_heads=2), r"model\.width=20 is not a multiple of model\.heads=6"),
    ],
    ids=str,
)  # fmt: skip
def test_an_architecture_of_no_family_cannot_be_exported(fields, message):
    config = ModelConfig(**{**dict(vocab_size=8, width=16, ffn=8, layers=1, heads=4, kv_heads=2, head_dim=4), **fields})
    with pytest.raises(ValueError, match=f"^(model: )?{message}[^\n]*$"):
        to_hf(config)


def test_each_golden_is_its_own_family():
    for folder in GOLDENS.iterdir():
        config_json = json.loads((folder / "config.json").read_text())
        again = to_hf(ModelConfig(**from_hf(config_json)))
        assert again["model_type"] == config_json["model_type"]
        assert again["architectures"] == config_json["architectures"] == [FAMILIES[again["model_type"]].architecture]
