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
    batch_sequences: int = BATCH_SEQUENCES,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(log-probs, entropies) of the masked tokens of every example: lists of f32[masked tokens], nats.

    max_tokens bounds an example's length and fixes the shape; temperature divides the logits."""
    logprobs, entropies = [], []
    for start in range(0, len(examples), batch_sequences):
        part = examples[start : start + batch_sequences]
        batch = pack(part, sequences=batch_sequences, max_tokens=max_tokens, row_tokens=max_tokens,
                     rows=batch_sequences)  # fmt: skip
        logp_BT, entropy_BT = jax.device_get(_score(params, batch, temperature, config=config))
        masks = batch.mask_BT > 0
        logprobs += [logp_BT[b, masks[b]] for b in range(len(part))]
        entropies += [entropy_BT[b, masks[b]] for b in range(len(part))]
    return logprobs, entropies


def executed_tokens(sequences: int, max_tokens: int, batch_sequences: int = BATCH_SEQUENCES) -> int:
    """Tokens that `score` really runs for that many examples: whole batches of padded rows."""
    return -(-sequences // batch_sequences) * batch_sequences * max_tokens


@functools.partial(jax.jit, static_argnames="config")
def _score(params, batch, temperature, *, config):
    return Forward(config).logprobs(params, batch, temperature=temperature, entropy=True)
