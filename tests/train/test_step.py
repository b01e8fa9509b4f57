"""The one train step and the optimiser: sums over denominators, skipped updates, schedules."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ceiling
from ceiling.model import layers
from ceiling.model.config import ModelConfig
from ceiling.train import optim
from ceiling.train.step import init_state, make_step

checked = settings(max_examples=25, deadline=None)


def linear_loss(params, batch, frozen):
    """sum m (w x + b - y)^2 over sum m, with the error's absolute value as a metric."""
    x, y, m = batch
    error = params["w"] * x + params["b"] - y
    return jnp.sum(m * error**2), jnp.sum(m), {"error": (jnp.sum(m * jnp.abs(error)), jnp.sum(m))}


def data(seed, micro=1, n=8):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, micro, n)).astype(np.float32)
    m = (rng.random((micro, n)) < 0.6).astype(np.float32)
    m[0, 0] = 1
    return x, y, m


START = {"w": np.float32(0.5), "b": np.float32(-1.0)}


def state_of(optimiser, aux=None, start=START):
    return init_state(jax.tree.map(jnp.array, start), optimiser, aux)


@pytest.fixture(scope="module")
def plain_step():
    return make_step(linear_loss, optax.identity())


@pytest.mark.parametrize("seed", range(5))
def test_the_update_is_the_gradient_of_the_global_mean(seed, plain_step):
    x, y, m = data(seed)
    state, metrics = plain_step(state_of(optax.identity()), (x, y, m), {}, jnp.float32(0.1))
    error = 0.5 * x - 1.0 - y
    assert float(metrics["loss"]) == pytest.approx((m * error**2).sum() / m.sum(), rel=1e-5)
    assert float(metrics["error"]) == pytest.approx((m * abs(error)).sum() / m.sum(), rel=1e-5)
    grad = {"w": (2 * m * error * x).sum() / m.sum(), "b": (2 * m * error).sum() / m.sum()}
    for k, g in grad.items():
        assert float(state.params[k]) == pytest.approx(START[k] - 0.1 * g, rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(math.hypot(*grad.values()), rel=1e-5)


def test_X3_any_split_into_microbatches_gives_the_same_update():
    """Unequal token counts per micro-batch, one of them empty: the divisor is the global count."""
    x, y, m = data(3, 1, 12)
    m[0, 6:9] = 0
    step = make_step(linear_loss, optax.identity())
    out = []
    for micro in (1, 2, 4):
        parts = tuple(a.reshape(micro, -1) for a in (x, y, m))
        state, metrics = step(state_of(optax.identity()), parts, {}, jnp.float32(1.0))
        out.append(
            [float(v) for v in (*state.params.values(), metrics["loss"], metrics["error"], metrics["grad_norm"])]
        )
    np.testing.assert_allclose(out[1:], [out[0]] * 2, rtol=1e-5)


def test_X3_blank_micro_batches_need_not_be_run(plain_step):
    x, y, m = data(3, 4, 3)
    m[2:] = 0
    step = lambda *live: plain_step(state_of(optax.identity()), (x, y, m), {}, jnp.float32(1.0), *live)  # noqa: E731
    (some, few), (all_, full) = step(jnp.int32(2)), step()
    assert few == full and some.params == all_.params
    m[2] = 1
    assert step(jnp.int32(2))[1] == few != step(jnp.int32(3))[1], "only what is live is run"


@pytest.mark.parametrize("trainable", [None, frozenset({"layers/w"}), frozenset({"b"})])
@pytest.mark.parametrize("micro", [1, 4])
def test_X3_weights_by_layer_give_the_update_of_their_stacks(micro, trainable):
    """What is trained may be some of the stacks, or none of them."""

    def loss(params, batch, frozen):
        x, y, m = batch
        for w, v in zip(params["layers"]["w"], params["layers"]["v"], strict=True):
            x = jnp.tanh(w * x + v)
        return jnp.sum(m * (x + params["b"] - y) ** 2), jnp.sum(m), {}

    start = {"layers": {"w": np.float32([0.5, 2, -1]), "v": np.float32([0.1, 0, 0.3])}, "b": np.float32(0.2)}
    optimiser = optim.make(ceiling.arm("sft"))

    def updated(unrolled, **numbers):
        step = make_step(loss, optimiser, None, trainable, unrolled=unrolled)
        state = init_state(jax.tree.map(jnp.array, start), optimiser, trainable=trainable)
        return step(state, data(7, micro), {}, jnp.float32(0.1), **numbers)

    stacks, said = updated(False)
    for by_layer, same in (updated(True), updated(True, numbers=tuple(np.arange(3, dtype=np.int32)))):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), stacks, by_layer)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), said, same)
        changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), by_layer.params, start)
        mine = trainable or {"layers/w", "layers/v", "b"}
        assert changed == {"layers": {name: f"layers/{name}" in mine for name in "wv"}, "b": "b" in mine}


