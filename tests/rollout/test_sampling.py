"""One token: its distribution, its support, its recorded log-prob, its noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceiling.model import Policy, forward
from ceiling.rollout import generate, sampling

V = 7
draw = jax.jit(sampling.draw, static_argnames=("top_p", "greedy"))


@jax.jit
def uniforms(seed_key, problem_B, sample_B, position_B):
    return sampling.uniforms(sampling.keys(seed_key, problem_B, sample_B), position_B)


def exact(logits_V, temperature=1.0, top_p=1.0):
    """The distribution in NumPy float64: the smallest set of likeliest tokens that reaches top_p."""
    z = np.asarray(logits_V, np.float64) / temperature
    p = np.exp(z - z.max())
    p /= p.sum()
    kept, mass = np.zeros(len(p), bool), 0.0
    for token in np.argsort(-p):
        if mass >= top_p:
            break
        kept[token] = True
        mass += p[token]
    return np.where(kept, p, 0) / p[kept].sum()


def check_counts(counts, p):
    """Chi-square within 5 standard deviations of its mean, no token outside the support."""
    total, live = counts.sum(), p > 0
    assert np.all(counts[~live] == 0), "a token outside the nucleus was drawn"
    assert np.all(total * p[live] > 5), "the test needs expected counts"
    chi = np.sum((counts[live] - total * p[live]) ** 2 / (total * p[live]))
    freedom = live.sum() - 1
    assert chi < freedom + 5 * np.sqrt(2 * freedom), chi
    assert 0.5 * np.abs(counts / total - p).sum() < 2 * np.sqrt(len(p) / total)


RULES = [(1.0, 1.0), (0.5, 1.0), (1.0, 0.8), (0.5, 0.8), (2.0, 0.3)]


@pytest.mark.parametrize(("temperature", "top_p"), RULES[:3])
def test_first_tokens_of_generate_follow_the_exact_softmax(make_model, temperature, top_p):
    config, params = make_model(vocab_size=V)
    params = {**params, "final_norm": params["final_norm"] * 0.5}  # flatter, so that every count is large
    n = 4096
    out = generate(Policy(params, config, (3,)), [[5, 2, 6]], n=n, max_new_tokens=1, temperature=temperature,
                   top_p=top_p, seed=0, slots=n)  # fmt: skip
    p = exact(forward(params, config, jnp.array([[5, 2, 6]]))[0, -1], temperature, top_p)
    live = p * n > 5
    counts = np.bincount(out.tokens[0, :, 0], minlength=V)
    assert np.all(counts[p == 0] == 0)
    rest = np.append(counts[live], counts[~live].sum())  # rare tokens pooled
    rest_p = np.append(p[live], p[~live].sum())
    assert live.sum() > 1 and rest[-1] <= rest_p[-1] * n + 20
    chi = np.sum((rest - n * rest_p)[:-1] ** 2 / (n * rest_p[:-1]))
    assert chi < live.sum() + 5 * np.sqrt(2 * live.sum())
    np.testing.assert_allclose(out.logprobs[0, :, 0], np.log(p[out.tokens[0, :, 0]]), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    logits=st.lists(st.floats(-1.5, 1.5, width=32), min_size=V, max_size=V),
    rule=st.sampled_from(RULES), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_draw_is_exact_for_any_logits(logits, rule, seed):
    temperature, top_p = rule
    rows = 20_000
    p = exact(np.float32(logits), temperature, top_p)
    if np.abs(np.cumsum(np.sort(exact(np.float32(logits), temperature))[::-1]) - top_p).min() < 1e-5 and top_p < 1:
        return  # the edge of the nucleus is a matter of rounding
    if np.diff(np.sort(logits)).min() < 1e-6 and top_p < 1:
        return  # ties at the edge, in float32, may be broken either way
    uniform_B = jnp.asarray((np.random.default_rng(seed).permutation(rows) + 0.5) / rows, jnp.float32)
    logits_BV = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (rows, V))
    token_B, logp_B = draw(logits_BV, uniform_B, temperature=temperature, top_p=top_p, greedy=False)
    counts = np.bincount(token_B, minlength=V)
    np.testing.assert_allclose(counts, rows * p, atol=2)  # a stratified grid of uniforms: nearly exact
    assert np.all(counts[p == 0] == 0)
    np.testing.assert_allclose(logp_B, np.log(p[token_B]), atol=2e-5)


def test_keyed_uniforms_draw_the_distribution():
    logits_V = jnp.linspace(-1, 1, V)
    rows = 20_000
    zeros_B = jnp.zeros(rows, jnp.int32)
    u_B = uniforms(jax.random.key(4), jnp.arange(rows, dtype=jnp.uint32), zeros_B.astype(jnp.uint32), zeros_B)
    for temperature, top_p in RULES:
        logits_BV = jnp.broadcast_to(logits_V, (rows, V))
        token_B, _ = draw(logits_BV, u_B, temperature=temperature, top_p=top_p, greedy=False)
        check_counts(np.bincount(token_B, minlength=V), exact(logits_V, temperature, top_p))


@pytest.mark.parametrize("u", [0.0, 1.0 - 2.0**-24])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_the_ends_of_the_uniform_never_leave_the_support(u, top_p):
    logits_BV = jnp.array([[-jnp.inf, 1.0, 2.0, 0.0, -jnp.inf], [0.0, -200.0, -200.0, -200.0, -200.0],
                           [-200.0, -200.0, 0.0, -200.0, -200.0]])  # fmt: skip
    token_B, logp_B = draw(logits_BV, jnp.full(3, u, jnp.float32), temperature=1.0, top_p=top_p, greedy=False)
    assert int(token_B[0]) in ((1, 2, 3) if top_p == 1.0 else (2,))
    assert token_B[1:].tolist() == [0, 2]
    assert np.isfinite(logp_B).all()


def test_greedy_is_the_argmax_with_its_log_prob_at_temperature_one():
    logits_BV = jnp.asarray(np.random.default_rng(0).normal(size=(50, V)), jnp.float32)
    token_B, logp_B = draw(logits_BV, jnp.full(50, 0.99), temperature=0.0, top_p=1.0, greedy=True)
    np.testing.assert_array_equal(token_B, np.argmax(logits_BV, axis=-1))
    np.testing.assert_allclose(logp_B, jax.nn.log_softmax(logits_BV).max(axis=-1), atol=1e-6)


def test_noise_is_distinct_for_every_seed_problem_sample_and_position():
    problem, sample, position = (g.ravel() for g in np.meshgrid(*[np.arange(9)] * 3, indexing="ij"))
    at = functools.partial(
        uniforms, problem_B=jnp.asarray(problem, jnp.uint32), sample_B=jnp.asarray(sample, jnp.uint32),
        position_B=jnp.asarray(position, jnp.int32),
    )  # fmt: skip
    one, two = np.asarray(at(jax.random.key(0))), np.asarray(at(jax.random.key(1)))
    assert np.all((one >= 0) & (one < 1))
    both = np.concatenate([one, two])
    assert len(np.unique(both)) >= len(both) - 2, "beyond a chance collision of 23-bit fractions"
    assert len(np.unique(both.reshape(-1, 9), axis=0)) == 2 * 9**2, "every (seed, problem, sample) is its own stream"
    assert abs(one.mean() - 0.5) < 5 / np.sqrt(12 * one.size)
    np.testing.assert_array_equal(one, at(jax.random.key(0)))
    shuffled = np.random.default_rng(0).permutation(9**3)
    again = uniforms(jax.random.key(0), jnp.asarray(problem[shuffled], jnp.uint32),
                     jnp.asarray(sample[shuffled], jnp.uint32), jnp.asarray(position[shuffled], jnp.int32))  # fmt: skip
    np.testing.assert_array_equal(again, one[shuffled])
