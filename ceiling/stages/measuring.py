"""Stages that measure a policy: records of judged samples, and the gain of its thoughts."""

import time

import numpy as np

from ceiling import hosts
from ceiling import ledger as accounts
from ceiling.evals import sample as evaluation
from ceiling.evals.records import Samples
from ceiling.model.policy import Policy
from ceiling.regimes import rlp
from ceiling.regimes.base import Sample
from ceiling.rollout.engine import generate
from ceiling.rollout.scoring import score
from ceiling.stages.context import Context
from ceiling.train import signals
from ceiling.train.loop import stream


def evaluate(context: Context) -> None:
    """n judged samples per evaluation problem, their likelihood under the base and under the policy."""
    s, task = context.settings["eval"], context.task
    policy, ledger = context.policy("policy"), accounts.Ledger()

    def report(done: int, total: int, tokens: int) -> None:
        context.report({"progress": done / total, "tokens": tokens})
        signals.check(f"after {done} of {total} problems")  # a chunk's records are on disk

    samples = evaluation.evaluate(
        policy, task, n=s["n"], seed=stream(context.seed, 5, s["draw"]), temperature=s["temperature"],
        top_p=s["top_p"], slots=s["slots"], ledger=ledger, store=context.unfinished / "records",
        max_verifier_errors=s["max_verifier_errors"], report=report,
    )  # fmt: skip
    if hosts.leader():
        samples.save(context.out / "records.parquet")
    if s["likelihood_samples"]:
        different = 1 if policy.decoding.deterministic else s["n"]
        _likelihood(context, samples, policy, ledger, min(s["likelihood_samples"], different))
    context.write_json("ledger.json", ledger.to_json())


def _likelihood(context: Context, samples: Samples, policy: Policy, ledger, per_problem: int) -> None:
    """Nats per token of the recorded samples under base and self, and the policy's token entropy."""
    problems = context.task.evaluation()
    rows = []
    base = policy if context.needs["base"] == context.needs["policy"] else context.policy("base")
    began = time.perf_counter()
    under = {}
    for name, judge in (("base", base), ("self", policy)):
        if name == "self" and judge is base:
            under[name] = under["base"]
            continue
        under[name] = evaluation.likelihood(samples, context.task, problems, judge, per_problem=per_problem)
    logp_base, _, tokens = under["base"]
    logp_self, entropy_self, _ = under["self"]
    groups = np.array(samples.groups)
    for group in dict.fromkeys(samples.groups):
        here = groups == group
        count = float(tokens[here].sum())
        rows.append({
            "group": group, "nll_under_base": -float(logp_base[here].sum()) / count,
            "nll_under_self": -float(logp_self[here].sum()) / count,
            "policy_entropy": float(entropy_self[here].sum()) / count,
        })  # fmt: skip
    ledger.charge("evaluate", "policy", seconds=time.perf_counter() - began)
    context.write_json("likelihood.json", rows)


def gain(context: Context) -> None:
    """Information gain of a policy's thoughts on held-out passages against every baseline: the raw and the
    wrapped non-thought, an empty wrapper in place of the thought, and thoughts of other problems. Scored as in
    training (the arm's floor), on the groups that the arm's text was drawn from."""
    s, task = context.settings["gain"], context.task
    policy, base = context.policy("policy"), context.policy("base")
    everything = s["groups"] == ["all"]  # the mix of a task that is trained on without regard to its groups
    problems = [p for p in task.evaluation() if everything or p.group in s["groups"]]
    passages = [task.passage(p) for p in problems]
    encode = lambda text: np.asarray(task.tokenizer.encode(text), np.int32)  # noqa: E731
    prompts = [encode(p.context) for p in passages]
    stop = task.tokenizer.encode(passages[0].stop)[0]
    out = generate(
        policy.replace(stop_ids=(stop,)), prompts, n=s["n"], max_new_tokens=s["max_thought_tokens"],
        seed=stream(context.seed, 7), problem_ids=[p.id for p in problems], slots=s["slots"],
    )  # fmt: skip

    def thought(i, j, context_of):
        return Sample(prompts[context_of], out.response(i, j), out.logprobs[i, j], bool(out.stopped[i, j]), None)

    def total(examples, judge) -> np.ndarray:
        longest = max(len(e.tokens) for e in examples)
        logprobs, _ = score(judge.params, judge.config, examples, max_tokens=longest)
        V = judge.config.vocab_size
        return np.array([float(np.sum(rlp.floored(x, s["floor"], V))) for x in logprobs]).reshape(len(problems), -1)

    pairs = [(i, j) for i in range(len(problems)) for j in range(s["n"])]
    own = [rlp.continuation_example(encode, passages[i], thought(i, j, i), 0) for i, j in pairs]
    # A fixed-point-free shift within the list keeps every thought in use once, on another problem.
    other = [(i + 1) % len(problems) for i in range(len(problems))]
    shuffled = [rlp.continuation_example(encode, passages[i], thought(other[i], j, i), 0) for i, j in pairs]
    with_thought, with_other = total(own, policy), total(shuffled, policy)
    empty = {kind: [rlp.no_thought_example(encode, p, kind, 0) for p in passages] for kind in ("raw", "wrapped")}
    baseline = {
        "over the base without a thought (raw)": total(empty["raw"], base),
        "over the base, wrapped non-thought": total(empty["wrapped"], base),
        "over itself, wrapped non-thought": total(empty["wrapped"], policy),
    }
    rows = [_mean_row(name, with_thought - reference) for name, reference in baseline.items()]
    wrapped = baseline["over the base, wrapped non-thought"]
    rows.append(_mean_row("control: empty wrapper instead of the thought", total(empty["wrapped"], policy) - wrapped))
    rows.append(_mean_row("control: another problem's thought", with_other - wrapped))
    context.write_json("gain.json", rows)


def _mean_row(metric: str, value_PJ: np.ndarray) -> dict:
    """Mean over problems in nats with a 95 % normal interval over problems."""
    per_problem = value_PJ.mean(axis=1)
    half = 1.96 * per_problem.std(ddof=1) / np.sqrt(len(per_problem)) if len(per_problem) > 1 else float("inf")
    mean = float(per_problem.mean())
    return {"metric": metric, "value": mean, "lo": mean - float(half), "hi": mean + float(half)}
