"""Bytes on one device, by kind: what an arm holds all the time, and what each phase adds at its peak.

Weights, copies and optimiser state are exact sums over the parameter table, divided by the mesh axes that its rules
name. What the backward pass keeps is read from the real forward by tracing it on shapes (`kept`): nothing is
allocated. On top of it comes one block's working set, a few chunks of logits, and two sets of gradients (the running
sum and the micro-batch's own). Against XLA on a CPU this is 10 to 45 % high (tests/test_plan.py), never low.

Rows of a batch, slots and prompts are divided over the data and fsdp axes, heads and vocabulary over the tensor axis.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from ceiling.data.packing import Batch
from ceiling.model.config import ModelConfig, abstract, table
from ceiling.model.lora import trainable
from ceiling.model.sequences import Forward
from ceiling.model.sharding import BATCH, RULES, parts
from ceiling.rollout import cache as kv
from ceiling.rollout.engine import bucket, share
from ceiling.rollout.scoring import batch_rows, row_bytes
from ceiling.train import optim
from ceiling.train.step import join, split

LOGITS = 3  # copies of a chunk of logits in float32: the logits, their log-softmax, its cotangent or exponential


def weights(config: ModelConfig, mesh: dict, paths=None) -> int:
    """Bytes of the parameters (of `paths` alone, if given) on one device."""
    return sum(
        math.prod(spec.shape) * jnp.dtype(spec.dtype).itemsize // _parts(spec.axes, mesh)
        for path, spec in table(config).items() if paths is None or path in paths
    )  # fmt: skip


def _parts(axes: tuple[str, ...], mesh: dict) -> int:
    """Devices that one weight is divided over."""
    named = nn.logical_to_mesh_axes(axes, rules=RULES)
    flat = [name for entry in named for name in ((entry,) if isinstance(entry, str) else entry or ())]
    return parts(mesh, flat)


def tree_bytes(tree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def optimiser(config: ModelConfig, cfg: dict, mesh: dict) -> float:
    """Bytes of the optimiser's state on one device: moments lie as the weights they belong to."""
    mine = trainable(config)
    state = jax.eval_shape(optim.make(cfg).init, split(abstract(config), mine)[0])
    return tree_bytes(state) * weights(config, mesh, mine) / weights(config, dict.fromkeys(mesh, 1), mine)


def slow_state(regime, config: ModelConfig, cfg: dict, mesh: dict) -> float:
    """Bytes of a regime's own copy of the weights (RLP's moving average)."""
    if regime.init_aux is None:
        return 0.0
    state = jax.eval_shape(lambda params: regime.init_aux(params, cfg), abstract(config))
    return tree_bytes(state) * weights(config, mesh) / weights(config, dict.fromkeys(mesh, 1))


def kv_cache(config: ModelConfig, rows: int, capacity: int, mesh: dict) -> float:
    """Bytes on one device of a cache of that many rows there."""
    return tree_bytes(jax.eval_shape(lambda: kv.empty(config, rows, capacity))) / mesh["tensor"]


@functools.lru_cache(maxsize=256)
def kept(config: ModelConfig, rows: int, tokens: int) -> int:
    """Bytes that autodiff keeps for the backward pass of the log-probs of `rows` packed rows of `tokens` tokens,
    weights and inputs aside. Only what is trained is differentiated, as in the train step."""
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
    batch = Batch(*(ints(rows, tokens) for _ in range(4)), jax.ShapeDtypeStruct((rows, tokens), jnp.float32),
                  ints(rows, tokens), {})  # fmt: skip

    def residuals(params, batch):
        mine, rest = split(params, trainable(config))
        _, backward = jax.vjp(lambda mine: jnp.sum(Forward(config).logprobs(join(mine, rest), batch)[0]), mine)
        inputs = {id(leaf) for leaf in jax.tree.leaves((params, batch))}
        return [leaf for leaf in jax.tree.leaves(backward) if id(leaf) not in inputs]

    return tree_bytes(jax.eval_shape(residuals, abstract(config), batch))


