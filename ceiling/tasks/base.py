"""What a task is: problems with prompts, a verdict on a response, and the texts regimes learn from.

Nothing outside `ceiling/tasks/<name>` knows any task by name: the lab and a user's own file go
through this interface alone. A task is one module or package `ceiling/tasks/<name>`, or a file of the user's own, that
exports `make(task_config, data_config, tokenizer) -> Task` and `CONFIG`, its config section.
"""

import dataclasses
import enum
import functools
import importlib
import importlib.machinery
import importlib.util
import pathlib
import pkgutil
import sys
import traceback
from typing import Any, Protocol

import numpy as np

import ceiling.tasks
from ceiling import hosts
from ceiling.config import ConfigError, told


class Outcome(enum.IntEnum):
    """Kept apart everywhere: a response that cannot be parsed is not a wrong answer, and a
    verifier that failed is neither."""

    WRONG = 0
    RIGHT = 1
    UNPARSED = 2
    ERROR = 3


@dataclasses.dataclass(frozen=True)
class Verdict:
    """outcome; the canonical answer read from the response; dense credit in [0, 1];
    process: True valid, False invalid, None not judged; strategy: label or None."""

    outcome: Outcome
    answer: str | None = None
    credit: float = 0.0
    process: bool | None = None
    strategy: str | None = None

    @property
    def right(self) -> bool:
        """Whether the outcome is RIGHT."""
        return self.outcome is Outcome.RIGHT


@dataclasses.dataclass(frozen=True)
class Problem:
    """id keys the sampling noise (uint32, unique within a task); prompt and answer are text."""

    id: int
    group: str
    prompt: str
    answer: str
    meta: Any = None


@dataclasses.dataclass(frozen=True)
class Group:
    """A set of problems reported apart. trap: isolates one mechanism by design, and is labelled so."""

    name: str
    title: str
    description: str
    prior: str
    trap: bool = False


# A response of an agent: what it wrote and what its tools answered, in turn; it begins and ends with its own text,
# which may be "". Of it a loss counts only what the agent wrote, and an answer is read only there.
Turns = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Document:
    """Training text: the loss counts on the response only (on everything if prompt is empty)."""

    prompt: str
    response: str | Turns

    @property
    def text(self) -> str:
        """All of it, observations too."""
        return self.prompt + "".join(self.response)


@dataclasses.dataclass(frozen=True)
class Passage:
    """Plain text split at one point for RLP: after `context` the model may think; a thought ends
    with the one-token text `stop`; `bridge` follows it; `continuation` is the observed text that is
    scored. `empty` is the shortest wrapped non-thought (the honest baseline: without it the template
    shift itself would count as information). CPT trains on context + stop + bridge + continuation.
    """

    context: str
    stop: str
    bridge: str
    continuation: str
    empty: str


class Task(Protocol):
    """Everything the rest of the project asks of a task."""

    name: str
    tokenizer: Any
    groups: tuple[Group, ...]
    max_response_tokens: int
    guess_rate: float | None  # chance that a uniformly random well-formed answer is right, if that is known

    def evaluation(self) -> list[Problem]:
        """The evaluation problems, the same for every arm and training seed."""

    def training(self, mix: dict[str, float], size: int) -> list[Problem]:
        """A pool of `size` training problems, groups in exact proportion to `mix`."""

    def corpus(self, kind: str, seed: int, count: int) -> list[Document]:
        """`count` documents of the "prior" or the "teacher" corpus."""

    def demonstration(self, problem: Problem, rng: np.random.Generator) -> str | Turns | None:
        """A correct response, or None where this task's curators have none."""

    def passage(self, problem: Problem) -> Passage:
        """The problem as plain text for RLP and continued pretraining."""

    def verify(self, problem: Problem, response: str | Turns) -> Verdict:
        """Verdict on a response (text after the prompt, end marker included if it was produced). Turns for a task
        with an environment, a text for every other."""

    def answer_span(self, response: str) -> tuple[int, int] | None:
        """Characters [start, end) of a response that spell its final answer, None where it has none. Decoding by
        confidence (rule "cot") asks for it, nothing else: a task without it cannot be decoded that way."""

    def gate(self) -> tuple[list[Problem], str, float] | None:
        """Problems, a forced start of the response and the accuracy that a usable prior must reach."""


