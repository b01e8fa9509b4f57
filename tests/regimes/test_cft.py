"""Critique fine-tuning, sft with source="critiques" (CF-1 to CF-5)."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ceiling
from ceiling import experiment
from ceiling.regimes import sft
from ceiling.regimes.base import Material, Sample, text_example
from ceiling.tasks import lab, questions

CANDIDATES = ["b1$", "a2$", "a", "d$"]  # two of each problem; b and d are right by their parity, one was cut


def cfg_of(toy, **overrides):
    return toy.arm("sft", source="critiques", prompts_per_step=2, samples_per_prompt=2, **overrides)


def step(task, cfg, *rounds):
    """A step whose rounds returned these texts: (material, prompts of each round, examples)."""
    material = Material(
        task, task.training({}, 2), [], {}, lambda n: task.corpus("prior", 0, n), np.random.default_rng(0)
    )
    asked = []
    for spec, texts in zip(sft.rounds(cfg, task, None), rounds, strict=True):
        asked.append(spec.prompts(material))
        each = len(texts) // 2
        flat = [
            Sample(material.encode(asked[-1][i // spec.n]), material.encode(text), np.zeros(len(text), np.float32),
                   text.endswith("$"), task.verify(material.problems[i // each], text) if spec.judged else None)
            for i, text in enumerate(texts)
        ]  # fmt: skip
        material.samples.append([flat[:each], flat[each:]])
    return material, asked, sft.examples(material, cfg)


def split(task, example):
    """(context, target) of an example as text."""
    of = lambda on: task.tokenizer.decode(example.tokens[(example.mask > 0) == on])  # noqa: E731
    return of(False), of(True)


@pytest.mark.parametrize("kind, said", [
    ("indicative", ["1$", "0$", "0$", "1$"]), ("indicative_gt", ["1{0}$", "0{0}$", "0{1}$", "1{1}$"]),
    ("cot", ["k$", "0a$", "0a$", "k$"]),
])  # fmt: skip
def test_CF1_CF5_the_loss_is_on_the_critique_and_its_end_after_problem_and_candidate(kind, said, toy):
    """Whatever the critic knew, the student reads the question and the candidate: no key in its context."""
    task, cfg = toy.task, cfg_of(toy, critique_kind=kind)
    assert [(r.model, r.n, r.judged) for r in sft.rounds(cfg, task, None)] == [("reference", 2, True)]
    material, asked, examples = step(task, cfg, CANDIDATES)
    assert asked == [[p.prompt for p in material.problems]], "candidates are plain answers to the question (CF-5)"
    owners = [material.problems[i // 2] for i in range(4)]
    contexts = [f"{p.prompt}{y.removesuffix('$')}#" for p, y in zip(owners, CANDIDATES, strict=True)]
    targets = [text.format(*(p.answer for p in material.problems)) for text in said]
    assert [split(task, e) for e in examples] == list(zip(contexts, targets, strict=True))
    for e in examples:
        assert np.all(np.diff(e.mask) >= 0) and e.mask[-1] == 1, "one span, at the end"
        assert len(e.tokens) <= sft.longest(cfg, task)
    assert sft.counts(material, examples, cfg) == {"critique tokens": sum(map(len, targets))}  # CF-3


def test_CF2_the_candidate_acts_through_conditioning_alone(toy):
    """Under a policy that looks one token back, candidates that end alike give the same loss to the bit; what a
    candidate's own tokens are worth counts nowhere."""
    table = jnp.asarray(np.random.default_rng(0).normal(size=(28, 28)), jnp.float32)

    class Tabular:
        def logprobs(self, params, batch):
            logp_BTV = jax.nn.log_softmax(params[batch.tokens_RW.reshape(-1)[batch.index_BT]])
            return jnp.take_along_axis(logp_BTV, batch.targets_BT[..., None], axis=-1)[..., 0], None

    cfg = cfg_of(toy, critique_kind="indicative")
    value = lambda texts: float(  # noqa: E731
        sft.loss(table, toy.batch_of(step(toy.task, cfg, texts)[2], max_tokens=24), {}, Tabular(), cfg)[0]
    )
    one, other = value(CANDIDATES), value(["b9341$", "acccc$", "aa", "dlll$"])
    assert one == other
    assert value(["a1$", "a2$", "a", "d$"]) != one, "a verdict that changes, changes the critique"


