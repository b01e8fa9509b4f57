"""Steering vectors: where they act, that every pass applies them alike, that they alone are trained, their controls."""

import dataclasses
import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ceiling
from ceiling.data.packing import pack, stack
from ceiling.ledger import forward_flops, train_flops
from ceiling.model import Policy, forward, make_mesh, place, table
from ceiling.model.attention import dense_attention, heads_first
from ceiling.model.config import abstract
from ceiling.model.lora import trainable
from ceiling.model.sae import residuals
from ceiling.model.sequences import Forward
from ceiling.model.sharding import param_shardings
from ceiling.model.steering import random_like, shuffled, vectors, with_vectors
from ceiling.model.transformer import rms_norm, run_blocks, unembed
from ceiling.regimes.base import Sample, load, response_example
from ceiling.rollout import generate
from ceiling.rollout.scoring import score
from ceiling.train import optim
from ceiling.train.step import init_state, join, make_step, split

SHAPE = dict(layers=2, vocab_size=16, qkv_bias=True, tied=False)
TOKENS = np.random.default_rng(0).integers(1, 16, (2, 7)).astype(np.int32)
run = jax.jit(forward, static_argnums=1)


@pytest.fixture(scope="module")
def steered(make_model):
    """(base config, base params, steered config, params with vectors that matter)."""
    config, params = make_model(**SHAPE)
    noise_LD = 0.5 * np.random.default_rng(1).normal(size=(config.layers, config.width)).astype(np.float32)
    own = dataclasses.replace(config, steering=True)
    return config, params, own, with_vectors(params, own, noise_LD)


def base_hash(params) -> str:
    """SHA-256 of everything but the vectors."""
    total = hashlib.sha256()
    for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(params), key=lambda item: str(item[0])):
        if path[-1].key != "steer":
            total.update(f"{path}".encode() + np.asarray(leaf).tobytes())
    return total.hexdigest()


# ---- where they act


def test_SV1_BO1_zero_vectors_change_no_bit(steered):
    config, params, own, _ = steered
    fresh = with_vectors(params, own, np.zeros((2, 16)))
    np.testing.assert_array_equal(run(fresh, own, TOKENS), run(params, config, TOKENS))


def test_SV2_adding_a_vector_and_taking_it_away_cancels(steered):
    config, params, own, moved = steered
    back = with_vectors(moved, own, vectors(moved) - vectors(moved))
    base = run(params, config, TOKENS)
    assert np.abs(run(moved, own, TOKENS) - base).max() > 0.1, "the vectors must matter"
    np.testing.assert_array_equal(run(back, own, TOKENS), base)


@functools.partial(jax.jit, static_argnums=1)
def streams(params, config):
    """The residual stream after every layer, and the logits of the last one."""
    out_LBTD = jnp.stack([residuals(params, config, layer, TOKENS) for layer in range(config.layers)])
    return out_LBTD, unembed(params, config, rms_norm(out_LBTD[-1], params["final_norm"], config))


def test_SV3_a_vector_is_added_after_its_block_at_every_position(steered):
    _, params, own, moved = steered
    before_LBTD, _ = streams(with_vectors(params, own, np.zeros((2, 16))), own)
    for layer, vector_D in enumerate(vectors(moved)):
        only_LD = np.where(np.arange(2)[:, None] == layer, vector_D, 0)
        after_LBTD, logits_BTV = streams(with_vectors(params, own, only_LD), own)
        np.testing.assert_array_equal(after_LBTD[:layer], before_LBTD[:layer])
        moved_BTD = after_LBTD[layer] - before_LBTD[layer]
        np.testing.assert_allclose(moved_BTD, np.broadcast_to(vector_D, moved_BTD.shape), atol=1e-5)
    np.testing.assert_allclose(logits_BTV, run(with_vectors(params, own, only_LD), own, TOKENS), atol=1e-5)


