"""Log-probabilities of given text under given parameters, and how sure they are of it, in fixed-shape batches.

On a mesh the rows of a batch are divided over the data and fsdp axes, heads and vocabulary over the tensor axis.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ceiling.data.packing import Example, pack
from ceiling.model.config import ModelConfig
from ceiling.model.logprobs import log_softmax_at, map_chunks
from ceiling.model.sequences import Forward
from ceiling.model.sharding import BATCH, batch_sharding, constrain, mesh_of, parts, put
from ceiling.model.transformer import unembed

BATCH_SEQUENCES = 256  # most rows of a batch on one part of the mesh
BATCH_BYTES = 1 << 30  # of a layer's working set there: long rows make smaller batches


def score(
    params, config: ModelConfig, examples: list[Example], *, max_tokens: int, temperature: float = 1.0,
    batch_sequences: int = BATCH_SEQUENCES, entropy: bool = False,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(log-probs, entropies) of the masked tokens of every example: lists of f32[masked tokens], nats.

    max_tokens bounds an example's length and fixes the shape; temperature divides the logits. Entropies are
    zeros unless asked for. Calls of fewer sequences than a batch run in one of the next power of two."""
    run = lambda batch: _score(params, batch, temperature, config=config, entropy=entropy)  # noqa: E731
    return tuple(_masked(run, 2, params, config, examples, max_tokens, batch_sequences))


def margins(
    params, config: ModelConfig, examples: list[Example], *, max_tokens: int, batch_sequences: int = BATCH_SEQUENCES
) -> list[np.ndarray]:
    """p1 - p2 at the masked tokens of every example, f32[masked tokens] in [0, 1]: the probability of the most likely
    token less that of the next, of the whole softmax at temperature 1. Batches as in `score`."""
    run = lambda batch: (_margins(params, batch, config=config),)  # noqa: E731
    return _masked(run, 1, params, config, examples, max_tokens, batch_sequences)[0]


def _masked(run, outputs: int, params, config: ModelConfig, examples, max_tokens: int, batch_sequences: int):
    """The outputs [B, T] of `run` on batches of the examples: for each, a list of its masked tokens by example."""
    out, mesh = [[] for _ in range(outputs)], mesh_of(params)
    rows = batch_rows(config, mesh, len(examples), max_tokens, batch_sequences)
    for start in range(0, len(examples), rows):
        part = examples[start : start + rows]
        batch = pack(part, sequences=rows, max_tokens=max_tokens, row_tokens=max_tokens, rows=rows)
        masks = batch.mask_BT > 0
        if mesh is not None:
            batch = put(batch, batch_sharding(mesh))
        for values, value_BT in zip(out, jax.device_get(run(batch)), strict=True):
            values += [value_BT[b, masks[b]] for b in range(len(part))]
    return out


def batch_rows(config: ModelConfig, mesh, sequences: int, max_tokens: int, most: int = BATCH_SEQUENCES) -> int:
    """Rows of one batch: as many as BATCH_BYTES hold on each part of the mesh, a power of two, so few shapes; and no
    call pays for many more rows than it has. mesh: a Mesh, its {axis: size}, or None for one device."""
    sizes = getattr(mesh, "shape", mesh)
    divided, tensor = (1, 1) if sizes is None else (parts(sizes, BATCH), sizes["tensor"])
    fitting = 1 << (max(1, BATCH_BYTES // row_bytes(config, max_tokens, tensor)).bit_length() - 1)
    wanted = 1 << max(0, -(-sequences // divided) - 1).bit_length()
    return divided * min(most, fitting, wanted)


def row_bytes(config: ModelConfig, tokens: int, tensor: int) -> int:
    """Working set of one layer for a row in a forward pass: attention scores in float32 and their exponentials, the
    residual streams, queries to values, gate and up."""
    wide = 4 * config.width + (2 * config.ffn + (config.heads + 2 * config.kv_heads) * config.head_dim) // tensor
    scores = 2 * 4 * -(-config.heads // tensor) * tokens**2
    return scores + tokens * wide * jnp.dtype(config.compute_dtype).itemsize


def executed_tokens(params, config: ModelConfig, sequences: int, max_tokens: int) -> int:
    """Tokens that `score` really runs for that many examples: whole batches of padded rows."""
    rows = batch_rows(config, mesh_of(params), sequences, max_tokens)
    return -(-sequences // rows) * rows * max_tokens


@functools.partial(jax.jit, static_argnames=("config", "entropy"))
def _score(params, batch, temperature, *, config, entropy):
    out = Forward(config).logprobs(params, batch, temperature=temperature, entropy=entropy)
    return jax.tree.map(lambda x: constrain(x, *[None] * x.ndim, like=params["embed"]), out)  # for every host


@functools.partial(jax.jit, static_argnames=("config",))
def _margins(params, batch, *, config):
    def chunk(x_CD):
        top_C2 = jnp.exp(jax.lax.top_k(log_softmax_at(unembed(params, config, x_CD), 1.0), 2)[0])
        return top_C2[:, 0] - top_C2[:, 1]

    forward = Forward(config)
    margin_M = map_chunks(chunk, config.head_chunk_tokens, forward.activations(params, batch))
    return constrain(forward.view(margin_M, batch), None, None, like=params["embed"])  # for every host
