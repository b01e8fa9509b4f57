"""Procedural tasks of reasoning-gym, frozen to a file; groups are its tasks.

Items are made once, in a process of their own, and written to `config.data.path` with what is known of them beside it
(`PATH.json`): counts, content hash, and the rate at which answers that know nothing are right. If the file is there it
is used as it is. So every host and every rerun sees the same items (D2), train and evaluation share no question (D1),
and neither the trainer nor the report ever imports reasoning_gym; `gym_worker.py` has the rules.

A response has its answer after the last "####", and ends; the scorer runs in a pool and must give the full score.
Tasks that are guessed more often than `guess_limit` are refused: pass@k would rise for free there.

Example:
    --config.task.tasks="lcm chain_sum" --config.data.path=runs/gym.jsonl
"""

import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

from ceiling.config import ConfigError, Section, flag, number, text
from ceiling.data import mixture, prompts, sources
from ceiling.data.tokens import ByteTokenizer
from ceiling.tasks import grading, gym_worker
from ceiling.tasks.base import Document, Group, Outcome, Passage, Problem, Verdict
from ceiling.tasks.questions import MARK, first_token, fitting_documents

MAX_ANSWER = 4000  # characters; longer ones are not scored

CONFIG = Section(
    name=text("gym"),
    seed=number(0, whole=True, low=0),
    tasks=text("chain_sum basic_arithmetic lcm base_conversion letter_jumble word_sorting", doc="with spaces between"),
    training_per_task=number(256, whole=True, low=1),
    evaluation_per_task=number(16, whole=True, low=2),
    guess_limit=number(0.25, low=0, high=1, doc="highest rate of right answers without reading the question"),
    template=text("{question}\nEnd with the answer on its own line, after ####.\n", doc="with chat: the user's turn"),
    system=text("", doc="system turn of the chat"),
    chat=flag(False, doc="use the checkpoint's chat template"),
    max_prompt_tokens=number(1024, whole=True, low=8, doc="longer prompts are left out, and counted"),
    max_response_tokens=number(256, whole=True, low=8),
    verifier_workers=number(2, whole=True, low=1, high=256),
    verifier_item_s=number(5.0, low=0.1, doc="seconds for one answer"),
    verifier_batch_s=number(60.0, low=1, doc="seconds for a batch of answers"),
    verifier_memory_mb=number(3072, whole=True, low=256, doc="memory of one process"),
)


class Gym:
    """Task; see ceiling.tasks.base.Task. guess_rates: name -> rate; left_out: items with too long a prompt or answer;
    provenance: hashes of items, tokenizer and prompt, version of reasoning_gym."""

    name = "gym"
    guess_rate = None  # differs by group: guess_rates

    def __init__(self, config, path: str, tokenizer=None):
        self.config, self._pool = config, None
        self.tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
        self.max_response_tokens = config["max_response_tokens"]
        self._prompt = {key: config[key] for key in ("template", "system", "chat")}
        prompts.check(self.tokenizer, **self._prompt)
        names = _names(config)
        about = frozen(config, names, path)
        self.guess_rates = {name: about["tasks"][name]["guess"]["rate"] for name in names}
        for name, rate in self.guess_rates.items():
            if rate > config["guess_limit"]:
                raise ConfigError(
                    f"config.task.tasks: {name} is guessed at a rate of {rate:.2f}, above config.task.guess_limit="
                    f"{config['guess_limit']:g}: its pass@k rises for free; leave it out or raise the limit"
                )
        self.groups = tuple(
            Group(name, name.replace("_", " "), f"reasoning-gym; guessed at a rate of {rate:.3f}", "not known")
            for name, rate in self.guess_rates.items()
        )
        self._evaluation, self._training, self.left_out = self._read(path, names)
        self.provenance = {
            "data.path_sha256": about["sha256"], "reasoning_gym": about["reasoning_gym"],
            "tokenizer_sha256": self.tokenizer.identity,
            "prompt_sha256": prompts.identity(self.tokenizer, **self._prompt), "left_out": self.left_out,
        }  # fmt: skip

    def _read(self, path: str, names: list[str]):
        evaluation, training, left_out = [], {name: [] for name in names}, 0
        for i, row in enumerate(sources.read(path, fields=("task", "split", "question", "answer", "metadata"))):
            entry = {key: row[key] for key in ("question", "answer", "metadata")}
            try:
                prompt = prompts.render(self.tokenizer, row["question"], **self._prompt)
            except ConfigError:
                raise
            except ValueError as error:
                raise ConfigError(f"{row[sources.PLACE]}: {error}") from None
            problem = Problem(i, row["task"], prompt, row["answer"].strip(), entry)
            fits = len(self.tokenizer.encode(prompt)) <= self.config["max_prompt_tokens"]
            fits &= len(self.tokenizer.encode(self.demonstration(problem, None))) <= self.max_response_tokens
            if not fits:
                left_out += 1
            elif row["split"] == "evaluation":
                evaluation.append(problem)
            else:
                training[row["task"]].append(problem)
        short = [name for name in names if not training[name] or not any(p.group == name for p in evaluation)]
        if short:
            raise ConfigError(
                f"config.task.max_prompt_tokens={self.config['max_prompt_tokens']}, max_response_tokens="
                f"{self.max_response_tokens}: no item of {short[0]} fits; raise them or leave it out"
            )
        return evaluation, training, left_out

    def evaluation(self) -> list[Problem]:
        return self._evaluation

    def training(self, mix, size: int) -> list[Problem]:
        return mixture.pool(self._training, dict(mix), size)

    def corpus(self, kind: str, seed: int, count: int) -> list[Document]:
        return mixture.drawn(self._documents, seed, count)

    @functools.cached_property
    def _documents(self) -> list[Document]:
        return fitting_documents(self, [problem for group in self._training.values() for problem in group])

    def demonstration(self, problem: Problem, rng) -> str:
        """The answer alone: reasoning-gym has no solutions."""
        return f"{MARK} {problem.answer}{self.tokenizer.eos}"

    def passage(self, problem: Problem) -> Passage:
        stop, bridge = first_token(self.tokenizer, f"{MARK} ")
        answer = problem.answer + self.tokenizer.eos
        return Passage(problem.prompt, stop, bridge, continuation=answer, empty=f"\n{stop}{bridge}")

    def verify(self, problem: Problem, response: str) -> Verdict:
        return self.verify_many([(problem, response)])[0]

    def verify_many(self, items: list[tuple[Problem, str]]) -> list[Verdict]:
        """Verdicts in order. A response without its end or without an answer is unparsed and never reaches a scorer."""
        out, asked = [Verdict(Outcome.UNPARSED)] * len(items), {}
        for i, (problem, response) in enumerate(items):
            body, ended = self.tokenizer.split_end(response)
            answer = _answer(body) if ended else None
            if answer is not None:
                asked[i] = {"task": problem.group, "entry": problem.meta, "answer": answer}
        if asked:
            for i, verdict in zip(asked, self._judge(list(asked.values())), strict=True):
                out[i] = verdict
        return out

    def _judge(self, items: list[dict]) -> list[Verdict]:
        if self._pool is None:
            from ceiling.tasks.pool import Pool

            limits = {key: self.config[f"verifier_{key}"] for key in ("workers", "item_s", "batch_s", "memory_mb")}
            self._pool = Pool("ceiling.tasks.gym_worker:judge_item", **limits)
        return self._pool.judge(items)

    def answer_span(self, response: str) -> tuple[int, int] | None:
        return _answer_span(self.tokenizer.split_end(response)[0])

    def gate(self):
        return None


