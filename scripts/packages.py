"""Wheel and sdist, each in an empty environment, under every Python that the project names.

    python scripts/packages.py [--pythons 3.11,3.12,3.13] [--keep DIR]

Builds the sdist from the files that git knows, and the wheel from the sdist. Then, for every Python that is found (on
PATH as python3.X, or among pyenv's): a fresh environment, the package and nothing else. The lowest Python gets the
versions of requirements.txt, the others the newest that the resolver takes; the sdist itself is installed under one of
these. In a folder outside the checkout each must import, pass `python -m ceiling.doctor`, and run a small experiment
from Python to its report, with no warning from our own code. The core may bring at most 65 packages.

A Python that is not there is named. Exit code 1 if anything failed, or if no Python was there.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
PYTHONS = "3.11,3.12,3.13"
MOST_PACKAGES = 65  # of the core install, ceiling itself counted, pip and setuptools not
AT_ONCE = 2
NOT_SHIPPED = {".gitignore", ".gitattributes"}  # files of the repository that are no part of a release

# What an installed package must do, run in an empty folder.
CHECK = '''
import json, pathlib, sys, warnings
warnings.filterwarnings("error", module=r"ceiling(\\..*)?$")
import ceiling
from ceiling.evals.records import Samples

assert pathlib.Path(ceiling.__file__).is_relative_to(sys.prefix), ceiling.__file__
small = dict(prompts_per_step=2, samples_per_prompt=2, pool=8, lr=1e-2)
config = ceiling.defaults("lab", arms={"grpo": ceiling.arm("grpo", entropy_bonus=0.1, **small)})
config.seeds, config.train.mix, config.budget.flops = (1,), {"C": 0.5, "R": 0.5}, 6e6
config.task.update(evaluation_per_group=1, training_per_group=8, gate_problems=2, gate_accuracy=0.0)
config.model.update(width=16, ffn=16, layers=1, heads=2, kv_heads=1, head_dim=8, scan_layers=False)
config.prior.update(steps=2, prompts_per_step=4, pool=1, mix={"C": 1.0})
config.eval.update(n=4, ks=(1, 2, 4), verdict_k=2, likelihood_samples=1)
result = ceiling.run(config, "run")
assert set(result.verdicts.to_pandas()["arm"]) == {"grpo"}
assert len(result.curves) and len(result.ledger)
assert "<style>" in result.report.read_text() and len(result.report.read_text()) > 50_000
records = next(pathlib.Path("run").glob("stages/seed1/grpo.evaluate/*/records.parquet"))
samples = Samples.load(records)
assert len(samples.to_pandas()) == samples.problems * samples.n
assert list(pathlib.Path("run/tensorboard/seed1/grpo").glob("events.*"))
print(json.dumps({"version": ceiling.__version__}))
'''


@dataclasses.dataclass(frozen=True)
class Case:
    """One environment: what is installed under which Python, and whether with the pinned versions."""

    python: str
    command: str
    package: pathlib.Path
    pinned: bool

    @property
    def title(self) -> str:
        kind = "sdist" if self.package.name.endswith(".tar.gz") else "wheel"
        return f"Python {self.python}, {kind}, {'pinned' if self.pinned else 'newest'} versions"


class Failed(Exception):
    """A step of a case ended badly; the message is what it printed last."""


def call(*words, cwd: pathlib.Path, limit_s: float = 1200) -> str:
    """Standard output of a command; raises Failed. Nothing of the calling environment leads to the checkout."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "XLA_"))}
    done = subprocess.run([str(w) for w in words], cwd=cwd, env=env, text=True, capture_output=True, timeout=limit_s)
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        raise Failed(f"{' '.join(map(str, words))[:200]}: code {done.returncode}\n{said[-3000:]}")
    return done.stdout


def found(version: str) -> str | None:
    """The command of a Python of this version that can make environments."""
    own = shutil.which(f"python{version}")
    roots = [pathlib.Path(os.environ.get("PYENV_ROOT") or pathlib.Path.home() / ".pyenv")]
    pyenv = [str(path) for root in roots for path in sorted(root.glob(f"versions/{version}.*/bin/python"))]
    for command in [*reversed(pyenv), *([own] if own else [])]:
        ask = [command, "-c", "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(ask, text=True, capture_output=True)
        if done.returncode == 0 and done.stdout.strip() == version:
            return command
    return None


def environment(command: str, home: pathlib.Path) -> pathlib.Path:
    """A fresh environment; its Python."""
    call(command, "-m", "venv", home, cwd=home.parent)
    return home / "bin" / "python"


def build(command: str, home: pathlib.Path, files: list[str]) -> tuple[pathlib.Path, pathlib.Path]:
    """(wheel, sdist). The sdist is made of `files` of the checkout, the wheel of the sdist."""
    source, out = home / "source", home / "dist"
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    python = environment(command, home / "builder")
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    call(python, "-m", "pip", "install", "--quiet", *requires, cwd=home)
    out.mkdir()
    call(python, "-c", f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})", cwd=source)
    (sdist,) = out.glob("*.tar.gz")
    call(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, sdist, cwd=home)
    (wheel,) = out.glob("*.whl")
    return wheel, sdist


