"""Bytes on one device, by kind: what an arm holds all the time, and what each phase adds at its peak.

Weights, copies and optimiser state are exact sums over the parameter table, divided by the mesh axes that its rules
name. What the backward pass keeps is read from the real forward by tracing it on shapes (`kept`): nothing is
allocated. Each phase is the largest of its few moments, whose terms are what is live then: one block's working set, a
chunk of logits, gradients (the running sum and the micro-batch's own), weights that are gathered or copied. Tests
compare with what XLA asks for on a CPU (tests/test_plan.py) and on TPUs (tests/tpu).

Rows of a batch, slots and prompts are divided over the data and fsdp axes, heads and vocabulary over the tensor axis.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from ceiling.data.packing import WHOLE, Batch, Cells, Layout
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
def kept(config: ModelConfig, rows: int, tokens: int, cells: Cells = WHOLE) -> int:
    """Bytes that autodiff keeps for the backward pass of the log-probs of `rows` packed rows of `tokens` tokens,
    weights and inputs aside. Only what is trained is differentiated, as in the train step."""
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
    batch = Batch(*(ints(rows, tokens) for _ in range(5)), jax.ShapeDtypeStruct((rows, tokens), jnp.float32),
                  ints(rows, tokens), {}, cells)  # fmt: skip

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


def update(config: ModelConfig, at: Layout, mesh: dict, frozen: int = 0, tpu: bool = False) -> dict[str, float]:
    """What an update adds at its peak, with every row of a micro-batch full. at: as the loop lays them out. frozen:
    models that the loss runs beside the policy. Two moments can be the peak: at the logits, before the micro-batch has
    a gradient of its own; or in the backward pass of the first block, when it has almost all of it."""
    rows, tokens, cells = math.ceil(at.rows / parts(mesh, BATCH)), at.row_tokens, at.cells
    here, models = local(config, mesh["tensor"]), 1 + frozen
    kept_by_blocks = kept(dataclasses.replace(here, head_chunk_tokens=1), rows, tokens, cells)  # no logits among it
    plain = dataclasses.replace(here, remat="", scan_layers=True)
    one, two = (kept(dataclasses.replace(plain, layers=n), rows, tokens, cells) for n in (1, 2))
    cotangent = 4 * rows * here.heads * cells.scores(tokens)  # of attention
    block = two - one + cotangent if config.scan_layers else 0  # with its weights; unrolled: freed as it is kept
    chunk = 4 * min(here.head_chunk_tokens, rows * tokens) * here.vocab_size
    gradients = weights(config, mesh, trainable(config))
    copies = models * (sum(ends(config, mesh)) + (turned(config, mesh) if tpu else 0))
    copies += 0 if config.scan_layers else weights(config, mesh)  # of the policy, layer by layer
    return largest(
        {"gradients": gradients, "activations": kept_by_blocks, "logits": (LOGITS + frozen) * chunk,
         "weight copies": copies},
        # The logits' cotangents wait for the gradient of the head, which is taken late.
        {"gradients": 2 * gradients, "activations": kept_by_blocks + block, "logits": models * chunk,
         "weight copies": copies + layer(config, mesh)},
    )  # fmt: skip


def sample(config: ModelConfig, *, prompts: int, n: int, prompt_tokens: int, max_tokens: int, slots: int, mesh: dict,
           chunk_requests: int = 32_768, tpu: bool = False) -> dict[str, float]:  # fmt: skip
    """What a sampling call adds at its peak: in the prefill of the prompts, in a refill, or in a step of decoding."""
    P, here, groups = bucket(prompt_tokens), local(config, mesh["tensor"]), parts(mesh, BATCH)
    per_call = max(1, min(prompts, chunk_requests // n))
    samples = min(n, chunk_requests)
    own = share(per_call, samples, per_call, samples, groups)[0].shape[1]  # prompts of one group
    slots = -(-min(slots, per_call * samples) // groups)
    cache, prompt_cache = kv_cache(config, slots, P + max_tokens, mesh), kv_cache(config, own, P, mesh)
    # Keys and values of the prompts that move in, and one of the two again while it is turned into the cache's layout.
    moved = 1.5 * kv_cache(config, slots, P, mesh)
    two_layers = 2 * layer(config, mesh)
    # Embedding and head are gathered once, before the loop; on other devices than TPUs, all weights are cast once.
    cast = not tpu and config.param_dtype != config.compute_dtype
    copies = sum(ends(config, mesh)) + (turned(config, mesh) if tpu else 0)
    copies += weights(dataclasses.replace(config, param_dtype=config.compute_dtype), mesh) if cast else 0
    return {"results": 2 * 8 * per_call * samples * max_tokens} | largest(
        {"prompts": prompt_cache + own * row_bytes(config, P, mesh["tensor"]), "weight copies": copies + two_layers},
        {"cache": cache + moved, "prompts": prompt_cache, "weight copies": copies},
        {"cache": cache, "prompts": prompt_cache, "weight copies": copies + two_layers,
         "logits": 4 * 4 * slots * here.vocab_size},
    )  # fmt: skip


def score(config: ModelConfig, *, sequences: int, tokens: int, mesh: dict) -> dict[str, float]:
    """What a scoring call adds at its peak: in a block, or at the logits of a chunk (they and their log-softmax)."""
    rows = batch_rows(config, mesh, sequences, tokens) // parts(mesh, BATCH)
    here, (embed, head) = local(config, mesh["tensor"]), ends(config, mesh)
    hidden = rows * tokens * config.width * jnp.dtype(config.compute_dtype).itemsize
    shared = embed if config.tied else 0  # one weight, first and last
    return largest(
        {"scoring rows": rows * row_bytes(config, tokens, mesh["tensor"]),
         "weight copies": shared + 2 * layer(config, mesh)},
        {"scoring rows": hidden, "weight copies": shared or head,
         "logits": 2 * 4 * min(here.head_chunk_tokens, rows * tokens) * here.vocab_size},
    )  # fmt: skip


def largest(*moments: dict[str, float]) -> dict[str, float]:
    """The one that needs most."""
    return max(moments, key=lambda kinds: sum(kinds.values()))


def ends(config: ModelConfig, mesh: dict) -> tuple[int, int]:
    """Bytes of the embedding and of the head (0 where they are one) as every device holds them while it uses them: in
    the compute dtype, whole over the fsdp axis. 0 where no axis divides them."""
    return tuple(_gathered(config, mesh, {path}) for path in ("embed", "head"))


def layer(config: ModelConfig, mesh: dict) -> int:
    """Bytes of one layer's weights in the compute dtype, whole over the fsdp axis. While one layer is at work, the next
    one's are on their way. 0 where no axis divides them."""
    return _gathered(config, mesh, set(table(config)) - {"embed", "head", "final_norm"}) // config.layers


def _gathered(config: ModelConfig, mesh: dict, paths: set) -> int:
    if mesh["fsdp"] == 1:
        return 0
    whole = dict.fromkeys(mesh, 1) | {"tensor": mesh["tensor"]}
    return weights(dataclasses.replace(config, param_dtype=config.compute_dtype), whole, paths)


def turned(config: ModelConfig, mesh: dict) -> int:
    """Bytes of the query, key and value projections of all layers: a TPU's loops read them in another layout than they
    lie in, of which a copy is made."""
    return weights(config, mesh, {f"layers/{name}" for name in ("wq", "wk", "wv")})
