r"""Questions with one short answer, from your own file or a hub data set: GSM8K, MATH, AMC, or anything of their shape.

Each row has a question and an answer; which fields they are in is configured. An answer may carry its solution before
"####" (GSM8K), stand alone, be a JSON number (27.0 is 27), or be the last \boxed{} of a solution. A gold answer that
the grader cannot read is refused when the file is read: it must never pay reward (invariant X-9).

Held-out problems come from the same file by a keyed permutation, or from `evaluation_path`; then training rows with
the text of a held-out question are removed and counted (D1). The prompt is a plain template or the checkpoint's chat
template, the same everywhere (X-7). A response is read up to its end token; one that was cut has an answer only in a
closed \boxed{}.

Grader "number" is exact and runs here; "math" runs in killable worker processes (`pool.py`).

Example:
    task = make(CONFIG.defaults(), {"path": "gsm8k.jsonl"})
    task.verify(task.evaluation()[0], "6 * 7 = 42\n#### 42" + task.tokenizer.eos).right
"""

import dataclasses
import decimal
import functools
import math
import re

import numpy as np

from ceiling.config import ConfigError, Section, flag, number, text
from ceiling.data import mixture, prompts, sources
from ceiling.data.order import permute
from ceiling.data.tokens import ByteTokenizer
from ceiling.tasks import critiques, grading, numeric
from ceiling.tasks.base import Document, Group, Outcome, Passage, Problem, Verdict

MARK = "####"
# What stands before and after the answer. RLP's thoughts end with the first token of it: a lone backslash would end
# them at any formula, so the boxed answer has the mark too where it follows a thought.
_AROUND = {"hash": (f"{MARK} ", ""), "boxed": ("\\boxed{", "}")}
_HELD_OUT_IDS = 1 << 31  # ids of problems from evaluation_path start here: they key the noise, whatever is trained on

CONFIG = Section(
    name=text("questions"),
    seed=number(0, whole=True, low=0, doc="splits the file into evaluation and training problems"),
    question_field=text("question"),
    answer_field=text("answer"),
    solution_field=text("", doc="empty: what stands before #### in the answer, if anything"),
    group_field=text("", doc="problems are reported apart by its values, e.g. level; empty: together"),
    answer_style=text("hash", choices=("hash", "boxed"), doc="where a response has its answer: #### 42 or \\boxed{42}"),
    grader=text("number", choices=("number", "math"), doc="math needs the extra ceiling[verify]"),
    template=text("Q: {question}\nA: ", doc="with chat: the user's turn"),
    system=text("", doc="system turn of the chat"),
    chat=flag(False, doc="use the checkpoint's chat template"),
    evaluation_problems=number(64, whole=True, low=0, doc="0: all of evaluation_path"),
    evaluation_path=text("", doc="held-out questions of their own: a file or hub data set like config.data.path"),
    max_prompt_tokens=number(408, whole=True, low=8, doc="longer prompts are left out, and counted"),
    max_response_tokens=number(256, whole=True, low=8),
    critiques_path=text("", doc="recorded critiques: a file of question, response, kind, critique"),
    max_critique_tokens=number(256, whole=True, low=8),
    verifier_workers=number(2, whole=True, low=1, high=256, doc="processes of grader math"),
    verifier_item_s=number(5.0, low=0.1, doc="seconds for one answer"),
    verifier_batch_s=number(60.0, low=1, doc="seconds for a batch of answers"),
    verifier_memory_mb=number(1024, whole=True, low=256, doc="memory of one process"),
)


@dataclasses.dataclass(frozen=True)
class Source:
    """What a problem was made from: its question and its solution ("" where there is none)."""

    question: str
    solution: str


