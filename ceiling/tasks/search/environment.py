"""The search engine that an agent asks: BM25 over a store of documents, by the library bm25s.

Example:
    store = Store(["417k=582", "582m=903"], split=lambda texts: [text.split("=")[:1] for text in texts])
    store.best("417k", 1)                                        # [0]: places of the documents, best first
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence

import bm25s
import numpy as np

from ceiling.tasks.base import Problem, Turns
from ceiling.tasks.search.calls import Calls, Malformed

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it announces every index


class Store:
    """Documents and their index, in memory. split: from texts to the words of each that are matched. Raises ValueError
    if there is no such word."""

    def __init__(self, documents: Sequence[str], split: Callable[[Sequence[str]], list[list[str]]]):
        words = split(documents)
        if not any(words):
            raise ValueError("no document has a word to match")
        self.documents, self._split, self._index = documents, split, bm25s.BM25()
        self._index.index(words, show_progress=False)

    def words(self, query: str) -> list[str]:
        return self._split([query])[0]

    def best(self, query: str, count: int) -> list[int]:
        """Up to `count` places of documents that share a word with the query, best first; ties in their order."""
        known = [word for word in self.words(query) if word in self._index.vocab_dict]
        if not known:
            return []
        scores = self._index.get_scores(known)
        count = min(count, len(scores))
        best = np.flatnonzero((scores >= np.partition(scores, -count)[-count]) & (scores > 0))
        return best[np.argsort(-scores[best], kind="stable")][:count].tolist()


@dataclasses.dataclass(frozen=True, eq=False)
class SearchEngine:
    """Environment; see ceiling.tasks.base.Environment. show: from found documents to the body of an observation; shown:
    from a body to the documents that it shows, as far as it does."""

    store: Store
    calls: Calls
    documents_per_call: int
    show: Callable[[list[str]], str]
    shown: Callable[[str], tuple[str, ...]]
    max_calls: int
    max_observation_tokens: int
    timeout_s: float
    workers: int

    tags = property(lambda self: (self.calls.end,))
    opening = property(lambda self: self.calls.opening)
    closing = property(lambda self: self.calls.closing)
    failed = property(lambda self: self.calls.failed)

    def call(self, problem: Problem, turn: str) -> str:
        try:
            return self.find(self.calls.query(turn))
        except Malformed as error:
            return str(error)

    def trace(self, turns: Turns) -> list[tuple[str, tuple[str, ...]]]:
        """Queries as the words that are matched, "" where one could not be read, and what each was shown."""
        asked = (" ".join(self.store.words(query or "")) for query in self.calls.queries(turns))
        return list(zip(asked, map(self.shown, self.calls.bodies(turns)), strict=True))

    @functools.cached_property
    def find(self) -> Callable[[str], str]:
        """From a query to the body of its observation, with a memory."""
        return functools.lru_cache(maxsize=1 << 16)(self._find)

    def _find(self, query: str) -> str:
        found = [self.store.documents[i] for i in self.store.best(query, self.documents_per_call)]
        return self.show(found) if found else self.calls.nothing
