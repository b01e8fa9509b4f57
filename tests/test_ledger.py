"""FL-1 to FL-8: the closed form against XLA, and the account."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st

from ceiling.ledger import (
    TRAIN_FACTOR,
    Ledger,
    forward_flops,
    layer_adapter_parameters,
    layer_matmul_parameters,
    sampling_flops,
    train_flops,
)
from ceiling.model import ModelConfig, abstract, forward
from ceiling.model.attention import QUERY_BLOCKS
from ceiling.model.config import PROJECTIONS
from ceiling.model.lora import trainable

checked = settings(max_examples=25, deadline=None)
CONFIG = ModelConfig(vocab_size=64, width=128, ffn=384, layers=4, heads=4, kv_heads=2, head_dim=32)
LOCAL = dataclasses.replace(CONFIG, layers=5, window=7, global_every=2)
ADAPTED = dataclasses.replace(CONFIG, lora_rank=3, lora_targets=("wk", "wo", "w_down"))
CONFIGS = [CONFIG, LOCAL, dataclasses.replace(LOCAL, global_every=0), ADAPTED]


def xla_flops(fn, *args):
    return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("tied", [True, False])
def test_FL1_closed_form_equals_xla_forward_and_three_times_backward(tied):
    """One block of queries executes the full T x T square, so the convention here is causal=False. Layers are
    unrolled (XLA counts a scan's body once) and wide, so that matrix products dominate the element-wise rest."""
    B, T = 2, 32
    config = ModelConfig(vocab_size=512, width=256, ffn=768, layers=2, heads=4, kv_heads=2, head_dim=64, tied=tied,
                         scan_layers=False)  # fmt: skip
    tokens_BT = jax.ShapeDtypeStruct((B, T), jnp.int32)
    closed = forward_flops(config, np.full(B, T), causal=False)
    executed = xla_flops(lambda p, t: forward(p, config, t), abstract(config), tokens_BT)
    assert executed == pytest.approx(closed, rel=0.02)
    step = jax.value_and_grad(lambda p, t: jnp.sum(forward(p, config, t)))
    assert xla_flops(step, abstract(config), tokens_BT) == pytest.approx(TRAIN_FACTOR * closed, rel=0.02)
    assert TRAIN_FACTOR == 3 and train_flops(config, np.full(B, T), causal=False) == TRAIN_FACTOR * closed


LORA_SETS = [PROJECTIONS, ("wv", "w_down")]


def lora_costs(layers, targets, B, T):
    """XLA's FLOPs of forward, and of forward and gradient of the adapters alone; with the closed forms."""
    config = ModelConfig(vocab_size=64, width=256, ffn=768, layers=layers, heads=4, kv_heads=2, head_dim=64,
                         scan_layers=False, lora_rank=32, lora_targets=targets)  # fmt: skip
    rows = traverse_util.flatten_dict(abstract(config), sep="/")
    adapters = {path: rows.pop(path) for path in sorted(trainable(config))}
    lengths, tokens_BT = np.full(B, T), jax.ShapeDtypeStruct((B, T), jnp.int32)

    def loss(adapters, rows, tokens_BT):
        params = traverse_util.unflatten_dict(rows | adapters, sep="/")
        return jnp.sum(forward(params, config, tokens_BT))

    executed = [xla_flops(f, adapters, rows, tokens_BT) for f in (loss, jax.value_and_grad(loss))]
    closed = [f(config, lengths, causal=False) for f in (forward_flops, train_flops)]
    return np.array(executed), np.array(closed)


@pytest.mark.parametrize("targets", LORA_SETS, ids=lambda t: "+".join(t))
def test_FL1_adapters_forward_and_training_equal_xla(targets):
    """One inner layer by difference: unrolled, XLA drops the first layer's gradient of its own input, which
    no adapter needs; a scan executes it and the closed form prices it."""
    three, two = (lora_costs(layers, targets, 2, 32) for layers in (3, 2))
    executed, closed = (a - b for a, b in zip(three, two, strict=True))
    np.testing.assert_allclose(executed, closed, rtol=0.02)


def test_FL1_adapters_cost_what_their_products_cost():
    r = ADAPTED.lora_rank
    assert layer_adapter_parameters(CONFIG) == 0
    assert layer_adapter_parameters(ADAPTED) == r * ((128 + 64) + (128 + 128) + (384 + 128))
    T, L = 33, CONFIG.layers
    adapters = 2 * L * T * layer_adapter_parameters(ADAPTED)
    assert forward_flops(ADAPTED, T) == forward_flops(CONFIG, T) + adapters
    attention = 4 * L * 4 * 32 * T * (T + 1) / 2
    assert train_flops(ADAPTED, T) == 2 * (forward_flops(CONFIG, T) - attention) + 3 * (attention + adapters)
    assert train_flops(CONFIG, [T, T]) == 6 * forward_flops(CONFIG, T)


def test_FL1_attention_term_alone():
    """Doubling T isolates the quadratic term, which a 2 % test of the whole would hide."""
    config = dataclasses.replace(CONFIG, scan_layers=False, layers=1, width=32, ffn=32, heads=4, head_dim=64)
    # elementwise work (mask, softmax) is linear in T^2 too: about 8 per score beside 4 * 64
    shape = lambda T: jax.ShapeDtypeStruct((1, T), jnp.int32)  # noqa: E731
    executed = [xla_flops(lambda p, t: forward(p, config, t), abstract(config), shape(T)) for T in (256, 512)]
    closed = [forward_flops(config, T, causal=False) for T in (256, 512)]
    quadratic = executed[1] - 2 * executed[0]
    looked_at = (1 + 1 / QUERY_BLOCKS) / 2  # of the square: blocks of queries leave out the keys behind their end
    assert quadratic == pytest.approx(looked_at * (closed[1] - 2 * closed[0]), rel=0.06)
    assert closed[1] - 2 * closed[0] == 4 * 4 * 64 * (512**2 - 2 * 256**2)


def by_hand(c, T):
    """Sum over layers, tokens and contexts; one multiply-add is two FLOPs."""
    D, Q, K = c.width, c.heads * c.head_dim, c.kv_heads * c.head_dim
    sizes = {"wk": (D, K), "wo": (Q, D), "w_down": (c.ffn, D)}
    total = 0
    for t in range(1, T + 1):
        for layer in range(1, c.layers + 1):
            total += 2 * c.width * c.heads * c.head_dim * 2  # q, o
            total += 2 * c.width * c.kv_heads * c.head_dim * 2  # k, v
            total += 3 * 2 * c.width * c.ffn
            local = c.window and not (c.global_every and layer % c.global_every == 0)
            keys = min(t, c.window) if local else t
            total += 2 * 2 * c.heads * c.head_dim * keys  # scores and values
            if c.lora_rank:
                total += sum(2 * c.lora_rank * sum(sizes[name]) for name in c.lora_targets)
        total += 2 * c.width * c.vocab_size
    return total


@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "windows", "only windows", "adapters"])
@checked
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5))
def test_forward_equals_the_sum_by_hand_and_adds_over_sequences(config, lengths):
    assert forward_flops(config, lengths) == sum(by_hand(config, T) for T in lengths)


