"""The sampler: what it draws, what it records, and what must not change either."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from ceiling.data.packing import Example
from ceiling.model import Policy, forward, layers, make_mesh, place
from ceiling.model.attention import dense_attention
from ceiling.model.config import PROJECTIONS
from ceiling.model.layers import Turned, for_rows
from ceiling.rollout import generate, slots
from ceiling.rollout.cache import attention_of_one
from ceiling.rollout.engine import bucket, share
from ceiling.rollout.scoring import score
from ceiling.rollout.slots import begin, stages

STOP = 3
R = 6
PROMPTS = [[5, 6, 7], [4], [9, 1, 2, 8, 7], [5, 6, 7], [2, 2]]  # 0 and 3 are equal on purpose
VARIANTS = [dict(odd=True), dict(kv_heads=1, scan_layers=False)]
full_logits = jax.jit(forward, static_argnums=1)


@pytest.fixture(scope="module")
def policy(make_model):
    config, params = make_model(vocab_size=16)
    return Policy(params, config, (STOP,))


def draw(policy, prompts=PROMPTS, **changes):
    settings = dict(n=8, max_new_tokens=R, temperature=1.0, top_p=1.0, seed=11)
    return generate(policy, prompts, **{**settings, **changes})


@pytest.fixture(scope="module")
def usual(policy):
    return draw(policy)


def same(a, b, rows=slice(None), samples=slice(None)):
    """Equal draws; log-probs to rounding, since another batch shape may sum in another order."""
    np.testing.assert_array_equal(a.tokens, b.tokens[rows, samples])
    np.testing.assert_array_equal(a.lengths, b.lengths[rows, samples])
    np.testing.assert_array_equal(a.stopped, b.stopped[rows, samples])
    np.testing.assert_allclose(a.logprobs, b.logprobs[rows, samples], atol=1e-5)


def teacher_forced(policy, prompts, out, temperature):
    """log-probs of every response through `score`, as the trainer sees them."""
    examples = []
    for i, prompt in enumerate(prompts):
        for j in range(out.lengths.shape[1]):
            tokens = np.concatenate([prompt, out.response(i, j)]).astype(np.int32)
            examples.append(Example(tokens, (np.arange(len(tokens)) >= len(prompt)).astype(np.float32)))
    return score(policy.params, policy.config, examples, max_tokens=16, temperature=temperature, batch_sequences=64)[0]


def recorded(out):
    N, n = out.lengths.shape
    return [out.logprobs[i, j, : out.lengths[i, j]] for i in range(N) for j in range(n)]


def test_greedy_equals_the_argmax_of_the_full_forward_token_by_token(make_model):
    config, params = make_model(odd=True)
    policy = Policy(params, config, (STOP,))
    out = draw(policy, temperature=0, n=2, slots=3)
    np.testing.assert_array_equal(out.tokens[:, 0], out.tokens[:, 1])
    for i, prompt in enumerate(PROMPTS):
        text = list(prompt)
        for t in range(R):
            padded_1T = np.zeros((1, 16), np.int32)
            padded_1T[0, : len(text)] = text
            logits_V = np.asarray(full_logits(params, config, padded_1T)[0, len(text) - 1], np.float64)
            best = int(np.argmax(logits_V))
            assert out.tokens[i, 0, t] == best, (i, t)
            log_p = logits_V[best] - np.log(np.sum(np.exp(logits_V - logits_V.max()))) - logits_V.max()
            assert out.logprobs[i, 0, t] == pytest.approx(log_p, abs=1e-5)
            text.append(best)
            if best == STOP:
                break
        assert out.lengths[i, 0] == len(text) - len(prompt)


@pytest.mark.exact
@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_X2_N3_recorded_log_probs_equal_teacher_forced_ones(make_model, fields, temperature):
    config, params = make_model(**fields)
    policy = Policy(params, config, (STOP,))
    out = draw(policy, temperature=temperature)
    gaps = [np.abs(a - b).max() for a, b in
            zip(recorded(out), teacher_forced(policy, PROMPTS, out, temperature), strict=True)]  # fmt: skip
    assert max(gaps) <= 1e-5
    wrong = teacher_forced(policy, PROMPTS, out, temperature * 1.3)
    assert max(np.abs(a - b).max() for a, b in zip(recorded(out), wrong, strict=True)) > 1e-2, "X-1 would not show"


def test_N3_bfloat16_gap_stays_small(policy):
    half = Policy(policy.params, dataclasses.replace(policy.config, compute_dtype="bfloat16"), (STOP,))
    out = draw(half)
    gap = np.concatenate([np.abs(a - b) for a, b in
                          zip(recorded(out), teacher_forced(half, PROMPTS, out, 1.0), strict=True)])  # fmt: skip
    assert out.logprobs.dtype == np.float32
    assert gap.mean() < 0.02, "anchor: 0.015 to 0.024 across implementations"


def test_X6_stop_token_is_the_last_token_and_truncation_is_flagged(usual):
    assert usual.tokens.shape == usual.logprobs.shape == (5, 8, R)
    assert usual.stopped.any() and not usual.stopped.all(), "the case needs both endings"
    assert len(set(usual.lengths.ravel())) > 2
    for i in range(5):
        for j in range(8):
            n = usual.lengths[i, j]
            response = usual.response(i, j)
            assert len(response) == n >= 1
            assert STOP not in response[:-1]
            assert usual.stopped[i, j] == (response[-1] == STOP)
            assert usual.stopped[i, j] or n == R
            assert np.all(usual.tokens[i, j, n:] == 0) and np.all(usual.logprobs[i, j, n:] == 0)
            assert np.all(usual.logprobs[i, j, :n] < 0)


def test_X6_each_of_several_stop_tokens_ends_a_response(policy):
    stops = (STOP, 7)
    out = draw(Policy(policy.params, policy.config, stops), temperature=4.0)
    responses = [out.response(i, j) for i in range(5) for j in range(8)]
    assert {int(r[-1]) for r, stopped in zip(responses, out.stopped.ravel(), strict=True) if stopped} == set(stops)
    assert not any(np.isin(r[:-1], stops).any() for r in responses)


# --- noise depends on (seed, problem, sample, position) and on nothing else --------------------------------


@pytest.mark.exact
@pytest.mark.parametrize(
    "changes",
    [dict(slots=3), dict(slots=1, chunk_requests=16), dict(chunk_requests=3)],
    ids=str,
)
def test_slots_and_chunks_change_no_sample(policy, usual, changes):
    """chunk_requests=3 is below n, so one prompt's samples span several programs."""
    same(draw(policy, **changes), usual)


