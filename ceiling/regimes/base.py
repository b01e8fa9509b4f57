"""What a regime is: data in, loss out. A record of pure functions; one file per regime.

A training step, for every regime: draw problems -> sample the regime's rounds -> verify -> score what it
asks for -> build examples -> update. The loop, the sampler, the ledger and the tests are shared; a new
regime is one file that exports `REGIME`: `ceiling/regimes/<name>.py`, found by its name, or a user's own, by its path.
"""

import collections
import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ceiling.regimes
from ceiling.config import ConfigError, Section
from ceiling.data.packing import Batch, Example
from ceiling.model.sequences import Forward
from ceiling.tasks.base import Problem, Turns, Verdict, own_module
from ceiling.tasks.rewards import Label


@dataclasses.dataclass(frozen=True)
class Sample:
    """One response: token ids, the behaviour log-probs of those that the model wrote (f32), whether it stopped.
    own: bool per token, False where a tool wrote it; None: the model wrote all of them."""

    prompt: np.ndarray
    tokens: np.ndarray
    logprobs: np.ndarray
    stopped: bool
    verdict: Verdict | None
    own: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Round:
    """A sampling round: which model ("policy" or "teacher"), n samples per prompt, the token that ends
    a response (None: end of text), the longest response, and whether the task judges it. A judged round without a
    stop of its own is played in the task's environment, if it has one: its responses are episodes.
    prompts(material) -> one text per problem, or equally many of each in turn; it sees what earlier rounds drew."""

    model: str
    n: int
    max_tokens: int
    prompts: Callable[["Material"], list[str]]
    stop: str | None = None
    judged: bool = True


@dataclasses.dataclass(frozen=True)
class ScoreRequest:
    """Log-probs wanted before examples are built: of each example's masked tokens, by "policy",
    "reference", "teacher" or "ema", at a temperature."""

    model: str
    examples: list[Example]
    temperature: float = 1.0


@dataclasses.dataclass
class Material:
    """What a step gives a regime. samples[r][i][j]: round r, problem i, sample j. scores[name][i]:
    log-probs of the masked tokens of the i-th example of that request. replay(count) draws documents of
    the prior's corpus. rng is keyed by (seed, step), so a step can be rerun; key is (seed, step) itself, for draws
    that must not depend on what was drawn before. labels: by problem id, for a regime that asked for them. events: what
    happened as examples were built, for `counts`."""

    task: Any
    problems: list[Problem]
    samples: list[list[list[Sample]]]
    scores: dict[str, list[np.ndarray]]
    replay: Callable[[int], list]
    rng: np.random.Generator
    labels: dict[int, Label] | None = None
    key: tuple[int, int] = (0, 0)
    events: dict[str, int] = dataclasses.field(default_factory=dict)

    def encode(self, text: str) -> np.ndarray:
        """Token ids, int32."""
        return np.asarray(self.task.tokenizer.encode(text), np.int32)


def _none(*_args):
    return ()


@dataclasses.dataclass(frozen=True)
class Regime:
    """What `REGIME` of a file is.

    name and config section; reads(cfg): what an arm may read, and

        examples(material, cfg) -> list[Example], at most prompts_per_step * samples_per_prompt of them
        loss(params, batch, frozen, forward, cfg) -> (sum, denominator, {metric: (sum, denominator)})
        rounds(cfg, task, rng) -> sampling rounds of this step
        scores(material, cfg) -> {name: ScoreRequest}
        frozen(cfg) -> models that the loss itself runs ("teacher", "reference"): it gets them as Policies
        init_aux(params, cfg), after_update(aux, params, cfg): slow state of the regime
        metrics(material, cfg) -> {name: value} on the host, for the training curves
        labels(cfg) -> samples per problem, of the policy it starts from, that vote for its label; 0: it needs none
        longest(cfg, task) -> tokens of the longest training sequence, where that can exceed a prompt and a response
        counts(material, examples, cfg) -> {counter of the ledger: amount} of a step
    """

    name: str
    config: Section
    reads: Callable[[Any], tuple[str, ...]]
    examples: Callable[[Material, Any], list[Example]]
    loss: Callable
    rounds: Callable[..., tuple[Round, ...]] = _none
    scores: Callable = lambda material, cfg: {}
    frozen: Callable[[Any], tuple[str, ...]] = _none
    init_aux: Callable | None = None
    after_update: Callable | None = None
    metrics: Callable[[Material, Any], dict[str, float]] = lambda material, cfg: {}
    labels: Callable[[Any], int] = lambda cfg: 0
    longest: Callable[[Any, Any], int] = lambda cfg, task: 0
    counts: Callable[[Material, list[Example], Any], dict[str, int]] = lambda material, learned, cfg: {}


def load(name: str) -> Regime:
    """The regime exported by `ceiling/regimes/<name>.py`, or by a user's own file if `name` is its path (it ends with
    .py); an unknown name lists the known ones."""
    return _module(name).REGIME


def summary_line(name: str) -> str:
    """First paragraph of a regime's documentation, for the report."""
    return " ".join((_module(name).__doc__ or name).split("\n\n")[0].split())


def _module(name: str):
    if name.endswith(".py"):
        return own_module(name, "regime", ("REGIME",))
    known = sorted(m.name for m in pkgutil.iter_modules(ceiling.regimes.__path__) if m.name != "base")
    if name not in known:
        raise ConfigError(f"regime={name!r} is not known; use one of {', '.join(known)}, or the path of a .py file")
    return importlib.import_module(f"ceiling.regimes.{name}")


def noise_ids(problems) -> list[int]:
    """Keys of a step's noise: a problem's id, moved for its second and later copies in the step, so that
    copies (one-problem training, the seam of two epochs) are different draws (invariant OS-3)."""
    copies: collections.Counter = collections.Counter()
    out = []
    for p in problems:
        out.append((p.id + copies[p.id] * 0x9E3779B1) % 2**32)
        copies[p.id] += 1
    return out


def response_example(sample: Sample, **extra) -> Example:
    """Prompt + response with what the model wrote of it as target. Per-token extras are given for that, and are 0
    elsewhere."""
    P = len(sample.prompt)
    tokens = np.concatenate([sample.prompt, sample.tokens])
    mask = np.arange(len(tokens)) >= P
    if sample.own is not None:
        mask[P:] = sample.own

    def placed(value):
        out = np.zeros(len(tokens), np.float32)
        out[mask] = value
        return out

    placed_extra = {k: placed(v) if np.ndim(v) else v for k, v in extra.items()}
    return Example(tokens, mask.astype(np.float32), placed_extra)


def text_example(encode, prompt: str, response: str | Turns) -> Example:
    """Text with the loss on the response (on all of it if the prompt is empty); of turns, on the agent's own."""
    turns = (response,) if isinstance(response, str) else response
    parts = [encode(prompt), *map(encode, turns)]
    mask = np.repeat(np.arange(len(parts)) % 2, [len(part) for part in parts])  # prompt, own, observed, own, ...
    return Example(np.concatenate(parts), mask.astype(np.float32))


def negative_log_likelihood(params, batch: Batch, forward: Forward):
    """(sum, denom, metrics) of plain next-token cross-entropy over the mask, in nats."""
    logp_BT, _ = forward.logprobs(params, batch)
    nll, tokens = -jnp.sum(logp_BT * batch.mask_BT), jnp.sum(batch.mask_BT)
    return nll, tokens, {"nll": (jax.lax.stop_gradient(nll), tokens)}