@pytest.mark.parametrize("told", [True, False])
def test_one_kernel_takes_out_whichever_layer(told):
    """In a program that is told their numbers as arguments; without them there is one for each."""
    config = ModelConfig(vocab_size=4, width=8, ffn=8, layers=3, heads=2, kv_heads=1, head_dim=4, scan_layers=False)
    numbers = layers.numbers(config) if told else None
    w_LIO = jnp.arange(3 * 600.0).reshape(3, 20, 30)
    program = jax.jit(layers.apart).lower({"layers": {"w": w_LIO}}, numbers).compile()
    out = program({"layers": {"w": w_LIO}}, numbers)["layers"]["w"]
    np.testing.assert_array_equal(out, w_LIO)
    bodies = re.findall(r"^%\S*computation\S* .*?\{\n(.*?)^}", program.as_text(), re.M | re.S)
    assert len({re.sub(r"%[\w.-]+|, metadata={.*?}", "", body) for body in bodies}) == (1 if told else 3)
    assert layers.numbers(dataclasses.replace(config, scan_layers=True)) is None


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e9])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e-3])
def test_gradients_are_clipped_as_by_optax(scale, limit):
    grads = jax.tree.map(lambda v: scale * v, {"w": jnp.array([3.0, -4.0]), "b": jnp.array([12.0])})
    ours = optim.make(ceiling.arm("sft", clip_norm=limit))
    state, params = ours.init(grads), jax.tree.map(jnp.zeros_like, grads)
    _, (_, moments, _) = ours.update(grads, state, params, norm=optax.tree.norm(grads))
    clip = optax.clip_by_global_norm(limit)
    want = clip.update(grads, clip.init(grads))[0] if scale else grads  # optax makes NaN of nothing clipped to nothing
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m, 0.1 * g, rtol=1e-5), moments.mu, want)


def test_X4_a_batch_without_tokens_leaves_no_gradient_and_no_NaN(plain_step):
    x, y, m = data(0)
    state, metrics = plain_step(state_of(optax.identity()), (x, y, 0 * m), {}, jnp.float32(0.1))
    assert all(np.isfinite(float(v)) for v in metrics.values()) and int(state.skipped) == 0
    assert float(metrics["loss"]) == 0 and {k: float(v) for k, v in state.params.items()} == START


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["first", "last"])
def test_N1_a_non_finite_update_is_skipped_counted_and_forgotten(bad, where):
    optimiser = optim.make(ceiling.arm("sft"))
    step = make_step(linear_loss, optimiser, lambda aux, params: jax.tree.map(lambda a, p: a + p, aux, params))
    x, y, m = data(1, 2)
    poisoned = x.copy()
    poisoned[0 if where == "first" else 1, :] = bad
    lr = jnp.float32(0.1)
    state, _ = step(state_of(optimiser, dict(START)), (x, y, m), {}, lr)  # a good one first: momenta are not zero
    before = jax.tree.map(np.array, state)
    state, metrics = step(state, (poisoned, y, np.ones_like(m)), {}, lr)
    for part in ("params", "opt_state", "aux"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, part), getattr(before, part))
    assert int(state.skipped) == 1 and float(metrics["skipped"]) == 1 and int(state.step) == 2
    assert not np.isfinite(float(metrics["grad_norm"]))
    good, metrics = step(state, (x, y, m), {}, lr)
    straight, _ = step(jax.tree.map(jnp.array, before), (x, y, m), {}, lr)
    jax.tree.map(np.testing.assert_array_equal, good.params, straight.params)
    assert int(good.skipped) == 1 and np.isfinite(float(metrics["loss"]))


def test_N1_a_non_finite_loss_with_finite_gradient_is_skipped_too():
    step = make_step(lambda p, b, f: (jnp.inf + 0 * p["w"], jnp.float32(1), {}), optax.identity())
    state, _ = step(state_of(optax.identity()), data(0), {}, jnp.float32(0.1))
    assert int(state.skipped) == 1 and float(state.params["w"]) == START["w"]


def test_slow_state_sees_the_new_parameters():
    step = make_step(linear_loss, optax.identity(), lambda aux, params: jax.tree.map(lambda a, p: p * 1, aux, params))
    state, _ = step(state_of(optax.identity(), dict(START)), data(0), {}, jnp.float32(0.1))
    assert {k: float(v) for k, v in state.aux.items()} == {k: float(v) for k, v in state.params.items()}
    assert float(state.params["w"]) != START["w"]


