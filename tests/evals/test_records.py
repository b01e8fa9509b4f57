"""Records: one per sample, a faithful round trip, counts that are recounted and never stored."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ceiling.evals.records import Recorder, Samples
from ceiling.tasks.base import Outcome


def build(rng, problems, n, labels=("S", "", "B")):
    recorder, outcomes = Recorder(), rng.integers(0, 4, (problems, n)).astype(np.int8)
    tokens = [[rng.integers(1, 60, rng.integers(0, 9)).astype(np.int32) for _ in range(n)] for _ in range(problems)]
    strategies = [[labels[i] for i in rng.integers(len(labels), size=n)] for _ in range(problems)]
    for p in range(problems):
        recorder.add(
            tokens[p], problem=np.full(n, p, np.int32), problem_id=np.full(n, 2**32 - 1 - p, np.uint32),
            group=["AB"[p % 2]] * n, sample=np.arange(n, dtype=np.int32), logprob=-rng.random(n).astype(np.float32),
            stopped=rng.random(n) < 0.5, outcome=outcomes[p], process=rng.integers(-1, 2, n).astype(np.int8),
            answer=[str(i % 3) if i % 4 else "" for i in range(n)], strategy=strategies[p],
        )  # fmt: skip
    meta = {"problems": problems, "n": n, "groups": ["AB"[p % 2] for p in range(problems)], "seed": 3}
    return recorder.samples(meta), outcomes, tokens, strategies


@settings(deadline=None, max_examples=20)
@given(problems=st.integers(1, 5), n=st.integers(1, 6), seed=st.integers(0, 1000))
def test_round_trip_through_a_file_is_exact(tmp_path_factory, problems, n, seed):
    samples, outcomes, tokens, strategies = build(np.random.default_rng(seed), problems, n)
    path = tmp_path_factory.mktemp("records") / "records.parquet"
    samples.save(path)
    loaded = Samples.load(path)
    assert loaded.meta == samples.meta and loaded.groups == samples.groups
    assert loaded.table.num_rows == problems * n
    assert loaded.table.to_pylist() == samples.table.to_pylist()
    for each in (samples, loaded):
        np.testing.assert_array_equal(each.matrix("outcome"), outcomes)
        np.testing.assert_array_equal(each.counts[:, 0], np.full(problems, n))
        np.testing.assert_array_equal(each.counts[:, 1], (outcomes == Outcome.RIGHT).sum(1))
        assert each.counts.dtype == np.int64
        for p in range(problems):
            for j in range(n):
                np.testing.assert_array_equal(each.tokens(p, j), tokens[p][j])
        index, names = each.labels("strategy")
        assert index.dtype == np.int32 and index.shape == (problems, n)
        decoded = [["" if i < 0 else names[i] for i in row] for row in index]
        assert decoded == strategies
        assert each.matrix("problem_id")[0, 0] == 2**32 - 1  # ids keep all 32 bits


def test_responses_are_equal_where_their_tokens_are():
    recorder, rng = Recorder(), np.random.default_rng(0)
    few = [np.array(t, np.int32) for t in ([], [0], [0, 0], [1, 2], [2, 1], [1, 2, 0], [3], [200_000, 199_999])]
    tokens = [[few[i] for i in rng.integers(len(few), size=40)] for _ in range(3)]
    for own in tokens:
        recorder.add(own)
    label = recorder.samples({"problems": 3, "n": 40, "groups": []}).responses
    assert label.shape == (3, 40) and label.dtype == np.int64 and label.min() >= 0
    flat = [tuple(t) for own in tokens for t in own]
    assert len(dict(zip(flat, label.ravel(), strict=True))) == len(set(label.ravel())) == len(few)
    assert all(dict(zip(flat, label.ravel(), strict=True))[t] == x for t, x in zip(flat, label.ravel(), strict=True))


def test_only_right_answers_count(tmp_path):
    samples, outcomes, *_ = build(np.random.default_rng(0), 4, 50)
    for outcome in (Outcome.WRONG, Outcome.UNPARSED, Outcome.ERROR):
        assert (outcomes == outcome).any()
    np.testing.assert_array_equal(samples.counts[:, 1], (outcomes == 1).sum(axis=1))


def test_counts_are_not_stored(tmp_path):
    """Change one outcome in the file: the counts follow."""
    samples, outcomes, *_ = build(np.random.default_rng(0), 3, 8)
    path = tmp_path / "records.parquet"
    samples.save(path)
    assert not {"counts", "correct", "right"} & set(json.dumps(samples.meta).replace('"', " ").split())
    table = pq.read_table(path)
    column = table["outcome"].to_numpy().copy()
    before = samples.counts
    column[0] = Outcome.WRONG if column[0] == Outcome.RIGHT else Outcome.RIGHT
    changed = table.set_column(table.schema.get_field_index("outcome"), "outcome", [column])
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)
    after = Samples.load(path).counts
    assert abs(after[0, 1] - before[0, 1]) == 1
    np.testing.assert_array_equal(after[1:], before[1:])


def test_a_file_cut_short_is_refused_and_never_read_as_fewer_samples(tmp_path):
    samples, *_ = build(np.random.default_rng(0), 3, 8)
    path = tmp_path / "records.parquet"
    samples.save(path)
    content = path.read_bytes()
    for size in (0, 4, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(Exception):  # noqa: B017 - pyarrow's own classes
            Samples.load(path)


@pytest.mark.parametrize("labels", [("",), ("S",), ("", "S"), ("ä", "", "\u2028", "S S")])
def test_text_columns_keep_empty_and_odd_labels_apart(tmp_path, labels):
    samples, _, _, strategies = build(np.random.default_rng(1), 2, 12, labels)
    path = tmp_path / "records.parquet"
    samples.save(path)
    index, names = Samples.load(path).labels("strategy")
    assert [["" if i < 0 else names[i] for i in row] for row in index] == strategies


def test_lists_of_texts_come_back_as_labels_in_order(tmp_path):
    recorder = Recorder()
    lists = [[["a", "b"], [], ["b", "b", "c"]], [["c"], ["a"], []]]
    for own in lists:
        recorder.add([np.arange(2)] * 3, calls=own, turns=[[2]] * 3, sample=np.arange(3))
    recorder.samples({"problems": 2, "n": 3, "groups": ["A", "A"]}).save(tmp_path / "records.parquet")
    samples = Samples.load(tmp_path / "records.parquet")
    label_PnC, flat = samples.label_lists("calls"), sum(sum(lists, []), [])
    names = list(dict.fromkeys(flat))
    found = [[[names[x] for x in labels if x >= 0] for labels in row] for row in label_PnC]
    assert found == lists and label_PnC.shape == (2, 3, 3)


def test_as_a_data_frame_rows_are_samples_and_columns_are_decoded():
    samples, outcomes, tokens, strategies = build(np.random.default_rng(1), 5, 7)
    frame = samples.to_pandas()
    assert len(frame) == 35 and list(frame.columns) == samples.table.column_names
    correct = (frame["outcome"] == "right").groupby(frame["problem"]).sum()
    np.testing.assert_array_equal(correct.to_numpy(), samples.counts[:, 1])
    assert list(frame["outcome"].cat.categories) == ["wrong", "right", "unparsed", "error"]
    assert frame["outcome"].astype("str").tolist() == [Outcome(o).name.lower() for o in outcomes.ravel()]
    assert frame["group"].tolist() == [g for g in samples.groups for _ in range(7)]
    given = [s for row in strategies for s in row]
    assert frame["strategy"].isna().tolist() == [s == "" for s in given] and "" in given
    assert frame["strategy"].dropna().tolist() == [s for s in given if s]
    process = samples.matrix("process").ravel()
    assert frame["process"].isna().tolist() == (process == -1).tolist()
    assert frame["process"].dropna().tolist() == (process[process >= 0] == 1).tolist()
    for row, own in zip(frame["tokens"], (t for problem in tokens for t in problem), strict=True):
        np.testing.assert_array_equal(row, own)
    assert samples.table.column("outcome").to_pylist() == outcomes.ravel().tolist()  # the records stay as they are
