"""Episodes of several turns: generate until a call or an end, run the tool, splice its answer in, go on.

Every token is processed once. A row of the cache is an episode from its first token on, a token's place being its
position; a turn ends with the token that completes a call, and its row waits, as it lies, until the tool has answered.
The answer is then appended to it, together with that last token, and the next one is drawn. Meanwhile other rows are
decoded, and free ones take the next episodes of the queue: nothing waits for a slow tool but its own episode.

The device runs four programs of fixed shape, whatever the episodes look like:

    prefill   C prompts, each once for all its samples
    fork      rows take over a prompt's part of the cache, and draw their first token
    decode    at most STRIDE tokens for every live row
    extend    E rows take up to T tokens each, and draw the next

The noise of a token is that of `sampling.uniforms` at its position in the response, and no row's arithmetic depends on
another's: an episode is the same whatever the slots are, and whenever its tools answer. With several processes the
first runs the tools, and the others hear of it (ceiling/hosts).

Example:
    scene = Scene(task.environment, task.tokenizer, problems)
    out = converse(policy, prompts, scene=scene, n=4, max_new_tokens=256, temperature=1.0, top_p=1.0, seed=0)
"""

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ceiling import hosts
from ceiling.model import layers
from ceiling.model.config import ModelConfig
from ceiling.model.policy import Policy
from ceiling.model.sharding import BATCH, constrain, parts
from ceiling.model.transformer import unembed
from ceiling.rollout import cache as kv
from ceiling.rollout import sampling, tools
from ceiling.rollout.engine import Completions, bucket, check, pad_prompts
from ceiling.rollout.scoring import BATCH_BYTES, batch_rows
from ceiling.tasks.base import Environment, Problem

STRIDE = 16  # most tokens of a row between two looks of the host


@dataclasses.dataclass(frozen=True)
class Scene:
    """What the episodes of a call are played in. problems: one per prompt."""

    environment: Environment
    tokenizer: Any
    problems: Sequence[Problem]


def scene_of(task, problems: Sequence[Problem]) -> Scene | None:
    """The scene of these problems, None for a task of single responses."""
    environment = getattr(task, "environment", None)
    return None if environment is None else Scene(environment, task.tokenizer, problems)


def converse(
    policy: Policy, prompts, *, scene: Scene, n: int, max_new_tokens: int, temperature: float, top_p: float, seed: int,
    problem_ids=None, first_sample: int = 0, slots: int = 512, opening=(),
) -> Completions:  # fmt: skip
    """n episodes for every prompt; arguments and errors as for `generate`, and so are episodes without a call.

    max_new_tokens bounds a whole response, observations included: an episode ends, not stopped, where it is cut, where
    an observation and one more token would not fit, and with the call after the environment's last. opening: token ids
    at the end of every prompt that belong to the agent's first turn.
    Beside the fields of `generate`, `own` says which tokens the model wrote, and `events` counts "tool calls", "tool
    errors" and "tool timeouts" (among them), "observation tokens", and "tokens processed": those of every prompt once,
    and of every episode all but its last. executed_tokens counts all rows of all programs, idle and padded ones too."""
    prompts = [np.asarray(p, np.int32) for p in prompts]
    ids = np.arange(len(prompts)) if problem_ids is None else np.asarray(problem_ids)
    check(prompts, ids, n, max_new_tokens, temperature, top_p, slots, 1)
    if len(scene.problems) != len(prompts):
        raise ValueError(f"rollout: {len(scene.problems)} problems for {len(prompts)} prompts; give one for each")
    rule = _Rule(jax.random.key(seed), jnp.float32(temperature), float(top_p), temperature == 0)
    play = _Play(policy, rule, prompts, ids.astype(np.uint32), scene, n, first_sample, max_new_tokens, slots, opening)
    play.run()
    return play.out


# --- the host ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Episode:
    """What a slot plays: sample j of prompt i. turn: where in the response its own text of now begins."""

    i: int
    j: int
    turn: int = 0
    calls: int = 0