@pytest.mark.parametrize("first", [0, 4])
def test_samples_do_not_depend_on_how_many_are_drawn_or_where_a_series_starts(policy, usual, first):
    same(draw(policy, n=4, first_sample=first), usual, samples=slice(first, first + 4))


@pytest.mark.exact
def test_order_and_company_of_prompts_change_no_sample(policy, usual):
    order = [3, 0, 4, 2, 1]
    same(draw(policy, [PROMPTS[i] for i in order], problem_ids=order), usual, rows=order)
    same(draw(policy, [PROMPTS[1]], problem_ids=[1]), usual, rows=[1])
    longer = [*PROMPTS, [7] * 13]
    assert bucket(13) != bucket(5), "the longer prompt must move the call to another bucket"
    out = draw(policy, longer, max_new_tokens=R + 3)
    np.testing.assert_array_equal(out.tokens[:5, :, :R], usual.tokens)
    np.testing.assert_array_equal(np.minimum(out.lengths[:5], R), usual.lengths)
    np.testing.assert_allclose(out.logprobs[:5, :, :R], usual.logprobs, atol=1e-5)
    assert np.any(out.lengths[:5] > R), "a longer limit extends what was cut and changes nothing else"


def test_seeds_problems_and_samples_get_different_noise(policy, usual):
    other = draw(policy, seed=12)
    assert np.mean(np.any(other.tokens != usual.tokens, axis=-1)) > 0.8
    assert np.any(usual.tokens[0] != usual.tokens[3]), "equal prompts of two problems are two draws"
    moved = draw(policy, problem_ids=np.arange(5) + 2**32 - 6)
    assert np.any(moved.tokens != usual.tokens)
    same(draw(policy), usual)


def test_samples_of_a_problem_are_distinct_streams(policy):
    """N5: a repeated seed would show as repeated long responses."""
    free = Policy(policy.params, policy.config, ())
    out = draw(free, [[5]], n=64, max_new_tokens=24, temperature=3.0)
    assert not out.stopped.any() and np.all(out.lengths == 24), "no stop token, no stop"
    assert len({tuple(row) for row in out.tokens[0]}) == 64


# --- cost --------------------------------------------------------------------------------------------------


def test_one_compilation_for_all_calls_of_a_bucket(policy):
    before = begin._cache_size()
    for seed, prompts in enumerate([[[1, 2], [3] * 8], [[4] * 5, [6]], [[2] * 7, [2] * 6]]):
        draw(policy, prompts, n=5, seed=seed, temperature=1.0 + seed / 10, problem_ids=[seed, 9], first_sample=seed)
    assert begin._cache_size() == before + 1
    draw(policy, [[1], [2], [3], [4], [5], [6], [7] * 8], n=5, chunk_requests=10)  # 4 programs of 2 prompts
    assert begin._cache_size() == before + 1, "a long call is cut into programs of one shape"


