"""A toy task, tiny models, and one hand-made training step: shared by the regime tests."""

import functools
import itertools
import types

import jax
import numpy as np
import pytest

import ceiling
from ceiling.data.packing import pack
from ceiling.data.tokens import CharTokenizer
from ceiling.model import config as model_config
from ceiling.model import transformer
from ceiling.model.policy import Policy
from ceiling.regimes import base
from ceiling.regimes.base import Material, Sample
from ceiling.rollout import generate
from ceiling.rollout.scoring import score
from ceiling.tasks.base import Document, Group, Outcome, Passage, Problem, Verdict, Verifier


class ToyTask:
    """Copy three letters and stop. A response counts as right by the parity of its first character, so
    that an untrained model is sometimes right; the regimes only ever see the Task protocol."""

    name = "toy"
    tokenizer = CharTokenizer("=#$:.0123456789abcdefghijkl", eos="$")  # 27 symbols: a vocabulary of 28
    groups = (Group("g", "toy", "copying", "none"),)
    max_response_tokens = 72

    def _problem(self, i: int) -> Problem:
        word = "".join("abcdefghijkl"[(i * k + 3 * k) % 12] for k in (1, 5, 7))
        return Problem(i, "g", f"{word}=" + "." * (i % 3), word)

    def evaluation(self):
        return [self._problem(i) for i in range(4)]

    def training(self, mix, size):
        return [self._problem(i) for i in range(100, 100 + size)]

    def corpus(self, kind, seed, count):
        return [Document(self._problem(seed + i).prompt, self._problem(seed + i).answer + "$") for i in range(count)]

    def demonstration(self, problem, rng):
        return None if problem.id % 5 == 4 else problem.answer + "#" + problem.answer + "$"

    def passage(self, problem):
        return Passage(problem.prompt, stop="#", bridge=":", continuation=problem.answer + "$", empty=".#:")

    def verify(self, problem, response):
        right = bool(response) and ord(response[0]) % 2 == 0
        return Verdict(Outcome.RIGHT if right else Outcome.WRONG, response[:1], float(right), right)

    def gate(self):
        return None

    # A critique is 1 or 0 and what its kind tells; "k" is the stock line. "#" is where a critic begins, ":" a rewriter.
    critics = {critic: ("indicative", "indicative_gt", "cot") for critic in ("task", "policy", "teacher", "file")}
    max_critique_tokens, max_critique_prompt_tokens = 6, 5 + 72 + 1

    def critique(self, problem, response, verdict, kind):
        if kind == "cot":
            return "k" if verdict.right else "0" + response[:1]
        return str(int(verdict.right)) + (problem.answer if kind == "indicative_gt" else "")

    def critique_prompt(self, problem, response, kind):
        known = {"indicative_gt": problem.answer, "cot": problem.answer + problem.answer}.get(kind, "")
        return problem.prompt + response.removesuffix("$") + known + "#"

    def refinement_prompt(self, problem, response, critique):
        return problem.prompt + response.removesuffix("$") + critique + ":" + problem.prompt

    def recorded(self, problem, kind):
        return [(f"{letter}{i}$", f"{i}1") for i, letter in enumerate(problem.answer)] if problem.id % 2 else []


class ToyWorld(ToyTask):
    """The toy task with an environment and an expert: a call is text up to ":", answered with its mirror image between
    dots; the expert asks for the first letter, then writes the word, but does not know every problem."""

    environment = types.SimpleNamespace(
        tags=(":",), opening=".", closing=".", max_calls=2, max_observation_tokens=8, timeout_s=5.0, workers=0,
        failed="0", call=lambda problem, turn: turn[-2::-1],
    )  # fmt: skip

    def expert(self, problem, rng):
        word = problem.answer
        return None if problem.id % 5 == 4 else (f"{word[0]}:", f".{word[0]}.", f"{'#' * rng.integers(3)}{word}$")

    def states(self, problem, rng):
        turns = self.expert(problem, rng) or ()
        return [(*turns[:i], "") for i in range(0, len(turns), 2)]

    def expert_action(self, problem, state):
        return self.expert(problem, np.random.default_rng(0))[len(state) - 1]

    def reflection(self, problem, state, expert_action, expert_observation, action, observation):
        return f"{observation or action[:-1]}{expert_observation or 0}#"


