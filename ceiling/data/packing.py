"""Ragged examples -> one fixed-shape batch of packed rows with a view per sequence.

Rows are a transport layout: several sequences share a row of `row_tokens` tokens, kept apart by segment
ids. Losses never see rows. They see one line per sequence, [B, T], reached through `index_BT`, the
flat position (in the rows, or those of its group) of the activation that predicts each token. So a loss is written
for plain sequences, and packing, padding and row counts cannot change it.

Samples of one prompt that lie in one row share its tokens: `micro_batches` lays the prompt down once, up to its last
token, which predicts what differs, and lets every sample after it look back at it (`prefixes_RW`). A row with room for
several full responses is divided: a head for the prompt, then a cell for each, and nothing looks from cell to cell.
"""

import collections
import dataclasses
import itertools

import flax.struct
import jax
import numpy as np

SEQUENCES_PER_ROW = 4  # that a row of a micro-batch has room for, for each full response that it holds


@dataclasses.dataclass
class Example:
    """One training sequence. mask[t] is 1 where token t is a target; extra holds per-token arrays
    (same length as tokens) or scalars, which appear in the batch under their names."""

    tokens: np.ndarray
    mask: np.ndarray
    extra: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Cells:
    """How a row is divided: `head` tokens that all of it sees, then `count` cells of equal length, none of which sees
    another."""

    head: int = 0
    count: int = 1

    def tokens(self, row_tokens: int) -> int:
        """Of each cell."""
        return (row_tokens - self.head) // self.count

    def scores(self, row_tokens: int) -> int:
        """Pairs of tokens that attention over a row makes products of: the head with itself, and every cell with the
        head and itself."""
        cell = self.tokens(row_tokens)
        return self.head**2 + self.count * cell * (self.head + cell)


WHOLE = Cells()  # a row that is not


@flax.struct.dataclass
class Batch:
    """R rows of W tokens holding B sequences of at most T tokens.

    tokens_RW, segments_RW (0 padding), positions_RW: the packed rows. prefixes_RW: the segment that a token may look
    back at beside its own; its own again where there is none.
    targets_BT, mask_BT, index_BT: the view per sequence. mask is 0 on prompts, padding, absent
    sequences and token 0 (nothing predicts it). extra: name -> [B, T] or [B] arrays.
    cells: how each row is divided. groups: how many equal shares the rows and sequences come in, one for each device;
    index_BT counts within its own share.
    """

    tokens_RW: jax.Array
    segments_RW: jax.Array
    positions_RW: jax.Array
    prefixes_RW: jax.Array
    targets_BT: jax.Array
    mask_BT: jax.Array
    index_BT: jax.Array
    extra: dict
    cells: Cells = flax.struct.field(pytree_node=False, default=WHOLE)
    groups: int = flax.struct.field(pytree_node=False, default=1)


def pack(
    examples: list[Example], *, sequences: int, max_tokens: int, row_tokens: int, rows: int | None = None
) -> Batch:
    """Batch of exactly `sequences` sequences (missing ones are fully masked) in `rows` rows.

    First-fit decreasing. rows=None gives as many rows as are needed. Raises ValueError if a sequence
    is longer than max_tokens, or the rows do not hold everything."""
    if len(examples) > sequences:
        raise ValueError(f"packing: {len(examples)} examples do not fit a batch of {sequences} sequences")
    _check(examples, max_tokens, row_tokens)
    place, needed = _first_fit(examples, row_tokens)
    rows = needed if rows is None else rows
    if needed > rows:
        raise ValueError(f"packing: {needed} rows of {row_tokens} tokens are needed, {rows} are there")
    return _filled(examples, dict(enumerate(place)), sequences, max_tokens, row_tokens, rows)


