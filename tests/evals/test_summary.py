"""Rows: JSON-able, paired, recomputed from counts, tolerant of arms that are still filling up."""

import json
import time

import numpy as np
import pytest

from ceiling.evals import summary
from ceiling.evals.passk import pass_at_k, sampling_gap
from ceiling.evals.stats import crossed_interval
from ceiling.evals.summary import Cell, EvalSet
from ceiling.evals.verdicts import judge

N = 16
GROUPS = ["C"] * 6 + ["R"] * 5 + ["M"] * 4
AGGREGATES = {"all three": ["C", "R", "M"], "without M": ["C", "R"]}
KS = [1, 2, 4, 8]


def _cell(rng, rate, n=N, groups=GROUPS, labels=4):
    correct = rng.random((len(groups), n)) < rate
    return Cell(
        correct.sum(axis=1),
        strategy_Pn=rng.integers(-1, labels, correct.shape),
        answer_Pn=rng.integers(0, 10**6, correct.shape),
        correct_Pn=correct,
        process_Pn=rng.integers(-1, 2, correct.shape).astype(np.int8),
        length_Pn=rng.integers(1, 28, correct.shape),
        response_Pn=rng.integers(0, 10**6, correct.shape),
        distinct_2_P=rng.random(len(groups)),
    )


@pytest.fixture
def evalset():
    rng = np.random.default_rng(0)
    rates = {"base": 0.2, "null": 0.2, "grpo": 0.7, "sft": 0.5}
    cells = {(arm, seed): _cell(rng, rate) for seed in (1, 2, 3) for arm, rate in rates.items()}
    del cells["sft", 1], cells["sft", 2]  # a run that is still filling up
    return EvalSet(N, GROUPS, cells, ["S", "E", "D", "B"], AGGREGATES)


def _one(rows, **where):
    found = [row for row in rows if all(row[key] == value for key, value in where.items())]
    assert len(found) == 1, (where, len(found))
    return found[0]


def _all_rows(evalset):
    return {
        "curves": summary.curves(evalset, KS),
        "differences": summary.differences(evalset, "base", KS),
        "verdicts": summary.verdict_rows(evalset, "base", "null", 8, 0.02),
        "null": summary.null_rows(evalset, "base", "null"),
        "crossings": summary.crossing_rows(evalset, "base", KS, draws=100, seed=0),
        "sets": summary.set_rows(evalset, "base"),
        "cover": summary.cover_rows(evalset),
        "gap": summary.gap_rows(evalset, "base", 8),
        "diversity": summary.diversity_rows(evalset, "base", m=2),
        "strategies": summary.strategy_rows(evalset),
    }


def _assert_plain(tables):
    for name, rows in tables.items():
        assert json.loads(json.dumps(rows, allow_nan=False)) == rows, name
        assert {type(value) for row in rows for value in row.values()} <= {str, int, float, type(None)}, name
        assert len({tuple(row) for row in rows}) <= 1 or name == "verdicts", (
            f"{name}: rows differ in their columns"
        )


def test_all_rows_are_plain_and_cover_every_group_and_aggregate(evalset):
    tables = _all_rows(evalset)
    _assert_plain(tables)
    for name, rows in tables.items():
        assert {row["group"] for row in rows} == {"C", "R", "M", "all three", "without M"}, name
    arms = {name: {row["arm"] for row in rows} for name, rows in tables.items() if name != "null"}
    assert arms["curves"] == {"base", "null", "grpo", "sft"}
    assert arms["differences"] == arms["gap"] == {"null", "grpo", "sft"} and arms["verdicts"] == {"grpo", "sft"}


def test_curves_are_means_of_pass_at_k_with_the_crossed_interval(evalset):
    rows = summary.curves(evalset, KS)
    count_SP = evalset.count_SP("grpo", [1, 2, 3])
    for group, columns in (("R", slice(6, 11)), ("without M", slice(0, 11))):
        row = _one(rows, arm="grpo", group=group, k=4)
        expected = crossed_interval(pass_at_k(N, count_SP[:, columns], 4))
        assert row["mean"] == pytest.approx(expected.mean) and row["seeds"] == 3
        assert (row["lo"], row["hi"]) == pytest.approx((max(expected.lo, 0), min(expected.hi, 1)))


