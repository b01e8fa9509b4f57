"""Packing: every token once, nothing overlaps, the view of each sequence points at its predecessors."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceiling.data.packing import Cells, Example, Layout, micro_batches, pack, stack

lengths_of = st.lists(st.integers(1, 9), max_size=12)


def examples_of(lengths, seed=0):
    """Tokens are unique over the batch, so a token says where it came from."""
    rng, start, out = np.random.default_rng(seed), 1, []
    for n in lengths:
        tokens = np.arange(start, start + n)
        out.append(Example(tokens, rng.integers(0, 2, n).astype(np.float32), {"w": tokens * 0.5, "a": float(start)}))
        start += n
    return out


@settings(max_examples=25, deadline=None)
@given(lengths=lengths_of, row_tokens=st.integers(9, 25), seed=st.integers(0, 999))
def test_every_token_is_placed_once_and_nothing_overlaps(lengths, row_tokens, seed):
    examples = examples_of(lengths, seed)
    batch = pack(examples, sequences=12, max_tokens=9, row_tokens=row_tokens)
    assert batch.tokens_RW.shape == batch.segments_RW.shape == batch.positions_RW.shape
    live = batch.segments_RW > 0
    assert sorted(batch.tokens_RW[live]) == list(range(1, sum(lengths) + 1)), "each token once"
    assert np.all(batch.tokens_RW[~live] == 0)
    pieces = set()
    for row in range(len(live)):
        for segment in set(batch.segments_RW[row]) - {0}:
            at = np.flatnonzero(batch.segments_RW[row] == segment)
            assert np.all(np.diff(at) == 1), "a segment is one run"
            np.testing.assert_array_equal(batch.positions_RW[row, at], np.arange(len(at)))
            pieces.add(tuple(batch.tokens_RW[row, at]))
    assert pieces == {tuple(e.tokens) for e in examples}, "no sequence is split or merged"


@settings(max_examples=25, deadline=None)
@given(lengths=lengths_of, row_tokens=st.integers(9, 25), seed=st.integers(0, 999))
def test_the_view_per_sequence_points_at_the_predecessor(lengths, row_tokens, seed):
    examples = examples_of(lengths, seed)
    batch = pack(examples, sequences=12, max_tokens=9, row_tokens=row_tokens)
    flat_tokens, flat_segments = batch.tokens_RW.reshape(-1), batch.segments_RW.reshape(-1)
    assert batch.targets_BT.shape == batch.mask_BT.shape == batch.index_BT.shape == (12, 9)
    for b, example in enumerate(examples):
        n = len(example.tokens)
        np.testing.assert_array_equal(batch.targets_BT[b, :n], example.tokens)
        for t in range(1, n):
            i = batch.index_BT[b, t]
            assert flat_tokens[i] == example.tokens[t - 1]
            assert flat_tokens[i + 1] == example.tokens[t] and flat_segments[i] == flat_segments[i + 1]
        np.testing.assert_array_equal(batch.mask_BT[b, 1:n], example.mask[1:])
        np.testing.assert_array_equal(batch.extra["w"][b, :n], example.extra["w"])
        assert batch.extra["a"][b] == example.extra["a"]
        assert not batch.mask_BT[b, n:].any() and not batch.extra["w"][b, n:].any()
    assert not batch.mask_BT[:, 0].any(), "nothing predicts token 0"
    assert not batch.mask_BT[len(examples) :].any(), "X-3: absent sequences are fully masked"
    assert batch.mask_BT.sum() == sum(e.mask[1:].sum() for e in examples)


@settings(max_examples=25, deadline=None)
@given(lengths=lengths_of, row_tokens=st.integers(9, 25))
def test_first_fit_wastes_no_row(lengths, row_tokens):
    """Two rows cannot both be at most half full, since the second would have gone into the first."""
    batch = pack(examples_of(lengths), sequences=12, max_tokens=9, row_tokens=row_tokens)
    fill = np.sort((batch.segments_RW > 0).sum(axis=1))
    assert len(fill) >= max(1, -(-sum(lengths) // row_tokens))
    assert len(fill) == 1 or fill[0] + fill[1] > row_tokens
    more = pack(examples_of(lengths), sequences=12, max_tokens=9, row_tokens=row_tokens, rows=len(fill) + 2)
    assert len(more.tokens_RW) == len(fill) + 2 and not more.segments_RW[len(fill) :].any()


def test_each_of_many_goes_into_the_first_row_with_room():
    """First-fit decreasing written out, over more rows than the packer first has a table for."""
    lengths = np.random.default_rng(3).integers(1, 41, 400)
    examples = [Example(np.full(n, i + 1), np.ones(n)) for i, n in enumerate(lengths)]
    batch = pack(examples, sequences=400, max_tokens=40, row_tokens=40)
    rows: list[list[int]] = []
    for i in sorted(range(400), key=lambda i: -lengths[i]):
        row = next((row for row in rows if sum(lengths[row]) + lengths[i] <= 40), None)
        if row is None:
            rows.append([i])
        else:
            row.append(i)
    assert len(rows) > 2 * 64
    np.testing.assert_array_equal(batch.tokens_RW > 0, [np.arange(40) < sum(lengths[row]) for row in rows])
    assert [list(dict.fromkeys(row[row > 0] - 1)) for row in batch.tokens_RW] == rows


def test_what_does_not_fit_is_refused_with_the_numbers():
    examples = examples_of([4, 4, 4])
    with pytest.raises(ValueError, match="3 examples do not fit a batch of 2"):
        pack(examples, sequences=2, max_tokens=4, row_tokens=8)
    with pytest.raises(ValueError, match="longest example 4, max_tokens=3"):
        pack(examples, sequences=3, max_tokens=3, row_tokens=8)
    with pytest.raises(ValueError, match="max_tokens=9, row_tokens=8"):
        pack(examples, sequences=3, max_tokens=9, row_tokens=8)
    with pytest.raises(ValueError, match="2 rows of 8 tokens are needed, 1 are there"):
        pack(examples, sequences=3, max_tokens=4, row_tokens=8, rows=1)


def test_an_empty_batch_has_its_shape_and_no_target():
    batch = pack([], sequences=3, max_tokens=4, row_tokens=8)
    assert batch.tokens_RW.shape == (1, 8) and batch.targets_BT.shape == (3, 4)
    assert not batch.mask_BT.any() and not batch.segments_RW.any()


def test_stack_puts_micro_batches_on_a_new_leading_axis():
    one, two = (pack(examples_of([3, 2], s), sequences=2, max_tokens=4, row_tokens=6, rows=2) for s in (0, 1))
    both = stack([one, two])
    for a, b, c in zip(*map(jax.tree.leaves, (both, one, two)), strict=True):
        assert a.shape == (2, *b.shape)
        np.testing.assert_array_equal(a[0], b)
        np.testing.assert_array_equal(a[1], c)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=24), multiple=st.integers(1, 3), parts=st.integers(1, 8),
    groups=st.integers(1, 3),
)  # fmt: skip
def test_micro_batches_hold_everything_once_in_as_few_parts_as_it_fits(lengths, multiple, parts, groups):
    rows, step = -(-24 // parts), groups * multiple
    examples = examples_of(lengths)
    batch, live = micro_batches(examples, Layout(parts * rows, parts, 9, groups=groups, multiple=multiple))
    assert batch.groups == groups
    assert all(len(leaf) == parts for leaf in jax.tree.leaves(batch)) and batch.tokens_RW.shape[-1] == 9
    used = batch.segments_RW > 0
    assert sorted(batch.tokens_RW[used]) == list(range(1, sum(lengths) + 1)), "each token once"
    assert used.any(axis=(1, 2)).tolist() == [True] * live + [False] * (parts - live), "blank parts are the last ones"
    assert not batch.mask_BT[live:].any() and not batch.extra["w"][live:].any()
    assert batch.mask_BT.sum() == sum(e.mask[1:].sum() for e in examples), "and asked for once"
    assert batch.tokens_RW.shape[1] % step == batch.mask_BT.shape[1] % step == 0
    assert batch.tokens_RW.shape[1] <= rows + step - 1
    rows_used = used.any(axis=2).sum(axis=1)[:live]
    assert rows_used.max() - rows_used.min() <= 1, "rows are shared out evenly"
    for m in range(live):
        own = batch.tokens_RW[m].reshape(groups, -1)
        for b in np.flatnonzero(batch.mask_BT[m].any(axis=1)):
            at, group = batch.mask_BT[m, b] > 0, b // (batch.mask_BT.shape[1] // groups)
            np.testing.assert_array_equal(own[group, batch.index_BT[m, b, at] + 1], batch.targets_BT[m, b, at])


def samples_of(prompts, lengths, seed=0):
    """Examples of several samples of each prompt: its tokens, then those of their own, the targets. Prompt p is made of
    token p + 1; other tokens are unique."""
    rng, start, out = np.random.default_rng(seed), 100, []
    for p, own in enumerate(lengths):
        for n in own:
            tokens = np.concatenate([np.full(prompts[p], p + 1), np.arange(start, start + n)])
            mask = (np.arange(len(tokens)) >= prompts[p]).astype(np.float32)
            out.append(Example(tokens, mask, {"w": mask * rng.normal(size=len(tokens)), "a": float(start)}))
            start += n
    return [out[i] for i in rng.permutation(len(out))]


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(st.integers(1, 5), min_size=3, max_size=3), seed=st.integers(0, 99), responses=st.integers(1, 4),
    lengths=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=6), min_size=3, max_size=3),
)  # fmt: skip
def test_samples_of_a_prompt_share_it_and_see_what_they_would_see_alone(prompts, lengths, seed, responses):
    examples = samples_of(prompts, lengths, seed)
    layout = Layout(20, 5, 11, responses, 6)
    batch, live = micro_batches(examples, layout)
    cell = lambda i: 0 if i < layout.cells.head else 1 + (i - layout.cells.head) // 7  # noqa: E731
    found = []
    for m in range(live):
        one = jax.tree.map(lambda leaf: leaf[m], batch)  # noqa: B023
        W = one.tokens_RW.shape[1]
        for b in np.flatnonzero(one.mask_BT.any(axis=1)):
            targets = np.flatnonzero(one.mask_BT[b])
            for t in targets:
                row, i = divmod(int(one.index_BT[b, t]), W)
                seen = [k for k in range(i + 1) if one.segments_RW[row, k] in
                        (one.segments_RW[row, i], one.prefixes_RW[row, i])]  # fmt: skip
                assert responses == 1 or {cell(k) for k in seen} <= {0, cell(i)}, "nothing looks into another cell"
                np.testing.assert_array_equal(one.tokens_RW[row, seen], one.targets_BT[b, :t])
                np.testing.assert_array_equal(one.positions_RW[row, seen], np.arange(t))
                assert one.tokens_RW[row, i + 1] == one.targets_BT[b, t], "which is what the head asks of a row"
            found.append((one.extra["a"][b], tuple(one.targets_BT[b, : targets[-1] + 1]), tuple(targets)))
    assert sorted(found) == sorted(
        (e.extra["a"], tuple(e.tokens), tuple(np.flatnonzero(e.mask))) for e in examples
    ), "every example once, with its targets"  # fmt: skip


def test_a_shared_prompt_is_laid_down_once_a_row():
    examples = samples_of([5], [[2, 2, 2]])
    batch, live = micro_batches(examples, Layout(3, 3, 13))
    assert live == 1 and (batch.segments_RW > 0).sum() == 4 + 3 * (1 + 2), "the last token is each one's own"
    alone = [Example(e.tokens, e.mask, {**e.extra, "w": np.ones(len(e.tokens))}) for e in examples]
    assert micro_batches(alone, Layout(3, 3, 13))[1] == 3, "what has values of its own is not shared"


@pytest.mark.parametrize("responses", [2, 4])
def test_longer_rows_lay_a_prompt_down_once_for_so_many_full_responses(responses):
    examples, layout = samples_of([5] * 3, [[6] * 8] * 3), Layout(24, 3, 11, responses, 6)
    batch, live = micro_batches(examples, layout)
    assert batch.cells == Cells(4, responses)
    assert live == 3 and batch.tokens_RW.shape == (3, 8 // responses, 4 + responses * 7)
    assert batch.tokens_RW.shape[1:] == (layout.rows, layout.row_tokens) and (batch.segments_RW > 0).all()
    assert batch.mask_BT.shape[1] == layout.room(layout.rows)


@pytest.mark.parametrize(
    ("sequences", "parts", "multiple"), [(5, 1, 1), (13, 1, 1), (40, 4, 1), (20, 1, 4), (160, 4, 8)]
)
def test_full_parts_have_the_rows_that_were_planned_and_no_more(sequences, parts, multiple):
    layout = Layout(sequences, parts, 9, multiple=multiple)
    batch, live = micro_batches(examples_of([9] * sequences), layout)
    assert live == parts and batch.tokens_RW.shape == (parts, -(-sequences // parts), 9)
    assert batch.mask_BT.shape[1] == layout.room(layout.rows)


def test_what_shares_no_prompt_fits_longer_rows_all_the_same():
    examples, layout = samples_of([5] * 24, [[6]] * 24), Layout(24, 3, 11, 2, 6)
    batch, live = micro_batches(examples, layout)
    assert live == 3 and batch.tokens_RW.shape == (3, 8, 18), "one to a row, and rows for all"
    assert (batch.mask_BT.sum(axis=2) > 0).sum() == 24


def test_a_response_goes_into_a_cell_whatever_is_asked_of_it():
    layout, tokens = Layout(4, 1, 11, 2, 6), np.arange(1, 12)
    unasked = Example(tokens, np.zeros(11, np.float32))
    batch, live = micro_batches([unasked] * 4, layout)
    assert live == 1 and not batch.mask_BT.any() and (batch.segments_RW > 0).sum() == 2 * 4 + 4 * 7
    with pytest.raises(ValueError, match="11 tokens, of which 2 may lie apart, do not fit a row's cell of 7"):
        micro_batches([Example(tokens, tokens > 3)], layout)


def test_more_examples_than_the_batch_has_are_refused():
    with pytest.raises(ValueError, match="5 examples do not fit a batch of 4"):
        micro_batches(examples_of([1] * 5), Layout(4, 2, 3))


def test_short_sequences_fill_few_micro_batches_and_long_ones_all():
    made = lambda n: micro_batches(examples_of([n] * 32), Layout(32, 8, 9))  # noqa: E731
    assert [made(n)[1] for n in (9, 4, 3, 1)] == [8, 4, 3, 2], "the last has room for four sequences to a row"
    shapes = {made(n)[0].tokens_RW.shape for n in (9, 4, 3)}
    assert shapes == {(8, 4, 9)}, "one program serves them all"
