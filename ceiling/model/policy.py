"""A policy: what an evaluation takes. Parameters, their architecture, and where a response ends."""

import flax.struct
import jax

from ceiling.model.config import ModelConfig
from ceiling.model.sharding import mesh_of


@flax.struct.dataclass
class Policy:
    """params with the static facts needed to sample from them.

    stop_ids: token ids that end a response; the stop token is part of the response (invariant X-6).
    """

    params: dict
    config: ModelConfig = flax.struct.field(pytree_node=False)
    stop_ids: tuple[int, ...] = flax.struct.field(pytree_node=False)

    @property
    def mesh(self) -> jax.sharding.Mesh | None:
        """The mesh that the parameters live on, if they were placed on one."""
        return mesh_of(self.params)
