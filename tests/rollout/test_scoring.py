"""Scoring given text: fixed shapes, order kept, masks obeyed."""

import jax
import numpy as np
import pytest

from ceiling.data.packing import Example
from ceiling.model import ModelConfig, forward, log_softmax_at, make_mesh, place
from ceiling.model.families import PRESETS
from ceiling.rollout.scoring import BATCH_BYTES, _score, batch_rows, executed_tokens, margins, row_bytes, score

LENGTHS = [3, 9, 1, 6, 2, 9, 4]


@pytest.fixture(scope="module")
def case(make_model):
    config, params = make_model(odd=True)
    rng = np.random.default_rng(0)
    tokens = [rng.integers(1, 13, n).astype(np.int32) for n in LENGTHS]
    examples = [Example(t, (rng.random(len(t)) < 0.6).astype(np.float32)) for t in tokens]
    padded_BT = np.zeros((len(LENGTHS), 9), np.int32)
    for b, e in enumerate(examples):
        padded_BT[b, : len(e.tokens)] = e.tokens
    logits_BTV = jax.jit(forward, static_argnums=1)(params, config, padded_BT)
    logp_BTV = np.asarray(log_softmax_at(logits_BTV, 0.7), np.float64)
    expected = []
    for b, e in enumerate(examples):
        at = [t for t in range(1, len(e.tokens)) if e.mask[t]]  # nothing predicts token 0
        expected.append((
            np.array([logp_BTV[b, t - 1, e.tokens[t]] for t in at]),
            np.array([-(np.exp(logp_BTV[b, t - 1]) * logp_BTV[b, t - 1]).sum() for t in at]),
        ))  # fmt: skip
    return params, config, examples, expected


@pytest.mark.parametrize("batch_sequences", [2, 7, 16])
def test_scores_equal_forward_in_order_and_only_where_masked(case, batch_sequences):
    params, config, examples, expected = case
    logprobs, entropies = score(
        params, config, examples, max_tokens=9, temperature=0.7, batch_sequences=batch_sequences, entropy=True
    )
    assert len(logprobs) == len(entropies) == len(examples)
    assert sum(map(len, logprobs)) > 5
    for got, entropy, (want, want_entropy) in zip(logprobs, entropies, expected, strict=True):
        assert got.shape == entropy.shape == want.shape
        np.testing.assert_allclose(got, want, atol=2e-5)
        np.testing.assert_allclose(entropy, want_entropy, atol=2e-5)


def test_batches_of_any_fill_share_a_program_for_each_power_of_two(case):
    params, config, examples, _ = case
    before = _score._cache_size()
    for count in (4, 3, 5, 7, 4):
        score(params, config, examples[:count], max_tokens=9, batch_sequences=4, temperature=1 + count / 10)
    assert _score._cache_size() == before + 1
    for count in (1, 2, 3, 7):
        score(params, config, examples[:count], max_tokens=9, batch_sequences=4)
    assert _score._cache_size() == before + 3


def test_executed_tokens_count_whole_batches(case):
    params, config, *_ = case
    counts = (0, 1, 3, 256, 257)
    assert [executed_tokens(params, config, n, 10) for n in counts] == [0, 10, 40, 2560, 5120]


def test_rows_are_divided_over_the_mesh_and_few_where_they_are_long():
    config = ModelConfig(**PRESETS["qwen3-1.7b"], compute_dtype="bfloat16")
    one, eight = dict(data=1, fsdp=1, tensor=1), dict(data=2, fsdp=4, tensor=1)
    assert batch_rows(config, None, 1000, 64) == batch_rows(config, one, 1000, 64) == 256
    assert batch_rows(config, eight, 5000, 64) == 2048 and batch_rows(config, eight, 9, 64) == 16
    long = batch_rows(config, one, 1000, 2048)
    assert long * row_bytes(config, 2048, 1) <= BATCH_BYTES < 2 * long * row_bytes(config, 2048, 1)
    assert batch_rows(config, dict(data=1, fsdp=1, tensor=8), 1000, 2048) == 8 * long
    assert batch_rows(config, one, 1000, 100_000) == 1, "a row has to be scored, whatever it takes"


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_eight_devices_score_as_one(case, make_model, sizes):
    """In float32, to 1e-5 nats: sums run in another order."""
    config, params = make_model(odd=True, vocab_size=16, heads=4)
    examples = case[2]
    expected, _ = score(params, config, examples, max_tokens=9, entropy=True)
    mesh = make_mesh(*sizes)
    got, _ = score(place(params, config, mesh), config, examples, max_tokens=9, entropy=True)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    if sizes == (2, 2, 2):  # the vocabulary is divided, and two tokens are looked for in the whole of it
        one, eight = (margins(p, config, examples, max_tokens=9) for p in (params, place(params, config, mesh)))
        np.testing.assert_allclose(np.concatenate(eight), np.concatenate(one), atol=1e-5)
        assert list(map(len, eight)) == list(map(len, expected)) and 0 < np.concatenate(one).max() < 1


def test_entropies_are_zeros_unless_asked_for(case):
    params, config, examples, _ = case
    _, entropies = score(params, config, examples[:3], max_tokens=9)
    assert not np.concatenate(entropies).any()


def test_nothing_to_score_is_empty_and_too_long_is_refused(case):
    params, config, examples, _ = case
    assert score(params, config, [], max_tokens=9) == ([], [])
    with pytest.raises(ValueError, match="longest example 9, max_tokens=8"):
        score(params, config, examples, max_tokens=8, batch_sequences=8)
