"""RLP, equation by equation, and its invariants RL-1 to RL-11, on tiny models and a toy task."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceiling.config import ConfigError
from ceiling.model.sequences import Forward
from ceiling.regimes import grpo, rlp
from ceiling.regimes.base import Material, Sample
from ceiling.rollout.scoring import score
from ceiling.tasks.base import Passage, Problem

checked = settings(max_examples=20, deadline=None)


@pytest.fixture(scope="module")
def step(toy):
    """One real step: (cfg, material, examples)."""
    cfg = toy.arm("rlp", max_thought_tokens=6, temperature=0.7, samples_per_prompt=3)
    cfg["max_tokens"] = 6
    return cfg, *toy.gather(rlp.REGIME, cfg, toy.task, toy.model, toy.params, toy.models)


def flat(material):
    return [s for group in material.samples[0] for s in group]


def continuation_logprobs(toy, params, heads, continuations):
    """Per text: log p of the continuation's tokens, from the plain forward pass."""
    texts = [np.concatenate([h, c]) for h, c in zip(heads, continuations, strict=True)]
    out = toy.slow_logprobs(params, toy.model, texts)
    return [lp[len(h) - 1 :] for h, (_, lp) in zip(heads, out, strict=True)]


def by_hand(toy, cfg, material):
    """Equations (2) and (3) written out: r f32[N, G]."""
    encode, task, n = material.encode, toy.task, cfg["scored_tokens"] or None
    passages = [task.passage(p) for p in material.problems]
    heads, tails = [], []
    for passage, group in zip(passages, material.samples[0], strict=True):
        for s in group:
            assert s.stopped == (s.tokens[-1] == encode(passage.stop)[0])
            cut = np.zeros(0, int) if s.stopped else encode(passage.stop)
            heads.append(np.concatenate([encode(passage.context), s.tokens, cut, encode(passage.bridge)]))
            tails.append(encode(passage.continuation)[:n])
    S_pred = continuation_logprobs(toy, toy.params, heads, tails)
    empty = [encode(p.context + (p.empty if cfg["baseline"] == "wrapped" else p.stop + p.bridge)) for p in passages]
    S_ema = continuation_logprobs(toy, toy.models["ema"], empty, [encode(p.continuation)[:n] for p in passages])
    f, V = cfg["floor"], task.tokenizer.vocab_size
    total = lambda lp: np.sum(np.log((1 - f) * np.exp(lp.astype(float)) + f / V))  # noqa: E731
    S_pred = np.reshape([total(lp) for lp in S_pred], (len(passages), -1))
    return S_pred - np.array([total(lp) for lp in S_ema])[:, None]


@pytest.mark.parametrize("overrides", [
    {}, {"baseline": "raw"}, {"scored_tokens": 1}, {"floor": 0.4, "scored_tokens": 2, "baseline": "raw"},
], ids=str)  # fmt: skip
def test_equations_2_and_3_information_gain_of_real_thoughts(overrides, toy, step):
    cfg, material, _ = step
    cfg = {**cfg, **overrides}
    requests = rlp.scores(material, cfg)
    assert {k: (r.model, r.temperature) for k, r in requests.items()} == {
        "with_thought": ("policy", 1.0), "without": ("ema", 1.0)
    }  # fmt: skip
    models = {"policy": toy.params, **toy.models}
    scores = {
        k: score(models[r.model], toy.model, r.examples, max_tokens=96, temperature=r.temperature)[0]
        for k, r in requests.items()
    }
    got = rlp.gains(dataclasses.replace(material, scores=scores), cfg)
    assert got.shape == (4, 3)
    np.testing.assert_allclose(got, by_hand(toy, cfg, material), rtol=1e-4, atol=1e-4)


def test_some_thoughts_stop_and_some_are_cut(step):
    stopped = [s.stopped for s in flat(step[1])]
    assert 0 < sum(stopped) < len(stopped), "both closings must be exercised by this file"
    assert all(1 <= len(s.tokens) <= 6 and s.verdict is None for s in flat(step[1]))


def test_equation_4_and_RL7_advantages_are_leave_one_out(step):
    cfg, material, examples = step
    gain = rlp.gains(material, cfg).astype(float)
    want = [r - np.delete(row, j).mean() for row in gain for j, r in enumerate(row)]
    np.testing.assert_allclose([e.extra["advantage"] for e in examples], want, rtol=1e-4, atol=1e-5)
    assert np.abs(want).max() > 0.1


