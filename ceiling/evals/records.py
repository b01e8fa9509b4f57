"""Samples of one policy on one set of problems: one record per sample, on disk as Parquet.

Counts are the truth: every figure and verdict is recomputed from these records. Columns:
problem (index into the task's evaluation problems), problem_id, group, sample, tokens (response ids),
logprob (sum over the response, nats, under the sampling distribution), stopped, outcome (Outcome),
process (1 valid, 0 invalid, -1 not judged), answer, strategy (text, empty where there is none); of episodes
also turns (lengths in tokens of what the agent and its tools wrote in turn, beginning with the agent's), calls and
documents (texts: what it asked of its tools, and what they showed it).
"""

import collections
import dataclasses
import json
import os
import pathlib
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ceiling.rollout.engine import turn_spans
from ceiling.tasks.base import Outcome

if TYPE_CHECKING:
    import pandas


@dataclasses.dataclass
class Samples:
    """Records and what identifies them. meta: seed, temperature, top_p, template and task identity."""

    table: pa.Table
    meta: dict

    @property
    def problems(self) -> int:
        """How many."""
        return self.meta["problems"]

    @property
    def n(self) -> int:
        """Samples of every problem."""
        return self.meta["n"]

    @property
    def groups(self) -> list[str]:
        """Group of every problem, in problem order."""
        return self.meta["groups"]

    @property
    def counts(self) -> np.ndarray:
        """i64[problems, 2]: (n, correct) of every problem, in the order of `groups`, recounted from the records: what
        pass@k is computed from (ceiling/evals/passk.py). Only outcome RIGHT is correct; a verifier's ERROR counts in
        n."""
        right = self.matrix("outcome") == Outcome.RIGHT
        return np.stack([np.full(self.problems, self.n), right.sum(axis=1)], axis=1).astype(np.int64)

    def matrix(self, column: str) -> np.ndarray:
        """A scalar column as [problems, n]."""
        return self.table[column].to_numpy().reshape(self.problems, self.n)

    def labels(self, column: str) -> tuple[np.ndarray, list[str]]:
        """A text column as label indices int32[problems, n] (-1 for empty) and the label names."""
        encoded = self.table[column].combine_chunks()
        if not pa.types.is_dictionary(encoded.type):
            encoded = encoded.dictionary_encode()
        names = encoded.dictionary.to_pylist()
        index = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32)
        if "" in names:
            index = np.where(index == names.index(""), -1, index)
        return index.reshape(self.problems, self.n), names

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per sample, in the order of the table, its columns decoded: outcome is categorical over the names
        "wrong", "right", "unparsed", "error"; process is boolean, missing where it was not judged; group, answer and
        strategy are text, missing where there is none; tokens are arrays of ids; logprob is in nats."""
        import pandas

        frame = self.table.to_pandas()
        names = [outcome.name.lower() for outcome in sorted(Outcome)]
        frame["outcome"] = pandas.Categorical.from_codes(frame["outcome"], names)
        frame["process"] = frame["process"].map({0: False, 1: True}).astype("boolean")
        for name in ("group", "answer", "strategy"):
            words = frame[name].astype("str")
            frame[name] = words.mask(words == "")
        return frame

    def tokens(self, problem: int, sample: int) -> np.ndarray:
        """int32: one response, its stop token included."""
        return self.table["tokens"][problem * self.n + sample].values.to_numpy()

    def label_lists(self, column: str) -> np.ndarray:
        """A column of text lists as label indices int32[problems, n, longest list], -1 after a list's end."""
        lists = self.table[column].combine_chunks()
        lengths, labels = lists.value_lengths().to_numpy(), lists.flatten().dictionary_encode().indices.to_numpy()
        out = np.full((len(lists), max(1, int(lengths.max()))), -1, np.int32)
        out[np.arange(out.shape[1]) < lengths[:, None]] = labels
        return out.reshape(self.problems, self.n, -1)

    def own(self, problem: int, sample: int) -> np.ndarray:
        """bool, one per token of a response: whether the policy wrote it."""
        if "turns" not in self.table.column_names:
            return np.ones(len(self.tokens(problem, sample)), bool)
        lengths = self.table["turns"][problem * self.n + sample].as_py()
        return np.repeat(np.arange(len(lengths)) % 2 == 0, lengths)

    @property
    def lengths(self) -> np.ndarray:
        """Response tokens, int[problems, n], the stop token counted."""
        return pc.list_value_length(self.table["tokens"]).to_numpy().reshape(self.problems, self.n)

    @property
    def responses(self) -> np.ndarray:
        """int64[problems, n] >= 0, equal for equal token sequences: a sum of tokens, each times a random number for its
        place, modulo 2^63. Different ones are equal with a chance of about 2^-60."""
        column = self.table["tokens"].combine_chunks()
        lengths = column.value_lengths().to_numpy()
        ends = np.cumsum(lengths)
        place = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        factor = np.random.default_rng(0).integers(1 << 63, size=int(lengths.max()), dtype=np.uint64)
        terms = (column.flatten().to_numpy().astype(np.uint64) + np.uint64(1)) * (2 * factor + 1)[place]
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms)])  # modulo 2^64, and so are differences
        total = sums[ends] - sums[ends - lengths]
        return (total >> np.uint64(1)).astype(np.int64).reshape(self.problems, self.n)

    def save(self, path: str | pathlib.Path) -> None:
        """Write one file; it appears whole or not at all."""
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"ceiling": json.dumps(self.meta)}
        pq.write_table(self.table.replace_schema_metadata(metadata), f"{path}.part", compression="zstd")
        os.replace(f"{path}.part", path)

    @classmethod
    def joined(cls, parts: list["Samples"], meta: dict) -> "Samples":
        """The samples of several runs of problems as one, in order."""
        table = pa.concat_tables([part.table for part in parts]).unify_dictionaries().combine_chunks()
        groups = [group for part in parts for group in part.groups]
        return cls(table, {**meta, "problems": len(groups), "groups": groups})

    @classmethod
    def load(cls, path: str | pathlib.Path) -> "Samples":
        """The samples that `save` wrote."""
        table = pq.read_table(path)
        return cls(table, json.loads(table.schema.metadata[b"ceiling"]))


