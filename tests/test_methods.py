"""docs/methods.md against the code: every equation names a public function that the reference describes, and every
function that the page names computes what the page says, worked out here in NumPy from the page's formula."""

import importlib
import itertools
import math
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats

from ceiling import ledger
from ceiling.evals import diversity, entropy_law, passk, recovery, verdicts
from ceiling.evals import stats as intervals
from ceiling.model import sae, steering
from ceiling.model.config import ModelConfig
from ceiling.model.logprobs import log_softmax_at
from ceiling.model.policy import Policy
from ceiling.regimes import base, critique_grpo, distill, early_experience, grpo, rlp
from ceiling.regimes.grpo import remedies
from ceiling.rollout import decoding, scoring
from ceiling.tasks import rewards
from ceiling.tasks.base import Outcome, Verdict
from ceiling.train import optim
from ceiling.train.loop import Budget
from ceiling.train.step import init_state, make_step

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "methods.md").read_text()
NAMES = sorted(set(re.findall(r"`(ceiling\.[\w.]+)`", PAGE)))
CHECKS = {}
RNG = np.random.default_rng(3)
MASK_BT = np.array([[0, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]], np.float32)  # the last row has no token
LOGP_BT, OLD_BT, REF_BT = (-RNG.uniform(0.1, 2, MASK_BT.shape).astype(np.float32) for _ in range(3))
ADVANTAGE_B = np.array([0.7, -1.3, 5.0], np.float32)
SETTINGS = dict(temperature=1.0, minibatches=2, epochs=1, ratio="token", aggregation="sequence_mean_token_mean",
                clip_low=0.2, clip_high=0.28, max_tokens=7, entropy_bonus=0.0)  # fmt: skip


def equation(name):
    """Registers the check of one name of the page."""
    return lambda check: CHECKS.setdefault(name, check)


def close(value, expected, **tolerance):
    np.testing.assert_allclose(np.asarray(value), expected, **{"rtol": 2e-5, "atol": 1e-6, **tolerance})


def batch(**extra):
    extra = {"behaviour": OLD_BT, "advantage": ADVANTAGE_B, **extra}
    return types.SimpleNamespace(mask_BT=jnp.asarray(MASK_BT), extra={k: jnp.asarray(v) for k, v in extra.items()})


class Forward:
    """A model that always says LOGP_BT, with the entropy of its square."""

    def logprobs(self, params, batch, *, temperature=1.0, entropy=False):
        return jnp.asarray(LOGP_BT) + params, jnp.square(LOGP_BT)


def sample(outcome=Outcome.WRONG, logprobs=(-1.0,), **fields):
    logprobs = np.array(logprobs, np.float32)
    return base.Sample(np.array([1]), np.arange(len(logprobs)), logprobs, True, Verdict(outcome, "x"), **fields)


def surrogate(rho_BT, low, high):
    """The page's minimum, of every token."""
    return np.minimum(rho_BT * ADVANTAGE_B[:, None], np.clip(rho_BT, 1 - low, 1 + high) * ADVANTAGE_B[:, None])


def of_rows(value_BT):
    """sequence_mean_token_mean over the two rows that have tokens."""
    return np.mean([(value_BT[b] * MASK_BT[b]).sum() / MASK_BT[b].sum() for b in range(2)])


def comb_passk(n, c, k):
    return 1 - math.comb(n - c, k) / math.comb(n, k)


# --- the page ------------------------------------------------------------------------------------------------------


def test_every_equation_is_followed_by_the_function_that_computes_it():
    ends = [found.end() for found in re.finditer(r"```math\n.*?```", PAGE, re.S)]
    sections = [re.split(r"^##+ ", PAGE[end:], flags=re.M)[0] for end in ends]
    assert len(sections) > 30 and all("`ceiling." in section for section in sections)


def test_the_invariants_that_the_source_names_are_on_the_page():
    pattern = r"\b(?:X|GR|OS|RL|CG|EE|SV|BO|EN|KD|FL|CP|CD|CF)-\d+\b"
    source = "\n".join(path.read_text() for path in (DOCS.parent / "ceiling").rglob("*.py"))
    assert set(re.findall(pattern, source)) == set(re.findall(rf"^\| ({pattern}) \|", PAGE, re.M))