def _check(examples: list[Example], max_tokens: int, row_tokens: int) -> None:
    longest = max((len(e.tokens) for e in examples), default=0)
    if longest > max_tokens or max_tokens > row_tokens:
        raise ValueError(
            f"packing: longest example {longest}, max_tokens={max_tokens}, row_tokens={row_tokens} must "
            "be in rising order; shorten the examples or make room for them"
        )
    if len({tuple(sorted(e.extra)) for e in examples}) > 1:
        raise ValueError("packing: examples of one batch must carry the same extra arrays")


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where an example lies: `start` is that of its own tokens, those from `prefix` on; the ones before lie at
    `prefix_start`. prefix is 0 where it shares none."""

    row: int
    start: int
    prefix: int = 0
    prefix_start: int = 0


def _filled(
    examples: list[Example], places: dict[int, _Place], sequences: int, max_tokens: int, row_tokens: int, rows: int,
    cells: Cells = WHOLE,
) -> Batch:
    """Those of the examples that have a place."""
    tokens, segments, positions, prefixes = (np.zeros((rows, row_tokens), np.int32) for _ in range(4))
    targets, index = (np.zeros((sequences, max_tokens), np.int32) for _ in range(2))
    mask = np.zeros((sequences, max_tokens), np.float32)
    names = examples[0].extra.items() if examples else ()
    extra = {k: np.zeros((sequences, max_tokens) if np.ndim(v) else sequences, np.float32) for k, v in names}
    segment = np.zeros(rows, np.int32)

    def lay(example: Example, row: int, start: int, first: int, stop: int) -> int:
        """Tokens [first, stop) of an example as a segment of their own; its id."""
        segment[row] += 1
        here = slice(start, start + stop - first)
        tokens[row, here], positions[row, here] = example.tokens[first:stop], np.arange(first, stop)
        segments[row, here] = prefixes[row, here] = segment[row]
        return segment[row]

    shared = {}  # (row, start) of a prefix -> its segment
    for b, (i, place) in enumerate(places.items()):
        example, row = examples[i], place.row
        n = len(example.tokens)
        if place.prefix:
            at = row, place.prefix_start
            shared[at] = shared.get(at) or lay(example, *at, 0, place.prefix)
        lay(example, row, place.start, place.prefix, n)
        if place.prefix:
            prefixes[row, place.start : place.start + n - place.prefix] = shared[at]
        targets[b, :n] = example.tokens
        mask[b, 1:n] = example.mask[1:]
        where = np.arange(n) + np.where(np.arange(n) < place.prefix, place.prefix_start, place.start - place.prefix)
        index[b, 1:n] = row * row_tokens + where[:-1]
        for name, value in example.extra.items():
            if np.ndim(value):
                extra[name][b, :n] = value
            else:
                extra[name][b] = value
    return Batch(tokens, segments, positions, prefixes, targets, mask, index, extra, cells)


def stack(batches: list[Batch]) -> Batch:
    """Micro-batches of equal shapes on a new leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Shapes of an arm's micro-batches: `parts` of them, for up to `sequences` sequences of up to max_tokens tokens.

    responses: of response_tokens to one prompt that a row has room for, in a cell each where there are several. More of
    them share a prompt, which saves much where prompts are long. groups: how many shares a part comes in, each with
    rows and sequences of its own. multiple: those of a group come in multiples of it (the devices that share it)."""

    sequences: int
    parts: int
    max_tokens: int
    responses: int = 1
    response_tokens: int = 0
    groups: int = 1
    multiple: int = 1

    @property
    def row_tokens(self) -> int:
        """The prompt's last token predicts what differs, so every response has one of its own."""
        return self.max_tokens + (self.responses - 1) * (self.response_tokens + 1)

    @property
    def cells(self) -> Cells:
        """The head holds the longest prompt, but for its last token."""
        return Cells(self.max_tokens - self.response_tokens - 1, self.responses) if self.responses > 1 else WHOLE

    @property
    def rows(self) -> int:
        """Of a part, if responses to one prompt lie together."""
        return _up(-(-self.sequences // (self.parts * self.responses)), self.groups * self.multiple)

    @property
    def row_sequences(self) -> int:
        """That a row may hold."""
        return SEQUENCES_PER_ROW * self.responses

    def room(self, rows: int) -> int:
        """Sequences that a part of so many rows has room for; a group, for no more than there are."""
        return self.groups * min(self.row_sequences * (rows // self.groups), _up(self.sequences, self.multiple))


def micro_batches(examples: list[Example], layout: Layout) -> tuple[Batch, int]:
    """Examples shared out over micro-batches of one shape: (Batch with a leading axis of layout.parts, the number of
    those that hold any). They fill as few as they fit in; the last ones are blank and need not be run.

    All of layout.sequences fit whatever their lengths: where rows are longer than a sequence and long ones do not share
    a prompt, parts get more rows than layout.rows. Otherwise they have one of four numbers of rows, so few programs are
    compiled however lengths drift.
    Raises ValueError as `pack` does, and where rows have cells if an example has more than response_tokens after the
    token that predicts its first target."""
    if len(examples) > layout.sequences:
        raise ValueError(f"packing: {len(examples)} examples do not fit a batch of {layout.sequences} sequences")
    _check(examples, layout.max_tokens, layout.row_tokens)
    places, needed = _first_fit(examples, layout.row_tokens, layout.cells, layout.row_sequences, share=True)
    groups, most = layout.groups, layout.rows
    step = _up(-(-most // 4), groups * layout.multiple)
    if needed > layout.parts * most:
        most = _up(-(-needed // layout.parts), step)
    live = -(-needed // most)
    some = min(most, _up(-(-needed // live), step))
    own = [{} for _ in range(live * groups)]  # places in each group of each part
    for i, place in enumerate(places):  # rows to each part in turn, and there to each group
        row, (group, part) = place.row // len(own), divmod(place.row % len(own), live)
        own[part * groups + group][i] = dataclasses.replace(place, row=row)
    sizes = layout.room(most) // groups, layout.max_tokens, layout.row_tokens, some // groups
    made = [_filled(examples, mine, *sizes, layout.cells) for mine in own]
    blank = jax.tree.map(np.zeros_like, made[0])
    made = stack(made + [blank] * (layout.parts - live) * groups)
    by_part = jax.tree.map(lambda leaf: leaf.reshape(layout.parts, -1, *leaf.shape[2:]), made)
    return by_part.replace(groups=groups), live


def _up(n: int, step: int) -> int:
    """The smallest multiple of step that is not below n."""
    return -(-n // step) * step


def _first_fit(
    examples: list[Example], row_tokens: int, cells: Cells = WHOLE, most: int | None = None, share: bool = False
):
    """The place of every example and the number of rows used, longest ones first, at most so many to a row. share:
    those with the same prefix follow the longest of them, into rows that have it if they can."""
    places: list[_Place | None] = [None] * len(examples)
    rows = _Rows(row_tokens, cells, most)
    groups = collections.defaultdict(list)
    for i, example in enumerate(examples):
        prefix = _common(example) if share else 0
        prefix = min(prefix, cells.head) if cells.count > 1 else prefix
        groups[prefix, np.asarray(example.tokens[:prefix]).tobytes() if prefix else i].append(i)
    by_length = lambda i: -len(examples[i].tokens)  # noqa: E731
    groups = {key: sorted(group, key=by_length) for key, group in groups.items()}
    for (prefix, _), group in sorted(groups.items(), key=lambda item: by_length(item[1][0])):
        prefix, laid = prefix if cells.count > 1 or len(group) > 1 else 0, {}
        for i in group:
            places[i] = rows.place(len(examples[i].tokens), prefix, laid)
    return places, max(1, len(rows.free))


class _Rows:
    """Rows that fill up. A row has parts: its head, and then its cells."""

    def __init__(self, row_tokens: int, cells: Cells, most: int | None):
        self.sizes = [cells.head] + [cells.tokens(row_tokens)] * cells.count
        self.ends, self.most = list(itertools.accumulate(self.sizes)), most
        self.free: list[list[int]] = []  # tokens of each part of each row
        self.items: list[int] = []
        self.room = np.full(64, max(self.sizes))  # that a row has in one part; more rows than there are

    def place(self, n: int, prefix: int, laid: dict[tuple[int, int], int]) -> _Place:
        """Room for an example of n tokens whose first `prefix` may lie apart: in a row that has them if possible, else
        in the first one with room. laid: (row, part) -> where they start there; it is kept here, a new one for every
        prefix. Those that are not there yet go into the head if it has room, else before the example in its cell."""
        own = n - prefix
        if len(self.free) == len(self.room):
            self.room = np.append(self.room, np.full(len(self.room), max(self.sizes)))
        # Rows are looked through by numpy: there are as many as examples, and one by one they took longer than a step.
        roomy = np.flatnonzero(self.room[: len(self.free) + 1] >= own).tolist()
        for row in (*(row for row in dict.fromkeys(row for row, _ in laid) if self.room[row] >= own), *roomy):
            if row == len(self.free):
                self.free.append(list(self.sizes))
                self.items.append(0)
            free = self.free[row]
            for cell in range(1, len(free)):
                at = 0 if (row, 0) in laid or 0 < prefix <= free[0] else cell
                need = {0: 0, cell: own}
                need[at] += 0 if (row, at) in laid else prefix
                if all(need[part] <= free[part] for part in need):
                    self.items[row] += 1
                    if prefix and (row, at) not in laid:
                        laid[row, at] = self._take(row, at, prefix)
                    start = self._take(row, cell, own)
                    self.room[row] = -1 if self.items[row] == self.most else max(free)
                    return _Place(row, start, prefix, laid.get((row, at), 0))
        raise ValueError(
            f"packing: {n} tokens, of which {prefix} may lie apart, do not fit a row's cell of {self.sizes[-1]}; "
            "make room for longer responses"
        )

    def _take(self, row: int, part: int, tokens: int) -> int:
        """Where the tokens start that are taken of a part."""
        start = self.ends[part] - self.free[row][part]
        self.free[row][part] -= tokens
        return start


def _common(example: Example) -> int:
    """Tokens that samples of the same prompt may share: up to the one that predicts the first target, or has the first
    value of its own; their activations are asked for nowhere else. Where nothing is asked for, all but the last."""
    own = np.asarray(example.mask) != 0
    for value in example.extra.values():
        own = own | (np.asarray(value) != 0) if np.ndim(value) else own
    own = np.flatnonzero(own[1:])
    return int(own[0]) if len(own) else max(len(example.tokens) - 1, 0)
