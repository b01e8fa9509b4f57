"""The forward pass against a plain NumPy float64 model, and its invariances."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceiling import model
from ceiling.data.packing import Cells
from ceiling.model import attention as kernels
from ceiling.model.attention import causal_attention, dense_attention, fused_attention, heads_first
from ceiling.model.rope import rotary, rotations

checked = settings(max_examples=20, deadline=None)
forward = jax.jit(model.forward, static_argnums=1)
WINDOWED = dict(norms="both", norm_offset=True, qk_norm="head", activation="gelu", embed_scale=True, query_scale=0.2,
                layers=5, window=3, global_every=2, local_rope_base=30.0, rope_scaling="linear",
                rope_factor=3.0)  # fmt: skip
MIXED = dict(WINDOWED, layers=2, qkv_bias=True, tied=False)
LLAMA3 = dict(rope_base=40.0, rope_scaling="llama3", rope_factor=5.0, rope_low=1.2, rope_high=3.5,
              rope_trained_tokens=40)  # fmt: skip
SHAPES = [
    dict(), dict(odd=True), dict(kv_heads=4), dict(kv_heads=1, qk_norm="head"), dict(qkv_bias=True, tied=False),
    WINDOWED, dict(WINDOWED, scan_layers=False), dict(norms="post", qk_norm="width"), dict(window=2), LLAMA3,
    dict(lora_rank=3, lora_alpha=2.0),
]  # fmt: skip


def some_tokens(shape, seed=0, vocab=13):
    return np.random.default_rng(seed).integers(1, vocab, shape).astype(np.int32)


# --- the reference: one token loop over queries, no batching tricks, float64 -------------------------------


def reference_norm(x, scale, c):
    """Over every axis that `scale` has."""
    axes = tuple(range(x.ndim - scale.ndim, x.ndim))
    return x / np.sqrt(np.mean(x**2, axis=axes, keepdims=True) + c.norm_eps) * (scale + c.norm_offset)


def reference_frequency(c, i, local):
    """Radians per token of pair i; the branches of llama3 as its paper's code has them."""
    if local:
        return c.local_rope_base ** (-2 * i / c.head_dim)
    f = c.rope_base ** (-2 * i / c.head_dim)
    if c.rope_scaling == "linear":
        return f / c.rope_factor
    if c.rope_scaling == "llama3":
        wavelength = 2 * np.pi / f
        if wavelength < c.rope_trained_tokens / c.rope_high:
            return f
        if wavelength > c.rope_trained_tokens / c.rope_low:
            return f / c.rope_factor
        smooth = (c.rope_trained_tokens / wavelength - c.rope_low) / (c.rope_high - c.rope_low)
        return (1 - smooth) * f / c.rope_factor + smooth * f
    return f