@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "windows", "only windows", "adapters"])
@checked
@given(P=st.integers(1, 40), R=st.integers(0, 30))
def test_FL2_prefill_and_decode_sum_exactly(config, P, R):
    decode = [by_hand(config, t) - by_hand(config, t - 1) for t in range(P + 1, P + R + 1)]
    assert forward_flops(config, P) + sum(decode) == forward_flops(config, P + R)
    last_only = forward_flops(config, P, head_tokens=1)
    assert forward_flops(config, P) - last_only == 2 * config.vocab_size * config.width * (P - 1)


def test_causal_and_full_square_conventions():
    T = 17
    causal, full = forward_flops(CONFIG, T), forward_flops(CONFIG, T, causal=False)
    score = 4 * CONFIG.layers * CONFIG.heads * CONFIG.head_dim
    assert full - causal == score * (T * T - T * (T + 1) / 2)
    assert forward_flops(LOCAL, T, causal=False) == forward_flops(dataclasses.replace(LOCAL, window=0), T, causal=False)


def test_FL3_tied_and_untied_cost_the_same():
    untied = dataclasses.replace(CONFIG, tied=False)
    for T in (1, 33):
        assert forward_flops(untied, T) == forward_flops(CONFIG, T)


def test_FL4_halving_kv_heads_changes_only_their_projections():
    T, half = 33, dataclasses.replace(CONFIG, kv_heads=1)
    saved = forward_flops(CONFIG, T) - forward_flops(half, T)
    assert saved == T * CONFIG.layers * 2 * (2 * CONFIG.width * CONFIG.head_dim * 1)
    assert layer_matmul_parameters(CONFIG) == 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384


