"""Decoding rules: openings, greedy, and CoT-decoding against a brute-force decoder made of full forward passes."""

import jax
import numpy as np
import pytest

import ceiling
from ceiling import ledger as accounts
from ceiling import schema
from ceiling.config import ConfigError
from ceiling.data.tokens import ByteTokenizer, CharTokenizer
from ceiling.model import Policy, forward
from ceiling.model.policy import Decoding
from ceiling.rollout.decoding import check, choose, complete, confidence, token_span
from ceiling.rollout.engine import bucket, generate
from ceiling.rollout.scoring import executed_tokens

STOP, R, K, V = 3, 6, 4, 16
PROMPTS = [np.array(p, np.int32) for p in ([5, 6, 7], [4], [9, 1, 2, 8, 7])]
full_logits = jax.jit(forward, static_argnums=1)


@pytest.fixture(scope="module")
def policy(make_model):
    config, params = make_model(seed=11, vocab_size=V, layers=1, scan_layers=False)
    return Policy(params, config, (STOP,))


def probabilities(policy, text) -> np.ndarray:
    """softmax in float64 of the next token after `text`, by a full forward pass without a cache."""
    padded_1T = np.zeros((1, 16), np.int32)
    padded_1T[0, : len(text)] = text
    logits_V = np.asarray(full_logits(policy.params, policy.config, padded_1T)[0, len(text) - 1], np.float64)
    p_V = np.exp(logits_V - logits_V.max())
    return p_V / p_V.sum()


def follow(policy, prompt, tokens, room=R):
    """`tokens` and what greedy decoding makes of them: (all tokens, p1 - p2 before each)."""
    tokens, gaps = list(tokens), []
    while True:
        p_V = probabilities(policy, [*prompt, *tokens[: len(gaps)]])
        first, second = np.sort(p_V)[::-1][:2]
        gaps.append(first - second)
        if len(tokens) < len(gaps):
            tokens.append(int(np.argmax(p_V)))
        if len(gaps) == len(tokens) and (tokens[-1] == STOP or len(tokens) == room):
            return tokens, np.array(gaps)


def label(tokens):
    """A toy task: the answer is whether tokens 2 and 3 of a response sum to an even number; a response whose second
    token is a multiple of three has none."""
    if len(tokens) < 4 or tokens[1] % 3 == 0:
        return None
    return str(int(tokens[2] + tokens[3]) % 2), (2, 4)


def answers(paths):
    return [label(list(tokens)) for _, tokens in paths]


@pytest.fixture(scope="module")
def brute(policy):
    """Every path of every prompt, by definition: [prompt][branch] -> (tokens, Delta, answer)."""
    out = []
    for prompt in PROMPTS:
        order = np.argsort(-probabilities(policy, prompt), kind="stable")[:K]
        paths = [follow(policy, prompt, [int(token)]) for token in order]
        found = [label(tokens) for tokens, _ in paths]
        out.append([
            (tokens, -np.inf if item is None else gaps[slice(*item[1])].mean(), item and item[0])
            for (tokens, gaps), item in zip(paths, found, strict=True)
        ])  # fmt: skip
    return out


def decoded(policy, rule, n=2, ledger=None, **fields):
    decode_as = policy.replace(decoding=Decoding(rule, **fields))
    return complete(decode_as, PROMPTS, n=n, max_new_tokens=R, seed=0, answers=answers, ledger=ledger)


@pytest.fixture(scope="module")
def paths(policy):
    return generate(policy, PROMPTS, n=K, max_new_tokens=R, temperature=0, seed=0, branch=True)


def test_CD2_branches_start_with_distinct_tokens_in_descending_probability(policy, paths):
    for i, prompt in enumerate(PROMPTS):
        p_V, first_K = probabilities(policy, prompt), paths.tokens[i, :, 0]
        assert len(set(first_K)) == K and (np.diff(p_V[first_K]) <= 0).all()
        assert p_V[first_K[-1]] >= np.delete(p_V, first_K).max(), "and none is left out"
        np.testing.assert_allclose(paths.logprobs[i, :, 0], np.log(p_V[first_K]), atol=1e-5)


def test_CD5_after_its_first_token_a_path_is_greedy(paths, brute):
    for i, tried in enumerate(brute):
        assert [list(paths.response(i, j)) for j in range(K)] == [tokens for tokens, *_ in tried]
    assert any(tokens == [STOP] for tried in brute for tokens, *_ in tried), "a branch may be the end itself"


