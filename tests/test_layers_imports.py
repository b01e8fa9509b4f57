"""The way of the data: an import may only point left. Read from the source, so a lazy import counts too."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "ceiling"
ORDER = ["config", "data", "tasks", "model", "rollout", "regimes", "train", "evals", "report"]
FOR_ALL = {"ledger", "version", "logs", "devices", "hosts"}  # readable by every room; they read nothing but each other
# What ties the rooms together and may read them all.
OUTSIDE = {"", "__main__", "schema", "experiment", "stages", "results", "workers", "plan", "export", "cli", "evaluate",
           "claims", "compare", "comparison", "doctor", "pages", "programs", "sweep", "sweeps", "tracking"}  # fmt: skip
FILES = sorted(ROOT.rglob("*.py"))


def module_of(path):
    """ceiling/data/order.py -> "data.order"; a package is its folder; ceiling itself is ""."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(p) for p in FILES}


def imports_of(path):
    """Every module of ceiling that a file imports, at any depth, as a name without the "ceiling." prefix."""
    package = ["ceiling", *path.relative_to(ROOT).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{a.name}" for a in node.names]
        for name in names:
            if name != "ceiling" and not name.startswith("ceiling."):
                continue
            parts = name.split(".")[1:]
            while parts and ".".join(parts) not in MODULES:
                parts.pop()  # `from module import noun`
            found.add(".".join(parts))
    return found


def room(module):
    return module.split(".")[0]


def back_edges(module, imported):
    """Imports of `module` that point right."""
    mine = room(module)
    if mine in OUTSIDE:
        return set()
    bad = set()
    for target in imported:
        theirs = room(target)
        if theirs == mine or theirs in FOR_ALL:
            continue
        if mine in FOR_ALL or theirs in OUTSIDE or ORDER.index(theirs) > ORDER.index(mine):
            bad.add(target)
    return bad


def test_every_module_belongs_to_a_room():
    assert {room(m) for m in MODULES} <= {*ORDER, *FOR_ALL, *OUTSIDE}
    assert {"model", "rollout", "train", "evals"} <= {room(m) for m in MODULES}


def test_the_walk_sees_what_it_must():
    assert back_edges("model.x", {"rollout.engine"}) == {"rollout.engine"}
    assert back_edges("regimes.x", {"train.step", "model.config", "ledger"}) == {"train.step"}
    assert back_edges("ledger", {"model.config", "version"}) == {"model.config"}
    assert back_edges("evals.x", {"experiment", ""}) == {"experiment", ""}
    assert "model.config" in imports_of(ROOT / "rollout" / "slots.py")
    assert "rollout.cache" in imports_of(ROOT / "rollout" / "slots.py"), "from package import module"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_left(path):
    module = module_of(path)
    assert not back_edges(module, imports_of(path))


def prose_of(tree):
    """Docstrings: prose may name what code may not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield first.value


def test_nothing_outside_the_lab_names_the_lab():
    """Tasks are found by name: neither an import, a name nor a string of code elsewhere may mean the lab."""
    # What judges claims and shows them knows no task; the claims themselves are configurations of the lab.
    machinery = {ROOT / "claims" / name for name in ("base.py", "run.py", "pages.py", "figure.py")}
    for path in FILES:
        if path.is_relative_to(ROOT / "tasks" / "lab"):
            continue
        if path.is_relative_to(ROOT / "claims") and path not in machinery:
            continue
        assert not {m for m in imports_of(path) if m.startswith("tasks.lab")}, path
        tree = ast.parse(path.read_text())
        prose = {id(c) for c in prose_of(tree)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                assert node.id != "lab", f"{path}:{node.lineno}"
            elif isinstance(node, ast.Attribute):
                assert node.attr != "lab", f"{path}:{node.lineno}"
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                text = node.value
                assert text != "lab" and "tasks.lab" not in text and "tasks/lab" not in text, f"{path}:{node.lineno}"


FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {("yaml", "load"), ("yaml", "unsafe_load"), ("builtins", "eval"), ("builtins", "exec")}


def unsafe(tree):
    """Line numbers of what could run or unpack code from data (C3)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            if any(n.split(".")[0] in FORBIDDEN_MODULES for n in names):
                yield node.lineno
        elif isinstance(node, ast.Name) and node.id in ("eval", "exec", "compile", "__import__"):
            yield node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in FORBIDDEN_CALLS:
                yield node.lineno
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield node.value.lineno


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_C3_no_code_from_data(path):
    assert list(unsafe(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize("line", ["eval('1')", "f = exec", "import pickle", "from pickle import loads", "yaml.load(x)",
                                  "np.load(p, allow_pickle=True)", "np.load(p, allow_pickle=flag)"])  # fmt: skip
def test_C3_the_search_finds(line):
    assert list(unsafe(ast.parse(line)))