@pytest.mark.parametrize("name", NAMES)
def test_a_named_function_exists_is_public_and_is_in_the_reference(name):
    *path, last = name.split(".")
    assert not any(part.startswith("_") for part in [*path, last])
    reference = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    if path[-1][0].isupper():  # a method: of a class that is described with its members
        found, name = getattr(getattr(importlib.import_module(".".join(path[:-1])), path[-1]), last), ".".join(path)
    else:
        found = getattr(importlib.import_module(".".join(path)), last)
    assert callable(found) and re.search(rf":: {re.escape(name)}$", reference, re.M)


@pytest.mark.parametrize("name", NAMES)
def test_the_function_computes_the_equation(name):
    CHECKS[name]()


def test_nothing_is_checked_that_the_page_does_not_name():
    assert set(CHECKS) == set(NAMES)


# --- training ------------------------------------------------------------------------------------------------------


@equation("ceiling.model.logprobs.log_softmax_at")
def _():
    z = np.array([0.3, -1.0, 2.0])
    close(log_softmax_at(z, 0.7), z / 0.7 - np.log(np.exp(z / 0.7).sum()))


@equation("ceiling.train.step.make_step")
def _():
    x = np.array([1.0, 2.0, 4.0, 8.0], np.float32)  # micro-batches of 3 tokens and of 1
    mask = np.array([[1, 1, 1, 0], [0, 0, 0, 1]], np.float32)
    step = make_step(lambda p, m, frozen: (jnp.sum(p["w"] ** 2 * x * m), jnp.sum(m), {}), optax.identity())
    params = {"w": jnp.float32(0.5)}
    state, metrics = step(init_state(params, optax.identity()), jnp.asarray(mask), {}, jnp.float32(1e-2))
    close(metrics["grad_norm"], 2 * 0.5 * x.sum() / mask.sum())
    close(state.params["w"], 0.5 - 1e-2 * x.sum() / mask.sum())


@equation("ceiling.train.optim.learning_rate")
def _():
    cfg = dict(lr=2.0, warmup=0.1, final_lr=0.25, schedule="cosine")
    for u in (0.0, 0.05, 0.1, 0.4, 1.0):
        s = (u - 0.1) / 0.9
        expected = 2 * (u + 1e-3) / (0.1 + 1e-3) if u < 0.1 else 2 * (0.25 + 0.75 * (1 + math.cos(math.pi * s)) / 2)
        close(optim.learning_rate(cfg, u), expected)


@equation("ceiling.regimes.base.negative_log_likelihood")
def likelihood(loss=lambda: base.negative_log_likelihood(0.0, batch(), Forward())):
    total, denominator, _ = loss()
    close(total / denominator, -(MASK_BT * LOGP_BT).sum() / MASK_BT.sum())


@equation("ceiling.regimes.early_experience.loss")
def _():
    likelihood(lambda: early_experience.loss(0.0, batch(), {}, Forward(), {}))


def token_divergences(beta, temperature=0.8):
    logits = RNG.normal(size=(2, 2, 3, 5)).astype(np.float32)  # student, teacher; [B, T, V]
    s, t = special.softmax(logits.astype(float) / temperature, axis=-1)
    m = (1 - beta) * s + beta * t
    kl = lambda p, q: np.sum(p * np.log(p / q), axis=-1)  # noqa: E731
    return logits, {0.0: kl(t, s), 1.0: kl(s, t)}.get(beta, beta * kl(t, m) + (1 - beta) * kl(s, m))


@equation("ceiling.regimes.distill.token_divergence")
def _():
    for beta in (0.0, 0.3, 1.0):
        logits, expected = token_divergences(beta)
        close(distill.token_divergence(*logits, beta, 0.8), expected)


