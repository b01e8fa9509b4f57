"""Search over your own documents: questions from HotpotQA, MuSiQue or Natural Questions files, or of their shape.

config.data.path names the documents, config.task.questions_path the questions to train on, and
config.task.evaluation_path those to evaluate on (empty: the first `evaluation_problems` of a keyed permutation of the
training file). Training questions with the text of a held-out one are removed and counted (D1).

A response is right if its answer is one of the golds after SQuAD's normalisation; its credit is the F1. The process is
valid if every call could be read, an observation has the answer, and the agent wrote no observation itself.

Example:
    task = make(CONFIG.defaults(questions_path="questions.jsonl"), {"path": "documents.jsonl"})
    task.verify(task.evaluation()[0], ("<answer>Ottawa</answer>",)).right
"""

import functools
import re

import bm25s
import numpy as np

from ceiling.config import ConfigError, Section, flag, number, text
from ceiling.data import mixture, prompts
from ceiling.data.order import permute
from ceiling.data.tokens import ByteTokenizer
from ceiling.tasks.base import Document, Group, Outcome, Passage, Problem, Turns, Verdict
from ceiling.tasks.questions import first_token
from ceiling.tasks.search import answers, calls, sets
from ceiling.tasks.search.environment import SearchEngine, Store

_HELD_OUT_IDS = 1 << 31  # ids of held-out problems of a file of their own start here: they key the noise

CONFIG = Section(
    documents_format=text("documents", choices=("documents", "hotpotqa", "musique"),
                          doc="of config.data.path: rows of a title and a text, or a question set's paragraphs"),
    title_field=text("title", doc="empty: the documents have none"),
    text_field=text("text"),
    questions_path=text("", doc="questions to train on: a file or hub data set like config.data.path"),
    evaluation_path=text("", doc="held-out questions of their own; empty: from questions_path"),
    evaluation_problems=number(64, whole=True, low=0, doc="0: all of evaluation_path"),
    questions_format=text("hotpotqa", choices=tuple(sets.FORMATS)),
    question_field=text("question"),
    answer_field=text("", doc="empty: the format's own; its value is a text or a list of them"),
    group_field=text("", doc="problems are reported apart by its values; empty: the format's own, if it has one"),
    calls=text("search_r1", choices=tuple(calls.FORMATS), doc="how the model writes a call"),
    template=text("", doc="with {question} in it; empty: the instructions of the format of calls"),
    system=text("", doc="system turn of the chat"),
    chat=flag(False, doc="use the checkpoint's chat template"),
    documents_per_call=number(3, whole=True, low=1, high=100),
    document_characters=number(600, whole=True, low=16, doc="what an observation shows of a document"),
    max_calls=number(4, whole=True, low=1),
    max_question_tokens=number(512, whole=True, low=8, doc="longer prompts are left out, and counted"),
    max_observation_tokens=number(512, whole=True, low=16),
    max_response_tokens=number(2048, whole=True, low=16, doc="of an episode, observations included"),
    tool_timeout_s=number(10.0, low=0.1, doc="seconds for one call"),
    tool_workers=number(4, whole=True, low=0, high=256, doc="calls at once; 0: one by one, without a time-out"),
)  # fmt: skip


