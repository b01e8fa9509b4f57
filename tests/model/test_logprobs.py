"""The chunked output head: equal to log-softmax of the full logits, without the full logits."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceiling.data.packing import Example, Layout, micro_batches, pack
from ceiling.model import forward, log_softmax_at, token_logprobs
from ceiling.model.logprobs import map_chunks
from ceiling.model.sequences import Forward

M = 14


def weighted(logp_M, entropy_M):
    weight_M = jnp.linspace(-1, 1, M)
    return jnp.sum(weight_M * logp_M) + jnp.sum(weight_M**2 * entropy_M), (logp_M, entropy_M)


def activations(config):
    rng = np.random.default_rng(0)
    return rng.normal(size=(M, config.width)).astype(np.float32), rng.integers(0, 13, M).astype(np.int32)


@pytest.fixture(scope="module")
def unchunked(make_model):
    """Values and gradients through log-softmax of the full logits, by temperature."""
    config, params = make_model(odd=True)
    x_MD, targets_M = activations(config)

    def plain(params, x_MD, temperature):
        logp_MV = jax.nn.log_softmax(x_MD @ params["head"] / temperature, axis=-1)
        logp_M = jnp.take_along_axis(logp_MV, targets_M[:, None], axis=-1)[:, 0]
        return weighted(logp_M, -jnp.sum(jnp.exp(logp_MV) * logp_MV, axis=-1))

    run = jax.jit(jax.value_and_grad(plain, argnums=(0, 1), has_aux=True))
    return {t: run(params, x_MD, t) for t in (1.0, 0.7)}


@pytest.mark.parametrize("chunk", [1, 5, 13, 14, 15])
def test_X1_chunks_equal_log_softmax_of_the_logits_with_gradient_and_entropy(make_model, unchunked, chunk):
    config, params = make_model(odd=True)
    x_MD, targets_M = activations(config)
    chunked = dataclasses.replace(config, head_chunk_tokens=chunk)

    def head(params, x_MD, temperature):
        return weighted(*token_logprobs(params, chunked, x_MD, targets_M, temperature=temperature, entropy=True))

    run = jax.jit(jax.value_and_grad(head, argnums=(0, 1), has_aux=True))
    for temperature, ((_, expected), expected_gradient) in unchunked.items():
        (_, got), gradient = run(params, x_MD, temperature)
        for a, b in zip(got, expected, strict=True):
            assert a.shape == (M,) and a.dtype == jnp.float32
            np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), gradient, expected_gradient)


def test_temperature_flattens_in_one_direction():
    logits = jnp.array([[0.0, 1.0, 3.0]])
    np.testing.assert_allclose(log_softmax_at(logits, 2.0), jax.nn.log_softmax(logits / 2), rtol=1e-6)
    assert log_softmax_at(logits.astype(jnp.bfloat16), 1.0).dtype == jnp.float32


def test_EN1_entropy_is_log_V_when_uniform_and_zero_when_one_hot(make_model):
    config, params = make_model(tied=False)
    one_hot = dict(params, head=jnp.zeros_like(params["head"]).at[:, 4].set(1e3))
    ask = lambda params, x: token_logprobs(params, config, x, jnp.full(3, 4), entropy=True)  # noqa: E731
    logp, entropy = ask(params, jnp.zeros((3, config.width)))
    np.testing.assert_allclose(entropy, math.log(config.vocab_size), rtol=1e-6)
    np.testing.assert_allclose(logp, -math.log(config.vocab_size), rtol=1e-6)
    logp, entropy = ask(one_hot, jnp.ones((3, config.width)))
    np.testing.assert_array_equal(entropy, 0.0)
    np.testing.assert_array_equal(logp, 0.0)


def test_entropy_is_zeros_unless_asked_for(make_model):
    config, params = make_model()
    _, entropy = token_logprobs(params, config, jnp.ones((3, config.width)), jnp.zeros(3, jnp.int32))
    np.testing.assert_array_equal(entropy, 0.0)


@settings(max_examples=10, deadline=None)
@given(rows=st.sampled_from([1, 4, 7]), chunk=st.integers(1, 8))
def test_map_chunks_equals_the_function_on_everything(rows, chunk):
    x, y = np.arange(rows * 2.0).reshape(rows, 2).astype(np.float32), np.arange(rows)
    fn = lambda x, y: {"sum": x.sum(axis=1) + y, "both": x * 2}  # noqa: E731
    out, expected = map_chunks(fn, chunk, jnp.asarray(x), jnp.asarray(y)), fn(x, y)
    jax.tree.map(np.testing.assert_array_equal, out, expected)


def arrays_of(jaxpr):
    """Every array that a program and its inner programs produce, as (elements, shape)."""
    for equation in jaxpr.eqns:
        yield from ((math.prod(v.aval.shape), v.aval.shape) for v in equation.outvars)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if hasattr(inner, "jaxpr"):
                inner = inner.jaxpr
            if hasattr(inner, "eqns"):
                yield from arrays_of(inner)


def big_head(make_model, chunk):
    return make_model(vocab_size=2048, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, ffn=8,
                      head_chunk_tokens=chunk)  # fmt: skip


def head_gradient(config):
    def loss(params, x_MD, targets_M):
        logp_M, entropy_M = token_logprobs(params, config, x_MD, targets_M, entropy=True)
        return jnp.sum(logp_M + entropy_M)

    return jax.value_and_grad(loss, argnums=(0, 1))


def test_chunked_head_memory_is_far_below_the_full_logits(make_model):
    rows = 2048
    x_MD, targets_M = jnp.ones((rows, 8)), jnp.zeros(rows, jnp.int32)
    used = {}
    for chunk in (32, rows):
        config, params = big_head(make_model, chunk)
        compiled = jax.jit(head_gradient(config)).lower(params, x_MD, targets_M).compile()
        used[chunk] = compiled.memory_analysis().temp_size_in_bytes
    full = 4 * rows * 2048
    assert used[rows] >= full, "the unchunked head is the yardstick"
    assert used[32] < full / 8


def test_no_array_of_batch_by_vocabulary_in_the_loss_of_packed_rows(make_model):
    """No [B, T, V] array anywhere, forward or backward."""
    config, params = big_head(make_model, 8)
    examples = [Example(np.arange(1, 17), np.ones(16)) for _ in range(8)]
    packed = pack(examples, sequences=8, max_tokens=16, row_tokens=32)
    loss = lambda params: jnp.sum(Forward(config).logprobs(params, packed, entropy=True)[0])  # noqa: E731
    sizes = list(arrays_of(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
    assert any(shape[-1:] == (2048,) and n == 8 * 2048 for n, shape in sizes), "the walk must see the chunks' logits"
    largest = max(sizes)
    assert largest[0] < 8 * 16 * 2048, largest


full_logits = jax.jit(forward, static_argnums=1)


@functools.partial(jax.jit, static_argnums=1)
def sequence_logprobs(params, config, view):
    return Forward(config).logprobs(params, view, temperature=0.7, entropy=True)


@pytest.mark.exact
@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), row_tokens=st.sampled_from([9, 20]),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_X3_log_probs_per_sequence_do_not_depend_on_the_packing(make_model, lengths, row_tokens, seed):
    config, params = make_model(odd=True, head_chunk_tokens=8)
    rng = np.random.default_rng(seed)
    examples = [Example(rng.integers(1, 13, n), np.ones(n)) for n in lengths]
    view = pack(examples, sequences=5, max_tokens=9, row_tokens=row_tokens, rows=5)
    logp_BT, entropy_BT = sequence_logprobs(params, config, view)
    assert np.isfinite(logp_BT).all() and np.isfinite(entropy_BT).all()
    for b, example in enumerate(examples):
        padded = np.zeros((1, 9), np.int32)
        padded[0, : len(example.tokens)] = example.tokens
        expected_TV = log_softmax_at(full_logits(params, config, padded), 0.7)[0]
        for t in range(1, len(example.tokens)):
            assert view.mask_BT[b, t] == 1
            assert logp_BT[b, t] == pytest.approx(float(expected_TV[t - 1, example.tokens[t]]), abs=2e-5)
            p = np.exp(np.asarray(expected_TV[t - 1], np.float64))
            assert entropy_BT[b, t] == pytest.approx(-(p * np.log(p)).sum(), abs=2e-5)


@pytest.mark.parametrize("responses", [1, 2, 3])
@pytest.mark.parametrize("fields", [dict(), dict(odd=True, scan_layers=False, window=4, global_every=2)], ids=str)
def test_X3_samples_that_share_their_prompt_have_the_log_probs_and_gradients_of_each_alone(
    make_model, fields, responses
):
    """Positions go on from the prompt's end, wherever in the row a sample lies; windows count positions too. In rows of
    several cells a prompt is in the head, or before its samples in a cell where another prompt has the head."""
    config, params = make_model(**fields)
    rng, examples = np.random.default_rng(0), []
    for prompt, own in ((7, (3, 5, 2, 4)), (4, (6, 1))):
        head = rng.integers(1, 13, prompt)
        for n in own:
            mask = np.arange(prompt + n) >= prompt
            examples.append(Example(np.concatenate([head, rng.integers(1, 13, n)]), mask.astype(np.float32)))
    forward = Forward(config)

    def total(params, batch):
        logp_BT = forward.logprobs(params, batch)[0] * batch.mask_BT
        return jnp.sum(logp_BT * jnp.cos(batch.targets_BT)), logp_BT  # a weight for each target

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    shared, live = micro_batches(examples, Layout(6, 1, 16, responses, 9))
    together = jax.tree.map(lambda leaf: leaf[0], shared)
    alone = pack(examples, sequences=len(together.mask_BT), max_tokens=16, row_tokens=16)
    assert live == 1 and np.sum(together.segments_RW > 0) <= sum(len(e.tokens) for e in examples) - 15
    assert np.any(together.prefixes_RW != together.segments_RW)
    (value, got), gradient = run(params, together)
    (expected, want), reference = run(params, alone)
    np.testing.assert_allclose(got, want, atol=2e-6)
    assert float(value) == pytest.approx(float(expected), abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradient, reference)
