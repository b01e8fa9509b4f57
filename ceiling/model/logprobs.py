"""The output head in chunks of tokens: log-probabilities without a [B, T, V] array.

Both the trainer and the sampler call `log_softmax_at`, the only place where temperature is applied
(invariant X-1: a ratio is meaningful only if both sides describe the same distribution).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ceiling.model.config import ModelConfig
from ceiling.model.sharding import batch_parts, constrain
from ceiling.model.transformer import unembed


def log_softmax_at(logits, temperature):
    """log-softmax of logits / temperature in float32; shape unchanged."""
    return jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1)


def token_logprobs(params, config: ModelConfig, x_MD, targets_M, *, temperature=1.0, entropy=False):
    """log p(target) f32[M] for activations x_MD, and the exact full-softmax entropy f32[M] in nats
    (zeros unless asked for: it costs a second pass over the vocabulary)."""

    def chunk(x_CD, targets_C):
        logp_CV = log_softmax_at(unembed(params, config, x_CD), temperature)
        logp_C = jnp.take_along_axis(logp_CV, targets_C[:, None], axis=-1)[:, 0]
        entropy_C = -jnp.sum(jnp.exp(logp_CV) * logp_CV, axis=-1) if entropy else jnp.zeros_like(logp_C)
        return logp_C, entropy_C

    return map_chunks(chunk, config.head_chunk_tokens, x_MD, targets_M)


def map_chunks(fn: Callable, chunk_tokens: int, *arrays):
    """Apply `fn` to chunks of the leading axis (of each device's part of it) of all arrays and concatenate its outputs.

    Each chunk is rematerialised in the backward pass, so peak memory holds one chunk of logits."""
    M, devices = arrays[0].shape[0], batch_parts(arrays[0])
    devices = 1 if M % devices else devices
    own = M // devices
    if chunk_tokens >= own:
        return fn(*arrays)
    chunks = -(-own // chunk_tokens)

    def split(a):
        """[M, ...] -> [chunks, devices * chunk_tokens, ...]: every chunk holds a part of every device's rows."""
        a = a.reshape(devices, own, *a.shape[1:])
        a = jnp.pad(a, [(0, 0), (0, chunks * chunk_tokens - own)] + [(0, 0)] * (a.ndim - 2))
        a = jnp.moveaxis(a.reshape(devices, chunks, chunk_tokens, *a.shape[2:]), 1, 0)
        a = a.reshape(chunks, devices * chunk_tokens, *a.shape[3:])
        return constrain(a, None, "batch", *[None] * (a.ndim - 2), like=arrays[0])

    def merge(a):
        a = jnp.moveaxis(a.reshape(chunks, devices, chunk_tokens, *a.shape[2:]), 0, 1)
        return a.reshape(devices, chunks * chunk_tokens, *a.shape[3:])[:, :own].reshape(M, *a.shape[3:])

    return jax.tree.map(merge, jax.lax.map(jax.checkpoint(lambda parts: fn(*parts)), [split(a) for a in arrays]))
