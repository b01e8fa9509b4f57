"""What is paid: spurious rewards (SR-1, SR-2, SR-4 to SR-7), majority labels and their hash, and which problems an arm
trains on."""

import dataclasses
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ceiling
from ceiling import experiment, schema
from ceiling.config import ConfigError
from ceiling.ledger import Ledger
from ceiling.model.policy import Decoding, Policy
from ceiling.regimes import grpo
from ceiling.regimes.base import Material, Sample
from ceiling.rollout import generate
from ceiling.stages import labels
from ceiling.tasks import rewards
from ceiling.tasks.base import Outcome, Problem, Verdict
from ceiling.tasks.rewards import Label, pay
from ceiling.train import subset
from ceiling.train.loop import stream

RIGHT, WRONG = Verdict(Outcome.RIGHT, "7", 1.0, True), Verdict(Outcome.WRONG, "3", 0.5)
UNREAD, BROKEN = Verdict(Outcome.UNPARSED), Verdict(Outcome.ERROR)


def step_of(verdicts_NG, *, ids=None, labels=None, key=(3, 8)):
    """A step's material whose responses hold nothing but their verdicts."""
    rng = np.random.default_rng(0)
    groups = [[Sample(np.array([1]), np.array([2, 3]), -rng.random(2).astype(np.float32), True, v) for v in row]
              for row in verdicts_NG]  # fmt: skip
    ids = range(len(groups)) if ids is None else ids
    return Material(None, [Problem(i, "g", "", "") for i in ids], [groups], {}, None, None, labels, key)


def settings_of(**overrides):
    return {**ceiling.arm("grpo", prompts_per_step=4, samples_per_prompt=4, **overrides).to_dict(), "max_tokens": 2}


# --- random, none, format ----------------------------------------------------------------------------------


def coins(seed, step=0, ids=range(8), G=16, verdict=WRONG, **overrides):
    cfg = settings_of(reward="random", **overrides)
    return grpo.verdict_rewards(step_of([[verdict] * G for _ in ids], ids=ids, key=(seed, step)), cfg)


def test_SR1_random_pay_does_not_look_at_the_response():
    """The same coins for right, wrong and unreadable responses, and so no correlation with being right."""
    paid = coins(1)
    for verdict in (RIGHT, UNREAD, BROKEN):
        np.testing.assert_array_equal(coins(1, verdict=verdict), paid)
    many = np.concatenate([coins(seed).ravel() for seed in range(100)])
    right = np.random.default_rng(0).random(len(many)) < 0.3
    assert abs(np.corrcoef(many, right)[0, 1]) < 4 / math.sqrt(len(many))


def test_SR1_coins_are_keyed_by_seed_step_prompt_and_sample_and_by_nothing_else():
    paid = coins(1, 5)
    np.testing.assert_array_equal(coins(1, 5), paid, err_msg="asked for twice in a step")
    np.testing.assert_array_equal(coins(1, 5, G=20)[:, :16], paid, err_msg="more samples")
    np.testing.assert_array_equal(coins(1, 5, ids=range(4, 8)), paid[4:], err_msg="other prompts beside it")
    for other in (coins(2, 5), coins(1, 6), coins(1, 5, ids=range(8, 16))):
        assert 0.3 < np.mean(other != paid) < 0.7
    copies = coins(1, 5, ids=[3, 3, 3, 3])  # one-problem training: groups of their own (OS-3)
    np.testing.assert_array_equal(copies[0], paid[3])
    assert len({tuple(row) for row in copies}) == 4


@pytest.mark.parametrize("gamma", [0.3, 0.5, 0.7])
def test_random_pay_is_one_with_probability_gamma(gamma):
    paid = np.concatenate([coins(seed, gamma=gamma).ravel() for seed in range(60)])
    assert set(np.unique(paid)) == {0.0, 1.0}
    assert paid.mean() == pytest.approx(gamma, abs=4 * math.sqrt(gamma * (1 - gamma) / len(paid)))