def local(config: ModelConfig, tensor: int) -> ModelConfig:
    """One device's share of a model that is divided over the tensor axis."""
    if tensor == 1:
        return config
    share = lambda name: max(1, getattr(config, name) // tensor)  # noqa: E731
    names = ("heads", "kv_heads", "ffn", "vocab_size")
    return dataclasses.replace(config, **{name: share(name) for name in names})


def update(
    config: ModelConfig, cfg: dict, sequences: int, tokens: int, mesh: dict, frozen: int = 0
) -> dict[str, float]:
    """What an update adds: gradients, the activations of one micro-batch with every row full, logits. frozen: models
    that the loss runs beside the policy."""
    each = math.ceil(sequences / cfg["minibatches"] / cfg["microbatches"])
    rows = math.ceil(each / parts(mesh, BATCH))
    here = local(config, mesh["tensor"])
    plain = dataclasses.replace(here, remat="", scan_layers=True)
    one, two = (kept(dataclasses.replace(plain, layers=n), rows, tokens) for n in (1, 2))
    cotangent = 4 * rows * here.heads * tokens**2  # of the attention scores
    working = two - one + cotangent if config.scan_layers else 0  # unrolled: freed as it is kept
    if mesh["fsdp"] > 1:
        whole, single = (dataclasses.replace(here, layers=n, param_dtype=here.compute_dtype) for n in (2, 1))
        one = dict.fromkeys(mesh, 1)
        gathered = weights(whole, one) - weights(single, one)
        working += 2 * gathered  # a layer's weights in whole, and the next one's on their way
        working += weights(single, one, {"embed", "head"})  # whole in every micro-batch
    return {
        "gradients": 2 * weights(config, mesh, trainable(config)),
        "activations": kept(here, rows, tokens) + working,
        "logits": (LOGITS + frozen) * 4 * min(here.head_chunk_tokens, rows * tokens) * here.vocab_size,
    }  # fmt: skip


def sample(config: ModelConfig, *, prompts: int, n: int, prompt_tokens: int, max_tokens: int, slots: int, mesh: dict,
           chunk_requests: int = 32_768, layouts: int = 1) -> dict[str, float]:  # fmt: skip
    """What a sampling call adds: the cache with what a refill writes into it, the prompts, logits, and results.
    layouts: on a TPU the decode loop reads the cache in another layout than a refill writes it in, so both are held."""
    P, here, groups = bucket(prompt_tokens), local(config, mesh["tensor"]), parts(mesh, BATCH)
    per_call = max(1, min(prompts, chunk_requests // n))
    samples = min(n, chunk_requests)
    own = share(per_call, samples, per_call, samples, groups)[0].shape[1]  # prompts of one group
    slots = -(-min(slots, per_call * samples) // groups)
    cast = config.param_dtype != config.compute_dtype
    return {
        "cache": max(layouts * kv_cache(config, slots, P + max_tokens, mesh),
                     kv_cache(config, slots, P + max_tokens, mesh) + kv_cache(config, slots, P, mesh)),
        "prompts": kv_cache(config, own, P, mesh) + own * row_bytes(config, P, mesh["tensor"]),
        "logits": 4 * 4 * slots * here.vocab_size,
        "results": 2 * 8 * per_call * samples * max_tokens,
        "cast weights": weights(dataclasses.replace(config, param_dtype=config.compute_dtype), mesh) if cast else 0,
    }


def score(config: ModelConfig, *, sequences: int, tokens: int, mesh: dict) -> dict[str, float]:
    """What a scoring call adds: a forward pass over its rows, each of `tokens` tokens."""
    rows = batch_rows(config, mesh, sequences, tokens) // parts(mesh, BATCH)
    here = local(config, mesh["tensor"])
    out = {
        "scoring rows": rows * row_bytes(config, tokens, mesh["tensor"]),
        "logits": 4 * min(here.head_chunk_tokens, rows * tokens) * here.vocab_size,
    }
    if mesh["fsdp"] > 1:
        whole = dataclasses.replace(here, param_dtype=here.compute_dtype)
        out["scoring rows"] += weights(whole, dict.fromkeys(mesh, 1), {"embed", "head"})
    return out