@pytest.mark.parametrize("fields", [dict(pick="sum"), dict(pick="max")], ids=str)
def test_cot_takes_the_path_that_brute_force_takes_and_is_charged_for_all(policy, brute, paths, fields):
    ledger = accounts.Ledger()
    out = decoded(policy, "cot", n=3, ledger=ledger, branches=K, **fields)
    chosen = []
    for i, tried in enumerate(brute):
        delta = {tokens[0]: d for tokens, d, _ in tried}
        total = {a: sum(d for _, d, b in tried if a == b) for *_, a in tried if a is not None}
        allowed = [t for t, _, a in tried if fields["pick"] == "max" or a == max(total, key=total.get)]
        best = max(allowed, key=lambda tokens: delta[tokens[0]])
        assert [list(out.response(i, j)) for j in range(3)] == [best] * 3, "one response, recorded n times"
        chosen.append(best)
    assert (chosen[2][0] == 6) == (fields["pick"] == "max"), "the case must tell the two rules apart"
    (entry,) = ledger.entries.values()
    config, lengths = policy.config, [[len(tokens) for tokens, *_ in tried] for tried in brute]
    judged = [len(p) + 4 for p, tried in zip(PROMPTS, brute, strict=True) for _, d, _ in tried if d > -np.inf]
    assert entry.flops == accounts.sampling_flops(config, [3, 1, 5], lengths) + accounts.forward_flops(config, judged)
    assert entry.sequences == 3 * K + len(judged) and entry.tokens == np.sum(lengths) + 9 + sum(judged)
    padded = executed_tokens(policy.params, config, len(judged), bucket(5) + R)
    assert entry.executed_tokens == paths.executed_tokens + padded > sum(judged)


def test_CD1_one_branch_is_greedy(policy, brute):
    one, greedy = decoded(policy, "cot", branches=1), decoded(policy, "greedy")
    np.testing.assert_array_equal(one.tokens, greedy.tokens)
    np.testing.assert_allclose(one.logprobs, greedy.logprobs, atol=1e-6)
    assert [list(greedy.response(i, 1)) for i in range(3)] == [tried[0][0] for tried in brute]


def test_CD3_CD6_delta_is_the_mean_gap_of_the_spans_tokens_alone(policy, brute):
    tried = [(p, tokens, d) for p, tried in zip(PROMPTS, brute, strict=True) for tokens, d, _ in tried]
    prompts, responses, expected = zip(*tried, strict=True)
    responses, spans = [np.array(r) for r in responses], [(2, 4) if d > -np.inf else None for d in expected]
    measure = lambda policy, responses: confidence(policy, prompts, responses, spans, max_new_tokens=R)  # noqa: E731
    delta = measure(policy, responses)
    np.testing.assert_allclose(delta, expected, atol=1e-5)
    assert ((delta > 0) & (delta < 1)).sum() >= 6 and np.isneginf(delta).sum() >= 3, "no answer: -inf, not 0"
    other_end = [np.concatenate([r[:4], (r[4:] + 1) % V]) for r in responses]
    np.testing.assert_array_equal(measure(policy, other_end), delta)
    sharp = policy.replace(params={**policy.params, "final_norm": 1e4 * policy.params["final_norm"]})
    np.testing.assert_array_equal(measure(sharp, responses), np.where(np.isneginf(delta), -np.inf, 1.0))


def test_CD4_with_one_path_per_answer_the_sum_is_the_maximum():
    rng = np.random.default_rng(0)
    for delta_K in rng.random((20, 5)):
        delta_K[rng.integers(5)] = -np.inf
        names = [None if np.isneginf(d) else str(i) for i, d in enumerate(delta_K)]
        assert choose(delta_K, names, "sum") == choose(delta_K, names, "max") == np.argmax(delta_K)
    assert choose([0.4, 0.5, 0.3, -np.inf], ["a", "b", "a", None], "sum") == 0
    assert choose([0.4, 0.5, 0.3, -np.inf], ["a", "b", "a", None], "max") == 1
    assert choose([-np.inf] * 3, [None] * 3, "sum") == choose([-np.inf] * 3, [None] * 3, "max") == 0