def test_SV3_BO6_sampler_trainer_and_scoring_are_one_distribution(make_model):
    """Log-probs recorded while decoding against a cache, of a whole forward pass, and of packed scoring."""
    config, params = make_model(**SHAPE, steering=True, window=3, global_every=2, lora_rank=2)
    params = with_vectors(params, config, 20 * np.random.default_rng(3).normal(size=(2, 16)))  # adapters are loud too
    prompts = [[1, 2], [4, 5, 6, 7]]
    out = generate(Policy(params, config, (3,)), prompts, n=2, max_new_tokens=6, seed=0)
    examples = [response_example(Sample(np.array(prompts[i], np.int32), out.response(i, j), None, False, None))
                for i in range(2) for j in range(2)]  # fmt: skip
    scored, _ = score(params, config, examples, max_tokens=10)
    rows = np.stack([np.pad(e.tokens, (0, 10 - len(e.tokens))) for e in examples])
    logp_BTV = np.asarray(jax.nn.log_softmax(run(params, config, rows)))
    unsteered_BTV = jax.nn.log_softmax(run(with_vectors(params, config, np.zeros((2, 16))), config, rows))
    for b, example in enumerate(examples):
        i, j = divmod(b, 2)
        P, n = len(prompts[i]), len(example.tokens)
        whole = logp_BTV[b, np.arange(P - 1, n - 1), example.tokens[P:]]
        np.testing.assert_allclose(out.logprobs[i, j, : out.lengths[i, j]], whole, atol=2e-5)
        np.testing.assert_allclose(scored[b], whole, atol=2e-5)
    assert np.abs(logp_BTV - unsteered_BTV).max() > 0.1, "the vectors must matter"


# ---- training them


def test_BO4_the_gradient_is_the_sum_over_positions_of_that_of_the_stream(steered):
    """The layers above are run by hand on the stream after each layer, and differentiated with respect to it."""
    _, _, own, moved = steered
    L, (B, T) = own.layers, TOKENS.shape
    weight_BTV = np.random.default_rng(2).normal(size=(B, T, 16)).astype(np.float32)

    def attend(layer, local, q, k, v, state):
        mask_BTT = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
        return dense_attention(q, heads_first(k), heads_first(v), mask_BTT), state

    def above(x_BTD, layer):
        """The weighted logits of a stream after `layer`."""
        rest = {**moved, "layers": jax.tree.map(lambda w: w[layer + 1 :], moved["layers"])}
        if layer == L - 1:
            x_BTD = rms_norm(x_BTD, moved["final_norm"], own)
        else:
            short = dataclasses.replace(own, layers=L - layer - 1)
            positions_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
            x_BTD, _ = run_blocks(rest, short, x_BTD, positions_BT, attend, None)
        return jnp.sum(unembed(moved, own, x_BTD) * weight_BTV)

    @jax.jit
    def both(steer_LD):
        whole = lambda v: jnp.sum(forward(with_row(v), own, TOKENS) * weight_BTV)  # noqa: E731
        with_row = lambda v: {**moved, "layers": {**moved["layers"], "steer": v}}  # noqa: E731
        streams = [residuals(moved, own, layer, TOKENS) for layer in range(L)]
        return jax.grad(whole)(steer_LD), jnp.stack([jax.grad(above)(x, layer) for layer, x in enumerate(streams)])

    gradient_LD, by_hand_LBTD = both(jnp.asarray(vectors(moved)))
    np.testing.assert_allclose(gradient_LD, by_hand_LBTD.sum(axis=(1, 2)), atol=1e-3, rtol=1e-3)
    assert all(np.abs(g).max() > 0.1 for g in gradient_LD)


def test_BO2_the_vectors_are_the_trained_parameters_beside_adapters_if_any(make_model):
    own = dataclasses.replace(make_model(**SHAPE)[0], steering=True)
    assert trainable(own) == {"layers/steer"} and table(own)["layers/steer"].shape == (own.layers, own.width)
    both = dataclasses.replace(own, lora_rank=2, lora_targets="wq")
    assert trainable(both) == {"layers/steer", "layers/wq_lora_a", "layers/wq_lora_b"}


def test_BO3_BO5_steps_of_grpo_train_the_vectors_and_nothing_else(make_model):
    config, params = make_model(**SHAPE)
    own = dataclasses.replace(config, steering=True)
    params = with_vectors(jax.tree.map(jnp.array, params), own, np.zeros((2, 16)))
    cfg, before = {**ceiling.arm("grpo", lr=1e-2).to_dict(), "max_tokens": 6}, base_hash(params)
    mine, regime, optimiser = trainable(own), load("grpo"), optim.make(cfg)
    state = init_state(params, optimiser, None, mine)
    held = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert held == 2 * 2 * 16, "two moments of L * D numbers, and of nothing else"
    step = make_step(lambda p, b, f: regime.loss(p, b, f, Forward(own), cfg), optimiser, None, mine)
    rng, examples = np.random.default_rng(0), []
    for _ in range(4):
        sample = Sample(np.array([1, 2], np.int32), rng.integers(3, 16, 5).astype(np.int32),
                        rng.normal(-2.8, 0.3, 5).astype(np.float32), True, None)  # fmt: skip
        examples.append(response_example(sample, behaviour=sample.logprobs, advantage=rng.normal()))
    batch = stack([pack(examples, sequences=4, max_tokens=7, row_tokens=7)])
    for _ in range(3):
        state, metrics = step(state, batch, {}, jnp.float32(1e-2))
    assert np.isfinite(float(metrics["loss"])) and int(metrics["skipped"]) == 0
    assert base_hash(state.params) == before
    assert all(np.abs(v).max() > 1e-3 for v in vectors(state.params)), "the vector of every layer moved"


