"""The model on a packed batch, seen per sequence: what losses and scoring call."""

from ceiling.data.packing import Batch
from ceiling.model.config import ModelConfig
from ceiling.model.logprobs import token_logprobs
from ceiling.model.sharding import constrain
from ceiling.model.transformer import hidden


class Forward:
    """Per-sequence views of packed rows; `config` is the architecture."""

    def __init__(self, config: ModelConfig):
        self.config = config

    def activations(self, params, batch: Batch):
        """Activations [B*T, D] that predict each token of `batch.targets_BT`."""
        x_RWD = hidden(params, self.config, batch.tokens_RW, batch.positions_RW, batch.segments_RW)
        return constrain(x_RWD.reshape(-1, x_RWD.shape[-1])[batch.index_BT.reshape(-1)], "batch", None)

    def logprobs(self, params, batch: Batch, *, temperature=1.0, entropy=False):
        """(logp_BT, entropy_BT) of the targets; entropy is zeros unless asked for."""
        logp_M, entropy_M = token_logprobs(
            params, self.config, self.activations(params, batch), batch.targets_BT.reshape(-1),
            temperature=temperature, entropy=entropy,
        )  # fmt: skip
        return logp_M.reshape(batch.targets_BT.shape), entropy_M.reshape(batch.targets_BT.shape)
