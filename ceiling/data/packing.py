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

SEQUENCES_PER_ROW = 4  # that a row of a micro-batch has room for, on average


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
    place, needed = _placed(examples, max_tokens, row_tokens)
    rows = needed if rows is None else rows
    if needed > rows:
        raise ValueError(f"packing: {needed} rows of {row_tokens} tokens are needed, {rows} are there")
    return _filled(examples, place, sequences, max_tokens, row_tokens, rows)


def _placed(examples: list[Example], max_tokens: int, row_tokens: int, most: int | None = None):
    """(row, start) of every example, at most so many to a row, and the number of rows. Checks what it is given."""
    longest = max((len(e.tokens) for e in examples), default=0)
    if longest > max_tokens or max_tokens > row_tokens:
        raise ValueError(
            f"packing: longest example {longest}, max_tokens={max_tokens}, row_tokens={row_tokens} must "
            "be in rising order; shorten the examples or make room for them"
        )
    if len({tuple(sorted(e.extra)) for e in examples}) > 1:
        raise ValueError("packing: examples of one batch must carry the same extra arrays")
    return _first_fit([len(e.tokens) for e in examples], row_tokens, most)


def _filled(examples: list[Example], place, sequences: int, max_tokens: int, row_tokens: int, rows: int) -> Batch:
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


def micro_batches(
    examples: list[Example], *, parts: int, rows: int, max_tokens: int, multiple: int = 1
) -> tuple[Batch, int]:
    """Examples shared out over micro-batches of one shape: (Batch with a leading axis of `parts`, the number of those
    that hold any). They fill as few as they fit in; the last ones are blank and need not be run.

    rows: of max_tokens tokens that a full part may take, so parts * rows examples fit whatever their lengths. It is
    given one of four numbers of rows, so few programs are compiled however lengths drift; rows and sequences come in
    multiples of `multiple` (devices). Raises ValueError as `pack` does."""
    most, sequences = _up(rows, multiple), micro_sequences(parts, rows, multiple)
    place, needed = _placed(examples, max_tokens, max_tokens, SEQUENCES_PER_ROW)
    live = -(-needed // most)
    some = min(most, _up(-(-needed // live), _up(-(-rows // 4), multiple)))
    made = []
    for part in range(live):
        mine = [i for i, (row, _) in enumerate(place) if row % live == part]
        here = [(place[i][0] // live, place[i][1]) for i in mine]
        made.append(_filled([examples[i] for i in mine], here, sequences, max_tokens, max_tokens, some))
    blank = jax.tree.map(np.zeros_like, made[0])
    return stack(made + [blank] * (parts - live)), live


def micro_sequences(parts: int, rows: int, multiple: int) -> int:
    """Sequences that a micro-batch of so many rows has room for, if there are as many."""
    return min(SEQUENCES_PER_ROW * _up(rows, multiple), _up(parts * rows, multiple))


def _up(n: int, step: int) -> int:
    """The smallest multiple of step that is not below n."""
    return -(-n // step) * step


def _first_fit(lengths: list[int], row_tokens: int, most: int | None = None):
    """(row, start) per item and the number of rows used, longest items first, at most so many to a row."""
    place = [(0, 0)] * len(lengths)
    free: list[int] = []
    items: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = (r for r, room in enumerate(free) if room >= lengths[i] and items[r] != most)
        row = next(fits, len(free))
        if row == len(free):
            free.append(row_tokens)
            items.append(0)
        place[i] = (row, row_tokens - free[row])
        free[row] -= lengths[i]
        items[row] += 1
    return place, max(1, len(free))