def test_differences_are_paired_to_the_base_of_the_same_seed():
    rng = np.random.default_rng(1)
    cells = {}
    for seed in range(3):
        base = rng.integers(0, 13, size=len(GROUPS))
        cells["base", seed], cells["arm", seed] = Cell(base), Cell(base + 3)
    rows = summary.differences(EvalSet(N, GROUPS, cells), "base", [1])
    row = _one(rows, arm="arm", group="C", k=1)
    assert (row["mean"], row["lo"], row["hi"]) == pytest.approx((3 / N,) * 3), "pairing leaves no spread here"
    swapped = cells | {("arm", 0): cells["arm", 1], ("arm", 1): cells["arm", 0]}
    row = _one(summary.differences(EvalSet(N, GROUPS, swapped), "base", [1]), arm="arm", group="C", k=1)
    assert row["hi"] - row["lo"] > 0.01


def test_arms_with_fewer_seeds_use_the_shared_ones_and_are_not_resolved(evalset):
    base, sft = evalset.count_SP("base", [3])[0], evalset.count_SP("sft", [3])[0]
    row = _one(summary.differences(evalset, "base", KS), arm="sft", group="all three", k=1)
    assert row["seeds"] == 1 and row["mean"] == pytest.approx(np.mean(sft - base) / N)
    verdict = _one(summary.verdict_rows(evalset, "base", "null", 8, 0.02), arm="sft", group="C")
    assert verdict["verdict"] == "not resolved" and verdict["seeds"] == 1
    assert [row["seed"] for row in summary.set_rows(evalset, "base") if row["arm"] == "sft"] == [3] * 5
    without_null = {key: cell for key, cell in evalset.cells.items() if key[0] != "null"}
    partial = EvalSet(N, GROUPS, without_null | {("late", 9): evalset.cells["sft", 3]}, (), AGGREGATES)
    tables = _all_rows(partial)
    _assert_plain(tables)
    assert tables["null"] == [] and {row["verdict"] for row in tables["verdicts"]} == {"not resolved"}
    assert "no training seed" in tables["verdicts"][0]["reason"]
    assert "late" not in {row["arm"] for row in tables["differences"]}
    assert "late" in {row["arm"] for row in tables["curves"]}
    late = _one(tables["diversity"], arm="late", group="C")
    assert late["mean_length"] is not None and late["mean_length_delta"] is None


def test_verdict_rows_reach_a_verdict_and_flatten_it():
    rng = np.random.default_rng(2)
    n, groups = 64, ["A"] * 30 + ["C"] * 30
    cells = {}
    for seed in range(3):
        floor = np.repeat([0.0, 0.5], 30)
        for arm, rate in (("base", floor), ("null", floor), ("arm", np.repeat([0.3, 0.9], 30))):
            cells[arm, seed] = Cell(rng.binomial(n, rate))
    rows = summary.verdict_rows(EvalSet(n, groups, cells), "base", "null", 32, 0.02)
    new, known = _one(rows, group="A"), _one(rows, group="C")
    assert new["verdict"] == "expanded" and new["new_problems"] == 90 and new["margin"] == 0.02
    assert known["verdict"] == "re-weighted" and known["delta_1_lo"] > 0.3
    assert new["delta_k_lo"] <= new["delta_k"] <= new["delta_k_hi"] and new["null_k"] == 0
    with pytest.raises(ValueError, match="n / 2"):
        summary.verdict_rows(EvalSet(n, groups, cells), "base", "null", 33, 0.02)


def test_verdict_rows_say_what_judge_says(evalset):
    index = evalset.slices["without M"]
    base, arm, null = (evalset.count_SP(name, [1, 2, 3])[:, index] for name in ("base", "grpo", "null"))
    found = judge(base, arm, null, N, k=8, margin=0.02)
    row = _one(summary.verdict_rows(evalset, "base", "null", 8, 0.02), arm="grpo", group="without M")
    assert (row["verdict"], row["reason"], row["tuned_only"]) == (
        found.verdict,
        found.reason,
        found.tuned_only,
    )
    assert (row["delta_k"], row["delta_1_lo"], row["null_k"]) == (
        found.delta_k.mean,
        found.delta_1.lo,
        found.null_k.mean,
    )


def test_set_and_cover_rows_by_hand():
    cells = {("base", 0): Cell(np.array([2, 1, 0, 0])), ("arm", 0): Cell(np.array([4, 0, 3, 0]))}
    small = EvalSet(4, ["C"] * 4, cells)
    row = _one(summary.set_rows(small, "base"))
    assert [row[key] for key in ("both", "base_only", "tuned_only", "neither")] == [1, 1, 1, 1]
    assert (row["srr"], row["ndr"], row["sds"], row["nscr"]) == (0.5, 0.5, 0.5, 0.0)
    cover = summary.cover_rows(small, [0.5, 0.75])
    assert [row["mean"] for row in cover] == [0.25, 0.0, 0.5, 0.5]


