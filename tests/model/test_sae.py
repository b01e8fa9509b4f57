"""Sparse autoencoders against NumPy: the loss, its gradient, exact sparsity, planted directions, scores by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ceiling.model import forward
from ceiling.model.attention import local_layers
from ceiling.model.sae import (
    SAEConfig,
    Statistics,
    decode,
    direction,
    encode,
    forward_flops,
    loss,
    reason_score,
    residuals,
    statistics,
    train,
)
from ceiling.model.steering import with_vectors
from ceiling.model.transformer import rms_norm, unembed

TOPK = SAEConfig(layer=0, latents=12, k=3)
L1 = SAEConfig(layer=0, latents=12, kind="l1", l1=0.7)


def some_sae(seed=0, D=5, U=12):
    rng = np.random.default_rng(seed)
    shapes = {"w_enc": (D, U), "b_enc": (U,), "w_dec": (U, D), "b_dec": (D,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def slow_encode(config, sae, x_D):
    """One token, one latent at a time."""
    a = [float((x_D - sae["b_dec"]) @ sae["w_enc"][:, u] + sae["b_enc"][u]) for u in range(config.latents)]
    kept = set(sorted(range(len(a)), key=lambda u: -a[u])[: config.k]) if config.kind == "topk" else set(range(len(a)))
    return np.array([max(0.0, a[u]) if u in kept else 0.0 for u in range(len(a))])


def slow_loss(config, sae, x_MD, l1):
    total = 0.0
    for x_D in x_MD:
        f_U = slow_encode(config, sae, x_D)
        total += np.sum((x_D - f_U @ sae["w_dec"] - sae["b_dec"]) ** 2)
        if config.kind == "l1":
            total += l1 * sum(f * np.linalg.norm(w_D) for f, w_D in zip(f_U, sae["w_dec"], strict=True))
    return total / len(x_MD)


@pytest.mark.parametrize("config", [TOPK, L1], ids=lambda c: c.kind)
def test_loss_and_its_gradient_equal_numpy_and_finite_differences(config):
    sae, x_MD = some_sae(), np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    value, gradient = jax.jit(jax.value_and_grad(loss, argnums=1), static_argnums=0)(config, sae, x_MD, 0.7)
    exact = {name: w.astype(np.float64) for name, w in sae.items()}
    assert float(value) == pytest.approx(slow_loss(config, exact, x_MD, 0.7), rel=1e-5)
    rng = np.random.default_rng(2)
    for name, g in gradient.items():
        for _ in range(3):
            move = rng.normal(size=g.shape)
            at = lambda s: slow_loss(config, {**exact, name: exact[name] + s * move}, x_MD, 0.7)  # noqa: B023, E731
            assert float(np.sum(g * move)) == pytest.approx((at(1e-6) - at(-1e-6)) / 2e-6, rel=1e-3, abs=1e-3), name


def test_topk_keeps_exactly_k_latents_of_every_token():
    sae, x_MD = some_sae(), np.random.default_rng(1).normal(size=(40, 5)).astype(np.float32)
    sae["b_enc"] += 30  # all entries positive: what is 0 was not kept
    f_MU = np.asarray(encode(TOPK, sae, x_MD))
    assert np.all((f_MU > 0).sum(axis=1) == TOPK.k)
    for x_D, f_U in zip(x_MD, f_MU, strict=True):
        np.testing.assert_allclose(f_U, slow_encode(TOPK, sae, x_D), rtol=1e-4)
    tied = {**sae, "w_enc": np.zeros_like(sae["w_enc"]), "b_enc": np.ones_like(sae["b_enc"])}
    assert np.all((np.asarray(encode(TOPK, tied, x_MD)) > 0).sum(axis=1) == TOPK.k), "equal entries too"
    low = {**sae, "b_enc": sae["b_enc"] - 60}
    assert not np.asarray(encode(TOPK, low, x_MD)).any(), "a kept entry below 0 is 0"


@pytest.mark.parametrize("kind, k, lr", [("topk", 2, 3e-2), ("l1", 2, 1e-2)])
def test_planted_directions_are_found(kind, k, lr):
    """Tokens are sums of two of ten directions in sixteen dimensions, on a mean that is not zero, in a scale far from
    1. Each direction has a latent along it, and the autoencoder explains the variance in the original scale."""
    rng, D, planted = np.random.default_rng(0), 16, 10
    true_PD = np.linalg.qr(rng.normal(size=(D, D)))[0][:planted]
    chosen_MP = rng.random((2000, planted)).argsort(axis=1) < 2
    amount_MP = chosen_MP * rng.uniform(1, 2, size=(2000, planted))
    x_MD = (50 * (amount_MP @ true_PD + 0.3 * rng.normal(size=D))).astype(np.float32)
    config = SAEConfig(layer=0, latents=20, kind=kind, k=k, l1=0.5)
    sae, loss_S = train(config, jnp.asarray(x_MD), jax.random.key(0), steps=400, tokens_per_step=128, lr=lr)
    w_UD = np.asarray(sae["w_dec"]) / np.linalg.norm(sae["w_dec"], axis=1, keepdims=True)
    assert (true_PD @ w_UD.T).max(axis=1).min() > 0.9, "every planted direction"
    assert loss_S[-20:].mean() < 0.3 * loss_S[0]
    near_MP = chosen_MP[:, :3]
    means = statistics(config, sae, x_MD, near_MP)
    assert means.variance_explained > 0.9
    if kind == "topk":
        np.testing.assert_allclose(np.linalg.norm(sae["w_dec"], axis=1), 1, rtol=1e-5)
        assert means.l0 == pytest.approx(2, abs=0.1)
    # The latents along the three marked directions are what the score ranks first.
    best = np.argsort(-reason_score(means, alpha=0.0))[:3]
    assert {int(np.argmax(true_PD @ w_UD[u])) for u in best} == {0, 1, 2}


def test_statistics_are_those_of_every_token_in_chunks_or_not(monkeypatch):
    sae, rng = some_sae(), np.random.default_rng(1)
    x_MD, near_MW = rng.normal(size=(11, 5)).astype(np.float32), rng.random((11, 2)) < 0.4
    monkeypatch.setattr("ceiling.model.sae.CHUNK_TOKENS", 4)
    got = statistics(TOPK, sae, x_MD, near_MW)
    f_MU = np.array([slow_encode(TOPK, sae, x_D) for x_D in x_MD])
    error = np.sum((x_MD - f_MU @ sae["w_dec"] - sae["b_dec"]) ** 2)
    near_M = near_MW.any(axis=1)
    want = Statistics(
        np.stack([f_MU[near_MW[:, w]].mean(axis=0) for w in range(2)]), f_MU[near_M].mean(axis=0),
        f_MU[~near_M].mean(axis=0), f_MU.max(axis=0), (f_MU > 0).mean(axis=0), (f_MU > 0).sum() / 11,
        1 - error / np.sum((x_MD - x_MD.mean(axis=0)) ** 2),
    )  # fmt: skip
    for field in dataclasses.fields(Statistics):
        np.testing.assert_allclose(getattr(got, field.name), getattr(want, field.name), rtol=1e-4, atol=1e-5)
    assert got.dead == pytest.approx(np.mean(~(f_MU > 0).any(axis=0)))


def test_reason_score_by_hand():
    """Three latents, two words. Latent 0 is active near both words alike (H = 1), latent 1 near one alone (H = 0),
    latent 2 elsewhere."""
    means = Statistics(np.array([[1.0, 2.0, 0.0], [1.0, 0.0, 0.0]]), np.array([1.0, 1.0, 0.0]),
                       np.array([0.5, 0.0, 1.5]), np.ones(3), np.ones(3), 0.0, 0.0)  # fmt: skip
    np.testing.assert_allclose(reason_score(means, alpha=0.7), [0.5 - 0.25, 0.0, -0.75], atol=1e-12)
    np.testing.assert_allclose(reason_score(means, alpha=0.0), [0.5 - 0.25, 0.5, -0.75], atol=1e-12)
    uneven = dataclasses.replace(means, word_WU=np.array([[3.0, 2.0, 0.0], [1.0, 0.0, 0.0]]))
    H = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / np.log(2)
    assert reason_score(uneven, alpha=0.7)[0] == pytest.approx(0.5 * H**0.7 - 0.25)
    single = dataclasses.replace(means, word_WU=means.near_U[None])
    np.testing.assert_allclose(reason_score(single, alpha=0.7), [0.25, 0.5, -0.75], atol=1e-12)


def test_steering_by_a_feature_is_adding_its_direction_by_hand(make_model):
    """After the last layer, where what follows is the final norm and the head."""
    config, params = make_model()
    sae, own = some_sae(D=config.width), dataclasses.replace(config, steering=True)
    last = dataclasses.replace(TOPK, layer=config.layers - 1)
    vectors_LD = direction(last, sae, 7, strength=2.0, f_max=1.5, layers=config.layers)
    assert not vectors_LD[:-1].any()
    tokens_BT = np.array([[1, 5, 2, 9]])
    steered = with_vectors(params, own, vectors_LD)

    @jax.jit
    def both(params, steered):
        x_BTD = residuals(params, config, last.layer, tokens_BT) + 2.0 * 1.5 * sae["w_dec"][7]
        by_hand = unembed(params, config, rms_norm(x_BTD, params["final_norm"], config))
        return by_hand, forward(steered, own, tokens_BT)

    by_hand, logits = both(params, steered)
    np.testing.assert_allclose(logits, by_hand, atol=1e-5)


def test_flops_are_what_xla_counts():
    config = SAEConfig(layer=0, latents=256, kind="l1")
    sae = {"w_enc": (64, 256), "b_enc": (256,), "w_dec": (256, 64), "b_dec": (64,)}
    sae = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in sae.items()}
    x_MD = jax.ShapeDtypeStruct((512, 64), jnp.float32)
    count = lambda f: jax.jit(f).lower(sae, x_MD).cost_analysis()["flops"]  # noqa: E731
    once, closed = lambda s, x: decode(s, encode(config, s, x)), forward_flops(config, 64, 512)
    assert count(once) == pytest.approx(closed, rel=0.03)
    assert count(jax.grad(lambda s, x: loss(config, s, x, 1.0))) == pytest.approx(3 * closed, rel=0.03)


def test_the_layers_below_are_the_same_kind_of_layers_in_a_shorter_model(make_model):
    """`residuals` runs a model of fewer layers: which of them see only a window must not shift."""
    config, _ = make_model(layers=7, window=3, global_every=3)
    for layers in range(1, 8):
        short = dataclasses.replace(config, layers=layers)
        np.testing.assert_array_equal(local_layers(short), local_layers(config)[:layers])