def reference_rope(x, position, c, local):
    """x [H] at an integer position: pair i is (x[i], x[i + H/2]), turned by position * frequency."""
    H = len(x)
    out = np.empty(H)
    for i in range(H // 2):
        angle = position * reference_frequency(c, i, local)
        cos, sin = np.cos(angle), np.sin(angle)
        out[i] = x[i] * cos - x[i + H // 2] * sin
        out[i + H // 2] = x[i + H // 2] * cos + x[i] * sin
    return out


def reference_attention(h, w, c, local):
    T = len(h)
    q, k, v = (np.einsum("td,dnh->tnh", h, w[name]) for name in ("wq", "wk", "wv"))
    if c.qkv_bias:
        q, k, v = q + w["bq"], k + w["bk"], v + w["bv"]
    if c.qk_norm:
        q, k = reference_norm(q, w["q_norm"], c), reference_norm(k, w["k_norm"], c)
    for t in range(T):
        q[t] = [reference_rope(q[t, n], t, c, local) for n in range(c.heads)]
        k[t] = [reference_rope(k[t, n], t, c, local) for n in range(c.kv_heads)]
    out = np.zeros((T, c.heads, c.head_dim))
    for t in range(T):
        first = max(0, t - c.window + 1) if local else 0
        for n in range(c.heads):
            kv = n // (c.heads // c.kv_heads)
            score = k[first : t + 1, kv] @ q[t, n] * (c.query_scale or c.head_dim**-0.5)
            weight = np.exp(score - score.max())
            out[t, n] = (weight / weight.sum()) @ v[first : t + 1, kv]
    return np.einsum("tnh,nhd->td", out, w["wo"])


def reference_layer(p, c, layer):
    """Weights of one layer, adapters multiplied out."""
    w = {name: value[layer] for name, value in p["layers"].items()}
    for name in c.lora_targets if c.lora_rank else ():
        a, b = w.pop(f"{name}_lora_a"), w.pop(f"{name}_lora_b")
        w[name] = w[name] + c.lora_alpha / c.lora_rank * np.tensordot(a, b, axes=1)
    return w


def reference_logits(params, c, tokens_T):
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = p["embed"][tokens_T] * (np.sqrt(c.width) if c.embed_scale else 1)
    for layer in range(c.layers):
        w = reference_layer(p, c, layer)
        local = c.window > 0 and not (c.global_every and (layer + 1) % c.global_every == 0)
        before = lambda name, x: reference_norm(x, w[f"{name}_norm"], c) if c.norms != "post" else x  # noqa: E731, B023
        after = lambda name, x: reference_norm(x, w[f"{name}_post_norm"], c) if c.norms != "pre" else x  # noqa: E731, B023
        x = x + after("attn", reference_attention(before("attn", x), w, c, local))
        h = before("mlp", x)
        gate = h @ w["w_gate"]
        if c.activation == "silu":
            gate = gate / (1 + np.exp(-gate))
        else:
            gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        x = x + after("mlp", (gate * (h @ w["w_up"])) @ w["w_down"])
    x = reference_norm(x, p["final_norm"], c)
    return x @ (p["embed"].T if c.tied else p["head"])


@pytest.mark.parametrize("fields", SHAPES, ids=str)
def test_forward_equals_the_numpy_reference(make_model, fields):
    config, params = make_model(**fields)
    tokens_BT = some_tokens((3, 11))
    logits_BTV = forward(params, config, tokens_BT)
    assert logits_BTV.dtype == jnp.float32 and logits_BTV.shape == (3, 11, config.vocab_size)
    for row, tokens_T in enumerate(tokens_BT):
        expected_TV = reference_logits(params, config, tokens_T)
        np.testing.assert_allclose(logits_BTV[row], expected_TV, atol=1e-4, rtol=1e-4)


# --- invariances ----------------------------------------------------------------------------------------


@checked
@given(cut=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_causal_later_tokens_change_nothing_before_them(make_model, cut, seed):
    config, params = make_model(**WINDOWED)
    one, other = some_tokens((1, 10), seed), some_tokens((1, 10), seed + 1)
    other[:, :cut] = one[:, :cut]
    other[:, cut] = one[:, cut] % 12 + 1  # differs for certain
    a, b = forward(params, config, one), forward(params, config, other)
    np.testing.assert_array_equal(a[:, :cut], b[:, :cut])
    assert np.abs(a[:, cut] - b[:, cut]).max() > 1e-4


@checked
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 10**6))
def test_packed_segments_give_the_logits_of_separate_rows(make_model, lengths, seed):
    config, params = make_model(**WINDOWED)
    width = 22  # at least two tokens of padding at the end
    tokens_BT, segments_BT = some_tokens((1, width), seed), np.zeros((1, width), np.int32)
    starts = np.cumsum([0, *lengths])
    for s, (start, stop) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
        segments_BT[0, start:stop] = s + 1
    packed = forward(params, config, tokens_BT, segments_BT=segments_BT)
    assert np.isfinite(packed).all()
    for start, stop in zip(starts[:-1], starts[1:], strict=True):
        alone_BT = np.zeros((1, 5), np.int32)
        alone_BT[0, : stop - start] = tokens_BT[0, start:stop]
        alone = forward(params, config, alone_BT)
        np.testing.assert_allclose(packed[0, start:stop], alone[0, : stop - start], atol=2e-5)


def test_default_positions_restart_in_every_segment(make_model):
    config, params = make_model()
    tokens_BT = some_tokens((2, 8))
    segments_BT = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [3, 3, 5, 5, 5, 5, 5, 5]], np.int32)
    positions_BT = np.array([[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 0, 1, 2, 3, 4, 5]], np.int32)
    implied = forward(params, config, tokens_BT, segments_BT=segments_BT)
    given_ = forward(params, config, tokens_BT, segments_BT=segments_BT, positions_BT=positions_BT)
    np.testing.assert_array_equal(implied, given_)


