"""The programs of a sampling call: prompts prefilled once, slots that decode and are refilled, in stages.

A slot decodes one token a step, at its own position. While requests wait, enough free slots take the next of them.
Each of the `stages` has fewer slots or a longer ring than the one before, so that a step costs what is alive: responses
that have just begun read a short ring, and the last long ones are not decoded in the company of slots that have ended.
A stage is a program, and is compiled when something first lives on into it: the host looks once a stage, never within.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp

from ceiling.model import layers
from ceiling.model.config import ModelConfig
from ceiling.model.sharding import constrain
from ceiling.model.transformer import unembed
from ceiling.rollout import cache as kv
from ceiling.rollout import sampling

FEWEST, SHORTEST = 8, 16  # slots and ring of the smallest stage: a shorter one would not earn its compilation


def stages(config: ModelConfig, slots: int, requests: int, ring: int) -> list[tuple[int, int]]:
    """(slots, ring) of each stage of a group; no request waits any more when the second begins.

    Few, since each is compiled. A ring begins short only where all requests begin together, and are equally old. One
    stage where layers are scanned: a stacked cache moves as a whole, and would be held twice meanwhile."""
    if config.scan_layers:
        return [(slots, ring)]
    short = [-(-ring // 3)] if requests <= slots and ring >= 3 * SHORTEST else []
    fewer = [slots // k for k in (2, 4) if slots // k >= FEWEST]
    return [*((slots, r) for r in (*short, ring)), *((few, ring) for few in fewer)]


@flax.struct.dataclass
class _Slots:
    """Carry of the decode loop. Idle slots point at request Q, one past the end: writes to it drop."""

    cache: kv.Cache | None  # of Z * B rows
    request_ZB: jax.Array
    key_ZB: jax.Array  # of the request's noise
    token_ZB: jax.Array  # last token drawn, not yet in the cache
    length_ZB: jax.Array  # tokens of the prompt
    count_ZB: jax.Array  # tokens drawn so far
    limit_ZB: jax.Array  # tokens that may be drawn
    live_ZB: jax.Array
    next_Z: jax.Array  # next request of each group's queue
    tokens_ZQR: jax.Array
    logprobs_ZQR: jax.Array
    lengths_ZQ: jax.Array
    stopped_ZQ: jax.Array
    steps: jax.Array
    slot_steps: jax.Array  # of one group


_pick = jax.vmap(lambda table_C, index_B: table_C[index_B])
_put = jax.vmap(lambda table, at, value: table.at[at].set(value, mode="drop"))


@dataclasses.dataclass(frozen=True)
class How:
    """What all stages of a call have in common; static."""

    config: ModelConfig
    stop_ids: tuple[int, ...]
    prompt_capacity: int
    max_new_tokens: int
    top_p: float
    greedy: bool


def run(params, *, config: ModelConfig, stop_ids, slots, max_new_tokens, top_p, greedy, branches=0,
        temperature, seed_key, tokens_ZCP, prompt_ZQ, **queue):  # fmt: skip
    """One chunk: prefill its prompts, then run its queues of requests through the slots, `slots` of each group; queue:
    what else `begin` takes. Returns (tokens_ZQR, logprobs_ZQR, lengths_ZQ, stopped_ZQ, slot-steps of each group)."""
    how = How(config, stop_ids, tokens_ZCP.shape[2], max_new_tokens, top_p, greedy)
    plan = stages(config, slots, prompt_ZQ.shape[1], max_new_tokens)
    fewer = lambda slots: max((few for few, _ in plan if few < slots), default=0)  # noqa: E731
    rows, numbers = len(prompt_ZQ) * slots, layers.numbers(config)
    weights = params if config.scan_layers else _for_rows(params, config, rows, numbers)
    s, alive = begin(
        weights, temperature, how=how, slots=slots, ring=plan[0][1], fewer=fewer(slots), last=len(plan) == 1,
        branches=branches, seed_key=seed_key, tokens_ZCP=tokens_ZCP, prompt_ZQ=prompt_ZQ, **queue,
    )  # fmt: skip
    for slots, ring in plan[1:]:
        if not alive:
            break
        s, alive = go_on(weights, temperature, s, how=how, slots=slots, ring=ring, fewer=fewer(slots))
    return _results(s, params["embed"])


_for_rows = jax.jit(layers.for_rows, static_argnums=(1, 2))


@functools.partial(jax.jit, static_argnames=("how", "slots", "ring", "fewer", "last", "branches"))
def begin(params, temperature, *, how: How, slots, ring, fewer, last, branches,
          seed_key, tokens_ZCP, lengths_ZC, ids_ZC, queued_Z, prompt_ZQ, sample_ZQ, limit_ZQ):  # fmt: skip
    """The prefill and the first stage, which alone refills its slots: (state, whether anything is alive). last: there
    is no other stage, and the state comes without its cache, which would be held twice."""
    (Z, C, P), Q, R = tokens_ZCP.shape, prompt_ZQ.shape[1], how.max_new_tokens
    like, divided = params["embed"], _over_rows(params)
    prompt_cache, ends = kv.prefill(params, how.config, tokens_ZCP.reshape(-1, P), lengths_ZC.reshape(-1))
    ends_ZCD = ends.reshape(Z, C, -1)

    def refill(s: _Slots):
        """Move the next requests of each group's queue into its free slots."""
        free_ZB = ~s.live_ZB
        request_ZB = s.next_Z[:, None] + jnp.cumsum(free_ZB, axis=1) - 1
        take_ZB = free_ZB & (request_ZB < queued_Z[:, None])
        request_ZB = jnp.where(take_ZB, request_ZB, jnp.where(free_ZB, Q, s.request_ZB))
        safe_ZB = jnp.minimum(request_ZB, Q - 1)
        prompt_ZB, sample_ZB = divided(_pick(prompt_ZQ, safe_ZB)), _pick(sample_ZQ, safe_ZB)
        s = s.replace(
            cache=kv.with_prompts(s.cache, kv.rows(prompt_cache, prompt_ZB, C), take_ZB.reshape(-1)),
            request_ZB=request_ZB,
            key_ZB=sampling.keys(seed_key, _pick(ids_ZC, prompt_ZB), sample_ZB),
            length_ZB=jnp.where(take_ZB, _pick(lengths_ZC, prompt_ZB), s.length_ZB),
            count_ZB=jnp.where(take_ZB, 0, s.count_ZB),
            limit_ZB=_pick(limit_ZQ, safe_ZB),
            next_Z=s.next_Z + jnp.sum(take_ZB, axis=1),
        )
        logits = _whole_rows(unembed(params, how.config, _pick(ends_ZCD, prompt_ZB).reshape(take_ZB.size, -1)))
        ranked = lambda: sampling.ranked(logits, sample_ZB.reshape(-1), branches)  # noqa: E731
        return _record(s, how, divided, take_ZB, *(ranked() if branches else _draw(s, how, temperature, logits)))

    def waiting(s: _Slots):
        return jnp.any(s.next_Z < queued_Z)

    def busy(s: _Slots):
        free_Z = jnp.sum(~s.live_ZB, axis=1)
        due = jnp.any((free_Z >= max(1, slots // 8)) & (s.next_Z < queued_Z))
        return jnp.where(waiting(s), jnp.any(s.live_ZB) & ~due, _more(s, how, ring, fewer))

    zeros_ZB = divided(jnp.zeros((Z, slots), jnp.int32))
    s = _Slots(
        cache=kv.empty(how.config, Z * slots, P + ring, like), request_ZB=zeros_ZB + Q,
        key_ZB=jnp.broadcast_to(seed_key, zeros_ZB.shape), token_ZB=zeros_ZB,
        length_ZB=zeros_ZB, count_ZB=zeros_ZB, limit_ZB=zeros_ZB, live_ZB=zeros_ZB > 0, next_Z=jnp.zeros(Z, jnp.int32),
        tokens_ZQR=divided(jnp.zeros((Z, Q, R), jnp.int32)), logprobs_ZQR=divided(jnp.zeros((Z, Q, R), jnp.float32)),
        lengths_ZQ=jnp.zeros((Z, Q), jnp.int32), stopped_ZQ=jnp.zeros((Z, Q), bool), steps=jnp.int32(0),
        slot_steps=jnp.int32(0),
    )  # fmt: skip
    step = functools.partial(_step, params, temperature, how=how, ring=ring)
    refilled = lambda s: jax.lax.while_loop(busy, step, refill(s))  # noqa: E731
    s = jax.lax.while_loop(lambda s: waiting(s) | _more(s, how, ring, fewer), refilled, s)
    return s.replace(cache=None) if last else s, _alive(s, like)


@functools.partial(jax.jit, static_argnames=("how", "slots", "ring", "fewer"))
def go_on(params, temperature, s: _Slots, *, how: How, slots: int, ring: int, fewer: int):
    """A later stage: in fewer slots of each group, live ones first, or with a longer ring, until what lives fits into
    `fewer` of them. (state, whether anything is alive)."""
    divided, size = _over_rows(params), s.live_ZB.shape[1]
    if slots == size:
        s = s.replace(cache=kv.longer(s.cache, how.prompt_capacity + ring))
    else:
        index_ZB = divided(jnp.argsort(~s.live_ZB, axis=1, stable=True)[:, :slots])
        names = ("request_ZB", "key_ZB", "token_ZB", "length_ZB", "count_ZB", "limit_ZB", "live_ZB")
        kept = {name: divided(_pick(getattr(s, name), index_ZB)) for name in names}
        s = s.replace(cache=kv.rows(s.cache, index_ZB, size), **kept)
    step = functools.partial(_step, params, temperature, how=how, ring=ring)
    s = jax.lax.while_loop(lambda s: _more(s, how, ring, fewer), step, s)
    return s, _alive(s, params["embed"])


def _more(s: _Slots, how: How, ring: int, fewer: int):
    """Whether a stage goes on: more are alive than the next has slots, and they fit into the ring."""
    return jnp.any(jnp.sum(s.live_ZB, axis=1) > fewer) & ((ring == how.max_new_tokens) | (s.steps < ring))


def _step(params, temperature, s: _Slots, *, how: How, ring: int) -> _Slots:
    """One more token for every live slot."""
    place, divided = s.steps % ring, _over_rows(params)
    # As rows are. Tokens are drawn by more devices, over which every rotation and mask would be divided as well.
    token, length, count = (divided(x).reshape(-1) for x in (s.token_ZB, s.length_ZB, s.count_ZB))
    distance = kv.ring_distance(how.prompt_capacity, ring, place, length, count)
    at = how.prompt_capacity + place
    logits, cache = kv.decode(params, how.config, s.cache, token, length + count - 1, at, distance)
    s = s.replace(cache=cache, steps=s.steps + 1, slot_steps=s.slot_steps + s.live_ZB.shape[1])
    drawn = _draw(s, how, temperature, _whole_rows(logits))
    return _record(s, how, divided, s.live_ZB, *drawn)


def _draw(s: _Slots, how: How, temperature, logits):
    """(token, its log-probability) for every slot, from logits [Z * B, V]."""
    u = sampling.uniforms(s.key_ZB.reshape(-1), s.count_ZB.reshape(-1))
    return sampling.draw(logits, u, temperature=temperature, top_p=how.top_p, greedy=how.greedy)


def _record(s: _Slots, how: How, divided, update_ZB, token, logp) -> _Slots:
    """The state with what was drawn for the slots in update_ZB."""
    Q = s.tokens_ZQR.shape[1]
    token_ZB, logp_ZB = (divided(x.reshape(s.live_ZB.shape)) for x in (token, logp))
    target_ZB = jnp.where(update_ZB, s.request_ZB, Q)
    stop_ZB = jnp.isin(token_ZB, jnp.asarray(how.stop_ids, jnp.int32))
    count_ZB = jnp.where(update_ZB, s.count_ZB + 1, s.count_ZB)
    return s.replace(
        token_ZB=jnp.where(update_ZB, token_ZB, s.token_ZB),
        count_ZB=count_ZB,
        live_ZB=jnp.where(update_ZB, ~stop_ZB & (count_ZB < s.limit_ZB), s.live_ZB),
        tokens_ZQR=_put(s.tokens_ZQR, (target_ZB, s.count_ZB), token_ZB),
        logprobs_ZQR=_put(s.logprobs_ZQR, (target_ZB, s.count_ZB), logp_ZB),
        lengths_ZQ=_put(s.lengths_ZQ, target_ZB, count_ZB),
        stopped_ZQ=_put(s.stopped_ZQ, target_ZB, stop_ZB),
    )


def _whole_rows(logits):
    """Every device draws for some of the rows, and has their whole vocabulary: an exchange, no gather."""
    return constrain(logits, "rows", None)


def _over_rows(params):
    return lambda x: constrain(x, "batch", *[None] * (x.ndim - 1), like=params["embed"])


def _alive(s: _Slots, like):
    return constrain(jnp.any(s.live_ZB), like=like)


@jax.jit
def _results(s: _Slots, like):
    """Whole everywhere, so that every host can read them."""
    results = s.tokens_ZQR, s.logprobs_ZQR, s.lengths_ZQ, s.stopped_ZQ, s.slot_steps
    return jax.tree.map(lambda x: constrain(x, *[None] * x.ndim, like=like), results)