class Environment(Protocol):
    """What an agent acts in, as the attribute `environment` of its task; a task of single responses has none."""

    tags: tuple[str, ...]  # own text that ends with one of them is a call, which the tool's answer follows
    opening: str  # texts around every observation
    closing: str
    max_calls: int  # of an episode; one more ends it, as one that was cut
    max_observation_tokens: int  # opening and closing included; a longer answer is cut before `closing`
    timeout_s: float  # of one call
    workers: int  # calls at once; 0: in the sampler's own thread (for tools that cannot hang)
    failed: str  # body of the observation of a call that hung, raised, or answered what has no tokens

    def call(self, problem: Problem, turn: str) -> str:
        """Body of the observation that follows a call. turn: the agent's text since the last observation."""

    def trace(self, turns: Turns) -> list[tuple[str, tuple[str, ...]]]:
        """What an episode did: every call in one way of writing, and the documents that its observation showed."""


class Experienced(Task, Protocol):
    """What a task has beside `Task` if an agent can learn from what it does in the states of an expert."""

    environment: Environment

    def expert(self, problem: Problem, rng: np.random.Generator) -> Turns | None:
        """A demonstration by a narrow expert, or None where it has none. A task may have this alone."""

    def states(self, problem: Problem, rng: np.random.Generator) -> list[Turns]:
        """States before each action of the expert, ending with ""; none where the expert has none."""

    def expert_action(self, problem: Problem, state: Turns) -> str:
        """What the expert does there: the own turn that follows."""

    def reflection(self, problem: Problem, state: Turns, expert_action: str, expert_observation: str, action: str,
                   observation: str) -> str:  # fmt: skip
        """Why the expert's action, given what came of both; observations as in Turns, "" after an action that is no
        call. The expert's action follows. It must not tell the answer, or which of them is right."""


class Critiqued(Task, Protocol):
    """What a task has beside `Task` if its responses can be critiqued (see critiques.py)."""

    critics: dict[str, tuple[str, ...]]  # critic -> the kinds that it can write; empty: no critiques
    max_critique_tokens: int  # the longest critique, its end included
    max_critique_prompt_tokens: int  # the longest prompt for one
    max_document_tokens: int  # the longest document of its corpora, where longer than a prompt and a response; or 0

    def critique(self, problem: Problem, response: str, verdict: Verdict, kind: str) -> str | None:
        """The task's own critique of a judged response, or None where its templates have none."""

    def critique_prompt(self, problem: Problem, response: str, kind: str | None) -> str:
        """What a critic reads before it writes: the problem, the response, and what the kind lets it know (None: no
        more than these)."""

    def recorded(self, problem: Problem, kind: str) -> list[tuple[str, str]]:
        """(response, critique) pairs of the file, if there is one."""

    def refinement_prompt(self, problem: Problem, response: str, critique: str) -> str:
        """What a better response is asked for with. It is never a training context."""


def load(task_config, data_config, tokenizer=None) -> Task:
    """The task that `task_config.name` names, on the user's data if it reads any. tokenizer: a checkpoint's;
    None where the model is trained from scratch on the task's own."""
    return module(task_config["name"]).make(task_config, data_config, tokenizer)


def module(name: str):
    """The module of a task by name, or of a user's own file by its path; an unknown one is refused with the known ones
    listed."""
    if name.endswith(".py"):
        return own_module(name, "config.task.name", ("CONFIG", "make"))
    known = sorted(m.name for m in pkgutil.iter_modules(ceiling.tasks.__path__) if m.name not in _NOT_TASKS)
    if name not in known:
        raise ConfigError(f"config.task.name={name!r} is not a task; known: {', '.join(known)}")
    return importlib.import_module(f"ceiling.tasks.{name}")


