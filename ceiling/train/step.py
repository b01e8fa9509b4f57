"""The one train step, used by every regime and by pretraining.

A loss returns (sum, denominator, metrics), never a mean; the step scans over micro-batches, adds
sums and denominators, and divides once by the global denominator. So a batch gives the same update
however it is split over micro-batches or devices (invariant X-3). A loss is given a part of the sequences, on several
devices perhaps one device's own, and perhaps none: what it returns must be sums over sequences, finite without any.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from ceiling.data.packing import Batch
from ceiling.model import layers
from ceiling.model.config import UNOPTIMISED, unflatten
from ceiling.model.sharding import put


@flax.struct.dataclass
class TrainState:
    """params; optimiser state; aux: a regime's own slow state (RLP's EMA), or None; step and the
    number of updates that were skipped because a gradient was not finite."""

    params: Any
    opt_state: Any
    aux: Any
    step: jax.Array
    skipped: jax.Array


def split(params, trainable: frozenset[str] | None) -> tuple[dict, dict]:
    """(trained, frozen) parts of a parameter tree by path ("layers/wq"); None: everything is trained."""
    flat = traverse_util.flatten_dict(params, sep="/")
    mine = {path: leaf for path, leaf in flat.items() if trainable is None or path in trainable}
    return unflatten(mine), unflatten({path: leaf for path, leaf in flat.items() if path not in mine})


def join(trained, frozen) -> dict:
    """The tree that `split` took apart."""
    parts = (traverse_util.flatten_dict(part, sep="/") for part in (trained, frozen))
    return unflatten({path: leaf for part in parts for path, leaf in part.items()})


def init_state(params, optimiser: optax.GradientTransformation, aux=None, trainable=None) -> TrainState:
    """A fresh state on the mesh of `params`; the optimiser holds the trained part only, moments where their weights are
    and counters everywhere: a first call whose arguments lie elsewhere than its results would compile the whole step
    twice. One program makes it all, since each one costs its compilation."""
    trained, counters = split(params, trainable)[0], (jnp.int32(0), jnp.int32(0))  # two, since both are donated
    home = jax.tree.leaves(params)[0].sharding
    if not isinstance(home, NamedSharding):
        return TrainState(params, jax.jit(optimiser.init, compiler_options=UNOPTIMISED)(trained), aux, *counters)
    everywhere = NamedSharding(home.mesh, PartitionSpec())
    shardings = optax.tree_map_params(
        optimiser, lambda _, weight: weight.sharding, jax.eval_shape(optimiser.init, trained), trained,
        transform_non_params=lambda _: everywhere,
    )  # fmt: skip
    counters = (put(counter, everywhere) for counter in counters)
    fresh = jax.jit(optimiser.init, out_shardings=shardings, compiler_options=UNOPTIMISED)
    return TrainState(params, fresh(trained), aux, *counters)


def _over_groups(sums_of: Callable, microbatches, live, trained, *more):
    """sums_of(microbatches, live, trained, *more). Where rows come in groups, one for each device of a mesh of data
    alone, a device adds up its own and they are exchanged once; the compiler would exchange gradients in every part."""
    if not isinstance(microbatches, Batch) or microbatches.groups == 1:
        return sums_of(microbatches, live, trained, *more)
    mesh, whole = jax.typeof(jax.tree.leaves(trained)[0]).sharding.mesh, PartitionSpec()
    if not microbatches.groups == mesh.size == mesh.shape.get("data"):
        raise ValueError(f"step: a batch in {microbatches.groups} groups is for as many devices along data alone, and "
                         f"the mesh is {dict(mesh.shape)}; lay it out with train.loop.layout")  # fmt: skip
    specs = PartitionSpec(None, "data"), *[whole] * (2 + len(more))
    own = lambda *args: jax.lax.psum(sums_of(*args), "data")  # noqa: E731
    spread = jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)
    return spread(microbatches.replace(groups=1), live, trained, *more)


def make_step(
    loss: Callable, optimiser: optax.GradientTransformation, after_update: Callable | None = None,
    trainable: frozenset[str] | None = None, *, unrolled: bool = False,
):
    """`step(state, microbatches, frozen, lr, live=None, numbers=None) -> (state, metrics)`, jitted, `state` donated.

    loss(params, batch, frozen) -> (sum, denominator, {name: (sum, denominator)}).
    microbatches: a Batch with a leading micro-batch axis; live: how many of them are run, from the first on (int32;
    None: all), so that one program serves batches that fill few. after_update(aux, params) -> aux. trainable: paths
    of the parameters that change (None: all); gradients and optimiser state exist for them alone.
    unrolled: the loss unrolls its layers, so a micro-batch is given weights and gives gradients layer by layer: from
    stacks it would copy every weight once more, and add up gradients that are zero in all layers but one. numbers: as
    `layers.apart` takes them, for a shorter compilation.
    An update with a non-finite gradient is skipped and counted, never applied; the caller stops
    after a limit. Metrics come back as scalars on the device: fetch them one step late.
    """

    optimiser = optax.with_extra_args_support(optimiser)

    def step(state: TrainState, microbatches, frozen, lr, live=None, numbers=None):
        mine, rest = split(state.params, trainable)
        ours, others = (layers.apart(part, numbers) if unrolled else part for part in (mine, rest))

        @functools.partial(jax.jit, inline=True)  # so that it is traced once, for the shapes and for the loop
        def sums(ours, others, frozen, batch):
            def total(ours):
                loss_sum, denominator, metrics = loss(join(ours, others), batch, frozen)
                return loss_sum, (denominator, metrics)

            (loss_sum, aux), grads = jax.value_and_grad(total, has_aux=True)(ours)
            return loss_sum, aux, grads

        def over_parts(microbatches, live, *weights):
            pick = lambda i: jax.tree.map(  # noqa: E731
                lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), microbatches
            )
            parts = jax.tree.leaves(microbatches)[0].shape[0]
            if parts == 1:
                return sums(*weights, pick(0))

            def more(i, carry):
                batch, total = carry  # What is picked in the turn that reads it is fused into every kernel that does.
                return pick(i + 1), jax.tree.map(jnp.add, total, sums(*weights, batch))

            first = pick(0)
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(sums, *weights, first))
            return jax.lax.fori_loop(0, parts if live is None else live, more, (first, zeros))[1]

        loss_sum, (denominator, metrics), grads = _over_groups(over_parts, microbatches, live, ours, others, frozen)
        safe = jnp.maximum(denominator, 1e-9)
        # One factor is fused into all that reads a gradient; a division would be a pass of its own.
        summed = jax.tree.map(lambda g: g.astype(jnp.float32), layers.stacked(grads) if unrolled else grads)
        norm, share = optax.tree.norm(summed) / safe, 1 / safe
        grads = jax.tree.map(lambda g: g * share, summed)
        good = jnp.isfinite(norm) & jnp.isfinite(loss_sum)
        updates, opt_state = optimiser.update(grads, state.opt_state, mine, norm=norm)
        updated = jax.tree.map(lambda p, u: (p - lr * u).astype(p.dtype), mine, updates)
        # In their own dtype: moments of half precision would come back in single, and the next call compile again.
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(good, a, b).astype(b.dtype), new, old)  # noqa: E731
        params = join(keep(updated, mine), rest)
        aux = after_update(state.aux, params) if after_update else state.aux
        state = TrainState(
            params=params, opt_state=keep(opt_state, state.opt_state),
            aux=keep(aux, state.aux), step=state.step + 1, skipped=state.skipped + ~good,
        )  # fmt: skip
        out = {name: s / jnp.maximum(d, 1e-9) for name, (s, d) in metrics.items()}
        return state, {"loss": loss_sum / safe, "grad_norm": norm, "skipped": state.skipped, **out}

    return jax.jit(step, donate_argnums=0)
