"""Pages in the system's Chromium: the report of an invented run with everything in it, the same one half way, both
compared, and what a sweep of two real runs, as small as they get, leaves behind."""

import copy
import importlib.util
import itertools
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
WIDTHS, SCHEMES = ("1280", "400"), ("light", "dark")
PAGES = ("report", "half", "run", "sweep", "compare", "paired")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def pytest_collection_modifyitems(items):
    """Skipped, with the reason, where there is nothing to look with."""
    needs = {"Chromium (apt-get install chromium)": CHROMIUM,
             "playwright (requirements-browser.txt)": importlib.util.find_spec("playwright")}  # fmt: skip
    missing = ", ".join(what for what, there in needs.items() if not there)
    for item in items:
        if missing and item.path.is_relative_to(pathlib.Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason=f"missing: {missing}"))


def _load(path: str):
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    """pages(name) -> the file of a page, made when it is first asked for."""
    home, made = tmp_path_factory.mktemp("pages"), {}

    def page(name: str) -> pathlib.Path:
        if name not in made:
            made.update(_real(home) if name in ("run", "sweep", "paired") else _invented(home))
        return made[name]

    return page


def _invented(home: pathlib.Path) -> dict[str, pathlib.Path]:
    from ceiling import comparison, report

    whole = _load("tests/report/conftest.py").synthetic()
    half = copy.deepcopy(whole)
    half["meta"].update(complete=False, stages={"done": 12, "total": 40})
    for name in report.TABLES:
        half[name] = [row for row in half[name] if row.get("arm") not in ("grpo", "rlp") and row.get("group") != "X"]
    half["training"], half["null"] = [], {}
    found = {"report": report.write(whole, home / "whole"), "half": report.write(half, home / "half")}
    return found | {"compare": comparison.compare([home / "whole", home / "half"]).write(home / "compare.html")}


def _real(home: pathlib.Path) -> dict[str, pathlib.Path]:
    """Pages of a sweep of two points: its own, a run's, and the two runs compared by the command."""
    import ceiling

    workdir = home / "sweep"
    config = ceiling.defaults("lab", arms={"sft": ceiling.arm("sft", prompts_per_step=2, samples_per_prompt=2, pool=8)})
    config.seeds, config.train.mix = (1, 2, 3), {"C": 0.5, "R": 0.5}
    config.aggregates = {"training mix": "C R"}
    config.task.update(evaluation_per_group=1, training_per_group=8, gate_problems=2, gate_accuracy=0.0)
    config.model.update(width=16, ffn=16, layers=1, heads=2, kv_heads=1, head_dim=8, tied=False, embed_std=1.0,
                        scan_layers=False)  # fmt: skip
    config.prior.update(steps=2, prompts_per_step=4, pool=1, mix={"C": 1.0})
    config.budget.flops = 6e6
    config.eval.update(n=4, ks=(1, 2, 4), verdict_k=2, likelihood_samples=1)
    points = [("low", {"arms.sft.lr": 1e-3}), ("high", {"arms.sft.lr": 1e-1})]
    swept = ceiling.sweep(config, points, workdir)
    assert not swept.failed
    words = [str(workdir / "low"), str(workdir / "high"), "--out", str(workdir / "compare.html")]
    subprocess.run([sys.executable, "-m", "ceiling.compare", *words], cwd=ROOT, check=True)
    return {"sweep": swept.report, "run": workdir / "low" / "report.html", "paired": workdir / "compare.html"}


class Opened:
    """A page in the browser, what the browser loaded, and what it complained of. Every <details> is open."""

    def __init__(self, context, file: pathlib.Path):
        self.file, self.complaints, self.requests = file, [], []
        self.page = context.new_page()
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.page.evaluate("() => document.querySelectorAll('details').forEach(d => { d.open = true })")


@pytest.fixture(scope="session")
def show(browser):
    """show(file, width, scheme) -> Opened."""
    contexts = []

    def opened(file, width=1280, scheme="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        contexts[-1].set_default_timeout(120_000)
        return Opened(contexts[-1], file)

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="module", params=itertools.product(PAGES, WIDTHS, SCHEMES), ids="-".join)
def opened(request, show, pages):
    """Every page, at every width, in every scheme."""
    name, width, scheme = request.param
    return show(pages(name), int(width), scheme)
