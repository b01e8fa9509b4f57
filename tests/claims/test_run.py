"""A claim from its configuration to its page, on arms that train nothing; run again, nothing is done twice."""

import contextlib
import dataclasses
import io
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from ceiling.claims import base, c8_counter, lab, pages
from ceiling.claims import run as runner
from ceiling.evals.evalset import Cell, EvalSet
from ceiling.evals.records import Samples
from ceiling.tasks.base import Problem

TINY = dataclasses.replace(lab.SCALES["tiny"], seeds=(1, 2))


@pytest.fixture(scope="module")
def claim():
    arms = {"null": lab.unchanged("base, draw 2", draw=2), "same": lab.unchanged("base, the base's noise")}
    change = lambda e: -abs(e["main"].gain("null", "base", 1, "C"))  # noqa: E731
    drift = base.Test("no drift", "A null draw changes nothing.", change, margin=-1)
    return base.Claim(
        id="C0", title="Null", finding="Nothing changes.", sources=("2504.13837",), groups="C R",
        refuted_by="A change.",
        experiments=lambda scale: {"main": lab.experiment(scale, arms)}, tests=(drift,), tried="Nothing else.",
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(claim, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("claims")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        content = runner.run(claim, TINY, workdir, "tiny")
    return workdir, content, printed.getvalue()


def test_the_verdict_is_kept_beside_the_records_it_rests_on(finished, claim):
    workdir, content, _ = finished
    stored = json.loads((workdir / "C0/claim.json").read_text())
    assert stored == json.loads(json.dumps(content)) and stored["verdict"] == base.UNRESOLVED
    assert stored["tests"][0]["reason"] == "2 training seeds, a verdict needs 4"
    assert {arm["arm"] for arm in stored["arms"]} == {"base", "base_redraw", "null", "same"}
    assert all(arm["student_flops"] == 0 for arm in stored["arms"]), "nothing was trained"
    assert (workdir / "C0/main/results.json").exists() and len(list(workdir.glob("stages/*/prior/*/stage.json"))) == 2


def test_draws_differ_and_the_same_noise_gives_the_same_samples(finished):
    workdir, _, _ = finished
    tokens = {
        name: Samples.load(next(workdir.glob(f"stages/seed1/{name}.evaluate/*/records.parquet"))).table["tokens"]
        for name in ("base", "base_redraw", "null", "same")
    }
    assert tokens["same"].equals(tokens["base"])
    different = [tokens[name].to_pylist() for name in ("base", "base_redraw", "null")]
    assert all(different[i] != different[j] for i, j in ((0, 1), (0, 2), (1, 2)))


def test_run_again_nothing_is_done_twice(finished, claim):
    workdir, content, first = finished
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        again = runner.run(claim, TINY, workdir, "tiny")
    assert "start " in first and "start " not in printed.getvalue()
    assert again["tests"] == content["tests"]


def test_pages_show_tests_arms_and_what_would_have_refuted(finished, tmp_path):
    _, content, _ = finished
    clear = json.loads(json.dumps(content))
    clear["tests"].append({**clear["tests"][0], "interval": None, "verdict": base.UNRESOLVED, "reason": "undefined"})
    pages.write([clear], tmp_path)
    table, page = (tmp_path / "claims.md").read_text(), (tmp_path / "claims/C0.md").read_text()
    assert "[C0](claims/C0.md)" in table and f"**{base.UNRESOLVED}**" in table
    for part in ("A change.", "A null draw changes nothing.", "base, draw 2", "Nothing else.", "abs/2504.13837"):
        assert part in page
    root = ElementTree.parse(tmp_path / "claims/C0.svg").getroot()
    shown = "".join(root.itertext())
    assert "no drift" in shown and "undefined" in shown
    once = (tmp_path / "claims/C0.svg").read_bytes()
    pages.write([clear], tmp_path)
    assert (tmp_path / "claims/C0.svg").read_bytes() == once
    pages.write([{**clear, "id": "C9", "verdict": base.SUPPORTED}], tmp_path)
    rows = [line for line in (tmp_path / "claims.md").read_text().splitlines() if line.startswith("| [")]
    assert rows[0] in table and rows[1].startswith("| [C9]") and len(rows) == 2, "C0's row stays, of another run"


def of_prior(rho: float, at_base: int, at_grpo: int) -> base.Evidence:
    """Two seeds, problems of C (depth 2), U and X (depth 4), all with the same counts per arm."""
    problems = tuple(Problem(i, group, "", "", meta=("abcd"[:depth], "0000"))
                     for i, (group, depth) in enumerate([("C", 2), ("U", 1), ("X", 4)]))  # fmt: skip
    cells = {(arm, s): Cell(np.full(3, count)) for arm, count in (("base", at_base), ("grpo", at_grpo)) for s in (1, 2)}
    config = {"task": {"rho": {"V": 0.1, "U": rho}, "depths": {"2": 3.0, "4": 1.0}}, "train": {"mix": {"C": 1, "U": 1}}}
    return base.Evidence({"meta": {"config": config}}, EvalSet(4, ["C", "U", "X"], cells), 2, problems)


def test_the_height_is_measured_against_what_the_corpus_held(finished, tmp_path):
    """pass@2 of 1 of 4 is 1 - C(3,2) / C(4,2) = 1/2. V is not trained on, so it has no point; depth 4 is a quarter."""
    both = {"main": of_prior(0.01, 1, 2), "dense": of_prior(0.05, 3, 4)}
    points = c8_counter.measured(both)
    found = {(p["experiment"], p["group"], p["series"]): (p["x"], p["y"]) for p in points}
    assert len(found) == len(points) == 2 * 4 * 3
    assert {group for _, group, _ in found} == {"C", "U", "depth 2", "depth 4"}
    assert found["main", "U", "base pass@k"] == (0.01, pytest.approx(1 / 2))
    assert found["main", "U", "GRPO pass@1"] == (0.01, pytest.approx(1 / 2))
    assert found["main", "C", "GRPO pass@k"] == (1.0, pytest.approx(5 / 6))
    assert found["dense", "U", "GRPO pass@1"] == (0.05, 1.0)
    assert found["dense", "depth 4", "base pass@k"] == (0.25, 1.0)
    effects = {test.name: test.effect for test in c8_counter.CLAIM.tests}
    np.testing.assert_allclose(effects["height follows coverage"](both), [[1 / 2]] * 2)
    np.testing.assert_allclose(effects["so does the base's reach"](both), [[1 / 2]] * 2)
    pages.write([{**finished[1], "measured": points}], tmp_path)
    page = (tmp_path / "claims/C0.md").read_text()
    assert "| share of the depth | 0.25 | dense | depth 4 | base pass@k | 1.000" in page
    shown = "".join(ElementTree.parse(tmp_path / "claims/C0.svg").getroot().itertext())
    assert "share of true associations in the prior" in shown and "GRPO pass@1" in shown


def test_evidence_is_recounted_from_the_records():
    right_Pn, strategy_Pn = np.array([[1, 0, 0, 0], [1] * 4], bool), np.array([[0, 1, 1, -1], [0, 0, 1, 1]])
    cell = Cell(count_P=right_Pn.sum(axis=1), correct_Pn=right_Pn, strategy_Pn=strategy_Pn)
    evidence = base.Evidence({}, EvalSet(4, ["C", "R"], {("a", 1): cell, ("a", 2): cell}, ("S", "L")), 2)
    np.testing.assert_allclose(evidence.passk("a", 2, "C R"), [[1 - 3 / 4 * 2 / 3, 1]] * 2)
    np.testing.assert_allclose(evidence.share("a", "S", "C R"), [3 / 8] * 2)
    np.testing.assert_allclose(evidence.share("a", "B", "C R"), [0, 0])
    strategies = evidence.metric("distinct_correct", "a", "C R", m=2)
    assert np.isnan(strategies[:, 0]).all()  # one correct sample is not two
    np.testing.assert_allclose(strategies[:, 1], 1 * 2 / 6 + 2 * 4 / 6)  # pairs of SSLL: two alike, four not