def test_two_updates_equal_AdamW_by_hand():
    """Clipped by the global norm, bias-corrected moments, decay on matrices and not on norms and biases."""
    cfg = ceiling.arm("sft", b1=0.8, b2=0.9, weight_decay=0.1, clip_norm=0.5)
    optimiser = optim.make(cfg)
    start = {
        "w": np.array([1.0, -2.0]),
        "q_norm": np.array([0.5, 1.5]),
        "layers": {"bq": np.array([3.0]), "embed": np.array([4.0])},
    }
    target = jax.tree.map(lambda v: np.linspace(0.1, 1.0, len(v)) * 3, start)

    def loss(params, target, frozen):
        squares = jax.tree.map(lambda x, t: jnp.sum((x - t) ** 2), params, target)
        return sum(jax.tree.leaves(squares)), jnp.float32(7), {}

    step = make_step(loss, optimiser)
    state = state_of(optimiser, start=jax.tree.map(np.float32, start))
    flat, tree = jax.tree.flatten(start)
    goal, decays = jax.tree.leaves(target), jax.tree.leaves({"w": 1, "q_norm": 0, "layers": {"bq": 0, "embed": 1}})
    first, second = [np.zeros_like(v) for v in flat], [np.zeros_like(v) for v in flat]
    for t in (1, 2):
        state, metrics = step(state, jax.tree.map(lambda v: np.float32(v)[None], target), {}, jnp.float32(0.01))
        grads = [2 * (p - g) / 7 for p, g in zip(flat, goal, strict=True)]
        norm = np.sqrt(sum((g**2).sum() for g in grads))
        assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5), "the norm before clipping is reported"
        grads = [g * min(1, 0.5 / norm) for g in grads]
        first = [0.8 * a + 0.2 * g for a, g in zip(first, grads, strict=True)]
        second = [0.9 * a + 0.1 * g**2 for a, g in zip(second, grads, strict=True)]
        direction = [
            (a / (1 - 0.8**t)) / (np.sqrt(b / (1 - 0.9**t)) + 1e-8) for a, b in zip(first, second, strict=True)
        ]
        flat = [p - 0.01 * (d + 0.1 * k * p) for p, d, k in zip(flat, direction, decays, strict=True)]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state.params, jax.tree.unflatten(tree, flat)
        )


def test_half_precision_stays_what_it_is():
    """Its gradients are divided, measured and clipped in single."""
    optimiser = optim.make(ceiling.arm("sft", clip_norm=0.5))
    start = {"w": jnp.linspace(-1, 1, 400, dtype=jnp.bfloat16), "b": jnp.ones(1, jnp.bfloat16)}
    step = make_step(lambda p, x, _: (jnp.sum(p["w"] * x + p["b"]).astype(jnp.float32), jnp.float32(3), {}), optimiser)
    state = init_state(start, optimiser)
    kinds = jax.tree.map(lambda x: x.dtype, state)
    x = jnp.full((1, 400), 1.5, jnp.bfloat16)
    state, said = step(state, x, {}, jnp.float32(0.1))
    assert jax.tree.map(lambda x: x.dtype, state) == kinds
    assert float(said["grad_norm"]) == pytest.approx(math.sqrt(400 * 1.5**2 + 400**2) / 3, rel=1e-6)
    step(state, x, {}, jnp.float32(0.1))
    assert step._cache_size() == 1, "the second call is the same program"


def test_decay_mask_covers_the_whole_parameter_table(lab):
    from ceiling.model.config import abstract

    model = ModelConfig(
        vocab_size=8, width=8, ffn=8, layers=1, heads=2, kv_heads=1, head_dim=4, tied=False, qk_norm="head",
        qkv_bias=True, steering=True,
    )
    mask = optim._decayed(abstract(model))
    off = {k for k, v in mask["layers"].items() if not v} | {k for k, v in mask.items() if v is False}
    assert off == {"attn_norm", "mlp_norm", "q_norm", "k_norm", "bq", "bk", "bv", "final_norm", "steer"}


# --- the schedule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule, progress, want", [
    ("cosine", 0.2, 1.0), ("cosine", 0.6, 0.1 + 0.9 * 0.5), ("cosine", 1.0, 0.1), ("cosine", 1.7, 0.1),
    ("linear", 0.2, 1.0), ("linear", 0.4, 0.1 + 0.9 * 0.75), ("linear", 1.0, 0.1),
    ("constant", 0.2, 1.0), ("constant", 1.0, 1.0),
    ("cosine", 0.0, 0.001 / 0.201), ("constant", 0.1, 0.101 / 0.201),
])  # fmt: skip
def test_schedule_values(schedule, progress, want):
    cfg = ceiling.arm("sft", lr=2.0, schedule=schedule, warmup=0.2, final_lr=0.1)
    assert optim.learning_rate(cfg, progress) == pytest.approx(2.0 * want, rel=1e-9)


@checked
@given(warmup=st.floats(0, 1), final=st.floats(0, 1), schedule=st.sampled_from(["constant", "linear", "cosine"]))
def test_schedule_rises_then_never_rises_again(warmup, final, schedule):
    cfg = ceiling.arm("sft", lr=1.0, schedule=schedule, warmup=warmup, final_lr=final)
    grid = np.linspace(0, 1, 101)
    lr = np.array([optim.learning_rate(cfg, p) for p in grid])
    assert np.all((lr >= 0) & (lr <= 1 + 1e-9))
    up, down = lr[grid < warmup], lr[grid >= warmup]
    assert np.all(np.diff(up) > 0) and np.all(np.diff(down) <= 1e-12)
    assert lr[0] > 0 or warmup == 0 or len(down) == 101, "the first step is not wasted"


def test_schedule_is_continuous_at_the_end_of_the_warmup():
    cfg = ceiling.arm("sft", lr=1.0, warmup=0.3)
    assert optim.learning_rate(cfg, 0.3 - 1e-9) == pytest.approx(optim.learning_rate(cfg, 0.3), rel=1e-6)