@equation("ceiling.regimes.distill.divergence")
def _():
    logits, per_token = token_divergences(0.5)
    mask = np.array([[1, 1, 0], [0, 1, 0]], np.float32)
    total, tokens = distill.divergence(*logits, jnp.asarray(mask), beta=0.5, temperature=0.8)
    close(total / tokens, (per_token * mask).sum() / mask.sum())


# --- policy gradients ----------------------------------------------------------------------------------------------


@equation("ceiling.regimes.grpo.advantages")
def _():
    R = np.array([[0.0, 1.0, 0.25, 1.0], [2.0, 0.5, 0.0, 0.1]])
    mean, G = R.mean(axis=1, keepdims=True), R.shape[1]
    s = np.sqrt(np.sum((R - mean) ** 2, axis=1, keepdims=True) / (G - 1))
    others = (R.sum(axis=1, keepdims=True) - R) / (G - 1)
    best = np.array([[0.0, 0.0, 0, 0], [1.5, 0, 0, 0]])  # of two equal best ones the distance is 0
    for kind, expected in [("group_std", (R - mean) / (s + 1e-4)), ("group_mean", R - mean),
                           ("leave_one_out", R - others), ("best_of_group", best),
                           ("batch_whitened", (R - R.mean()) / (R.std(ddof=1) + 1e-4))]:  # fmt: skip
        close(grpo.advantages(R, kind=kind), expected)
    subsets = list(itertools.combinations(range(G), 2))
    for row, found in zip(R, np.asarray(grpo.advantages(R, kind="pass_at_k", pass_k=2)), strict=True):
        mean_of = lambda chosen, row=row: np.mean([max(row[list(subset)]) for subset in chosen])  # noqa: E731
        having = [[subset for subset in subsets if i in subset] for i in range(G)]
        others = [[subset for subset in subsets if i not in subset] for i in range(G)]
        close(found, [2 * (mean_of(own) - mean_of(rest)) for own, rest in zip(having, others, strict=True)])


@equation("ceiling.regimes.grpo.policy_loss")
def _():
    diff = LOGP_BT - OLD_BT
    sequence = np.exp((diff * MASK_BT).sum(axis=1) / np.maximum(MASK_BT.sum(axis=1), 1))[:, None]
    kappa = np.exp(REF_BT - LOGP_BT) - 1 - (REF_BT - LOGP_BT)
    for ratio, rho in (("token", np.exp(diff)), ("sequence", np.broadcast_to(sequence, diff.shape))):
        total, rows, _ = grpo.policy_loss(
            LOGP_BT, OLD_BT, REF_BT, ADVANTAGE_B, MASK_BT, ratio=ratio, aggregation="sequence_mean_token_mean",
            clip_low=0.2, clip_high=0.28, kl="k3", beta=0.1,
        )  # fmt: skip
        close(total / rows, of_rows(-surrogate(rho, 0.2, 0.28) + 0.1 * kappa))


@equation("ceiling.regimes.grpo.kl_estimate")
def _():
    delta = REF_BT - LOGP_BT
    for kind, expected in (("k1", -delta), ("k2", delta**2 / 2), ("k3", np.exp(delta) - 1 - delta)):
        close(grpo.kl_estimate(LOGP_BT, REF_BT, kind), expected)


@equation("ceiling.regimes.grpo.aggregate")
def _():
    masked, B = LOGP_BT * MASK_BT, 2
    for how, expected in [("sequence_mean_token_mean", of_rows(LOGP_BT)), ("token_mean", masked.sum() / MASK_BT.sum()),
                          ("constant", masked.sum() / (B * 7))]:  # fmt: skip
        total, denominator = grpo.aggregate(LOGP_BT, jnp.asarray(MASK_BT), how, 7)
        close(total / denominator, expected)