class OwnSearch:
    """Task; see ceiling.tasks.base.Task. It has no demonstrations: its files hold none.

    left_out: questions that are too long or repeated; overlap: training questions removed because they are held out;
    provenance: hashes of the data, the tokenizer and the prompt, with both counts."""

    name = "search"
    guess_rate = None

    def __init__(self, config, path: str, tokenizer=None):
        self.config = config
        self.tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
        self.max_response_tokens = config["max_response_tokens"]
        self._calls = calls.FORMATS[config["calls"]]
        self._prompt = {"template": config["template"] or self._calls.instructions,
                        "system": config["system"], "chat": config["chat"]}  # fmt: skip
        prompts.check(self.tokenizer, **self._prompt)
        self.left_out = self.overlap = 0
        self.provenance = {}
        self._documents, self.provenance["data.path_sha256"] = sets.documents(path, config)
        self.environment = self._engine(path)
        self._evaluation, training = self._split()
        self._training: dict[str, list[Problem]] = {}
        for problem in training:
            self._training.setdefault(problem.group, []).append(problem)
        self.groups = tuple(
            Group(name, "all questions" if name == "all" else name.replace("_", " "), "held-out questions", "not known")
            for name in sorted({p.group for p in self._evaluation})
        )
        self.provenance |= {
            "tokenizer_sha256": self.tokenizer.identity,
            "prompt_sha256": prompts.identity(self.tokenizer, **self._prompt),
            "left_out": self.left_out, "overlap_removed": self.overlap,
        }  # fmt: skip

    def _engine(self, path: str) -> SearchEngine:
        config = self.config
        around = self._calls.opening + self._calls.closing
        if (tokens := len(self.tokenizer.encode(around))) >= config["max_observation_tokens"]:
            raise ConfigError(
                f"config.task.max_observation_tokens={config['max_observation_tokens']}: the tags around an "
                f"observation are {tokens} tokens; raise it"
            )
        try:
            store = Store(self._documents, _words)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}; check config.task.text_field") from None
        return SearchEngine(
            store, self._calls, config["documents_per_call"], self._show, _shown,
            config["max_calls"], config["max_observation_tokens"], config["tool_timeout_s"], config["tool_workers"],
        )  # fmt: skip

    def _show(self, documents: list[str]) -> str:
        """Found documents, one a line."""
        cut = (self._clean(document)[: self.config["document_characters"]] for document in documents)
        return "\n".join(f"Document {i} {text}" for i, text in enumerate(cut, 1))

    def _clean(self, document: str) -> str:
        """In one line, without the tokenizer's control tokens, which would end the text or open a turn."""
        while token := prompts.control_token(self.tokenizer, document):
            document = document.replace(token, " ")
        return " ".join(document.split())

    def _split(self) -> tuple[list[Problem], list[Problem]]:
        config = self.config
        path, held_out, count = (config[key] for key in ("questions_path", "evaluation_path", "evaluation_problems"))
        training = self._read(path, "config.task.questions_path", 0) if path or not held_out else []
        if held_out:
            evaluation = self._read(held_out, "config.task.evaluation_path", _HELD_OUT_IDS)
        else:
            evaluation = training
        order = permute(np.arange(len(evaluation)), len(evaluation), f"search/{config['seed']}") if evaluation else []
        evaluation = [evaluation[i] for i in order]
        if held_out:
            evaluation = evaluation[: count or None]
            enough = len(evaluation) >= max(1, count)
        else:
            evaluation, training = evaluation[:count], evaluation[count:]
            enough = bool(evaluation and training)
        if not enough:
            raise ConfigError(
                f"config.task.evaluation_problems={count}: {held_out or path} has {len(evaluation) + len(training)} "
                f"usable questions ({self.left_out} left out as too long or repeated) to evaluate and train on; "
                "change it, set config.task.evaluation_path, or give a larger file"
            )
        known = {_key(p) for p in evaluation}
        kept = [p for p in training if _key(p) not in known]
        self.overlap = len(training) - len(kept)
        return evaluation, kept

    def _read(self, path: str, name: str, first_id: int) -> list[Problem]:
        """Problems of a file that fit, each question once."""
        rows, self.provenance[f"{name.removeprefix('config.')}_sha256"] = sets.questions(path, self.config, name)
        problems: dict[str, Problem] = {}
        for i, row in enumerate(rows):
            try:
                prompt = prompts.render(self.tokenizer, row.text, **self._prompt)
                if (token := prompts.control_token(self.tokenizer, row.answers[0])) is not None:
                    raise ValueError(f"its answer contains {token!r}, a control token of the tokenizer; remove it")
            except ConfigError:
                raise
            except ValueError as error:
                raise ConfigError(f"{row.place}: {error}") from None
            problem = Problem(first_id + i, row.group, prompt, row.answers[0], row)
            if len(self.tokenizer.encode(prompt)) <= self.config["max_question_tokens"]:
                problems.setdefault(_key(problem), problem)
        self.left_out += len(rows) - len(problems)
        return list(problems.values())

    def evaluation(self) -> list[Problem]:
        return self._evaluation

    def training(self, mix, size: int) -> list[Problem]:
        if not self._training:
            raise ValueError("config.task.questions_path is empty, or every question of it is held out: there is "
                             "nothing to train on")  # fmt: skip
        return mixture.pool(self._training, dict(mix), size)

    def corpus(self, kind: str, seed: int, count: int) -> list[Document]:
        """The documents as plain text."""
        return [Document("", body) for body in mixture.drawn(self._texts, seed, count)]

    @functools.cached_property
    def _texts(self) -> list[str]:
        """Documents with their end, cut to the longest evaluation prompt and response together."""
        encode, decode, eos = self.tokenizer.encode, self.tokenizer.decode, self.tokenizer.eos
        room = max(len(encode(p.prompt)) for p in self._evaluation) + self.max_response_tokens
        cut = lambda ids: decode(ids[: room - 1]) if len(ids) >= room else decode(ids) + eos  # noqa: E731
        return [cut(encode(self._clean(document))) for document in self._documents]

    def demonstration(self, problem: Problem, rng) -> None:
        return None

    def passage(self, problem: Problem) -> Passage:
        stop, bridge = first_token(self.tokenizer, answers.OPEN)
        said = problem.answer + answers.CLOSE + self.tokenizer.eos
        return Passage(problem.prompt, stop, bridge, continuation=said, empty=f"\n{stop}{bridge}")

    def verify(self, problem: Problem, response: Turns) -> Verdict:
        strategy = self._strategy(response)
        said = answers.final(response)
        if said is None:
            return Verdict(Outcome.UNPARSED, strategy=strategy)
        golds = problem.meta.answers
        right, credit = answers.exact(said, golds), answers.f1(said, golds)
        imitated = any(self._calls.opening.strip() in turn for turn in response[::2])
        process = strategy is not None and self._observed(said, response) and not imitated
        return Verdict(Outcome.RIGHT if right else Outcome.WRONG, said, credit, process, strategy)

    def _strategy(self, turns: Turns) -> str | None:
        """How often the agent searched; None where a call of its could not be read."""
        asked = self._calls.queries(turns)
        return None if None in asked else f"{len(asked)} calls"

    @staticmethod
    def _observed(said: str, turns: Turns) -> bool:
        words = f" {answers.normalised(said)} "
        return any(words in f" {answers.normalised(turn)} " for turn in turns[1::2])

    def gate(self) -> None:
        return None


def _key(problem: Problem) -> str:
    """What makes two questions the same one."""
    return " ".join(problem.meta.text.lower().split())


def _shown(body: str) -> tuple[str, ...]:
    """The documents in what `_show` wrote."""
    return tuple(re.findall(r"^Document [0-9]+ (.*)$", body, re.MULTILINE))


def _words(texts) -> list[list[str]]:
    return bm25s.tokenize(list(texts), return_ids=False, show_progress=False)
