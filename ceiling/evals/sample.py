"""Evaluation of a policy on a task: n samples per problem, judged, one record each.

Example:
    samples = evaluate(policy, task, n=64, seed=1)
    samples.counts          # i64[problems, 2] = (n, correct)
"""

import hashlib
import time
from collections.abc import Callable

import numpy as np

from ceiling import ledger as accounts
from ceiling.data.packing import Example
from ceiling.evals.records import Recorder, Samples
from ceiling.model.policy import Policy
from ceiling.rollout.engine import generate
from ceiling.rollout.scoring import score
from ceiling.tasks.base import Outcome, Task, Verifier


def evaluate(
    policy: Policy, task: Task, *, n: int, seed: int, temperature: float = 1.0, top_p: float = 1.0,
    problems=None, ledger: accounts.Ledger | None = None, report: Callable[[int, int, int], None] | None = None,
    chunk_requests: int = 16_384,
) -> Samples:
    """Draw and judge n responses per problem (the task's evaluation problems by default).

    Noise depends on (seed, problem, sample) only: chunking and device count change nothing. report
    is called with (problems done, problems in all, tokens so far). Work is charged to "evaluate".
    """
    problems = task.evaluation() if problems is None else problems
    if n < 1 or not problems:
        raise ValueError(f"evaluate: n={n} samples of {len(problems)} problems; both must be at least 1")
    verify, recorder = Verifier(task), Recorder()
    encode = task.tokenizer.encode
    per_call = max(1, chunk_requests // n)
    tokens_so_far = 0
    for start in range(0, len(problems), per_call):
        part = problems[start : start + per_call]
        prompts = [encode(p.prompt) for p in part]
        began = time.perf_counter()
        out = generate(
            policy, prompts, n=n, max_new_tokens=task.max_response_tokens, temperature=temperature, top_p=top_p,
            seed=seed, problem_ids=[p.id for p in part], chunk_requests=chunk_requests,
        )  # fmt: skip
        for i, problem in enumerate(part):
            _record(recorder, verify, problem, start + i, out, i)
        tokens_so_far += int(out.lengths.sum())
        if ledger is not None:
            ledger.charge(
                "evaluate", "policy", seconds=time.perf_counter() - began, sequences=out.lengths.size,
                flops=accounts.sampling_flops(policy.config, [len(p) for p in prompts], out.lengths),
                tokens=out.lengths.sum() + sum(map(len, prompts)), executed_tokens=out.executed_tokens,
            )  # fmt: skip
        if report is not None:
            report(start + len(part), len(problems), tokens_so_far)
    template = hashlib.sha256("\n".join(p.prompt for p in problems).encode()).hexdigest()[:16]
    return recorder.samples({
        "task": task.name, "problems": len(problems), "n": n, "seed": seed, "temperature": temperature,
        "top_p": top_p, "groups": [p.group for p in problems], "prompts_sha256": template,
    })  # fmt: skip


def _record(recorder: Recorder, verify: Verifier, problem, index: int, out, i: int) -> None:
    """Judge and store the samples of one problem; equal responses are decoded and judged once."""
    n = out.lengths.shape[1]
    responses = [out.response(i, j) for j in range(n)]
    judged: dict[bytes, object] = {}
    verdicts = []
    for tokens in responses:
        key = tokens.tobytes()
        if key not in judged:
            judged[key] = verify(problem, verify.task.tokenizer.decode(tokens))
        verdicts.append(judged[key])
    recorder.add(
        responses,
        problem=np.full(n, index, np.int32),
        problem_id=np.full(n, problem.id, np.uint32),
        group=[problem.group] * n,
        sample=np.arange(n, dtype=np.int32),
        logprob=out.logprobs[i].sum(axis=1).astype(np.float32),
        stopped=out.stopped[i],
        outcome=np.array([v.outcome for v in verdicts], np.int8),
        process=np.array([-1 if v.process is None else int(v.process) for v in verdicts], np.int8),
        answer=[v.answer or "" for v in verdicts],
        strategy=[v.strategy or "" for v in verdicts],
    )


def likelihood(samples: Samples, task: Task, problems, policy: Policy, *, per_problem: int):
    """Log-probs and entropies of recorded responses under `policy` at temperature 1, for the first
    per_problem samples of each problem: ([problems, per_problem] sums of log p, of entropy, of tokens)."""
    examples = []
    for p, problem in enumerate(problems):
        prompt = np.asarray(task.tokenizer.encode(problem.prompt), np.int32)
        for j in range(per_problem):
            tokens = np.concatenate([prompt, samples.tokens(p, j)])
            mask = np.arange(len(tokens)) >= len(prompt)
            examples.append(Example(tokens, mask.astype(np.float32)))
    longest = max(len(e.tokens) for e in examples)
    logprobs, entropies = score(policy.params, policy.config, examples, max_tokens=longest, entropy=True)
    shape = (len(problems), per_problem)
    total = lambda parts: np.array([float(np.sum(x)) for x in parts]).reshape(shape)  # noqa: E731
    return total(logprobs), total(entropies), np.array([len(x) for x in logprobs]).reshape(shape)


def accuracy(policy: Policy, task: Task, problems, *, forced: str, n: int, seed: int) -> float:
    """Share of right responses when every response is made to start with `forced` (a prior's gate)."""
    verify, encode = Verifier(task), task.tokenizer.encode
    out = generate(
        policy, [encode(p.prompt + forced) for p in problems], n=n, seed=seed,
        max_new_tokens=task.max_response_tokens - len(encode(forced)), problem_ids=[p.id for p in problems],
    )  # fmt: skip
    right = [
        verify(p, forced + task.tokenizer.decode(out.response(i, j))).outcome is Outcome.RIGHT
        for i, p in enumerate(problems) for j in range(n)
    ]  # fmt: skip
    return float(np.mean(right))
