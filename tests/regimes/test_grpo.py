"""The GRPO family against written-out formulas: invariants GR-1 to GR-13, X-4, X-5."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ceiling
from ceiling.config import ConfigError
from ceiling.data.packing import pack
from ceiling.regimes import grpo
from ceiling.regimes.base import Sample, response_example
from ceiling.tasks.base import Outcome, Verdict

checked = settings(max_examples=20, deadline=None)
B, T, L = 4, 6, 5
CENTRED = ("group_std", "group_mean", "leave_one_out", "best_of_group", "pass_at_k")
# Eighths: sums are exact in float32, so equalities below are about the formulas.
eighths = st.integers(-16, 16).map(lambda i: i / 8)


def groups(N=3, G=4):
    return st.lists(eighths, min_size=N * G, max_size=N * G).map(lambda r: np.reshape(r, (N, G)))


def inputs(seed, spread=0.5):
    rng = np.random.default_rng(seed)
    logp = -rng.exponential(1.5, (B, T)).astype(np.float32)
    old = (logp + rng.normal(0, spread, (B, T))).astype(np.float32)
    ref = (logp + rng.normal(0, spread, (B, T))).astype(np.float32)
    lengths = rng.integers(1, T + 1, B)
    start = np.array([rng.integers(0, T - n + 1) for n in lengths])
    index = np.arange(T)
    mask = ((index >= start[:, None]) & (index < (start + lengths)[:, None])).astype(np.float32)
    return logp, old, ref, rng.normal(0, 1, B).astype(np.float32), mask


NAMES = ("ratio", "aggregation", "clip_low", "clip_high", "kl", "beta", "max_tokens")


def loss_fn(ratio="token", aggregation="token_mean", clip_low=0.2, clip_high=0.2, kl=None, beta=0.0, max_tokens=L):
    keywords = dict(zip(NAMES, (ratio, aggregation, clip_low, clip_high, kl, beta, max_tokens), strict=True))

    def value(logp, old, ref, advantage, mask):
        total, denom, _ = grpo.policy_loss(logp, old, ref, advantage, mask, **keywords)
        return total / denom

    return value, keywords


# --- advantages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", grpo.ADVANTAGES)
@checked
@given(rewards=groups())
def test_every_advantage_equals_brute_force(formulas, kind, rewards):
    got = grpo.advantages(rewards, kind=kind)
    assert got.shape == (3, 4) and got.dtype == jnp.float32
    # 1 / (std + 1e-4) magnifies rounding of a group with a std near 0 (there is none below 1/16 in eighths).
    np.testing.assert_allclose(got, formulas.advantages(rewards, kind), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("G", [2, 3, 7])
@pytest.mark.parametrize("kind", grpo.ADVANTAGES)
def test_every_advantage_equals_brute_force_for_group_size(formulas, kind, G):
    rewards = np.random.default_rng(G).normal(size=(5, G)).astype(np.float32)
    np.testing.assert_allclose(
        grpo.advantages(rewards, kind=kind), formulas.advantages(rewards, kind), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", grpo.ADVANTAGES)
def test_advantages_of_a_jax_array_are_those_of_the_host(kind):
    rewards = np.random.default_rng(1).integers(0, 3, (5, 4)).astype(np.float32)
    host, device = (grpo.advantages(R, kind=kind) for R in (rewards, jnp.asarray(rewards)))
    assert isinstance(host, np.ndarray) and isinstance(device, jax.Array) and host.dtype == device.dtype == np.float32
    np.testing.assert_allclose(host, device, atol=1e-6)


# --- pass@k as the objective ------------------------------------------------------------------------------


@pytest.mark.parametrize("G, k", [(3, 2), (5, 2), (5, 4), (7, 3)])
def test_pass_at_k_advantages_equal_the_enumeration_of_all_subsets(formulas, G, k):
    """Real and binary rewards; ties; centred; a group of equal rewards is exactly zero."""
    rng = np.random.default_rng(G + k)
    rewards = np.concatenate([rng.normal(size=(4, G)), rng.integers(0, 2, (4, G)), np.full((1, G), 0.1)])
    got = np.asarray(grpo.advantages(rewards, kind="pass_at_k", pass_k=k))
    np.testing.assert_allclose(got, formulas.advantages(rewards, "pass_at_k", k), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.sum(axis=1), 0, atol=1e-5)
    assert np.all(got[-1] == 0)
    right = rewards[4:8] == 1  # counting failures (arXiv:2508.10751), times G / (G - k) and k: see the module
    wrong = G - right.sum(axis=1, keepdims=True)
    none_right = np.vectorize(lambda c: math.comb(c, k) / math.comb(G, k))(wrong)
    others_wrong = np.vectorize(lambda c: math.comb(max(c - 1, 0), k - 1) / math.comb(G - 1, k - 1))(wrong)
    counted = np.where(right, none_right, none_right - others_wrong)
    np.testing.assert_allclose(got[4:8], counted * k * G / (G - k), rtol=1e-4, atol=1e-5)


def test_pass_at_k_advantages_give_the_gradient_of_pass_at_k_without_bias():
    """Every outcome of G = 3 draws from three actions, weighed by its probability: the mean of A grad log p over the
    group is d/dlogits of E[best of k], for each k, and k = 1 is leave-one-out."""
    probability, reward, G = np.array([0.5, 0.3, 0.2]), np.array([0.0, 0.4, 1.0]), 3
    score = np.eye(3) - probability  # d log p(a) / d logits
    outcomes = list(itertools.product(range(3), repeat=G))
    chances = np.array([np.prod(probability[list(o)]) for o in outcomes])
    for k in (1, 2):
        advantage = np.asarray(grpo.advantages(reward[np.array(outcomes)], kind="pass_at_k", pass_k=k), np.float64)
        got = sum(c * np.mean([a * score[x] for a, x in zip(row, o, strict=True)], axis=0)
                  for c, row, o in zip(chances, advantage, outcomes, strict=True))  # fmt: skip
        want = sum(np.prod(probability[list(d)]) * max(reward[list(d)]) * sum(score[x] for x in d)
                   for d in itertools.product(range(3), repeat=k))  # fmt: skip
        np.testing.assert_allclose(got, want, atol=1e-6)
    loo = grpo.advantages(reward[np.array(outcomes)], kind="leave_one_out")
    np.testing.assert_allclose(grpo.advantages(reward[np.array(outcomes)], kind="pass_at_k", pass_k=1), loo, atol=1e-6)


@pytest.mark.parametrize("k", [0, 4, 5])
def test_pass_at_k_needs_subsets_without_a_sample(k):
    with pytest.raises(ValueError, match=f"pass_k={k} must be at least 1 and below the 4"):
        grpo.advantages(np.ones((2, 4)), kind="pass_at_k", pass_k=k)


@checked
@given(reward=st.floats(-1e3, 1e3, width=32), G=st.sampled_from([2, 4]))
def test_GR1_identical_rewards_give_exactly_zero_advantage(reward, G):
    for kind in grpo.ADVANTAGES:
        assert np.all(np.asarray(grpo.advantages(np.full((2, G), reward, np.float32), kind=kind)) == 0), kind


@checked
@given(rewards=groups(), level=st.floats(-100, 100, width=32))
def test_GR1_a_group_of_equal_rewards_is_zero_beside_other_groups(rewards, level):
    """batch_whitened breaks this by its nature, as documented."""
    rewards = rewards.astype(np.float32)
    rewards[1] = level
    for kind in CENTRED:
        assert np.all(np.asarray(grpo.advantages(rewards, kind=kind))[1] == 0), kind


@pytest.mark.parametrize("aggregation", grpo.AGGREGATIONS)
@pytest.mark.parametrize("ratio", grpo.RATIOS)
def test_GR1_identical_rewards_give_zero_gradient(ratio, aggregation):
    logp, old, ref, _, mask = inputs(0)
    for kind in CENTRED:
        advantage = grpo.advantages(np.full((1, B), 0.1, np.float32), kind=kind)[0]
        gradient = jax.grad(loss_fn(ratio, aggregation)[0])(logp, old, ref, advantage, mask)
        assert np.all(np.asarray(gradient) == 0), kind


@checked
@given(rewards=groups(), shift=eighths, scale=st.sampled_from([0.5, 2.0, 8.0]))
def test_GR2_shift_and_scale_of_rewards(rewards, shift, scale):
    for kind in grpo.ADVANTAGES:
        plain = np.asarray(grpo.advantages(rewards, kind=kind))
        np.testing.assert_allclose(grpo.advantages(rewards + shift, kind=kind), plain, atol=2e-5, err_msg=kind)
        scaled = np.asarray(grpo.advantages(scale * rewards, kind=kind))
        if kind in ("group_std", "batch_whitened"):
            np.testing.assert_allclose(scaled, plain, rtol=5e-3, atol=1e-5, err_msg=kind)  # up to the 1e-4
        else:
            np.testing.assert_allclose(scaled, scale * plain, rtol=1e-5, atol=1e-6, err_msg=kind)


def test_GR2_shifting_one_group_only_matters_to_batch_whitening():
    rewards = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    moved = rewards + np.array([[0.0], [5.0], [0.0]], np.float32)
    for kind in grpo.ADVANTAGES:
        same = np.allclose(grpo.advantages(moved, kind=kind), grpo.advantages(rewards, kind=kind), atol=1e-4)
        assert same == (kind != "batch_whitened"), kind


@checked
@given(rewards=groups())
def test_GR4_leave_one_out_is_group_mean_times_G_over_G_minus_1(rewards):
    loo, mean = (np.asarray(grpo.advantages(rewards, kind=k)) for k in ("leave_one_out", "group_mean"))
    np.testing.assert_allclose(loo, mean * 4 / 3, rtol=1e-6, atol=1e-7)


@checked
@given(right=st.lists(st.booleans(), min_size=8, max_size=8))
def test_std_normalised_advantages_do_not_care_for_plus_minus_one_rewards(right):
    """Methods 2.2: 0/1 and -1/+1 rewards agree when std-normalised and differ by 2 otherwise."""
    binary = np.reshape(right, (2, 4)).astype(np.float32)
    std = [np.asarray(grpo.advantages(r, kind="group_std")) for r in (binary, 2 * binary - 1)]
    np.testing.assert_allclose(*std, rtol=1e-3)
    mean = [np.asarray(grpo.advantages(r, kind="group_mean")) for r in (binary, 2 * binary - 1)]
    np.testing.assert_allclose(2 * mean[0], mean[1], rtol=1e-6)


@pytest.mark.parametrize("kind", grpo.ADVANTAGES)
def test_GR13_one_sample_per_group_raises(kind):
    with pytest.raises(ValueError, match="at least 2"):
        grpo.advantages(np.ones((3, 1)), kind=kind)


def test_GR13_the_configuration_refuses_one_sample_per_group():
    config = ceiling.defaults("lab", arms={"a": ceiling.arm("grpo", samples_per_prompt=1)})
    with pytest.raises(ConfigError, match="samples_per_prompt=1"):
        ceiling.validate(config)


def test_unknown_choices_are_refused_by_name():
    x = inputs(0)
    with pytest.raises(ValueError, match="kind='median'"):
        grpo.advantages(np.ones((2, 2)), kind="median")
    for bad in (
        {"ratio": "word"},
        {"aggregation": "mean"},
        {"kl": "k4"},
        {"aggregation": "constant", "max_tokens": None},
    ):
        with pytest.raises(ValueError, match="grpo.policy_loss"):
            loss_fn(**bad)[0](*x)


# --- the loss ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", grpo.AGGREGATIONS)
@pytest.mark.parametrize("ratio", grpo.RATIOS)
@checked
@given(
    seed=st.integers(0, 10**6),
    clip=st.sampled_from([(0.2, 0.28), (None, None), (0.2, None), (None, 0.3), (3e-4, 4e-4)]),
    kl=st.sampled_from([None, "k1", "k2", "k3"]), beta=st.sampled_from([0.0, 0.04, 1.0]),
)  # fmt: skip
def test_loss_and_denominator_equal_brute_force(formulas, ratio, aggregation, seed, clip, kl, beta):
    x = inputs(seed)
    _, keywords = loss_fn(ratio, aggregation, *clip, kl, beta)
    total, denom, _ = grpo.policy_loss(*x, **keywords)
    want_total, want_denom = formulas.loss(*x, **keywords)
    assert float(denom) == want_denom
    np.testing.assert_allclose(total, want_total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("aggregation", grpo.AGGREGATIONS)
@pytest.mark.parametrize("ratio", grpo.RATIOS)
@pytest.mark.parametrize("clip", [(0.2, 0.28), (None, None)])
def test_gradient_equals_finite_differences(formulas, ratio, aggregation, clip):
    value, keywords = loss_fn(ratio, aggregation, *clip, "k3", 0.3)
    x = inputs(7)
    gradient = np.asarray(jax.grad(value)(*x))
    for i, t in [(i, t) for i in range(B) for t in range(T)]:
        up, down = x[0].astype(float), x[0].astype(float)
        up[i, t], down[i, t] = up[i, t] + 1e-5, down[i, t] - 1e-5
        (a, n), (b, _) = formulas.loss(up, *x[1:], **keywords), formulas.loss(down, *x[1:], **keywords)
        assert gradient[i, t] == pytest.approx((a - b) / 2e-5 / n, abs=2e-5)


@pytest.mark.parametrize("aggregation", grpo.AGGREGATIONS)
@pytest.mark.parametrize("ratio", grpo.RATIOS)
def test_GR3_at_ratio_one_the_gradient_is_REINFORCE(ratio, aggregation):
    logp, _, ref, advantage, mask = inputs(3)
    gradient = jax.grad(loss_fn(ratio, aggregation)[0])(logp, logp, ref, advantage, mask)

    def reinforce(logp):
        term = -advantage[:, None] * logp * mask
        n = mask.sum(axis=1)
        if aggregation == "sequence_mean_token_mean":
            return jnp.mean(term.sum(axis=1) / n)
        return term.sum() / (n.sum() if aggregation == "token_mean" else B * L)

    np.testing.assert_allclose(gradient, jax.grad(reinforce)(logp), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("sign, log_ratio, active", [
    (+1, +0.5, False), (-1, +0.5, True), (-1, -0.5, False), (+1, -0.5, True), (+1, 0.1, True), (-1, -0.1, True),
])  # fmt: skip
@pytest.mark.parametrize("ratio", grpo.RATIOS)
def test_GR5_only_the_pessimistic_side_is_clipped(ratio, sign, log_ratio, active):
    logp = np.full((1, 3), -1.0, np.float32)
    x = (logp, logp - log_ratio, logp, np.array([sign], np.float32), np.ones((1, 3), np.float32))
    gradient = np.asarray(jax.grad(loss_fn(ratio)[0])(*x))
    assert np.all((gradient != 0) == active)
    if active:
        np.testing.assert_allclose(gradient, -sign * np.exp(log_ratio) / 3, rtol=1e-5)
    free = np.asarray(jax.grad(loss_fn(ratio, clip_low=None, clip_high=None)[0])(*x))
    np.testing.assert_allclose(free, -sign * np.exp(log_ratio) / 3, rtol=1e-5, err_msg="clip None never drops")


def test_GR5_clip_shares_are_counted_by_side():
    logp = np.zeros((2, 4), np.float32)
    old = -np.array([[0.5, 0.5, 0.5, 0.0], [-0.5, 0.5, 0.0, 0.0]], np.float32)
    mask = np.array([[1, 1, 0, 1], [1, 1, 1, 1]], np.float32)
    _, keywords = loss_fn()
    *_, metrics = grpo.policy_loss(logp, old, None, np.array([1.0, -1.0], np.float32), mask, **keywords)
    assert [float(x) for x in metrics["clip_high_share"]] == [2, 7]
    assert [float(x) for x in metrics["clip_low_share"]] == [1, 7]


@pytest.mark.parametrize("aggregation, factor", [("sequence_mean_token_mean", 1), ("token_mean", 2), ("constant", 2)])
def test_GR6_weight_of_a_response_whose_tokens_are_duplicated(aggregation, factor):
    def weights(mask):
        x = np.full(mask.shape, -1.0, np.float32)
        gradient = jax.grad(loss_fn(aggregation=aggregation)[0])(x, x, x, np.ones(2, np.float32), mask)
        return np.asarray(gradient).sum(axis=1)

    short = weights(np.array([[1, 1, 0, 0], [1, 1, 1, 0]], np.float32))
    long = weights(np.array([[1, 1, 1, 1], [1, 1, 1, 0]], np.float32))
    assert (long[0] / long[1]) / (short[0] / short[1]) == pytest.approx(factor, rel=1e-6)


def test_GR9_sequence_ratio_is_the_geometric_mean_and_clips_as_one():
    logp = np.zeros((2, 4), np.float32)
    log_ratio = np.array([[1.0, -0.2, 0.4, 0.0], [0.3, 0.1, -0.2, 9.0]], np.float32)
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], np.float32)
    geometric = np.exp([0.3, 0.2 / 3])
    value, keywords = loss_fn("sequence", "sequence_mean_token_mean", None, None)
    advantage = np.array([1.0, 2.0], np.float32)
    total, denom, metrics = grpo.policy_loss(logp, logp - log_ratio, None, advantage, mask, **keywords)
    assert float(total) == pytest.approx(-(geometric[0] + 2 * geometric[1]), rel=1e-5) and float(denom) == 2
    ratio_sum, tokens = metrics["ratio_mean"]
    assert float(ratio_sum) == pytest.approx(4 * geometric[0] + 3 * geometric[1], rel=1e-5) and float(tokens) == 7
    # Row 0 is out of a .2 clip as a whole, though two of its tokens are not; row 1 is inside as a whole.
    gradient = np.asarray(jax.grad(loss_fn("sequence", "token_mean")[0])(logp, logp - log_ratio, logp, advantage, mask))
    assert np.all(gradient[0] == 0) and np.all(gradient[1, :3] != 0) and gradient[1, 3] == 0
    token = np.asarray(jax.grad(loss_fn("token", "token_mean")[0])(logp, logp - log_ratio, logp, advantage, mask))
    assert list(token[0] != 0) == [False, True, False, True]


def test_GSPO_gradient_is_the_sequence_formula():
    """grad = -(1/N) sum_i A_i s_i (1/n_i) sum_t grad log p, with s_i the sequence ratio (2507.18071)."""
    x = inputs(11, spread=0.1)
    logp, old, _, advantage, mask = x
    n = mask.sum(axis=1)
    s = np.exp(((logp - old) * mask).sum(axis=1) / n)
    gradient = jax.grad(loss_fn("sequence", "sequence_mean_token_mean", None, None)[0])(*x)
    np.testing.assert_allclose(gradient, -(advantage * s / n)[:, None] * mask / B, rtol=1e-4, atol=1e-7)


# --- KL ---------------------------------------------------------------------------------------------------


@checked
@given(seed=st.integers(0, 10**6))
def test_GR10_expected_gradients_of_the_KL_estimators(seed):
    """On-policy expectation, exactly, over a categorical with 5 outcomes: k1 in the loss regularises nothing,
    k2 gives grad KL(pi || ref), k3 gives grad KL(ref || pi)."""
    rng = np.random.default_rng(seed)
    theta, ref = rng.normal(size=5).astype(np.float32), jax.nn.log_softmax(rng.normal(size=5).astype(np.float32))

    def estimate(theta, kind):
        logp = jax.nn.log_softmax(theta)
        p = jax.lax.stop_gradient(jnp.exp(logp))
        total, _, _ = grpo.policy_loss(
            logp[:, None], logp[:, None], ref[:, None], jnp.zeros(5), jnp.ones((5, 1)),
            **{**loss_fn(kl=kind, beta=1.0)[1], "aggregation": "token_mean"},
        )  # fmt: skip
        weighted = jnp.sum(p * grpo.kl_estimate(logp, ref, kind))
        return weighted, total

    def KL(p, q):
        return jnp.sum(jnp.exp(p) * (p - q))

    reverse = jax.grad(lambda t: KL(jax.nn.log_softmax(t), ref))(theta)
    forward = jax.grad(lambda t: KL(ref, jax.nn.log_softmax(t)))(theta)
    gradient = {k: np.asarray(jax.grad(lambda t, k=k: estimate(t, k)[0])(theta)) for k in ("k1", "k2", "k3")}
    np.testing.assert_allclose(gradient["k1"], 0, atol=1e-6)
    np.testing.assert_allclose(gradient["k2"], reverse, atol=1e-5)
    np.testing.assert_allclose(gradient["k3"], forward, atol=1e-5)
    assert float(estimate(theta, "k1")[0]) == pytest.approx(float(KL(jax.nn.log_softmax(theta), ref)), abs=1e-5)
    assert float(estimate(theta, "k3")[0]) == pytest.approx(float(KL(jax.nn.log_softmax(theta), ref)), abs=1e-5)
    for kind in gradient:  # and the loss adds exactly this estimator
        delta = np.asarray(ref) - np.asarray(jax.nn.log_softmax(theta))
        want = {"k1": -delta, "k2": delta**2 / 2, "k3": np.exp(delta) - 1 - delta}[kind].sum()
        assert float(estimate(theta, kind)[1]) == pytest.approx(want, abs=1e-4)


@checked
@given(a=st.floats(-30, 0, width=32), b=st.floats(-30, 0, width=32))
def test_GR10_k2_and_k3_are_never_negative(a, b):
    a, b = jnp.float32(a), jnp.float32(b)
    assert float(grpo.kl_estimate(a, b, "k3")) >= 0 and float(grpo.kl_estimate(a, b, "k2")) >= 0
    assert float(grpo.kl_estimate(a, a, "k3")) == 0


def test_GR10_k1_in_the_reward_gives_the_reverse_KL_gradient():
    """Score-function form, exactly in expectation: E[-k1 grad log p] = -grad KL(pi || ref)."""
    theta, ref = jnp.array([0.3, -1.0, 0.8]), jax.nn.log_softmax(jnp.array([1.0, 0.2, -0.5]))
    logp = jax.nn.log_softmax(theta)
    k1 = logp - ref

    # rho is 1 with gradient grad log p, so the surrogate's gradient is -sum p (-k1) grad log p.
    def value(theta):
        rows = jax.nn.log_softmax(theta)[:, None]
        total, _, _ = grpo.policy_loss(rows, logp[:, None], None, -k1 * jnp.exp(logp), jnp.ones((3, 1)), **loss_fn()[1])
        return total

    want = jax.grad(lambda t: jnp.sum(jnp.exp(jax.nn.log_softmax(t)) * (jax.nn.log_softmax(t) - ref)))(theta)
    np.testing.assert_allclose(jax.grad(value)(theta), want, atol=1e-6)


# --- masks and constants ----------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", grpo.AGGREGATIONS)
@pytest.mark.parametrize("ratio", grpo.RATIOS)
@pytest.mark.parametrize("garbage", [0.0, -1e4, 1e4, -np.inf])
def test_X4_empty_rows_count_nowhere_and_give_no_NaN(ratio, aggregation, garbage):
    x = inputs(5)
    value, keywords = loss_fn(ratio, aggregation, 0.2, 0.28, "k3", 0.1)
    row = lambda fill: np.full((1, T), fill, np.float32)  # noqa: E731
    padded = [np.concatenate([a, row(g)]) for a, g in zip(x[:3], (garbage, 0.0, 1.0), strict=True)]
    padded += [np.append(x[3], np.float32(3.0)), np.concatenate([x[4], row(0.0)])]
    assert float(value(*padded)) == pytest.approx(float(value(*x)), rel=1e-6)
    gradient, plain = jax.grad(value)(*padded), jax.grad(value)(*x)
    assert np.all(np.isfinite(gradient)), "a masked token must not poison the gradient"
    np.testing.assert_allclose(gradient[:B], plain, rtol=1e-6, atol=1e-9)
    assert np.all(np.asarray(gradient[B]) == 0)
    *_, metrics = grpo.policy_loss(*padded, **keywords)
    assert all(np.isfinite(v) for pair in metrics.values() for v in pair)


def test_X4_a_batch_without_any_token_is_zero_over_zero():
    x = [*inputs(0)[:4], np.zeros((B, T), np.float32)]
    for aggregation in grpo.AGGREGATIONS:
        _, keywords = loss_fn("sequence", aggregation, kl="k2", beta=1.0)
        total, denom, _ = grpo.policy_loss(*x, **keywords)
        assert float(total) == 0 and float(denom) == 0
        gradient = jax.grad(lambda logp: grpo.policy_loss(logp, *x[1:], **keywords)[0])(x[0])  # noqa: B023
        assert np.all(np.asarray(gradient) == 0)


@pytest.mark.parametrize("ratio", grpo.RATIOS)
def test_X5_old_reference_and_advantage_are_constants(ratio):
    value, _ = loss_fn(ratio, kl="k3", beta=0.5)
    x = tuple(map(jnp.asarray, inputs(2)))
    for argument in (1, 2, 3):
        assert np.all(np.asarray(jax.grad(value, argnums=argument)(*x)) == 0), argument
    assert np.any(np.asarray(jax.grad(value)(*x)) != 0)


def test_X5_metrics_carry_no_gradient():
    x = inputs(2)
    _, keywords = loss_fn(kl="k3", beta=0.5)
    gradient = jax.grad(lambda logp: sum(a for a, _ in grpo.policy_loss(logp, *x[1:], **keywords)[2].values()))(x[0])
    assert np.all(np.asarray(gradient) == 0)


def test_GR11_prompt_tokens_get_no_gradient():
    rng = np.random.default_rng(0)
    verdict = Verdict(Outcome.RIGHT)
    samples = [
        Sample(np.arange(1, 4), np.array([5, 6, 7][:n]), -rng.random(n).astype(np.float32), True, verdict)
        for n in (1, 3)
    ]
    examples = [response_example(s, behaviour=s.logprobs, advantage=1.0) for s in samples]
    batch = pack(examples, sequences=3, max_tokens=8, row_tokens=16)
    logp = -rng.random((3, 8)).astype(np.float32)
    gradient = jax.grad(loss_fn()[0])(logp, logp, logp, batch.extra["advantage"], batch.mask_BT)
    assert np.array_equal(np.asarray(gradient) != 0, [[0, 0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0, 0], [0] * 8])
    np.testing.assert_array_equal(batch.extra["behaviour"][1, 3:6], samples[1].logprobs)


@pytest.mark.parametrize("aggregation", grpo.AGGREGATIONS)
@pytest.mark.parametrize("ratio", grpo.RATIOS)
@checked
@given(seed=st.integers(0, 10**6), order=st.permutations(range(B)), cut=st.integers(1, B - 1))
def test_GR12_sums_and_denominators_add_up_over_any_split(ratio, aggregation, seed, order, cut):
    x = inputs(seed)
    _, keywords = loss_fn(ratio, aggregation, kl="k2", beta=0.1)
    whole = grpo.policy_loss(*x, **keywords)
    pieces = [np.array(order[:cut]), np.array(order[cut:])]
    # Parts keep their shape by masking the other rows: no program is compiled per split.
    parts = [grpo.policy_loss(*x[:4], x[4] * np.isin(np.arange(B), p)[:, None], **keywords) for p in pieces]
    assert float(sum(p[0] for p in parts)) == pytest.approx(float(whole[0]), rel=1e-5, abs=1e-5)
    assert float(sum(p[1] for p in parts)) == float(whole[1])
