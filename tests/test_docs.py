"""The pages: their links, their lists, their commands and their figure. That the site builds without a warning is for
`make docs`; here is what holds on a code host too, and what a page says of the code."""

import functools
import importlib
import pathlib
import re
import runpy

import pytest

import ceiling
from ceiling import experiment, schema

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
READ = [*PAGES, ROOT / "README.md"]
NAMES = [str(path.relative_to(ROOT)) for path in READ]
ENTRY = re.compile(r"^\.\. auto(\w+):: (ceiling[\w.]*)$", re.M)


def links(page):
    """(path, anchor) of every relative link; code is no text."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://")):
            path, _, anchor = target.partition("#")
            yield (page.parent / path if path else page), anchor


def anchors(page):
    """What a code host calls the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def blocks(page, language):
    """Contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)


@pytest.mark.parametrize("page", READ, ids=NAMES)
def test_relative_links_lead_somewhere(page):
    for path, anchor in links(page):
        assert path.exists(), f"{page.name}: {path} is not there"
        assert path.resolve().is_relative_to(ROOT), f"{page.name}: {path} is outside"
        assert not anchor or anchor in anchors(path), f"{page.name}: {path.name} has no heading #{anchor}"


def test_every_page_is_in_a_list_of_pages():
    listed = {DOCS / f"{name}.md" for page in ("index.md", "api.md")
              for name in re.findall(r"^- \[[^]]+\]\(([\w/]+)\.md\)", (DOCS / page).read_text(), re.M)}  # fmt: skip
    below = {path for path in PAGES if path.parent.name == "claims"}  # claims.md has them in its table
    assert listed | {DOCS / "index.md"} == set(PAGES) - below
    assert {path for path, _ in links(DOCS / "claims.md")} == below


def test_every_notebook_has_its_page():
    assert {path.stem for path in (ROOT / "colabs").glob("*.ipynb")} == {
        path.stem for path in (DOCS / "notebooks").glob("*.md")}  # fmt: skip


# --- the reference -------------------------------------------------------------------------------------------------


def entries():
    return [(page.name, kind, name) for page in sorted((DOCS / "api").glob("*.md"))
            for kind, name in ENTRY.findall(page.read_text())]  # fmt: skip


def found(kind, name):
    """What a dotted name means to autodoc: a module, or an attribute of the nearest module above it."""
    if kind == "module":
        return importlib.import_module(name)
    parts = name.split(".")
    if parts[1] in ceiling.__all__:  # some are called as a command's module is, which may have been imported
        return ceiling.__getattr__(parts[1])
    for cut in range(len(parts) - 1, 0, -1):
        try:
            out = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[cut:], out)


def test_the_reference_describes_what_is_there_and_has_a_docstring():
    every = entries()
    assert len(every) > 150 and len({name for *_, name in every}) == len(every)
    for page, kind, name in every:
        what = found(kind, name)
        assert (what.__doc__ or "").strip(), f"{page}: {name} has no docstring"
        assert (kind == "module") == (type(what).__name__ == "module"), name


def test_the_reference_has_all_that_the_package_exports():
    described = {name for *_, name in entries()}
    for name in set(ceiling.__all__) - {"__version__"}:
        assert f"ceiling.{name}" in described
    for room in ("model", "rollout", "evals", "regimes.grpo"):
        module = importlib.import_module(f"ceiling.{room}")
        for name in module.__all__:
            what = getattr(module, name)
            if callable(what):
                homes = {f"ceiling.{room}.{name}", f"{what.__module__}.{what.__name__}", f"ceiling.{name}"}
                assert homes & described, f"ceiling.{room}.{name} is in no page of docs/api"


# --- what pages say of the code ------------------------------------------------------------------------------------


def test_the_figure_is_what_its_script_draws():
    drawn = runpy.run_path(str(DOCS / "figures" / "curves.py"))["draw"]()
    assert drawn == (DOCS / "figures" / "curves.svg").read_text(), "python docs/figures/curves.py writes it anew"


def commands():
    """(page, words) of every `python -m ceiling...` that pages show, lines that go on joined."""
    for page in PAGES:
        for block in re.findall(r"^```(?:bash|sh)\n(.*?)^```", page.read_text(), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = line.split("#")[0].split()
                if "-m" in words and words[words.index("-m") + 1].startswith("ceiling"):
                    yield page.name, words[words.index("-m") + 1 :]


@pytest.mark.parametrize("variant", sorted({
    word for _, words in commands() for word in words if re.match(r"configs/\w+\.py", word)}))  # fmt: skip
def test_the_commands_of_the_pages_set_keys_that_exist(variant):
    path, _, argument = variant.partition(":")
    module = runpy.run_path(str(ROOT / path))
    config = module["get_config"](argument) if argument else module["get_config"]()
    for page, words in commands():
        if variant in words:
            importlib.util.find_spec(words[0])
            for key in (word.partition("=")[0].split(".")[1:] for word in words if word.startswith("--config.")):
                section = config
                for part in key:
                    assert part in section, f"{page}: {variant} has no key {'.'.join(key)}"
                    section = section[part]


def lab(**values):
    """The resolved tiny variant of the lab, with values of the arm grpo."""
    config = runpy.run_path(str(ROOT / "configs" / "lab.py"))["get_config"]("tiny")
    config.arms.grpo.update(values)
    return schema.validate(config)


def test_the_quickstart_shows_the_stages_that_its_commands_run():
    """What a command prints as done is what the plan has, and after a change what the change decides."""
    done = [re.findall(r"done +(\S+)", block) for block in blocks("quickstart.md", "text")]
    keys = lambda config: {stage.name: stage.key for stage in experiment.plan(config)}  # noqa: E731
    before, after = keys(lab()), keys(lab(advantage="group_mean"))
    assert "--config.arms.grpo.advantage=group_mean" in (DOCS / "quickstart.md").read_text()
    assert sorted(before) in map(sorted, done)
    assert sorted(name for name in after if after[name] != before[name]) in map(sorted, done)


def test_the_quickstart_shows_the_refusal_that_is_said():
    assert "--config.arms.grpo.lr=-1\n" in (DOCS / "quickstart.md").read_text()
    with pytest.raises(ceiling.ConfigError) as refusal:
        lab(lr=-1.0)
    assert f"ceiling: {refusal.value}\n" in blocks("quickstart.md", "text")


def test_the_site_escapes_docstrings_and_makes_tables_of_contents():
    sphinx = pytest.importorskip("sphinx", reason="the site's packages are in requirements-docs.txt")
    assert sphinx
    conf = runpy.run_path(str(DOCS / "conf.py"))
    lines = ["Sums `a*b` of x_ and |y@z|:", "    sum = a * b", "", "Then `c`."]
    conf["escaped"](None, "function", "f", None, None, lines)
    assert lines == [r"Sums ``a*b`` of x\_ and \|y\@z\|:", "", "::", "", "        sum = a * b", "", "", "Then ``c``."]
    made = conf["contents"]("# T\n\n## A\n\n- [one](one.md): 1\n- [two](api/two.md)\n\n## B\n\nno list\n")
    assert made == ["", "```{toctree}", ":hidden:", ":caption: A", "", "one", "api/two", "```"]
    script = "# ---\n# %% [markdown]\n# # T\n#\n# See [x](../docs/x.md).\n\n# %%\nx = 1\n\n# %% tags=['start']\ny = 2\n"
    assert conf["notebook"](script) == "\nSee [x](../x.md).\n\n```python\nx = 1\n```"
