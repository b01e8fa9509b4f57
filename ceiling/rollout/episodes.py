"""Episodes of several turns: generate until a call, run the tool, splice its answer in, go on."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ceiling.rollout.engine import Completions
from ceiling.tasks.base import Environment, Problem


@dataclasses.dataclass(frozen=True)
class Scene:
    """What the episodes of a call are played in. problems: one per prompt."""

    environment: Environment
    tokenizer: Any
    problems: Sequence[Problem]


def scene_of(task, problems: Sequence[Problem]) -> Scene | None:
    """The scene of these problems, None for a task of single responses."""
    environment = getattr(task, "environment", None)
    return None if environment is None else Scene(environment, task.tokenizer, problems)


def converse(policy, prompts, *, scene: Scene, n: int, max_new_tokens: int, temperature: float, top_p: float, seed: int,
             problem_ids=None, first_sample: int = 0, slots: int = 512) -> Completions:  # fmt: skip
    raise NotImplementedError
