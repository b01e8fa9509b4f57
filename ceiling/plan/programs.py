"""Every jitted program of an experiment on abstract arguments: what a compiler is given where nothing is allocated.

The programs are the real ones (`train.step`, `rollout.engine`, `rollout.scoring`), the arguments are shapes with dtypes
and shardings over a mesh, which may be that of a described topology. So memory, FLOPs and collectives of a slice of
TPUs are read on a laptop (scripts/scaling.py, tests/tpu), and the lowering for a GPU too.

Example:
    setting = Setting(model, mesh, arms={"sft": {...}}, prompt_tokens=256, response_tokens=512)
    programs(setting)["sft"]().lower().compile().memory_analysis()
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from ceiling.data.packing import Batch
from ceiling.model.config import ModelConfig, abstract
from ceiling.model.lora import trainable
from ceiling.model.policy import Policy
from ceiling.model.sequences import Forward
from ceiling.model.sharding import BATCH, RULES, batch_sharding, param_shardings, parts, replicated
from ceiling.plan import work
from ceiling.regimes import base as regimes
from ceiling.rollout import cache as kv
from ceiling.rollout import engine, scoring
from ceiling.rollout.slots import How, begin
from ceiling.train import optim
from ceiling.train.loop import layout
from ceiling.train.step import TrainState, make_step, split


@dataclasses.dataclass(frozen=True)
class Setting:
    """model: the policy, and the teacher and the reference, which are as large; arms: name -> a complete arm
    configuration; prompt_tokens and response_tokens: the longest ones, which everything is as long as."""

    model: ModelConfig
    mesh: Mesh
    arms: dict[str, dict]
    prompt_tokens: int
    response_tokens: int

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.response_tokens

    @property
    def rows_over(self) -> int:
        """Devices that rows are divided over."""
        return parts(self.mesh.shape, BATCH)


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function and its abstract arguments."""

    run: Callable
    args: tuple = ()
    kwargs: dict = dataclasses.field(default_factory=dict)

    def lower(self) -> jax.stages.Lowered:
        return self.run.lower(*self.args, **self.kwargs)

    def export(self, platform: str) -> jax.export.Exported:
        """Lowered for a platform that need not be here: "cuda", "tpu"."""
        return jax.export.export(self.run, platforms=[platform])(*self.args, **self.kwargs)


def programs(setting: Setting) -> dict[str, Callable[[], Program]]:
    """{name: function that makes it}: the step of every arm, then prefill, decode, sampling and scoring."""
    out = {name: functools.partial(train_step, setting, cfg) for name, cfg in setting.arms.items()}
    cfg = next(iter(setting.arms.values()))
    for program in (prefill, decode, sampling, score):
        out[program.__name__] = functools.partial(program, setting, cfg)
    return out


