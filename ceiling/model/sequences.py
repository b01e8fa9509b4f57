"""The model on a packed batch, seen per sequence: what losses and scoring call."""

import jax.numpy as jnp

from ceiling.data.packing import Batch
from ceiling.model.config import ModelConfig
from ceiling.model.logprobs import token_logprobs
from ceiling.model.sharding import constrain
from ceiling.model.transformer import hidden


class Forward:
    """Per-sequence views of packed rows; `config` is the architecture.

    The output head runs over row positions, M = R * W of them, and never over the padding of the view [B, T]."""

    def __init__(self, config: ModelConfig):
        self.config = config

    def activations(self, params, batch: Batch):
        """Activations [M, D] of all row positions; `view` finds what they say of each target."""
        rows = batch.tokens_RW, batch.positions_RW, batch.segments_RW, batch.prefixes_RW
        x_RWD = hidden(params, self.config, *rows, cells=batch.cells)
        return constrain(x_RWD.reshape(-1, x_RWD.shape[-1]), "batch", None)

    def view(self, value_M, batch: Batch):
        """Values [M] of row positions as [B, T], those of the positions that predict `batch.targets_BT`."""
        if batch.groups > 1:
            raise ValueError(f"batch: its rows are in {batch.groups} groups; only make_step takes them, one a device")
        return value_M[batch.index_BT]

    def logprobs(self, params, batch: Batch, *, temperature=1.0, entropy=False):
        """(logp_BT, entropy_BT) of the targets; entropy is zeros unless asked for."""
        next_RW = jnp.pad(batch.tokens_RW[:, 1:], ((0, 0), (0, 1)))
        logp_M, entropy_M = token_logprobs(
            params, self.config, self.activations(params, batch), next_RW.reshape(-1),
            temperature=temperature, entropy=entropy,
        )  # fmt: skip
        return self.view(logp_M, batch), self.view(entropy_M, batch)