@pytest.mark.parametrize(("length", "capacity"), [(1, 4), (4, 4), (5, 8), (32, 32), (33, 48), (128, 128), (129, 256),
                                                  (1024, 1024), (1025, 1536)])  # fmt: skip
def test_buckets_hold_their_prompts_and_are_few(length, capacity):
    assert bucket(length) == capacity
    assert len({bucket(n) for n in range(1, 4097)}) < 32


def test_freed_slots_are_refilled(policy):
    """Work follows the tokens drawn, not requests * limit."""
    n, limit, slots = 48, 24, 4
    out = draw(policy, [[5]], n=n, max_new_tokens=limit, slots=slots, temperature=2.0)
    steps_needed = int((out.lengths - 1).sum())  # the first token of a response comes from the prefill
    assert out.lengths.max() > 2 * out.lengths.mean(), "lengths must be uneven"
    assert steps_needed <= out.executed_tokens <= steps_needed + slots * limit
    assert out.executed_tokens < 0.8 * n * limit
    waves = out.lengths[0].reshape(-1, slots).max(axis=1).sum() * slots  # slots that wait for their wave
    assert out.executed_tokens < waves


@pytest.mark.parametrize(("scan", "slots", "requests", "ring", "expected"), [
    (True, 128, 128, 96, [(128, 96)]), (False, 128, 128, 96, [(128, 32), (128, 96), (64, 96), (32, 96)]),
    (False, 128, 129, 96, [(128, 96), (64, 96), (32, 96)]), (False, 30, 30, 40, [(30, 40), (15, 40)]),
    (False, 8, 8, 8, [(8, 8)]),
])  # fmt: skip
def test_stages_are_few_and_hold_what_may_live(policy, scan, slots, requests, ring, expected):
    config = dataclasses.replace(policy.config, scan_layers=scan)
    assert stages(config, slots, requests, ring) == expected


@pytest.fixture(scope="module")
def staged(policy):
    """(a policy whose decode loop has stages, its arguments, what the same weights draw in one stage)."""
    unrolled = Policy(policy.params, dataclasses.replace(policy.config, scan_layers=False), (STOP,))
    settings = dict(prompts=[[i, 5, 9][: 1 + i % 3] for i in range(4, 12)], max_new_tokens=48, temperature=1.5)
    return unrolled, settings, draw(policy, **settings)


def test_stages_change_no_sample_and_idle_slots_are_given_up(staged):
    unrolled, settings, reference = staged
    out = draw(unrolled, **settings)
    same(out, reference)
    lengths, steps, slots = reference.lengths.ravel(), 0, 64
    assert stages(unrolled.config, 64, 64, 48) == [(64, 16), (64, 48), (32, 48), (16, 48)]
    assert np.sum(lengths > 16) > 16 and np.sum(lengths > 32) > 0, "every stage has something to do"
    for count in range(1, lengths.max()):  # the step that draws token count + 1 of what lives
        slots = next(size for size in (16, 32, 64) if size == slots or np.sum(lengths > count) <= size)
        steps += slots
    assert out.executed_tokens == reference.executed_tokens - 64 * (lengths.max() - 1) + steps
    assert steps < 0.8 * 64 * (lengths.max() - 1)


@pytest.mark.parametrize("sizes", [None, (2, 1, 2)], ids=str)
def test_stages_behind_a_queue_and_on_a_mesh_change_no_sample(staged, sizes):
    unrolled, settings, reference = staged
    if sizes:
        placed = place(unrolled.params, unrolled.config, make_mesh(*sizes))
        unrolled = Policy(placed, unrolled.config, (STOP,))
    out = draw(unrolled, **settings, **({} if sizes else dict(slots=40)))
    same(out, reference)
    assert out.executed_tokens < reference.executed_tokens


def test_matrices_that_lie_the_other_way_round_change_no_sample(staged, monkeypatch):
    """On a CPU, in a loop of few rows: here all of them, and a model of a size that nobody else decodes."""
    unrolled, settings, _ = staged
    config = dataclasses.replace(unrolled.config, norm_eps=3e-6)
    usual = draw(unrolled.replace(config=config), **settings)
    turned = for_rows(unrolled.params, config, 64)["layers"]
    assert not any(isinstance(w, Turned) for w in turned.values()), "none of a tiny model's is large"
    monkeypatch.setattr(layers, "LARGE", 1)
    turned = for_rows(unrolled.params, config, 64)["layers"]
    assert {name for name, w in turned.items() if isinstance(w, Turned)} == set(PROJECTIONS)
    for name, w in turned.items():
        np.testing.assert_array_equal(w[1], unrolled.params["layers"][name][1])
    assert not any(isinstance(w, Turned) for w in for_rows(unrolled.params, config, 512)["layers"].values())
    slots._for_rows.clear_cache()
    same(draw(unrolled.replace(config=config), **settings), usual)
    slots._for_rows.clear_cache()