def model_of(task, **overrides):
    shape = dict(width=16, ffn=32, layers=1, heads=4, kv_heads=2, head_dim=8, tied=False, embed_std=1.0,
                 scan_layers=False)  # fmt: skip
    return model_config.ModelConfig(vocab_size=task.tokenizer.vocab_size, **{**shape, **overrides})


def fresh(model, seed):
    """Random weights from NumPy: jax's own initialiser costs seconds of compilation."""
    rng = np.random.default_rng(seed)
    draw = lambda row: np.ones(row.shape) if row.std is None else rng.normal(0, row.std, row.shape)  # noqa: E731
    rows = model_config.table(model).items()
    return model_config.unflatten({name: draw(row).astype(np.float32) for name, row in rows})


def arm(regime: str, **overrides) -> dict:
    """A plain arm configuration with what the loop resolves for it."""
    cfg = ceiling.arm(regime, **{"prompts_per_step": 4, "samples_per_prompt": 4, "pool": 16, **overrides}).to_dict()
    return {"max_tokens": ToyTask.max_response_tokens, **cfg}


def gather(regime, cfg, task, model, params, models, seed=0):
    """One step's (material, examples), written out apart from the loop: sample, judge, score, build. A round's prompts
    are one of each problem, or several of each in turn. A regime of an environment gets the toy task that has one."""
    if "environment" in regime.reads(cfg) and not hasattr(task, "environment"):
        task = ToyWorld()
    rng, verifier = np.random.default_rng(seed), Verifier(task)
    count = cfg["prompts_per_step"] * cfg.get("oversample", 1)
    replay = lambda n: task.corpus("prior", seed, n)  # noqa: E731
    material = Material(task, task.training({}, 64)[:count], [], {}, replay, rng)
    for r, spec in enumerate(regime.rounds(cfg, task, rng)):
        stop = task.tokenizer.eos_id if spec.stop is None else task.tokenizer.encode(spec.stop)[0]
        prompts = [material.encode(text) for text in spec.prompts(material)]
        weights = params if spec.model == "policy" else models[spec.model]
        out = generate(Policy(weights, model, (stop,)), prompts, n=spec.n, max_new_tokens=spec.max_tokens,
                       temperature=cfg["temperature"], seed=seed + r)  # fmt: skip
        judge = lambda p, t: verifier(p, task.tokenizer.decode(t)) if spec.judged else None  # noqa: B023, E731
        each = len(prompts) // len(material.problems)
        material.samples.append([
            [Sample(prompts[i], out.response(i, j), out.logprobs[i, j, : out.lengths[i, j]],
                    bool(out.stopped[i, j]), judge(problem, out.response(i, j)))
             for i in range(k * each, (k + 1) * each) for j in range(spec.n)]
            for k, problem in enumerate(material.problems)
        ])  # fmt: skip
    for name, request in regime.scores(material, cfg).items():
        weights = params if request.model == "policy" else models[request.model]
        material.scores[name], _ = score(
            weights, model, request.examples, max_tokens=96, temperature=request.temperature
        )
    return material, regime.examples(material, cfg)


@functools.partial(jax.jit, static_argnames="model")
def _all_logprobs(params, model, tokens_BT, temperature):
    """Full log-softmax [B, T, V] of sequences alone in their rows; a causal model ignores what follows."""
    return jax.nn.log_softmax(transformer.forward(params, model, tokens_BT) / temperature, axis=-1)


def slow_logprobs(params, model, sequences, temperature=1.0):
    """The textbook expression: per sequence, log-softmax [n - 1, V] and log p [n - 1] of the tokens after the
    first, without packing, masks or chunks."""
    width = max(map(len, sequences))
    rows = np.stack([np.pad(s, (0, width - len(s))) for s in sequences])
    logp_BTV = np.asarray(_all_logprobs(params, model, rows, temperature))
    return [
        (logp_TV[: len(s) - 1], logp_TV[np.arange(len(s) - 1), s[1:]])
        for s, logp_TV in zip(sequences, logp_BTV, strict=True)
    ]  # fmt: skip


