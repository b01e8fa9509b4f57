"""Critique-GRPO against its equations (CG-1 to CG-8) and against the faults known from its released code.

Most of it runs on a tabular policy, a table of logits by the token before, so that the whole gradient can be written
out by hand in float64.
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

import ceiling
from ceiling import ledger as accounts
from ceiling.data.packing import Example, pack
from ceiling.model.policy import Policy
from ceiling.model.sharding import make_mesh, place
from ceiling.regimes import critique_grpo as cg
from ceiling.regimes import grpo
from ceiling.regimes.base import Material, Sample, load
from ceiling.tasks import base
from ceiling.tasks.base import Outcome, Problem, Verdict
from ceiling.train.loop import Budget, Trainer

V, L, GAMMA = 9, 6, 0.1  # symbols, longest response, gamma


class Tabular:
    """log p(y | token before): params is [V, V]."""

    def logprobs(self, params, batch, temperature=1.0, entropy=False):
        before_BT = batch.tokens_RW.reshape(-1)[batch.index_BT]
        logp_BTV = jax.nn.log_softmax(params[before_BT] / temperature)
        out_BT = jnp.take_along_axis(logp_BTV, batch.targets_BT[..., None], axis=-1)[..., 0]
        return out_BT, -jnp.sum(jnp.exp(logp_BTV) * logp_BTV, axis=-1)


def cfg_of(regime="critique_grpo", **overrides):
    return {**ceiling.arm(regime, samples_per_prompt=4, **overrides).to_dict(), "max_tokens": L}


def drawn(seed=0, rows=8):
    """Examples of a step as `examples` makes them: prompts of two tokens, responses of one to L."""
    rng, out = np.random.default_rng(seed), []
    for i in range(rows):
        n = int(rng.integers(1, L + 1))
        mask = np.repeat([0.0, 1.0], [2, n]).astype(np.float32)
        behaviour = mask * rng.normal(-2, 0.3, n + 2).astype(np.float32)
        refined = float(i % 4 == 3)
        extra = {"behaviour": behaviour * (1 - refined), "advantage": rng.normal(), "refined": refined}
        out.append(Example(rng.integers(1, V, n + 2), mask, extra))
    return out


def batch_of(examples):
    return pack(examples, sequences=len(examples) + 1, max_tokens=L + 2, row_tokens=2 * L + 5)


def value_and_gradient(table, examples, cfg, regime=cg):
    def loss(params, batch):
        total, denom, _ = regime.loss(params, batch, {}, Tabular(), cfg)
        return total / denom

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(table, jnp.float32), batch_of(examples))
    return float(value), np.asarray(gradient)


def by_hand(table, examples, cfg, on_policy):
    """Value and gradient of equation (6), one token at a time: d log softmax / d logits = onehot - softmax."""
    low, high = 1 - (cfg["clip_low"] or np.inf), 1 + (cfg["clip_high"] or np.inf)
    value, gradient, counts, share = 0.0, np.zeros((V, V)), [], []
    for e in examples:
        A, n = float(np.float32(e.extra["advantage"])), int(e.mask.sum())
        scale = {"sequence_mean_token_mean": 1 / n}.get(cfg["aggregation"], 1.0)
        counts.append(n)
        share.append(1.0)
        for t in np.flatnonzero(e.mask):
            before, y = e.tokens[t - 1], e.tokens[t]
            logp = log_softmax(table[before] / cfg["temperature"])
            p = np.exp(logp[y])
            if e.extra["refined"]:
                f, weight = p / (p + GAMMA), GAMMA * p / (p + GAMMA) ** 2
            else:
                rho = 1.0 if on_policy else np.exp(logp[y] - float(e.extra["behaviour"][t]))
                clipped = np.clip(rho, low, high)
                f, weight = (rho, rho) if rho * A <= clipped * A else (clipped, 0.0)
            value -= scale * A * f
            gradient[before] -= scale * A * weight * (np.eye(V)[y] - np.exp(logp)) / cfg["temperature"]
    denom = {"constant": len(examples) * L, "token_mean": sum(counts)}.get(cfg["aggregation"], len(examples))
    return value / denom, gradient / denom


TABLE = np.random.default_rng(1).normal(size=(V, V))


@pytest.mark.parametrize("aggregation", grpo.AGGREGATIONS)
@pytest.mark.parametrize("updates, clips", [(1, (0.0, 0.0)), (2, (0.0, 0.0)), (2, (0.2, 0.1))], ids=str)
def test_CG2_CG5_the_whole_gradient_by_hand(aggregation, updates, clips):
    low, high = clips
    cfg = cfg_of(aggregation=aggregation, minibatches=updates, clip_low=low, clip_high=high, temperature=0.7)
    examples = drawn()
    got, gradient = value_and_gradient(TABLE, examples, cfg)
    want, by_tokens = by_hand(TABLE, examples, cfg, on_policy=updates == 1)
    assert got == pytest.approx(want, rel=1e-5)
    np.testing.assert_allclose(gradient, by_tokens, rtol=1e-4, atol=1e-6)
    if low:  # some tokens are clipped, or the case shows nothing
        free = by_hand(TABLE, examples, {**cfg, "clip_low": 0.0, "clip_high": 0.0}, on_policy=False)[1]
        assert np.abs(free - by_tokens).max() > 1e-3


def test_CG2_the_shape_of_f():
    p, h = np.linspace(0.01, 1, 100), 1e-6
    slope = (cg.shaped(p + h, GAMMA) - cg.shaped(p - h, GAMMA)) / (2 * h)
    np.testing.assert_allclose(slope, GAMMA / (p + GAMMA) ** 2, rtol=1e-6)
    traced = jax.vmap(jax.grad(lambda logp: cg.shaped(jnp.exp(logp), GAMMA)))(jnp.log(jnp.float32(p)))
    np.testing.assert_allclose(traced, GAMMA * p / (p + GAMMA) ** 2, rtol=1e-4)
    assert p[np.argmax(traced)] == pytest.approx(GAMMA), "the weight of grad log p peaks at p = gamma"
    assert cg.shaped(0.0, GAMMA) == 0 and cg.shaped(1.0, GAMMA) == pytest.approx(1 / 1.1)


def test_CG5_what_the_sampler_thought_of_a_refinement_counts_nowhere():
    cfg, examples = cfg_of(minibatches=2), drawn()
    base = value_and_gradient(TABLE, examples, cfg)
    for refined, same in ((1.0, True), (0.0, False)):
        moved = [Example(e.tokens, e.mask, {**e.extra, "behaviour": e.extra["behaviour"] - 0.5 * e.mask})
                 if e.extra["refined"] == refined else e for e in examples]  # fmt: skip
        value, gradient = value_and_gradient(TABLE, moved, cfg)
        assert (value == base[0] and np.array_equal(gradient, base[1])) is same


def test_the_entropy_bonus_counts_every_response_alike():
    cfg, examples = cfg_of(entropy_bonus=0.5), drawn()
    with_bonus, without = (value_and_gradient(TABLE, examples, c)[0] for c in (cfg, cfg_of()))
    rows = log_softmax(TABLE, axis=1)
    entropy = -(np.exp(rows) * rows).sum(1)
    total = sum(entropy[e.tokens[t - 1]] for e in examples for t in np.flatnonzero(e.mask))
    assert without - with_bonus == pytest.approx(0.5 * total / (len(examples) * L), rel=1e-5)


# --- from verdicts to examples -------------------------------------------------------------------------------

RIGHT, WRONG = Verdict(Outcome.RIGHT, "1", 1.0), Verdict(Outcome.WRONG, "2", 0.5)


def sample(verdict, rng, prompt=(1, 2), symbols=V):
    n = int(rng.integers(1, L + 1))
    return Sample(np.array(prompt), rng.integers(3, symbols, n), -rng.random(n).astype(np.float32), True, verdict)


def material_of(right_NG, refined_NG=None, wrong=WRONG, symbols=V):
    """Initial samples and refinements with these verdicts; refinements were sampled under a prompt of their own."""
    rng = np.random.default_rng(0)
    draw = lambda row, prompt: [sample(RIGHT if r else wrong, rng, prompt, symbols) for r in row]  # noqa: E731
    samples = [[draw(row, (1, 2)) for row in right_NG]]
    if refined_NG is not None:
        samples.append([draw(row, (1, 2, 7, 8)) for row in refined_NG])
    problems = [Problem(i, "g", "", "") for i in range(len(right_NG))]
    return Material(types.SimpleNamespace(max_response_tokens=L), problems, samples, {}, None, rng)


def members(example, material):
    """(round, sample) that an example was made of."""
    return [(r, s) for r, groups in enumerate(material.samples) for group in groups for s in group
            if np.array_equal(s.tokens, example.tokens[2:]) and float(r > 0) == example.extra["refined"]]  # fmt: skip


@pytest.mark.parametrize("n, k", [(8, 1), (8, 3), (4, 3), (2, 1)])
def test_CG3_CG4_CG6_the_union(n, k):
    cfg = cfg_of(refined=k) | {"samples_per_prompt": n}
    rng = np.random.default_rng(n * k)
    rights = np.vstack([rng.random((40, n)) < rng.random((40, 1)), np.zeros((4, n), bool), np.ones((1, n), bool)])
    rewrites = np.vstack([rng.random((40, n)) < 0.2, np.eye(n)[rng.integers(n, size=4)] > 0, np.ones((1, n), bool)])
    material = material_of(rights, rewrites, symbols=2**40)  # no two responses are alike
    examples = cg.examples(material, cfg)
    assert len(examples) == len(rights) * n
    for i, (right, better) in enumerate(zip(rights, rewrites, strict=True)):
        group = examples[i * n : (i + 1) * n]
        found = [members(e, material) for e in group]
        assert all(found), "every row is one of the samples, after the plain question (CG-4)"
        assert all(list(e.tokens[:2]) == [1, 2] and e.mask.sum() == len(e.tokens) - 2 for e in group)
        assert sum(e.extra["advantage"] for e in group) == pytest.approx(0, abs=1e-5)  # CG-3
        assert all(e.extra["behaviour"].any() != bool(e.extra["refined"]) for e in group), "no ratio (CG-5)"
        new = sum(e.extra["refined"] for e in group)
        assert new == min(k, n - right.sum()), "refinements take the places of wrong responses alone (c), k of n (b)"
        rewards = np.array([float(m[0][1].verdict.right) for m in found])
        np.testing.assert_allclose([e.extra["advantage"] for e in group], rewards - rewards.mean(), atol=1e-6)  # (a)
        kept = sum(m[0][1].verdict.right for m, e in zip(found, group, strict=True) if not e.extra["refined"])
        assert kept == right.sum(), "no right response leaves"
        chosen = sum(m[0][1].verdict.right for m, e in zip(found, group, strict=True) if e.extra["refined"])
        assert chosen == min(new, better.sum()), "right refinements first"
        if not right.any() and better.sum() == 1:  # CG-6
            assert [e.extra["advantage"] > 0 for e in group] == [bool(r) for r in rewards] and chosen == 1
            assert all(e.extra["refined"] for e in group if e.extra["advantage"] > 0)


def test_the_choice_is_random_and_a_function_of_the_step():
    places = set()
    for seed in range(30):
        material = material_of(np.zeros((1, 4), bool), np.zeros((1, 4), bool))
        material.rng = np.random.default_rng(seed)
        union = cg.union(material.samples[0][0], material.samples[1][0], 1, material.rng)
        assert [new for _, new in union] == [False, False, False, True]
        at = lambda group, s: next(i for i, other in enumerate(group) if other is s)  # noqa: E731
        chosen = at(material.samples[1][0], union[-1][0])
        places.add((chosen, *(at(material.samples[0][0], s) for s, _ in union[:3])))
    assert len({p[0] for p in places}) == 4 and len({p[1:] for p in places}) == 4


@pytest.mark.parametrize("outcome", [Outcome.UNPARSED, Outcome.ERROR, Outcome.WRONG])
def test_what_nobody_can_read_or_judge_pays_nothing_and_is_not_right(outcome):
    """(d): a gold answer or a response that cannot be parsed never pays."""
    material = material_of([[0, 0, 0, 0]], [[0, 0, 0, 1]], wrong=Verdict(outcome))
    examples = cg.examples(material, cfg_of())
    rewards = np.array([0, 0, 0, 1.0])
    np.testing.assert_allclose([e.extra["advantage"] for e in examples], rewards - rewards.mean())
    assert cg.metrics(material, cfg_of()) == {
        "reward": 0.0, "right": 0.0, "truncated": 0.0, "refined_right": 0.25, "mended": 0.25, "rescued_groups": 1.0,
    }  # fmt: skip


def test_metrics_tell_mended_responses_from_rescued_problems():
    material = material_of([[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], [[0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    got = cg.metrics(material, cfg_of())
    assert got["right"] == pytest.approx(1 / 12) and got["refined_right"] == pytest.approx(3 / 12)
    assert got["mended"] == pytest.approx(3 / 11) and got["rescued_groups"] == pytest.approx(1 / 2)


def test_CG1_without_refinements_it_is_Dr_GRPO():
    """Examples, value and gradient of the settings that grpo documents."""
    material = material_of(np.random.default_rng(3).random((4, 4)) < 0.5)
    chosen = dict(aggregation="constant", clip_low=0.0, clip_high=0.0)
    ours, theirs = cfg_of(refined=0, temperature=0.7), cfg_of("grpo", advantage="group_mean", temperature=0.7, **chosen)
    examples, plain = cg.examples(material, ours), grpo.examples(material, theirs)
    for a, b in zip(examples, plain, strict=True):
        assert np.array_equal(a.tokens, b.tokens) and np.array_equal(a.mask, b.mask)
        assert np.array_equal(a.extra["behaviour"], b.extra["behaviour"])
        assert a.extra["advantage"] == b.extra["advantage"] and a.extra["refined"] == 0
    for updates in (1, 2):
        both = {"minibatches": updates}
        a = value_and_gradient(TABLE, examples, ours | both)
        b = value_and_gradient(TABLE, plain, theirs | both, grpo.REGIME)
        assert a[0] == pytest.approx(b[0], rel=1e-6) and np.abs(a[1]).max() > 1e-3
        np.testing.assert_allclose(a[1], b[1], rtol=1e-5, atol=1e-7)


# --- the rounds, on the toy task --------------------------------------------------------------------------------


class Canned:
    """Rounds fed by hand: what each asks with, and the texts that come back."""

    def __init__(self, task, cfg, texts):
        self.task, self.cfg = task, cfg
        self.material = Material(task, task.training({}, 2), [], {}, None, np.random.default_rng(0))
        self.rounds = cg.rounds(cfg, task, None)
        self.asked = []
        for spec, answers in zip(self.rounds, texts, strict=False):
            asked = spec.prompts(self.material)
            self.asked.append(asked)
            each = len(answers) // 2
            samples = [self._sample(asked[i // spec.n], text, i // each) for i, text in enumerate(answers)]
            samples = samples if spec.judged else [self._unjudged(s) for s in samples]
            self.material.samples.append([samples[:each], samples[each:]])

    def _sample(self, prompt, text, owner):
        tokens = self.material.encode(text)
        verdict = self.task.verify(self.material.problems[owner], text)
        logprobs = np.zeros(len(tokens), np.float32)
        return Sample(self.material.encode(prompt), tokens, logprobs, text.endswith("$"), verdict)

    def _unjudged(self, sample):
        return Sample(sample.prompt, sample.tokens, sample.logprobs, sample.stopped, None)


FIRST = ["b1$", "a2$", "a", "d$"]  # right by the parity of the first letter: b and d. One response was cut


@pytest.mark.parametrize("kind, said", [
    ("indicative", ["1", "0", "0", "1"]), ("indicative_gt", ["1{0}", "0{0}", "0{1}", "1{1}"]),
    ("cot", ["k", "0a", "0a", "k"]),
])  # fmt: skip
def test_CG4_a_refinement_is_asked_for_with_the_critique_of_its_own_response(kind, said, toy):
    cfg = toy.arm("critique_grpo", samples_per_prompt=2, critique_kind=kind)
    run = Canned(toy.task, cfg, [FIRST, ["a$", "b$", "a$", "c$"]])
    assert [(r.model, r.n, r.judged, r.max_tokens) for r in run.rounds] == [
        ("policy", 2, True, 72),
        ("policy", 1, True, 72),
    ]
    problems = run.material.problems
    assert run.asked[0] == [p.prompt for p in problems]
    critiques = [text.format(*(p.answer for p in problems)) for text in said]
    owners = [problems[0]] * 2 + [problems[1]] * 2
    assert run.asked[1] == [
        f"{p.prompt}{y.removesuffix('$')}{c}:{p.prompt}" for p, y, c in zip(owners, FIRST, critiques, strict=True)
    ]
    counted = sum(len(c) for c in critiques)
    assert cg.counts(run.material, [], cfg) == {"critique tokens": counted}  # CG-8
    for e in cg.examples(run.material, cfg):  # the group's prompt, then what was sampled: no ":" of a rewriter's prompt
        assert ":" not in toy.task.tokenizer.decode(e.tokens)


@pytest.mark.parametrize("critic", ["policy", "teacher"])
def test_CG8_a_model_that_criticises_is_sampled_for_it(critic, toy):
    """Once per response, unjudged; a teacher reads what its kind allows, the policy no key. Right responses have the
    stock line of kind cot, and the others exactly what was written, without its end."""
    cfg = toy.arm("critique_grpo", samples_per_prompt=2, critic=critic, critique_kind="cot")
    written = ["x?", "02$", "03", "04$"]
    run = Canned(toy.task, cfg, [FIRST, [w.replace("x?", "09$") for w in written], ["a$"] * 4])
    spec = run.rounds[1]
    assert (spec.model, spec.n, spec.judged, spec.max_tokens) == (critic, 1, False, 6)
    owners = [run.material.problems[i // 2] for i in range(4)]
    known = ["" if critic == "policy" else 2 * p.answer for p in owners]
    plain = [f"{p.prompt}{y.removesuffix('$')}" for p, y in zip(owners, FIRST, strict=True)]
    assert run.asked[1] == [f"{text}{key}#" for text, key in zip(plain, known, strict=True)]
    texts = ["k", "02", "03", "k"]
    assert run.asked[2] == [f"{x}{c}:{p.prompt}" for x, c, p in zip(plain, texts, owners, strict=True)]
    free = Canned(toy.task, {**cfg, "critique_kind": "indicative"}, [FIRST, ["09$", "02$", "03", "04$"], ["a$"] * 4])
    assert [text.split(":")[0][-2:] for text in free.asked[2]] == ["09", "02", "03", "04"], "no stock line"


def test_what_an_arm_reads_is_declared():
    declared = lambda **o: cg.reads(cfg_of(**o))  # noqa: E731
    assert declared() == declared(refined=0, critic="teacher") == ("prompt", "answer")
    assert declared(critique_kind="cot") == ("prompt", "answer", "solution")
    assert declared(critique_kind="cot", critic="policy") == ("prompt", "answer")
    assert declared(critique_kind="cot", critic="teacher") == ("prompt", "answer", "solution", "teacher text")


def test_CG7_settings_that_could_not_act_are_refused(toy):
    with pytest.raises(ceiling.ConfigError, match="refined=4 leaves no initial response"):
        cg.rounds(cfg_of(refined=4), toy.task, None)
    for critics, part in (({}, "it has none"), ({"task": ("cot",)}, r"task \(cot\)")):
        task = types.SimpleNamespace(name="t", max_response_tokens=4, critics=critics)
        with pytest.raises(ceiling.ConfigError, match=f"critique_kind='indicative': no such critiques.*{part}"):
            cg.rounds(cfg_of(), task, None)
    assert len(cg.rounds(cfg_of(refined=0), types.SimpleNamespace(max_response_tokens=4), None)) == 1
    for part, overrides in {
        "critic='teacher': nothing is criticised": dict(refined=0, critic="teacher"),
        "samples_per_prompt=1": dict(samples_per_prompt=1),
        "critic='file' is not allowed": dict(critic="file"),
        "gamma": dict(gamma=0.0),
        "only regime 'distill' and critic='teacher' are taught": dict(teacher="b"),
    }.items():
        arms = {"a": ceiling.arm("critique_grpo", **overrides), "b": ceiling.arm("sft")}
        with pytest.raises(ceiling.ConfigError, match=part):
            ceiling.validate(ceiling.defaults("lab", arms=arms))
    lab = ceiling.defaults("lab", arms={"a": ceiling.arm("critique_grpo", pool=4, mix={"C": 1.0})})
    lab.task.update(evaluation_per_group=1, training_per_group=4, gate_problems=1)
    lab = ceiling.validate(lab)
    with pytest.raises(ceiling.ConfigError, match="config.arms.a: critic='task'.*no such critiques in task lab"):
        ceiling.schema.check_against_task(lab, ceiling.schema.load_task(lab))


# --- in the loop ------------------------------------------------------------------------------------------------


def cheap(params, batch, frozen, forward, cfg):
    """A loss that compiles at once: these are tests of the loop around it."""
    return jnp.sum(params["final_norm"]) * jnp.sum(batch.mask_BT), jnp.sum(batch.mask_BT), {}


@pytest.fixture(scope="module")
def critical(toy):
    """A small lab with critiques, its model and two sets of weights. An untrained model is never right there; by the
    parity of its first character it sometimes is."""
    config = ceiling.defaults("lab").task
    config.update(evaluation_per_group=2, training_per_group=64, gate_problems=2, critiques=0.5)
    task = base.load(config.to_dict(), {"path": ""})
    task.verify = toy.task.verify
    model = toy.model_of(task)
    return task, model, toy.fresh(model, 0), toy.fresh(model, 1)


def trainer_of(critical, name, seen, **overrides):
    """A trainer of one step that puts its (material, examples) into `seen`."""
    task, model, weights, other = critical
    regime, mesh = load(name), make_mesh()

    def examples(material, cfg):
        seen.append((material, regime.examples(material, cfg)))
        return seen[-1][1]

    cfg = ceiling.arm(name, prompts_per_step=4, samples_per_prompt=3, pool=32, mix={"C": 1.0}, **overrides).to_dict()
    return Trainer(
        dataclasses.replace(regime, examples=examples, loss=cheap), cfg, Policy(place(weights, model, mesh), model, ()),
        task, models={"teacher": Policy(other, model, ())}, seed=1, budget=Budget(steps=1), mesh=mesh, corpus=None,
    )  # fmt: skip


def rollout_flops(model, groups):
    flat = [s for group in groups for s in group]
    return sum(accounts.sampling_flops(model, [len(s.prompt)], [[len(s.tokens)]]) for s in flat)


def test_CG8_critiques_and_refinements_are_paid_for_by_those_who_write_them(critical):
    task, model, *_ = critical
    seen = []
    trained = trainer_of(critical, "critique_grpo", seen, critic="teacher", critique_kind="cot").run(lambda row: None)
    ((material, examples),) = seen
    first, critiques, refined = material.samples
    for groups in (critiques, refined):
        assert [len(group) for group in groups] == [3] * 4
        for problem, before, group in zip(material.problems, first, groups, strict=True):
            for s, origin in zip(group, before, strict=True):
                text = task.tokenizer.decode(s.prompt)
                said = task.tokenizer.decode(origin.tokens).removesuffix("$")
                assert text.startswith(f"{problem.prompt}{said}?"), "its own response"
    assert all(s.verdict is None for group in critiques for s in group)
    texts = {tuple(s.tokens) for group in refined for s in group}
    assert len(texts) > 6, "samples of one problem are different draws"
    entries, counters = trained.ledger.entries, trained.ledger.counters
    shared = sum(
        accounts.sampling_flops(model, [len(g[0].prompt)], [[len(s.tokens) for s in g]]) for g in first
    )  # the prompt of a group is prefilled once
    assert entries["rollout", "policy"].flops == pytest.approx(shared + rollout_flops(model, refined), rel=1e-9)
    assert entries["rollout", "teacher"].flops == pytest.approx(rollout_flops(model, critiques), rel=1e-9)
    assert trained.ledger.teacher_flops == entries["rollout", "teacher"].flops
    assert sum(n for name, n in counters.items() if name.startswith("verdicts")) == 24
    assert counters["critique tokens"] > 0 and len(examples) == 12
    right = [sum(s.verdict.right for s in g) for g in first]
    assert [row[2:] for row in trained.history] == [(n, 3) for n in right], "refinements are no history of a problem"


def test_CF3_critiques_and_documents_that_show_them_have_room(critical):
    task, *_ = critical
    room = lambda **o: trainer_of(critical, "sft", [], **o).max_tokens  # noqa: E731
    assert room() == 9 + task.max_response_tokens
    assert room(source="critiques") == task.max_critique_prompt_tokens + task.max_critique_tokens > room()
    assert room(source="corpus") == room(source="critiques", replay=0.5) == task.max_document_tokens > room()
