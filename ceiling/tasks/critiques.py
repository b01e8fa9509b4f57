r"""Critiques: text about a response, to mend the response with or to learn from.

`critique_kind` says what the critic may tell (arXiv:2506.03106):
    indicative      whether the response is right
    indicative_gt   that, and the gold answer
    cot             what is wrong first, by someone who has the solution; a stock line on a right response
`critic` says who writes it:
    task            the task's own templates; no model runs, and their tokens are counted all the same
    policy          the model that is trained (self-critique)
    teacher         the arm's teacher
    file            recorded critiques of given responses (`Recorded`)

A task names the kinds that each critic can write in `critics`, and has the texts of `base.Critiqued`.

Example:
    check(task, "task", "indicative_gt")
    text = task.critique(problem, response, task.verify(problem, response), "indicative_gt")
    prompt = task.refinement_prompt(problem, response, text)
"""

from ceiling.config import ConfigError
from ceiling.data import prompts, sources
from ceiling.tasks.base import Task

KINDS = ("indicative", "indicative_gt", "cot")
CRITICS = ("task", "policy", "teacher", "file")


def check(task: Task, critic: str, kind: str) -> None:
    """Raise ConfigError if the task has no critiques of this kind by this critic."""
    offered = getattr(task, "critics", {})
    if kind not in offered.get(critic, ()):
        known = "; ".join(f"{name} ({', '.join(kinds)})" for name, kinds in offered.items() if kinds)
        advice = f"it has {known}" if known else "it has none: see the critiques of its section config.task"
        raise ConfigError(f"critic={critic!r}, critique_kind={kind!r}: no such critiques in task {task.name}; {advice}")


def reads(critic: str, kind: str) -> tuple[str, ...]:
    """What an arm reads with such critiques, beside what it reads without them."""
    solution = ("solution",) if kind == "cot" and critic != "policy" else ()
    return solution + (("teacher text",) if critic in ("teacher", "file") else ())


class Recorded:
    """Critiques of given responses, from a file like config.data.path with the fields question, response, kind and
    critique. They are found by question: [(response, critique), ...] in the file's order. Raises ConfigError in one
    line that names the row."""

    FIELDS = ("question", "response", "kind", "critique")

    def __init__(self, path: str, tokenizer, name: str):
        self._of: dict[tuple[str, str], dict[str, str]] = {}
        for row in sources.read(path, fields=self.FIELDS, name=name):
            place = row[sources.PLACE]
            for field in self.FIELDS:
                if not isinstance(row[field], str) or not row[field].strip():
                    raise ConfigError(f"{place}: `{field}` is not text, or empty; fix or drop it")
                if (token := prompts.control_token(tokenizer, row[field])) is not None:
                    raise ConfigError(f"{place}: `{field}` contains {token!r}, a control token; remove it")
            if row["kind"] not in KINDS:
                raise ConfigError(f"{place}: `kind` is {row['kind']!r}; use {' | '.join(KINDS)}")
            known = self._of.setdefault((row["question"].strip(), row["kind"]), {})
            if known.setdefault(row["response"], row["critique"]) != row["critique"]:
                raise ConfigError(f"{place}: another critique of this kind for the same response; keep one of them")

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(kind for kind in KINDS if any(k == kind for _, k in self._of))

    def of(self, question: str, kind: str) -> list[tuple[str, str]]:
        return list(self._of.get((question, kind), {}).items())
