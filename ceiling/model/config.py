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
import math

import jax
import jax.numpy as jnp
from flax import traverse_util


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
    qk_norm: bool = False  # RMSNorm over head_dim on queries and keys (Qwen3)
    qkv_bias: bool = False  # bias on query, key and value projections (Qwen2.5)
    embed_std: float = 0.02  # initialiser scales; the lab trains from scratch with other values
    qk_bias_std: float = 0.0
    param_dtype: str = "float32"
    compute_dtype: str = "float32"  # softmax, norms and log-probs always reduce in float32
    scan_layers: bool = True  # False unrolls the layers: faster steps on tiny models, longer compiles
    remat: bool = False  # recompute each block in the backward pass
    head_chunk_tokens: int = 8192  # tokens per chunk of the output head; bounds the [C, V] logits

    def __post_init__(self):
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
    c = config
    fan_d, fan_f = 1 / math.sqrt(c.width), 1 / math.sqrt(c.ffn)
    fan_o = 1 / math.sqrt(c.heads * c.head_dim)
    layer = {
        "attn_norm": ((c.width,), ("norm",), None),
        "wq": ((c.width, c.heads, c.head_dim), ("embed", "heads", "head_dim"), fan_d),
        "wk": ((c.width, c.kv_heads, c.head_dim), ("embed", "kv_heads", "head_dim"), fan_d),
        "wv": ((c.width, c.kv_heads, c.head_dim), ("embed", "kv_heads", "head_dim"), fan_d),
        "wo": ((c.heads, c.head_dim, c.width), ("heads", "head_dim", "embed"), fan_o),
        "mlp_norm": ((c.width,), ("norm",), None),
        "w_gate": ((c.width, c.ffn), ("embed", "mlp"), fan_d),
        "w_up": ((c.width, c.ffn), ("embed", "mlp"), fan_d),
        "w_down": ((c.ffn, c.width), ("mlp", "embed"), fan_f),
    }
    if c.qkv_bias:
        layer["bq"] = ((c.heads, c.head_dim), ("heads", "head_dim"), c.qk_bias_std)
        layer["bk"] = ((c.kv_heads, c.head_dim), ("kv_heads", "head_dim"), c.qk_bias_std)
        layer["bv"] = ((c.kv_heads, c.head_dim), ("kv_heads", "head_dim"), 0.0)
    if c.qk_norm:
        layer["q_norm"] = ((c.head_dim,), ("norm",), None)
        layer["k_norm"] = ((c.head_dim,), ("norm",), None)
    rows = {"embed": Spec((c.vocab_size, c.width), c.param_dtype, ("vocab", "embed"), c.embed_std)}
    for name, (shape, axes, std) in layer.items():
        rows[f"layers/{name}"] = Spec((c.layers, *shape), c.param_dtype, ("layers", *axes), std)
    rows["final_norm"] = Spec((c.width,), c.param_dtype, ("norm",), None)
    if not c.tied:
        rows["head"] = Spec((c.width, c.vocab_size), c.param_dtype, ("embed", "vocab"), fan_d)
    return rows


def init(config: ModelConfig, key: jax.Array) -> dict:
    """Fresh parameters as a nested dict. Each weight's noise depends on its own path only, so
    adding a row to the table does not change the others."""

    def one(path: str, spec: Spec):
        if spec.std is None:
            return jnp.ones(spec.shape, spec.dtype)
        if spec.std == 0.0:
            return jnp.zeros(spec.shape, spec.dtype)
        own_key = jax.random.fold_in(key, int.from_bytes(path.encode(), "little") % (2**31 - 1))
        return (spec.std * jax.random.normal(own_key, spec.shape, jnp.float32)).astype(spec.dtype)

    return unflatten({path: one(path, spec) for path, spec in table(config).items()})


def abstract(config: ModelConfig) -> dict:
    """The same tree as `init` with ShapeDtypeStructs: restore target and compile-only input."""
    return unflatten({p: jax.ShapeDtypeStruct(s.shape, s.dtype) for p, s in table(config).items()})


def parameter_count(config: ModelConfig) -> int:
    return sum(math.prod(spec.shape) for spec in table(config).values())


def unflatten(rows: dict) -> dict:
    """{"layers/wq": x} -> {"layers": {"wq": x}}."""
    return traverse_util.unflatten_dict(rows, sep="/")