@equation("ceiling.regimes.grpo.surrogate_from_batch")
def _():
    rho = np.exp(LOGP_BT - OLD_BT)
    expected = of_rows(-surrogate(rho, 0.2, 0.28) - 0.3 * LOGP_BT**2)
    total, rows, metrics = grpo.surrogate_from_batch(0.0, batch(), Forward(), {**SETTINGS, "entropy_bonus": 0.3})
    close(total / rows, expected)
    on_policy = grpo.surrogate_from_batch(0.0, batch(), Forward(), {**SETTINGS, "minibatches": 1})
    close(on_policy[0] / on_policy[1], -ADVANTAGE_B[:2].mean())  # every ratio is 1
    gap, tokens = on_policy[2]["sampler_trainer_gap"]
    close(gap / tokens, (np.abs(LOGP_BT - OLD_BT) * MASK_BT).sum() / MASK_BT.sum())


@equation("ceiling.tasks.rewards.pay")
def _():
    judged = [Verdict(Outcome.RIGHT, "7", 1.0), Verdict(Outcome.WRONG, "8", 0.5), Verdict(Outcome.UNPARSED)]
    for name, expected in (("exact", [1, 0, 0]), ("dense", [1, 0.5, 0]), ("format", [1, 1, 0]), ("none", [0, 0, 0])):
        close(rewards.pay(name, judged), expected)
    close(rewards.pay("majority", judged, label=rewards.Label("8", 0.6, False)), [0, 1, 0])


@equation("ceiling.regimes.grpo.soft_overlong")
def _():
    n = np.array([1, 80, 85, 100, 120])
    close(grpo.soft_overlong(n, 100, 20), -np.minimum(1, np.maximum(0, (n - (100 - 20)) / 20)))


@equation("ceiling.regimes.grpo.informative")
def _():
    R, W = Outcome.RIGHT, Outcome.WRONG
    groups = [[sample(R), sample(W)], [sample(R), sample(R)], [sample(W), sample(W, (-9.0, -9.0))]]
    problems = [types.SimpleNamespace(id=i) for i in range(3)]
    material = base.Material(None, problems, [groups], {}, None, None)
    assert grpo.informative(material, dict(reward="exact", gamma=0.5)).tolist() == [True, False, False]


@equation("ceiling.regimes.grpo.remedies.choose")
def _():
    logprobs, advantage = [np.array([-3.0, -0.1, -0.2]), np.array([-0.5, -2.0])], np.array([1.0, -1.0])
    logp, A = np.concatenate(logprobs), np.array([1, 1, 1, -1, -1])
    cov = (logp - logp.mean()) * (A - A.mean())
    cfg = dict(remedy="kl_cov", cov_share=0.4, cov_low=0.5, cov_high=1.0)
    chosen = np.concatenate(remedies.choose(logprobs, advantage, cfg, np.random.default_rng(0)))
    assert sorted(np.flatnonzero(chosen)) == sorted(np.argsort(-cov)[:2])
    cfg["remedy"] = "clip_cov"
    (within,) = np.nonzero((cov >= 0.5) & (cov <= 1.0))
    chosen = np.flatnonzero(np.concatenate(remedies.choose(logprobs, advantage, cfg, np.random.default_rng(0))))
    assert len(within) and set(chosen) <= set(within) and len(chosen) == min(2, len(within))


# --- RLP and critiques ---------------------------------------------------------------------------------------------

THINKING = types.SimpleNamespace(task=types.SimpleNamespace(tokenizer=types.SimpleNamespace(vocab_size=11)),
                                 problems=[0, 1], scores={"with_thought": [np.array(x) for x in (
                                     [-0.1, -0.2], [-3.0, -9.0], [-1.0, -1.0], [-0.5, -2.0])],
                                     "without": [np.array([-1.0, -1.5]), np.array([-0.3, -0.4])]})  # fmt: skip


def expected_gains(f=0.1, V=11):
    S = lambda logps: np.sum(np.log((1 - f) * np.exp(logps) + f / V))  # noqa: E731
    after = np.array([S(x) for x in THINKING.scores["with_thought"]]).reshape(2, 2)
    return after - np.array([[S(x)] for x in THINKING.scores["without"]])


@equation("ceiling.regimes.rlp.information_gain")
def _():
    close(rlp.information_gain(LOGP_BT, REF_BT), LOGP_BT - REF_BT)
    close(jax.grad(lambda x: jnp.sum(rlp.information_gain(x, 2 * x)))(jnp.ones(2)), 0)