class Questions:
    """Task; see ceiling.tasks.base.Task.

    left_out: rows that are too long or repeated; overlap: training rows removed because they are held out;
    provenance: hashes of the data, the tokenizer and the prompt, with both counts."""

    name = "questions"
    guess_rate = None

    def __init__(self, config, path: str, tokenizer=None):
        self.config, self._pool = config, None
        self.tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
        self.max_response_tokens = config["max_response_tokens"]
        self._prompt = {key: config[key] for key in ("template", "system", "chat")}
        prompts.check(self.tokenizer, **self._prompt)
        self.left_out = self.overlap = 0
        self.provenance = {}
        self._split(path)
        self._prepare_critiques()
        self._training_groups = _grouped(self._training)
        self.groups = tuple(_group(name, config) for name in sorted({p.group for p in self._evaluation}))
        self.provenance |= {
            "tokenizer_sha256": self.tokenizer.identity,
            "prompt_sha256": prompts.identity(self.tokenizer, **self._prompt),
            "left_out": self.left_out, "overlap_removed": self.overlap,
        }  # fmt: skip

    def _split(self, path: str) -> None:
        config, held_out = self.config, self.config["evaluation_path"]
        count = config["evaluation_problems"]
        if not held_out:
            if not count:
                raise ConfigError(
                    "config.task.evaluation_problems=0 holds nothing out; raise it or set config.task.evaluation_path"
                )
            usable = self._fit(self._read(path, "config.data.path", 0), answers=True)
            if len(usable) <= count:
                raise ConfigError(
                    f"config.task.evaluation_problems={count} leaves nothing to train on: {path} has {len(usable)} "
                    f"usable problems ({self.left_out} left out as too long or repeated); lower it, raise "
                    "config.task.max_prompt_tokens or max_response_tokens, or give a larger file"
                )
            usable = [usable[i] for i in permute(np.arange(len(usable)), len(usable), f"qa/{config['seed']}")]
            self._evaluation, self._training = usable[:count], usable[count:]
            return
        # A held-out set is kept whole: the length of its solutions must not choose its problems.
        evaluation = self._fit(self._read(held_out, "config.task.evaluation_path", _HELD_OUT_IDS), answers=False)
        if len(evaluation) < max(1, count):
            raise ConfigError(
                f"config.task.evaluation_problems={count}: {held_out} has {len(evaluation)} usable problems; lower it"
            )
        if count:
            order = permute(np.arange(len(evaluation)), len(evaluation), f"qa/{config['seed']}")
            evaluation = [evaluation[i] for i in order[:count]]
        training = self._fit(self._read(path, "config.data.path", 0), answers=True) if path else []
        known = {p.meta.question for p in evaluation}
        self._evaluation, self._training = evaluation, [p for p in training if p.meta.question not in known]
        self.overlap = len(training) - len(self._training)

    def _read(self, path: str, name: str, first_id: int) -> list[Problem]:
        """Problems of a file; every fault names the file, the row and the remedy."""
        config = self.config
        named = ("question_field", "answer_field", "solution_field", "group_field")
        fields = list(dict.fromkeys(config[key] for key in named if config[key]))
        rows = sources.read(path, fields=fields, name=name)
        self.provenance[f"{name.removeprefix('config.')}_sha256"] = sources.digest(rows)
        parsed = [_parse(row, config) for row in rows]
        self._refuse_unreadable_golds([gold for *_, gold in parsed], rows)
        problems = []
        for i, (row, (question, solution, gold)) in enumerate(zip(rows, parsed, strict=True)):
            try:
                prompt = prompts.render(self.tokenizer, question, **self._prompt)
                if (token := prompts.control_token(self.tokenizer, solution + gold)) is not None:
                    raise ValueError(f"contains {token!r}, a control token of the tokenizer; remove it")
            except ConfigError:
                raise
            except ValueError as error:
                raise ConfigError(f"{row[sources.PLACE]}: {error}") from None
            problems.append(Problem(first_id + i, _group_name(row, config), prompt, gold, Source(question, solution)))
        return problems

    def _refuse_unreadable_golds(self, golds: list[str], rows: list[dict]) -> None:
        """X-9. What needs a parser is tried in the pool, which no gold can hang, once per process and content."""
        kind, hard = self.config["grader"], []
        for gold, row in zip(golds, rows, strict=True):
            try:
                if kind == "math" and numeric.read(gold) is None:
                    hard.append((gold, row))
                else:
                    grading.check_gold(gold, kind)
            except ValueError as error:
                raise ConfigError(f"{row[sources.PLACE]}: {error}") from None
        new = [(gold, row) for gold, row in hard if gold not in _READABLE]
        responses = [f"\\boxed{{{gold}}}" for gold, _ in new]
        verdicts = self._judge([gold for gold, _ in new], responses, "boxed") if new else []
        for (gold, row), verdict in zip(new, verdicts, strict=True):
            if not verdict.right:
                raise ConfigError(
                    f"{row[sources.PLACE]}: gold answer {gold!r} is not right against itself; fix or drop it"
                )
            _READABLE.add(gold)

    def _fit(self, problems: list[Problem], *, answers: bool) -> list[Problem]:
        """Problems whose prompt (and, with answers, demonstration) fits the configured lengths. A repeated question
        is kept once: it could sit in both splits."""
        config, kept, seen = self.config, [], set()
        for problem in problems:
            fits = len(self.tokenizer.encode(problem.prompt)) <= config["max_prompt_tokens"]
            if fits and answers:
                response = self.tokenizer.encode(self.demonstration(problem, None))
                fits = len(response) <= config["max_response_tokens"]
            if fits and problem.meta.question not in seen:
                seen.add(problem.meta.question)
                kept.append(problem)
        self.left_out += len(problems) - len(kept)
        return kept

    def evaluation(self) -> list[Problem]:
        return self._evaluation

    def training(self, mix, size: int) -> list[Problem]:
        if not self._training:
            raise ValueError("config.data.path is empty, or every row of it is held out: there is nothing to train on")
        return mixture.pool(self._training_groups, dict(mix), size)

    def corpus(self, kind: str, seed: int, count: int) -> list[Document]:
        return mixture.drawn(self._documents, seed, count)

    @functools.cached_property
    def _documents(self) -> list[Document]:
        return fitting_documents(self, self.training({"all": 1.0}, len(self._training)))

    def demonstration(self, problem: Problem, rng) -> str:
        """The solution, and the answer as the grader wants it unless the solution ends with it already."""
        style, solution = self.config["answer_style"], problem.meta.solution
        before, after = _AROUND[style]
        if _same(grading.final_answer(solution, style), problem.answer):
            return solution + self.tokenizer.eos
        return f"{solution}\n{before}{problem.answer}{after}".lstrip("\n") + self.tokenizer.eos

    def passage(self, problem: Problem) -> Passage:
        before, after = _AROUND[self.config["answer_style"]]
        stop, bridge = first_token(self.tokenizer, before if before.startswith(MARK) else f"{MARK} {before}")
        answer = problem.answer + after + self.tokenizer.eos
        return Passage(problem.prompt, stop, bridge, continuation=answer, empty=f"\n{stop}{bridge}")

    def verify(self, problem: Problem, response: str) -> Verdict:
        return self.verify_many([(problem, response)])[0]

    def verify_many(self, items: list[tuple[Problem, str]]) -> list[Verdict]:
        """Verdicts in order. A response without its end was cut: unparsed, unless its box is closed."""
        style, readable = self.config["answer_style"], []
        out = [Verdict(Outcome.UNPARSED)] * len(items)
        for i, (problem, response) in enumerate(items):
            body, ended = self.tokenizer.split_end(response)
            if ended or style == "boxed":
                readable.append((i, problem.answer, body))
        if readable:
            places, golds, bodies = zip(*readable, strict=True)
            for i, verdict in zip(places, self._judge(golds, bodies, style), strict=True):
                out[i] = verdict
        return out

    def _judge(self, golds, responses, style: str) -> list[Verdict]:
        config = self.config
        if config["grader"] == "number":
            return [_grade(gold, response, style) for gold, response in zip(golds, responses, strict=True)]
        if self._pool is None:
            from ceiling.tasks.pool import Pool

            limits = {key: config[f"verifier_{key}"] for key in ("workers", "item_s", "batch_s", "memory_mb")}
            self._pool = Pool("math", **limits)
        return self._pool.judge([
            {"gold": gold, "response": response, "style": style, "kind": "math"}
            for gold, response in zip(golds, responses, strict=True)
        ])  # fmt: skip

    def _prepare_critiques(self) -> None:
        config, self._recorded = self.config, None
        self.critics = {"task": ("indicative", "indicative_gt"), "policy": ("cot",), "teacher": critiques.KINDS}
        if path := config["critiques_path"]:
            self._recorded = critiques.Recorded(path, self.tokenizer, "config.task.critiques_path")
            self.critics["file"] = self._recorded.kinds
            if not any(self.recorded(p, kind) for kind in self._recorded.kinds for p in self._training):
                raise ConfigError(f"{path}: no critique is of a training question; check config.task.critiques_path")
        around = len(self.tokenizer.encode(self.critique_prompt(Problem(0, "", "", "", Source("", "")), "", None)))
        self.max_critique_tokens, self.max_document_tokens = config["max_critique_tokens"], 0
        self.max_critique_prompt_tokens = config["max_prompt_tokens"] + config["max_response_tokens"] + around

    def critique(self, problem: Problem, response: str, verdict: Verdict, kind: str) -> str | None:
        """A template knows whether the answer is right and what it is. Where the working goes wrong it cannot tell."""
        if kind == "cot" and not verdict.right:
            return None
        said = "The response is right." if verdict.right else "The response is wrong."
        return said + (f" The right answer is {problem.answer}." if kind == "indicative_gt" else "")

    def critique_prompt(self, problem: Problem, response: str, kind: str | None) -> str:
        known = {
            "indicative_gt": f"The right answer is {problem.answer}.\n",
            "cot": f"A right solution:\n{problem.meta.solution}\nThe right answer is {problem.answer}.\n",
        }  # fmt: skip
        asked = "Write a critique of the response: is it right, and if not, what is wrong in it first?"
        return self._about(problem, response, known.get(kind, "") + asked)

    def recorded(self, problem: Problem, kind: str) -> list[tuple[str, str]]:
        return self._recorded.of(problem.meta.question, kind)

    def refinement_prompt(self, problem: Problem, response: str, critique: str) -> str:
        asked = f"A critique of the response:\n{self._quoted(critique)}\n\nAnswer the question again, and better."
        return self._about(problem, response, asked)

    def _about(self, problem: Problem, response: str, rest: str) -> str:
        """The task's own prompt, asked about a response to the question."""
        body = self._quoted(self.tokenizer.split_end(response)[0])
        said = f"{problem.meta.question}\n\nA response to this question:\n{body}\n\n{rest}"
        return prompts.render(self.tokenizer, said, **self._prompt)

    def _quoted(self, written: str) -> str:
        """What a model wrote, without the control tokens that it may have written."""
        while token := prompts.control_token(self.tokenizer, written):
            written = written.replace(token, "")
        return written

    def answer_span(self, response: str) -> tuple[int, int] | None:
        return grading.answer_span(self.tokenizer.split_end(response)[0], self.config["answer_style"])

    def gate(self):
        return None