def test_SR2_SR4_at_ratio_one_random_pay_has_no_gradient_on_average_and_certain_pay_none_at_all():
    rng = np.random.default_rng(0)
    logp = -rng.exponential(1.0, (128, 1)).astype(np.float32)

    @jax.jit
    def gradients(rewards_SNG):
        def one(rewards_NG):
            advantage_B = grpo.advantages(rewards_NG, kind="group_std").reshape(-1)
            loss = lambda x: grpo.policy_loss(  # noqa: E731
                x, logp, None, advantage_B, jnp.ones_like(x), ratio="token", aggregation="token_mean", clip_low=0.2,
                clip_high=0.2, kl=None, beta=0.0)[0]  # fmt: skip
            return jax.grad(loss)(jnp.asarray(logp))[:, 0]

        return jax.vmap(one)(rewards_SNG)

    seeds = 400
    got = np.asarray(gradients(np.stack([coins(seed) for seed in range(seeds)])))
    z = got.mean(axis=0) / (got.std(axis=0, ddof=1) / math.sqrt(seeds))
    assert np.abs(z).max() < 4.5 and 0.7 < np.mean(z**2) < 1.3, "128 directions, each a standard normal"
    assert np.abs(got).mean() > 0.3, "one seed's gradient is not small"
    for gamma in (0.0, 1.0):
        certain = np.stack([coins(seed, gamma=gamma) for seed in range(2)])
        certain = np.resize(certain, (seeds, *certain.shape[1:]))
        assert np.unique(certain).tolist() == [gamma] and np.all(np.asarray(gradients(certain)) == 0)


def test_SR6_format_pay_asks_only_for_a_readable_answer():
    np.testing.assert_array_equal(pay("format", [RIGHT, WRONG, UNREAD, BROKEN]), [1, 1, 0, 0])


def test_none_pays_nothing_and_unknown_names_are_refused():
    np.testing.assert_array_equal(pay("none", [RIGHT, WRONG]), [0, 0])
    with pytest.raises(ValueError, match="reward='luck'"):
        pay("luck", [RIGHT])
    with pytest.raises(ConfigError, match="config.arms.a.reward='luck'"):
        ceiling.validate(ceiling.defaults("lab", arms={"a": ceiling.arm("grpo", reward="luck")}))


def test_metrics_tell_what_was_paid_from_what_was_right():
    material = step_of([[RIGHT, WRONG, UNREAD, RIGHT], [WRONG] * 4], labels={0: Label("3", 0.6, False),
                                                                            1: Label("3", 1.0, True)})  # fmt: skip
    for reward, paid, uninformative in (("exact", 2 / 8, 0.5), ("majority", 5 / 8, 0.5), ("none", 0.0, 1.0),
                                        ("format", 7 / 8, 0.5)):  # fmt: skip
        got = grpo.metrics(material, settings_of(reward=reward))
        assert (got["reward"], got["right"], got["uninformative_groups"]) == (paid, 2 / 8, uninformative), reward
    logprobs = [s.logprobs for group in material.samples[0] for s in group]
    assert got["sampled_entropy"] == pytest.approx(-np.mean([x.mean() for x in logprobs]))


@pytest.mark.parametrize("reward", rewards.NAMES)
def test_an_arm_reads_the_answer_only_if_its_pay_depends_on_it(reward):
    needs = reward in ("exact", "dense", "process", "incorrect")
    assert grpo.REGIME.reads(settings_of(reward=reward)) == (("prompt", "answer") if needs else ("prompt",))


# --- labels ------------------------------------------------------------------------------------------------


def test_the_majority_label_is_the_most_frequent_readable_answer():
    answers = ["5", "7", None, "7", "5", "9"]
    assert rewards.majority(answers, [False, True, False, True, False, False]) == Label("5", 2 / 6, False)
    assert rewards.majority(answers[1:], [True, False, True, False, False]) == Label("7", 2 / 5, True)
    assert rewards.majority([None, None], [False, False]) == Label(None, 0.0, False)


def test_labelled_pay_compares_with_the_label_and_never_with_the_key():
    wrong = Label("3", 0.5, False)
    for name in ("majority", "incorrect"):
        np.testing.assert_array_equal(pay(name, [RIGHT, WRONG, UNREAD], label=wrong), [0, 1, 0])
        np.testing.assert_array_equal(pay(name, [RIGHT, UNREAD], label=Label(None, 0.0, False)), [0, 0])
    np.testing.assert_array_equal(pay("majority", [RIGHT, WRONG], label=Label("7", 0.9, True)), [1, 0])