@pytest.mark.parametrize("turned", [True, False])
def test_attention_of_one_query_is_dense_attention(turned):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=s).astype(np.float32) for s in ((3, 1, 6, 4), (3, 2, 10, 4), (3, 2, 10, 4)))
    mask_B1S = rng.random((3, 1, 10)) < 0.5
    expected = jax.jit(dense_attention)(q, k, v, mask_B1S)
    one = jax.jit(functools.partial(attention_of_one, turned=turned))
    np.testing.assert_allclose(one(q, k, v, mask_B1S), expected, atol=1e-6)
    assert np.abs(dense_attention(q, k, v, np.ones_like(mask_B1S)) - expected).max() > 0.01, "the mask must show"


@pytest.mark.exact
@pytest.mark.parametrize("sizes", [(2, 2, 2), (8, 1, 1)], ids=str)
def test_eight_devices_draw_the_same_tokens(policy, usual, sizes):
    placed = place(policy.params, policy.config, make_mesh(*sizes))
    same(draw(Policy(placed, policy.config, (STOP,))), usual)


@pytest.mark.parametrize(("rows", "width", "per_call", "samples", "groups"), [
    (5, 8, 5, 8, 1), (5, 8, 5, 8, 4), (64, 8, 64, 8, 8), (3, 8, 5, 8, 8), (1, 3, 1, 8, 4), (2, 1, 2, 1, 8),
    (1, 256, 1, 256, 8),
])  # fmt: skip
def test_groups_share_every_request_once_and_hold_its_prompt(rows, width, per_call, samples, groups):
    index_ZC, prompt_ZQ, sample_ZQ, queued_Z = share(rows, width, per_call, samples, groups)
    full = share(per_call, samples, per_call, samples, groups)
    assert [a.shape for a in full] == [index_ZC.shape, prompt_ZQ.shape, sample_ZQ.shape, queued_Z.shape]
    seen = [(index_ZC[z, prompt_ZQ[z, q]], sample_ZQ[z, q]) for z in range(groups) for q in range(queued_Z[z])]
    assert seen == [(i, j) for i in range(rows) for j in range(width)], "in order, each once"
    assert index_ZC.size <= per_call + 2 * groups, "few prompts are held twice"


# --- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(prompts=[]), "empty prompt"), (dict(prompts=[[1], []]), "empty prompt"),
        (dict(n=0), "n=0"), (dict(n=-1), "n=-1"), (dict(max_new_tokens=0), "max_new_tokens=0"),
        (dict(top_p=0.0), r"top_p=0\.0"), (dict(top_p=1.1), r"top_p=1\.1"), (dict(top_p=float("nan")), "top_p=nan"),
        (dict(temperature=-0.5), r"temperature=-0\.5"), (dict(temperature=float("nan")), "temperature=nan"),
        (dict(temperature=float("inf")), "temperature=inf"),
        (dict(problem_ids=[1, 2]), "problem_ids"), (dict(slots=0), "slots=0"),
        (dict(chunk_requests=0), "chunk_requests=0"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_input_is_one_clear_line(policy, changes, message):
    with pytest.raises(ValueError, match=f"^rollout: .*{message}[^\n]*$"):
        draw(policy, **changes)


def test_a_call_without_a_seed_is_an_error(policy):
    with pytest.raises(TypeError, match="seed"):
        generate(policy, [[1]], n=1, max_new_tokens=1)


@pytest.mark.parametrize("chunk_requests", [7, 1000])
def test_limits_cut_each_sample_and_change_nothing_before(chunk_requests, policy, usual):
    limits = np.random.default_rng(0).integers(1, R + 1, usual.lengths.shape)
    out = draw(policy, limits=limits, slots=5, chunk_requests=chunk_requests)
    np.testing.assert_array_equal(out.lengths, np.minimum(usual.lengths, limits))
    np.testing.assert_array_equal(out.stopped, usual.stopped & (usual.lengths <= limits))
    kept = np.arange(R) < out.lengths[..., None]
    np.testing.assert_array_equal(out.tokens, np.where(kept, usual.tokens, 0))
    np.testing.assert_allclose(out.logprobs, np.where(kept, usual.logprobs, 0), atol=1e-5)


@pytest.mark.parametrize("limits", [np.full((5, 7), R), np.full((5, 8), R + 1), np.zeros((5, 8))])
def test_limits_of_another_shape_or_range_are_refused(limits, policy):
    with pytest.raises(ValueError, match="rollout: limits of shape .* give 5 prompts x 8 samples"):
        draw(policy, limits=limits)