def shipped() -> list[str]:
    """The files of a release: all that git knows or would add."""
    listed = call("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    return [name for name in listed if name not in NOT_SHIPPED and (ROOT / name).is_file()]


def check_contents(wheel: pathlib.Path, sdist: pathlib.Path, files: list[str]) -> list[str]:
    """What is missing in the files themselves, one line each."""
    with tarfile.open(sdist) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    lines = [f"sdist: {name} is missing" for name in files if name not in held]
    with zipfile.ZipFile(wheel) as file:
        held = set(file.namelist())
    lines += [f"wheel: {name} is missing" for name in files if name.startswith("ceiling/") and name not in held]
    lines += [f"wheel: {name} does not belong there" for name in held if not name.startswith("ceiling")]
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in held):
        lines.append("wheel: LICENSE is missing")
    return lines


def check(case: Case, home: pathlib.Path) -> str:
    """Install and use one package; a line of what there was. Raises Failed."""
    home.mkdir()
    python, work, began = environment(case.command, home / "environment"), home / "work", time.monotonic()
    pins = ["-c", ROOT / "requirements.txt"] if case.pinned else []
    call(python, "-m", "pip", "install", "--quiet", "--no-compile", *pins, case.package, cwd=home)
    call(python, "-m", "pip", "check", cwd=home)
    listed = {row["name"].lower(): row["version"]
              for row in json.loads(call(python, "-m", "pip", "list", "--format", "json", cwd=home))}  # fmt: skip
    core = listed.keys() - {"pip", "setuptools", "wheel"}
    if len(core) > MOST_PACKAGES:
        raise Failed(f"{len(core)} packages, {MOST_PACKAGES} are allowed: {' '.join(sorted(core))}")
    installed_s = time.monotonic() - began
    work.mkdir()
    call(python, "-m", "ceiling.doctor", "--workdir", work, cwd=work)
    version = json.loads(call(python, "-c", CHECK, cwd=work).splitlines()[-1])["version"]
    if version != listed["ceiling"]:
        raise Failed(f"ceiling.__version__ is {version}, the package says {listed['ceiling']}")
    return (f"{len(core)} packages, jax {listed['jax']}, flax {listed['flax']}, numpy {listed['numpy']}; "
            f"installed in {installed_s:.0f} s, used in {time.monotonic() - began - installed_s:.0f} s")  # fmt: skip


def cases(commands: dict[str, str], wheel: pathlib.Path, sdist: pathlib.Path) -> list[Case]:
    """The wheel under every Python, the lowest with pinned versions; the sdist under the middle one."""
    out = [Case(python, command, wheel, pinned=i == 0) for i, (python, command) in enumerate(commands.items())]
    middle = list(commands)[len(commands) // 2]
    return [*out, Case(middle, commands[middle], sdist, pinned=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pythons", default=PYTHONS, help="versions, lowest first")
    parser.add_argument("--keep", type=pathlib.Path, help="a new folder for wheel and sdist")
    args = parser.parse_args()
    wanted = {version: found(version) for version in args.pythons.split(",")}
    commands = {version: command for version, command in wanted.items() if command}
    missing = [version for version in wanted if not wanted[version]]
    if not commands:
        sys.exit(f"packages: no Python {', '.join(missing)} is here; nothing was tested")
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="ceiling-packages-") as folder:
        home, files = pathlib.Path(folder), shipped()
        # Cases with the same jaxlib run the same programs: what one has compiled the next finds.
        os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(home / "programs"),
                       "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}  # fmt: skip
        wheel, sdist = build(next(iter(commands.values())), home, files)
        print(f"built {wheel.name} ({wheel.stat().st_size / 1e3:.0f} kB) and {sdist.name} "
              f"({sdist.stat().st_size / 1e3:.0f} kB)", flush=True)  # fmt: skip
        for line in check_contents(wheel, sdist, files):
            failed += 1
            print(f"FAILED {line}")
        todo = cases(commands, wheel, sdist)
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            running = {case: pool.submit(check, case, home / f"case{i}") for i, case in enumerate(todo)}
            for case, future in running.items():
                try:
                    print(f"ok     {case.title}: {future.result()}", flush=True)
                    passed += 1
                except (Failed, OSError, subprocess.TimeoutExpired) as error:
                    failed += 1
                    print(f"FAILED {case.title}: {error}", flush=True)
        if args.keep:
            shutil.copytree(home / "dist", args.keep)
    for version in missing:
        print(f"NOT TESTED: Python {version} is not here (python{version} on PATH, or among pyenv's)")
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
