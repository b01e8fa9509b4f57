"""Your own file: question-answer JSONL with GSM8K's fields, graded by exact numbers.

Each line: {"question": ..., "answer": "... #### 42"}. The text before "####" is the solution (used by
demonstrations), what follows is the gold number. A gold answer that is not a number is refused when
the file is read: it must never pay reward (invariant X-9).
"""

import json
import pathlib

import numpy as np

from ceiling.config import ConfigError, Section, number, text
from ceiling.data.order import permute
from ceiling.data.tokens import ByteTokenizer
from ceiling.tasks import numeric
from ceiling.tasks.base import Document, Group, Outcome, Passage, Problem, Verdict

MARK = "####"

CONFIG = Section(
    name=text("qa_file"),
    seed=number(0, whole=True, low=0, doc="splits the file into evaluation and training problems"),
    evaluation_problems=number(64, whole=True, low=1),
    max_prompt_characters=number(400, whole=True, low=8, doc="longer questions are left out, and counted"),
    max_response_tokens=number(256, whole=True, low=8),
)


class QAFile:
    """Task; see ceiling.tasks.base.Task."""

    name = "qa_file"
    guess_rate = None
    groups = (Group("all", "all questions", "held-out questions of the file", "not known"),)

    def __init__(self, config, path: str):
        self.tokenizer = ByteTokenizer()
        self.max_response_tokens = config["max_response_tokens"]
        usable, self.left_out = _fit(_read(path), config, self.tokenizer)
        if len(usable) <= config["evaluation_problems"]:
            raise ConfigError(
                f"config.task.evaluation_problems={config['evaluation_problems']} leaves nothing to train "
                f"on: {path} has {len(usable)} usable problems ({self.left_out} left out as too "
                "long or repeated); lower it, raise config.task.max_response_tokens, or give a larger file"
            )
        order = permute(np.arange(len(usable)), len(usable), f"qa/{config['seed']}")
        problems = [usable[i] for i in order]
        self._evaluation = problems[: config["evaluation_problems"]]
        self._training = problems[config["evaluation_problems"] :]

    def evaluation(self) -> list[Problem]:
        return self._evaluation

    def training(self, mix, size: int) -> list[Problem]:
        return self._training[:size]

    def corpus(self, kind: str, seed: int, count: int) -> list[Document]:
        order = np.random.default_rng([seed, 29]).integers(len(self._training), size=count)
        return [Document(p.prompt, self.demonstration(p, None)) for p in (self._training[i] for i in order)]

    def demonstration(self, problem: Problem, rng) -> str:
        return f"{problem.meta}\n{MARK} {problem.answer}{self.tokenizer.eos}"

    def passage(self, problem: Problem) -> Passage:
        answer = problem.answer + self.tokenizer.eos
        return Passage(problem.prompt, stop="#", bridge="### ", continuation=answer, empty=f"\n{MARK} ")

    def verify(self, problem: Problem, response: str) -> Verdict:
        body = response.removesuffix(self.tokenizer.eos)
        _, mark, tail = body.rpartition(MARK)
        value = numeric.parse(tail) if mark and body != response else None
        if value is None:
            return Verdict(Outcome.UNPARSED)
        right = value == numeric.parse(problem.answer)
        return Verdict(Outcome.RIGHT if right else Outcome.WRONG, numeric.canonical(value), float(right))

    def gate(self):
        return None


def make(config, data, tokenizer=None) -> QAFile:
    return QAFile(config, data["path"])


def _read(path: str) -> list[tuple[str, str, str]]:
    """(question, solution, gold) per line; every fault names the file, the line and the remedy."""
    if not path:
        raise ConfigError("config.data.path is empty; give a JSONL file: --config.data.path=FILE")
    try:
        lines = pathlib.Path(path).read_text("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); convert the file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check config.data.path") from None
    rows = []
    for number_, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, answer = row["question"], row["answer"]
            solution, _, gold = answer.rpartition(MARK)
            (question + answer).encode()  # text, and text that has an encoding
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(
                f"{path}:{number_}: needs a JSON object with text fields `question` and `answer` ({error})"
            ) from None
        if numeric.parse(gold) is None:
            raise ConfigError(f"{path}:{number_}: gold answer {gold.strip()!r} is not a number; fix or drop it")
        if ByteTokenizer.eos in question + answer:
            raise ConfigError(f"{path}:{number_}: contains U+0003, which marks the end of a response; remove it")
        rows.append((question.strip(), solution.strip(), numeric.canonical(numeric.parse(gold))))
    if not rows:
        raise ConfigError(f"{path}: the file has no rows")
    return rows


def _fit(rows, config, tokenizer) -> tuple[list[Problem], int]:
    """Problems whose prompt and demonstration fit the configured lengths, and how many did not.
    A repeated question is kept once: it could sit in both splits."""
    kept, seen = [], set()
    for i, (question, solution, gold) in enumerate(rows):
        response = f"{solution}\n{MARK} {gold}{tokenizer.eos}"
        fits = len(question) <= config["max_prompt_characters"]
        fits &= len(tokenizer.encode(response)) <= config["max_response_tokens"]
        if fits and question not in seen:
            seen.add(question)
            kept.append(Problem(i, "all", f"Q: {question}\nA: ", gold, solution))
    return kept, len(rows) - len(kept)
