"""Runs side by side: what differs, what is paired and by which samples, what is refused, what the page says."""

import copy
import itertools
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

import ceiling
from ceiling import comparison, report
from ceiling.config import ConfigError
from ceiling.evals import summary
from ceiling.evals.records import Samples
from ceiling.report.compare import combined
from ceiling.report.units import clean
from ceiling.results import Table
from ceiling.tasks.base import Outcome

N, KS, PROBLEMS = 8, [1, 2, 4], ["C", "C", "R"]


def put(results, directory):
    """A run directory without its page."""
    report.write(results, directory, html=False)
    return directory


def other(results):
    """The same experiment with other settings, one arm renamed, unfinished."""
    changed = json.loads(json.dumps(results).replace('"rlp"', '"rlp2"'))
    changed["meta"]["config"]["train"].update(lr=1e-3, warmup=5)
    del changed["meta"]["config"]["task"]["depth"]
    changed["meta"]["config"]["arms"] = {"rlp2": {"lr": 1.0, "steps": 2}}
    changed["meta"].update(device="one GPU", complete=False, stages=dict(done=12, total=40))
    changed["meta"]["packages"]["jax"] = "0.11.0"
    changed["verdicts"] = [row for row in changed["verdicts"] if row["arm"] != "sft"]
    return changed


@pytest.fixture(scope="module")
def two(results, tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    first, second = put(results, home / "a"), put(other(results), home / "b")
    (first / "report.html").write_text("the page of a")
    found = comparison.compare([first, second])
    return found, found.write(home / "out" / "compare.html").read_text("utf-8")


def test_the_function_is_public():
    assert ceiling.compare is comparison.compare and ceiling.compare is comparison.compare, "the second time too"


def test_settings_are_what_differs_and_nothing_else(two):
    found, _ = two
    rows = {(row["kind"], row["key"], row["run"]): row["value"] for row in found.settings}
    assert rows == {
        ("configuration", "train.lr", "a"): 7e-4, ("configuration", "train.lr", "b"): 1e-3,
        ("configuration", "train.warmup", "a"): None, ("configuration", "train.warmup", "b"): 5,
        ("configuration", "task.depth", "a"): [1, 2, 3], ("configuration", "task.depth", "b"): None,
        ("configuration", "arms", "a"): None, ("configuration", "arms", "b"): "(2 settings)",
        ("environment", "device", "a"): "2 CPU cores", ("environment", "device", "b"): "one GPU",
        ("environment", "jax", "a"): "0.10.2", ("environment", "jax", "b"): "0.11.0",
    }  # fmt: skip


def test_tables_are_the_runs_rows(two, results):
    found, _ = two
    null = results["meta"]["null"]
    for name in ("verdicts", "curves", "ledger"):
        table, own = getattr(found, name), [row for row in results[name] if row["arm"] != null]
        assert isinstance(table, Table) and [row for row in table if row["run"] == "a"] == [
            {"run": "a", **row} for row in clean(own)
        ]
        frame = table.to_pandas()
        assert len(frame) == len(table) and set(frame["run"]) == {"a", "b"}
    wide = found.settings.to_pandas().pivot(index="key", columns="run", values="value")
    assert wide.loc["train.lr", "b"] == 1e-3
    assert [(row["run"], row["complete"], row["stages_done"]) for row in found.runs] == [("a", True, 40),
                                                                                        ("b", False, 12)]  # fmt: skip


class Page(HTMLParser):
    """Text, link targets and ids of a page."""

    def __init__(self, page):
        super().__init__()
        self.text, self.links, self.ids, self.tags = [], [], [], set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for key, value in attrs if key == "href" and not value.startswith("#")]
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_says_all_of_it(two, results):
    found, page = two
    read = Page(page)
    text = " ".join(read.text)
    assert read.links == ["../a/report.html", "../a/results.json", "../b/results.json"]
    assert "Not finished: b." in text and "12 of 40 stages" in text and "no report" in text
    assert "(2 settings)" in text and "one GPU" in text and "Nothing is paired" in text
    assert found.notes and all(note in text for note in found.notes)
    assert len(read.ids) == len(set(read.ids)) and "script" not in read.tags
    for group in {row["group"] for row in results["curves"]}:
        assert f'<title id="curves-{group.lower().replace("_", "-")}-title">' in page
    assert not {"nan", "None"} & set(re.findall(r"\w+", text))
    sft = re.search(r"SFT, oracle solutions · b.*?</tr>", page, flags=re.S).group()
    assert "not finished yet" in sft, "b has no verdict on it yet"


