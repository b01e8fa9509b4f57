"""Pages in a real browser: nothing missing, nothing complained of, legible in both schemes at both widths, and
reachable by keyboard."""

import pathlib
import re

import pytest

HERE = pathlib.Path(__file__).parent
LOOK = (HERE / "look.js").read_text().partition("\n")[2]
CLAIMS = sorted((HERE.parents[1] / "docs" / "claims").glob("*.svg"))
pytestmark = pytest.mark.browser

# Sections of a page that hold figures; others may.
FIGURES = {
    "report": "verdicts curves difference new diversity budget training gain",
    "half": "verdicts curves difference new diversity budget",
    "run": "verdicts curves difference new budget training",
    "sweep": "figure", "compare": "curves budget", "paired": "curves paired budget",
}  # fmt: skip


def look(opened, what: str):
    return opened.page.evaluate(f"() => ({LOOK.strip()}).{what}()")


def test_nothing_is_complained_of_and_nothing_else_loaded(opened):
    assert opened.complaints == [] and opened.requests == [opened.file.as_uri()]


def test_every_figure_is_drawn(opened, request):
    name = request.node.callspec.params["opened"][0]
    figures = look(opened, "figures")
    assert set(FIGURES[name].split()) == {figure["section"] for figure in figures}
    assert len(figures) == opened.file.read_text("utf-8").count('<svg class="figure"')
    for figure in figures:
        assert figure["width"] > 200 and figure["height"] > 60, figure
        assert figure["texts"] > 1 and figure["marks"] > 1, figure


def test_no_part_is_wider_than_the_window(opened):
    width, window = opened.page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
    assert width <= window
    for box in look(opened, "scrollers"):
        assert box["reachable"], box


def test_tables_are_regions_with_a_name(opened):
    regions = look(opened, "regions")
    assert len(regions) >= 1
    for tab, kind, label in regions:
        assert (tab, kind) == (0, "region") and label


def test_text_and_lines_stand_out(opened):
    texts, lines = look(opened, "texts"), look(opened, "lines")
    assert len(texts) > 40 and len(lines) > 3
    faint = {(t["words"][:40], round(t["contrast"], 2)) for t in texts if t["contrast"] < (3 if t["large"] else 4.5)}
    assert not faint
    assert min(lines) >= 3


def test_text_is_large_enough_and_clear_of_other_text(opened):
    small = {(t["words"][:40], round(t["size"], 1)) for t in look(opened, "texts") if t["size"] < 10.95}
    assert not small
    assert look(opened, "clashes") == []


def test_a_section_is_not_hidden_by_the_bar(opened):
    links = opened.page.locator("nav a")
    for i in range(links.count()):
        links.nth(i).press("Enter")
        heading = opened.page.locator(f"{links.nth(i).get_attribute('href')} h2").bounding_box()
        bar = opened.page.locator(".bar").bounding_box()
        assert heading["y"] >= bar["y"] + bar["height"] - 1


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", ["report", "sweep", "paired"])
def test_tab_reaches_everything_and_shows_where_it_is(name, width, show, pages):
    page = show(pages(name), width).page
    wanted = page.evaluate("""() => [...document.querySelectorAll('a[href], input, summary, .scroll')].map((e, i) => {
        e.dataset.stop = i; return e.className || e.tagName })""")
    assert {"skip", "A", "INPUT", "scroll"} <= set(wanted)
    reached = {}
    for _ in range(len(wanted) + 5):
        page.keyboard.press("Tab")
        stop = page.evaluate("""() => {
            const e = document.activeElement, box = e.getBoundingClientRect(), bar = document.querySelector('.bar');
            const inside = box.right > 0 && box.bottom > 0 && box.left < innerWidth && box.top < innerHeight;
            const over = bar.getBoundingClientRect();
            const clear = bar.contains(e) || box.bottom > over.bottom || box.top < over.top;
            return [e.dataset.stop, getComputedStyle(e).outlineStyle, inside && clear] }""")
        if stop[0] is None:
            break
        reached[int(stop[0])] = stop[1:]
    assert sorted(reached) == list(range(len(wanted)))
    assert all(outline != "none" and seen for outline, seen in reached.values())


def test_a_wide_table_is_scrolled_by_keys(show, pages):
    page = show(pages("report"), 400).page
    table = page.locator(".scroll:has(.matrix)")
    table.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.wait_for_timeout(500)
    assert table.evaluate("box => box.scrollLeft") > 0
    row = page.locator(".matrix tbody th").first.bounding_box()
    assert 0 <= row["x"] < 40, "the arm's name stays in sight"


@pytest.mark.parametrize("name, box, kind", [
    ("report", "show-3", "arm-3"), ("sweep", "show-0", "arm-0"), ("compare", "show-3", "arm-3"),
    ("compare", "only-1", "run-1"),
])  # fmt: skip
def test_what_is_unchecked_leaves_the_figures(name, box, kind, show, pages):
    page = show(pages(name)).page
    count = "(k) => [...document.querySelectorAll(`.series${k}`)].filter(g => g.getClientRects().length).length"
    mine, others = f".{kind}", f":not(.{kind})"
    before = page.evaluate(count, mine), page.evaluate(count, others)
    assert min(before) > 0
    page.locator(f"#{box}").focus()
    page.keyboard.press("Space")
    assert (page.evaluate(count, mine), page.evaluate(count, others)) == (0, before[1])
    page.keyboard.press("Space")
    assert (page.evaluate(count, mine), page.evaluate(count, others)) == before


def test_links_of_a_comparison_lead_to_the_runs(show, pages):
    page = show(pages("paired")).page
    page.locator("main a", has_text="report").first.click()
    assert page.url == pages("run").as_uri() and re.search("past what", page.locator("h1").inner_text())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("file", CLAIMS, ids=lambda file: file.stem)
def test_figures_of_claims_are_read_in_both_schemes(file, scheme, show):
    """They bring their own paper."""
    opened = show(file, 1280, scheme)
    assert opened.complaints == []
    paper = opened.page.evaluate("() => getComputedStyle(document.querySelector('#patch_1 path')).fill")
    assert paper == "rgb(255, 255, 255)"
    texts = look(opened, "texts")
    assert len(texts) > 10 and min(text["contrast"] for text in texts) >= 4.5
