"""From a policy and prompts to responses by the policy's decoding rule: what an evaluation calls.

    sample   n draws at the evaluation's temperature
    greedy   the most likely token at every step: the first branch of the next
    cot      CoT-decoding (Wang and Zhou, arXiv:2402.10200): the k most likely first tokens, each continued greedily;
             a path is as sure as the model is of the tokens of its answer,

        Delta = mean over the answer's tokens of p1 - p2,    -inf for a path without an answer

             with p1, p2 the two largest probabilities at temperature 1, whatever the evaluation's is. The response is
             the surest path (pick "max"), or of the answer with the largest sum of Delta the surest path ("sum").

An opening is put before every response: part of it, counted against its length, with log-probability 0, because it was
not drawn. Branches are the first tokens after it. greedy and cot give a problem one response, recorded n times.

Example:
    out = complete(policy.replace(decoding=Decoding("greedy")), [[5, 6, 7]], n=4, max_new_tokens=16, seed=0)

Shapes: N prompts, n samples, K paths of one prompt.
"""

import bisect
import dataclasses
import os
from collections.abc import Callable, Sequence

import numpy as np

from ceiling import ledger as accounts
from ceiling.data.packing import Example
from ceiling.model.policy import Decoding, Policy
from ceiling.rollout.engine import Completions, bucket, generate
from ceiling.rollout.episodes import Scene, converse
from ceiling.rollout.scoring import executed_tokens, margins

TIE = 1e-6  # a path's Delta moves by less with its place in a packed row, in float32
# (prompt index, response tokens) of many responses -> for each its answer, as every equal answer is written, and the
# response's tokens [first, stop) that spell it; None where it has no answer.
Answers = Callable[[list[tuple[int, np.ndarray]]], Sequence[tuple[str, tuple[int, int]] | None]]


def complete(
    policy: Policy, prompts, *, n: int, max_new_tokens: int, seed: int, temperature: float = 1.0, top_p: float = 1.0,
    problem_ids=None, slots: int = 512, chunk_requests: int = 32_768, answers: Answers | None = None,
    ledger: accounts.Ledger | None = None, scene: Scene | None = None,
) -> Completions:
    """n responses to every prompt by `policy.decoding`; arguments and errors as for `generate`.

    scene: where responses are episodes, what they are played in; rule "cot" has none. answers: how the task reads
    responses; needed by rule "cot" alone. Log-probabilities are those of the sampling distribution for "sample" and of
    temperature 1 for the others. ledger is charged for the work that was done, whatever is recorded of it: "greedy" one
    response for each prompt, "cot" every path and a pass over those with an answer."""
    rule, opening = policy.decoding, np.asarray(policy.decoding.opening, np.int32)
    check(rule, policy.stop_ids, policy.config.vocab_size, max_new_tokens)
    if rule.rule == "cot" and (answers is None or scene is not None):
        raise ValueError("decoding: rule cot chooses by answers to single responses; pass `answers`, and no scene")
    if scene is not None and any(tag in scene.tokenizer.decode(opening) for tag in scene.environment.tags):
        raise ValueError("decoding: the opening has a call in it, which no tool would answer; leave it out")
    prompts = [np.asarray(p, np.int32) for p in prompts]
    opened = [np.concatenate([p, opening]) for p in prompts]
    draws = {"sample": n, "greedy": 1, "cot": rule.branches}[rule.rule]
    decoding = {"temperature": 0.0} if rule.deterministic else {"temperature": temperature, "top_p": top_p}
    request = dict(n=draws, max_new_tokens=max_new_tokens - len(opening), seed=seed, problem_ids=problem_ids,
                   slots=slots, **decoding)  # fmt: skip
    if scene is None:
        out = generate(policy, opened, chunk_requests=chunk_requests, branch=rule.deterministic, **request)
    else:
        out = converse(policy, opened, scene=scene, opening=opening, **{"top_p": 1.0, **request})
    if ledger is not None:
        for name, amount in out.events.items():
            ledger.count(name, amount)
        ledger.charge(
            "evaluate", "policy", sequences=out.lengths.size, executed_tokens=out.executed_tokens,
            flops=accounts.sampling_flops(policy.config, [len(p) for p in opened], out.lengths, out.drawn),
            tokens=out.lengths.sum() + sum(map(len, opened)),
        )  # fmt: skip
    out = _with_opening(out, opening)
    if rule.rule == "cot":
        out = _surest(policy, prompts, out, max_new_tokens, answers, ledger)
    return _repeated(out, n) if rule.deterministic else out


def configured(cfg, tokenizer) -> Decoding:
    """The rule that an arm's configuration names."""
    return Decoding(cfg["decoding"], cfg["branches"], cfg["pick"], tuple(tokenizer.encode(cfg["opening"])))


