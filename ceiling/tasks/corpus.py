"""Plain text: passages for RLP, documents for (continued) pretraining, next-token problems for pass@k.

Text comes from a file or a hub data set (`data/sources.py`), one document per row. Documents are split into training
and held-out ones by a keyed permutation; repeated ones are kept once (D1). A problem is a point of a document: up to
`context_tokens` before it are the prompt, the next `horizon` tokens are the truth. Points are keyed by (seed, id),
at least `min_context_tokens` into the text and never in padding (RL-10), and only where prompt and truth
alone have the very tokens that they have in the document.

A response is right if it starts with the truth's text, exactly. It may think first: what follows the last
`thought_close` counts. All arms get the same prompt, which ends with `thought_open` (X-7).

Example:
    task = make(CONFIG.defaults(horizon=4), {"path": "stories.txt"})
    task.passage(task.evaluation()[0]).continuation
"""

import os

import numpy as np

from ceiling.config import ConfigError, Section, number, text
from ceiling.data import prompts, sources
from ceiling.data.order import permute
from ceiling.data.tokens import ByteTokenizer
from ceiling.tasks.base import Document, Group, Outcome, Passage, Problem, Verdict

CONFIG = Section(
    name=text("corpus"),
    seed=number(0, whole=True, low=0, doc="splits the documents and draws the points"),
    text_field=text("text"),
    evaluation_documents=number(64, whole=True, low=1, doc="documents held out"),
    evaluation_problems=number(64, whole=True, low=1, doc="points in them"),
    min_context_tokens=number(8, whole=True, low=1),
    context_tokens=number(256, whole=True, low=1),
    horizon=number(8, whole=True, low=1, doc="tokens to predict"),
    max_response_tokens=number(64, whole=True, low=1, doc="a thought, its end and the prediction"),
    thought_open=text("", doc="ends the prompt"),
    thought_close=text("\x04", doc="ends a thought; one token of the tokenizer"),
)
TRIES = 16  # points that are tried in a document before the next one
_TRAINING_IDS = 1 << 31


