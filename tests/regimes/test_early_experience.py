"""Early experience and the narrow expert: EE-1, EE-2 and EE-4 to EE-6, on a toy world and made-up actions."""

import dataclasses
import threading
import types

import numpy as np
import pytest

import ceiling
from ceiling.regimes import early_experience, sft
from ceiling.regimes.base import Material, Sample
from ceiling.tasks.search import generated

regime = early_experience.REGIME


@pytest.fixture
def world(toy):
    """A toy world of its own, whose verdicts and answers nobody may read (EE-6)."""

    class World(type(toy.world)):
        environment = types.SimpleNamespace(**vars(toy.world.environment))

        def verify(self, problem, response):
            raise AssertionError("a verdict was asked for")

    return World()


class Unread:
    """A verdict that nobody may look at."""

    def __getattribute__(self, name):
        raise AssertionError("a verdict was read")


def drawn(task, cfg, actions, ids=(101, 102), key=(3, 5)):
    """Material of a step in which the policy did these in every state. A text ends in its tag, in $, or not at all."""
    problems = [task._problem(i) for i in ids]
    material = Material(task, problems, [], {}, lambda n: [], np.random.default_rng(7), key=key)
    for spec in regime.rounds(cfg, task, None):
        assert (spec.n, spec.judged, spec.stop) == (len(actions), False, ":")
        material.samples.append([
            [Sample(material.encode(prompt), material.encode(a), np.zeros(len(a), np.float32), a[-1:] == ":", Unread())
             for a in actions]
            for prompt in spec.prompts(material)
        ])  # fmt: skip
    return material


def rows(task, cfg, actions, **where):
    """(context, target) of every example, the material and what the ledger counts."""
    material = drawn(task, cfg, actions, **where)
    examples = regime.examples(material, cfg)
    decode, out = task.tokenizer.decode, []
    for e in examples:
        assert len(e.tokens) == len(e.mask) and set(e.mask) <= {0.0, 1.0}
        out.append((decode(e.tokens[e.mask == 0]), decode(e.tokens[e.mask == 1]), decode(e.tokens)))
    return out, material, regime.counts(material, examples, cfg)


def states(task, problem):
    """The two states of the toy expert, as text, and what it does in each, but for its thought."""
    word = problem.answer
    return {problem.prompt: f"{word[0]}:", f"{problem.prompt}{word[0]}:.{word[0]}.": f"{word}$"}


# --- EE-1 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["demonstrations", "expert"])
@pytest.mark.parametrize("kind", ["world_model", "reflection"])
def test_EE1_without_alternatives_it_is_sft_to_the_bit(source, kind, toy):
    """Same rows, same order, same draws of the same generator; of a task without an environment, too."""
    task = toy.world if source == "expert" else toy.task
    cfg = toy.arm("early_experience", alternatives=0, kind=kind, source=source, prompts_per_step=8)
    ours, theirs = drawn(task, cfg, (), range(100, 108)), drawn(task, cfg, (), range(100, 108))
    a, b = regime.examples(ours, cfg), sft.examples(theirs, toy.arm("sft", source=source, prompts_per_step=8))
    assert 0 < len(a) == len(b) < 8 * 4, "two problems have none"
    for one, other in zip(a, b, strict=True):
        assert np.array_equal(one.tokens, other.tokens) and np.array_equal(one.mask, other.mask)
    assert ours.rng.bit_generator.state == theirs.rng.bit_generator.state
    rng, write = np.random.default_rng(7), task.expert if source == "expert" else task.demonstration
    texts = [(p.prompt, write(p, rng)) for _ in range(4) for p in ours.problems]
    assert [task.tokenizer.decode(e.tokens) for e in a] == [x + "".join(y) for x, y in texts if y]
    assert regime.reads(cfg) == sft.reads({"source": source}) and regime.counts(ours, a, cfg) == {}


def test_the_experts_demonstrations_are_imitated_turn_by_turn_and_a_task_without_one_is_refused(toy):
    cfg = toy.arm("sft", source="expert")
    assert sft.rounds(cfg, toy.world, None) == ()
    material = Material(toy.world, [toy.world._problem(100)], [], {}, lambda n: [], np.random.default_rng(0))
    for e in sft.examples(material, cfg):
        word = material.problems[0].answer
        assert toy.world.tokenizer.decode(e.tokens[e.mask > 0]).replace("#", "") == f"{word[0]}:{word}$"
    for name, changes in (("sft", {}), ("early_experience", {"alternatives": 0})):
        with pytest.raises(ceiling.ConfigError, match="source='expert': task toy has no expert"):
            toy.load(name).rounds(toy.arm(name, source="expert", **changes), toy.task, None)


# --- EE-2, EE-4: next states ------------------------------------------------------------------------------


