"""Shape of a decoder-only transformer and its one table of parameters.

Letters used in every shape name of this project:
B rows, T tokens per row, P prompt, R response, S cache capacity, L layers, D width,
N query heads, K key/value heads, H head dim, G query heads per key/value head,
F feed-forward width, V vocabulary, C chunk of tokens.

`table(config)` is the single description of the weights. Initialisation, sharding, parameter
count, restore targets and FLOPs are all read from it: a new weight is one new row.

Example:
    config = ModelConfig(vocab_size=64, width=128, ffn=384, layers=4, heads=4, kv_heads=2, head_dim=32)
    params = init(config, jax.random.key(0))
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import traverse_util

# For programs that run once: XLA optimises `init` for 4 to 20 s on a CPU, and compiles it as it is in one.
UNOPTIMISED = {"xla_backend_optimization_level": 0}
PROJECTIONS = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")
CHOICES = {
    "norms": ("pre", "post", "both"), "qk_norm": ("", "head", "width"), "activation": ("silu", "gelu"),
    "rope_scaling": ("", "linear", "llama3"), "remat": ("", "block", "dots"),
    "attention": ("dense", "cudnn"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Hyperparameters of one architecture. Frozen and hashable, so jit can take it as static."""

    vocab_size: int
    width: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6
    tied: bool = True  # the head reuses the embedding matrix
    norms: str = "pre"  # RMSNorm before each half of a block, after it (OLMo 2), or both (Gemma 3)
    norm_offset: bool = False  # norms scale by 1 + weight (Gemma 3)
    qk_norm: str = ""  # RMSNorm on queries and keys, over one "head" (Qwen3) or the whole "width" (OLMo 2)
    qkv_bias: bool = False  # bias on query, key and value projections (Qwen2.5)
    activation: str = "silu"  # of the gate; "gelu" is the tanh approximation (Gemma 3)
    embed_scale: bool = False  # embeddings times sqrt(width) (Gemma 3)
    query_scale: float = 0.0  # factor on queries; 0: head_dim ** -0.5
    window: int = 0  # a local layer sees this many tokens, its own included; 0: every layer is global
    global_every: int = 0  # with a window, every so many-th layer is global; 0: none is
    local_rope_base: float = 10_000.0  # rotary base of local layers
    rope_scaling: str = ""  # long-context stretch of the frequencies of global layers (model/rope.py)
    rope_factor: float = 1.0  # frequencies are divided by this; the next three are Llama 3's
    rope_low: float = 1.0
    rope_high: float = 4.0
    rope_trained_tokens: int = 8192
    max_positions: int = 32_768  # context length that an exported config.json promises; limits nothing here
    lora_rank: int = 0  # rank of the adapters (model/lora.py); 0: none
    lora_alpha: float = 16.0  # adapters are added times alpha / rank
    lora_targets: tuple[str, ...] = PROJECTIONS  # adapted projections; also takes names in one string
    steering: bool = False  # a trained vector per layer, added to the residual stream after it (model/steering.py)
    embed_std: float = 0.02  # initialiser scales; the lab trains from scratch with other values
    qk_bias_std: float = 0.0
    param_dtype: str = "float32"
    compute_dtype: str = "float32"  # softmax, norms and log-probs always reduce in float32
    scan_layers: bool = True  # False unrolls the layers: faster steps on tiny models, longer compiles
    remat: str = ""  # the backward pass recomputes nothing, each "block", or each but its matrix products ("dots")
    attention: str = "dense"  # of whole sequences: plain products, or cuDNN on a GPU in half precision
    head_chunk_tokens: int = 8192  # tokens per chunk of the output head; bounds the [C, V] logits

    def __post_init__(self):
        targets = self.lora_targets
        targets = tuple(targets.split() if isinstance(targets, str) else targets)
        object.__setattr__(self, "lora_targets", targets)
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                names = " | ".join(repr(name) for name in allowed)
                raise ValueError(f"model.{field}={getattr(self, field)!r} is not known; use {names}")
        if self.lora_rank and (not targets or len(set(targets)) < len(targets) or not {*targets} <= {*PROJECTIONS}):
            raise ValueError(
                f"model.lora_targets={' '.join(targets)!r} must name projections, each once: {' '.join(PROJECTIONS)}"
            )
        if self.attention == "cudnn" and self.compute_dtype not in ("bfloat16", "float16"):
            raise ValueError(
                f"model.attention='cudnn' computes in half precision only, not {self.compute_dtype}; set "
                "model.compute_dtype=bfloat16 or model.attention=dense"
            )
        if self.rope_scaling == "llama3" and not self.rope_low < self.rope_high:
            raise ValueError(f"model.rope_low={self.rope_low} must be below model.rope_high={self.rope_high}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model.heads={self.heads} is not a multiple of model.kv_heads={self.kv_heads}; "
                "every key/value head must serve the same number of query heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim={self.head_dim} is odd; rotary embeddings need pairs")

    @property
    def groups(self) -> int:
        """Query heads per key/value head (G)."""
        return self.heads // self.kv_heads


@dataclasses.dataclass(frozen=True)
class Spec:
    """One weight: shape, dtype, a logical axis name per dimension, and the std of its initialiser.

    `std` None means ones (norm scales); 0.0 means zeros (biases)."""

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    std: float | None