class Corpus:
    """Task; see ceiling.tasks.base.Task. left_out: documents that are repeated or have a control
    token or thought_close in them;
    provenance: hashes of the data and of the tokenizer, with that count."""

    name = "corpus"
    guess_rate = None
    groups = (Group("all", "next tokens", "points of held-out documents", "not known"),)

    def __init__(self, config, path: str, tokenizer=None):
        self.config = config
        self.tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
        self.max_response_tokens = config["max_response_tokens"]
        self._check()
        rows = sources.read(path, fields=(config["text_field"],))
        texts = self._usable(rows)
        held_out = config["evaluation_documents"]
        if len(texts) <= held_out:
            raise ConfigError(
                f"config.task.evaluation_documents={held_out} leaves nothing to train on: {path} has {len(texts)} "
                f"usable documents ({self.left_out} left out: repeated, or with a control token); lower it"
            )
        texts = [texts[i] for i in permute(np.arange(len(texts)), len(texts), f"corpus/{config['seed']}")]
        self._held_out, self._texts = texts[:held_out], texts[held_out:]
        wanted = config["evaluation_problems"]
        self._evaluation = self._points(self._held_out, 0, wanted)
        if len(self._evaluation) < wanted:
            raise ConfigError(
                f"config.task.evaluation_problems={wanted}: {path} has {len(self._evaluation)} points with "
                f"{config['min_context_tokens']} tokens before and {config['horizon']} after them in {held_out} held-"
                "out documents; lower it, min_context_tokens or horizon, or hold out more"
            )
        self.provenance = {
            "data.path_sha256": sources.digest(rows), "tokenizer_sha256": self.tokenizer.identity,
            "left_out": self.left_out,
        }  # fmt: skip

    def _check(self) -> None:
        config, tokenizer = self.config, self.tokenizer
        close = config["thought_close"]
        ids = tokenizer.encode(close)
        if len(ids) != 1 or ids[0] in tokenizer.stop_ids:
            raise ConfigError(
                f"config.task.thought_close={close!r} must be one token and no end of text, it is {len(ids)}; use a "
                "token of the tokenizer that its texts do not need, e.g. </think> or a reserved one"
            )
        if config["min_context_tokens"] > config["context_tokens"]:
            raise ConfigError(
                f"config.task.min_context_tokens={config['min_context_tokens']} is above context_tokens="
                f"{config['context_tokens']}; lower it"
            )
        if config["horizon"] > config["max_response_tokens"]:
            raise ConfigError(
                f"config.task.horizon={config['horizon']} is above "
                f"max_response_tokens={config['max_response_tokens']}: no response could be right; raise it"
            )

    def _usable(self, rows: list[dict]) -> list[str]:
        field, close, texts = self.config["text_field"], self.config["thought_close"], {}
        for row in rows:
            if not isinstance(row[field], str):
                raise ConfigError(f"{row[sources.PLACE]}: `{field}` is not text; fix or drop it")
            document = row[field].strip()
            if document and close not in document and prompts.control_token(self.tokenizer, document) is None:
                texts[document] = None
        self.left_out = len(rows) - len(texts)
        return list(texts)

    def _points(self, texts: list[str], first_id: int, count: int) -> list[Problem]:
        """Up to `count` problems, going round the documents: number j is keyed by (seed, its id) alone."""
        found, barren = [], 0
        for j in range(count * TRIES):
            if len(found) == count or barren == len(texts):
                break
            problem = self._point(texts[j % len(texts)], first_id + j)
            barren = 0 if problem else barren + 1
            if problem:
                found.append(problem)
        return found

    def _point(self, document: str, id_: int) -> Problem | None:
        config, ids = self.config, self.tokenizer.encode(document)
        rng = np.random.default_rng([config["seed"], id_])
        low, high = config["min_context_tokens"], len(ids) - config["horizon"]
        for t in rng.integers(low, high + 1, size=TRIES) if high >= low else ():
            context = self._exact(ids[max(0, t - config["context_tokens"]) : t])
            truth = self._exact(ids[t : t + config["horizon"]])
            if context is not None and truth is not None:
                start = self.tokenizer.decode(self.tokenizer.bos_ids)
                return Problem(id_, "all", start + context + config["thought_open"], truth)
        return None

    def _exact(self, ids: list[int]) -> str | None:
        """The text of these tokens, if it has these tokens when it stands alone: not half a character, not a part that
        would be merged otherwise."""
        said = self.tokenizer.decode(ids)
        return said if self.tokenizer.encode(said) == ids else None

    def evaluation(self) -> list[Problem]:
        return self._evaluation

    def training(self, mix, size: int) -> list[Problem]:
        points = self._points(self._texts, _TRAINING_IDS, size)
        if not points:
            raise ValueError("no training document has room for a point; lower min_context_tokens or horizon")
        return points

    def corpus(self, kind: str, seed: int, count: int) -> list[Document]:
        """Whole documents and parts of long ones, joined to about the longest sequence that training has room for. A
        document starts and ends as the tokenizer's family wants it."""
        tokenizer, limit = self.tokenizer, self._document_tokens()
        start, out, joined, used = tokenizer.decode(tokenizer.bos_ids), [], "", 0
        for epoch in range(count * limit):  # a document has at least one token
            for i in permute(np.arange(len(self._texts)), len(self._texts), f"corpus/{seed}/{epoch}"):
                for part in self._parts(start + self._texts[i] + tokenizer.eos, limit):
                    tokens = len(tokenizer.encode(part))
                    if used + tokens > limit:
                        out.append(Document("", joined))
                        joined, used = "", 0
                        if len(out) == count:
                            return out
                    joined, used = joined + part, used + tokens
        return out

    def _document_tokens(self) -> int:
        """No more than any arm's sequences: the longest prompt and response."""
        return max(len(self.tokenizer.encode(p.prompt)) for p in self._evaluation) + self.max_response_tokens

    def _parts(self, document: str, limit: int):
        """The document in pieces of at most `limit` tokens that are text on their own."""
        ids, start = self.tokenizer.encode(document), 0
        while start < len(ids):
            ends = range(min(start + limit, len(ids)), start, -1)
            end = next((end for end in ends if self._exact(ids[start:end]) is not None), None)
            if end is None:
                return
            yield self.tokenizer.decode(ids[start:end])
            start = end

    def demonstration(self, problem: Problem, rng) -> str:
        """The text itself, without an end: it goes on."""
        return problem.answer

    def passage(self, problem: Problem) -> Passage:
        close = self.config["thought_close"]
        return Passage(problem.prompt, stop=close, bridge="", continuation=problem.answer, empty=close)

    def verify(self, problem: Problem, response: str) -> Verdict:
        said = response.rpartition(self.config["thought_close"])[2]
        body, truth = self.tokenizer.split_end(said)[0], problem.answer
        if not body:
            return Verdict(Outcome.UNPARSED)
        same = len(os.path.commonprefix([body, truth]))
        right = same == len(truth)
        return Verdict(Outcome.RIGHT if right else Outcome.WRONG, body[: len(truth)], same / len(truth))

    def gate(self):
        return None


def make(config, data, tokenizer=None) -> Corpus:
    return Corpus(config, data["path"], tokenizer)