@equation("ceiling.regimes.rlp.floored")
def _():
    p = np.array([1.0, 0.3, 1e-9])
    close(rlp.floored(np.log(p), 0.1, 11), np.log(0.9 * p + 0.1 / 11))


@equation("ceiling.regimes.rlp.gains")
def _():
    close(rlp.gains(THINKING, {"floor": 0.1}), expected_gains())


@equation("ceiling.regimes.rlp.examples")
def _():
    THINKING.samples = [[[sample(), sample()], [sample(), sample()]]]
    r = expected_gains()
    found = [e.extra["advantage"] for e in rlp.examples(THINKING, {"floor": 0.1})]
    close(np.reshape(found, (2, 2)), 2 / (2 - 1) * (r - r.mean(axis=1, keepdims=True)))


@equation("ceiling.regimes.rlp.loss")
def _():
    total, rows, _ = rlp.loss(0.0, batch(), {}, Forward(), SETTINGS)
    close(total / rows, -of_rows(surrogate(np.exp(LOGP_BT - OLD_BT), 0.2, 0.28)))


@equation("ceiling.regimes.rlp.ema")
def _():
    close(rlp.ema({"w": 2.0}, {"w": 4.0}, 0.9)["w"], 0.9 * 2 + 0.1 * 4)


@equation("ceiling.regimes.critique_grpo.union")
def _():
    right, wrong = (sample(outcome) for outcome in (Outcome.RIGHT, Outcome.WRONG))
    found = critique_grpo.union([right, wrong, wrong], [wrong, right, wrong], 1, np.random.default_rng(0))
    assert sorted((s.verdict.right, refined) for s, refined in found) == [(False, False), (True, False), (True, True)]
    assert all(not refined for _, refined in critique_grpo.union([right] * 3, [wrong] * 3, 2, np.random.default_rng(0)))


@equation("ceiling.regimes.critique_grpo.shaped")
def _():
    p = np.array([0.0, 0.05, 0.1, 1.0])
    close(critique_grpo.shaped(p, 0.1), p / (p + 0.1))
    slope = jax.vmap(jax.grad(lambda logp: critique_grpo.shaped(jnp.exp(logp), 0.1)))(jnp.log(p[1:].astype(np.float32)))
    close(slope, 0.1 * p[1:] / (p[1:] + 0.1) ** 2)


@equation("ceiling.regimes.critique_grpo.loss")
def _():
    cfg = {**SETTINGS, "aggregation": "constant", "clip_low": 0.0, "clip_high": 0.0, "gamma": 0.1}
    total, denominator, _ = critique_grpo.loss(0.0, batch(refined=np.array([0.0, 1, 0])), {}, Forward(), cfg)
    rho, p = np.exp(LOGP_BT[0] - OLD_BT[0]), np.exp(LOGP_BT[1])
    own = ADVANTAGE_B[0] * (rho * MASK_BT[0]).sum() + ADVANTAGE_B[1] * (p / (p + 0.1) * MASK_BT[1]).sum()
    close(total / denominator, -own / (2 * 7))


# --- elicitation ---------------------------------------------------------------------------------------------------

SMALL = ModelConfig(vocab_size=7, width=8, ffn=8, layers=1, heads=1, kv_heads=1, head_dim=8, steering=True)
TOKENS = np.array([3, 1, 4, 1, 5], np.int32)


def weights():
    from ceiling.model.config import table, unflatten

    rng = np.random.default_rng(5)
    rows = {name: jnp.asarray(rng.normal(size=row.shape), row.dtype) for name, row in table(SMALL).items()}
    return steering.with_vectors(unflatten(rows), SMALL, np.zeros((1, 8)))


@equation("ceiling.model.steering.with_vectors")
def _():
    b = np.linspace(-1, 1, 8, dtype=np.float32)
    steered = steering.with_vectors(weights(), SMALL, b[None])
    h, moved = (sae.residuals(params, SMALL, 0, TOKENS[None]) for params in (weights(), steered))
    close(moved - h, np.broadcast_to(b, h.shape), atol=1e-5)


