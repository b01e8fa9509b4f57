r"""Early experience: learn from what the policy's own actions lead to in states of an expert (arXiv:2510.08558).

For a state s_i of an expert's demonstration, in which the expert does a_i, from the paper's equations:

    a_i^j ~ pi_0(. | s_i), j = 1 .. K        alternatives, by the policy that the arm starts from
    s_i^j = environment(s_i, a_i^j)          what comes of them; s_i' is what comes of a_i
    world_model    L = -sum_j log p(s_i^j | s_i, a_i^j)        the next state's text, and nothing else (EE-2)
    reflection     L = -sum_j log p(c_i^j, a_i | s_i)          c_i^j: why a_i, given s_i' and s_i^j (EE-5)

Of the samples_per_prompt rows of a problem, at most `alternatives` are these, and all others are demonstrations, the
whole episode's own turns: without alternatives this is SFT (EE-1); with source "none" they stay empty. No reward,
verdict or gold answer is read (EE-6).

An alternative is dropped if it is the expert's action, empty, or unfinished, has no next state to predict, or makes a
text that no response may be as long as; a problem without an expert's state has none. Next states are made as in an
episode (rollout/tools.py): at most so many calls at once, none for too long, a failed one answered with
`environment.failed`. The ledger has the calls as "tool calls"; beside them "alternatives dropped", and "alternatives
without a state", drawn for problems that the expert does not know.

The task has, beside `environment` and `expert(problem, rng)`:
    states(problem, rng)            states before each action of an expert's demonstration, as Turns that end with ""
    expert_action(problem, state)   what the expert does there: an own turn
    reflection(problem, state, expert_action, expert_observation, action, observation)
                                    the text c; an observation is as in Turns, "" after an action that calls nothing
"""

import dataclasses

import numpy as np

from ceiling import hosts
from ceiling.config import ConfigError, Section, number, text
from ceiling.data.packing import Example
from ceiling.regimes import sft
from ceiling.regimes.base import Material, Regime, Round, Sample, negative_log_likelihood
from ceiling.rollout import tools
from ceiling.tasks.base import Problem, Turns

CONFIG = Section(
    kind=text("world_model", choices=("world_model", "reflection"), doc="what is learned of alternative actions"),
    alternatives=number(4, whole=True, low=0, doc="actions of its own in a state (K); 0: SFT"),
    max_action_tokens=number(32, whole=True, low=1, doc="longer alternatives are dropped"),
    source=text("expert", choices=("expert", "demonstrations", "none"), doc="of the rows that alternatives leave"),
)

_STATES = 53  # of the keys of a step's draws


@dataclasses.dataclass(frozen=True)
class _State:
    """An expert's state, and what the expert does in it."""

    problem: Problem
    turns: Turns
    action: str


@dataclasses.dataclass(frozen=True)
class _Action:
    """An alternative: its tokens, end included, their text, and whether it is a call."""

    tokens: np.ndarray
    text: str
    call: bool


def reads(cfg):
    return ("prompt", "solution") + (("environment",) if cfg["alternatives"] else ())


def rounds(cfg, task, rng):
    """The alternatives: up to the end of a call. They are not played on."""
    count, rows = cfg["alternatives"], cfg["samples_per_prompt"]
    if cfg["source"] != "none":
        sft.check(task, cfg["source"])
    elif not count:
        raise ConfigError("source='none' with alternatives=0: there is nothing to learn from; set one of them")
    if count > rows:
        raise ConfigError(f"alternatives={count} exceeds samples_per_prompt={rows}, the rows of a problem; lower it")
    if not count:
        return ()
    longest = min(cfg["max_action_tokens"], task.max_response_tokens)
    return (Round("reference", count, longest, _prompts, stop=_tag(task, cfg["kind"]), judged=False),)


def _tag(task, kind: str) -> str:
    """The one token that ends a call. Raises ConfigError where there is none, or no expert to learn from."""
    needed = ("environment", "states", "expert_action") + (("reflection",) if kind == "reflection" else ())
    if missing := [name for name in needed if not hasattr(task, name)]:
        raise ConfigError(
            f"regime='early_experience': task {task.name} has no {', '.join(missing)}; use a task with an expert in an "
            "environment, or alternatives=0"
        )
    tags = task.environment.tags
    if len(tags) != 1 or len(task.tokenizer.encode(tags[0])) != 1:
        raise ConfigError(
            f"regime='early_experience': calls end with {' or '.join(map(repr, tags))} in task {task.name}, and must "
            "with a single token; use a tokenizer that has one for it, or alternatives=0"
        )
    return tags[0]


def _states(material: Material) -> list[_State | None]:
    """One of every problem's, at random, however often it is asked; None where its expert has none."""
    rng, task, out = np.random.default_rng([*material.key, _STATES]), material.task, []
    for problem in material.problems:
        found = task.states(problem, rng)
        turns = found[rng.integers(len(found))] if found else None
        out.append(turns and _State(problem, turns, task.expert_action(problem, turns)))
    return out


def _prompts(material: Material) -> list[str]:
    states = zip(material.problems, _states(material), strict=True)
    return [problem.prompt + "".join(state.turns if state else ()) for problem, state in states]