def test_training_vectors_costs_what_xla_counts():
    """The second layer by difference: unrolled, XLA drops the first one's backward pass, which no vector needs; a scan
    executes it and the closed form prices it."""

    def costs(layers):
        config = ceiling.model.ModelConfig(vocab_size=64, width=256, ffn=768, layers=layers, heads=4, kv_heads=2,
                                           head_dim=64, scan_layers=False, steering=True)  # fmt: skip
        mine, rest = split(abstract(config), trainable(config))
        loss = lambda mine, rest, tokens: jnp.sum(forward(join(mine, rest), config, tokens))  # noqa: E731
        tokens = jax.ShapeDtypeStruct((2, 32), jnp.int32)
        count = lambda f: jax.jit(f).lower(mine, rest, tokens).cost_analysis()["flops"]  # noqa: E731
        closed = [f(config, np.full(2, 32), causal=False) for f in (forward_flops, train_flops)]
        return np.array([count(loss), count(jax.value_and_grad(loss))]), np.array(closed)

    executed, closed = (a - b for a, b in zip(costs(2), costs(1), strict=True))
    np.testing.assert_allclose(executed, closed, rtol=0.03)
    assert 1.99 < closed[1] / closed[0] < 2.2, "no weight gradients: about two forwards"


# ---- placing them, and the controls


def test_vectors_lie_as_the_table_says_and_have_its_shape_and_dtype(make_model):
    config, params = make_model(**SHAPE, ffn=24, param_dtype="bfloat16")
    own, mesh = dataclasses.replace(config, steering=True), make_mesh(2, 2, 2)
    placed = with_vectors(place(params, config, mesh), own, np.full((2, 16), 0.3))["layers"]["steer"]
    assert placed.dtype == jnp.bfloat16
    assert placed.sharding.is_equivalent_to(param_shardings(own, mesh)["layers"]["steer"], 2)
    with pytest.raises(ValueError, match=r"vectors of shape \(3, 16\) for a model that takes \(2, 16\)"):
        with_vectors(params, own, np.zeros((3, 16)))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), L=st.sampled_from([2, 5]))
def test_SV4_shuffled_vectors_are_the_same_ones_and_none_stays(seed, L):
    vectors_LD = np.random.default_rng(seed).normal(size=(L, 4)).astype(np.float32)
    moved = shuffled(vectors_LD, jax.random.key(seed))
    assert sorted(map(tuple, moved)) == sorted(map(tuple, vectors_LD))
    assert not (moved == vectors_LD).all(axis=1).any()


def test_SV4_shuffling_moves_the_only_vector_and_refuses_a_single_layer():
    one = np.zeros((2, 3), np.float32)
    one[1] = 5.0
    np.testing.assert_array_equal(shuffled(one, jax.random.key(0)), one[::-1])
    orders = {tuple(shuffled(np.arange(5.0)[:, None], jax.random.key(s))[:, 0]) for s in range(20)}
    assert len(orders) > 5, "the key chooses the cycle"
    with pytest.raises(ValueError, match="a single layer has no other place"):
        shuffled(one[:1], jax.random.key(0))


def test_SV4_random_directions_have_the_norms_and_nothing_else_of_the_vectors():
    vectors_LD = np.random.default_rng(0).normal(size=(4, 400)) * np.array([[0.1], [0.0], [3.0], [1.0]])
    one, other = (random_like(vectors_LD, jax.random.key(s)) for s in (0, 1))
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), np.linalg.norm(vectors_LD, axis=1), rtol=1e-5)
    unit = lambda a: a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-9)  # noqa: E731
    for a, b in ((one, vectors_LD), (one, other), (one, np.roll(one, 1, axis=0))):
        assert np.abs(np.sum(unit(a) * unit(b), axis=1)).max() < 0.2, "directions without relation, 4 sigma"
