"""One update of an arm as numbers: a regime's own functions run on stand-in problems of the longest lengths.

Nothing is sampled and no weight exists. The stand-in tokenizer makes one token of a character, so a prompt of P
characters has P tokens; responses are zeros of the longest length a round allows. What a regime would sample, score
and train on is read from what its functions return, so a new regime is planned for without a line here.
"""

import dataclasses
import math
import types

import numpy as np

from ceiling import ledger as accounts
from ceiling.regimes.base import Material, Regime, Sample
from ceiling.tasks import critiques
from ceiling.tasks.base import Document, Outcome, Passage, Problem, Turns, Verdict

COINS = 16
CRITIQUE = 256  # tokens of a critique, if a response is as long
CONTINUATION = 4  # tokens of a short answer and its end


@dataclasses.dataclass(frozen=True)
class Round:
    """A sampling round: `requests` responses in all, n to a prompt of prompt_tokens."""

    model: str
    prompts: int
    n: int
    prompt_tokens: int
    max_tokens: int


@dataclasses.dataclass(frozen=True)
class Update:
    """What an update does: rounds; scored: (model, lengths); trained: lengths of its examples; frozen: models that the
    loss itself runs; extras: what its examples carry beside tokens and mask, as (name, whether one per token)."""

    rounds: tuple[Round, ...]
    scored: tuple[tuple[str, tuple[int, ...]], ...]
    trained: tuple[int, ...]
    frozen: tuple[str, ...]
    extras: tuple[tuple[str, bool], ...]

    @property
    def models(self) -> set[str]:
        """Every model but the policy and its slow copy that has to be in memory."""
        return {*self.frozen, *(r.model for r in self.rounds), *(m for m, _ in self.scored)} - {"policy", "ema"}


class _Tokenizer:
    vocab_size, eos, stop_ids, special = 1 << 20, ".", (), ()

    def encode(self, text: str) -> list[int]:
        return [0] * len(text)

    def decode(self, ids) -> str:
        return "d" * len(ids)

    def split_end(self, text: str) -> tuple[str, bool]:
        return text, True