@equation("ceiling.model.sae.direction")
def _():
    W = RNG.normal(size=(4, 3))
    found = sae.direction(sae.SAEConfig(layer=1, latents=4), {"w_dec": W}, 2, strength=1.5, f_max=2.0, layers=3)
    close(found, [np.zeros(3), 1.5 * 2.0 * W[2], np.zeros(3)])


@equation("ceiling.model.sae.reason_score")
def _():
    word_WU, near_U, other_U = RNG.uniform(0.1, 1, (3, 4)), RNG.uniform(0.1, 1, 4), RNG.uniform(0.1, 1, 4)
    q = word_WU / word_WU.sum(axis=0)
    H = -(q * np.log(q)).sum(axis=0) / np.log(3)
    means = sae.Statistics(word_WU, near_U, other_U, near_U, near_U, 1.0, 1.0)
    close(sae.reason_score(means, 0.7), near_U / near_U.sum() * H**0.7 - other_U / other_U.sum())


def gaps():
    """p(1) - p(2) at every token of TOKENS but the first."""
    from ceiling.model import forward

    p = np.sort(special.softmax(np.asarray(forward(weights(), SMALL, TOKENS[None]))[0], axis=-1), axis=-1)
    return (p[:, -1] - p[:, -2])[:-1]


@equation("ceiling.rollout.scoring.margins")
def _():
    example = base.Example(TOKENS, np.array([0, 0, 1, 1, 1], np.float32))
    close(scoring.margins(weights(), SMALL, [example], max_tokens=5)[0], gaps()[1:], atol=1e-5)


@equation("ceiling.rollout.decoding.confidence")
def _():
    policy = Policy(weights(), SMALL, ())
    spans = [(1, 3), None]  # the answer is the second and third token of the response
    found = decoding.confidence(policy, [TOKENS[:2]] * 2, [TOKENS[2:]] * 2, spans, max_new_tokens=3)
    close(found, [gaps()[2:4].mean(), -np.inf], atol=1e-5)


@equation("ceiling.rollout.decoding.choose")
def _():
    delta, answers = np.array([0.5, 0.3, 0.4, -np.inf]), ["a", "b", "b", None]
    assert decoding.choose(delta, answers, "max") == 0
    assert decoding.choose(delta, answers, "sum") == 2  # b has .7, and its surest path is the third


@equation("ceiling.evals.recovery.recovery")
def _():
    b, m, t = np.zeros((3, 4)), RNG.uniform(0.1, 0.2, (3, 4)), RNG.uniform(0.4, 0.5, (3, 4))
    found = recovery.recovery(b, m, t)
    close(found.value, (m.mean() - b.mean()) / (t.mean() - b.mean()))
    for rho, inside in ((found.lo, True), (found.hi + 0.05, False)):
        interval = intervals.crossed_interval(m - rho * t)
        assert (interval.lo <= 1e-9 and interval.hi >= -1e-9) == inside
    assert recovery.recovery(b, m, b + 1e-3 * RNG.normal(size=(3, 4))).value is None


# --- evaluation ----------------------------------------------------------------------------------------------------


@equation("ceiling.evals.pass_at_k")
def _():
    for n, k in ((7, 3), (16, 16), (12, 1)):
        c = np.arange(n + 1)
        close(passk.pass_at_k(n, c, k), [comb_passk(n, int(x), k) for x in c], rtol=1e-12, atol=1e-15)
        product = [1 - np.prod([1 - k / (n - j) for j in range(x)]) for x in range(n - k + 1)]
        close(passk.pass_at_k(n, c[: n - k + 1], k), product, rtol=1e-12, atol=1e-15)


@equation("ceiling.evals.passk.sampling_gap")
def _():
    base_c, arm_c = np.array([0, 3, 8]), np.array([1, 2, 8])
    expected = np.mean([comb_passk(8, c, 4) for c in base_c]) - np.mean(arm_c / 8)
    close(passk.sampling_gap(8, base_c, 8, arm_c, k=4), expected)


