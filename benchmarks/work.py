"""The work that every side of the comparison does: shapes, tokens and lengths. Standard library only, since each side
reads it inside its own environment. What the work costs in FLOPs is the ledger's to say, not this file's."""

import math
import random

SIZES = {
    "tiny": dict(vocab_size=64, width=128, ffn=384, layers=4, heads=4, kv_heads=2, head_dim=32, tied=True),
    "small": dict(vocab_size=512, width=512, ffn=1536, layers=8, heads=8, kv_heads=4, head_dim=64, tied=True),
}
ROWS = {"tiny": dict(sft=64, prompts=16, samples=8), "small": dict(sft=16, prompts=4, samples=8)}
WORKS = {
    "sft": "SFT step",
    "sft_packed": "SFT step, uneven rows",
    "rollout_even": "rollout, even",
    "rollout_uneven": "rollout, uneven",
    "grpo_even": "GRPO step, even",
    "grpo_uneven": "GRPO step, uneven",
    "start_sft": "start to first SFT step",
    "start_grpo": "start to first GRPO step",
}
PROMPT_TOKENS, NEW_TOKENS = 32, 96
PAD, EOS = 0, 1  # neither occurs in prompts or in SFT sequences
LEARNING_RATE, CLIP_NORM = 1e-4, 1.0
_MEDIAN, _SIGMA = 32, 0.8  # of uneven completions, log-normal: the mean after the cut is about 40


def lengths(count: int, uneven: bool) -> list[int]:
    """Tokens of each of `count` completions, its last token included; the same at every call and on every side."""
    if not uneven:
        return [NEW_TOKENS] * count
    draw, log_median = random.Random(0), math.log(_MEDIAN)
    return [min(NEW_TOKENS, max(1, round(draw.lognormvariate(log_median, _SIGMA)))) for _ in range(count)]


def prompts(size: str) -> list[list[int]]:
    """[prompts][PROMPT_TOKENS] token ids of one rollout; each prompt is sampled ROWS[size]["samples"] times."""
    return [_tokens(size, PROMPT_TOKENS, seed) for seed in range(ROWS[size]["prompts"])]


def sequences(size: str, uneven: bool) -> list[list[int]]:
    """[sft rows][tokens] token ids of one SFT step: a prompt's length and a completion's, all of it trained on."""
    tokens = lengths(ROWS[size]["sft"], uneven)
    return [_tokens(size, PROMPT_TOKENS + n, seed) for seed, n in enumerate(tokens)]


def text(tokens: list[int]) -> str:
    """Words for sides whose trainers take text: token n is the word "n"."""
    return " ".join(map(str, tokens))


def _tokens(size: str, count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(EOS + 1, SIZES[size]["vocab_size"]) for _ in range(count)]
