# The first cells of every notebook; `python scripts/notebooks.py sync` writes them into each.

# %% [markdown] tags=["start"]
# ## Start
#
# The next cell finds the project or installs it. It never touches the `jax` of this runtime, which was built for its
# driver. pip may print that other packages of the runtime are "incompatible": those lines are harmless here, as nothing
# in this notebook imports them. Nothing asks for a login.

# %% tags=["start"]
import importlib.metadata as metadata
import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys

SOURCE = ""  # a checkout's folder, or a tagged address such as "git+https://HOST/OWNER/ceiling@v0.1.0"


def project() -> pathlib.Path:
    """The project's folder: around an installed package, here or above, or fetched from SOURCE."""
    spec = importlib.util.find_spec("ceiling")
    around = [pathlib.Path(spec.origin).parents[1]] if spec and spec.origin else []
    fetched = pathlib.Path("ceiling-source").absolute()
    for folder in [*around, pathlib.Path.cwd(), *pathlib.Path.cwd().parents, pathlib.Path(SOURCE), fetched]:
        if (folder / "colabs/start.py").is_file():
            return folder.absolute()
    address, at, tag = SOURCE.removeprefix("git+").rpartition("@")
    if not (SOURCE.startswith("git+") and at):
        sys.exit(f"SOURCE={SOURCE!r} is neither a checkout nor git+ADDRESS@TAG, and none is here: set it above")
    shutil.rmtree(fetched, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", "--depth=1", f"--branch={tag}", address, fetched], check=True)
    return fetched


def install(home: pathlib.Path) -> None:
    """The package and what it needs, once, beside the jax that is here."""
    numbers = lambda version: [int(n) for n in re.findall(r"\d+", version.split("+")[0])[:3]]  # noqa: E731
    before = {d.name: d.version for d in metadata.distributions()}
    least = re.search(r'"jax>=([\d.]+)"', (home / "pyproject.toml").read_text())[1]
    if "jax" in before and numbers(before["jax"]) < numbers(least):
        sys.exit(f"jax {before['jax']} of this runtime is too old, {least} or newer is needed: choose a newer runtime")
    kept = [f"{name}=={version}\n" for name, version in before.items() if name.startswith(("jax", "libtpu"))]
    pathlib.Path("constraints.txt").write_text("".join(sorted(kept)))
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-c", "constraints.txt", home], check=True)
    importlib.invalidate_caches()
    after = {d.name: d.version for d in metadata.distributions()}
    changed = [name for name in before if after.get(name) != before[name] and name.replace("-", "_") in sys.modules]
    if changed:
        print(f"Restart the session once and run this cell again: {', '.join(changed)} changed after being imported.")


HOME = project()
if not getattr(importlib.util.find_spec("ceiling"), "origin", None):
    install(HOME)
print(f"ceiling {metadata.version('ceiling')}, jax {metadata.version('jax')}, {HOME}")

# %% [markdown] tags=["start"]
# What the notebook computes on. If a line in capitals says that an accelerator is here but not used, go to *Runtime >
# Change runtime type*, choose it again, and start over: everything below still works on the CPU, only slower. A T4
# multiplies bfloat16 slowly, so its compute dtype is float32; newer GPUs and TPUs take bfloat16.

# %% tags=["start"]
import os

from ceiling import doctor, programs

TINY = bool(os.environ.get("CEILING_TINY"))  # the tests' mode: every cell runs, and nothing is learned
programs.keep()  # compiled programs are kept for this machine's later sessions
for finding in doctor.devices(HOME):
    print(finding if finding.ok else f"{'!' * 120}\n{finding}\n{'!' * 120}")