def check(rule: Decoding, stop_ids, vocab_size: int, max_new_tokens: int) -> None:
    """Raises ValueError for a rule that cannot be carried out with these tokens and this longest response."""
    if len(rule.opening) >= max_new_tokens:
        raise ValueError(
            f"decoding: an opening of {len(rule.opening)} tokens leaves no room in a response of {max_new_tokens}; "
            "shorten it"
        )
    if set(rule.opening) & set(stop_ids):
        raise ValueError("decoding: the opening contains a token that ends the response; leave it out")
    if rule.rule == "cot" and rule.branches > vocab_size:
        raise ValueError(f"decoding: branches={rule.branches} of a vocabulary of {vocab_size}; ask for fewer")


def confidence(
    policy: Policy, prompts, responses, spans, *, max_new_tokens: int, ledger: accounts.Ledger | None = None
) -> np.ndarray:
    """Delta, f64 one per (prompt, response, span of its tokens [first, stop) or None); -inf without a span. It does not
    matter how a response was made: this ranks samples as well."""
    delta = np.full(len(spans), -np.inf)
    examples, which = [], []
    for i, (prompt, response, span) in enumerate(zip(prompts, responses, spans, strict=True)):
        if span is not None and span[0] < span[1]:
            tokens = np.concatenate([prompt, response[: span[1]]]).astype(np.int32)
            mask = np.arange(len(tokens)) >= len(prompt) + span[0]
            examples.append(Example(tokens, mask.astype(np.float32)))
            which.append(i)
    if not which:
        return delta
    max_tokens = bucket(max(map(len, prompts))) + max_new_tokens
    margin = margins(policy.params, policy.config, examples, max_tokens=max_tokens)
    delta[which] = [float(np.mean(m, dtype=np.float64)) for m in margin]
    if ledger is not None:
        lengths = [len(e.tokens) for e in examples]
        ledger.charge(
            "evaluate", "policy", flops=accounts.forward_flops(policy.config, lengths), tokens=sum(lengths),
            executed_tokens=executed_tokens(policy.params, policy.config, len(lengths), max_tokens),
            sequences=len(lengths),
        )  # fmt: skip
    return delta


def choose(delta_K, answers: Sequence[str | None], pick: str) -> int:
    """The path to take: the largest Delta, among all ("max") or among those of the answer with the largest sum of
    Delta ("sum"). Of equals (to TIE) the first, so without any answer the first path, which is the greedy one."""
    delta_K = np.asarray(delta_K, np.float64)
    if pick == "sum" and np.isfinite(delta_K).any():
        total = dict.fromkeys(answers, 0.0)
        for answer, delta in zip(answers, delta_K, strict=True):
            total[answer] += delta
        best = max(total, key=total.get)
        delta_K = np.where([answer == best for answer in answers], delta_K, -np.inf)
    return int(np.argmax(delta_K >= delta_K.max() - TIE))


def token_span(tokenizer, tokens: np.ndarray, span: tuple[int, int]) -> tuple[int, int]:
    """Tokens [first, stop) of a response that overlap the characters [start, end) of its text. A token with a part of
    the answer and a part of what stands beside it counts, and so does every token of a character that has several."""
    text = tokenizer.decode(tokens)

    def begins(t: int) -> int:
        """Characters that are complete before token t."""
        return len(os.path.commonprefix([tokenizer.decode(tokens[:t]), text]))

    def ends(t: int) -> int:
        """Characters that are complete, or begun, after token t."""
        done = begins(t + 1)
        return done + (len(tokenizer.decode(tokens[: t + 1])) > done)

    every = range(len(tokens))
    return bisect.bisect_right(every, span[0], key=ends), bisect.bisect_left(every, span[1], key=begins)


def _surest(policy, prompts, out: Completions, max_new_tokens: int, answers: Answers, ledger) -> Completions:
    """Of every prompt's paths the chosen one, as its only sample."""
    N, K = out.lengths.shape
    paths = [(i, out.response(i, j)) for i in range(N) for j in range(K)]
    found = [item or (None, None) for item in answers(paths)]
    delta = confidence(
        policy, [prompts[i] for i, _ in paths], [response for _, response in paths], [span for _, span in found],
        max_new_tokens=max_new_tokens, ledger=ledger,
    )  # fmt: skip
    rows = range(0, N * K, K)
    chosen_N = [choose(delta[r : r + K], [a for a, _ in found[r : r + K]], policy.decoding.pick) for r in rows]
    parts = (x[np.arange(N), chosen_N][:, None] for x in (out.tokens, out.logprobs, out.lengths, out.stopped))
    return Completions(*parts, out.executed_tokens)


def _with_opening(out: Completions, opening: np.ndarray) -> Completions:
    if not len(opening):
        return out
    shape = (*out.lengths.shape, len(opening))
    before = lambda head, tail: np.concatenate([np.broadcast_to(head, shape), tail], axis=2)  # noqa: E731
    return dataclasses.replace(
        out, tokens=before(opening, out.tokens), logprobs=before(np.float32(0), out.logprobs),
        lengths=out.lengths + len(opening), own=None if out.own is None else before(True, out.own),
    )  # fmt: skip


def _repeated(out: Completions, n: int) -> Completions:
    names = [f.name for f in dataclasses.fields(out) if isinstance(getattr(out, f.name), np.ndarray)]
    return dataclasses.replace(out, **{name: np.repeat(getattr(out, name), n, axis=1) for name in names})