def test_CF3_a_teachers_critiques_are_sampled_as_it_wrote_them(toy):
    """Its round is the teacher's, so its tokens are in the teacher's ledger; it may see the key, the student may not;
    and a critique that was cut has no end to be learned."""
    cfg = cfg_of(toy, critic="teacher", critique_kind="indicative_gt")
    written = ["09$", "02$", "03", "04$"]
    material, asked, examples = step(toy.task, cfg, CANDIDATES, written)
    spec = sft.rounds(cfg, toy.task, None)[1]
    assert (spec.model, spec.n, spec.judged, spec.max_tokens) == ("teacher", 1, False, 6)
    owners = [material.problems[i // 2] for i in range(4)]
    plain = [f"{p.prompt}{y.removesuffix('$')}" for p, y in zip(owners, CANDIDATES, strict=True)]
    assert asked[1] == [f"{text}{p.answer}#" for text, p in zip(plain, owners, strict=True)]
    assert [split(toy.task, e) for e in examples] == [(f"{text}#", w) for text, w in zip(plain, written, strict=True)]
    assert sft.counts(material, examples, cfg) == {"critique tokens": 11}
    assert "teacher text" in sft.reads(cfg) and "teacher text" not in sft.reads(cfg_of(toy))


def test_CF4_with_a_solution_for_a_critique_it_is_SFT_after_the_same_context(toy):
    class Solving(toy.Task):
        def critique(self, problem, response, verdict, kind):
            return problem.answer + "#" + problem.answer

    task = Solving()
    material, _, examples = step(task, cfg_of(toy), CANDIDATES)
    want = [
        text_example(material.encode, task.critique_prompt(p, y, None), task.demonstration(p, None))
        for p, y in zip([material.problems[i // 2] for i in range(4)], CANDIDATES, strict=True)
    ]
    for a, b in zip(examples, want, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.mask, b.mask)


def test_recorded_critiques_are_of_the_files_own_responses(toy):
    """No sampling; up to samples_per_prompt of each problem; a problem without one gives nothing; what is longer than
    the longest critique is left out."""
    cfg = cfg_of(toy, critic="file", critique_kind="cot", replay=0.25)
    assert sft.rounds(cfg, toy.task, None) == ()
    material, _, examples = step(toy.task, cfg)
    assert split(toy.task, examples[0])[1].endswith("$") and examples[0].mask.sum() > 1, "the replayed document"
    odd = material.problems[1]
    known = {(f"{odd.prompt}{letter}{i}#", f"{i}1$") for i, letter in enumerate(odd.answer)}
    got = [split(toy.task, e) for e in examples[1:]]
    assert len(got) == 2 == len(set(got)) and set(got) < known
    assert sft.counts(material, examples, cfg) == {"critique tokens": 6}

    class Long(toy.Task):
        def recorded(self, problem, kind):
            return [(50 * "a", "1"), (90 * "a", "1")] if problem.id % 2 else []

    assert [len(e.tokens) for e in step(Long(), cfg)[2][1:]] == [len(odd.prompt) + 50 + 3]


@pytest.mark.parametrize("critic, kind, reads", [
    ("task", "indicative", ("prompt", "answer")), ("task", "cot", ("prompt", "answer", "solution")),
    ("teacher", "indicative", ("prompt", "answer", "teacher text")),
    ("file", "cot", ("prompt", "answer", "solution", "teacher text")),
])  # fmt: skip
def test_what_the_arm_declares_to_read(critic, kind, reads, toy):
    assert sft.reads(cfg_of(toy, critic=critic, critique_kind=kind)) == reads
    assert sft.reads(toy.arm("sft")) == ("prompt", "solution")


def test_room_is_made_for_critiques_and_for_documents_that_have_them(toy):
    task = types.SimpleNamespace(max_critique_prompt_tokens=50, max_critique_tokens=7, max_document_tokens=90)
    longest = lambda **o: sft.longest(toy.arm("sft", **o), task)  # noqa: E731
    assert longest() == longest(source="own_samples") == 0 and longest(source="corpus") == longest(replay=0.5) == 90
    assert longest(source="critiques") == 57 and longest(source="critiques", replay=0.5) == 90
    assert sft.longest(toy.arm("sft", source="corpus"), types.SimpleNamespace()) == 0, "a task without critiques"


def test_CF5_evaluation_asks_the_plain_question(tmp_path):
    """No prompt of a problem asks for a critique or shows one: in the lab none of its symbols, elsewhere none of its
    words."""
    config = lab.CONFIG.defaults(evaluation_per_group=2, training_per_group=2, gate_problems=2)
    without, criticised = (lab.make({**config.to_dict(), "critiques": share}, {}) for share in (0.0, 0.3))
    assert [p.prompt for p in criticised.evaluation()] == [p.prompt for p in without.evaluation()]
    assert not set("".join(p.prompt for p in criticised.evaluation())) & set("?✗✓")
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"question": "Add 1 to {i}.", "answer": "so #### {i + 1}"}}\n' for i in range(6)))
    task = questions.make(questions.CONFIG.defaults(evaluation_problems=2), {"path": str(path)})
    assert all(p.prompt == f"Q: {p.meta.question}\nA: " for p in task.evaluation())


def test_CG7_a_critic_that_nobody_asks_is_refused():
    for part, arm in {
        "critic='teacher': nothing is criticised here": ceiling.arm("sft", critic="teacher"),
        "critique_kind='indicative': nothing is criticised": ceiling.arm("sft", critique_kind="indicative"),
        "critic='policy' is not allowed": ceiling.arm("sft", source="critiques", critic="policy"),
    }.items():
        with pytest.raises(ceiling.ConfigError, match=part):
            ceiling.validate(ceiling.defaults("lab", arms={"a": arm}))
    config = ceiling.defaults("lab", arms={"a": ceiling.arm("sft", source="critiques", critic="teacher")})
    stages = {s.name: s for s in experiment.plan(ceiling.validate(config))}
    assert stages["seed1/a"].needs["teacher"] is stages["seed1/teacher"]
    config.arms.a.critic = "task"
    assert "seed1/teacher" not in {s.name for s in experiment.plan(ceiling.validate(config))}
    config.prior.source = "critiques"
    with pytest.raises(ceiling.ConfigError, match=r"config\.prior\.source='critiques'"):
        ceiling.validate(config)