@pytest.mark.parametrize("updates", [1, 2], ids=["on-policy", "off-policy"])
def test_equation_5_loss_written_out(updates, toy, step):
    """Thought tokens only, at the sampling temperature, mean over |c_i|, then over B * G."""
    cfg, material, examples = step
    cfg = {**cfg, "minibatches": updates, "clip_low": 0.1, "clip_high": 0.2}
    rng = np.random.default_rng(0)
    thoughts = flat(material)
    behaviour = [(s.logprobs + rng.normal(0, 0.2, len(s.tokens))).astype(np.float32) for s in thoughts]
    for e, b in zip(examples, behaviour, strict=True):
        e = e.extra
        e["behaviour"] = np.concatenate([np.zeros(len(e["behaviour"]) - len(b), np.float32), b])
    texts = [np.concatenate([s.prompt, s.tokens]) for s in thoughts]
    logp = [
        lp[len(s.prompt) - 1 :]
        for s, (_, lp) in zip(thoughts, toy.slow_logprobs(toy.params, toy.model, texts, 0.7), strict=True)
    ]
    total = 0.0
    for e, lp, old in zip(examples, logp, behaviour, strict=True):
        A, row = e.extra["advantage"], []
        for u in range(len(lp)):
            rho = np.exp(lp[u] - old[u]) if updates == 2 else 1.0
            row.append(min(rho * A, np.clip(rho, 0.9, 1.2) * A))
        total -= sum(row) / len(lp)
    batch = toy.batch_of(examples, sequences=13, max_tokens=20, row_tokens=40)
    got, denom, metrics = rlp.REGIME.loss(toy.params, batch, {}, Forward(toy.model), cfg)
    assert float(denom) == len(thoughts) == 12
    assert float(got / denom) == pytest.approx(total / 12, rel=1e-3, abs=1e-4)
    clipped = float(metrics["clip_low_share"][0] + metrics["clip_high_share"][0])
    assert (clipped > 0) == (updates == 2)


def test_RL5_context_and_continuation_carry_no_loss(toy, step):
    _, material, examples = step
    for s, e in zip(flat(material), examples, strict=True):
        np.testing.assert_array_equal(e.tokens, np.concatenate([s.prompt, s.tokens]), "no continuation in the example")
        np.testing.assert_array_equal(e.mask, np.arange(len(e.tokens)) >= len(s.prompt))


@checked
@given(decay=st.floats(0, 1), k=st.integers(0, 30), seed=st.integers(0, 10**6))
def test_equation_6_and_RL6_closed_form_of_the_slow_copy(decay, k, seed):
    rng = np.random.default_rng(seed)
    start, params = ({"a": rng.normal(size=3), "b": {"c": rng.normal(size=(2, 2))}} for _ in range(2))
    slow = start
    for _ in range(k):
        slow = rlp.ema(slow, params, decay)
    jax.tree.map(
        lambda s, s0, p: np.testing.assert_allclose(s, decay**k * s0 + (1 - decay**k) * p, atol=1e-9),
        slow,
        start,
        params,
    )


def test_the_slow_copy_starts_as_its_own_copy_of_the_policy(toy):
    aux = rlp.REGIME.init_aux(toy.params, toy.arm("rlp"))
    jax.tree.map(np.testing.assert_array_equal, aux, toy.params)
    assert not {id(x) for x in jax.tree.leaves(aux)} & {id(x) for x in jax.tree.leaves(toy.params)}, (
        "the step donates both"
    )
    after = rlp.REGIME.after_update(aux, toy.models["teacher"], toy.arm("rlp", ema_decay=0.75))
    jax.tree.map(lambda a, p, t: np.testing.assert_allclose(a, 0.75 * p + 0.25 * t, rtol=1e-5, atol=1e-6),
                 after, toy.params, toy.models["teacher"])  # fmt: skip


def material_of(toy, thoughts, rng=None):
    """Material with given thought texts (one group per problem), all ended by the stop token if it is there."""
    problems = toy.task.training({}, len(thoughts))
    encode = lambda text: np.asarray(toy.task.tokenizer.encode(text), np.int32)  # noqa: E731
    groups = [
        [
            Sample(
                encode(toy.task.passage(p).context), encode(t), np.full(len(t), -1, np.float32), t.endswith("#"), None
            )
            for t in ts
        ]
        for p, ts in zip(problems, thoughts, strict=True)
    ]
    return Material(toy.task, problems, [groups], {}, None, rng)