class _Task:
    """As much of a task as regimes ask for, verdicts aside. What frames a response in a prompt has no length. An
    expert's state is as long as a response; nothing comes of what is done in it, so its rows are demonstrations."""

    name, max_document_tokens = "plan", 0
    environment = types.SimpleNamespace(tags=(">",), opening="[", closing="]", max_calls=0, max_observation_tokens=3,
                                        timeout_s=1.0, workers=0, failed="?", call=None)  # fmt: skip
    critics = dict.fromkeys(critiques.CRITICS, critiques.KINDS)

    def __init__(self, prompt_tokens: int, max_response_tokens: int):
        self.tokenizer, self.max_response_tokens = _Tokenizer(), max_response_tokens
        self._prompt = "p" * prompt_tokens
        self.max_critique_tokens = min(CRITIQUE, max_response_tokens)
        self.max_critique_prompt_tokens = prompt_tokens + max_response_tokens

    def evaluation(self) -> list[Problem]:
        return [Problem(0, "all", self._prompt, "a")]

    def passage(self, problem: Problem) -> Passage:
        tail = min(CONTINUATION, max(1, self.max_response_tokens // 4))
        return Passage(problem.prompt, stop="#", bridge=" ", continuation="c" * tail, empty="\n# ")

    def demonstration(self, problem: Problem, rng) -> str:
        return "d" * self.max_response_tokens

    expert = demonstration

    def states(self, problem: Problem, rng) -> list[Turns]:
        return [("d" * self.max_response_tokens, "", "")]

    def expert_action(self, problem: Problem, state: Turns) -> str:
        return "a"

    def reflection(self, problem: Problem, state: Turns, *seen: str) -> str:
        return "?"

    def critique(self, problem: Problem, response: str, verdict: Verdict, kind: str) -> str:
        return "c" * (self.max_critique_tokens - len(self.tokenizer.eos))

    def critique_prompt(self, problem: Problem, response: str, kind: str | None) -> str:
        return problem.prompt + response

    def recorded(self, problem: Problem, kind: str) -> list[tuple[str, str]]:
        return [("d" * self.max_response_tokens, self.critique(problem, "", None, kind))] * CRITIQUE

    def refinement_prompt(self, problem: Problem, response: str, critique: str) -> str:
        return problem.prompt + response + critique


def updates(regime: Regime, cfg: dict, prompt_tokens: int, response_tokens: int) -> list[Update]:
    """Every kind of update that a regime takes: some toss a coin for who samples."""
    task, seeds = _Task(prompt_tokens, response_tokens), {}
    for seed in range(COINS):
        rounds = regime.rounds(cfg, task, np.random.default_rng(seed))
        seeds.setdefault(tuple((r.model, r.n, r.max_tokens) for r in rounds), seed)
    return [update(regime, cfg, prompt_tokens, response_tokens, seed) for seed in seeds.values()]


def update(regime: Regime, cfg: dict, prompt_tokens: int, response_tokens: int, seed: int = 0) -> Update:
    """The work of one update with everything at its longest. One sample of each group counts as wrong, the others as
    right. Raises ConfigError where the regime refuses the lengths."""
    task, rng = _Task(prompt_tokens, response_tokens), np.random.default_rng(seed)
    count = cfg["prompts_per_step"] * cfg.get("oversample", 1)
    problems = [Problem(i, "all", "p" * prompt_tokens, "a") for i in range(count)]
    document = Document("p" * prompt_tokens, "d" * response_tokens)
    material = Material(task, problems, [], {}, replay=lambda n: [document] * n, rng=rng)
    rounds = []
    for spec in regime.rounds(cfg, task, rng):
        prompts = [material.encode(text) for text in spec.prompts(material)]
        rounds.append(Round(spec.model, len(prompts), spec.n, max(map(len, prompts)), spec.max_tokens))
        tokens, logprobs = np.zeros(spec.max_tokens, np.int32), np.zeros(spec.max_tokens, np.float32)
        verdicts = [Verdict(Outcome.RIGHT if j else Outcome.WRONG) for j in range(spec.n)]
        flat = [Sample(p, tokens, logprobs, True, v) for p in prompts for v in verdicts]
        each = len(flat) // count
        material.samples.append([flat[i : i + each] for i in range(0, len(flat), each)])
    requests = regime.scores(material, cfg)
    for name, request in requests.items():
        material.scores[name] = [np.zeros(int(e.mask.sum()), np.float32) for e in request.examples]
    examples = regime.examples(material, cfg)
    scored = tuple((r.model, tuple(len(e.tokens) for e in r.examples)) for r in requests.values())
    extras = tuple((name, np.ndim(value) > 0) for name, value in examples[0].extra.items()) if examples else ()
    return Update(tuple(rounds), scored, tuple(len(e.tokens) for e in examples), tuple(regime.frozen(cfg)), extras)


def flops(update: Update, configs: dict, cfg: dict) -> dict[tuple[str, str], float]:
    """{(phase, model): FLOPs} of an update by the ledger's closed forms. configs: model name -> ModelConfig."""
    out: dict[tuple[str, str], float] = {}

    def add(phase, model, amount):
        out[phase, model] = out.get((phase, model), 0.0) + amount

    for r in update.rounds:
        lengths_Nn = np.full((r.prompts, r.n), r.max_tokens)
        add("rollout", r.model, accounts.sampling_flops(configs[r.model], [r.prompt_tokens] * r.prompts, lengths_Nn))
    for model, lengths in update.scored:
        add("score", model, accounts.forward_flops(configs[model], lengths))
    passes = cfg["epochs"]
    add("train", "policy", passes * accounts.train_flops(configs["policy"], update.trained))
    for model in update.frozen:
        add("score", model, passes * accounts.forward_flops(configs[model], update.trained))
    return out


def sampling_seconds(config, device, *, requests: int, slots: int, capacity: int, steps: int, share: float) -> float:
    """Seconds to draw `requests` responses of `steps` tokens. Each step reads the weights and the whole cache once (it
    is as long as the longest row) or computes its products, whichever takes longer; share: of that roofline."""
    slots = min(slots, requests)
    per_token = 2 * config.kv_heads * config.head_dim * config.layers * _bytes(config.compute_dtype)
    weights = accounts.layer_matmul_parameters(config) * config.layers + config.vocab_size * config.width
    read = weights * _bytes(config.compute_dtype) + slots * capacity * per_token
    compute = 2.0 * weights * slots / peak_flops(config, device)
    return math.ceil(requests / slots) * steps * max(read / device.bandwidth, compute) / share


def peak_flops(config, device) -> float:
    """float32 products run at half the peak where there is a fast path for them (TF32), more slowly elsewhere."""
    return device.flops * (0.5 if config.compute_dtype == "float32" else 1.0)


def _bytes(dtype: str) -> int:
    return {"float32": 4, "bfloat16": 2, "float16": 2}[dtype]
