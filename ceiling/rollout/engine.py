"""The sampler: n samples of every prompt, whatever their number, in constant memory.

A call is cut into chunks of requests; each chunk is one run of the programs in slots.py, with static shapes.
There is no host round trip per token and no [B, T, V] array.

On a mesh the slots lie in Z groups, one for every part that rows are divided into (the data and fsdp axes). A group
has its own share of the requests and the prompts they need, so no cache row ever moves between devices; heads are
divided over the tensor axis. A sample is the same whatever the mesh is: its noise is its own.

Example:
    out = generate(policy, [[5, 6, 7]], n=4, max_new_tokens=16, temperature=1.0, top_p=1.0, seed=0)
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from ceiling.model.policy import Policy
from ceiling.model.sharding import BATCH, parts
from ceiling.rollout.slots import run
from ceiling.tasks.base import Turns


@dataclasses.dataclass
class Completions:
    """Samples of one call, all NumPy, by prompt i and sample j.

    tokens int32[prompts, n, R], 0 after the end; logprobs f32, same shape, under the sampling
    distribution; lengths int32[prompts, n], counting the stop token; stopped bool[prompts, n],
    False where the response was cut at R tokens. executed_tokens counts padded prompts, a first token per
    sample (drawn from its prompt's logits), and slot-steps, idle ones too.

    Episodes of several turns (rollout/episodes.py) have, beside: own bool[prompts, n, R], False where a tool wrote the
    token (its logprob is 0); events: how often what happened ("tool calls", "tool errors", ...).
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    lengths: np.ndarray
    stopped: np.ndarray
    executed_tokens: int
    own: np.ndarray | None = None
    events: dict[str, int] = dataclasses.field(default_factory=dict)

    def response(self, i: int, j: int) -> np.ndarray:
        """int32: tokens of sample j of prompt i, its stop token included."""
        return self.tokens[i, j, : self.lengths[i, j]]

    def written(self, i: int, j: int) -> np.ndarray | None:
        """bool, one per token of the response: whether the model wrote it; None where it wrote all of it."""
        return None if self.own is None else self.own[i, j, : self.lengths[i, j]]

    @property
    def drawn(self) -> np.ndarray:
        """int[prompts, n]: tokens of each response that the model wrote."""
        return self.lengths if self.own is None else self.own.sum(axis=2)

    def text(self, i: int, j: int, decode: Callable) -> str | Turns:
        """The response as a task reads it: a text, or the turns of an episode."""
        tokens, own = self.response(i, j), self.written(i, j)
        return decode(tokens) if own is None else tuple(decode(tokens[a:b]) for a, b in turn_spans(own))


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
    branch: bool = False,
    limits=None,
) -> Completions:
    """Draw n samples for every prompt (sequences of token ids).

    temperature 0 decodes greedily. problem_ids (uint32, default 0..) and first_sample key the noise:
    sample j of problem p is the same whatever else is in the call. branch: sample j starts with the j-th most likely
    token (of first_sample + n at most, from 0) and goes on from there. limits: int[prompts, n], tokens after which each
    sample is cut, from 1 to max_new_tokens (the default). Raises ValueError on an empty prompt, a non-positive n or
    length, limits of another shape or range, or a temperature or top_p out of range.
    """
    prompts = [np.asarray(p, np.int32) for p in prompts]
    ids = np.arange(len(prompts)) if problem_ids is None else np.asarray(problem_ids)
    check(prompts, ids, n, max_new_tokens, temperature, top_p, slots, chunk_requests)
    limits = np.full((len(prompts), n), max_new_tokens, np.int32) if limits is None else np.asarray(limits, np.int32)
    if limits.shape != (len(prompts), n) or limits.min() < 1 or limits.max() > max_new_tokens:
        raise ValueError(
            f"rollout: limits of shape {limits.shape} from {limits.min()} to {limits.max()}; give {len(prompts)} "
            f"prompts x {n} samples of them, from 1 to max_new_tokens={max_new_tokens}"
        )
    branches = first_sample + n if branch else 0
    if branches > policy.config.vocab_size:
        raise ValueError(f"rollout: {branches} branches of a vocabulary of {policy.config.vocab_size}; ask for fewer")
    ids = ids.astype(np.uint32)
    capacity = bucket(max(len(p) for p in prompts))
    per_call = max(1, min(len(prompts), chunk_requests // n))
    samples_per_call = min(n, chunk_requests)
    requests = per_call * samples_per_call
    groups = 1 if policy.mesh is None else parts(policy.mesh.shape, BATCH)
    own_slots = -(-min(slots, requests) // groups)
    program = functools.partial(
        run, policy.params, config=policy.config, stop_ids=policy.stop_ids, slots=own_slots,
        max_new_tokens=max_new_tokens, top_p=float(top_p), greedy=temperature == 0, branches=branches,
        temperature=np.float32(temperature), seed_key=jax.random.key(seed),
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
            index_ZC, prompt_ZQ, sample_ZQ, queued_Z = share(rows, width, per_call, samples_per_call, groups)
            here, used = (slice(start, start + rows), slice(done, done + width)), rows * width
            request_ZQ = np.arange(sample_ZQ.size).reshape(sample_ZQ.shape)
            result = program(
                tokens_ZCP=tokens_CP[index_ZC], lengths_ZC=lengths_C[index_ZC], ids_ZC=row_ids[index_ZC],
                queued_Z=queued_Z, prompt_ZQ=prompt_ZQ, sample_ZQ=sample_ZQ + np.uint32(first_sample + done),
                limit_ZQ=limits[here].ravel()[np.minimum(request_ZQ, used - 1)],
            )  # fmt: skip
            *drawn, slot_steps = jax.device_get(result)
            for whole, part in zip((out.tokens, out.logprobs, out.lengths, out.stopped), drawn, strict=True):
                whole[here] = part.reshape(-1, *part.shape[2:])[:used].reshape(rows, width, *part.shape[2:])
            out.executed_tokens += index_ZC.size * capacity + used + int(slot_steps) * groups
    return out


def turn_spans(own: np.ndarray) -> list[tuple[int, int]]:
    """Token ranges [first, stop) of the turns of a response: the model's and the environment's in turn, beginning and
    ending with the model's, which may be empty."""
    edges = np.flatnonzero(np.diff(own.astype(np.int8))) + 1
    starts = [0, *([0] if len(own) and not own[0] else []), *map(int, edges), len(own)]
    if len(starts) % 2:  # the environment had the last word
        starts.append(len(own))
    return list(zip(starts, starts[1:], strict=False))


def share(rows: int, width: int, per_call: int, samples_per_call: int, groups: int):
    """The queue of rows * width requests, prompt by prompt, cut into equal parts in order: (index_ZC of the prompts
    that a group holds, prompt_ZQ as a place among those, sample_ZQ, queued_Z). Shapes are those of a full call."""
    Q = -(-per_call * samples_per_call // groups)
    start_Z = np.arange(groups) * Q
    last_Z = np.minimum(start_Z + Q, per_call * samples_per_call) - 1
    C = max(1, int((last_Z // samples_per_call - start_Z // samples_per_call).max()) + 1)
    request_ZQ = start_Z[:, None] + np.arange(Q)
    inside_ZQ = np.minimum(request_ZQ, rows * width - 1)
    first_Z1 = inside_ZQ[:, :1] // width
    return (
        np.minimum(first_Z1 + np.arange(C), rows - 1), (inside_ZQ // width - first_Z1).astype(np.int32),
        (inside_ZQ % width).astype(np.uint32), np.sum(request_ZQ < rows * width, axis=1, dtype=np.int32),
    )  # fmt: skip


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


def check(prompts, ids, n, max_new_tokens, temperature, top_p, slots, chunk_requests):
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
