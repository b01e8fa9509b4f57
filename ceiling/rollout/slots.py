"""The program of a sampling call: prompts prefilled once, slots that decode and are refilled, one jitted whole.

A slot decodes one token a step, at its own position. While requests wait, enough free slots take the next of them.
Then the loop runs through `stages`, each with fewer slots or a longer ring than the one before, so that a step costs
what is alive: responses that have just begun read a short ring, and the last long ones are not decoded in the company
of slots that have ended.
"""

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

    cache: kv.Cache  # of Z * B rows
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
_record = jax.vmap(lambda table, at, value: table.at[at].set(value, mode="drop"))


@functools.partial(jax.jit, static_argnames=(
    "config", "stop_ids", "slots", "max_new_tokens", "top_p", "greedy", "branches"))  # fmt: skip
def run(params, *, config: ModelConfig, stop_ids, slots, max_new_tokens, top_p, greedy, branches=0,
        temperature, seed_key, tokens_ZCP, lengths_ZC, ids_ZC, queued_Z, prompt_ZQ, sample_ZQ, limit_ZQ):  # fmt: skip
    """One chunk: prefill its prompts, then run its queues of requests through the slots, `slots` of each group.
    Returns (tokens_ZQR, logprobs_ZQR, lengths_ZQ, stopped_ZQ, slot-steps of each group)."""
    (Z, C, P), Q, R = tokens_ZCP.shape, prompt_ZQ.shape[1], max_new_tokens
    like, params = params["embed"], layers.for_rows(params, config, Z * slots)
    prompt_cache, last = kv.prefill(params, config, tokens_ZCP.reshape(-1, P), lengths_ZC.reshape(-1))
    last_ZCD = last.reshape(Z, C, -1)
    stops = jnp.asarray(stop_ids, jnp.int32)
    divided = lambda x: constrain(x, "batch", *[None] * (x.ndim - 1), like=like)  # noqa: E731

    def draw(s: _Slots, logits, update_ZB, *, first: bool):
        """Draw a token for the slots in update_ZB from logits [Z * B, V] and record it."""
        # Every device draws for some of the rows, and has their whole vocabulary: an exchange, no gather.
        logits = constrain(logits, "rows", None)
        if first and branches:
            sample_ZB = _pick(sample_ZQ, jnp.minimum(s.request_ZB, Q - 1))
            token, logp = sampling.ranked(logits, sample_ZB.reshape(-1), branches)
        else:
            u = sampling.uniforms(s.key_ZB.reshape(-1), s.count_ZB.reshape(-1))
            token, logp = sampling.draw(logits, u, temperature=temperature, top_p=top_p, greedy=greedy)
        token_ZB, logp_ZB = (divided(x.reshape(s.live_ZB.shape)) for x in (token, logp))
        target_ZB = jnp.where(update_ZB, s.request_ZB, Q)
        stop_ZB = jnp.isin(token_ZB, stops)
        count_ZB = jnp.where(update_ZB, s.count_ZB + 1, s.count_ZB)
        return s.replace(
            token_ZB=jnp.where(update_ZB, token_ZB, s.token_ZB),
            count_ZB=count_ZB,
            live_ZB=jnp.where(update_ZB, ~stop_ZB & (count_ZB < s.limit_ZB), s.live_ZB),
            tokens_ZQR=_record(s.tokens_ZQR, (target_ZB, s.count_ZB), token_ZB),
            logprobs_ZQR=_record(s.logprobs_ZQR, (target_ZB, s.count_ZB), logp_ZB),
            lengths_ZQ=_record(s.lengths_ZQ, target_ZB, count_ZB),
            stopped_ZQ=_record(s.stopped_ZQ, target_ZB, stop_ZB),
        )

    def refill(s: _Slots):
        """Move the next requests of each group's queue into its free slots."""
        free_ZB = ~s.live_ZB
        request_ZB = s.next_Z[:, None] + jnp.cumsum(free_ZB, axis=1) - 1
        take_ZB = free_ZB & (request_ZB < queued_Z[:, None])
        request_ZB = jnp.where(take_ZB, request_ZB, jnp.where(free_ZB, Q, s.request_ZB))
        safe_ZB = jnp.minimum(request_ZB, Q - 1)
        prompt_ZB = divided(_pick(prompt_ZQ, safe_ZB))
        moved = kv.rows(prompt_cache, prompt_ZB, C)

        def move(live, prompt):
            old = live[..., :P, :]
            return live.at[..., :P, :].set(jnp.where(take_ZB.reshape(-1, 1, 1, 1), prompt, old))

        s = s.replace(
            cache=jax.tree.map(move, s.cache, moved),
            request_ZB=request_ZB,
            key_ZB=sampling.keys(seed_key, _pick(ids_ZC, prompt_ZB), _pick(sample_ZQ, safe_ZB)),
            length_ZB=jnp.where(take_ZB, _pick(lengths_ZC, prompt_ZB), s.length_ZB),
            count_ZB=jnp.where(take_ZB, 0, s.count_ZB),
            limit_ZB=_pick(limit_ZQ, safe_ZB),
            next_Z=s.next_Z + jnp.sum(take_ZB, axis=1),
        )
        first = unembed(params, config, _pick(last_ZCD, prompt_ZB).reshape(take_ZB.size, -1))
        return draw(s, first, take_ZB, first=True)

    def waiting(s: _Slots):
        return jnp.any(s.next_Z < queued_Z)

    def stage(s: _Slots, ring: int, fewer: int, *, first: bool):
        """Decode until what lives fits into `fewer` slots of each group, or no longer into the ring. Only the first
        stage refills its slots."""
        slots = s.live_ZB.shape[1]
        refill_at = max(1, slots // 8)

        def step(s: _Slots):
            place = s.steps % ring
            token, length, count = (x.reshape(-1) for x in (s.token_ZB, s.length_ZB, s.count_ZB))
            distance = kv.ring_distance(P, ring, place, length, count)
            logits, cache = kv.decode(params, config, s.cache, token, length + count - 1, P + place, distance)
            s = s.replace(cache=cache, steps=s.steps + 1, slot_steps=s.slot_steps + slots)
            return draw(s, logits, s.live_ZB, first=False)

        def more(s: _Slots):
            return jnp.any(jnp.sum(s.live_ZB, axis=1) > fewer) & ((ring == R) | (s.steps < ring))

        def busy(s: _Slots):
            free_Z = jnp.sum(~s.live_ZB, axis=1)
            due = jnp.any((free_Z >= refill_at) & (s.next_Z < queued_Z))
            return jnp.where(waiting(s), jnp.any(s.live_ZB) & ~due, more(s))

        if not first:
            return jax.lax.while_loop(more, step, s)
        refilled = lambda s: jax.lax.while_loop(busy, step, refill(s))  # noqa: E731
        return jax.lax.while_loop(lambda s: waiting(s) | more(s), refilled, s)

    def resize(s: _Slots, slots: int, ring: int):
        """The state in fewer slots of each group, live ones first, or with a longer ring."""
        size = s.live_ZB.shape[1]
        if slots == size:
            return s.replace(cache=kv.longer(s.cache, P + ring))
        index_ZB = divided(jnp.argsort(~s.live_ZB, axis=1, stable=True)[:, :slots])
        names = ("request_ZB", "key_ZB", "token_ZB", "length_ZB", "count_ZB", "limit_ZB", "live_ZB")
        kept = {name: divided(_pick(getattr(s, name), index_ZB)) for name in names}
        return s.replace(cache=kv.rows(s.cache, index_ZB, size), **kept)

    plan = stages(config, slots, Q, R)
    zeros_ZB = divided(jnp.zeros((Z, slots), jnp.int32))
    s = _Slots(
        cache=kv.empty(config, Z * slots, P + plan[0][1], like), request_ZB=zeros_ZB + Q,
        key_ZB=jnp.broadcast_to(seed_key, zeros_ZB.shape), token_ZB=zeros_ZB,
        length_ZB=zeros_ZB, count_ZB=zeros_ZB, limit_ZB=zeros_ZB, live_ZB=zeros_ZB > 0, next_Z=jnp.zeros(Z, jnp.int32),
        tokens_ZQR=divided(jnp.zeros((Z, Q, R), jnp.int32)), logprobs_ZQR=divided(jnp.zeros((Z, Q, R), jnp.float32)),
        lengths_ZQ=jnp.zeros((Z, Q), jnp.int32), stopped_ZQ=jnp.zeros((Z, Q), bool), steps=jnp.int32(0),
        slot_steps=jnp.int32(0),
    )  # fmt: skip
    for i, (slots, ring) in enumerate(plan):
        fewer = max((few for few, _ in plan if few < slots), default=0)
        s = stage(resize(s, slots, ring) if i else s, ring, fewer, first=i == 0)
    results = s.tokens_ZQR, s.logprobs_ZQR, s.lengths_ZQ, s.stopped_ZQ, s.slot_steps
    # Whole everywhere, so that every host can read them.
    return jax.tree.map(lambda x: constrain(x, *[None] * x.ndim, like=like), results)