@equation("ceiling.evals.cover_at")
def _():
    close(passk.cover_at(10, [0, 3, 9, 10], [0.3, 0.95]), [3 / 4, 1 / 4])


@equation("ceiling.evals.passk.majority_at")
def _():
    answers = np.array([[0, 0, 1, 1, 2, 1]])  # votes of three: 0 wins, then 1
    close(passk.majority_at(answers, answers == 1, 3), [1 / 2])


@equation("ceiling.evals.solvable_sets")
def _():
    found = passk.solvable_sets([0, 0, 0, 5, 2], [1, 0, 0, 3, 0])
    close([found.expansion, found.shrinkage], [1 / 3, 1 / 2])


@equation("ceiling.evals.stats.clopper_pearson")
def _():
    lo, hi = intervals.clopper_pearson(3, 20, 0.9)
    close([lo, hi], [stats.beta.ppf(0.05, 3, 18), stats.beta.ppf(0.95, 4, 17)])


@equation("ceiling.evals.stats.rate_upper")
def _():
    close(intervals.rate_upper(0, 50, 0.95), 1 - 0.05 ** (1 / 50))
    close(intervals.rate_upper(2, 50, 0.95), stats.beta.ppf(0.95, 3, 48))


@equation("ceiling.evals.stats.crossed_interval")
def _():
    for scale in (1.0, 0.0):  # with and without an effect of the seed
        S, P = 3, 5
        d = scale * RNG.normal(size=(S, 1)) + RNG.normal(size=(1, P)) + 0.3 * RNG.normal(size=(S, P))
        a, b, m = d.mean(axis=1, keepdims=True), d.mean(axis=0, keepdims=True), d.mean()
        MS, MP = P * np.sum((a - m) ** 2) / (S - 1), S * np.sum((b - m) ** 2) / (P - 1)
        MR = np.sum((d - a - b + m) ** 2) / ((S - 1) * (P - 1))
        M = max(MS + MP - MR, MS, MP, MR)
        nu = M**2 / (MS**2 / (S - 1) + MP**2 / (P - 1) + MR**2 / ((S - 1) * (P - 1)))
        half = stats.t.ppf(0.975, nu) * np.sqrt(M / (S * P))
        found = intervals.crossed_interval(d)
        close([found.lo, found.hi, found.df], [m - half, m + half, nu])


@equation("ceiling.evals.stats.bootstrap_crossing")
def _():
    arm, below = np.array([0.5, 0.6, 0.62]), np.array([0.2, 0.5, 0.8])
    found = intervals.bootstrap_crossing(*(np.tile(x, (2, 3, 1)) for x in (below, arm)), [1, 8, 64], draws=9, seed=0)
    close(found.k, np.exp(np.log(8) + (np.log(64) - np.log(8)) * 0.1 / (0.1 + 0.18)))
    assert found.share == 1


@equation("ceiling.evals.verdicts.judge")
def _():
    n, k, base_c = 64, 16, np.array([[0, 20] * 6] * 3)
    null = np.where(base_c > 0, base_c + RNG.integers(-3, 4, base_c.shape), 0)
    judged = lambda arm: verdicts.judge(base_c, arm, null, n, k=k, margin=0.05)  # noqa: E731
    at_k = np.vectorize(lambda c: comb_passk(n, int(c), k))
    zero = intervals.crossed_interval(at_k(null) - at_k(base_c))
    found = judged(np.full((3, 12), 64))
    close(found.resolution, max(abs(zero.lo), abs(zero.hi), k / (n * base_c.size)))
    assert found.verdict == verdicts.EXPANDED and found.delta_k.lo > found.resolution
    assert judged(np.zeros((3, 12), int)).verdict == verdicts.CONTRACTED
    assert judged(null).verdict == verdicts.UNRESOLVED
    saturated = np.array([[30, 40, 50, 36, 44, 41]] * 3)  # pass@16 is 1 for both: only pass@1 moves
    wobble = saturated + np.array([[1], [0], [-1]])
    assert verdicts.judge(saturated, wobble + 12, wobble, n, k=k, margin=0.05).verdict == verdicts.REWEIGHTED
    two = verdicts.judge(base_c[:2], np.full((2, 12), 64), null[:2], n, k=k, margin=0.05)
    assert two.verdict == verdicts.UNRESOLVED


