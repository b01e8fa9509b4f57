"""A policy: what an evaluation takes. Parameters, their architecture, and where a response ends."""

import flax.struct
import jax

from ceiling.model.config import ModelConfig


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
        sharding = jax.tree.leaves(self.params)[0].sharding
        return sharding.mesh if isinstance(sharding, jax.sharding.NamedSharding) else None