def _labelled(strategies, correct, process=None):
    """One problem per row."""
    strategy_Pn, correct_Pn = np.array(strategies), np.array(correct, bool)
    return Cell(
        correct_Pn.sum(axis=1), strategy_Pn, strategy_Pn, correct_Pn, process, np.full(strategy_Pn.shape, 5)
    )


def test_PK9_gap_rows_are_paired_and_recounted(evalset):
    base, arm = (evalset.count_SP(name, [1, 2, 3])[:, :6] for name in ("base", "grpo"))
    row = _one(summary.gap_rows(evalset, "base", 8), arm="grpo", group="C")
    expected = crossed_interval(pass_at_k(N, base, 8) - arm / N)
    assert (row["delta_se"], row["delta_se_lo"]) == pytest.approx((expected.mean, expected.lo)) and row["k"] == 8
    by_seed = [sampling_gap(N, *pair, 8) for pair in zip(base, [N] * 3, arm, strict=True)]
    assert row["delta_se"] == pytest.approx(np.mean(by_seed))


def test_answers_and_responses_are_counted_at_equal_n_tokens_and_correctness():
    """Two arms of one problem. The first writes twice as much for each of its answers; both are right four times."""
    correct_Pn, answers = np.array([[1, 1, 1, 1, 0, 0, 0, 0]], bool), np.array([[7, 7, 7, 7, 0, 1, 2, 3]])
    order = np.array([4, 0, 5, 1, 6, 2, 7, 3])
    make = lambda length, response, distinct: Cell(  # noqa: E731
        correct_Pn.sum(axis=1), None, answers[:, order], correct_Pn[:, order], None, np.full((1, 8), length),
        np.array([response])[:, order], np.array([distinct]),
    )  # fmt: skip
    long, short = make(20, [5, 5, 5, 5, 0, 1, 2, 3], np.nan), make(10, [5, 6, 5, 6, 0, 1, 2, 3], 0.25)
    cells = {(name, seed): cell for seed in range(3) for name, cell in (("base", long), ("arm", short))}
    rows = summary.diversity_rows(EvalSet(8, ["C"], cells), "base", m=2)
    base, arm = _one(rows, arm="base"), _one(rows, arm="arm")
    assert base["unique_answers"] == arm["unique_answers"] == 5
    # 80 tokens are all that "arm" has, and four samples of "base": wrong, right, wrong, right.
    assert (base["unique_answers_equal_tokens"], arm["unique_answers_equal_tokens"]) == (3, 5)
    assert arm["unique_answers_equal_tokens_delta"] == 2
    # Of two right responses out of four: always one in "base"; in "arm" two unless both are the same, 2 of 6 pairs.
    assert (base["distinct_responses"], arm["distinct_responses"]) == (1, pytest.approx(2 * 4 / 6 + 2 / 6))
    assert (base["distinct_2"], arm["distinct_2"]) == (None, 0.25)
    corrected = base["answer_entropy"] + (5 - 1) / (2 * 8)
    assert base["answer_entropy_corrected"] == pytest.approx(corrected)


def test_diversity_rows_by_hand():
    all_right = [[1] * 4] * 2
    base = _labelled([[0, 1, 2, 3], [0, 0, 1, 1]], all_right, np.array([[1, 1, 0, -1]] * 2))
    arm = _labelled([[0, 0, 0, 0], [1, 1, 1, 1]], all_right)
    cells = {(name, seed): cell for seed in range(3) for name, cell in (("base", base), ("arm", arm))}
    rows = summary.diversity_rows(EvalSet(4, ["C", "C"], cells), "base", m=2)
    row, own = _one(rows, arm="arm"), _one(rows, arm="base")
    assert row["strategy_entropy"] == 0 and row["distinct_strategies"] == 1 and row["m"] == 2
    assert own["strategy_entropy"] == pytest.approx((np.log(4) + np.log(2)) / 2)
    assert own["distinct_correct"] == pytest.approx((2 + (1 + 2 / 3)) / 2)
    assert row["distinct_correct_delta"] == pytest.approx(1 - own["distinct_correct"])
    assert own["process_valid_share"] == pytest.approx(2 / 3)
    assert row["process_valid_share"] is None and row["process_valid_share_problems"] == 0
    assert row["process_valid_share_delta"] is None
    assert (own["mean_length"], own["strategy_entropy_delta"], own["shared_seeds"]) == (5.0, None, 0)
    assert row["strategy_entropy_delta_lo"] < row["strategy_entropy_delta"] < 0


