"""Ragged examples -> one fixed-shape batch of packed rows with a view per sequence.

Rows are a transport layout: several sequences share a row of `row_tokens` tokens, kept apart by segment
ids. Losses never see rows. They see one line per sequence, [B, T], reached through `index_BT`, the
flat position (in the rows) of the activation that predicts each token. So a loss is written for
plain sequences, and packing, padding and row counts cannot change it.
"""

import dataclasses

import flax.struct
import jax
import numpy as np


@dataclasses.dataclass
class Example:
    """One training sequence. mask[t] is 1 where token t is a target; extra holds per-token arrays
    (same length as tokens) or scalars, which appear in the batch under their names."""

    tokens: np.ndarray
    mask: np.ndarray
    extra: dict = dataclasses.field(default_factory=dict)


@flax.struct.dataclass
class Batch:
    """R rows of W tokens holding B sequences of at most T tokens.

    tokens_RW, segments_RW (0 padding), positions_RW: the packed rows.
    targets_BT, mask_BT, index_BT: the view per sequence. mask is 0 on prompts, padding, absent
    sequences and token 0 (nothing predicts it). extra: name -> [B, T] or [B] arrays.
    """

    tokens_RW: jax.Array
    segments_RW: jax.Array
    positions_RW: jax.Array
    targets_BT: jax.Array
    mask_BT: jax.Array
    index_BT: jax.Array
    extra: dict


def pack(
    examples: list[Example], *, sequences: int, max_tokens: int, row_tokens: int, rows: int | None = None
) -> Batch:
    """Batch of exactly `sequences` sequences (missing ones are fully masked) in `rows` rows.

    First-fit decreasing. rows=None gives as many rows as are needed. Raises ValueError if a sequence
    is longer than max_tokens, or the rows do not hold everything."""
    if len(examples) > sequences:
        raise ValueError(f"packing: {len(examples)} examples do not fit a batch of {sequences} sequences")
    longest = max((len(e.tokens) for e in examples), default=0)
    if longest > max_tokens or max_tokens > row_tokens:
        raise ValueError(
            f"packing: longest example {longest}, max_tokens={max_tokens}, row_tokens={row_tokens} must "
            "be in rising order; shorten the examples or make room for them"
        )
    if len({tuple(sorted(e.extra)) for e in examples}) > 1:
        raise ValueError("packing: examples of one batch must carry the same extra arrays")
    place, needed = _first_fit([len(e.tokens) for e in examples], row_tokens)
    rows = needed if rows is None else rows
    if needed > rows:
        raise ValueError(f"packing: {needed} rows of {row_tokens} tokens are needed, {rows} are there")
    tokens, segments, positions = (np.zeros((rows, row_tokens), np.int32) for _ in range(3))
    targets, index = (np.zeros((sequences, max_tokens), np.int32) for _ in range(2))
    mask = np.zeros((sequences, max_tokens), np.float32)
    names = examples[0].extra.items() if examples else ()
    extra = {k: np.zeros((sequences, max_tokens) if np.ndim(v) else sequences, np.float32) for k, v in names}
    segment = np.zeros(rows, np.int32)
    for b, (example, (row, start)) in enumerate(zip(examples, place, strict=True)):
        n = len(example.tokens)
        segment[row] += 1
        tokens[row, start : start + n] = example.tokens
        segments[row, start : start + n] = segment[row]
        positions[row, start : start + n] = np.arange(n)
        targets[b, :n] = example.tokens
        mask[b, 1:n] = example.mask[1:]
        index[b, 1:n] = row * row_tokens + start + np.arange(n - 1)
        for name, value in example.extra.items():
            if np.ndim(value):
                extra[name][b, :n] = value
            else:
                extra[name][b] = value
    return Batch(tokens, segments, positions, targets, mask, index, extra)


def stack(batches: list[Batch]) -> Batch:
    """Micro-batches of equal shapes on a new leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def _first_fit(lengths: list[int], row_tokens: int):
    """(row, start) per item and the number of rows used, longest items first."""
    place = [(0, 0)] * len(lengths)
    free: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, room in enumerate(free) if room >= lengths[i]), len(free))
        if row == len(free):
            free.append(row_tokens)
        place[i] = (row, row_tokens - free[row])
        free[row] -= lengths[i]
    return place, max(1, len(free))
