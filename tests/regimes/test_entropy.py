"""Where entropy goes and what keeps it: the covariance law (EN-2), Clip-Cov and KL-Cov (EN-3, EN-4), what clipping does
to a policy that is paid at random (SR-3), and entropy as the only signal (OS-1, OS-2)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ceiling
from ceiling.config import ConfigError
from ceiling.model.sequences import Forward
from ceiling.model.transformer import forward
from ceiling.regimes import grpo
from ceiling.regimes.base import Material, Sample
from ceiling.regimes.grpo import remedies
from ceiling.tasks.base import Outcome, Problem, Verdict

LOSS = dict(ratio="token", aggregation="token_mean", clip_low=None, clip_high=None, kl=None, beta=0.0)


def entropy(logits_SV):
    logp_SV = logits_SV - np.log(np.exp(logits_SV).sum(axis=-1, keepdims=True))
    return -(np.exp(logp_SV) * logp_SV).sum(axis=-1)


def test_EN2_one_policy_gradient_step_changes_the_entropy_by_the_covariance_to_first_order():
    """Delta H = -eta Cov_pi(log pi, pi A) per state, for the exact policy gradient on softmax logits: every action is a
    row with its probability in its advantage, and the gradient is that of the real loss at rho = 1."""
    rng = np.random.default_rng(0)
    S, V = 5, 6
    logits_SV = rng.normal(0, 1.5, (S, V))
    pi_SV = np.exp(logits_SV) / np.exp(logits_SV).sum(axis=1, keepdims=True)
    advantage_SV = rng.normal(size=(S, V))
    advantage_SV -= (pi_SV * advantage_SV).sum(axis=1, keepdims=True)  # centred under pi

    def loss(logits):
        logp = jax.nn.log_softmax(logits).reshape(-1, 1)
        total, _, _ = grpo.policy_loss(
            logp, jax.lax.stop_gradient(logp), None, (pi_SV * advantage_SV).reshape(-1), jnp.ones((S * V, 1)), **LOSS
        )
        return total

    step_SV = -np.asarray(jax.grad(loss)(jnp.float32(logits_SV)), np.float64)
    mean = lambda x: (pi_SV * x).sum(axis=1)  # noqa: E731
    logp_SV = np.log(pi_SV)
    predicted_S = -(mean(logp_SV * pi_SV * advantage_SV) - mean(logp_SV) * mean(pi_SV * advantage_SV))
    assert np.abs(predicted_S).min() > 1e-3 and (predicted_S > 0).any() and (predicted_S < 0).any()
    errors = []
    for eta in (1e-2, 1e-3):
        changed_S = entropy(logits_SV + eta * step_SV) - entropy(logits_SV)
        errors.append(np.abs(changed_S / eta - predicted_S).max())
    assert errors[1] < 2e-3 and errors[1] == pytest.approx(errors[0] / 10, rel=0.2), "what is left is of second order"


# --- Clip-Cov and KL-Cov -----------------------------------------------------------------------------------


def settings_of(**overrides):
    return {**ceiling.arm("grpo", prompts_per_step=4, samples_per_prompt=4, **overrides).to_dict(), "max_tokens": 9}


def rollout(seed=0):
    """Log-probs of 16 responses of 1 to 9 tokens, and their advantages."""
    rng = np.random.default_rng(seed)
    logprobs = [-rng.exponential(1.5, n).astype(np.float32) for n in rng.integers(1, 10, 16)]
    return logprobs, rng.normal(0, 1, 16).astype(np.float32)


def covariances(logprobs, advantages):
    """One token at a time, in float64."""
    logp = [float(x) for row in logprobs for x in row]
    advantage = [float(a) for row, a in zip(logprobs, advantages, strict=True) for _ in row]
    n = len(logp)
    return [(x - sum(logp) / n) * (a - sum(advantage) / n) for x, a in zip(logp, advantage, strict=True)]


def test_clip_cov_handles_a_keyed_random_share_of_the_tokens_within_its_range():
    logprobs, advantages = rollout()
    cov = np.array(covariances(logprobs, advantages))
    cfg = settings_of(remedy="clip_cov", cov_share=0.1, cov_low=0.2, cov_high=1.5)
    pick = lambda key: np.concatenate(remedies.choose(logprobs, advantages, cfg, np.random.default_rng(key)))  # noqa: E731
    drawn = [pick([0, step, 44]) for step in range(60)]
    within = (cov >= 0.2) & (cov <= 1.5)
    count = int(0.1 * len(cov))
    assert 2 < count < within.sum() < len(cov)
    assert all(chosen.sum() == count and within[chosen > 0].all() for chosen in drawn)
    np.testing.assert_array_equal(pick([0, 7, 44]), drawn[7], err_msg="a function of the key")
    assert np.array_equal(np.sum(drawn, axis=0) > 0, within), "every token within the range has its turn"
    shapes = [len(x) for x in remedies.choose(logprobs, advantages, cfg, np.random.default_rng(0))]
    assert shapes == [len(x) for x in logprobs]


def test_kl_cov_handles_the_tokens_with_the_largest_covariance_and_at_least_one():
    logprobs, advantages = rollout(1)
    cov = np.array(covariances(logprobs, advantages))
    for share, count in ((0.2, int(0.2 * len(cov))), (1e-9, 1), (1.0, len(cov)), (0.0, 0)):
        cfg = settings_of(remedy="kl_cov", cov_share=share)
        chosen = np.concatenate(remedies.choose(logprobs, advantages, cfg, np.random.default_rng(0)))
        assert set(np.flatnonzero(chosen)) == set(np.argsort(-cov)[:count])


def table(rows, width=9):
    return np.stack([np.pad(row, (0, width - len(row))) for row in rows])


@pytest.fixture(scope="module")
def objective():
    """(loss, gradient) of the real policy loss with given remedy terms, off-policy and clipped."""
    logprobs, advantages = rollout(2)
    mask = table([np.ones(len(x)) for x in logprobs])
    old = table(logprobs).astype(np.float32)
    logp = (old + np.random.default_rng(3).normal(0, 0.3, old.shape) * mask).astype(np.float32)

    def value(logp, detached, anchor):
        total, denom, _ = grpo.policy_loss(
            logp, old, None, advantages, mask, detached_BT=detached, anchor_BT=anchor,
            **{**LOSS, "clip_low": 0.2, "clip_high": 0.28},
        )  # fmt: skip
        return total / denom

    both = jax.jit(jax.value_and_grad(value))
    return logp, old, mask, lambda **given: both(logp, **{"detached": None, "anchor": None, **given})


def test_EN3_without_chosen_tokens_both_are_the_plain_loss_exactly(objective):
    logp, _, mask, run = objective
    plain, gradient = run()
    for given in ({"detached": np.zeros_like(logp)}, {"anchor": np.zeros_like(logp)}):
        value, other = run(**given)
        assert float(value) == float(plain)
        np.testing.assert_array_equal(np.asarray(other), np.asarray(gradient))


def test_EN3_clip_cov_takes_the_gradient_of_the_chosen_tokens_and_of_no_other(objective):
    logp, _, mask, run = objective
    chosen = ((np.random.default_rng(0).random(mask.shape) < 0.3) * mask).astype(np.float32)
    plain, handled = np.asarray(run()[1]), np.asarray(run(detached=chosen)[1])
    assert np.all(handled[chosen > 0] == 0) and np.any(plain[chosen > 0] != 0)
    np.testing.assert_array_equal(handled[chosen == 0], plain[chosen == 0])


def test_EN4_kl_cov_adds_beta_times_the_distance_to_the_sampler_and_nothing_at_ratio_one(objective):
    logp, old, mask, run = objective
    chosen = ((np.random.default_rng(1).random(mask.shape) < 0.3) * mask).astype(np.float32)
    (plain, plain_gradient), (value, gradient) = run(), run(anchor=0.7 * chosen)
    tokens = mask.sum()
    assert float(value - plain) == pytest.approx(0.7 * float((np.abs(logp - old) * chosen).sum()) / tokens, rel=1e-4)
    np.testing.assert_allclose(gradient - plain_gradient, 0.7 * chosen * np.sign(logp - old) / tokens, atol=1e-7)
    at_one = jax.grad(
        lambda x, anchor: grpo.policy_loss(x, old, None, np.ones(16), mask, anchor_BT=anchor, **LOSS)[0]
    )
    np.testing.assert_array_equal(at_one(old, 0.7 * chosen), at_one(old, 0 * chosen))


def material_of(rows, right):
    verdicts = [Verdict(Outcome.RIGHT if r else Outcome.WRONG, "1") for r in right]
    samples = [Sample(np.array([1, 2, 3]), np.arange(len(x)) + 1, x, True, v)
               for x, v in zip(rows, verdicts, strict=True)]  # fmt: skip
    groups = [samples[i : i + 4] for i in range(0, len(samples), 4)]
    return Material(None, [Problem(i, "g", "", "") for i in range(4)], [groups], {}, None, None, key=(5, 9))


@pytest.mark.parametrize("remedy", ["clip_cov", "kl_cov"])
def test_X3_the_choice_is_one_of_the_whole_step_and_reaches_the_loss(remedy, toy):
    """Chosen over all tokens of the rollout and sent with each response: a split into updates cannot change it."""
    logprobs, _ = rollout(4)
    right = np.random.default_rng(2).random(16) < 0.4
    cfg = settings_of(remedy=remedy, cov_share=0.15, cov_low=-9.0, cov_high=9.0, minibatches=2, cov_beta=0.5)
    examples = grpo.examples(material_of(logprobs, right), cfg)
    advantages = [float(e.extra["advantage"]) for e in examples]
    want = remedies.choose(logprobs, advantages, cfg, np.random.default_rng([5, 9, 44]))
    for example, chosen in zip(examples, want, strict=True):
        np.testing.assert_array_equal(example.extra["handled"], [0, 0, 0, *chosen])
    batch = toy.batch_of(examples[::2], max_tokens=12)
    terms = remedies.terms(batch, cfg)
    weight = {"clip_cov": ("detached_BT", 1.0), "kl_cov": ("anchor_BT", 0.5)}[remedy]
    np.testing.assert_allclose(terms[weight[0]], weight[1] * table([[0, 0, 0, *c] for c in want[::2]], 12))
    assert "handled" not in grpo.examples(material_of(logprobs, right), settings_of())[0].extra


# --- random pay (SR-3) -------------------------------------------------------------------------------------

START = np.array([0.55, 0.17, 0.1, 0.07, 0.05, 0.04, 0.02], np.float32)
OFF = 1e9  # a half-width that nothing reaches
CLIPS = {"none": (OFF, OFF), "both": (0.2, 0.2), "low": (0.2, OFF), "high": (OFF, 0.2)}


@functools.partial(jax.jit, static_argnames=("rollouts", "updates"))
def paid_at_random(clips_C2, keys, rollouts=30, updates=8, lr=1.0):
    """(p(mode), entropy) [C, seeds] at the end: 8 groups of 16 actions per rollout, Bernoulli(0.5) pay, std-normalised
    advantages, 8 updates on a share of the samples each, through the real advantages and loss."""

    def rollout(logits, key, clip):
        draw, pay = jax.random.split(key)
        action_N = jax.random.categorical(draw, logits, shape=(128,))
        reward = jax.random.bernoulli(pay, 0.5, (8, 16)).astype(jnp.float32)
        advantage_N = grpo.advantages(reward, kind="group_std").reshape(-1)
        old_N = jax.nn.log_softmax(logits)[action_N]
        shares = jax.tree.map(lambda x: x.reshape(-1, updates).T, (action_N, advantage_N, old_N))

        def update(logits, share):
            action, advantage, old = share

            def loss(logits):
                logp = jax.nn.one_hot(action, 7) @ jax.nn.log_softmax(logits)
                total, denom, _ = grpo.policy_loss(
                    logp[:, None], old[:, None], None, advantage, jnp.ones((len(action), 1)),
                    **{**LOSS, "clip_low": clip[0], "clip_high": clip[1]},
                )  # fmt: skip
                return total / denom

            return logits - lr * jax.grad(loss)(logits), None

        return jax.lax.scan(update, logits, shares)[0], None

    def one(clip, key):
        keys = jax.random.split(key, rollouts)
        logp = jax.nn.log_softmax(jax.lax.scan(lambda x, k: rollout(x, k, clip), jnp.log(START), keys)[0])
        return jnp.exp(logp[0]), -jnp.sum(jnp.exp(logp) * logp)

    return jax.vmap(lambda clip: jax.vmap(lambda key: one(clip, key))(keys))(clips_C2)


def test_SR3_under_random_pay_symmetric_clipping_moves_the_policy_to_its_mode():
    """Sampling noise alone lowers the entropy, each seed to another action; clipping adds a shift to the prior's mode,
    and the side that is clipped decides whether entropy is lost faster or slower."""
    clips = np.array(list(CLIPS.values()), np.float32)
    mode, entropies = jax.device_get(paid_at_random(clips, jax.random.split(jax.random.key(0), 200)))
    error = lambda x: x.std(ddof=1) / np.sqrt(x.size)  # noqa: E731
    mode, entropies = dict(zip(CLIPS, mode, strict=True)), dict(zip(CLIPS, entropies, strict=True))
    assert mode["both"].mean() - START[0] > 3 * error(mode["both"])
    assert mode["none"].mean() - START[0] < 2 * error(mode["none"]), "no systematic shift to it without clipping"
    assert mode["both"].mean() - mode["none"].mean() > 4 * np.hypot(error(mode["both"]), error(mode["none"]))
    for less, more in (("high", "none"), ("none", "low")):
        gap = entropies[more].mean() - entropies[less].mean()
        assert gap > 4 * np.hypot(error(entropies[more]), error(entropies[less])), (less, more)


# --- entropy as the only signal ----------------------------------------------------------------------------


def test_OS1_OS2_OS4_when_every_response_is_paid_alike_only_the_entropy_bonus_moves_the_weights(toy):
    """All right (post-saturation), all wrong, and reward "none": no gradient without a bonus; with one exactly that of
    the masked full-softmax entropy at the sampling temperature."""
    rng = np.random.default_rng(0)
    rows = [-rng.random(n).astype(np.float32) for n in rng.integers(1, 6, 16)]
    build = lambda right, **keys: grpo.examples(material_of(rows, [right] * 16), settings_of(**keys))  # noqa: E731
    advantages = [e.extra["advantage"] for right, keys in ((True, {}), (False, {}), (True, {"reward": "none"}))
                  for e in build(right, **keys)]  # fmt: skip
    assert len(advantages) == 48 and not np.any(advantages)
    examples = build(True)
    batch = toy.batch_of(examples, max_tokens=8)
    tokens = np.stack([np.pad(e.tokens, (0, 8 - len(e.tokens))) for e in examples])

    def loss(params, bonus):
        cfg = settings_of(aggregation="token_mean", temperature=0.7, entropy_bonus=bonus)
        total, denom, metrics = grpo.REGIME.loss(params, batch, {}, Forward(toy.model), cfg)
        return total / denom, metrics["policy_entropy"]

    def mean_entropy(params):
        logp_BTV = jax.nn.log_softmax(forward(params, toy.model, tokens)[:, :-1] / 0.7)
        return jnp.sum(-jnp.sum(jnp.exp(logp_BTV) * logp_BTV, axis=-1) * batch.mask_BT[:, 1:]) / batch.mask_BT.sum()

    @jax.jit
    def gradients(params):
        plain, with_bonus = (jax.grad(lambda p, b=b: loss(p, b), has_aux=True)(params) for b in (0.0, 0.01))
        return plain[0], with_bonus, jax.value_and_grad(mean_entropy)(params)

    plain, (with_bonus, (entropy_sum, entropy_tokens)), (want, entropy_gradient) = gradients(toy.params)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(plain))
    assert float(entropy_sum / entropy_tokens) == pytest.approx(float(want), rel=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -0.01 * b, rtol=1e-3, atol=1e-7), with_bonus,
                 entropy_gradient)  # fmt: skip
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(with_bonus)) > 1e-4


@pytest.mark.parametrize("overrides, key", [
    (dict(remedy="kl_cov"), "remedy=kl_cov"),
    (dict(remedy="clip_cov", cov_low=6.0), "cov_low=6"),
    (dict(advantage="pass_at_k", pass_k=8), "pass_k=8"),
    (dict(reward="none", drop_uninformative=True), "drop_uninformative=True"),
    (dict(reward="random", gamma=1.0, drop_uninformative=True), "drop_uninformative=True"),
    (dict(reset_every=10), "reset_every=10"),
    (dict(remedy="entropy"), "remedy='entropy'"),
], ids=lambda x: x if isinstance(x, str) else "")  # fmt: skip
def test_settings_that_do_nothing_together_are_refused_by_their_key(overrides, key):
    config = ceiling.defaults("lab", arms={"a": ceiling.arm("grpo", samples_per_prompt=8, **overrides)})
    with pytest.raises(ConfigError, match=f"^config.arms.a.{key}"):
        ceiling.validate(config)