def test_arms_keep_their_colour_and_can_be_hidden_by_arm_and_by_run(two):
    found, page = two
    view = combined(found.contents)
    looks = view.looks
    assert looks["grpo 1"].index == looks["grpo 2"].index and looks["grpo 1"].dash != looks["grpo 2"].dash
    assert looks["rlp 1"].index != looks["rlp2 2"].index and "rlp 2" not in looks and "base_redraw 1" not in looks
    index = looks["grpo 2"].index
    assert f'class="series arm-{index} run-0"' in page and f'class="series arm-{index} run-1"' in page
    for box, series in ((f"show-{index}", f"arm-{index}"), ("only-1", "run-1")):
        assert f'id="{box}"' in page and f"body:has(#{box}:not(:checked)) .series.{series}" in page


@pytest.mark.parametrize("given, names", [
    (["runs/a", "runs/b"], ["a", "b"]),
    (["x/lab", "y/lab", "quick"], ["x/lab", "y/lab", "quick"]),
    (["p/x/lab", "q/x/lab", "q/y/lab"], ["p/x/lab", "q/x/lab", "y/lab"]),
    (["deep/../a/", "b/./a"], [None, "b/a"]),
    (["/a", "/b/a"], ["/a", "b/a"]),
])  # fmt: skip
def test_names_are_the_shortest_that_tell_runs_apart(given, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [name or f"{tmp_path.name}/a" for name in names]
    assert comparison._names([comparison.pathlib.Path(path) for path in given]) == names


@pytest.fixture
def good(results, tmp_path):
    return put(results, tmp_path / "good")


def _without(results, *keys):
    out = copy.deepcopy(results)
    node = out
    for key in keys[:-1]:
        node = node[key]
    del node[keys[-1]]
    return json.dumps(out)


def _regrouped(results):
    out = copy.deepcopy(results)
    out["meta"]["task"] = {"name": "search", "groups": [{"name": "E"}, {"name": "H"}]}
    return json.dumps(out)


@pytest.mark.parametrize("content, line", [
    (None, "no results.json there; name the directory"),
    (lambda r: "{", "results.json cannot be read: "),
    (lambda r: "\udcff", "results.json cannot be read: "),
    (lambda r: "[1]", "no meta (its version: unknown)"),
    (lambda r: json.dumps({"n": 4, "meta": {"n": 4}, "curves": []}), "no meta.name"),
    (lambda r: json.dumps({"x": "flops", "rows": [], "points": []}), "is a sweep; name its points"),
    (lambda r: _without(r, "meta", "config"), "no meta.config (its version: 0.1.0)"),
    (lambda r: _without(r, "verdicts"), "no verdicts with arm, group, verdict"),
    (lambda r: _without(r, "curves", 3, "mean"), "no curves with arm, group, k, mean"),
    (lambda r: json.dumps(r | {"ledger": [dict(arm="a", seed=1, phase="p", flops="1")]}), "ledger has a row whose"),
    (lambda r: json.dumps(r | {"curves": [dict(arm="a", group="C", k=0, mean=1)]}), "curves has a row whose k"),
    (_regrouped, "has the groups E, H of task search, "),
])  # fmt: skip
def test_what_cannot_be_compared_is_one_line(content, line, results, good, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    if content:
        (bad / "results.json").write_bytes(content(results).encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError) as refused:
        comparison.compare([good, bad])
    message = str(refused.value)
    assert line in message and "bad" in message and "\n" not in message


def test_one_run_or_one_twice(good, tmp_path):
    (tmp_path / "link").symlink_to(good)
    for directories, line in (([good], "two run directories or more"), ([good, tmp_path / "link"], "same directory"),
                              ([good, f"{good}/../good"], "same directory")):  # fmt: skip
        with pytest.raises(ConfigError, match=line):
            comparison.compare(directories)


def test_no_page_of_a_run_is_overwritten(two, tmp_path):
    found, _ = two
    for path, line in ((found.contents[0].directory / "report.html", "is the report of one"),
                       (tmp_path / "results.json", ".html file")):  # fmt: skip
        with pytest.raises(ConfigError, match=line):
            found.write(path)
    assert (found.contents[0].directory / "report.html").read_text() == "the page of a"


def test_everything_from_a_file_is_escaped(results, tmp_path):
    evil = "<script>alert(1)</script>&$x$\"q\"'p'"
    spelt = json.dumps(evil)[1:-1]
    text = json.dumps(results)
    for name in ("quickstart", "2 CPU cores", "GRPO", "grpo", "rare", "re-weighted", "Seeds are fresh.", "sampling"):
        text = text.replace(f'"{name}"', f'"{spelt}{name}"')
    text = text.replace('"7e-4"', f'"{spelt}"').replace('"lr"', f'"{spelt}lr"')
    changed = json.loads(text)
    changed["meta"]["config"]["train"][f"{evil}lr"] = evil
    paths = [put(results | {"meta": changed["meta"]}, tmp_path / "a"), put(changed, tmp_path / "<b>&amp;")]
    page = comparison.compare(paths).write(tmp_path / "compare.html").read_text("utf-8")
    read = Page(page)
    assert "<script" not in page and "script" not in read.tags and "&amp;amp;" in page
    assert "%3Cb%3E%26amp%3B/results.json" in read.links
    assert f"{evil}GRPO" in " ".join(read.text)


# --- pairs ------------------------------------------------------------------------------------------------


def lay(directory, results, counts, *, n=N, prompts="p", key="key"):
    """Write a run whose curves come from counts {(arm, seed): correct of n, per problem}, and the samples."""
    cells = {}
    for (arm, seed), count_P in counts.items():
        cells[arm, seed] = summary.Cell(count_P=np.array(count_P))
        right = [Outcome.RIGHT if i < count else Outcome.WRONG for count in count_P for i in range(n)]
        table = pa.table({"outcome": np.array(right, np.int8), "answer": ["text"] * len(right)})
        meta = {"n": n, "problems": len(PROBLEMS), "groups": PROBLEMS, "prompts_sha256": prompts}
        Samples(table, meta).save(directory / f"stages/seed{seed}/{arm}.evaluate/{key}/records.parquet")
    small = {key: value for key, value in results.items() if key != "meta"} | {"verdicts": [], "ledger": []}
    small |= {"counters": [], "meta": copy.deepcopy(results["meta"])}
    small["meta"].update(n=n, ks=KS, seeds=sorted({seed for _, seed in counts}), aggregates={"both": ["C", "R"]})
    small["meta"]["task"]["groups"] = [{"name": "C", "title": "common"}, {"name": "R", "title": "rare"}]
    small["curves"] = summary.curves(summary.EvalSet(n, PROBLEMS, cells, aggregates={"both": ["C", "R"]}), KS)
    return put(small, directory)


FIRST = {("base", 1): [2, 4, 0], ("base", 2): [1, 5, 0], ("grpo", 1): [8, 6, 1], ("grpo", 2): [7, 8, 0]}
SECOND = {("base", 1): [2, 4, 0], ("base", 2): [1, 5, 0], ("grpo", 1): [8, 3, 0], ("grpo", 2): [6, 1, 0]}


def by_hand(c: int, n: int, k: int) -> float:
    """pass@k of one problem by going through every choice of k samples."""
    picks = list(itertools.combinations([i < c for i in range(n)], k))
    return sum(map(any, picks)) / len(picks)


def test_pairs_are_differences_over_shared_seeds_and_problems(results, tmp_path):
    """Beside a decoy: samples of other settings in the same place do not give the run's curves."""
    paths = [lay(tmp_path / "a", results, FIRST), lay(tmp_path / "b", results, SECOND)]
    decoy = {cell: [0, 0, 0] for cell in SECOND}
    lay(tmp_path / "decoy", results, decoy, key="aaa")
    for seed in (1, 2):
        made = tmp_path / f"decoy/stages/seed{seed}/grpo.evaluate/aaa"
        made.rename(tmp_path / f"b/stages/seed{seed}/grpo.evaluate/aaa")
    found = comparison.compare(paths)
    assert not found.notes and {row["run"] for row in found.paired} == {"b"}
    assert {row["against"] for row in found.paired} == {"a"} and {row["seeds"] for row in found.paired} == {2}
    rows = {(row["arm"], row["group"], row["k"]): row for row in found.paired}
    assert set(rows) == set(itertools.product(["base", "grpo"], ["C", "R", "both"], KS))
    index = {"C": [0, 1], "R": [2], "both": [0, 1, 2]}
    for (arm, group, k), row in rows.items():
        cells = [(arm, seed, p) for seed in (1, 2) for p in index[group]]
        each = [by_hand(SECOND[a, s][p], N, k) - by_hand(FIRST[a, s][p], N, k) for a, s, p in cells]
        assert row["mean"] == pytest.approx(sum(each) / len(each), abs=1e-12)
    same, moved = rows["base", "both", 2], rows["grpo", "C", 1]
    assert same["mean"] == same["lo"] == same["hi"] == 0 and moved["lo"] < moved["mean"] < moved["hi"]
    page = found.write(tmp_path / "compare.html").read_text("utf-8")
    assert '<title id="paired-both-title">' in page and "Nothing is paired" not in page
    assert math.isclose(moved["mean"], -0.34375) and "−0.344" in page


@pytest.mark.parametrize("change, why", [
    (dict(prompts="other"), "b: base, GRPO not paired, other evaluation problems"),
    (dict(n=16), "b: base, GRPO not paired, 16 and 8 samples per problem"),
    (dict(counts={(arm, seed + 2): c for (arm, seed), c in SECOND.items()}), "no training seed in common"),
    (dict(counts={("sft", 1): [1, 1, 1]}), "b: not paired, no arm with samples in common with a"),
])  # fmt: skip
def test_what_is_not_paired_is_said(change, why, results, tmp_path):
    counts = change.pop("counts", SECOND)
    paths = [lay(tmp_path / "a", results, FIRST), lay(tmp_path / "b", results, counts, **change)]
    found = comparison.compare(paths)
    assert not found.paired and len(found.notes) == 1 and why in found.notes[0]


@pytest.mark.parametrize("harm", ["gone", "not parquet", "of other settings"])
def test_samples_that_are_not_those_of_the_results_are_not_paired(harm, results, tmp_path):
    paths = [lay(tmp_path / "a", results, FIRST), lay(tmp_path / "b", results, SECOND)]
    file = tmp_path / "b/stages/seed2/grpo.evaluate/key/records.parquet"
    if harm == "of other settings":
        lay(tmp_path / "x", results, {("grpo", 2): [1, 1, 1]})
        (tmp_path / "x/stages/seed2/grpo.evaluate/key/records.parquet").rename(file)
    else:
        file.unlink()
        if harm == "not parquet":
            file.write_text("text")
    found = comparison.compare(paths)
    assert {row["arm"] for row in found.paired} == {"base"}
    assert found.notes == ("b: GRPO not paired, the samples that b's results come from are not in its directory",)


def test_the_command_refuses_in_one_line(tmp_path):
    words = [str(tmp_path), str(tmp_path / "b"), "--out", str(tmp_path / "c.html")]
    done = subprocess.run([sys.executable, "-m", "ceiling.compare", *words], text=True, capture_output=True)
    assert done.returncode == 2 and not done.stdout and not (tmp_path / "c.html").exists()
    assert done.stderr.startswith(f"ceiling: {tmp_path}: no results.json there") and done.stderr.count("\n") == 1
