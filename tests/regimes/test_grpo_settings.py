"""The GRPO family from verdicts on: rewards, what is kept, and the documented settings (GR-7, GR-8, OS-4)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ceiling
from ceiling.model.policy import Policy
from ceiling.model.sequences import Forward
from ceiling.regimes import grpo
from ceiling.regimes.base import Material, Sample
from ceiling.tasks.base import Outcome, Problem, Verdict

checked = settings(max_examples=20, deadline=None)
L = 5  # longest response


# --- rewards, filtering, length ---------------------------------------------------------------------------


@checked
@given(longest=st.integers(2, 200), data=st.data())
def test_GR8_soft_overlong_penalty(longest, data):
    cache = data.draw(st.integers(1, longest - 1))
    lengths = np.arange(0, longest + 20)
    got = grpo.soft_overlong(lengths, longest, cache)
    for n, penalty in zip(lengths, got, strict=True):
        want = 0.0 if n <= longest - cache else (-1.0 if n > longest else ((longest - cache) - n) / cache)
        assert penalty == pytest.approx(want, abs=1e-12)
    assert np.all((got <= 0) & (got >= -1)) and np.all(np.diff(got) <= 0)
    assert np.max(np.abs(np.diff(got))) <= 1 / cache + 1e-12, "continuous at both ends"
    assert np.all(grpo.soft_overlong(lengths, longest, 0) == 0)


class _Task:
    max_response_tokens = L


def fake_material(right_NG, lengths_NG=None, rng=None, reference=None):
    """Verdicts and lengths as asked for, random behaviour log-probs, prompts of three tokens."""
    rng = rng or np.random.default_rng(0)
    right_NG = np.asarray(right_NG)
    lengths_NG = np.full(right_NG.shape, 3) if lengths_NG is None else np.asarray(lengths_NG)
    samples = [
        [Sample(np.array([1, 2, 1 + i % 5]), rng.integers(1, 20, n), -rng.random(n).astype(np.float32), True,
                Verdict(Outcome.RIGHT if r else Outcome.WRONG, credit=float(r))) for r, n in zip(rs, ns, strict=True)]
        for i, (rs, ns) in enumerate(zip(right_NG, lengths_NG, strict=True))
    ]  # fmt: skip
    problems = [Problem(i, "g", "", "") for i in range(len(right_NG))]
    scores = {} if reference is None else {"reference": reference(samples)}
    return Material(_Task(), problems, [samples], scores, None, rng)


def cfg_of(**overrides):
    return {**ceiling.arm("grpo", prompts_per_step=4, samples_per_prompt=4, **overrides).to_dict(), "max_tokens": L}


def kept_groups(examples, material):
    by_tokens = {id(s): i for i, group in enumerate(material.samples[0]) for s in group}
    flat = [s for group in material.samples[0] for s in group]
    out = []
    for e in examples:
        match = [s for s in flat if np.array_equal(np.concatenate([s.prompt, s.tokens]), e.tokens)
                 and np.array_equal(e.extra["behaviour"][3:], s.logprobs)]  # fmt: skip
        out.append(by_tokens[id(match[0])])
    return out


@pytest.mark.parametrize("overrides", [
    {}, {"overlong_cache": 3}, {"kl": "k1", "kl_in": "reward", "kl_beta": 0.1},
], ids=["plain", "soft_overlong", "kl_in_reward"])  # fmt: skip
@checked
@given(data=st.data())
def test_GR7_dynamic_sampling_never_emits_a_group_with_none_or_all_correct(overrides, data):
    """Also where the length penalty or a KL in the reward makes the rewards of such a group differ."""
    right = np.reshape(data.draw(st.lists(st.booleans(), min_size=32, max_size=32)), (8, 4))
    right[data.draw(st.integers(0, 7))] = True
    lengths = np.reshape(data.draw(st.lists(st.integers(1, L), min_size=32, max_size=32)), (8, 4))
    reference = (
        (lambda samples: [s.logprobs - 0.1 * len(s.tokens) for g in samples for s in g]) if "kl" in overrides else None
    )
    material = fake_material(right, lengths, reference=reference)
    cfg = cfg_of(drop_uninformative=True, oversample=2, **overrides)
    groups_ = kept_groups(grpo.examples(material, cfg), material)
    informative = [i for i in range(8) if 0 < right[i].sum() < 4]
    assert groups_ == [i for i in informative[:4] for _ in range(4)], "the first informative groups, all their samples"


def test_GR7_without_the_filter_every_group_of_the_step_is_kept():
    material = fake_material(np.zeros((4, 4), bool))
    assert len(grpo.examples(material, cfg_of())) == 16


def test_reward_choices_read_the_verdict():
    verdict = {"exact": 1.0, "dense": 0.25, "process": 0.0, "format": 1.0}
    material = fake_material([[True, True]])
    material.samples[0][0] = [
        Sample(s.prompt, s.tokens, s.logprobs, True, Verdict(Outcome.RIGHT, "1", credit=0.25, process=False))
        for s in material.samples[0][0]
    ]  # fmt: skip
    for name, want in verdict.items():
        np.testing.assert_array_equal(grpo.rewards(material, cfg_of(reward=name)), [[want, want]])


# --- the documented settings, from verdicts to the loss of the real regime ---------------------------------

SETTINGS = {
    "GRPO": dict(advantage="group_std", ratio="token", aggregation="sequence_mean_token_mean", clip_low=0.2,
                 clip_high=0.2, kl="k3", kl_in="loss", kl_beta=0.04),
    "Dr. GRPO": dict(advantage="group_mean", ratio="token", aggregation="constant"),
    "DAPO": dict(advantage="group_std", ratio="token", aggregation="token_mean", clip_low=0.2, clip_high=0.28,
                 oversample=2, drop_uninformative=True, overlong_cache=2),
    "RLOO": dict(advantage="leave_one_out", ratio="sequence", aggregation="constant", kl="k1", kl_in="reward",
                 kl_beta=0.03, clip_low=0.0, clip_high=0.0),
    "REINFORCE++": dict(advantage="batch_whitened", ratio="token", aggregation="token_mean", kl="k1",
                        kl_in="reward", kl_beta=0.05),
    "GSPO": dict(advantage="group_std", ratio="sequence", aggregation="sequence_mean_token_mean",
                 clip_low=3e-4, clip_high=4e-4),
}  # fmt: skip


def test_the_settings_are_those_that_the_module_documents():
    for name, chosen in SETTINGS.items():
        line = next(
            row for row in grpo.__doc__.splitlines() if row.split("  ")[-1] and row.strip().startswith(name + "  ")
        )
        for key in ("advantage", "ratio", "aggregation"):
            assert chosen[key] in line, (name, key)


@pytest.mark.parametrize("updates", [1, 2], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("name", SETTINGS)
def test_documented_setting_equals_its_reference_formula(name, updates, toy, formulas):
    """Verdicts -> rewards -> advantages -> packed batch -> loss, against the same written out by hand."""
    chosen = SETTINGS[name]
    config = ceiling.defaults("lab", arms={"a": ceiling.arm("grpo", **chosen)})
    ceiling.validate(config)
    cfg = cfg_of(**chosen, minibatches=updates, temperature=0.7)
    rng = np.random.default_rng(4)
    right = np.array([[1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 1, 0], [1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]], bool)
    right = right if chosen.get("oversample", 1) > 1 else right[:4]
    lengths = rng.integers(1, L + 1, right.shape)
    material = fake_material(right, lengths, rng)
    samples = material.samples[0]
    every = [s for group in samples for s in group]
    texts = [np.concatenate([s.prompt, s.tokens]) for s in every]
    own, ref = (toy.slow_logprobs(p, toy.model, texts, 0.7) for p in (toy.params, toy.models["reference"]))
    lp = {id(s): (a[1][2:], b[1][2:]) for s, a, b in zip(every, own, ref, strict=True)}
    for group in samples:  # behaviour near the policy, so that clips bind on some tokens and not on others
        for j, s in enumerate(group):
            near = (lp[id(s)][0] + rng.normal(0, 0.25, len(s.tokens))).astype(np.float32)
            group[j] = new = Sample(s.prompt, s.tokens, near, True, s.verdict)
            lp[id(new)] = lp[id(s)]
    in_reward = chosen.get("kl_in") == "reward"
    if in_reward:
        request = grpo.scores(material, cfg)["reference"]
        assert request.model == "reference" and request.temperature == 0.7 and len(request.examples) == right.size
        material.scores["reference"] = [lp[id(s)][1] for group in samples for s in group]

    # By hand.
    reward = right.astype(float)
    if name == "DAPO":
        over = np.maximum(0, lengths - (L - 2)) / 2
        reward = reward - np.minimum(1, over)
    if in_reward:
        reward = reward - chosen["kl_beta"] * np.array(
            [[np.sum(s.logprobs) - np.sum(lp[id(s)][1]) for s in group] for group in samples]
        )
    kept = [i for i in range(len(right)) if name != "DAPO" or 0 < right[i].sum() < 4][:4]
    advantage = formulas.advantages(reward[kept], chosen["advantage"]).reshape(-1)
    rows = [s for i in kept for s in samples[i]]
    width = max(len(s.tokens) for s in rows)
    table = lambda of: np.stack([np.pad(of(s), (0, width - len(s.tokens))) for s in rows])  # noqa: E731
    logp, ref = table(lambda s: lp[id(s)][0]), table(lambda s: lp[id(s)][1])
    old = logp if updates == 1 else table(lambda s: s.logprobs)
    mask = table(lambda s: np.ones(len(s.tokens)))
    want, want_denom = formulas.loss(
        logp, old, ref, advantage, mask, ratio=chosen["ratio"], aggregation=chosen["aggregation"],
        clip_low=chosen.get("clip_low", 0.2) or None, clip_high=chosen.get("clip_high", 0.2) or None,
        kl="k3" if name == "GRPO" else None, beta=0.04, max_tokens=L,
    )  # fmt: skip

    batch = toy.batch_of(grpo.examples(material, cfg), sequences=18, max_tokens=10, row_tokens=20)
    total, denom, metrics = grpo.REGIME.loss(
        toy.params, batch, {"reference": Policy(toy.models["reference"], toy.model, ())}, Forward(toy.model), cfg
    )
    assert float(denom) == want_denom
    np.testing.assert_allclose(total, want, rtol=2e-4, atol=2e-4)
    clipped = float(metrics["clip_high_share"][0] + metrics["clip_low_share"][0])
    assert (clipped > 0) == (updates == 2 and name != "RLOO"), "off-policy this test must exercise the clip"
    assert grpo.REGIME.frozen(cfg) == (("reference",) if name == "GRPO" else ())


def test_entropy_bonus_is_subtracted_with_the_same_aggregation(toy):
    """Exact full-softmax entropy at the sampling temperature, masked (OS-4)."""
    material = fake_material(np.zeros((4, 4), bool), np.random.default_rng(0).integers(1, L + 1, (4, 4)))
    examples = grpo.examples(material, cfg_of())
    batch = toy.batch_of(examples, sequences=17, max_tokens=9, row_tokens=18)
    entropy, n = [], []
    for logp_TV, _ in toy.slow_logprobs(toy.params, toy.model, [e.tokens for e in examples], 0.8):
        H = -np.sum(np.exp(logp_TV) * logp_TV, axis=-1)[2:]
        entropy.append(float(H.sum()))
        n.append(len(H))
    want = {"sequence_mean_token_mean": np.mean(np.divide(entropy, n)), "token_mean": sum(entropy) / sum(n),
            "constant": sum(entropy) / (16 * L)}  # fmt: skip
    for aggregation, value in want.items():
        cfg = cfg_of(aggregation=aggregation, entropy_bonus=0.3, temperature=0.8)
        total, denom, _ = grpo.REGIME.loss(toy.params, batch, {}, Forward(toy.model), cfg)
        assert float(total / denom) == pytest.approx(-0.3 * value, rel=1e-4), "all advantages are zero here"
