"""The compute ledger: closed-form FLOPs and an account of everything a run spends.

Conventions (methods as in Kaplan et al., 2020, with exact attention terms): one multiply-add is 2 FLOPs;
the embedding lookup is free, the output head counts once whether tied or not; a causal token at
context length t pays 4 * N * H * t per layer for scores and values (t at most the window in a local
layer), so a sequence of T tokens pays 2 * L * N * H * T * (T + 1) without windows. Backward costs twice the
forward. XLA's own counter is the check, not the source: it counts the body of a scan once.

Every entry is charged to a phase and a model; student-side work is what the comparison matches on.
"""

import collections
import dataclasses
import math

import numpy as np

# Phases of student-side work that count towards an arm's budget. Evaluation is charged apart.
BUDGET_PHASES = ("rollout", "score", "train")
TRAIN_FACTOR = 3.0  # forward + backward, in forwards


def forward_flops(config, lengths, *, causal: bool = True, head_tokens=None) -> float:
    """FLOPs of one forward pass over independent sequences of the given lengths.

    config: ModelConfig. lengths: int or array of token counts. causal=False prices a kernel that
    executes the full square in every layer, windows or not. head_tokens: number of tokens per sequence
    that the output head runs on (default: all of them).
    """
    linear, adapters, attention, head = _products(config, lengths, causal=causal, head_tokens=head_tokens)
    return linear + adapters + attention + head


def train_flops(config, lengths, *, causal: bool = True) -> float:
    """FLOPs of forward and backward: three forwards where every weight is trained. With adapters or steering
    vectors the frozen matrices have activation gradients only (one more forward); adapters and attention, whose
    factors are all differentiated, still cost three. Every layer is priced alike, as a scan executes them."""
    linear, adapters, attention, head = _products(config, lengths, causal=causal, head_tokens=None)
    if not (config.lora_rank or config.steering):
        return TRAIN_FACTOR * (linear + attention + head)
    return 2.0 * (linear + head) + TRAIN_FACTOR * (adapters + attention)