def test_positions_matter_but_only_relative_to_each_other(make_model):
    config, params = make_model()
    tokens_BT = some_tokens((2, 8))
    at = lambda positions: forward(  # noqa: E731
        params, config, tokens_BT, positions_BT=np.broadcast_to(positions, (2, 8)).astype(np.int32)
    )
    plain = forward(params, config, tokens_BT)
    np.testing.assert_array_equal(at(np.arange(8)), plain)
    np.testing.assert_allclose(at(np.arange(8) + 7), plain, atol=5e-5)
    assert np.abs(at(2 * np.arange(8)) - plain).max() > 1e-3


def test_rotary_keeps_lengths_and_does_nothing_at_position_zero():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 2, 8)), jnp.float32)
    config = model.ModelConfig(vocab_size=4, width=8, ffn=8, layers=1, heads=2, kv_heads=2, head_dim=8)
    turned = rotary(x, *rotations(config, jnp.arange(6)[None])[False])
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])


def test_fully_padded_rows_are_finite_in_value_and_gradient(make_model):
    """X-4: a row of padding must not poison the batch."""
    config, params = make_model(odd=True)
    tokens_BT, segments_BT = some_tokens((2, 6)), np.array([[0] * 6, [1] * 6], np.int32)
    tokens_BT[0] = 0

    @jax.jit
    @jax.value_and_grad
    def gradient(params, tokens_BT, weight_B):
        logits_BTV = model.forward(params, config, tokens_BT, segments_BT=segments_BT)
        return jnp.sum(jnp.square(logits_BTV) * weight_B[:, None, None])

    both, one = gradient(params, tokens_BT, jnp.array([0.0, 1.0])), gradient(params, tokens_BT, jnp.array([1.0, 0.0]))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((both, one)))
    tokens_BT[0] = 7  # what the padding row holds cannot reach the other row
    again = gradient(params, tokens_BT, jnp.array([0.0, 1.0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), both, again)


def test_local_layers_see_their_window_and_nothing_else(make_model):
    """With local layers only, a token reaches layers * (window - 1) places and not one more."""
    config, params = make_model(window=3, layers=2)
    one, other = some_tokens((1, 12)), some_tokens((1, 12))
    other[0, 2] = one[0, 2] % 12 + 1
    changed_T = np.abs(forward(params, config, one) - forward(params, config, other)).max(axis=(0, 2)) > 1e-6
    assert changed_T.tolist() == [2 <= t <= 2 + 2 * 2 for t in range(12)]
    everywhere = dataclasses.replace(config, global_every=1)
    np.testing.assert_array_equal(forward(params, everywhere, one),
                                  forward(params, dataclasses.replace(config, window=0), one))  # fmt: skip


def value_and_gradient(config, params):
    tokens_BT = some_tokens((2, 7))
    def loss(params):
        logits_BTV = model.forward(params, config, tokens_BT)
        return jnp.mean(jnp.square(logits_BTV)), logits_BTV

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.fixture(scope="module")
def scanned(make_model):
    return value_and_gradient(*make_model(**MIXED))


@pytest.mark.parametrize("change", [dict(scan_layers=False), dict(remat="block"), dict(remat="dots")], ids=str)
def test_scan_unroll_and_remat_give_equal_values_and_gradients(make_model, scanned, change):
    config, params = make_model(**MIXED)
    (value, _), gradient = scanned
    (other_value, _), other_gradient = value_and_gradient(dataclasses.replace(config, **change), params)
    np.testing.assert_allclose(value, other_value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient, other_gradient)


def test_bfloat16_compute_keeps_float32_params_logits_and_gradients(make_model, scanned):
    config, params = make_model(**MIXED)
    half = dataclasses.replace(config, compute_dtype="bfloat16")
    (_, logits), gradient = value_and_gradient(half, params)
    (_, exact), _ = scanned
    assert logits.dtype == jnp.float32
    error = np.abs(logits - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.05, "bfloat16 must be used, and must stay near float32"
    assert all(g.dtype == jnp.float32 and np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_bfloat16_params_run_in_float32_compute(make_model):
    config, params = make_model(param_dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    tokens_T = some_tokens(6)
    logits = forward(params, config, tokens_T[None])
    np.testing.assert_allclose(logits[0], reference_logits(params, config, tokens_T), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("T", "S"), [(T, T) for T in (1, 31, 32, 33, 70, 128, 200)] + [(97, 128), (64, 95), (1, 9)])
def test_attention_in_blocks_of_queries_is_that_of_the_whole_square(T, S):
    """With a causal mask that leaves every query some keys; outputs and gradients. Queries are of the last T keys."""
    rng = np.random.default_rng(T)
    q, k, v = (jnp.asarray(rng.normal(size=(2, *size, 8)), jnp.float32) for size in ((T, 4), (S, 2), (S, 2)))
    segments = np.sort(rng.integers(0, 4, (2, S)))
    mask = jnp.asarray((np.tri(S, dtype=bool) & (segments[:, :, None] == segments[:, None]))[:, -T:])

    def outputs(attend):
        out, back = jax.vjp(attend, q, k, v)
        return out, *back(jnp.asarray(np.random.default_rng(1).normal(size=out.shape), jnp.float32))

    whole = outputs(lambda q, k, v: dense_attention(q, heads_first(k), heads_first(v), mask))
    blocks = outputs(lambda q, k, v: causal_attention(q, k, v, mask))
    for a, b in zip(whole, blocks, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("fields", [dict(), dict(scan_layers=False, window=5, global_every=2)], ids=str)
def test_a_cell_sees_the_head_and_itself(make_model, fields):
    """Against a forward of each cell behind the head, with the positions of the row it lies in."""
    config, params = make_model(**fields)
    tokens, positions = np.random.default_rng(0).integers(1, 13, (2, 14)), np.tile(np.r_[:5, 5:8, 5:8, 5:8], (2, 1))
    run = jax.jit(model.hidden, static_argnums=1, static_argnames="cells")
    together = run(params, config, tokens, positions, cells=Cells(5, 3))
    for cell in range(3):
        own = np.r_[:5, 5 + 3 * cell : 8 + 3 * cell]
        alone = run(params, config, tokens[:, own], positions[:, own])
        np.testing.assert_allclose(together[:, own], alone, atol=1e-5)
    assert np.abs(together[:, -3:] - run(params, config, tokens, positions)[:, -3:]).max() > 0.01, "cells must show"


@pytest.mark.parametrize("fields", [dict(), dict(scan_layers=False)], ids=str)
def test_masks_of_windowed_layers_are_boolean(make_model, fields, monkeypatch):
    """The kernels refuse any other; a Python bool's ~ would make integers."""
    config, params = make_model(window=4, global_every=2, **fields)
    seen, whole = [], kernels.dense_attention
    monkeypatch.setattr(kernels, "dense_attention", lambda *args: seen.append(args[3].dtype) or whole(*args))
    jax.eval_shape(lambda params: model.forward(params, config, some_tokens(6)[None]), params)
    assert seen and set(seen) == {jnp.dtype(bool)}


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_the_fused_kernel_has_the_masks_of_the_dense_products(heads, kv_heads):
    """jax's kernels share one interface; on a CPU it has the one by products, on a GPU cuDNN's."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 7, n, 8)), jnp.float32) for n in (heads, kv_heads, kv_heads))
    segments = np.array([[1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 2]])
    behind = np.arange(7)[:, None] - np.arange(7)
    mask = jnp.asarray((behind >= 0) & (behind < 3) & (segments[:, :, None] == segments[:, None]))

    def outputs(attend):
        out, back = jax.vjp(attend, q, k, v)
        return out, *back(jnp.asarray(np.random.default_rng(1).normal(size=out.shape), jnp.float32))

    dense = outputs(lambda q, k, v: dense_attention(q, heads_first(k), heads_first(v), mask))
    fused = outputs(lambda q, k, v: fused_attention(q, k, v, mask, "xla"))
    for a, b in zip(dense, fused, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_a_kernel_of_half_precision_is_refused_in_single():
    with pytest.raises(ValueError, match="model.attention='cudnn' computes in half precision only"):
        model.ModelConfig(vocab_size=4, width=8, ffn=8, layers=1, heads=2, kv_heads=2, head_dim=8, attention="cudnn")