def make(config, data, tokenizer=None) -> Questions:
    return Questions(config, data["path"], tokenizer)


def fitting_documents(task, problems: list[Problem]) -> list[Document]:
    """The problems with their demonstrations as documents, without those that are longer than the longest evaluation
    prompt and response together: training has room for no more."""
    encode = task.tokenizer.encode
    room = max(len(encode(p.prompt)) for p in task.evaluation()) + task.max_response_tokens
    documents = (Document(p.prompt, task.demonstration(p, None)) for p in problems)
    return [d for d in documents if len(encode(d.prompt)) + len(encode(d.response)) <= room]


def first_token(tokenizer, marker: str) -> tuple[str, str]:
    """(stop, bridge): the text of the marker's first token, and the rest of it. Raises ConfigError if the first token
    has no text of its own."""
    ids = tokenizer.encode(marker)
    stop = tokenizer.decode(ids[:1])
    if not stop or not marker.startswith(stop) or tokenizer.encode(stop) != ids[:1]:
        raise ConfigError(
            f"rlp: the tokenizer has no single token at the start of {marker!r}; use a tokenizer that has one"
        )
    return stop, marker[len(stop) :]


_READABLE: set[str] = set()  # golds of grader "math" that were tried in this process


def _grade(gold: str, response: str, style: str) -> Verdict:
    try:
        return grading.grade(gold, response, style=style, kind="number")
    except Exception:  # noqa: BLE001 - untrusted text must not end a run; it is counted
        return Verdict(Outcome.ERROR)


