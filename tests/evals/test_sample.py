"""Evaluation: n judged samples per problem, independent of how the work is cut (R9, N3, X-6)."""

import collections
import hashlib
import math
import threading

import jax
import numpy as np
import pytest

import ceiling
from ceiling import ledger as accounts
from ceiling.evals import sample
from ceiling.evals.records import Samples
from ceiling.model.config import ModelConfig, init
from ceiling.model.policy import Decoding, Policy
from ceiling.tasks import lab
from ceiling.tasks.base import Outcome, Verdict
from ceiling.train.loop import stream

N = 6


@pytest.fixture(scope="module")
def task():
    return lab.make(lab.CONFIG.defaults(evaluation_per_group=1, training_per_group=1, gate_problems=2), {})


@pytest.fixture(scope="module")
def policy(task):
    config = ModelConfig(vocab_size=task.tokenizer.vocab_size, width=16, ffn=16, layers=1, heads=2, kv_heads=1,
                         head_dim=8, embed_std=1.0, tied=False, scan_layers=False)  # fmt: skip
    return Policy(init(config, jax.random.key(0)), config, (task.tokenizer.eos_id,))


@pytest.fixture(scope="module")
def drawn(policy, task):
    """(samples, ledger, progress reports) of one evaluation."""
    ledger, reports = accounts.Ledger(), []
    samples = ceiling.evaluate(policy, task, n=N, seed=5, ledger=ledger, report=lambda *a: reports.append(a))
    return samples, ledger, reports


def _same(one: Samples, other: Samples):
    assert one.table.drop_columns("logprob").to_pylist() == other.table.drop_columns("logprob").to_pylist()
    np.testing.assert_allclose(one.matrix("logprob"), other.matrix("logprob"), atol=1e-4)


def test_one_record_per_sample(drawn, task):
    samples, _, _ = drawn
    problems = task.evaluation()
    assert samples.table.num_rows == len(problems) * N and samples.problems == len(problems) and samples.n == N
    rows = list(zip(samples.table["problem"].to_pylist(), samples.table["sample"].to_pylist(), strict=True))
    assert rows == [(p, j) for p in range(len(problems)) for j in range(N)]
    ids = samples.matrix("problem_id")
    assert (ids == np.array([p.id for p in problems])[:, None]).all()
    assert samples.groups == [p.group for p in problems] == samples.table["group"].to_pylist()[::N]
    assert samples.meta["seed"] == 5 and samples.meta["temperature"] == 1.0 and samples.meta["task"] == "lab"


def test_counts_and_verdicts_are_those_of_the_tasks_verifier(drawn, task):
    samples, _, _ = drawn
    problems, right = task.evaluation(), 0
    for p, problem in enumerate(problems):
        for j in range(N):
            verdict = task.verify(problem, task.tokenizer.decode(samples.tokens(p, j)))
            row = {c: samples.table[c][p * N + j].as_py() for c in ("outcome", "process", "answer", "strategy")}
            assert row["outcome"] == verdict.outcome and row["answer"] == (verdict.answer or "")
            assert row["strategy"] == (verdict.strategy or "")
            assert row["process"] == (-1 if verdict.process is None else int(verdict.process))
            right += verdict.right
    assert samples.counts[:, 1].sum() == right and (samples.counts[:, 0] == N).all()


def test_x6_stopped_means_that_the_end_token_is_the_last_and_only_there(drawn, task):
    samples, _, _ = drawn
    stopped, eos = samples.matrix("stopped"), task.tokenizer.eos_id
    for p in range(samples.problems):
        for j in range(N):
            tokens = samples.tokens(p, j)
            assert 1 <= len(tokens) <= task.max_response_tokens
            assert (eos in tokens) == stopped[p, j] and eos not in tokens[:-1]
            if not stopped[p, j]:
                assert len(tokens) == task.max_response_tokens
                assert samples.matrix("outcome")[p, j] == Outcome.UNPARSED
    assert stopped.any() and not stopped.all()  # both kinds were seen


@pytest.mark.exact
@pytest.mark.parametrize("chunk", [4, 3 * N])  # less than one problem at a time; three of eight
def test_r9_samples_do_not_depend_on_chunking(drawn, policy, task, chunk):
    _same(drawn[0], sample.evaluate(policy, task, n=N, seed=5, chunk_requests=chunk))