def real_gains(toy, cfg, material, params, slow):
    models = {"policy": params, "ema": slow}
    material.scores = {
        k: score(models[r.model], toy.model, r.examples, max_tokens=96)[0] for k, r in rlp.scores(material, cfg).items()
    }
    return rlp.gains(material, cfg)


def test_RL1_empty_thought_without_a_wrapper_gains_nothing(toy):
    cfg = toy.arm("rlp", baseline="raw")
    gain = real_gains(toy, cfg, material_of(toy, [["#", "#"], ["#", "#"]]), toy.params, toy.params)
    np.testing.assert_allclose(gain, 0, atol=2e-6)  # the last bit of a sum of four log-probs, by row of the batch
    floored = real_gains(toy, {**cfg, "floor": 0.3}, material_of(toy, [["#", "#"]]), toy.params, toy.params)
    np.testing.assert_allclose(floored, 0, atol=2e-6)


def test_RL1_a_predictor_that_ignores_the_thought_gains_nothing(toy):
    """Without attention a prediction depends on the last token alone, and that is the bridge in every case."""
    blind = {**toy.params, "layers": {**toy.params["layers"], "wo": np.zeros_like(toy.params["layers"]["wo"])}}
    for baseline in ("raw", "wrapped"):
        cfg = toy.arm("rlp", baseline=baseline)
        gain = real_gains(toy, cfg, material_of(toy, [["abc#", "1234", "#"]]), blind, blind)
        np.testing.assert_allclose(gain, 0, atol=1e-5)


def test_RL2_an_empty_wrapper_gains_the_wrapper_shift_and_nothing_else(toy):
    thoughts = [[".#", ".#"], [".#", ".#"]]  # the shortest wrapped non-thought of the toy task
    wrapped = real_gains(toy, toy.arm("rlp", baseline="wrapped"), material_of(toy, thoughts), toy.params, toy.params)
    np.testing.assert_allclose(wrapped, 0, atol=2e-6)
    material = material_of(toy, thoughts)
    raw = real_gains(toy, toy.arm("rlp", baseline="raw"), material, toy.params, toy.params)
    passages, encode = [toy.task.passage(p) for p in material.problems], material.encode
    tails = [encode(p.continuation) for p in passages]
    shift = [
        continuation_logprobs(toy, toy.params, [encode(p.context + middle) for p in passages], tails)
        for middle in (".#:", "#:")
    ]
    want = [a.sum() - b.sum() for a, b in zip(*shift, strict=True)]
    np.testing.assert_allclose(raw, np.repeat(np.array(want)[:, None], 2, axis=1), rtol=1e-4, atol=1e-5)
    assert np.abs(raw).max() > 0.01, "there is a shift to measure"


def test_RL3_identical_thoughts_have_zero_advantage(toy):
    cfg = toy.arm("rlp")
    material = material_of(toy, [["ab#", "ab#", "ab#"], ["12", "12", "12"]])
    gain = real_gains(toy, cfg, material, toy.params, toy.models["ema"])
    assert np.abs(gain).max() > 0.01
    np.testing.assert_allclose([e.extra["advantage"] for e in rlp.examples(material, cfg)], 0, atol=5e-6)
    lp = material.scores["with_thought"]
    material.scores["with_thought"] = [lp[0]] * 3 + [lp[3]] * 3  # the last bit may depend on the row of a batch
    assert all(e.extra["advantage"] == 0 for e in rlp.examples(material, cfg))


def test_RL4_no_gradient_through_the_information_gain():
    gradient = jax.grad(lambda a, b: jnp.sum(rlp.information_gain(a, b) ** 2), argnums=(0, 1))(
        jnp.ones(3), jnp.zeros(3)
    )
    assert all(np.all(np.asarray(g) == 0) for g in gradient)
    np.testing.assert_array_equal(rlp.information_gain(jnp.array([1.0, -2.0]), jnp.array([0.5, 1.0])), [0.5, -3.0])