def make(config, data, tokenizer=None) -> Gym:
    return Gym(config, data["path"], tokenizer)


def frozen(config, names: list[str], path: str) -> dict:
    """What is known of the items at `path`, which are made if they are not there. Raises ConfigError if they are not
    those that the configuration asks for."""
    if not path:
        raise ConfigError("config.data.path is empty; name the file for the frozen items: --config.data.path=FILE")
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ConfigError('config.task.name=gym needs reasoning-gym: pip install "ceiling[tasks]"')
    file, sidecar = pathlib.Path(path), pathlib.Path(path + ".json")
    wanted = {"seed": config["seed"], **{split: config[f"{split}_per_task"] for split in ("training", "evaluation")}}
    if not file.exists():
        _freeze({"tasks": names, **wanted, "out": path})
    try:
        about = json.loads(sidecar.read_text("utf-8"))
        there = {**{key: about[key] for key in wanted}, "tasks": sorted(about["tasks"])}
        same = hashlib.sha256(file.read_bytes()).hexdigest() == about["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{sidecar}: missing or damaged; delete {path} to have the items made again") from None
    if not same:
        raise ConfigError(f"{path}: was changed since it was made; delete it to have the items made again")
    for key, value in {**wanted, "tasks": sorted(names)}.items():
        if there[key] != value:
            raise ConfigError(
                f"{path}: was made with {key}={there[key]!r}, config.task asks for {value!r}; change it, or name "
                "another config.data.path"
            )
    return about


def _freeze(request: dict) -> None:
    """The worker as a process: no reasoning_gym here, and the same hash seed everywhere (it changes some items)."""
    root = str(pathlib.Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-m", "ceiling.tasks.gym_worker"], input=json.dumps(request), env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        said = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ConfigError(said if said.startswith("config.") else f"gym: items could not be made ({said[:300]})")


def _names(config) -> list[str]:
    names = config["tasks"].split()
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"config.task.tasks={config['tasks']!r} must name tasks, each once, with spaces between")
    for name in names:
        if name not in gym_worker.ALLOWED:
            raise ConfigError(gym_worker.refusal(name))
    return names


def _answer(body: str) -> str | None:
    """What follows the last mark outside of the think part, if it can be given to a scorer."""
    span = _answer_span(body)
    return None if span is None else body[slice(*span)]


def _answer_span(body: str) -> tuple[int, int] | None:
    """Where that stands, [start, end) in characters."""
    start, end = grading.spoken(body)
    mark = body.rfind(MARK, start, end)
    if mark < 0:
        return None
    start, end = grading.stripped(body, mark + len(MARK), end)
    answer = body[start:end]
    if not 0 < len(answer) <= MAX_ANSWER or "\0" in answer:
        return None
    try:
        answer.encode()
    except UnicodeEncodeError:
        return None
    return start, end
