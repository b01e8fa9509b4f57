"""What a release says of itself: one version, every import declared, every file shipped. `make test-packages` builds
and installs it."""

import ast
import pathlib
import re
import sys
import tomllib
from importlib import metadata

import ceiling

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {"gpu", "tpu", "tasks", "verify", "slurm", "wandb", "trackio", "notebook", "docs", "dev"}


def distribution(requirement):
    """The normalised name of what a requirement asks for."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def declared():
    """Distributions that the core or an extra for users asks for by name."""
    extras = PROJECT["project"]["optional-dependencies"]
    used = [r for name, rows in extras.items() if name not in ("dev", "docs", "notebook") for r in rows]
    return {distribution(r) for r in [*PROJECT["project"]["dependencies"], *used]}


def imported():
    """Top-level modules that the package imports, at any depth, and one file that does."""
    out = {}
    for path in sorted((ROOT / "ceiling").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            out |= {name.partition(".")[0]: path.name for name in names}
    return {name: path for name, path in out.items() if name not in sys.stdlib_module_names and name != "ceiling"}


def test_the_version_stands_in_one_place_and_the_papers_agree():
    assert PROJECT["project"]["dynamic"] == ["version"] and "version" not in PROJECT["project"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ceiling.version.__version__"}
    stands = [p for p in ROOT.joinpath("ceiling").rglob("*.py") if re.search(r"^__version__ =", p.read_text(), re.M)]
    assert [p.name for p in stands] == ["version.py"]
    assert re.search(rf"^version: {re.escape(ceiling.__version__)}$", (ROOT / "CITATION.cff").read_text(), re.M)
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == ceiling.__version__ and len(set(headings)) == len(headings)


def test_the_licence_is_one_and_the_same_everywhere():
    assert PROJECT["project"]["license"] == "Apache-2.0" and PROJECT["project"]["license-files"] == ["LICENSE"]
    assert "Apache License" in (ROOT / "LICENSE").read_text() and "Version 2.0" in (ROOT / "LICENSE").read_text()
    assert "license: Apache-2.0" in (ROOT / "CITATION.cff").read_text()


def test_the_extras_are_those_that_the_documentation_names():
    assert set(PROJECT["project"]["optional-dependencies"]) == EXTRAS


def test_every_import_is_declared():
    """Directly: what another package happens to bring along may be gone with its next version. A namespace that several
    distributions fill (orbax) needs one of them."""
    brings, modules = metadata.packages_distributions(), imported()
    assert {"numpy", "jax", "tensorboardX"} <= modules.keys()
    for module, file in modules.items():
        names = {distribution(name) for name in brings.get(module, [module])}
        assert names & declared(), f"{file} imports {module}"


def test_requirements_pin_everything_that_the_core_asks_for():
    pins = {distribution(line) for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line}
    core = {distribution(r) for r in PROJECT["project"]["dependencies"]}
    assert core <= pins
    assert len(pins) + 1 <= 65, "the core install, ceiling itself counted"


def test_files_beside_the_code_are_package_data():
    folders = PROJECT["tool"]["setuptools"]["package-data"]
    globs = [f"{package.replace('.', '/')}/{glob}" for package, own in folders.items() for glob in own]
    shipped = {path for glob in globs for path in ROOT.glob(glob)}
    beside = {p for p in (ROOT / "ceiling").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert beside == shipped


def test_every_folder_of_the_repository_is_in_the_sdist():
    """Folders by their names in MANIFEST.in; files of the top one too, those aside that only git reads."""
    manifest = (ROOT / "MANIFEST.in").read_text()
    grafted = set(re.findall(r"^graft (\S+)", manifest, re.M))
    wanted = {"benchmarks", "configs", "docs", "scripts", "tests", ".ci"}
    assert wanted <= grafted
    named = {word for line in re.findall(r"^include (.*)", manifest, re.M) for word in line.split()}
    for path in ROOT.glob("*"):
        if path.is_file() and path.suffix in (".md", ".txt", ".cff") or path.name == "Makefile":
            # setuptools adds README and LICENSE by itself
            assert path.name == "README.md" or any(path.match(pattern) for pattern in named), path.name