def test_RL4_the_gradient_is_the_policy_gradient_alone(toy, step):
    """With S_pred and S_ema recomputed from the same parameters inside the differentiated function, the gradient
    equals the one with advantages as data, and both equal the written-out policy gradient."""
    cfg, material, examples = step
    f, requests = Forward(toy.model), rlp.scores(material, cfg)
    batch = toy.batch_of(examples, max_tokens=20)
    scored = toy.batch_of(requests["with_thought"].examples, max_tokens=24)
    without = toy.batch_of(requests["without"].examples, max_tokens=24)
    G = cfg["samples_per_prompt"]

    @jax.jit
    def gradients(params):
        def advantages(params):
            S_pred = jnp.sum(f.logprobs(params, scored)[0] * scored.mask_BT, axis=1).reshape(-1, G)
            S_ema = jnp.sum(f.logprobs(params, without)[0] * without.mask_BT, axis=1)
            return grpo.advantages(rlp.information_gain(S_pred, S_ema[:, None]), kind="leave_one_out").reshape(-1)

        def inside(params):
            extra = {**batch.extra, "advantage": advantages(params)}
            total, denom, _ = rlp.loss(params, batch.replace(extra=extra), {}, f, cfg)
            return total / denom

        def policy_gradient(params, A):
            logp_BT, _ = f.logprobs(params, batch, temperature=cfg["temperature"])
            per_thought = jnp.sum(logp_BT * batch.mask_BT, axis=1) / jnp.sum(batch.mask_BT, axis=1)
            return -jnp.mean(A * per_thought)

        return jax.grad(inside)(params), jax.grad(policy_gradient)(params, advantages(params))

    a, b = gradients(toy.params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-5), a, b)
    assert max(float(np.abs(x).max()) for x in jax.tree.leaves(a)) > 1e-3


def test_RL8_a_thought_that_states_the_answer_gains_and_is_reinforced(toy):
    """A copy model scores the continuation; one gradient step of the real loss on the real policy."""
    first = [p.answer[0] for p in toy.task.training({}, 2)]
    thoughts = [[f"{first[0]}#", "1#", "2#", "3#"], ["4#", "5#", f"{first[1]}#", "6#"]]
    material = material_of(toy, thoughts)
    cfg = toy.arm("rlp", samples_per_prompt=4, scored_tokens=1)
    stated = [[p.answer[0] == t[0] for t in ts] for p, ts in zip(material.problems, thoughts, strict=True)]
    assert np.array_equal(stated, [[1, 0, 0, 0], [0, 0, 1, 0]])
    material.scores = {
        "with_thought": [np.log([0.9 if s else 0.01], dtype=np.float32) for row in stated for s in row],
        "without": [np.log([0.1], dtype=np.float32)] * 2,
    }
    gain = rlp.gains(material, cfg)
    np.testing.assert_array_equal(gain > 0, stated)
    examples = rlp.examples(material, cfg)
    batch, f = toy.batch_of(examples), Forward(toy.model)
    gradient = jax.jit(jax.grad(lambda p: rlp.loss(p, batch, {}, f, {**cfg, "max_tokens": 2})[0]))(toy.params)
    stepped = jax.tree.map(lambda p, g: p - 0.01 * g, toy.params, gradient)
    texts = [np.concatenate([s.prompt, s.tokens]) for s in flat(material)]
    before, after = (
        np.array([lp[len(s.prompt) - 1 :].sum() for s, (_, lp) in zip(
            flat(material), toy.slow_logprobs(p, toy.model, texts), strict=True)]) for p in (toy.params, stepped)
    )  # fmt: skip
    good = np.ravel(stated)
    assert np.all(after[good] > before[good])


def test_RL9_a_constant_in_the_baseline_changes_no_gradient(toy, step):
    cfg, material, _ = step
    constants = (3.0, -2.0, 0.5, 10.0)
    moved = [lp + np.float32(c) for lp, c in zip(material.scores["without"], constants, strict=True)]
    shifted = dataclasses.replace(material, scores={**material.scores, "without": moved})
    f = Forward(toy.model)
    loss = jax.jit(jax.grad(lambda p, b: rlp.loss(p, b, {}, f, cfg)[0]))
    a, b = (loss(toy.params, toy.batch_of(rlp.examples(m, cfg), max_tokens=20)) for m in (material, shifted))
    assert not np.allclose(rlp.gains(material, cfg), rlp.gains(shifted, cfg))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), a, b)


