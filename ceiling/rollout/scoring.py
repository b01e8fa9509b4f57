"""Log-probabilities of given text under given parameters, in fixed-shape batches."""

import functools

import jax
import numpy as np

from ceiling.data.packing import Example, pack
from ceiling.model.config import ModelConfig
from ceiling.model.sequences import Forward

BATCH_SEQUENCES = 256


def score(
    params, config: ModelConfig, examples: list[Example], *, max_tokens: int, temperature: float = 1.0,
    batch_sequences: int = BATCH_SEQUENCES, entropy: bool = False,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(log-probs, entropies) of the masked tokens of every example: lists of f32[masked tokens], nats.

    max_tokens bounds an example's length and fixes the shape; temperature divides the logits. Entropies are
    zeros unless asked for. Calls of fewer sequences than a batch run in one of the next power of two."""
    logprobs, entropies = [], []
    rows = _rows(len(examples), batch_sequences)
    for start in range(0, len(examples), rows):
        part = examples[start : start + rows]
        batch = pack(part, sequences=rows, max_tokens=max_tokens, row_tokens=max_tokens, rows=rows)
        logp_BT, entropy_BT = jax.device_get(_score(params, batch, temperature, config=config, entropy=entropy))
        masks = batch.mask_BT > 0
        logprobs += [logp_BT[b, masks[b]] for b in range(len(part))]
        entropies += [entropy_BT[b, masks[b]] for b in range(len(part))]
    return logprobs, entropies


def executed_tokens(sequences: int, max_tokens: int, batch_sequences: int = BATCH_SEQUENCES) -> int:
    """Tokens that `score` really runs for that many examples: whole batches of padded rows."""
    rows = _rows(sequences, batch_sequences)
    return -(-sequences // rows) * rows * max_tokens


def _rows(sequences: int, batch_sequences: int) -> int:
    """Rows of one batch: few shapes, and no call pays for many more rows than it has."""
    return min(batch_sequences, 1 << max(0, sequences - 1).bit_length())


@functools.partial(jax.jit, static_argnames=("config", "entropy"))
def _score(params, batch, temperature, *, config, entropy):
    return Forward(config).logprobs(params, batch, temperature=temperature, entropy=entropy)