@checked
@given(prompts=st.lists(st.integers(1, 20), min_size=1, max_size=4), n=st.integers(1, 4), seed=st.integers(0, 99))
def test_sampling_is_one_prefill_and_a_decode_per_sample(prompts, n, seed):
    lengths_Nn = np.random.default_rng(seed).integers(1, 15, (len(prompts), n))
    expected = 0
    for P, lengths in zip(prompts, lengths_Nn, strict=True):
        expected += by_hand(CONFIG, P) - 2 * CONFIG.width * CONFIG.vocab_size * (P - 1)
        for R in lengths:
            expected += by_hand(CONFIG, P + R) - by_hand(CONFIG, P)
    assert sampling_flops(CONFIG, prompts, lengths_Nn) == expected


def test_FL2_what_tools_wrote_is_run_without_the_head():
    lengths_Nn, drawn_Nn = np.array([[9, 4], [7, 0]]), np.array([[5, 4], [1, 0]])
    saved = 2 * CONFIG.width * CONFIG.vocab_size * int((lengths_Nn - drawn_Nn).sum())
    assert sampling_flops(CONFIG, [3, 8], lengths_Nn, drawn_Nn) == sampling_flops(CONFIG, [3, 8], lengths_Nn) - saved


# --- the account ---------------------------------------------------------------------------------------

charges = st.lists(
    st.tuples(
        st.sampled_from(["rollout", "score", "train", "evaluate", "verify", "host"]),
        st.sampled_from(["policy", "ema", "reference", "teacher"]),
        st.floats(0, 1e18), st.integers(0, 10**9), st.integers(0, 10**9), st.floats(0, 1e5),
    ),
    max_size=12,
)  # fmt: skip


def filled(rows):
    ledger = Ledger()
    for i, (phase, model, flops, tokens, wasted, seconds) in enumerate(rows):
        ledger.charge(phase, model, flops=flops, tokens=tokens, executed_tokens=tokens + wasted, sequences=i,
                      seconds=seconds)  # fmt: skip
        ledger.count(f"verdicts {i % 3}", tokens)
        ledger.expose([i, 2 * i])
    return ledger


@checked
@given(charges)
def test_FL5_json_round_trip_is_lossless(rows):
    ledger = filled(rows)
    again = Ledger.from_json(json.loads(json.dumps(ledger.to_json())))
    assert again.entries == ledger.entries and again.counters == ledger.counters and again.problems == ledger.problems
    assert again.to_json() == ledger.to_json()
    again.charge("train", "policy", flops=1e20)
    assert again.student_flops > ledger.student_flops, "a restored ledger goes on counting"