@equation("ceiling.evals.verdicts.false_expansion_rate")
def _():
    n, k = 5, 2
    base_c, null_c = np.array([[0, 2]]), np.array([[3, 1]])
    chance = [comb_passk(2 * n, t, 2 * k) - comb_passk(2 * n, t, k) for t in (3, 3)]
    found = verdicts.false_expansion_rate(base_c, null_c, n, k)
    close(found.expected, np.mean(chance))
    close(found.rate, np.mean([comb_passk(n, 3, k), comb_passk(n, 1, k) * (1 - comb_passk(n, 2, k))]))


@equation("ceiling.evals.diversity.label_entropy")
def _():
    count = np.array([[5, 3, 2, 0]])
    q = np.array([0.5, 0.3, 0.2])
    H = -(q * np.log(q)).sum()
    close(diversity.label_entropy(count), [H])
    close(diversity.label_entropy(count, miller_madow=True), [H + (3 - 1) / (2 * 10)])


@equation("ceiling.evals.diversity.distinct_at")
def _():
    count = np.array([[5, 3, 2]])
    close(diversity.distinct_at(count, 4), [sum(1 - math.comb(10 - c, 4) / math.comb(10, 4) for c in count[0])])


@equation("ceiling.evals.entropy_law.forecast")
def _():
    H = np.linspace(1.2, 0.1, 60)
    law = entropy_law.forecast(H, -0.2 * np.exp(H) + 0.9)
    close([law.a, law.b, law.ceiling, law.rmse], [0.2, 0.9, 0.7, 0])
    close(law.reward(0.5), -0.2 * np.exp(0.5) + 0.9)


# --- the ledger ----------------------------------------------------------------------------------------------------

PRICED = dict(vocab_size=50, width=12, ffn=20, layers=3, heads=4, kv_heads=2, head_dim=6)


def parts(T, window=0, head=None):
    """(matrices, attention, head) of the page's sum, and Q."""
    c, local = types.SimpleNamespace(**PRICED), window or 10**9
    Q = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads) + 3 * c.width * c.ffn
    pairs = sum(min(t, local) for _ in range(c.layers) for t in range(1, T + 1))
    head = T if head is None else head
    return 2 * Q * c.layers * T, 4 * c.heads * c.head_dim * pairs, 2 * c.vocab_size * c.width * head


@equation("ceiling.ledger.forward_flops")
def _():
    close(ledger.forward_flops(ModelConfig(**PRICED), 9), sum(parts(9)))
    close(ledger.forward_flops(ModelConfig(**PRICED, window=4), 9), sum(parts(9, window=4)))
    assert parts(9)[1] == 2 * 3 * 4 * 6 * 9 * 10  # the closed form without windows


@equation("ceiling.ledger.train_flops")
def _():
    matrices, attention, head = parts(9)
    close(ledger.train_flops(ModelConfig(**PRICED), 9), 3 * (matrices + attention + head))
    close(ledger.train_flops(ModelConfig(**PRICED, steering=True), 9), 2 * (matrices + head) + 3 * attention)


@equation("ceiling.ledger.sampling_flops")
def _():
    F, P, R = lambda T: sum(parts(T)), 5, (2, 4)
    last = sum(parts(P, head=1))
    expected = last + sum(F(P + r) - F(P) for r in R)
    close(ledger.sampling_flops(ModelConfig(**PRICED), [P], [R]), expected)
    tool = ledger.sampling_flops(ModelConfig(**PRICED), [P], [R], [[1, 4]])  # a tool wrote one token of the first
    close(expected - tool, 2 * 50 * 12)


@equation("ceiling.train.loop.Budget.spent")
def _():
    book = ledger.Ledger()
    book.charge("train", "policy", flops=95.0)
    budget = Budget(flops=100.0)
    assert budget.spent(book, 3, 10.0) and not budget.spent(book, 3, 9.9)