def _action(sample: Sample, tokenizer) -> _Action | None:
    """What was done: a call, or an answer, which the round does not stop at; None if it has no end."""
    ends = np.flatnonzero(np.isin(sample.tokens, tokenizer.stop_ids))
    if not len(ends) and not sample.stopped:
        return None
    tokens = sample.tokens[: ends[0] + 1] if len(ends) else sample.tokens
    return _Action(tokens, tokenizer.decode(tokens), call=not len(ends))


def _alternatives(state: _State | None, samples: list[Sample], material: Material, cfg) -> list[_Action]:
    """Those that something may be learned from."""
    if state is None:
        return []
    tokenizer, environment = material.task.tokenizer, material.task.environment
    actions = [a for a in (_action(s, tokenizer) for s in samples) if a and a.text != state.action]
    actions = [a for a in actions if tokenizer.split_end(a.text)[0].strip()]
    may_call = len(state.turns) // 2 < environment.max_calls
    return [a for a in actions if (may_call if a.call else cfg["kind"] == "reflection")]


def _observe(task, calls: list[tuple[Problem, str]]) -> tuple[list[list[int]], dict[str, int]]:
    """Tokens of the observation of every call, and what happened, counted as in episodes. The leader calls."""
    environment, words = task.environment, tools.Wording(task.environment, task.tokenizer)

    def heard() -> list:
        out = {}
        with tools.Pool(environment.call, environment.workers, environment.timeout_s) as pool:
            for key, arguments in enumerate(calls):
                pool.submit(key, arguments)
            while len(pool):
                for key, body, status in pool.finished(wait=True):
                    out[key] = (status, *words.observation(body))
        return [out[key] for key in range(len(calls))]

    results = hosts.led(heard)
    late = [status == tools.TIMEOUT for status, _, _ in results]
    return [tokens for _, tokens, _ in results], {
        "tool calls": len(calls), "tool timeouts": sum(late),
        "tool errors": sum(not answered for _, _, answered in results) - sum(late),
        "observation tokens": sum(len(tokens) for _, tokens, _ in results),
    }  # fmt: skip


def examples(material: Material, cfg):
    """Rows of alternatives first, then demonstrations, as many of each problem as it has rows left."""
    learned: list[list[Example]] = [[] for _ in material.problems]
    if cfg["alternatives"]:
        learned, material.events = _experience(material, cfg)
    out = [row for rows in learned for row in rows]
    if cfg["source"] == "none":
        return out
    return out + sft.shown(material, cfg["source"], [cfg["samples_per_prompt"] - len(rows) for rows in learned])


def _experience(material: Material, cfg) -> tuple[list[list[Example]], dict[str, int]]:
    """Examples of each problem's alternatives, and the step's counts."""
    states, grounds = _states(material), cfg["kind"] == "reflection"
    found = [_alternatives(s, drawn, material, cfg) for s, drawn in zip(states, material.samples[0], strict=True)]
    places = [i for i, actions in enumerate(found) if actions]
    turns = [(i, a.text) for i in places for a in found[i] if a.call]
    if grounds:
        turns += [(i, states[i].action) for i in places if not material.task.tokenizer.split_end(states[i].action)[1]]
    turns = list(dict.fromkeys(turns))  # what is done twice in a state is seen once
    observations, events = _observe(material.task, [(material.problems[i], turn) for i, turn in turns])
    seen = dict(zip(turns, observations, strict=True))
    out: list[list[Example]] = [[] for _ in found]
    for i in places:
        after_expert = seen.get((i, states[i].action), [])
        for action in found[i]:
            after = seen.get((i, action.text), [])
            if grounds:
                row = _reflected(material, states[i], after_expert, action, after)
            else:
                row = _after(material, states[i], [action.tokens], np.asarray(after, np.int32))
            out[i] += [] if row is None else [row]
    stateless = cfg["alternatives"] * sum(state is None for state in states)
    dropped = cfg["alternatives"] * len(found) - stateless - sum(map(len, out))
    return out, events | {"alternatives dropped": dropped, "alternatives without a state": stateless}


def _reflected(material: Material, state: _State, after_expert: list[int], action: _Action, after: list[int]):
    decode = material.task.tokenizer.decode
    thought = material.task.reflection(
        state.problem, state.turns, state.action, decode(after_expert), action.text, decode(after)
    )
    return _after(material, state, [], material.encode(thought + state.action))


def _after(material: Material, state: _State, given: list[np.ndarray], target: np.ndarray) -> Example | None:
    """The state and what is given, then the target, which alone counts; None if the response is too long for one."""
    response = [*map(material.encode, state.turns), *given, target]
    if sum(map(len, response)) > material.task.max_response_tokens:
        return None
    tokens = np.concatenate([material.encode(state.problem.prompt), *response])
    return Example(tokens, (np.arange(len(tokens)) >= len(tokens) - len(target)).astype(np.float32))


def loss(params, batch, frozen, forward, cfg):
    """Likelihood of the masked tokens: next states, reflections with the expert's action, or demonstrations."""
    return negative_log_likelihood(params, batch, forward)


def counts(material: Material, learned, cfg):
    return material.events if cfg["alternatives"] else {}


REGIME = Regime(
    name="early_experience", config=CONFIG, reads=reads, rounds=rounds, examples=examples, loss=loss, counts=counts,
)  # fmt: skip