def table(config: ModelConfig) -> dict[str, Spec]:
    """Every parameter by path ("layers/wq"), per-layer ones stacked on a leading "layers" axis."""
    rows = {"embed": Spec((config.vocab_size, config.width), config.param_dtype, ("vocab", "embed"), config.embed_std)}
    for name, (shape, axes, std) in _block(config).items():
        rows[f"layers/{name}"] = Spec((config.layers, *shape), config.param_dtype, ("layers", *axes), std)
    rows["final_norm"] = Spec((config.width,), config.param_dtype, ("norm",), _norm_std(config))
    if not config.tied:
        shape = (config.width, config.vocab_size)
        rows["head"] = Spec(shape, config.param_dtype, ("embed", "vocab"), 1 / math.sqrt(config.width))
    return rows


def _block(c: ModelConfig) -> dict[str, tuple]:
    """{name: (shape, axes, std)} of one layer."""
    fan_d, fan_f, fan_o = (1 / math.sqrt(n) for n in (c.width, c.ffn, c.heads * c.head_dim))
    norm = ((c.width,), ("norm",), _norm_std(c))
    rows = {
        "attn_norm": norm,
        "wq": ((c.width, c.heads, c.head_dim), ("embed", "heads", "head_dim"), fan_d),
        "wk": ((c.width, c.kv_heads, c.head_dim), ("embed", "kv_heads", "head_dim"), fan_d),
        "wv": ((c.width, c.kv_heads, c.head_dim), ("embed", "kv_heads", "head_dim"), fan_d),
        "wo": ((c.heads, c.head_dim, c.width), ("heads", "head_dim", "embed"), fan_o),
        "mlp_norm": norm,
        "w_gate": ((c.width, c.ffn), ("embed", "mlp"), fan_d),
        "w_up": ((c.width, c.ffn), ("embed", "mlp"), fan_d),
        "w_down": ((c.ffn, c.width), ("mlp", "embed"), fan_f),
    }
    if c.norms == "post":
        del rows["attn_norm"], rows["mlp_norm"]
    if c.norms != "pre":
        rows["attn_post_norm"] = rows["mlp_post_norm"] = norm
    if c.qkv_bias:
        rows["bq"] = ((c.heads, c.head_dim), ("heads", "head_dim"), c.qk_bias_std)
        rows["bk"] = ((c.kv_heads, c.head_dim), ("kv_heads", "head_dim"), c.qk_bias_std)
        rows["bv"] = ((c.kv_heads, c.head_dim), ("kv_heads", "head_dim"), 0.0)
    if c.qk_norm == "head":
        rows["q_norm"] = rows["k_norm"] = ((c.head_dim,), ("norm",), _norm_std(c))
    if c.qk_norm == "width":
        rows["q_norm"] = ((c.heads, c.head_dim), ("heads", "head_dim"), _norm_std(c))
        rows["k_norm"] = ((c.kv_heads, c.head_dim), ("kv_heads", "head_dim"), _norm_std(c))
    if c.steering:
        rows["steer"] = ((c.width,), ("norm",), 0.0)
    return rows | _adapters(c, rows)


def _adapters(c: ModelConfig, rows: dict) -> dict:
    """Low-rank pairs [inputs, r] and [r, outputs] of the target projections; fresh ones add nothing."""
    out = {}
    for name in c.lora_targets if c.lora_rank else ():
        (shape, axes, std), inputs = rows[name], 2 if name == "wo" else 1  # std is 1 / sqrt(inputs)
        out[f"{name}_lora_a"] = ((*shape[:inputs], c.lora_rank), (*axes[:inputs], "lora"), std)
        out[f"{name}_lora_b"] = ((c.lora_rank, *shape[inputs:]), ("lora", *axes[inputs:]), 0.0)
    return out


def _norm_std(config: ModelConfig) -> float | None:
    """A fresh norm multiplies by one."""
    return 0.0 if config.norm_offset else None


@functools.partial(jax.jit, static_argnums=0, compiler_options=UNOPTIMISED)
def init(config: ModelConfig, key: jax.Array) -> dict:
    """Fresh parameters as a nested dict. Each weight's noise depends on its own path only, so
    adding a row to the table does not change the others."""
    return unflatten({path: draw(path, spec, key) for path, spec in table(config).items()})


def draw(path: str, spec: Spec, key: jax.Array) -> jax.Array:
    """A fresh value of one row of the table."""
    if spec.std is None:
        return jnp.ones(spec.shape, spec.dtype)
    if spec.std == 0.0:
        return jnp.zeros(spec.shape, spec.dtype)
    own_key = jax.random.fold_in(key, int.from_bytes(path.encode(), "little") % (2**31 - 1))
    return (spec.std * jax.random.normal(own_key, spec.shape, jnp.float32)).astype(spec.dtype)


def abstract(config: ModelConfig) -> dict:
    """The same tree as `init` with ShapeDtypeStructs: restore target and compile-only input."""
    return unflatten({p: jax.ShapeDtypeStruct(s.shape, s.dtype) for p, s in table(config).items()})


def parameter_count(config: ModelConfig) -> int:
    """All weights of the table, the embedding and adapters included."""
    return sum(math.prod(spec.shape) for spec in table(config).values())


def unflatten(rows: dict) -> dict:
    """{"layers/wq": x} -> {"layers": {"wq": x}}."""
    return traverse_util.unflatten_dict(rows, sep="/")