@checked
@given(charges)
def test_FL5_monotone(rows):
    ledger, before = Ledger(), (0.0, 0.0, 0.0)
    for phase, model, flops, tokens, wasted, seconds in rows:
        ledger.charge(phase, model, flops=flops, tokens=tokens, executed_tokens=tokens + wasted, seconds=seconds)
        now = (ledger.spent("student"), ledger.spent("total"), ledger.teacher_flops)
        assert all(a >= b for a, b in zip(now, before, strict=True))
        before = now


@checked
@given(charges, charges)
def test_FL5_merge_adds(one, two):
    merged, other = filled(one), filled(two)
    untouched = other.to_json()
    merged.merge(other)
    assert other.to_json() == untouched
    for key in merged.entries:
        a, b = filled(one).entries[key], filled(two).entries[key]
        for field in dataclasses.fields(a):
            total = getattr(a, field.name) + getattr(b, field.name)
            assert getattr(merged.entries[key], field.name) == total
    assert merged.counters == filled(one).counters + filled(two).counters
    assert merged.problems == filled(one).problems | filled(two).problems


def test_FL6_executed_and_useful_tokens_are_apart():
    ledger = Ledger()
    ledger.charge("train", "policy", tokens=10, executed_tokens=16, flops=5)
    ledger.charge("train", "policy", tokens=3)
    entry = ledger.entries["train", "policy"]
    assert (entry.tokens, entry.executed_tokens, entry.flops) == (13, 19, 5.0)


@checked
@given(charges)
def test_FL8_sum_over_categories_is_the_total(rows):
    ledger = filled(rows)
    table = ledger.rows()
    student = math.fsum(r["flops"] for r in table if r["student"])
    assert ledger.student_flops == pytest.approx(student, rel=1e-12)
    budget = math.fsum(r["flops"] for r in table if r["phase"] in ("rollout", "score", "train"))
    assert ledger.spent("total") == pytest.approx(budget, rel=1e-12)
    assert ledger.spent("total") == pytest.approx(ledger.student_flops + ledger.teacher_flops, rel=1e-12)
    for what, i in (("flops", 2), ("tokens", 3), ("seconds", 5)):
        assert math.fsum(r[what] for r in table) == pytest.approx(math.fsum(row[i] for row in rows), rel=1e-12)


def test_teacher_is_not_student_work_and_evaluation_is_not_budget():
    ledger = Ledger()
    for model, flops in (("policy", 1), ("ema", 10), ("reference", 100), ("teacher", 1000)):
        ledger.charge("score", model, flops=flops)
        ledger.charge("evaluate", model, flops=7e6)
        ledger.charge("verify", model, flops=7e6)
    assert ledger.spent("student") == ledger.student_flops == 111
    assert ledger.teacher_flops == 1000 and ledger.spent("total") == 1111


def test_problems_are_a_set_and_counters_add():
    ledger = Ledger()
    ledger.expose(np.array([3, 3, 1], np.uint32))
    ledger.expose([1])
    ledger.count("updates")
    ledger.count("updates", np.int64(4))
    assert json.loads(json.dumps(ledger.to_json()))["problems"] == [1, 3]
    assert ledger.counters["updates"] == 5


@pytest.mark.parametrize("field", ["flops", "tokens", "executed_tokens", "sequences", "seconds"])
def test_FL5_a_negative_charge_is_refused_and_changes_nothing(field):
    ledger = Ledger()
    ledger.charge("train", "policy", flops=1, tokens=1)
    before = ledger.to_json()
    with pytest.raises(ValueError, match="negative .* charge to train/policy"):
        ledger.charge("train", "policy", **{field: -1})
    assert ledger.to_json() == before


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_FL5_a_charge_that_is_not_a_number_is_refused(value):
    """NaN FLOPs would make the budget unreachable."""
    with pytest.raises(ValueError, match="non-finite charge to train/policy"):
        Ledger().charge("train", "policy", flops=value)


def test_an_unknown_budget_axis_is_refused():
    with pytest.raises(ValueError, match="studnet"):
        Ledger().spent("studnet")