def _products(config, lengths, *, causal, head_tokens) -> tuple[float, float, float, float]:
    """Forward FLOPs of the blocks' matrices, their adapters, attention, and the output head."""
    T = np.asarray(lengths, np.float64)
    head_T = T if head_tokens is None else np.broadcast_to(np.asarray(head_tokens, np.float64), T.shape)
    full = T * (T + 1) / 2
    W = np.minimum(T, config.window)
    near = W * (W + 1) / 2 + (T - W) * W  # sum over tokens of min(t, window)
    local = 0
    if config.window:
        local = config.layers - (config.layers // config.global_every if config.global_every else 0)
    pairs = (config.layers - local) * full + local * near if causal else config.layers * T * T
    parts = (
        2.0 * layer_matmul_parameters(config) * config.layers * T,
        2.0 * layer_adapter_parameters(config) * config.layers * T,
        4.0 * config.heads * config.head_dim * pairs,
        2.0 * config.vocab_size * config.width * head_T,
    )
    return tuple(float(np.sum(part)) for part in parts)


def layer_matmul_parameters(config) -> int:
    """Weights of one block that take part in matrix products, adapters aside."""
    return sum(inputs * outputs for inputs, outputs in _projections(config).values())


def layer_adapter_parameters(config) -> int:
    """Weights of the low-rank adapters of one block."""
    if not config.lora_rank:
        return 0
    sizes = _projections(config)
    return config.lora_rank * sum(sum(sizes[name]) for name in config.lora_targets)


def _projections(config) -> dict[str, tuple[int, int]]:
    """{projection of a block: (inputs, outputs)}."""
    D, F, Q, K = config.width, config.ffn, config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {"wq": (D, Q), "wk": (D, K), "wv": (D, K), "wo": (Q, D), "w_gate": (D, F), "w_up": (D, F), "w_down": (F, D)}


def sampling_flops(config, prompt_lengths, lengths_Nn, drawn_Nn=None) -> float:
    """Generation with each prompt prefilled once (head on its last token only) for all its samples:
    F(P), then F(P + R) - F(P) per sample. drawn_Nn: how many of the R tokens the model drew (default: all): the
    others, which tools wrote, are run through it without the head."""
    P_N = np.asarray(prompt_lengths, np.float64)
    R_Nn = np.asarray(lengths_Nn, np.float64)
    drawn_Nn = R_Nn if drawn_Nn is None else drawn_Nn
    prefill = forward_flops(config, P_N, head_tokens=1)
    P_Nn = np.broadcast_to(P_N[:, None], R_Nn.shape)
    return prefill + forward_flops(config, P_Nn + R_Nn, head_tokens=P_Nn + drawn_Nn) - forward_flops(config, P_Nn)


@dataclasses.dataclass
class Entry:
    """Totals of one (phase, model). tokens are useful ones; executed_tokens include padding and idle
    slots, and are reported apart."""

    flops: float = 0.0
    tokens: int = 0
    executed_tokens: int = 0
    sequences: int = 0
    seconds: float = 0.0


class Ledger:
    """Additive account of one arm. Serialises to plain JSON and back without loss."""

    def __init__(self):
        self.entries: dict[tuple[str, str], Entry] = collections.defaultdict(Entry)
        self.counters: collections.Counter = collections.Counter()
        self.problems: set[int] = set()

    def charge(self, phase: str, model: str, *, flops=0.0, tokens=0, executed_tokens=None, sequences=0, seconds=0.0):
        """Add work. model: "policy", "ema", "reference" or "teacher"."""
        executed_tokens = tokens if executed_tokens is None else executed_tokens
        if not all(0 <= amount < np.inf for amount in (flops, tokens, executed_tokens, sequences, seconds)):
            raise ValueError(f"ledger: negative or non-finite charge to {phase}/{model}; work can only be added")
        entry = self.entries[phase, model]
        entry.flops += float(flops)
        entry.tokens += int(tokens)
        entry.executed_tokens += int(executed_tokens)
        entry.sequences += int(sequences)
        entry.seconds += float(seconds)

    def count(self, name: str, amount: int = 1) -> None:
        """Events that are not FLOPs: verdicts by outcome, supervised tokens, filtered groups, ..."""
        self.counters[name] += int(amount)

    def expose(self, problem_ids) -> None:
        """Problems that an arm has learned from; a set, so repeats do not count twice."""
        self.problems.update(int(i) for i in problem_ids)

    @property
    def student_flops(self) -> float:
        """Sampling + scoring + training by every model but the teacher."""
        return self._flops(lambda model: model != "teacher")

    @property
    def teacher_flops(self) -> float:
        """The same phases by the teacher."""
        return self._flops(lambda model: model == "teacher")

    def _flops(self, counts) -> float:
        """Rounded once: the order in which entries came, which a resume changes, must not show."""
        return math.fsum(e.flops for (phase, model), e in self.entries.items()
                         if phase in BUDGET_PHASES and counts(model))  # fmt: skip

    def spent(self, axis: str) -> float:
        """The value that arms are matched on: "student" or "total" (teacher included)."""
        if axis not in ("student", "total"):
            raise ValueError(f"ledger: budget axis {axis!r} is not known; use student or total")
        return self.student_flops + (self.teacher_flops if axis == "total" else 0.0)

    def seconds(self) -> dict[str, float]:
        """Wall-clock time by phase, over all models."""
        out = collections.Counter()
        for (phase, _), entry in self.entries.items():
            out[phase] += entry.seconds
        return dict(out)

    def merge(self, other: "Ledger") -> None:
        """Add all that another ledger holds."""
        for (phase, model), e in other.entries.items():
            self.charge(phase, model, **dataclasses.asdict(e))
        self.counters.update(other.counters)
        self.problems |= other.problems

    def rows(self) -> list[dict]:
        """One plain dict per (phase, model), for tables."""
        return [
            {"phase": phase, "model": model, "student": phase in BUDGET_PHASES and model != "teacher",
             **dataclasses.asdict(entry)}
            for (phase, model), entry in sorted(self.entries.items())
        ]  # fmt: skip

    def to_json(self) -> dict:
        """Plain values, for json.dump."""
        return {"entries": self.rows(), "counters": dict(sorted(self.counters.items())),
                "problems": sorted(self.problems)}  # fmt: skip

    @classmethod
    def from_json(cls, data: dict) -> "Ledger":
        """The ledger that `to_json` wrote."""
        ledger = cls()
        for row in data["entries"]:
            fields = {f.name: row[f.name] for f in dataclasses.fields(Entry)}
            ledger.charge(row["phase"], row["model"], **fields)
        ledger.counters.update(data["counters"])
        ledger.problems.update(data["problems"])
        return ledger