def test_EE2_EE4_the_loss_is_on_the_next_state_alone_and_the_environment_gives_it_again(toy, world):
    cfg = toy.arm("early_experience", kind="world_model", samples_per_prompt=3, alternatives=3)
    actions = ("abc:", "1:", ":")
    seen = set()
    for step in range(6):
        got, material, counts = rows(world, cfg, actions, key=(3, step))
        assert len(got) == 6 and counts["alternatives dropped"] == 0 and counts["tool calls"] == 6
        for (context, target, whole), (problem, action) in zip(
            got, ((p, a) for p in material.problems for a in actions), strict=True
        ):
            state = context.removesuffix(action)
            assert state in states(world, problem) and whole == context + target, "the target comes last"
            assert target == "." + world.environment.call(problem, action) + "."
            seen.add((problem.id, state))
        assert counts["observation tokens"] == sum(len(target) for _, target, _ in got)
    assert len(seen) == 4, "every state of the expert is drawn at some step"


def test_what_an_episode_would_not_show_is_not_shown(toy, world):
    """An observation is cut and cleared as in an episode, a failure answered in the environment's words."""

    def call(problem, turn):
        return {"1:": "0123456789" * 9, "2:": "$:a."}.get(turn) or 1 / 0

    world.environment.call = call
    cfg = toy.arm("early_experience", samples_per_prompt=3, alternatives=3)
    got, _, counts = rows(world, cfg, ("1:", "2:", "3:"), ids=(101,))
    assert [target for _, target, _ in got] == [".012345.", ".a.", ".0."]
    assert (counts["tool calls"], counts["tool errors"], counts["tool timeouts"]) == (3, 1, 0)


def test_a_tool_that_hangs_is_given_up(toy, world):
    never = threading.Event()
    world.environment.call = lambda problem, turn: str(never.wait(5)) if turn == "1:" else turn[:1]
    world.environment.workers, world.environment.timeout_s = 2, 0.05
    cfg = toy.arm("early_experience", samples_per_prompt=4, alternatives=4)
    got, _, counts = rows(world, cfg, ("1:", "2:", "3:", "4:"), ids=(101,))
    never.set()
    assert [target for _, target, _ in got] == [".0.", ".2.", ".3.", ".4."]
    assert (counts["tool calls"], counts["tool errors"], counts["tool timeouts"]) == (4, 0, 1)


@pytest.mark.parametrize("kind", ["world_model", "reflection"])
def test_alternatives_that_teach_nothing_are_dropped_counted_and_replaced_by_demonstrations(kind, toy, world):
    """The expert's own action, one without an end, an empty one, an answer that nothing comes of (in a world model),
    and one too long for a response."""
    cfg = toy.arm("early_experience", kind=kind, samples_per_prompt=8, alternatives=7)
    problem = world._problem(101)
    world.states = lambda problem, rng: [("",)] if problem.id == 101 else []
    long = "a" * world.max_response_tokens + ":"
    actions = (f"{problem.answer[0]}:", "abc", "$", "b$c", "c:", "c:", long)
    got, material, counts = rows(world, cfg, actions, ids=(101,))
    learned = 2 if kind == "world_model" else 4  # the long one is only thought about, and so is the answer
    assert counts["alternatives dropped"] == 7 - learned
    assert counts["tool calls"] == (2 if kind == "world_model" else 3), "equal ones are done once"
    assert len(got) == 8
    for _, target, _ in got[learned:]:
        assert target.replace("#", "") == f"{problem.answer[0]}:{problem.answer}$"
    for _, target, _ in got[:learned]:
        assert target == ".c." if kind == "world_model" else target.endswith(f"#{problem.answer[0]}:")
    with_none, _, counts = rows(world, cfg, actions, ids=(104,))
    assert with_none == [] and counts["tool calls"] == 0, "as in SFT"
    assert (counts["alternatives dropped"], counts["alternatives without a state"]) == (0, 7)
    alone, _, _ = rows(world, {**cfg, "source": "none"}, actions, ids=(101,))
    assert len(alone) == learned and [t for _, t, _ in alone] == [t for _, t, _ in got[:learned]]


def test_a_call_too_many_has_no_next_state(toy, world):
    world.environment.max_calls = 1
    world.states = lambda problem, rng: [(f"{problem.answer[0]}:", ".a.", "")]
    got, _, counts = rows(world, toy.arm("early_experience", samples_per_prompt=1, alternatives=1), ("b:",), ids=(101,))
    assert counts["tool calls"] == 0 and counts["alternatives dropped"] == 1 and len(got) == 1


# --- EE-5: reflections ------------------------------------------------------------------------------------


