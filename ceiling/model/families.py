"""Published model families: a config.json in transformers' terms <-> ModelConfig, and known sizes.

A family is what it fixes of ModelConfig. Keys that its modelling code in transformers reads and that are
not supported here are refused by name; keys that it does not read are ignored, as transformers does. Both
spellings of rotary settings are understood (`rope_theta` + `rope_scaling`, and `rope_parameters`); the
first is written, since every version of transformers and vLLM reads it.

Example:
    config = ModelConfig(**from_hf(json.loads(pathlib.Path("config.json").read_text())))
"""

import dataclasses
from collections.abc import Mapping

from ceiling.model.config import ModelConfig

# Our field -> key of config.json, where the value is the same; whole numbers first.
WHOLE = {"vocab_size": "vocab_size", "width": "hidden_size", "ffn": "intermediate_size",
         "layers": "num_hidden_layers", "heads": "num_attention_heads", "kv_heads": "num_key_value_heads",
         "head_dim": "head_dim", "max_positions": "max_position_embeddings"}  # fmt: skip
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu"}
# Keys that change the computation, and the values at which they do not.
NEUTRAL = {
    "attention_bias": (False,), "mlp_bias": (False,), "attention_dropout": (0,), "use_sliding_window": (False,),
    "use_bidirectional_attention": (False,), "attn_logit_softcapping": (), "final_logit_softcapping": (),
    "partial_rotary_factor": (1,), "quantization_config": (), "per_layer_config": (), "auto_map": (),
    "num_experts": (0,), "num_local_experts": (0,), "clip_qkv": (), "text_config": (), "vision_config": (),
}  # fmt: skip
LLAMA3 = {"rope_factor": "factor", "rope_low": "low_freq_factor", "rope_high": "high_freq_factor",
          "rope_trained_tokens": "original_max_position_embeddings"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
    """One model_type. `fixed`: the fields that make a ModelConfig of this family, beside PLAIN.
    `defaults`: transformers' values of keys that a config.json may leave out, where not everybody's."""

    model_type: str
    architecture: str
    fixed: Mapping
    defaults: Mapping = dataclasses.field(default_factory=dict)
    windows: bool = False  # has sliding windows and a query scale of its own
    width_by_heads: bool = False  # transformers wants width to be a multiple of heads
    activation_key: str = "hidden_act"


PLAIN = dict(norms="pre", norm_offset=False, qk_norm="", qkv_bias=False, embed_scale=False)
FAMILIES = {f.model_type: f for f in (
    Family("llama", "LlamaForCausalLM", {}, width_by_heads=True),
    Family("qwen2", "Qwen2ForCausalLM", dict(qkv_bias=True)),
    Family("qwen3", "Qwen3ForCausalLM", dict(qk_norm="head"), dict(head_dim=128)),
    Family("olmo2", "Olmo2ForCausalLM", dict(norms="post", qk_norm="width")),
    Family("gemma3_text", "Gemma3ForCausalLM", dict(norms="both", norm_offset=True, qk_norm="head", embed_scale=True),
           dict(head_dim=256, num_key_value_heads=4, tie_word_embeddings=True, rope_theta=1_000_000.0,
                hidden_activation="gelu_pytorch_tanh"),
           windows=True, width_by_heads=True, activation_key="hidden_activation"),
)}  # fmt: skip


def from_hf(config_json: Mapping) -> dict:
    """ModelConfig's arguments for a config.json. Raises ValueError in one line that names the key."""
    kind = config_json.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(f"config.json: model_type={kind!r} is not supported; known: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    for key, neutral in NEUTRAL.items():
        value = config_json.get(key)
        if value is not None and value not in neutral:
            raise ValueError(f"config.json: {key}={value!r} is not supported for {kind}")
    source = {**family.defaults, **{key: value for key, value in config_json.items() if value is not None}}
    source.setdefault("num_key_value_heads", source.get("num_attention_heads"))
    source.setdefault("max_position_embeddings", 2048)
    if "head_dim" not in source:
        width, heads = (_number(source, key, whole=True) for key in ("hidden_size", "num_attention_heads"))
        source["head_dim"] = width // heads
    out = {**PLAIN, **family.fixed} | {field: _number(source, key, whole=True) for field, key in WHOLE.items()}
    activation = source.get(family.activation_key, "silu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"config.json: {family.activation_key}={activation!r} is not supported; "
                         f"known: {', '.join(ACTIVATIONS)}")  # fmt: skip
    out |= dict(norm_eps=_number(source, "rms_norm_eps"), activation=ACTIVATIONS[activation],
                tied=bool(source.get("tie_word_embeddings", False)))  # fmt: skip
    if family.windows:
        scalar = _number({"query_pre_attn_scalar": 256, **source}, "query_pre_attn_scalar")
        out["query_scale"] = 0.0 if scalar == out["head_dim"] else scalar**-0.5
        out |= _windows(source, out["layers"])
    elif any(kind != "full_attention" for kind in source.get("layer_types", ())):
        raise ValueError(f"config.json: layer_types with sliding windows are not supported for {kind}")
    return out | _rope(source)


def to_hf(config: ModelConfig) -> dict:
    """The config.json of a ModelConfig, without token ids. Raises ValueError where no family fits."""
    family = family_of(config)
    theta = {"rope_theta": config.rope_base, "rope_scaling": None}
    if config.rope_scaling:
        keys = LLAMA3 if config.rope_scaling == "llama3" else {"rope_factor": "factor"}
        theta["rope_scaling"] = {"rope_type": config.rope_scaling} | {k: getattr(config, f) for f, k in keys.items()}
    out = {
        "model_type": family.model_type, "architectures": [family.architecture], "torch_dtype": config.param_dtype,
        **{key: getattr(config, field) for field, key in WHOLE.items()},
        family.activation_key: next(k for k, v in ACTIVATIONS.items() if v == config.activation),
        "rms_norm_eps": config.norm_eps, "tie_word_embeddings": config.tied, "attention_dropout": 0.0,
        "attention_bias": False, "use_cache": True, **theta,
    }  # fmt: skip
    if family.model_type == "qwen2":
        del out["attention_bias"]  # its biases are not a choice
    if family.windows:
        from_scale = round(config.query_scale**-2) if config.query_scale else config.head_dim
        out |= {"query_pre_attn_scalar": from_scale, "sliding_window": config.window or config.max_positions,
                "rope_local_base_freq": config.local_rope_base, "layer_types": _layer_types(config)}  # fmt: skip
    return out


def family_of(config: ModelConfig) -> Family:
    """The family whose fixed fields a config has. Raises ValueError in one line where there is none."""
    def fits(family):
        return all(getattr(config, k) == v for k, v in (PLAIN | family.fixed).items())

    family = next(filter(fits, FAMILIES.values()), None)
    if family is None:
        have = ", ".join(f"{k}={getattr(config, k)!r}" for k in PLAIN)
        raise ValueError(f"model: no published family has {have} together; known: {', '.join(FAMILIES)}")
    scale = config.query_scale and config.query_scale**-2
    if not family.windows and (config.window or config.query_scale):
        raise ValueError(f"model: {family.model_type} has no window or query_scale; set both to 0 to export")
    if scale and abs(scale - round(scale)) > 1e-6 * scale:
        raise ValueError(f"model.query_scale={config.query_scale}: config.json holds a whole query_pre_attn_scalar")
    if family.width_by_heads and config.width % config.heads:
        raise ValueError(
            f"model.width={config.width} is not a multiple of model.heads={config.heads}; "
            f"transformers needs that of {family.model_type}"
        )
    return family


def _windows(source: Mapping, layers: int) -> dict:
    """window, global_every and local_rope_base from Gemma 3's layer_types, or the older pattern number."""
    every = source.get("sliding_window_pattern", source.get("_sliding_window_pattern", 6))
    types = source.get("layer_types") or _types(layers, every)
    full = [i + 1 for i, kind in enumerate(types) if kind == "full_attention"]
    every = full[0] if full else 0
    if types != _types(layers, every):
        raise ValueError(f"config.json: layer_types={types} must have one full_attention layer in every so many")
    nested = (source.get("rope_parameters") or {}).get("sliding_attention") or {}
    if nested.get("rope_type", "default") != "default":
        raise ValueError("config.json: rope_parameters.sliding_attention.rope_type must be 'default'")
    base = nested.get("rope_theta", source.get("rope_local_base_freq", 10_000.0))
    window = 0 if every == 1 else _number({"sliding_window": 4096, **source}, "sliding_window", whole=True)
    return dict(window=window, global_every=every if window else 0, local_rope_base=float(base))


def _types(layers: int, every: int) -> list[str]:
    return ["full_attention" if every and i % every == 0 else "sliding_attention" for i in range(1, layers + 1)]


def _layer_types(config: ModelConfig) -> list[str]:
    return _types(config.layers, config.global_every if config.window else 1)


def _rope(source: Mapping) -> dict:
    """rope_base and scaling. rope_scaling wins over rope_parameters, as in transformers."""
    settings = source.get("rope_parameters") or {}
    settings = {**settings.get("full_attention", settings), **source.get("rope_scaling", {})}
    base = settings.get("rope_theta", source.get("rope_theta", 10_000.0))
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind not in ("default", "linear", "llama3") or settings.get("partial_rotary_factor", 1) != 1:
        raise ValueError(f"config.json: rope_scaling={settings} is not supported; use default, linear or llama3")
    if "mrope_section" in settings:
        raise ValueError("config.json: rope_scaling.mrope_section is not supported; only text models are")
    out = {"rope_base": float(base), "rope_scaling": "" if kind == "default" else kind}
    keys = {"default": {}, "linear": {"rope_factor": "factor"}, "llama3": LLAMA3}[kind]
    settings.setdefault("original_max_position_embeddings", source.get("max_position_embeddings"))
    return out | {f: _number(settings, key, whole=f == "rope_trained_tokens") for f, key in keys.items()}


def _number(source: Mapping, key: str, *, whole=False):
    value = source.get(key)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not 0 < value < 1e30:
        raise ValueError(f"config.json: {key}={value!r} must be a positive {'whole ' if whole else ''}number")
    return value if whole else float(value)


def _qwen(**fields) -> dict:
    return dict(PLAIN, vocab_size=151_936, norm_eps=1e-6, tied=True, rope_base=1_000_000.0) | fields


def _llama(**fields) -> dict:
    return dict(PLAIN, vocab_size=128_256, norm_eps=1e-5, rope_base=500_000.0, rope_scaling="llama3", rope_low=1.0,
                rope_high=4.0, rope_trained_tokens=8192, max_positions=131_072) | fields  # fmt: skip


# Architectures of published checkpoints: ModelConfig's arguments.
PRESETS = {
    "qwen2.5-0.5b": _qwen(width=896, ffn=4864, layers=24, heads=14, kv_heads=2, head_dim=64, qkv_bias=True),
    "qwen2.5-math-1.5b": _qwen(width=1536, ffn=8960, layers=28, heads=12, kv_heads=2, head_dim=128, qkv_bias=True,
                               rope_base=10_000.0, max_positions=4096),
    "qwen3-0.6b": _qwen(width=1024, ffn=3072, layers=28, heads=16, kv_heads=8, head_dim=128, qk_norm="head",
                        max_positions=40_960),
    "qwen3-1.7b": _qwen(width=2048, ffn=6144, layers=28, heads=16, kv_heads=8, head_dim=128, qk_norm="head",
                        max_positions=40_960),
    "llama-3.2-1b": _llama(width=2048, ffn=8192, layers=16, heads=32, kv_heads=8, head_dim=64, tied=True,
                           rope_factor=32.0),
    "llama-3.1-8b": _llama(width=4096, ffn=14_336, layers=32, heads=32, kv_heads=8, head_dim=128, tied=False,
                           rope_factor=8.0),
    "olmo-2-1b": PLAIN | FAMILIES["olmo2"].fixed | dict(
        vocab_size=100_352, width=2048, ffn=8192, layers=16, heads=16, kv_heads=16, head_dim=128, norm_eps=1e-6,
        tied=False, rope_base=500_000.0, max_positions=4096),
    "gemma-3-1b": PLAIN | FAMILIES["gemma3_text"].fixed | dict(
        vocab_size=262_144, width=1152, ffn=6912, layers=26, heads=4, kv_heads=1, head_dim=256, norm_eps=1e-6,
        activation="gelu", window=512, global_every=6, rope_base=1_000_000.0, local_rope_base=10_000.0),
}  # fmt: skip
