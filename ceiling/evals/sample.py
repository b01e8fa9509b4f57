"""Evaluation of a policy on a task: n samples per problem, judged, one record each.

Example:
    samples = evaluate(policy, task, n=64, seed=1)
    samples.counts          # i64[problems, 2] = (n, correct)
    samples.to_pandas()     # one row per sample
"""

import dataclasses
import functools
import hashlib
import pathlib
import time
from collections.abc import Callable
from concurrent import futures

import numpy as np

from ceiling import hosts
from ceiling import ledger as accounts
from ceiling.data.packing import Example
from ceiling.evals.records import Recorder, Samples, turn_lengths
from ceiling.model.policy import Decoding, Policy
from ceiling.rollout.decoding import Answers, complete, token_span
from ceiling.rollout.episodes import scene_of
from ceiling.rollout.scoring import score
from ceiling.tasks.base import Outcome, Task, Verifier, check_errors

CHUNK_TOKENS = 1 << 26  # response tokens held at once


def evaluate(
    policy: Policy, task: Task, *, n: int, seed: int, temperature: float = 1.0, top_p: float = 1.0, slots: int = 512,
    problems=None, ledger: accounts.Ledger | None = None, report: Callable[[int, int, int], None] | None = None,
    chunk_requests: int | None = None, store: str | pathlib.Path | None = None, max_verifier_errors: float = 1.0,
) -> Samples:
    """Draw and judge n responses per problem (the task's evaluation problems by default), by `policy.decoding`.

    Noise depends on (seed, problem, sample) only: chunking and device count change nothing. Problems are worked
    on in chunks of about chunk_requests samples; store: a directory that gets each chunk as it is done, and from
    which a call that was killed continues. A chunk is judged beside the drawing of the next. report is called with
    (problems done, problems in all, tokens so far). Work is charged to "evaluate", with its seconds side by side.
    Raises RuntimeError if the verifier fails on more than max_verifier_errors of a chunk.
    """
    problems = task.evaluation() if problems is None else problems
    if n < 1 or not problems:
        raise ValueError(f"evaluate: n={n} samples of {len(problems)} problems; both must be at least 1")
    if policy.decoding.rule == "cot" and not hasattr(task, "answer_span"):
        raise ValueError(f"evaluate: rule cot chooses by answers, and task {task.name} has no answer_span")
    chunk_requests = chunk_requests or max(1, min(16_384, CHUNK_TOKENS // task.max_response_tokens))
    per_call, verify, parts = max(1, chunk_requests // n), Verifier(task), []
    template = hashlib.sha256("\n".join(p.prompt for p in problems).encode()).hexdigest()[:16]
    meta = {
        "task": task.name, "n": n, "seed": seed, "temperature": temperature, "top_p": top_p,
        "decoding": {**dataclasses.asdict(policy.decoding), "opening": list(policy.decoding.opening)},
        "prompts_sha256": template, "tokenizer_sha256": task.tokenizer.identity, **getattr(task, "provenance", {}),
    }  # fmt: skip

    def finish(done: int, path: pathlib.Path | None, judged: Callable[[], Samples]) -> None:
        part = judged()
        check_errors(verify, part.matrix("outcome").ravel(), max_verifier_errors)
        if path and hosts.leader() and not path.exists():
            part.save(path)
        if ledger is not None:
            ledger.merge(accounts.Ledger.from_json(part.meta["ledger"]))
        parts.append(part)
        if report is not None:
            report(done, len(problems), sum(int(part.lengths.sum()) for part in parts))

    waiting = None
    with futures.ThreadPoolExecutor(1) as beside:
        try:
            for start in range(0, len(problems), per_call):
                here = problems[start : start + per_call]
                path = store and pathlib.Path(store) / f"{start:06d}.parquet"
                if path and hosts.led(path.exists):
                    judged = functools.partial(Samples.load, path)
                else:
                    sampling = dict(n=n, seed=seed, temperature=temperature, top_p=top_p, slots=slots)
                    out, own = _draw(policy, verify, here, sampling, chunk_requests)
                    judged = functools.partial(_recorded, verify, here, start, out, own, meta)
                    # While this chunk is judged the next is drawn; but not where judging has to wait its turn, with
                    # other hosts or between steps of decoding.
                    if hosts.alone() and policy.decoding.rule != "cot":
                        judged = beside.submit(judged).result
                waiting, done = (start + len(here), path, judged), waiting
                if done:
                    finish(*done)
        finally:  # after an interruption too: what was drawn is not lost
            if waiting:
                finish(*waiting)
    return Samples.joined(parts, meta)


def _draw(policy, verify: Verifier, problems, sampling: dict, chunk_requests: int):
    """Completions of a few problems, and a ledger with what they cost."""
    task, ledger, began = verify.task, accounts.Ledger(), time.perf_counter()
    out = complete(
        policy, [task.tokenizer.encode(p.prompt) for p in problems], max_new_tokens=task.max_response_tokens,
        problem_ids=[p.id for p in problems], chunk_requests=chunk_requests, answers=_answers(verify, problems),
        ledger=ledger, scene=scene_of(task, problems), **sampling,
    )  # fmt: skip
    ledger.charge("evaluate", "policy", seconds=time.perf_counter() - began)
    return out, ledger


def _recorded(verify: Verifier, problems, start: int, out, ledger: accounts.Ledger, meta: dict) -> Samples:
    """Completions judged and as records, with what they cost in their meta."""
    task, n, recorder, began = verify.task, out.lengths.shape[1], Recorder(), time.perf_counter()
    for i, (problem, verdicts) in enumerate(zip(problems, _judged(verify, problems, out), strict=True)):
        recorder.add(
            [out.response(i, j) for j in range(n)],
            problem=np.full(n, start + i, np.int32), problem_id=np.full(n, problem.id, np.uint32),
            group=[problem.group] * n, sample=np.arange(n, dtype=np.int32),
            logprob=out.logprobs[i].sum(axis=1).astype(np.float32), stopped=out.stopped[i],
            outcome=np.array([v.outcome for v in verdicts], np.int8),
            process=np.array([-1 if v.process is None else int(v.process) for v in verdicts], np.int8),
            answer=[v.answer or "" for v in verdicts], strategy=[v.strategy or "" for v in verdicts],
            **_episodes(task, out, i),
        )  # fmt: skip
    ledger.charge("evaluate", "policy", seconds=time.perf_counter() - began)
    own = {"problems": len(problems), "groups": [p.group for p in problems], "ledger": ledger.to_json()}
    return recorder.samples({**meta, **own})


def _episodes(task: Task, out, i: int) -> dict:
    """Columns that episodes have beside the others; equal ones are read once."""
    if out.own is None:
        return {}
    traces = functools.cache(task.environment.trace)
    read = [traces(out.text(i, j, task.tokenizer.decode)) for j in range(out.lengths.shape[1])]
    return {
        "turns": [turn_lengths(out.written(i, j)) for j in range(len(read))],
        "calls": [[call for call, _ in trace] for trace in read],
        "documents": [[document for _, shown in trace for document in shown] for trace in read],
    }


def _answers(verify: Verifier, problems) -> Answers:
    """How decoding reads a response: the verdict's canonical answer, and the tokens where the task finds it."""
    tokenizer = verify.task.tokenizer

    def read(paths):
        texts = [tokenizer.decode(tokens) for _, tokens in paths]
        verdicts = verify.many([(problems[i], text) for (i, _), text in zip(paths, texts, strict=True)])
        out = []
        for (_, tokens), text, verdict in zip(paths, texts, verdicts, strict=True):
            span = None if verdict.answer is None else verify.task.answer_span(text)
            out.append(None if span is None else (verdict.answer, token_span(tokenizer, tokens, span)))
        return out

    return read


def _judged(verify: Verifier, problems, out) -> list[list]:
    """Verdicts [problem][sample]; equal responses are decoded and judged once, all of them in one batch."""
    n, distinct = out.lengths.shape[1], {}
    whole = lambda i, j: (out.response(i, j), out.written(i, j))  # noqa: E731
    key = lambda i, j: (i, *(b"" if x is None else x.tobytes() for x in whole(i, j)))  # noqa: E731
    keys = [[key(i, j) for j in range(n)] for i in range(len(problems))]
    for i, row in enumerate(keys):
        for j, key in enumerate(row):
            distinct.setdefault(key, (i, j))
    decode = verify.task.tokenizer.decode
    verdicts = verify.many([(problems[i], out.text(i, j, decode)) for i, j in distinct.values()])
    known = dict(zip(distinct, verdicts, strict=True))
    return [[known[key] for key in row] for row in keys]


def likelihood(samples: Samples, task: Task, problems, policy: Policy, *, per_problem: int):
    """Log-probs and entropies of recorded responses under `policy` at temperature 1, for the first
    per_problem samples of each problem: ([problems, per_problem] sums of log p, of entropy, of tokens)."""
    examples = []
    for p, problem in enumerate(problems):
        prompt = np.asarray(task.tokenizer.encode(problem.prompt), np.int32)
        for j in range(per_problem):
            tokens = np.concatenate([prompt, samples.tokens(p, j)])
            mask = np.concatenate([np.zeros(len(prompt), bool), samples.own(p, j)])
            examples.append(Example(tokens, mask.astype(np.float32)))
    longest = max(len(e.tokens) for e in examples)
    logprobs, entropies = score(policy.params, policy.config, examples, max_tokens=longest, entropy=True)
    shape = (len(problems), per_problem)
    total = lambda parts: np.array([float(np.sum(x)) for x in parts]).reshape(shape)  # noqa: E731
    return total(logprobs), total(entropies), np.array([len(x) for x in logprobs]).reshape(shape)


def accuracy(policy: Policy, task: Task, problems, *, forced: str, n: int, seed: int) -> float:
    """Share of right responses when every response is made to start with `forced` (a prior's gate)."""
    encode, decode = task.tokenizer.encode, task.tokenizer.decode
    out = complete(
        policy.replace(decoding=Decoding(opening=tuple(encode(forced)))), [encode(p.prompt) for p in problems], n=n,
        seed=seed, max_new_tokens=task.max_response_tokens, problem_ids=[p.id for p in problems],
        scene=scene_of(task, problems),
    )  # fmt: skip
    responses = [(p, out.text(i, j, decode)) for i, p in enumerate(problems) for j in range(n)]
    return float(np.mean([verdict.outcome is Outcome.RIGHT for verdict in Verifier(task).many(responses)]))