def test_EE5_a_reflection_compares_both_outcomes_and_ends_with_the_experts_action(toy, world):
    cfg = toy.arm("early_experience", kind="reflection", samples_per_prompt=3, alternatives=2)
    ends = set()
    for step in range(6):
        got, material, counts = rows(world, cfg, ("1k:", "kk$a:"), ids=(101,), key=(0, step))  # the second is an answer
        (problem,), (one, other, demonstration) = material.problems, got
        expert = world.environment.call(problem, states(world, problem)[problem.prompt])
        for (context, target, whole), outcome in ((one, ".k1."), (other, "kk")):
            action = states(world, problem)[context]
            came = f".{expert}." if action.endswith(":") else "0"
            thought, _, done = target.removeprefix(outcome + came).partition("#")
            assert whole == context + target and thought == "" and done.replace("#", "") == action
            ends.add(action)
        assert demonstration[1].endswith(f"{problem.answer}$") and counts["alternatives dropped"] == 0
        assert counts["tool calls"] == 1 + action.endswith(":")
    assert len(ends) == 2


# --- EE-6 and the record ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["world_model", "reflection"])
def test_EE6_no_answer_is_read_and_a_step_can_be_run_again(kind, toy, world):
    """Problems whose answer is hidden from the regime give the same rows; so does the same step, whatever else was
    drawn from its generator; another step does not."""
    cfg = toy.arm("early_experience", kind=kind, samples_per_prompt=3, alternatives=2)
    hidden = {i: world._problem(i).answer for i in range(100, 110)}

    class Blind(type(world)):
        environment = world.environment

        def _problem(self, i):
            return dataclasses.replace(super()._problem(i), answer=Unread())

        def expert(self, problem, rng):
            return super().expert(dataclasses.replace(problem, answer=hidden[problem.id]), rng)

    ids = range(100, 110)
    first = rows(world, cfg, ("1:", "2:"), ids=ids)[0]
    assert rows(Blind(), cfg, ("1:", "2:"), ids=ids)[0] == first == rows(world, cfg, ("1:", "2:"), ids=ids)[0]
    contexts = lambda got: [context for context, _, _ in got[:16]]  # noqa: E731
    assert contexts(rows(world, cfg, ("1:", "2:"), ids=ids, key=(3, 6))[0]) != contexts(first)
    assert regime.reads(cfg) == ("prompt", "solution", "environment")


@pytest.mark.parametrize(("changes", "tags", "match"), [
    ({"alternatives": 5}, (":",), "alternatives=5 exceeds samples_per_prompt=4"),
    ({}, ("::",), "calls end with '::' in task toy, and must with a single token"),
    ({}, (":", "#"), "calls end with ':' or '#'"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(changes, tags, match, toy, world):
    world.environment.tags = tags
    with pytest.raises(ceiling.ConfigError, match=match):
        regime.rounds(toy.arm("early_experience", **changes), world, None)


def test_a_task_without_an_environment_is_refused(toy):
    cfg = toy.arm("early_experience", source="demonstrations")
    with pytest.raises(ceiling.ConfigError, match="task toy has no environment, states, expert_action;"):
        regime.rounds(cfg, toy.task, None)


# --- in the generated world ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["world_model", "reflection"])
def test_EE4_EE5_in_the_generated_world(kind, toy):
    """Next states are what its search finds; a reflection ends with what the expert does; every row fits a response."""
    task = generated.GeneratedSearch({**generated.CONFIG.defaults(), "seed": 0, "training_per_group": 4})
    cfg = toy.arm("early_experience", kind=kind, samples_per_prompt=4, alternatives=3)
    problems = [p for p in task.training({"C": 1.0}, 8)]
    material = Material(task, problems, [], {}, lambda n: [], np.random.default_rng(0))
    actions = ("<123a>", "ab#<321b>", "<1")
    (spec,) = regime.rounds(cfg, task, None)
    material.samples = [
        [[Sample(material.encode(x), material.encode(a), np.zeros(len(a), np.float32), a[-1] == ">", None)
          for a in actions] for x in spec.prompts(material)]
    ]  # fmt: skip
    decode, examples = task.tokenizer.decode, regime.examples(material, cfg)
    assert len(examples) == 4 * len(problems)
    assert regime.counts(material, examples, cfg)["alternatives dropped"] == len(problems)
    for i, e in enumerate(examples[: 2 * len(problems)]):
        problem, action = problems[i // 2], actions[i % 2]
        context, target = decode(e.tokens[e.mask == 0]), decode(e.tokens[e.mask > 0])
        assert context.startswith(problem.prompt) and len(e.tokens) <= len(problem.prompt) + task.max_response_tokens
        if kind == "world_model":
            assert context.endswith(action) and target == f"[{task.environment.call(problem, action)}]"
        else:
            path = "".join(task.worked(problem, "H"))
            so_far, (_, _, done) = context.removeprefix(problem.prompt), target.partition("#")
            assert done and path.startswith(so_far + done)