def test_an_opening_is_part_of_the_response_and_counts_against_its_length(policy):
    opening, ledger = (7, 2), accounts.Ledger()
    out = decoded(policy, "sample", n=8, opening=opening, ledger=ledger)
    bare = generate(policy, [[*p, *opening] for p in PROMPTS], n=8, max_new_tokens=R - 2, seed=0)
    assert out.tokens.shape == (3, 8, R) and (out.tokens[..., :2] == opening).all()
    np.testing.assert_array_equal(out.tokens[..., 2:], bare.tokens)
    np.testing.assert_array_equal(out.logprobs[..., 2:], bare.logprobs)
    assert not out.logprobs[..., :2].any(), "a forced token was not drawn"
    np.testing.assert_array_equal(out.lengths, bare.lengths + 2)
    np.testing.assert_array_equal(out.stopped, bare.stopped)
    (entry,) = ledger.entries.values()
    assert entry.flops == accounts.sampling_flops(policy.config, [5, 3, 7], bare.lengths)
    assert entry.tokens == bare.lengths.sum() + 15 and entry.sequences == 24


class Pieces:
    """A tokenizer of pieces, with a piece for a half of one character and one without text."""

    pieces = {1: b" 1", 2: b"2.", 3: b"is", 4: b"\xc3", 5: b"\xa9", 6: b"", 7: b"34", 8: b"#"}

    def decode(self, tokens):
        return b"".join(self.pieces[int(t)] for t in tokens).decode("utf-8", errors="replace")


@pytest.mark.parametrize(
    ("tokens", "answer", "span"),
    [
        ([3, 1, 2], "12", (1, 3)),  # " 1" and "2." overlap it
        ([3, 1, 7, 3], "134", (1, 3)),
        ([8, 6, 7, 6, 2], "34", (2, 3)),  # pieces without text are no part of it
        ([3, 4, 5, 7], "é", (1, 3)),  # both halves of a character
        ([4, 5, 7, 3], "34", (2, 3)),
        ([8, 4, 7], "34", (2, 3)),  # after bytes that are no character
    ],
)  # fmt: skip
def test_CD6_a_token_that_overlaps_the_answer_counts(tokens, answer, span):
    start = Pieces().decode(tokens).index(answer)
    assert token_span(Pieces(), np.array(tokens), (start, start + len(answer))) == span


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharTokenizer("#0123456789$aé", eos="$")], ids=type)
def test_CD6_spans_of_text_are_found_again(tokenizer):
    text = "aé#12é34#5" + tokenizer.eos
    tokens = np.array(tokenizer.encode(text))
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            first, stop = token_span(tokenizer, tokens, (start, end))
            assert tokenizer.decode(tokens[first:stop]) == text[start:end]


def test_rules_that_cannot_be_carried_out_are_refused(policy):
    with pytest.raises(ValueError, match="opening of 6 tokens leaves no room in a response of 6"):
        decoded(policy, "greedy", opening=(1,) * R)
    with pytest.raises(ValueError, match="ends the response"):
        decoded(policy, "sample", opening=(1, STOP))
    with pytest.raises(ValueError, match="branches=17 of a vocabulary of 16"):
        check(Decoding("cot", branches=V + 1), (STOP,), V, R)
    with pytest.raises(ValueError, match="pass `answers`"):
        complete(policy.replace(decoding=Decoding("cot")), PROMPTS, n=1, max_new_tokens=R, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(opening="S$"), "arms.x: decoding: the opening contains a token that ends the response"),
        (dict(opening="S" * 30), "arms.x: decoding: an opening of 30 tokens leaves no room in a response of 30"),
        (dict(opening="?"), r"arms.x: tokenizer: character '\?'"),
        (dict(decoding="cot", branches=10_000), "arms.x: decoding: branches=10000 of a vocabulary"),
    ],
    ids=str,
)
def test_an_arm_that_cannot_be_decoded_is_refused_before_anything_runs(settings, message):
    config = ceiling.defaults("lab", arms={"x": ceiling.arm("sft", pool=2, **settings)})
    config.train.mix = {"C": 1.0}
    config.task.update(evaluation_per_group=1, training_per_group=2, gate_problems=1)
    config = schema.validate(config)
    with pytest.raises(ConfigError, match=message):
        schema.check_against_task(config, schema.load_task(config))