def test_SR5_labels_are_read_back_as_written_and_never_altered(tmp_path):
    found = {11: Label("7", 0.5, True), 5: Label(None, 0.0, False)}
    labels.write(tmp_path / labels.FILE, found, 64)
    assert labels.read(tmp_path) == found
    content = json.loads((tmp_path / labels.FILE).read_text())
    for change in ({"answer": "8"}, {"right": False}, {"share": 0.25}):
        altered = {**content, "labels": {**content["labels"], "11": {**content["labels"]["11"], **change}}}
        (tmp_path / labels.FILE).write_text(json.dumps(altered))
        with pytest.raises(ValueError, match="not the labels of its SHA-256; delete the stage's folder"):
            labels.read(tmp_path)


def test_the_labels_stage_lets_the_start_vote_on_every_problem_of_the_pool(toy, tmp_path):
    """Recounted from the same samples, drawn here; paid from no arm's budget."""
    policy = Policy(toy.params, toy.model, toy.task.tokenizer.stop_ids, Decoding("greedy"))
    settings = {"mix": {}, "pool": 4, "samples": 4, "slots": 512, "max_verifier_errors": 0.05}
    out, written = tmp_path / "out", {}
    out.mkdir()
    labels.label(types.SimpleNamespace(
        settings={"labels": settings}, task=toy.task, policy={"start": policy}.get, seed=5, out=out,
        unfinished=tmp_path / "unfinished", report=lambda event: None, write_json=written.__setitem__,
    ))  # fmt: skip
    problems = toy.task.training({}, 4)
    drawn = generate(
        policy, [toy.task.tokenizer.encode(p.prompt) for p in problems], n=4, seed=stream(5, 11),
        max_new_tokens=toy.task.max_response_tokens, problem_ids=[p.id for p in problems],
    )  # fmt: skip
    want = {}
    for i, problem in enumerate(problems):
        verdicts = [toy.task.verify(problem, toy.task.tokenizer.decode(drawn.response(i, j))) for j in range(4)]
        votes = [v.answer for v in verdicts]
        answer = max(votes, key=votes.count)  # the first of equally frequent ones
        want[problem.id] = Label(answer, votes.count(answer) / 4, next(v.right for v in verdicts if v.answer == answer))
    assert labels.read(out) == want and len({label.answer for label in want.values()}) > 1
    assert any(label.right for label in want.values()) and not all(label.right for label in want.values())
    ledger = Ledger.from_json(written["ledger.json"])
    assert list(ledger.entries) == [("label", "policy")] and ledger.entries["label", "policy"].sequences == 16
    assert ledger.entries["label", "policy"].flops > 0 and ledger.student_flops == 0


def test_the_labels_stage_is_shared_by_arms_of_one_start_and_pool_and_by_no_others():
    arms = {
        "plain": ceiling.arm("grpo"),
        "majority": ceiling.arm("grpo", reward="majority"),
        "incorrect": ceiling.arm("grpo", reward="incorrect", examples=1, lr=1e-4),
        "fewer": ceiling.arm("grpo", reward="majority", label_samples=8),
        "later": ceiling.arm("grpo", reward="majority", start="plain"),
        "untrained": ceiling.arm("grpo", reward="majority", spend=0.0),
    }
    config = ceiling.defaults("lab", arms=arms)
    config.seeds, config.train.mix = (1,), {"C": 1.0}
    stages = {s.name.removeprefix("seed1/"): s for s in experiment.plan(ceiling.validate(config))}
    drawn = {name for name, s in stages.items() if s.kind == "labels"}
    assert drawn == {"prior.labels", "prior.labels2", "plain.labels"}
    needs = {name: stages[name].needs.get("labels") for name in arms}
    assert needs == {"plain": None, "untrained": None, "majority": stages["prior.labels"],
                     "incorrect": stages["prior.labels"], "fewer": stages["prior.labels2"],
                     "later": stages["plain.labels"]}  # fmt: skip
    assert stages["plain.labels"].needs == {"start": stages["plain"]}
    assert stages["prior.labels"].settings["labels"]["samples"] == 64


# --- which problems ----------------------------------------------------------------------------------------

POOL = [Problem(i, "g", f"{i}", "") for i in (30, 10, 20, 40)]