def _parse(row: dict, config) -> tuple[str, str, str]:
    """(question, solution, gold) of a row."""
    place, question = row[sources.PLACE], row[config["question_field"]]
    if not isinstance(question, str) or not question.strip():
        raise ConfigError(f"{place}: `{config['question_field']}` is not text, or empty; fix or drop it")
    answer = _answer_text(row[config["answer_field"]])
    if answer is None:
        raise ConfigError(f"{place}: `{config['answer_field']}` is neither text nor a finite number; fix or drop it")
    solution, _, gold = answer.rpartition(MARK)
    if MARK not in answer and "\\boxed" in answer:
        solution, gold = answer, grading.final_answer(answer, "boxed") or ""
    if config["solution_field"]:
        solution = row[config["solution_field"]]
        if not isinstance(solution, str):
            raise ConfigError(f"{place}: `{config['solution_field']}` is not text; fix or drop it")
    number_ = numeric.read(gold) if config["grader"] == "number" else None
    return question.strip(), solution.strip(), gold.strip() if number_ is None else str(number_)


def _answer_text(value) -> str | None:
    """Text as it is; a JSON number in plain digits, without the .0 of a whole one."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    digits = format(decimal.Decimal(repr(value)), "f")
    return digits.removesuffix(".0")


def _same(said: str | None, gold: str) -> bool:
    if said is None:
        return False
    a, b = numeric.read(said), numeric.read(gold)
    return said == gold or (a is not None and b is not None and numeric.equal(b, a))


def _group_name(row: dict, config) -> str:
    """One word: groups are listed with spaces between them."""
    if not (field := config["group_field"]):
        return "all"
    value = row[field]
    return re.sub(r"\s+", "_", value.strip() if isinstance(value, str) else f"{field} {value}") or "none"


def _group(name: str, config) -> Group:
    if not config["group_field"]:
        return Group("all", "all questions", "held-out questions", "not known")
    title = name.replace("_", " ")
    return Group(name, title, f"held-out questions with {config['group_field']} {title}", "not known")


def _grouped(problems: list[Problem]) -> dict[str, list[Problem]]:
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.group, []).append(problem)
    return groups