def laid_out(shape: tuple[int, ...], dtype, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def parameters(config: ModelConfig, mesh: Mesh) -> dict:
    return jax.tree.map(lambda leaf, s: laid_out(leaf.shape, leaf.dtype, s), abstract(config),
                        param_shardings(config, mesh))  # fmt: skip


def train_state(regime, config: ModelConfig, cfg: dict, optimiser, mesh: Mesh) -> TrainState:
    """The state that `train.step.init_state` makes: moments lie as their weights, counters everywhere."""
    params, mine = parameters(config, mesh), trainable(config)
    trained = split(params, mine)[0]
    everywhere = lambda leaf: laid_out(leaf.shape, leaf.dtype, replicated(mesh))  # noqa: E731
    moments = optax.tree_map_params(
        optimiser, lambda leaf, weight: laid_out(leaf.shape, leaf.dtype, weight.sharding),
        jax.eval_shape(optimiser.init, trained), trained, transform_non_params=everywhere,
    )  # fmt: skip
    aux = params if regime.init_aux else None
    zero = laid_out((), jnp.int32, replicated(mesh))
    return TrainState(params, moments, aux, zero, zero)


def batch(update: work.Update, cfg: dict, setting: Setting) -> Batch:
    """Micro-batches as the loop packs them, every row full."""
    at, home = layout(cfg, setting.tokens, setting.mesh.shape), batch_sharding(setting.mesh, leading=1)
    sequences = at.room(at.rows)
    make = lambda dtype, *shape: laid_out((at.parts, *shape), dtype, home)  # noqa: E731
    packed = [make(jnp.int32, at.rows, at.row_tokens) for _ in range(4)]
    targets, index = (make(jnp.int32, sequences, setting.tokens) for _ in range(2))
    mask = make(jnp.float32, sequences, setting.tokens)
    extra = {name: make(jnp.float32, sequences, *[setting.tokens] * per_token) for name, per_token in update.extras}
    return Batch(*packed, targets, mask, index, extra, at.cells, at.groups)


def train_step(setting: Setting, cfg: dict) -> Program:
    """The update of an arm."""
    regime, config = regimes.load(cfg["regime"]), setting.model
    one = work.updates(regime, cfg, setting.prompt_tokens, setting.response_tokens)[0]
    cfg = {**cfg, "max_tokens": setting.response_tokens}
    optimiser, after, forward = optim.make(cfg), regime.after_update, Forward(config)
    step = make_step(
        lambda params, batch, frozen: regime.loss(params, batch, frozen, forward, cfg), optimiser,
        after and (lambda aux, params: after(aux, params, cfg)), trainable(config), unrolled=not config.scan_layers,
    )  # fmt: skip
    frozen = {name: Policy(parameters(config, setting.mesh), config, ()) for name in one.frozen}
    lr = laid_out((), jnp.float32, replicated(setting.mesh))
    state = train_state(regime, config, cfg, optimiser, setting.mesh)
    return Program(step, (state, batch(one, cfg, setting), frozen, lr))


def prefill(setting: Setting, cfg: dict) -> Program:
    """The prompts of one sampling round."""
    prompts, _, _ = _queue(setting, cfg)
    ints = functools.partial(laid_out, dtype=jnp.int32, sharding=batch_sharding(setting.mesh))
    run = jax.jit(kv.prefill, static_argnums=1)
    params = parameters(setting.model, setting.mesh)
    tokens = ints((prompts, engine.bucket(setting.prompt_tokens)))
    return Program(run, (params, setting.model, tokens, ints((prompts,))))


def decode(setting: Setting, cfg: dict) -> Program:
    """One token for every slot."""
    config, mesh = setting.model, setting.mesh
    _, slots, _ = _queue(setting, cfg)
    capacity = engine.bucket(setting.prompt_tokens) + setting.response_tokens

    def over_devices(leaf):
        axes = *[None] * (leaf.ndim - 4), "batch", "kv_heads", None, None
        return laid_out(leaf.shape, leaf.dtype, NamedSharding(mesh, nn.logical_to_mesh_axes(axes, rules=RULES)))

    cache = jax.tree.map(over_devices, jax.eval_shape(lambda: kv.empty(config, slots, capacity)))
    ints = functools.partial(laid_out, dtype=jnp.int32, sharding=batch_sharding(mesh))
    place = laid_out((), jnp.int32, replicated(mesh))
    run = jax.jit(kv.decode, static_argnums=1, donate_argnums=2)
    params = parameters(config, mesh)
    return Program(run, (params, config, cache, ints((slots,)), ints((slots,)), place, ints((slots, capacity))))


def sampling(setting: Setting, cfg: dict) -> Program:
    """A sampling round, prefill and decode loop, all in one stage."""
    Z, P, R = setting.rows_over, engine.bucket(setting.prompt_tokens), setting.response_tokens
    prompts, slots, requests = (-(-count // Z) for count in _queue(setting, cfg))
    whole = functools.partial(laid_out, sharding=replicated(setting.mesh))
    i32, u32 = jnp.int32, jnp.uint32
    how = How(setting.model, stop_ids=(0,), prompt_capacity=P, max_new_tokens=R, top_p=1.0, greedy=False)
    return Program(begin, (parameters(setting.model, setting.mesh), whole((), jnp.float32)), dict(
        how=how, slots=slots, ring=R, fewer=0, last=True, branches=0,
        seed_key=jax.eval_shape(lambda: jax.random.key(0)),
        tokens_ZCP=whole((Z, prompts, P), i32), lengths_ZC=whole((Z, prompts), i32),
        ids_ZC=whole((Z, prompts), u32), queued_Z=whole((Z,), i32), prompt_ZQ=whole((Z, requests), i32),
        sample_ZQ=whole((Z, requests), u32), limit_ZQ=whole((Z, requests), i32),
    ))  # fmt: skip


def _queue(setting: Setting, cfg: dict) -> tuple[int, int, int]:
    """(prompts, slots, requests) of a sampling round, multiples of the devices that rows are divided over."""
    over = lambda count: -(-count // setting.rows_over) * setting.rows_over  # noqa: E731
    requests = cfg["prompts_per_step"] * cfg["samples_per_prompt"]
    return over(cfg["prompts_per_step"]), over(min(cfg["slots"], requests)), over(requests)


def score(setting: Setting, cfg: dict) -> Program:
    """One batch of scoring."""
    sequences = cfg["prompts_per_step"] * cfg["samples_per_prompt"]
    rows = scoring.batch_rows(setting.model, setting.mesh, sequences, setting.tokens)
    home = batch_sharding(setting.mesh)
    ints = [laid_out((rows, setting.tokens), jnp.int32, home) for _ in range(6)]
    mask = laid_out((rows, setting.tokens), jnp.float32, home)
    temperature = laid_out((), jnp.float32, replicated(setting.mesh))
    packed = Batch(*ints[:5], mask, ints[5], {})
    params = parameters(setting.model, setting.mesh)
    return Program(scoring._score, (params, packed, temperature), dict(config=setting.model, entropy=False))