def batch_of(examples, *, sequences=None, max_tokens=None, row_tokens=None, rows=None):
    longest = max(len(e.tokens) for e in examples)
    max_tokens = max_tokens or longest
    return pack(examples, sequences=sequences or len(examples), max_tokens=max_tokens,
                row_tokens=row_tokens or max_tokens, rows=rows)  # fmt: skip


@pytest.fixture(scope="session")
def toy():
    """Task, model, three different sets of weights (policy, teacher/reference, slow copy) and the helpers."""
    task = ToyTask()
    model = model_of(task)
    params, teacher, ema = (fresh(model, k) for k in (0, 1, 2))
    reference = jax.tree.map(lambda p, t: 0.9 * p + 0.1 * t, params, teacher)
    return types.SimpleNamespace(
        Task=ToyTask, task=task, world=ToyWorld(), model=model, params=params, gather=gather, arm=arm,
        batch_of=batch_of, models={"teacher": teacher, "reference": reference, "ema": ema}, slow_logprobs=slow_logprobs,
        load=base.load, model_of=model_of, fresh=fresh,
    )  # fmt: skip


def brute_advantages(rewards_NG, kind, pass_k=1):
    out = np.zeros(np.shape(rewards_NG))
    N, G = out.shape
    flat = [r for row in rewards_NG for r in row]
    for i, row in enumerate(rewards_NG):
        row = [float(r) for r in row]
        mean = sum(row) / G
        for j, r in enumerate(row):
            others = row[:j] + row[j + 1 :]
            if kind == "group_std":
                out[i, j] = (r - mean) / ((sum((x - mean) ** 2 for x in row) / (G - 1)) ** 0.5 + 1e-4)
            elif kind == "group_mean":
                out[i, j] = r - mean
            elif kind == "leave_one_out":
                out[i, j] = r - sum(others) / len(others)
            elif kind == "batch_whitened":
                whole = sum(flat) / (N * G)
                std = (sum((x - whole) ** 2 for x in flat) / (N * G - 1)) ** 0.5
                out[i, j] = (r - whole) / (std + 1e-4)
            elif kind == "best_of_group" and j == row.index(max(row)):
                out[i, j] = r - max(others)
            elif kind == "pass_at_k":
                best = lambda sets: np.mean([max(row[i] for i in s) for s in sets])  # noqa: B023, E731
                sets = list(itertools.combinations(range(G), pass_k))
                out[i, j] = pass_k * (best([s for s in sets if j in s]) - best([s for s in sets if j not in s]))
    return out


def brute_loss(logp, old, ref, advantage, mask, *, ratio, aggregation, clip_low, clip_high, kl, beta, max_tokens):
    """The loss of methods 2.1, one token at a time in float64."""
    per_row, lengths = [], []
    for i in range(len(mask)):
        active = [t for t in range(mask.shape[1]) if mask[i, t]]
        if not active:
            continue
        differences = [float(logp[i, t]) - float(old[i, t]) for t in active]
        geometric = np.exp(sum(differences) / len(active))
        terms = []
        for t, difference in zip(active, differences, strict=True):
            rho = geometric if ratio == "sequence" else np.exp(difference)
            clipped = rho
            if clip_low is not None:
                clipped = max(clipped, 1 - clip_low)
            if clip_high is not None:
                clipped = min(clipped, 1 + clip_high)
            term = -min(rho * advantage[i], clipped * advantage[i])
            if kl is not None:
                delta = float(ref[i, t]) - float(logp[i, t])
                term += beta * {"k1": -delta, "k2": delta**2 / 2, "k3": np.exp(delta) - 1 - delta}[kl]
            terms.append(term)
        per_row.append(terms)
        lengths.append(len(active))
    if aggregation == "sequence_mean_token_mean":
        return sum(np.mean(t) for t in per_row), len(per_row)
    if aggregation == "token_mean":
        return sum(map(sum, per_row)), sum(lengths)
    return sum(map(sum, per_row)), len(per_row) * max_tokens


@pytest.fixture(scope="session")
def formulas():
    """GRPO's advantages and loss, written out."""
    return types.SimpleNamespace(advantages=brute_advantages, loss=brute_loss)
