"""The sampler: prompts prefilled once, a fixed number of slots refilled as samples end.

A call is cut into chunks of requests; each chunk is one jitted program with static shapes. Inside
it, all slots decode one token per step, each at its own position; when enough slots are free, the next
requests of the queue move in (the prompt's cache rows are copied, its first token is drawn from the
prefill logits). There is no host round trip per token and no [B, T, V] array.

Example:
    out = generate(policy, [[5, 6, 7]], n=4, max_new_tokens=16, temperature=1.0, top_p=1.0, seed=0)
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ceiling.model.config import ModelConfig
from ceiling.model.policy import Policy
from ceiling.rollout import cache as kv
from ceiling.rollout import sampling


@dataclasses.dataclass
class Completions:
    """Samples of one call, all NumPy, by prompt i and sample j.

    tokens int32[prompts, n, R], 0 after the end; logprobs f32, same shape, under the sampling
    distribution; lengths int32[prompts, n], counting the stop token; stopped bool[prompts, n],
    False where the response was cut at R tokens. executed_tokens counts padded prompts, a first token per
    sample (drawn from its prompt's logits), and slot-steps, idle ones too.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    lengths: np.ndarray
    stopped: np.ndarray
    executed_tokens: int

    def response(self, i: int, j: int) -> np.ndarray:
        return self.tokens[i, j, : self.lengths[i, j]]


def generate(
    policy: Policy,
    prompts,
    *,
    n: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int,
    problem_ids=None,
    first_sample: int = 0,
    slots: int = 512,
    chunk_requests: int = 32_768,
) -> Completions:
    """Draw n samples for every prompt (sequences of token ids).

    temperature 0 decodes greedily. problem_ids (uint32, default 0..) and first_sample key the noise:
    sample j of problem p is the same whatever else is in the call. Raises ValueError on an empty
    prompt, a non-positive n or length, or a temperature or top_p out of range.
    """
    prompts = [np.asarray(p, np.int32) for p in prompts]
    ids = np.arange(len(prompts)) if problem_ids is None else np.asarray(problem_ids)
    _check(prompts, ids, n, max_new_tokens, temperature, top_p, slots, chunk_requests)
    ids = ids.astype(np.uint32)
    capacity = bucket(max(len(p) for p in prompts))
    per_call = max(1, min(len(prompts), chunk_requests // n))
    samples_per_call = min(n, chunk_requests)
    requests = per_call * samples_per_call
    program = functools.partial(
        _run, policy.params, config=policy.config, stop_ids=policy.stop_ids, slots=min(slots, requests),
        max_new_tokens=max_new_tokens, top_p=float(top_p), greedy=temperature == 0,
        temperature=jnp.float32(temperature), seed_key=jax.random.key(seed),
    )  # fmt: skip
    shape = (len(prompts), n, max_new_tokens)
    out = Completions(np.zeros(shape, np.int32), np.zeros(shape, np.float32),
                      np.zeros(shape[:2], np.int32), np.zeros(shape[:2], bool), 0)  # fmt: skip
    for start in range(0, len(prompts), per_call):
        tokens_CP, lengths_C = pad_prompts(prompts[start : start + per_call], per_call, capacity)
        rows = min(per_call, len(prompts) - start)
        row_ids = np.resize(ids[start : start + rows], per_call)
        for done in range(0, n, samples_per_call):
            width = min(samples_per_call, n - done)
            prompt_Q = np.repeat(np.arange(rows), width)
            sample_Q = np.tile(np.arange(width) + first_sample + done, rows)
            fill = requests - len(prompt_Q)
            result = program(
                tokens_CP=tokens_CP, lengths_C=lengths_C, ids_C=row_ids, queued=np.int32(len(prompt_Q)),
                prompt_Q=np.pad(prompt_Q, (0, fill)).astype(np.int32),
                sample_Q=np.pad(sample_Q, (0, fill)).astype(np.uint32),
            )  # fmt: skip
            tokens, logprobs, lengths, stopped, steps = jax.device_get(result)
            here = (slice(start, start + rows), slice(done, done + width))
            used = rows * width
            out.tokens[here] = tokens[:used].reshape(rows, width, -1)
            out.logprobs[here] = logprobs[:used].reshape(rows, width, -1)
            out.lengths[here] = lengths[:used].reshape(rows, width)
            out.stopped[here] = stopped[:used].reshape(rows, width)
            out.executed_tokens += tokens_CP.size + used + int(steps) * min(slots, requests)
    return out


@flax.struct.dataclass
class _Slots:
    """Carry of the decode loop. Idle slots point at request Q, one past the end: writes to it drop."""

    cache: kv.Cache
    request_B: jax.Array
    token_B: jax.Array  # last token drawn, not yet in the cache
    length_B: jax.Array  # tokens of the prompt
    count_B: jax.Array  # tokens drawn so far
    live_B: jax.Array
    next_request: jax.Array
    tokens_QR: jax.Array
    logprobs_QR: jax.Array
    lengths_Q: jax.Array
    stopped_Q: jax.Array
    steps: jax.Array


@functools.partial(jax.jit, static_argnames=(
    "config", "stop_ids", "slots", "max_new_tokens", "top_p", "greedy"))  # fmt: skip
def _run(params, *, config: ModelConfig, stop_ids, slots, max_new_tokens, top_p, greedy,
         temperature, seed_key, tokens_CP, lengths_C, ids_C, queued, prompt_Q, sample_Q):  # fmt: skip
    """One chunk: prefill its prompts, then run its queue of requests through the slots."""
    Q, P, R, B = prompt_Q.shape[0], tokens_CP.shape[1], max_new_tokens, slots
    prompt_cache, first_logits_CV = kv.prefill(params, config, tokens_CP, lengths_C)
    refill_at = max(1, B // 8)
    stops = jnp.asarray(stop_ids, jnp.int32)

    def draw(s: _Slots, logits_BV, update_B):
        """Draw a token for the slots in update_B and record it."""
        request_B = jnp.minimum(s.request_B, Q - 1)
        u_B = sampling.uniforms(seed_key, ids_C[prompt_Q[request_B]], sample_Q[request_B], s.count_B)
        token_B, logp_B = sampling.draw(
            logits_BV, u_B, temperature=temperature, top_p=top_p, greedy=greedy
        )
        target_B = jnp.where(update_B, s.request_B, Q)
        stop_B = jnp.isin(token_B, stops)
        count_B = jnp.where(update_B, s.count_B + 1, s.count_B)
        return s.replace(
            token_B=jnp.where(update_B, token_B, s.token_B),
            count_B=count_B,
            live_B=jnp.where(update_B, ~stop_B & (count_B < R), s.live_B),
            tokens_QR=s.tokens_QR.at[target_B, s.count_B].set(token_B, mode="drop"),
            logprobs_QR=s.logprobs_QR.at[target_B, s.count_B].set(logp_B, mode="drop"),
            lengths_Q=s.lengths_Q.at[target_B].set(count_B, mode="drop"),
            stopped_Q=s.stopped_Q.at[target_B].set(stop_B, mode="drop"),
        )

    def refill(s: _Slots):
        """Move the next requests of the queue into the free slots."""
        free_B = ~s.live_B
        request_B = s.next_request + jnp.cumsum(free_B) - 1
        take_B = free_B & (request_B < queued)
        request_B = jnp.where(take_B, request_B, jnp.where(free_B, Q, s.request_B))
        prompt_B = prompt_Q[jnp.minimum(request_B, Q - 1)]
        cache = jax.tree.map(
            lambda live, prompt: live.at[..., :P, :].set(
                jnp.where(take_B[:, None, None, None], prompt[..., prompt_B, :, :, :], live[..., :P, :])
            ),
            s.cache, prompt_cache,
        )  # fmt: skip
        s = s.replace(
            cache=cache,
            request_B=request_B,
            length_B=jnp.where(take_B, lengths_C[prompt_B], s.length_B),
            count_B=jnp.where(take_B, 0, s.count_B),
            next_request=s.next_request + jnp.sum(take_B),
        )
        return draw(s, first_logits_CV[prompt_B], take_B)

    def step(s: _Slots):
        place = s.steps % R
        distance_BS = kv.ring_distance(P, R, place, s.length_B, s.count_B)
        position_B = s.length_B + s.count_B - 1
        logits_BV, cache = kv.decode(params, config, s.cache, s.token_B, position_B, P + place, distance_BS)
        return draw(s.replace(cache=cache, steps=s.steps + 1), logits_BV, s.live_B)

    def busy(s: _Slots):
        enough_free = (jnp.sum(~s.live_B) >= refill_at) & (s.next_request < queued)
        return jnp.any(s.live_B) & ~enough_free

    def unfinished(s: _Slots):
        return (s.next_request < queued) | jnp.any(s.live_B)

    zeros_B = jnp.zeros(B, jnp.int32)
    state = _Slots(
        cache=kv.empty(config, B, P + R), request_B=jnp.full(B, Q, jnp.int32), token_B=zeros_B,
        length_B=zeros_B, count_B=zeros_B, live_B=jnp.zeros(B, bool), next_request=jnp.int32(0),
        tokens_QR=jnp.zeros((Q, R), jnp.int32), logprobs_QR=jnp.zeros((Q, R), jnp.float32),
        lengths_Q=jnp.zeros(Q, jnp.int32), stopped_Q=jnp.zeros(Q, bool), steps=jnp.int32(0),
    )  # fmt: skip
    s = jax.lax.while_loop(unfinished, lambda s: jax.lax.while_loop(busy, step, refill(s)), state)
    return s.tokens_QR, s.logprobs_QR, s.lengths_Q, s.stopped_Q, s.steps


def bucket(length: int) -> int:
    """Smallest capacity from a short list that holds `length`: few shapes, so few compilations."""
    for limit, multiple in ((32, 4), (128, 16), (1024, 128)):
        if length <= limit:
            return -(-length // multiple) * multiple
    return -(-length // 512) * 512


def pad_prompts(prompts, rows: int, capacity: int):
    """Right-padded int32[rows, capacity] and lengths int32[rows]; missing rows are one token long."""
    tokens_CP, lengths_C = np.zeros((rows, capacity), np.int32), np.ones(rows, np.int32)
    for i, prompt in enumerate(prompts):
        tokens_CP[i, : len(prompt)] = prompt
        lengths_C[i] = len(prompt)
    return tokens_CP, lengths_C


def _check(prompts, ids, n, max_new_tokens, temperature, top_p, slots, chunk_requests):
    if not prompts or any(len(p) == 0 for p in prompts):
        raise ValueError("rollout: every prompt needs at least one token; got an empty prompt or list")
    if ids.shape != (len(prompts),):
        raise ValueError(f"rollout: problem_ids has shape {ids.shape} for {len(prompts)} prompts; give one id each")
    if n < 1 or max_new_tokens < 1:
        raise ValueError(f"rollout: n={n} and max_new_tokens={max_new_tokens} must be at least 1")
    if slots < 1 or chunk_requests < 1:
        raise ValueError(f"rollout: slots={slots} and chunk_requests={chunk_requests} must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"rollout: temperature={temperature} must be finite and >= 0 (0 is greedy)")
    if not 0 < top_p <= 1:
        raise ValueError(f"rollout: top_p={top_p} must be in (0, 1]")