def picked(**overrides):
    given = {key: overrides.pop(key) for key in ("labels", "history") if key in overrides}
    return [p.id for p in subset.chosen(POOL, ceiling.arm("grpo", **overrides).to_dict(), **given)]


def test_the_first_problems_or_all_of_them():
    assert picked() == [30, 10, 20, 40] and picked(examples=2) == [30, 10]
    with pytest.raises(ConfigError, match="examples=5: only 4 problems are left"):
        picked(examples=5)


def test_select_variance_takes_the_problems_whose_accuracy_varied_most(tmp_path):
    """Visits of one run: 10 goes from none to all right, 40 a little, 30 not at all, 20 was seen once."""
    history = [(0, 10, 0, 4), (0, 40, 1, 4), (1, 30, 2, 4), (1, 20, 4, 4), (2, 10, 4, 4), (2, 40, 2, 4), (3, 30, 2, 4),
               (4, 10, 2, 4), (4, 99, 0, 4), (5, 99, 4, 4)]  # fmt: skip
    subset.write_history(tmp_path, history)
    assert subset.read_history(tmp_path) == history
    want = {10: np.var([0, 1, 0.5]), 40: np.var([0.25, 0.5]), 30: 0.0, 99: 0.25}
    assert subset.variances(history) == pytest.approx(want)
    pick = lambda n: picked(select="variance", select_from="full", examples=n, history=history)  # noqa: E731
    assert pick(1) == [10] and pick(3) == [10, 40, 30] and pick(4)[-1] == 20
    with pytest.raises(ConfigError, match="arm 'full' visited no problem of this pool twice"):
        picked(select="variance", select_from="full", examples=1, history=history[:4])


def test_select_by_id_keeps_the_order_given():
    assert picked(select="40 10") == [40, 10]
    with pytest.raises(ConfigError, match="the pool has no problem 41"):
        picked(select="41")


def test_SR7_the_incorrect_subset_has_no_prompt_whose_label_is_right():
    found = {30: Label("1", 1.0, True), 10: Label("2", 0.5, False), 20: Label(None, 0.0, False),
             40: Label("3", 1.0, False)}  # fmt: skip
    assert picked(reward="incorrect", labels=found) == [10, 40]
    assert picked(reward="incorrect", labels=found, examples=1) == [10]
    assert picked(reward="majority", labels=found) == [30, 10, 20, 40]
    found = {i: dataclasses.replace(label, right=True) for i, label in found.items()}
    with pytest.raises(ConfigError, match="every majority label of the pool is right or missing"):
        picked(reward="incorrect", labels=found)


@pytest.mark.parametrize("overrides, message", [
    (dict(examples=64, pool=32), "examples=64 is more than its pool of 32"),
    (dict(select="variance"), "select_from='' with select='variance'"),
    (dict(select_from="full"), "select_from='full' with select='first'"),
    (dict(select="variance", select_from="full"), "examples=0: select=variance picks that many"),
    (dict(select="random"), "select='random' is not allowed"),
    (dict(select="4 4"), "select='4 4' is not allowed"),
    (dict(select="4 5", examples=1), "examples=1: select names 2 problems"),
    (dict(select="variance", select_from="nobody", examples=1), " no arm 'nobody'"),
], ids=lambda x: x if isinstance(x, str) else "")  # fmt: skip
def test_subsets_that_contradict_themselves_are_refused_by_their_key(overrides, message):
    config = ceiling.defaults("lab", arms={"full": ceiling.arm("grpo"), "a": ceiling.arm("grpo", **overrides)})
    with pytest.raises(ConfigError, match=f"^config.arms.a.?.?{message}"):
        ceiling.validate(config)


def test_problems_are_ranked_only_by_arms_whose_own_samples_are_judged():
    one = ceiling.arm("grpo", pool=8, select="variance", select_from="full", examples=1)
    arms = {"full": ceiling.arm("sft", pool=8), "one": one}
    config = ceiling.defaults("lab", arms=arms)
    config.train.mix = {"C": 1.0}
    config.task.update(evaluation_per_group=1, training_per_group=8, gate_problems=2)
    config = ceiling.validate(config)
    task = schema.load_task(config)
    with pytest.raises(ConfigError, match="config.arms.one: select_from='full': that arm has no judged samples"):
        schema.check_against_task(config, task)
