"""The page renders whole, half and empty; loads nothing; says nothing it was not told."""

import copy
import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from ceiling.report import TABLES, write
from ceiling.report.svg import canvas, render
from ceiling.report.units import clean, estimate, flops, number, seconds, signed


class Balanced(HTMLParser):
    """Fails on a tag closed out of order; remembers ids, addresses and text."""

    VOID = {"meta", "input", "br", "link", "img", "hr"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.loads, self.text, self.tags, self.refs = [], [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for key, value in attrs:
            self.ids += [value] if key == "id" else []
            self.loads += [value] if key in ("src", "href", "xlink:href", "action", "data") else []
            self.refs += re.findall(r"url\(#([^)]+)\)", value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-4:])
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style",):
            self.text.append(data)


def parse(path):
    parser = Balanced()
    parser.feed(path.read_text("utf-8"))
    parser.close()
    assert not parser.open
    return parser


@pytest.fixture(scope="module")
def report(results, tmp_path_factory):
    return write(results, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def parsed(report):
    return parse(report)


def test_structure_closes_and_ids_are_unique(parsed):
    assert parsed.tags.count("section") == 10
    assert len(parsed.ids) == len(set(parsed.ids))


def test_references_inside_the_page_lead_somewhere(parsed):
    inner = {load[1:] for load in parsed.loads if load.startswith("#")} | set(parsed.refs)
    assert inner <= set(parsed.ids), sorted(inner - set(parsed.ids))[:5]


def test_nothing_is_loaded_from_outside(report, parsed):
    allowed = re.compile(r"#|csv/[a-z]+\.csv$|results\.json$|data:image/png")
    assert all(allowed.match(load) for load in parsed.loads)
    page = report.read_text("utf-8")
    assert "<script" not in page and "@import" not in page
    assert "url(http" not in page and 'src="http' not in page
    for load in parsed.loads:
        if load.endswith((".csv", ".json")):
            assert (report.parent / load).is_file()


def test_every_figure_is_there_with_title_and_description(results, report):
    page = report.read_text("utf-8")
    names = ["landing-all-without-traps", "pair-0", "budget", "rlp-rlp", "training-reward", "training-loss"]
    for group in {row["group"].replace("_", "-") for row in results["curves"]}:
        names += [f"curves-{group.lower()}", f"differences-{group.lower()}", f"sets-{group.lower()}"]
    for metric in ("strategy-entropy", "distinct-correct"):
        names += [f"diversity-{metric}-all", f"diversity-{metric}-all-without-traps"]
    names.append("likelihood-all")
    names.append("pair-curves-0")
    for name in names:
        assert f'<title id="{name}-title">' in page, name
        assert re.search(rf'<desc id="{name}-desc">[^<]{{10,}}</desc>', page), name


def test_colours_follow_the_page(results, report):
    page = report.read_text("utf-8")
    figures = re.findall(r'<svg class="figure".*?</svg>', page, flags=re.S)
    assert len(figures) > 30 and all("currentColor" in figure for figure in figures)
    assert not re.search(r"#a1[0-9a-f]{4}|#0102[0-9a-f]{2}", page)  # no sentinel is left
    bare = re.sub(r"var\([^)]*\)", "", " ".join(figures))
    assert not re.findall(r"(?:fill|stroke): ?#[0-9a-f]{6}", bare)
    assert "prefers-color-scheme" in page
    arms = {row["arm"] for row in results["curves"]}
    for index in range(len(arms) - 2):  # the legend can hide and bring out every arm
        assert f'class="series arm-{index}"' in page and f'id="show-{index}"' in page


def test_no_missing_number_is_spelled_out(parsed):
    words = set(re.findall(r"\w+", " ".join(parsed.text)))
    assert not words & {"nan", "NaN", "inf", "None", "undefined"}


def test_a_trap_is_labelled_where_it_appears(report):
    page = report.read_text("utf-8")
    for title in re.findall(r"<title id=[^>]*>([^<]*minority convention[^<]*)<", page):
        assert "designed trap" in title
    assert 'class="badge">designed trap<' in page


def test_numbers_in_a_figure_are_not_cut():
    """Coordinates lose decimals to save weight; labels must not."""
    figure, axes = canvas(200, 150)
    axes.set_yticks([0.125], ["0.125 #010203"])
    svg = render(figure, "t", title="t", description="1.23456")
    assert ">0.125 #010203<" in svg and "1.23456" in svg and not re.search(r'd="[^"]*\.\d{3}', svg)


def test_size_and_bytes(results, report, tmp_path):
    assert report.stat().st_size < 3e6
    again = write(copy.deepcopy(results), tmp_path)
    assert again.read_bytes() == report.read_bytes()
    assert not list(tmp_path.rglob("*.tmp"))


def test_csv_and_json_hold_the_rows(results, report):
    stored = json.loads((report.parent / "results.json").read_text())
    assert stored == clean(results)
    for name in TABLES:
        rows = list(csv.DictReader((report.parent / "csv" / f"{name}.csv").read_text("utf-8").splitlines()))
        wanted = [{k: "" if v is None else str(v) for k, v in row.items()} for row in clean(results[name])]
        assert rows == wanted, name


def test_the_table_of_diversity_shows_what_the_rows_carry_and_no_more(report, results, tmp_path):
    def columns(page):
        table = re.search(r"<table[^>]*>\s*<caption[^>]*>Diversity with intervals.*?</table>", page, flags=re.S).group()
        return re.findall(r"<th[^>]*scope=\"col\"[^>]*>(.*?)</th>", table), table

    new = {"answer entropy corrected", "unique answers", "unique answers equal tokens", "distinct responses",
           "distinct 2"}  # fmt: skip
    shown, table = columns(report.read_text("utf-8"))
    assert new <= set(shown) and "5.250" in table and "0.438" in table
    old = [{k: v for k, v in row.items() if k.replace("_", " ") not in new} for row in results["diversity"][:2]]
    page = write({"meta": results["meta"], "diversity": old}, tmp_path)
    assert not new & set(columns(page.read_text("utf-8"))[0])


@pytest.mark.parametrize(
    "given", [{}, {"meta": {}}, {"meta": {"stages": {"done": 0, "total": 40}, "arms": []}}]
)
def test_nothing_yet(given, tmp_path):
    parsed = parse(write(given, tmp_path))
    assert "Not finished yet" in " ".join(parsed.text)


def test_half_a_run(results, tmp_path):
    half = copy.deepcopy(results)
    half["meta"].update(complete=False, stages={"done": 12, "total": 40})
    for name in TABLES:
        half[name] = [
            row for row in half[name] if row.get("arm") not in ("grpo", "rlp") and row.get("group") != "X"
        ]
    half["rlp"], half["training"], half["null"] = [], [], {}
    for row in half["curves"][::7]:
        row.update(lo=None, hi=float("nan"))
    half["curves"][5]["mean"] = float("nan")
    for row in half["verdicts"][::3]:
        row.update(delta_k=None, delta_k_lo=None, reason=None, base_upper=None)
    for row in half["diversity"]:
        row.update(strategy_entropy=None, distinct_correct=np.float32("nan"))
    text = " ".join(parse(write(half, tmp_path)).text)
    assert "12 of 40 stages" in text and "GRPO" in text and "nan" not in text.lower().split()


def test_a_plain_question_answer_run(tmp_path):
    """One group, no strategies, no teacher, no null arm: nothing of the lab is needed."""
    curves = [
        dict(arm=a, group="all", k=k, mean=m * k**0.3, lo=None, hi=None, seeds=1)
        for a, m in (("base", 0.2), ("grpo", 0.3))
        for k in (1, 2, 4)
    ]
    differences = [dict(arm="grpo", group="all", k=k, mean=0.1, lo=0.05, hi=0.15) for k in (1, 2, 4)]
    meta = dict(
        name="qa",
        complete=True,
        base="base",
        null=None,
        aggregates={"all": ["all"]},
        task=dict(name="qa", groups=[dict(name="all", title="all", trap=False)]),
        verdict_k=4,
    )
    page = write(dict(meta=meta, curves=curves, differences=differences), tmp_path)
    text = " ".join(parse(page).text)
    assert 'class="badge"' not in page.read_text("utf-8") and "Not part of this experiment" in text
    assert page.read_text("utf-8").count('<title id="curves-all-title">') == 1


def test_names_are_escaped(tmp_path):
    evil = "<script>alert(1)</script> & $x$ \"q\" 'p'"
    rows = dict(
        meta=dict(
            name=evil,
            notes=[evil],
            config={evil: evil},
            device=evil,
            complete=True,
            base="base",
            task=dict(name=evil, groups=[dict(name=evil, title=evil, prior=evil, description=evil)]),
            arms=[dict(name=evil, title=evil, reads=[evil], regime=evil, description=evil)],
        ),
        curves=[dict(arm=evil, group=evil, k=k, mean=0.5, lo=0.4, hi=0.6) for k in (1, 2)],
        verdicts=[dict(arm=evil, group=evil, verdict=evil, reason=evil, delta_1=0.1, delta_k=0.1, k=2)],
        ledger=[dict(arm=evil, seed=1, phase=evil, model=evil, flops=1e9, student=True)],
        counters=[dict(arm=evil, seed=1, name=evil, value=1)],
        gates=[dict(seed=1, name=evil, value=1.0, threshold=0.5, passed=True)],
        rlp=[dict(seed=1, arm=evil, metric=evil, value=1.0)],
        null={evil: {evil: evil}},
    )
    page = write(rows, tmp_path)
    assert "script" not in parse(page).tags
    assert "<script" not in page.read_text("utf-8")


def test_groups_whose_names_differ_in_no_latin_letter_are_two_figures(tmp_path):
    """Ids are made of names; a clip path of the same id would cut one figure by the other's frame."""
    row, names = dict(arm="base", mean=0.5, lo=0.4, hi=0.6), ("α", "β", "a+b", "a-b")
    curves = [row | dict(group=group, k=k) for group in names for k in (1, 2)]
    parsed = parse(write(dict(meta=dict(complete=True, base="base"), curves=curves), tmp_path))
    assert len(parsed.ids) == len(set(parsed.ids)) and parsed.tags.count("clippath") >= 4


def test_numbers_carry_units():
    assert [flops(v) for v in (5.2e11, 1.1e12, 3e6, None)] == ["0.52 TFLOP", "1.1 TFLOP", "3 MFLOP", "–"]
    assert [signed(-0.1214), number(12288), number(0.00001), number(float("nan"))] == [
        "−0.121",
        "12,288",
        "1.0e-05".replace("-", "−"),
        "–",
    ]
    assert [seconds(51.2), seconds(231), seconds(9000)] == ["51.2 s", "3 min 51 s", "2.5 h"]
    assert (
        estimate(0.5, 0.4, None) == "0.500" and estimate(0.1, 0, 0.2, sign=True) == "+0.100 [0.000, +0.200]"
    )
