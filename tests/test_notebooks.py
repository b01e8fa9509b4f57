"""The notebooks: pairs in step and without outputs, first cells that leave the runtime's jax alone, shipped results
that are a run's. That every cell runs is `make test-notebooks`."""

import ast
import json
import pathlib
import re
import runpy
import subprocess
import sys
import types

import numpy as np
import pytest

import ceiling
from ceiling import schema
from ceiling.evals.evalset import Cell, EvalSet

ROOT = pathlib.Path(__file__).parents[1]
HOME = ROOT / "colabs"
script = types.SimpleNamespace(**runpy.run_path(str(ROOT / "scripts/notebooks.py")))


def cells(name: str) -> list[dict]:
    return json.loads((HOME / f"{name}.ipynb").read_text())["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def as_percent(cell: dict) -> str:
    """A notebook's cell as the .py has it, marker aside: written here without jupytext."""
    if cell["cell_type"] == "code":
        return source(cell)
    return "\n".join(f"# {line}".rstrip() for line in source(cell).split("\n"))


# --- pairs ------------------------------------------------------------------------------------------------


def test_the_four_notebooks_are_all_there_is():
    assert {path.stem for path in HOME.glob("*.ipynb")} == set(script.NAMES)
    assert {path.stem for path in HOME.glob("*.py")} == {*script.NAMES, script.START}


@pytest.mark.parametrize("name", script.NAMES)
def test_py_and_ipynb_say_the_same(name):
    header, *blocks = script.blocks((HOME / f"{name}.py").read_text())
    markers, texts = zip(*(block.split("\n", 1) for block in blocks), strict=True)
    assert [as_percent(cell) for cell in cells(name)] == [text.strip("\n") for text in texts]
    kinds = ["markdown" if "[markdown]" in marker else "code" for marker in markers]
    assert [cell["cell_type"] for cell in cells(name)] == kinds
    assert "formats: ipynb,py:percent" in header


@pytest.mark.parametrize("name", script.NAMES)
def test_no_output_is_stored_and_ids_are_in_order(name):
    for i, cell in enumerate(cells(name)):
        assert cell["id"] == f"{name.replace('_', '-')}-{i:02d}"
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.parametrize("name", script.NAMES)
def test_every_code_cell_compiles_and_every_text_is_short(name):
    for cell in cells(name):
        if cell["cell_type"] == "code":
            ast.parse(source(cell), filename=cell["id"])
        else:
            words = re.sub(r"\$\$.*?\$\$", "", source(cell), flags=re.S).split()
            assert len(words) <= 150, cell["id"]


@pytest.mark.parametrize("name", script.NAMES)
def test_the_first_cells_are_the_shared_ones(name):
    shared = [block.split("\n", 1)[1].strip("\n") for block in script.blocks((HOME / "start.py").read_text())[1:]]
    tagged = [cell for cell in cells(name) if script.START in cell["metadata"].get("tags", ())]
    assert [as_percent(cell) for cell in tagged] == shared
    code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    assert code[:2] == [cell for cell in tagged if cell["cell_type"] == "code"], "nothing runs before them"


def test_shared_cells_are_replaced_and_one_without_a_place_is_an_error():
    start = '# about\n\n# %% tags=["start"]\nnew = 1\n'
    assert script.with_start('head\n\n# %% tags=["start"]\nold\n\n# %%\nown\n', start) == (
        'head\n\n# %% tags=["start"]\nnew = 1\n\n# %%\nown\n'
    )
    with pytest.raises(ValueError, match="1 shared cells of colabs/start.py have no place"):
        script.with_start("head\n\n# %%\nown\n", start)


@pytest.mark.parametrize("name", script.NAMES)
def test_the_same_source_gives_the_same_bytes(name):
    pytest.importorskip("jupytext", reason="requirements-notebook.txt is not installed")
    made = script.notebook(name, (HOME / f"{name}.py").read_text())
    assert made == (HOME / f"{name}.ipynb").read_text()


@pytest.mark.parametrize("name", script.NAMES)
def test_nobody_is_asked_to_log_in_and_no_cell_changes_jax(name):
    code = "\n".join(source(cell) for cell in cells(name) if cell["cell_type"] == "code")
    for word in ("login", "setup_tpu", "drive.mount", "--upgrade", "install jax", "userdata"):
        assert word not in code
    assert 'SOURCE = ""' in code, "no address of a repository is known"


# --- the first cell ---------------------------------------------------------------------------------------


@pytest.fixture
def first(tmp_path, monkeypatch):
    """The functions of the first code cell, in an empty folder; `calls`: commands that it would have started."""
    monkeypatch.chdir(tmp_path)
    cell = next(source(cell) for cell in cells("passk") if cell["cell_type"] == "code")
    scope = {}
    exec(cell.partition("\nHOME = project()")[0], scope)  # noqa: S102 - the cell as a kernel runs it
    first = types.SimpleNamespace(scope=scope, calls=[], have={"jax": "0.10.2", "jaxlib": "0.10.2+cuda", "flax": "0.1"})
    monkeypatch.setattr(subprocess, "run", lambda command, check: first.calls.append([str(word) for word in command]))
    listed = lambda: [types.SimpleNamespace(name=n, version=v) for n, v in first.have.items()]  # noqa: E731
    monkeypatch.setattr(scope["metadata"], "distributions", listed)
    return first


def hide(monkeypatch, scope):
    monkeypatch.setattr(scope["importlib"].util, "find_spec", lambda name: None)


def test_an_installed_package_or_a_checkout_above_is_used(first, monkeypatch):
    assert first.scope["project"]() == ROOT
    hide(monkeypatch, first.scope)
    monkeypatch.chdir(HOME / "results")
    assert first.scope["project"]() == ROOT
    assert first.calls == []


@pytest.mark.parametrize("given", ["", "ceiling==0.1.0", "nowhere", "git+https://host/owner/ceiling"])
def test_without_a_place_to_come_from_nothing_is_installed(first, given, monkeypatch):
    """The registry's package of this name is another project's: a name alone is never given to pip."""
    hide(monkeypatch, first.scope)
    first.scope["SOURCE"] = given
    with pytest.raises(SystemExit, match=re.escape(f"SOURCE={given!r} is neither a checkout nor git+ADDRESS@TAG")):
        first.scope["project"]()
    assert first.calls == []


def test_a_tagged_address_is_cloned_at_its_tag(first, monkeypatch):
    hide(monkeypatch, first.scope)
    first.scope["SOURCE"] = "git+ssh://git@host/owner/ceiling@v0.1.0"
    assert first.scope["project"]() == pathlib.Path("ceiling-source").absolute()
    (clone,) = first.calls
    assert clone[:2] == ["git", "clone"] and "--branch=v0.1.0" in clone and "ssh://git@host/owner/ceiling" in clone


def test_the_runtimes_jax_is_kept(first):
    first.have["libtpu"] = "0.0.42"
    first.scope["install"](ROOT)
    kept = pathlib.Path("constraints.txt").read_text().splitlines()
    assert kept == ["jax==0.10.2", "jaxlib==0.10.2+cuda", "libtpu==0.0.42"]
    assert first.calls == [[sys.executable, "-m", "pip", "install", "--quiet", "-c", "constraints.txt", str(ROOT)]]


def test_a_jax_that_is_too_old_is_one_line_and_no_install(first):
    first.have["jax"] = "0.9.30"
    with pytest.raises(SystemExit, match=r"^jax 0\.9\.30 of this runtime is too old, 0\.10\.2 or newer is needed"):
        first.scope["install"](ROOT)
    assert first.calls == [] and not pathlib.Path("constraints.txt").exists()


def test_a_restart_is_asked_for_only_where_something_imported_changed(first, monkeypatch, capsys):
    first.scope["install"](ROOT)
    assert capsys.readouterr().out == ""
    first.have |= {"numpy": "1.0", "never-imported": "1.0"}

    def upgraded(command, check):
        first.have |= {"numpy": "2.0", "never-imported": "2.0"}

    monkeypatch.setattr(subprocess, "run", upgraded)
    first.scope["install"](ROOT)
    out = capsys.readouterr().out
    assert "Restart the session once" in out and "numpy" in out and "never-imported" not in out


# --- runs and what is shipped -----------------------------------------------------------------------------


def test_warnings_count_where_they_are_ours():
    def stderr(text):
        out = types.SimpleNamespace(text=text, get={"name": "stderr"}.get)
        return types.SimpleNamespace(cells=[{"outputs": [out]}, {}])

    ours = [f"{ROOT}/ceiling/evals/stats.py:9: RuntimeWarning: divide", "/tmp/ipykernel_12/34.py:5: UserWarning: x"]
    theirs = ["/usr/lib/python3/site-packages/zmq/a.py:1: DeprecationWarning: old", "W0000 xla: warning"]
    assert script.own_warnings(stderr("\n".join(ours + theirs))) == ours


def evalset(content: dict) -> EvalSet:
    """The shipped counts as the notebooks read them."""
    cells = {
        (arm, int(seed)): Cell(np.array(count_P))
        for arm, by_seed in content["counts"].items() for seed, count_P in by_seed.items()
    }  # fmt: skip
    return EvalSet(content["n"], content["groups"], cells)


@pytest.fixture(scope="module")
def lab() -> dict:
    return json.loads((HOME / "results/lab.json").read_text())


def test_shipped_results_are_those_of_the_default_configuration(lab):
    config = schema.validate(runpy.run_path(str(ROOT / "configs/lab.py"))["get_config"]())
    assert lab["provenance"].startswith("python -m ceiling --config configs/lab.py: ceiling ")
    assert f"{config['budget']['flops']:g} FLOP an arm" in lab["provenance"]
    assert [arm["name"] for arm in lab["arms"]] == ["base", "base_redraw", *config["arms"]]
    assert set(lab["counts"]) == {arm["name"] for arm in lab["arms"]}
    assert lab["seeds"] == config["seeds"]
    assert {key: lab[key] for key in ("n", "ks", "verdict_k", "margin")} == {
        key: config["eval"][key] for key in ("n", "ks", "verdict_k", "margin")
    }
    task = schema.load_task(config)
    assert lab["groups"] == [problem.group for problem in task.evaluation()]
    assert [row["group"] for row in lab["about_groups"]] == [group.name for group in task.groups]
    assert (HOME / "results/lab.json").stat().st_size < 200_000


def test_shipped_counts_are_complete_and_learned_something(lab):
    found = evalset(lab)
    common = np.array(lab["groups"]) == "C"
    for arm in found.arms:
        assert found.seeds(arm) == lab["seeds"]
    base, grpo = (found.count_SP(arm, lab["seeds"])[:, common].mean() / lab["n"] for arm in ("base", "grpo"))
    assert 0.2 < base < grpo
    assert not np.array_equal(found.count_SP("base", lab["seeds"]), found.count_SP("base_redraw", lab["seeds"]))
    curves = {(row["arm"], row["seed"]) for row in lab["training"]}
    assert curves == {(arm, seed) for arm in ("rlp", "rlp_empty") for seed in lab["seeds"]}


def test_results_of_a_run_are_its_records_and_an_unfinished_run_is_refused(tmp_path):
    config = runpy.run_path(str(ROOT / "configs/lab.py"))["get_config"]("tiny")
    config.arms = {}
    config.report.pair, config.report.html = "", False
    config.model.update(width=16, ffn=16, layers=1, heads=2, kv_heads=1, head_dim=8)
    config.task.evaluation_per_group = 1
    result = ceiling.run(config, tmp_path)
    content = script.shipped(tmp_path)
    found = evalset(content)
    assert found.arms == ["base", "base_redraw"] and found.seeds("base") == content["seeds"] == [1]
    at_1 = {(row["arm"], row["group"]): row["mean"] for row in result.curves if row["k"] == 1}
    for arm in found.arms:
        for group, index in found.slices.items():
            assert found.count_SP(arm, [1])[:, index].mean() / found.n == pytest.approx(at_1[arm, group])
    results = json.loads((tmp_path / "results.json").read_text())
    results["meta"]["complete"] = False
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="the run is not finished"):
        script.shipped(tmp_path)


def test_shipped_curves_are_thinned():
    row = {"arm": "rlp", "seed": 1, "metric": "information_gain_nats", "value": 0.123456}
    kept = script.thinned([{**row, "flops": i} for i in range(95)] + [{**row, "flops": 1, "metric": "loss"}])
    assert [row["flops"] for row in kept] == list(range(0, 95, 3)) and kept[0]["value"] == 0.1235
