# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The default experiment
#
# **Does reward training take a language model past what its pretraining made possible, or does it only re-weight what
# was there?** On a real model the question has no clean answer, because nobody knows what its pretraining held. So a
# small transformer is pretrained here on a generated corpus whose contents are known exactly: some skills are common in
# it, some rare, some absent. Then training methods spend the same FLOPs on it, and each is judged against the base.
#
# Below is a cut of the default experiment: two of its seven arms, half the problems, a quarter of the samples. It
# trains everything from scratch in under three minutes on two CPU cores. The full experiment takes a quarter of an hour
# on the same machine; its results are shipped with the project, and the last figure is drawn from them without any
# training.

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

# %%
import json
import runpy

import jax
import matplotlib.pyplot as plt
import numpy as np
import pandas
from IPython.display import display

import ceiling
from ceiling import schema
from ceiling.evals import summary
from ceiling.evals.evalset import Cell, EvalSet

WORKDIR = pathlib.Path("runs/default_tiny" if TINY else "runs/default")
OUT = WORKDIR / "figures"
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The configuration
#
# It starts from `configs/lab.py`, the default, and is cut. Every value is a plain key; a wrong one is refused in one
# line before anything compiles.
#
# - `budget.flops`: what every arm may spend on sampling, scoring and training together. Arms stop there, not after
#   equal steps.
# - `eval.n` samples of every problem; verdicts are given at k = `eval.verdict_k`, at most n / 2.
# - three training seeds, because with fewer no verdict is given.

# %%
config = runpy.run_path(str(HOME / "configs/lab.py"))["get_config"]("tiny" if TINY else "")
for name in set(config.arms) - {"grpo", "sft"}:
    del config.arms[name]
config.report.pair = ""
config.report.html = not TINY
if not TINY:
    config.budget.flops = 1.2e11
    config.task.evaluation_per_group = 8
    config.eval.update(n=128, ks=(1, 2, 4, 8, 16, 32, 64), verdict_k=64)
    config.workers = 2 if jax.default_backend() == "cpu" else 1  # one process to an accelerator
print(f"seeds {config.seeds}, {config.budget.flops:g} FLOP an arm, arms {', '.join(config.arms)}")

# %% [markdown]
# ## The task
#
# A letter names a map on 4-digit strings; `ab..=1234` asks for b after a. A response begins with the label of its
# strategy and ends with `#dddd$`. The groups differ in what the pretraining corpus shows of their letters. A problem of
# each, with a demonstration where the curators have one:

# %%
task = schema.load_task(schema.validate(config))
rng = np.random.default_rng(0)
first = {problem.group: problem for problem in reversed(task.evaluation())}
rows = [
    {"group": g.name, "what": g.description, "in the prior": g.prior, "prompt": first[g.name].prompt,
     "answer": first[g.name].answer, "a demonstration": task.demonstration(first[g.name], rng) or "-"}
    for g in task.groups
]
display(pandas.DataFrame(rows).style.hide(axis="index"))

# %% [markdown]
# ## The run
#
# Pretraining (three seeds), then GRPO, which learns from its own samples and an exact verifier, and SFT, which learns
# from curated demonstrations. Each policy is then sampled on the same problems; the base twice, so that you can see
# what mere luck does.
#
# Stop the cell whenever you like and run it again: it continues where it stopped, with the same numbers. A changed
# value reruns the stages that depend on it and no others.

# %%
result = ceiling.run(config, WORKDIR)

# %% [markdown]
# ## Verdicts
#
# *Expanded* and *contracted* compare pass@k with the base's, *re-weighted* says that pass@1 moved while pass@k did not,
# and *not resolved* that the run does not say. The last is no failure: it is what an honest small experiment mostly
# says.

# %%
verdict = result.verdicts.to_pandas()
verdict.to_csv(OUT / "verdicts.csv", index=False)
order = list(dict.fromkeys(verdict["group"]))
display(verdict.pivot(index="arm", columns="group", values="verdict")[order])
for row in result.verdicts[:3]:
    print(row["arm"], row["group"], row["reason"])