def test_r9_a_killed_evaluation_continues_where_it_stopped(drawn, policy, task, tmp_path, monkeypatch):
    calls = []

    def counted(*args, **kwargs):
        calls.append(kwargs["problem_ids"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return complete(*args, **kwargs)

    complete = sample.complete
    monkeypatch.setattr(sample, "complete", counted)
    arguments = dict(n=N, seed=5, chunk_requests=2 * N, store=tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        sample.evaluate(policy, task, **arguments)
    (tmp_path / "parts/000004.parquet.part").write_bytes(b"a write that was cut")
    ledger = accounts.Ledger()
    whole = sample.evaluate(policy, task, ledger=ledger, **arguments)
    _same(drawn[0], whole)
    assert len(calls) == 3 + 2, "two of four chunks were on disk"
    assert ledger.entries["evaluate", "policy"].sequences == 8 * N
    assert whole.meta == drawn[0].meta


def test_a_chunk_is_judged_while_the_next_is_drawn_and_is_kept_if_that_is_cut(
    drawn, policy, task, tmp_path, monkeypatch
):
    """The verdicts of the first chunk wait for the drawing of the second to begin, which then fails."""
    drawing, complete, calls = threading.Event(), sample.complete, []

    def cut(*args, **kwargs):
        calls.append(kwargs["problem_ids"])
        if len(calls) == 2:
            drawing.set()
            raise KeyboardInterrupt
        return complete(*args, **kwargs)

    def patient(verify, problems, out):
        assert drawing.wait(60), "nothing is drawn beside it"
        return judged(verify, problems, out)

    judged = sample._judged
    monkeypatch.setattr(sample, "complete", cut)
    monkeypatch.setattr(sample, "_judged", patient)
    arguments = dict(n=N, seed=5, chunk_requests=2 * N, store=tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        sample.evaluate(policy, task, **arguments)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["000000.parquet"]
    monkeypatch.setattr(sample, "complete", complete)
    _same(drawn[0], sample.evaluate(policy, task, **arguments))


def test_v6_a_verifier_that_fails_stops_the_evaluation(policy, task, monkeypatch):
    monkeypatch.setattr(task, "verify", lambda problem, response: 1 / 0)
    said = r"lab: the verifier failed on more than 5% of a batch \(the last: ZeroDivisionError: .*test_sample.py:\d+\)"
    with pytest.raises(RuntimeError, match=said):
        sample.evaluate(policy, task, n=2, seed=5, max_verifier_errors=0.05)


@pytest.mark.exact
def test_r9_samples_do_not_depend_on_which_other_problems_or_samples_are_asked_for(drawn, policy, task):
    problems = task.evaluation()
    part = sample.evaluate(policy, task, n=N, seed=5, problems=problems[3:5])
    for i, p in enumerate((3, 4)):
        for j in range(N):
            np.testing.assert_array_equal(part.tokens(i, j), drawn[0].tokens(p, j))
    fewer = sample.evaluate(policy, task, n=2, seed=5)
    for p in range(len(problems)):
        for j in range(2):
            np.testing.assert_array_equal(fewer.tokens(p, j), drawn[0].tokens(p, j))


def test_the_null_draw_is_another_draw_and_a_repeat_is_the_same(drawn, policy, task):
    base, null = (sample.evaluate(policy, task, n=N, seed=stream(1, 5, draw)) for draw in (0, 1))
    equal = [np.array_equal(base.tokens(p, j), null.tokens(p, j)) for p in range(base.problems) for j in range(N)]
    assert np.mean(equal) < 0.5
    _same(drawn[0], sample.evaluate(policy, task, n=N, seed=5))


def test_n5_samples_of_one_problem_are_different_draws(drawn):
    samples, _, _ = drawn
    for p in range(samples.problems):
        assert len({samples.tokens(p, j).tobytes() for j in range(N)}) > 1


@pytest.mark.exact
def test_n3_likelihood_of_own_samples_equals_the_recorded_logprob(drawn, policy, task):
    samples, _, _ = drawn
    logp, entropy, tokens = sample.likelihood(samples, task, task.evaluation(), policy, per_problem=N)
    np.testing.assert_allclose(logp, samples.matrix("logprob"), atol=1e-4)
    lengths = samples.table["tokens"].combine_chunks().value_lengths().to_numpy().reshape(-1, N)
    np.testing.assert_array_equal(tokens, lengths)
    assert (entropy > 0).all() and (entropy <= tokens * math.log(task.tokenizer.vocab_size) + 1e-3).all()


def test_n3_likelihood_under_other_weights_is_another_number(drawn, policy, task):
    samples, _, _ = drawn
    other = Policy(init(policy.config, jax.random.key(9)), policy.config, policy.stop_ids)
    own, *_ = sample.likelihood(samples, task, task.evaluation(), policy, per_problem=2)
    foreign, *_ = sample.likelihood(samples, task, task.evaluation(), other, per_problem=2)
    assert foreign.sum() < own.sum()  # its own samples are likeliest under the policy itself


def test_x8_the_ledger_holds_what_was_sampled(drawn, policy, task):
    samples, ledger, reports = drawn
    lengths = samples.table["tokens"].combine_chunks().value_lengths().to_numpy().reshape(-1, N)
    (row,) = ledger.rows()
    assert (row["phase"], row["model"], row["student"]) == ("evaluate", "policy", False)
    assert row["tokens"] == lengths.sum() + 9 * samples.problems
    # A response's last token is drawn and never fed, so one token less per sample is executed at least.
    assert row["executed_tokens"] >= row["tokens"] - row["sequences"]
    assert row["flops"] == accounts.sampling_flops(policy.config, [9] * samples.problems, lengths)
    assert row["sequences"] == samples.problems * N
    assert reports[-1] == (samples.problems, samples.problems, lengths.sum())


def test_x7_the_prompts_identity_is_recorded(drawn, task):
    text = "\n".join(p.prompt for p in task.evaluation())
    assert drawn[0].meta["prompts_sha256"] == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_greedy_samples_are_all_equal(policy, task):
    samples = sample.evaluate(policy, task, n=3, seed=5, temperature=0.0, problems=task.evaluation()[:2])
    for p in range(2):
        assert len({samples.tokens(p, j).tobytes() for j in range(3)}) == 1


def test_forced_start_counts_in_the_judged_response(policy, task):
    """A forced response that is already complete up to its end: right whatever the model adds, or never."""
    pool, forced, _ = task.gate()
    value = sample.accuracy(policy, task, pool, forced=forced, n=4, seed=0)
    assert 0.0 <= value <= 0.5  # an untrained model does not execute
    seen = []

    class Spy:
        tokenizer, max_response_tokens = task.tokenizer, task.max_response_tokens

        def verify(self, problem, response):
            seen.append(response)
            return task.verify(problem, response)

    sample.accuracy(policy, Spy(), pool, forced=forced, n=4, seed=0)
    assert seen and all(r.startswith("S") and len(r) <= task.max_response_tokens for r in seen)


def test_CD_one_chosen_response_is_recorded_n_times_and_paid_once(policy, task):
    class Reading:
        """The first path of a problem answers "a", the others "b". All are equally sure of their first token."""

        name, tokenizer, max_response_tokens = "reading", task.tokenizer, task.max_response_tokens
        seen = collections.defaultdict(list)

        def verify(self, problem, response):
            self.seen[problem.id].append(response)
            return Verdict(Outcome.RIGHT, "b" if len(self.seen[problem.id]) > 1 else "a")

        def answer_span(self, response):
            return 0, 1

    reading, ledger, problems = Reading(), accounts.Ledger(), task.evaluation()[:3]
    together = policy.replace(decoding=Decoding("cot", branches=4))
    samples = sample.evaluate(together, reading, n=5, seed=0, problems=problems, ledger=ledger)
    assert samples.meta["decoding"] == {"rule": "cot", "branches": 4, "pick": "sum", "opening": []}
    assert samples.n == 5 and samples.counts.tolist() == [[5, 5]] * 3
    for p, problem in enumerate(problems):
        assert len(reading.seen[problem.id]) == 4, "the chosen path is not judged again"
        recorded = {task.tokenizer.decode(samples.tokens(p, j)) for j in range(5)}
        assert recorded == {reading.seen[problem.id][1]}, "three paths say b: the first of them"
    assert ledger.entries["evaluate", "policy"].sequences == 3 * 4 + 3 * 4
    with pytest.raises(ValueError, match="task lab has no answer_span"):
        unread = type("Unread", (), dict(name="lab"))()
        sample.evaluate(together, unread, n=1, seed=0, problems=problems)


@pytest.mark.parametrize(
    "arguments", [dict(n=0), dict(n=-1), dict(temperature=-1.0), dict(top_p=0.0), dict(problems=[])]
)
def test_arguments_that_make_no_sense_are_refused(policy, task, arguments):
    with pytest.raises(ValueError):
        sample.evaluate(policy, task, **{"n": 2, "seed": 0, **arguments})