def own_module(path: str, key: str, exports: tuple[str, ...]):
    """The module that a user's file is, run once in a process unless it changes. Raises ConfigError, naming the
    config's `key`, if there is no such file, if it does not run, or if it lacks one of `exports`. It is code that the
    user names, as a config file is: what is data is never run."""
    file = pathlib.Path(path).absolute()
    if not file.is_file():
        raise ConfigError(f"{key}={path!r}: no such file; paths are relative to where the command is started")
    try:
        found = _executed(file, file.read_bytes())
    except Exception as error:
        raise ConfigError(f"{key}={path!r}: the file does not run: {told(error, file)}") from error
    if missing := [name for name in exports if not hasattr(found, name)]:
        raise ConfigError(f"{key}={path!r}: the file does not define {' and '.join(missing)}")
    return found


@functools.cache
def _executed(file: pathlib.Path, content: bytes):
    name = f"own_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file, loader=_FromSource(name, str(file)))
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # dataclasses look their module up by its name
    spec.loader.exec_module(made)
    return made


class _FromSource(importlib.machinery.SourceFileLoader):
    """Leaves no __pycache__ beside the user's file, nor reads one: it would not show a second edit in one second."""

    def get_code(self, fullname):
        return self.source_to_code(self.get_data(self.path), self.path)


_NOT_TASKS = ("base", "critiques", "numeric", "rewards", "grading", "pool", "gym_worker")


class Verifier:
    """Verdicts with a memory: equal responses to one problem are judged once, every one is counted.

    A verifier that raises is an ERROR verdict, counted; the caller decides when there are too many. A task
    whose verdicts cost more than a parse has `verify_many(items) -> verdicts`, which gets a whole batch at once
    (a process pool with a deadline). On several hosts the first alone judges, and the others hear of it.
    """

    def __init__(self, task: Task):
        self.task, self.failure = task, ""  # failure: what verify raised last
        self._known: dict[tuple[int, str | Turns], Verdict] = {}

    def __call__(self, problem: Problem, response: str | Turns) -> Verdict:
        return self.many([(problem, response)])[0]

    def many(self, items: list[tuple[Problem, str | Turns]]) -> list[Verdict]:
        """Verdicts on (problem, response) pairs, in order."""
        keys = [(problem.id, response) for problem, response in items]
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in self._known}
        fresh = hosts.led(lambda: [_fields(verdict) for verdict in self._judge(list(new.values()))])
        self._known |= {key: Verdict(Outcome(fields[0]), *fields[1:]) for key, fields in zip(new, fresh, strict=True)}
        return [self._known[key] for key in keys]

    def _judge(self, items: list[tuple[Problem, str]]) -> list[Verdict]:
        if hasattr(self.task, "verify_many"):
            return self.task.verify_many(items)
        return [self._one(*item) for item in items]

    def _one(self, problem: Problem, response: str) -> Verdict:
        try:
            return self.task.verify(problem, response)
        except Exception as error:  # noqa: BLE001 - untrusted text must not end a run; it is counted
            frame = traceback.extract_tb(error.__traceback__)[-1]
            self.failure = f"{type(error).__name__}: {error}, at {frame.filename}:{frame.lineno}"
            return Verdict(Outcome.ERROR)


def _fields(verdict: Verdict) -> tuple:
    return tuple(getattr(verdict, field.name) for field in dataclasses.fields(Verdict))


def check_errors(verifier: Verifier, outcomes, limit: float) -> None:
    """Stop when more than `limit` of a batch could not be judged: errors would pass for wrong answers."""
    if np.mean(np.asarray(outcomes) == Outcome.ERROR) > limit:
        raised = f" (the last: {' '.join(verifier.failure.split())})" if verifier.failure else ""
        raise RuntimeError(
            f"{verifier.task.name}: the verifier failed on more than {limit:.0%} of a batch{raised}; its errors would "
            "be counted as wrong answers. Fix the verifier or the data"
        )
