"""The search engine that an agent asks: BM25 over a store of documents, by the library bm25s.

Example:
    store = Store(["417k=582", "582m=903"], words=lambda text: text.split("=")[0])
    store.best("417k", 1)                                        # [0]: places of the documents, best first
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import bm25s
import numpy as np

from ceiling.tasks.base import Problem
from ceiling.tasks.search import language as lang


class Store:
    """Documents and their index. words: from a text to the words that are matched."""

    def __init__(self, documents: Sequence[str], words: Callable[[str], list[str]]):
        self.documents, self._words = documents, words
        self._index = bm25s.BM25()
        self._index.index([words(text) for text in documents], show_progress=False)

    def best(self, query: str, count: int) -> list[int]:
        """Up to `count` places of documents that share a word with the query, best first; ties in their order."""
        known = [word for word in self._words(query) if word in self._index.vocab_dict]
        if not known:
            return []
        scores = self._index.get_scores(known)
        order = np.argsort(-scores, kind="stable")[:count]
        return [int(i) for i in order if scores[i] > 0]


@dataclasses.dataclass(frozen=True, eq=False)
class WorldSearch:
    """Environment of the generated world; see ceiling.tasks.base.Environment."""

    documents: tuple[str, ...]
    tags = (lang.TAG,)
    opening, closing, failed = lang.OPENING, lang.CLOSING, lang.FAILED
    max_calls, max_observation_tokens = lang.MAX_CALLS, lang.MAX_OBSERVATION
    timeout_s, workers = 10.0, 0

    def call(self, problem: Problem, turn: str) -> str:
        return self.find(*lang.queries((turn, "")))

    @functools.cached_property
    def _store(self) -> Store:
        return Store(self.documents, lang.words)

    @functools.cache  # noqa: B019 - lives as long as its world
    def find(self, query: str) -> str:
        """The best document, or `failed` where nothing matches."""
        return next((self.documents[i] for i in self._store.best(query, 1)), lang.FAILED)