class _Play:
    """The episodes of one call: slots of the device, and what the host knows of each."""

    def __init__(self, policy, rule, prompts, ids, scene, n, first_sample, max_new_tokens, slots, opening):
        self.policy, self.rule, self.prompts, self.ids, self.scene = policy, rule, prompts, ids, scene
        self.n, self.first_sample, self.R, self.opening = n, first_sample, max_new_tokens, np.asarray(opening, np.int32)
        self.requests, self.next = n * len(prompts), 0  # request r is sample r % n of prompt r // n
        self.words, self.environment = tools.Wording(scene.environment, scene.tokenizer), scene.environment
        config, groups = policy.config, 1 if policy.mesh is None else parts(policy.mesh.shape, BATCH)
        self.B = B = -(-min(slots, self.requests) // groups) * groups
        self.P = bucket(max(len(p) for p in prompts))
        self.C = batch_rows(config, policy.mesh, min(len(prompts), B), self.P)
        self.T = bucket(1 + min(self.environment.max_observation_tokens, max_new_tokens))
        scores = 8 * config.heads * self.T * (self.P + max_new_tokens)  # bytes of a row's attention scores in `extend`
        self.E = max(1, min(-(-B // 8), BATCH_BYTES // scores))
        self.halts_V = np.zeros(config.vocab_size, bool)
        self.halts_V[[*policy.stop_ids, *self.words.pauses[self.words.pauses < config.vocab_size]]] = True
        self.pauses = frozenset(map(int, self.words.pauses)) - set(policy.stop_ids)

        self.cache = _empty(config, B, self.P + max_new_tokens, policy.params["embed"])
        self.group = -1  # prompts [group * C, (group + 1) * C) are prefilled
        self.episodes: list[_Episode | None] = [None] * B
        self.answers: dict[int, list[int]] = {}  # slot -> observation that waits to be fed
        self.waiting: set[int] = set()  # slots whose tool has not answered
        self.live_B, self.token_B = np.zeros(B, bool), np.zeros(B, np.int32)
        self.length_B, self.count_B = np.ones(B, np.int32), np.zeros(B, np.int32)  # of prompt, of response
        self.id_B, self.sample_B = np.zeros(B, np.uint32), np.zeros(B, np.uint32)

        shape = (len(prompts), n, max_new_tokens)
        self.out = Completions(
            np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(shape[:2], np.int32),
            np.zeros(shape[:2], bool), 0, own=np.zeros(shape, bool), events=collections.Counter(dict.fromkeys(
                ("tool calls", "tool errors", "tool timeouts", "observation tokens", "tokens processed"), 0)),
        )  # fmt: skip

    def run(self) -> None:
        environment = self.environment
        with tools.Pool(environment.call, environment.workers, environment.timeout_s) as self.pool:
            while self.next < self.requests or any(self.episodes):
                self.fork()
                self.extend()
                self.decode()
                self.hear()
        self.out.events = {name: int(amount) for name, amount in self.out.events.items()}

    def fork(self) -> None:
        """The next episodes of the queue into the free slots."""
        free = [slot for slot in range(self.B) if self.episodes[slot] is None]
        while free and self.next < self.requests:
            if self.next // self.n // self.C != self.group:
                self.prefill(self.next // self.n // self.C)
            last = min(self.requests, (self.group + 1) * self.C * self.n, self.next + len(free))
            taken, prompt_B = [], np.full(self.B, -1, np.int32)
            for request in range(self.next, last):
                i, j, slot = request // self.n, request % self.n, free.pop(0)
                self.episodes[slot] = _Episode(i, j)
                self.id_B[slot], self.sample_B[slot] = self.ids[i], self.first_sample + j
                self.length_B[slot], self.count_B[slot] = len(self.prompts[i]), 0
                prompt_B[slot] = i % self.C
                taken.append(slot)
            self.next = last
            self.out.executed_tokens += len(taken)  # counted as `generate` does: a first token per sample
            self.draw(taken, taken, _fork, self.prompt_cache, self.last_CD, prompt_B, self.who())

    def prefill(self, group: int) -> None:
        prompts = self.prompts[group * self.C : (group + 1) * self.C]
        tokens_CP, lengths_C = pad_prompts(prompts, self.C, self.P)
        self.prompt_cache, self.last_CD = _prefill(self.policy.params, self.policy.config, tokens_CP, lengths_C)
        self.group = group
        self.out.executed_tokens += tokens_CP.size
        self.out.events["tokens processed"] += sum(map(len, prompts))

    def extend(self) -> None:
        """Feed the observations that have come, each with the token that its call ended with."""
        ready = list(self.answers)
        for start in range(0, len(ready), self.E):
            rows = ready[start : start + self.E]
            tokens_ET, fed_E = np.zeros((self.E, self.T), np.int32), np.ones(self.E, np.int32)
            rows_E, start_E = np.full(self.E, self.B, np.int32), np.zeros(self.E, np.int32)
            for e, slot in enumerate(rows):
                tokens = [self.token_B[slot], *self.answers.pop(slot)]
                tokens_ET[e, : len(tokens)], fed_E[e], rows_E[e] = tokens, len(tokens), slot
                start_E[e] = self.length_B[slot] + self.count_B[slot] - 1
                episode, count = self.episodes[slot], self.count_B[slot]
                episode.turn = self.count_B[slot] = count + len(tokens) - 1
                self.out.tokens[episode.i, episode.j, count : episode.turn] = tokens[1:]
                self.out.events["observation tokens"] += len(tokens) - 1
                self.out.events["tokens processed"] += len(tokens)
            self.out.executed_tokens += tokens_ET.size
            who = [x[np.minimum(rows_E, self.B - 1)] for x in self.who()]
            self.draw(rows, range(len(rows)), _extend, tokens_ET, start_E, fed_E, rows_E, who)

    def draw(self, slots, places, program, *arguments) -> None:
        """Run a program that draws one token for each of these slots, at these places of what it returns."""
        self.cache, *drawn = program(self.policy.params, self.policy.config, self.rule, self.cache, *arguments)
        token, logp = jax.device_get(drawn)
        for slot, place in zip(slots, places, strict=True):
            self.take(slot, token[place : place + 1], logp[place : place + 1])

    def decode(self) -> None:
        if not self.live_B.any():
            return
        held_B = self.length_B + self.count_B - 1
        self.cache, *results = _decode(
            self.policy.params, self.policy.config, self.rule, self.cache, self.token_B, held_B, self.live_B,
            self.halts_V, self.R, self.who(),
        )  # fmt: skip
        token_UB, logp_UB, drawn_B, steps = jax.device_get(results)
        self.out.executed_tokens += int(steps) * self.B
        self.out.events["tokens processed"] += int(drawn_B.sum())
        for slot in np.flatnonzero(drawn_B):
            k = drawn_B[slot]
            self.take(int(slot), token_UB[:k, slot], logp_UB[:k, slot])

    def hear(self) -> None:
        """What the tools have answered; where nothing else is to be done, what they will."""
        if not self.waiting:
            return
        idle = not (self.live_B.any() or self.answers or (self.next < self.requests and None in self.episodes))
        heard = hosts.led(lambda: [
            (slot, status, *self.words.observation(text)) for slot, text, status in self.pool.finished(wait=idle)
        ])  # fmt: skip
        for slot, status, tokens, answered in heard:
            self.waiting.remove(slot)
            self.out.events["tool timeouts"] += status == tools.TIMEOUT
            self.out.events["tool errors"] += status != tools.TIMEOUT and not answered
            if self.count_B[slot] + len(tokens) < self.R:
                self.answers[slot] = tokens
            else:
                self.end(slot, stopped=False)

    def take(self, slot: int, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """Tokens that the model has drawn. Only the last of them may end a turn."""
        episode, first, last = self.episodes[slot], self.count_B[slot], int(tokens[-1])
        count = self.count_B[slot] = first + len(tokens)
        where = episode.i, episode.j, slice(first, count)
        self.out.tokens[where], self.out.logprobs[where], self.out.own[where] = tokens, logprobs, True
        self.token_B[slot] = last
        if last in self.policy.stop_ids:
            self.end(slot, stopped=True)
        elif last in self.pauses and (turn := self.words.call(self.spoken(episode, count))) is not None:
            self.ask(slot, turn)
        elif count == self.R:
            self.end(slot, stopped=False)
        else:
            self.live_B[slot] = True

    def spoken(self, episode: _Episode, count: int) -> np.ndarray:
        """The agent's tokens since the last observation."""
        tokens = self.out.tokens[episode.i, episode.j, episode.turn : count]
        return tokens if episode.turn else np.concatenate([self.opening, tokens])

    def ask(self, slot: int, turn: str) -> None:
        """Have a call answered, if there may be one more and its observation can have room."""
        episode, shortest = self.episodes[slot], len(self.words.opening) + len(self.words.closing)
        if episode.calls == self.environment.max_calls or self.count_B[slot] + shortest >= self.R:
            self.end(slot, stopped=False)
            return
        episode.calls += 1
        self.live_B[slot] = False
        self.waiting.add(slot)
        self.out.events["tool calls"] += 1
        if hosts.leader():
            self.pool.submit(slot, (self.scene.problems[episode.i], turn))

    def end(self, slot: int, stopped: bool) -> None:
        episode = self.episodes[slot]
        self.out.lengths[episode.i, episode.j] = self.count_B[slot]
        self.out.stopped[episode.i, episode.j] = stopped
        self.episodes[slot], self.live_B[slot] = None, False

    def who(self) -> list[np.ndarray]:
        """What keys the noise of each slot's next token: problem, sample, position in the response."""
        return [self.id_B, self.sample_B, self.count_B]


# --- the device ----------------------------------------------------------------------------------------------------


@flax.struct.dataclass
class _Rule:
    """How tokens are drawn."""

    seed_key: jax.Array
    temperature: jax.Array
    top_p: float = flax.struct.field(pytree_node=False)
    greedy: bool = flax.struct.field(pytree_node=False)

    def draw(self, logits_BV, who):
        """(tokens int32[B], log-probabilities f32[B])."""
        id_B, sample_B, position_B = who
        u_B = sampling.uniforms(sampling.keys(self.seed_key, id_B, sample_B), position_B)
        logits_BV = constrain(logits_BV, "rows", None)
        return sampling.draw(logits_BV, u_B, temperature=self.temperature, top_p=self.top_p, greedy=self.greedy)


_program = functools.partial(jax.jit, static_argnums=1, donate_argnums=3)
_empty = jax.jit(kv.empty, static_argnums=(0, 1, 2), keep_unused=True)  # the mesh is that of the weight
_prefill = jax.jit(kv.prefill, static_argnums=1)


@_program
def _fork(params, config: ModelConfig, rule: _Rule, cache, prompt_cache, last_CD, prompt_B, who):
    """Rows with a prompt_B >= 0 become that prompt's, and draw a first token from its last activations."""
    own = jax.tree.map(lambda x: jnp.take(x, prompt_B, axis=x.ndim - 4, mode="clip"), prompt_cache)
    logits_BV = unembed(params, config, last_CD.at[prompt_B].get(mode="clip"))
    return kv.with_prompts(cache, own, prompt_B >= 0), *_read(params, *rule.draw(logits_BV, who))


@_program
def _extend(params, config: ModelConfig, rule: _Rule, cache, tokens_ET, start_E, fed_E, rows_E, who):
    """Rows rows_E take fed_E tokens each, and draw the next one."""
    x_ETD, cache = kv.extend(params, config, cache, tokens_ET, start_E, rows_E)
    logits_EV = unembed(params, config, x_ETD[jnp.arange(len(fed_E)), fed_E - 1])
    return cache, *_read(params, *rule.draw(logits_EV, who))


@_program
def _decode(params, config: ModelConfig, rule: _Rule, cache, token_B, held_B, live_B, halts_V, longest, who):
    """Up to STRIDE tokens for every live row: until it draws one that halts, its response has `longest` tokens, or so
    many rows have halted that the host has something to do. Returns (cache, tokens [STRIDE, B], their
    log-probabilities, how many each row has drawn, steps)."""
    (id_B, sample_B, count_B), B = who, len(token_B)
    params = layers.for_rows(params, config, B)
    enough = max(1, B // 8)

    def go_on(s):
        step, *_, live, _, _ = s
        return (step < STRIDE) & jnp.any(live) & (jnp.sum(live_B) - jnp.sum(live) < enough)

    def one(s):
        step, cache, token, drawn, live, tokens, logps = s
        x_B1D, cache = kv.extend(params, config, cache, token[:, None], held_B + drawn)
        new, logp = rule.draw(unembed(params, config, x_B1D[:, 0]), (id_B, sample_B, count_B + drawn))
        token, drawn = jnp.where(live, new, token), drawn + live
        tokens, logps = tokens.at[step].set(token), logps.at[step].set(logp)
        live = live & ~halts_V[token] & (count_B + drawn < longest)
        return step + 1, cache, token, drawn, live, tokens, logps

    tokens, logps = jnp.zeros((STRIDE, B), jnp.int32), jnp.zeros((STRIDE, B), jnp.float32)
    state = jnp.int32(0), cache, token_B, jnp.zeros(B, jnp.int32), live_B, tokens, logps
    step, cache, _, drawn, _, tokens, logps = jax.lax.while_loop(go_on, one, state)
    return cache, *_read(params, tokens, logps, drawn, step)


def _read(params, *results):
    """Results whole everywhere, so that every host can read them."""
    return jax.tree.map(lambda x: constrain(x, *[None] * x.ndim, like=params["embed"]), results)
