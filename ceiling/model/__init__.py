"""One model definition: parameter table, transformer, chunked head, sharding, Policy; checkpoints, adapters."""

from ceiling.model import hf, lora
from ceiling.model.config import ModelConfig, abstract, init, parameter_count, table
from ceiling.model.logprobs import log_softmax_at, token_logprobs
from ceiling.model.policy import Policy
from ceiling.model.sharding import make_mesh, place
from ceiling.model.transformer import forward, hidden

__all__ = [
    "ModelConfig", "Policy", "abstract", "forward", "hf", "hidden", "init", "log_softmax_at", "lora", "make_mesh",
    "parameter_count", "place", "table", "token_logprobs",
]
