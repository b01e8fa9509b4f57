"""Distillation: invariants KD-1 to KD-8 and the limits of the unscaled Jensen-Shannon divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceiling.data.packing import Example
from ceiling.model.policy import Policy
from ceiling.model.sequences import Forward
from ceiling.model.transformer import forward
from ceiling.regimes import distill
from ceiling.regimes.base import Material, negative_log_likelihood

checked = settings(max_examples=20, deadline=None)
BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)
V = 5


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def KL(p, q):
    return float(sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True) if a > 0))


def brute(student, teacher, mask, beta, temperature):
    total = 0.0
    for i, t in np.argwhere(mask > 0):
        S, T = (softmax(x[i, t].astype(float) / temperature) for x in (student, teacher))
        M = (1 - beta) * S + beta * T
        total += KL(T, S) if beta == 0 else KL(S, T) if beta == 1 else beta * KL(T, M) + (1 - beta) * KL(S, M)
    return total, float(mask.sum())


def logits(seed, shape=(2, 3, V), scale=2.0):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(0, scale, shape).astype(np.float32) for _ in range(2))


MASK = np.array([[0, 1, 1], [0, 1, 0]], np.float32)


@checked
@given(seed=st.integers(0, 10**6), beta=st.sampled_from(BETAS), temperature=st.sampled_from([0.5, 1.0, 2.0]))
def test_divergence_equals_brute_force(seed, beta, temperature):
    student, teacher = logits(seed)
    total, denom = distill.divergence(student, teacher, MASK, beta=beta, temperature=temperature)
    want, tokens = brute(student, teacher, MASK, beta, temperature)
    assert float(denom) == tokens and float(total) == pytest.approx(want, rel=1e-4, abs=1e-5)
    assert float(total) >= -1e-6


@pytest.mark.parametrize("beta", BETAS)
def test_KD1_equal_models_give_zero_loss_and_gradient(beta):
    student, _ = logits(0)
    value = lambda s: distill.divergence(s, student + 3.0, MASK, beta=beta, temperature=1.0)[0]  # noqa: E731
    assert float(value(student)) == pytest.approx(0, abs=1e-6), "a shift of all logits is the same distribution"
    np.testing.assert_allclose(jax.grad(value)(student), 0, atol=1e-6)


@pytest.mark.parametrize("cold", [-1e4, -np.inf])
def test_KD2_forward_KL_to_a_one_hot_teacher_is_cross_entropy(cold):
    student, _ = logits(1)
    targets = np.array([[0, 1, 2], [3, 4, 0]])
    teacher = np.where(np.arange(V) == targets[..., None], 0.0, cold).astype(np.float32)
    value = lambda s: distill.divergence(s, teacher, MASK, beta=0.0, temperature=1.0)[0]  # noqa: E731

    def cross_entropy(s):
        logp = jax.nn.log_softmax(s)
        return -jnp.sum(jnp.take_along_axis(logp, targets[..., None], axis=-1)[..., 0] * MASK)

    assert float(value(student)) == pytest.approx(float(cross_entropy(student)), rel=1e-5)
    np.testing.assert_allclose(jax.grad(value)(student), jax.grad(cross_entropy)(student), atol=1e-6)


@checked
@given(seed=st.integers(0, 10**6))
def test_KD3_half_is_symmetric_and_KD4_bounded_by_log_2(seed):
    student, teacher = logits(seed, scale=8.0)
    there, denom = distill.divergence(student, teacher, MASK, beta=0.5, temperature=1.0)
    back, _ = distill.divergence(teacher, student, MASK, beta=0.5, temperature=1.0)
    assert float(there) == pytest.approx(float(back), rel=1e-5, abs=1e-6)
    assert float(there / denom) <= np.log(2) + 1e-6


@checked
@given(seed=st.integers(0, 10**6), beta=st.sampled_from([0.1, 0.3, 0.7]))
def test_the_mixture_reverses_with_one_minus_beta(seed, beta):
    student, teacher = logits(seed)
    a, _ = distill.divergence(student, teacher, MASK, beta=beta, temperature=1.0)
    b, _ = distill.divergence(teacher, student, MASK, beta=1 - beta, temperature=1.0)
    assert float(a) == pytest.approx(float(b), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_KD5_gradients_with_respect_to_the_logits(temperature):
    student, teacher = logits(2, (1, 1, V))
    S, T = softmax(student[0, 0] / temperature), softmax(teacher[0, 0] / temperature)

    def grad(beta):
        at = dict(beta=beta, temperature=temperature)
        return np.asarray(jax.grad(lambda s: distill.divergence(s, teacher, np.ones((1, 1)), **at)[0])(student))[0, 0]

    np.testing.assert_allclose(grad(0.0), (S - T) / temperature, atol=1e-6)
    np.testing.assert_allclose(grad(1.0), S * (np.log(S / T) - KL(S, T)) / temperature, atol=1e-6)


@pytest.mark.parametrize("beta", BETAS)
def test_KD6_masked_tokens_and_padding_count_nowhere(beta):
    student, teacher = logits(3)
    value = lambda s, t, m: distill.divergence(s, t, m, beta=beta, temperature=1.0)  # noqa: E731
    want, denom = value(student, teacher, MASK)
    wild = [np.where(MASK[..., None] > 0, x, 50.0 * other) for x, other in ((student, teacher), (teacher, student))]
    got, same = value(*wild, MASK)
    assert float(got) == pytest.approx(float(want), rel=1e-6) and float(same) == float(denom) == 3
    pad = [(0, 1), (0, 2)]
    longer, n = value(np.pad(student, [*pad, (0, 0)]), np.pad(teacher, [*pad, (0, 0)]), np.pad(MASK, pad))
    assert float(longer) == pytest.approx(float(want), rel=1e-6) and float(n) == 3
    gradient = jax.grad(lambda s: value(s, teacher, MASK)[0])(student)
    assert np.all(np.asarray(gradient)[MASK == 0] == 0)


def test_unscaled_mixture_vanishes_at_both_ends_and_scaled_converges_to_the_KLs():
    """Methods 10.1: only L / (beta (1 - beta)) tends to KL(T||S) at 0 and to KL(S||T) at 1."""
    student = np.log(np.array([0.30, 0.25, 0.20, 0.15, 0.10], np.float32))[None, None]
    teacher = np.log(np.array([0.02, 0.48, 0.15, 0.05, 0.30], np.float32))[None, None]
    at = lambda b: float(distill.divergence(student, teacher, np.ones((1, 1)), beta=b, temperature=1.0)[0])  # noqa: E731
    S, T = np.exp(student[0, 0].astype(float)), np.exp(teacher[0, 0].astype(float))
    forward_kl, reverse_kl = KL(T, S), KL(S, T)
    assert abs(forward_kl - reverse_kl) > 0.02, "the example must tell the ends apart"
    assert at(0.0) == pytest.approx(forward_kl, rel=1e-5) and at(1.0) == pytest.approx(reverse_kl, rel=1e-5)
    for b, limit in ((0.002, forward_kl), (0.998, reverse_kl)):
        assert at(b) / (b * (1 - b)) == pytest.approx(limit, rel=1e-2)
        assert at(b) < 0.003 * limit, "unscaled, it trains hundreds of times more weakly than its own limit"


def test_KD8_forward_covers_the_modes_and_reverse_seeks_one():
    """Discretised Gaussians of every mean against a two-mode teacher."""
    x = np.arange(21.0)
    bump = lambda mean, width: -((x - mean) ** 2) / (2 * width**2)  # noqa: E731
    teacher = np.logaddexp(bump(4, 1.2), bump(16, 1.2)).astype(np.float32)
    means, widths = np.meshgrid(np.arange(21.0), [1.2, 3.0, 6.0])
    students = np.stack([bump(m, w) for m, w in zip(means.ravel(), widths.ravel(), strict=True)]).astype(np.float32)
    best = {}
    for beta in (0.0, 1.0):
        token = distill.token_divergence(students, np.broadcast_to(teacher, students.shape), beta, 1.0)
        i = int(np.argmin(token))
        best[beta] = means.ravel()[i], widths.ravel()[i]
    assert best[0.0] == (10.0, 6.0), "mass-covering: between the modes, and wide"
    assert best[1.0][0] in (4.0, 16.0) and best[1.0][1] == 1.2, "mode-seeking: on one mode, and narrow"


@pytest.mark.parametrize("beta, chunk", [(0.0, 7), (0.5, 7), (1.0, 8192)])
def test_chunked_regime_loss_equals_divergence_on_full_logits(beta, chunk, toy):
    """Value and gradient, chunks that do not divide the tokens, temperature 2, teacher constant."""
    model = toy.model_of(toy.task, head_chunk_tokens=chunk, layers=1)
    params, teacher = toy.fresh(model, 5), toy.fresh(model, 6)
    cfg = toy.arm("distill", loss="divergence", beta=beta, kd_temperature=2.0)
    rng = np.random.default_rng(0)
    lengths = (5, 9, 2)
    examples = [Example(rng.integers(1, 28, n), (np.arange(n) >= n // 2).astype(np.float32)) for n in lengths]
    batch = toy.batch_of(examples, sequences=4, max_tokens=10, row_tokens=20)
    rows = np.stack([np.pad(e.tokens, (0, 10 - len(e.tokens))) for e in examples])
    # The activation at t - 1 predicts token t.
    mask = np.stack([np.pad(e.mask[1:], (0, 11 - len(e.tokens))) for e in examples])

    def full(params):
        student = forward(params, model, rows)
        total, denom = distill.divergence(student, forward(teacher, model, rows), mask, beta=beta, temperature=2.0)
        return total, denom

    def regime(params, teacher):
        frozen = {"teacher": Policy(teacher, model, ())}
        total, denom, _ = distill.REGIME.loss(params, batch, frozen, Forward(model), cfg)
        return total, denom

    (want, n), want_grad = jax.jit(jax.value_and_grad(full, has_aux=True))(params)
    (got, tokens), (got_grad, teacher_grad) = jax.jit(jax.value_and_grad(regime, argnums=(0, 1), has_aux=True))(
        params, teacher
    )
    assert float(tokens) == float(n) == sum(e.mask[1:].sum() for e in examples)
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), got_grad, want_grad)
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(teacher_grad)), "the teacher is fixed"


def test_KD7_own_samples_teach_like_the_same_text_given_as_data(toy):
    cfg = toy.arm("distill", on_policy=1.0, keep="all", prompts_per_step=2, samples_per_prompt=2)
    material, examples = toy.gather(distill.REGIME, cfg, toy.task, toy.model, toy.params, toy.models)
    flat = [s for group in material.samples[0] for s in group]
    fixed = [
        Example(np.concatenate([s.prompt, s.tokens]), np.repeat([0.0, 1.0], [len(s.prompt), len(s.tokens)]))
        for s in flat
    ]
    f = Forward(toy.model)
    loss = jax.jit(jax.value_and_grad(lambda p, b: distill.loss(p, b, {}, f, cfg)[0]))
    a, b = (loss(toy.params, toy.batch_of(e, max_tokens=80)) for e in (examples, fixed))
    assert float(a[0]) == float(b[0])
    jax.tree.map(np.testing.assert_array_equal, a[1], b[1])
    # Sequence distillation on them is their cross-entropy.
    want = -sum(lp[len(s.prompt) - 1 :].sum() for s, (_, lp) in zip(
        flat, toy.slow_logprobs(toy.params, toy.model, [e.tokens for e in fixed]), strict=True))  # fmt: skip
    assert float(a[0]) == pytest.approx(float(want), rel=1e-5)
    assert distill.loss is not negative_log_likelihood


def test_who_samples_and_what_is_kept(toy):
    task = toy.task
    for share, want in ((0.0, {"teacher"}), (1.0, {"policy"}), (0.5, {"teacher", "policy"})):
        cfg = toy.arm("distill", on_policy=share)
        rng = np.random.default_rng(0)
        rounds = [distill.rounds(cfg, task, rng) for _ in range(200)]
        models = [r[0].model for r in rounds]
        assert set(models) == want
        assert abs(models.count("policy") / 200 - share) < 0.1
    cfg = toy.arm("distill", prompts_per_step=2, samples_per_prompt=4)
    material, kept = toy.gather(distill.REGIME, cfg, task, toy.model, toy.params, toy.models)
    assert isinstance(material, Material)
    flat = [s for group in material.samples[0] for s in group]
    right = [s for s in flat if s.verdict.right]
    assert 0 < len(right) < len(flat), "the toy must filter something"
    assert [list(e.tokens) for e in kept] == [[*s.prompt, *s.tokens] for s in right]
    assert len(distill.examples(material, {**cfg, "keep": "all"})) == len(flat)


@pytest.mark.parametrize("loss, keep, reads", [
    ("sequence", "right", ("prompt", "answer", "teacher text")), ("sequence", "all", ("prompt", "teacher text")),
    ("divergence", "all", ("prompt", "teacher logits")),
])  # fmt: skip
def test_what_the_arm_declares_to_read(loss, keep, reads, toy):
    cfg = toy.arm("distill", loss=loss, keep=keep)
    assert distill.reads(cfg) == reads
    assert distill.REGIME.frozen(cfg) == (("teacher",) if loss == "divergence" else ())