def test_diversity_deltas_use_only_problems_defined_on_both_sides():
    """The arm solves a second, more varied problem; its own mean rises for that alone, the delta does not."""
    base = _labelled([[0, 0, 1, 1], [0, 1, 2, 3]], [[1, 1, 1, 1], [0, 0, 0, 0]])
    arm = _labelled([[0, 0, 1, 1], [0, 1, 2, 3]], [[1, 1, 1, 1], [1, 1, 1, 1]])
    cells = {(name, seed): cell for seed in range(3) for name, cell in (("base", base), ("arm", arm))}
    rows = summary.diversity_rows(EvalSet(4, ["C", "C"], cells), "base", m=2)
    row, own = _one(rows, arm="arm"), _one(rows, arm="base")
    assert row["distinct_correct"] > own["distinct_correct"]
    assert (row["distinct_correct_problems"], own["distinct_correct_problems"]) == (2, 1)
    assert row["distinct_correct_delta"] == 0 and row["distinct_correct_delta_problems"] == 1


def test_strategy_rows_split_all_and_correct_samples():
    cells = {("base", 0): _labelled([[0, 0, 0, 1]], [[0, 0, 1, 1]])}
    rows = summary.strategy_rows(EvalSet(4, ["C"], cells, ["S", "E"]))
    assert [(row["strategy"], row["share"], row["share_of_correct"]) for row in rows] == [
        ("S", 0.75, 0.5),
        ("E", 0.25, 0.5),
    ]


def test_crossing_rows_find_a_planted_crossing():
    """The arm doubles half of the problems and loses the other half: up at small k, down at large k."""
    n, problems = 256, 60
    base = np.full(problems, 16)
    arm = np.where(np.arange(problems) % 2 == 0, 128, 0)
    cells = {(name, seed): Cell(count) for seed in range(3) for name, count in (("base", base), ("arm", arm))}
    ks = [1, 2, 4, 8, 16, 32, 64, 128]
    row = _one(summary.crossing_rows(EvalSet(n, ["C"] * problems, cells), "base", ks, draws=500, seed=1))
    # 1 - (15/16)^k = (1 - 2^-k) / 2 at about k = 10.7.
    assert row["share"] == 1 and row["k_lo"] < 10.7 < row["k_hi"] and row["k"] == pytest.approx(10.7, rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": []}, "no problems"),
        ({"cells": {}}, "no cells"),
        ({"cells": {("base", 0): Cell(np.array([1, 2]))}}, "shape"),
        ({"cells": {("base", 0): Cell(np.full(15, 17))}}, "same n"),
        ({"cells": {("base", 0): Cell(np.zeros(15, int), strategy_Pn=np.zeros((15, 3)))}}, "strategy_Pn"),
        ({"cells": {("base", 0): Cell(np.zeros(15, int), correct_Pn=np.ones((15, N), bool))}}, "add up"),
        ({"cells": {("base", 0): Cell(np.zeros(15, int), distinct_2_P=np.zeros((15, N)))}}, r"shape \(15,\)"),
        ({"aggregates": {"mix": ["C", "Z"]}}, r"\['Z'\]"),
        ({"aggregates": {"C": ["C"]}}, "its own name"),
    ],
)
def test_evalset_refuses(change, message):
    arguments = {"n": N, "groups": GROUPS, "cells": {("base", 0): Cell(np.zeros(15, int))}}
    with pytest.raises(ValueError, match=message):
        EvalSet(**(arguments | change))


def test_unknown_base_is_refused(evalset):
    with pytest.raises(ValueError, match="'prior' has no cells"):
        summary.differences(evalset, "prior", KS)


def test_a_full_experiment_is_summarised_in_seconds():
    rng = np.random.default_rng(3)
    groups = ["C", "R", "V", "U", "A", "X"] * 50
    cells = {
        (arm, seed): _cell(rng, 0.3, 512, groups) for seed in range(3) for arm in ["base", "null", *"abcdefg"]
    }
    full = EvalSet(512, groups, cells, ["S", "E", "D", "B"], {"mix": ["C", "R", "V"]})
    start = time.perf_counter()
    summary.diversity_rows(full, "base")
    summary.curves(full, [2**i for i in range(10)])
    summary.verdict_rows(full, "base", "null", 256, 0.02)
    summary.crossing_rows(full, "base", [2**i for i in range(10)], seed=0)
    assert time.perf_counter() - start < 20