# %% [markdown]
# ## The curves
#
# pass@k by group: the chance that one of k samples is right, with a band over training seeds and problems. Where the
# base's curve is low at k = 1 and high at the right, the skill is there and seldom used; reward training can find it.
# Where it stays at zero, there is nothing to find.

# %%
def draw(curves: list[dict], titles: dict[str, str], groups: list[str], name: str) -> None:
    """pass@k of several arms, one panel a group; a PNG and a CSV of what is drawn."""
    table = pandas.DataFrame(curves)
    table = table[table["arm"].isin(titles) & table["group"].isin(groups)]
    columns = min(4, len(groups))
    figure, grid = plt.subplots(-(-len(groups) // columns), columns, figsize=(10, 5), sharex=True, sharey=True,
                                squeeze=False, layout="constrained")
    for axes, group in zip(grid.flat, groups, strict=False):
        for i, (arm, title) in enumerate(titles.items()):
            line = table[(table["arm"] == arm) & (table["group"] == group)].sort_values("k")
            axes.plot(line["k"], line["mean"], color=f"C{i}", label=title)
            axes.fill_between(line["k"], line["lo"].astype(float), line["hi"].astype(float), color=f"C{i}", alpha=0.1)
        axes.set_xscale("log", base=2)
        axes.set(title=group, ylim=(-0.02, 1.02))
    figure.supxlabel("k samples")
    figure.supylabel("pass@k")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(OUT / f"{name}.png", dpi=150)
    table.to_csv(OUT / f"{name}.csv", index=False)
    plt.show()

# %%
groups = [group.name for group in task.groups]
draw(result.curves, {"base": "base", "grpo": "GRPO", "sft": "SFT"}, groups, "pass_at_k")

# %% [markdown]
# ## What it cost
#
# The ledger charges every arm for sampling, scoring and training in FLOPs, in closed form. Both arms stopped at the
# same value; evaluation is charged apart.

# %%
ledger = result.ledger.to_pandas()
ledger = ledger[ledger["arm"].isin(config.arms) & (ledger["flops"] > 0)]
spent = ledger.pivot_table(index="arm", columns="phase", values="flops", aggfunc="sum")
display(spent.style.format("{:.2e}", na_rep="-"))
print(f"the whole report, with diversity, training curves and the null arm: {result.report}")

# %% [markdown]
# ## The full experiment, from shipped results
#
# Seven arms, 16 problems a group, 512 samples of each problem, three seeds. The file holds counts of right samples;
# curves, intervals and verdicts are computed from them here. This part needs no training: after the first cells and the
# imports you may start here, with the cell that defines `draw`.

# %%
shipped = json.loads((HOME / "colabs/results/lab.json").read_text())
cells = {
    (arm, int(seed)): Cell(np.array(count_P))
    for arm, by_seed in shipped["counts"].items() for seed, count_P in by_seed.items()
}
full = EvalSet(shipped["n"], shipped["groups"], cells)
print(shipped["provenance"])
main = {arm["name"]: arm["title"] for arm in shipped["arms"] if not arm["control"]}
draw(summary.curves(full, shipped["ks"]), main, list(dict.fromkeys(shipped["groups"])), "full_pass_at_k")

# %%
rows = summary.verdict_rows(full, "base", "base_redraw", shipped["verdict_k"], shipped["margin"])
table = pandas.DataFrame(rows)
table.to_csv(OUT / "full_verdicts.csv", index=False)
display(table.pivot(index="arm", columns="group", values="verdict")[list(dict.fromkeys(shipped["groups"]))])

# %% [markdown]
# ## Where to go
#
# - `config.arms.grpo.advantage = "group_mean"` and the run cell again: Dr. GRPO's advantage, the prior reused.
# - `config.task.rho.V = 0.05`: a prior that shows the very rare letter more often. Everything is trained again.
# - The notebook `passk` says how these curves mislead, `rlp` takes one method apart equation by equation, and
#   `own_model` runs the same experiment on a checkpoint of yours.