def test_RL10_only_real_text_after_a_context_is_scored(toy, step):
    cfg, material, _ = step
    for scored_tokens in (0, 1, 2):
        requests = rlp.scores(material, {**cfg, "scored_tokens": scored_tokens})
        passages = [toy.task.passage(p) for p in material.problems]
        for name, repeat in (("with_thought", 3), ("without", 1)):
            owners = [p for p in passages for _ in range(repeat)]
            for passage, e in zip(owners, requests[name].examples, strict=True):
                at = np.flatnonzero(e.mask)
                want = material.encode(passage.continuation)[: scored_tokens or None]
                assert at.min() >= 1 and np.array_equal(e.tokens[at], want) and np.all(want != 0)
                assert np.array_equal(e.tokens[: len(passage.context)], material.encode(passage.context))


@checked
@given(seed=st.integers(0, 10**6))
def test_RL11_expected_gain_is_the_cross_entropy_difference_on_tables(seed):
    rng = np.random.default_rng(seed)
    truth, with_thought, without = rng.dirichlet(np.ones(6), 3)
    expected = float(np.sum(truth * np.asarray(rlp.information_gain(np.log(with_thought), np.log(without)))))
    cross_entropy = lambda q: -np.sum(truth * np.log(q))  # noqa: E731
    assert expected == pytest.approx(cross_entropy(without) - cross_entropy(with_thought), rel=1e-4, abs=1e-4)


def test_RL11_expected_gain_of_the_real_model_over_every_next_token(toy):
    """The same identity through scores and gains: one problem per possible next token, equal thoughts."""
    symbols = toy.task.tokenizer.symbols

    class NextToken(type(toy.task)):
        def passage(self, problem):
            return Passage("abc=", stop="#", bridge=":", continuation=problem.answer, empty=".#:")

    task, encode = NextToken(), lambda text: np.asarray(toy.task.tokenizer.encode(text), np.int32)
    thoughts = ("12#", "c#")
    group = [Sample(encode("abc="), encode(t), np.zeros(len(t), np.float32), True, None) for t in thoughts]
    material = Material(
        task, [Problem(i, "g", "abc=", x) for i, x in enumerate(symbols)], [[group] * len(symbols)], {}, None, None
    )
    gain = real_gains(toy, toy.arm("rlp", baseline="raw"), material, toy.params, toy.models["ema"])  # [V - 1, 2]
    truth = np.random.default_rng(0).dirichlet(np.ones(len(symbols)))
    last = lambda p, text: toy.slow_logprobs(p, toy.model, [encode(text + "a")])[0][0][-1][1:]  # noqa: E731
    for j, t in enumerate(thoughts):
        CE = [-(truth * q).sum() for q in (last(toy.models["ema"], "abc=#:"), last(toy.params, f"abc={t}:"))]
        assert float((truth * gain[:, j]).sum()) == pytest.approx(CE[0] - CE[1], rel=1e-3, abs=1e-4)


@checked
@given(logp=st.floats(-200, 0), f=st.floats(1e-3, 0.5))
def test_floor_bounds_the_cost_of_a_token(logp, f):
    got = float(rlp.floored(np.float64(logp), f, 28))
    assert got == pytest.approx(np.log((1 - f) * np.exp(logp) + f / 28), abs=1e-9)
    assert np.log(f / 28) - 1e-9 <= got <= 1e-9
    assert rlp.floored(np.float64(logp), 0.0, 28) == logp


def test_rounds_ask_for_unjudged_thoughts_and_refuse_what_cannot_fit(toy):
    cfg = toy.arm("rlp", max_thought_tokens=66)  # 66 + len("#:" + "xyz$") = 72, the task's longest response
    (round_,) = rlp.rounds(cfg, toy.task, None)
    assert (round_.model, round_.n, round_.max_tokens, round_.stop, round_.judged) == ("policy", 4, 66, "#", False)
    with pytest.raises(ConfigError, match="lower it to 66"):
        rlp.rounds(toy.arm("rlp", max_thought_tokens=67), toy.task, None)
    assert rlp.REGIME.reads(cfg) == ("text",) and rlp.REGIME.frozen(cfg) == ()


def test_metrics_describe_the_thoughts(step):
    cfg, material, _ = step
    gain, lengths = rlp.gains(material, cfg), np.array([len(s.tokens) for s in flat(material)])
    got = rlp.metrics(material, cfg)
    assert got["information_gain_nats"] == pytest.approx(gain.mean(), rel=1e-5)
    assert got["helpful_thoughts"] == (gain > 0).mean() and got["thought_tokens"] == lengths.mean()
    assert got["short_thoughts"] == (lengths <= 2).mean()
