"""A policy: what an evaluation takes. Parameters with whatever is added to the activations, how responses are decoded,
and where they end. Every mechanism that the project compares is one of these, so all are measured by the same code."""

import dataclasses

import flax.struct
import jax

from ceiling.model.config import ModelConfig
from ceiling.model.sharding import mesh_of

RULES = ("sample", "greedy", "cot")
PICKS = ("sum", "max")


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How a response is made from next-token distributions; the static part of a policy.

    rule: "sample" (at the evaluation's temperature), "greedy", or "cot": the `branches` most likely first tokens, each
    continued greedily, and the one response that the model is surest of (arXiv:2402.10200): the surest path (pick
    "max"), or the surest path to the answer whose paths are surest together ("sum"). opening: token ids that every
    response is made to start with; they are part of the response. `rollout/decoding.py` carries it out.
    """

    rule: str = "sample"
    branches: int = 10
    pick: str = "sum"
    opening: tuple[int, ...] = ()

    @property
    def deterministic(self) -> bool:
        """Whether a problem has one response, however many are asked for."""
        return self.rule != "sample"


@flax.struct.dataclass
class Policy:
    """params with the static facts needed to sample from them.

    params: with adapters or steering vectors if config says so (they are rows of its table: an intervention acts in
    training, prefill and decoding alike). stop_ids: token ids that end a response; the stop token is part of the
    response (invariant X-6).
    """

    params: dict
    config: ModelConfig = flax.struct.field(pytree_node=False)
    stop_ids: tuple[int, ...] = flax.struct.field(pytree_node=False)
    decoding: Decoding = flax.struct.field(pytree_node=False, default=Decoding())

    @property
    def mesh(self) -> jax.sharding.Mesh | None:
        """The mesh that the parameters live on, if they were placed on one."""
        return mesh_of(self.params)