_LISTS = {"turns": pa.int32(), "calls": pa.string(), "documents": pa.string()}


def turn_lengths(own: np.ndarray) -> list[int]:
    """Tokens of each turn of a response; `Samples.own` is the way back."""
    return [stop - start for start, stop in turn_spans(own)]


class Recorder:
    """Collects columns problem by problem, then builds the table."""

    def __init__(self):
        self._columns: dict[str, list] = collections.defaultdict(list)
        self._lengths: list[np.ndarray] = []
        self._tokens: list[np.ndarray] = []

    def add(self, tokens: list[np.ndarray], **columns) -> None:
        """Records of one problem: response tokens and equally long columns."""
        self._lengths.append(np.array([len(t) for t in tokens], np.int32))
        self._tokens += tokens
        for name, values in columns.items():
            self._columns[name].append(values)

    def samples(self, meta: dict) -> Samples:
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(self._lengths))]).astype(np.int32)
        values = np.concatenate(self._tokens).astype(np.int32)
        arrays = {"tokens": pa.ListArray.from_arrays(offsets, pa.array(values))}
        for name, parts in self._columns.items():
            if name in _LISTS:
                arrays[name] = pa.array([v for part in parts for v in part], pa.list_(_LISTS[name]))
            elif isinstance(parts[0], np.ndarray):
                arrays[name] = pa.array(np.concatenate(parts))
            else:
                arrays[name] = pa.array([v for part in parts for v in part]).dictionary_encode()
        return Samples(pa.table(arrays), meta)
