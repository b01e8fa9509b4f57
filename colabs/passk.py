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
# # Reading a pass@k curve without fooling yourself
#
# pass@k is the chance that at least one of k samples is right. Draw it for a base model and for the same model after
# reward training, and the two curves are said to answer the question: *did training add something, or did it only
# re-weight what was there?* Eight ways to read them wrongly follow, each with the numbers that show it, and the rule
# that this project uses instead.
#
# Nothing is trained here. The data are counts of a finished run of the default experiment (and, where the truth must be
# known, exact sums over made-up success rates). It takes under a minute.

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
import dataclasses
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas
from IPython.display import display
from scipy import stats as distributions

from ceiling.evals import stats, summary, verdicts
from ceiling.evals.evalset import Cell, EvalSet
from ceiling.evals.passk import pass_at_k

OUT = pathlib.Path("runs/passk")
OUT.mkdir(parents=True, exist_ok=True)
DRAWS = 200 if TINY else 2000

# %% [markdown]
# ## The data
#
# One number per arm, training seed and problem: how many of n samples were right. Every curve below is computed from
# these counts. `base_redraw` is the base sampled a second time with other noise: it is what "no change" looks like.

# %%
shipped = json.loads((HOME / "colabs/results/lab.json").read_text())
n, ks, groups = shipped["n"], np.array(shipped["ks"]), np.array(shipped["groups"])
cells = {
    (arm, int(seed)): Cell(np.array(count_P))
    for arm, by_seed in shipped["counts"].items() for seed, count_P in by_seed.items()
}
run = EvalSet(n, shipped["groups"], cells)
titles = {arm["name"]: arm["title"] for arm in shipped["arms"]}
print(shipped["provenance"])
print(f"{len(run.arms)} arms x {len(run.seeds('base'))} training seeds x {len(groups)} problems, n = {n} samples each")
display(pandas.DataFrame(shipped["about_groups"]).style.hide(axis="index"))

# %%
def curves(arm: str, group: str) -> np.ndarray:
    """pass@k of every training seed and problem, f64[S, P, K]."""
    count_SP = run.count_SP(arm, run.seeds(arm, "base"))[:, groups == group]
    return pass_at_k(n, count_SP[..., None], ks)

# %% [markdown]
# ## 1. The plug-in estimate is biased
#
# Of n samples of a problem c were right. The tempting estimate puts the rate c / n into the formula, $1 - (1 - c/n)^k$.
# The unbiased one counts: of all $\binom{n}{k}$ sets of k samples, which share holds no right one?
#
# $$\widehat{\text{pass@}k} = 1 - \binom{n-c}{k} \Big/ \binom{n}{k}$$
#
# Both are averaged here over everything that n = 16 samples can show, with the probabilities of the binomial
# distribution, so there is no noise in the figure: what is left is bias. The plug-in is too low everywhere, by up to
# .08, and most for problems that are solved once in ten tries: those over which two models differ.

# %%
few, k, rate_R = 16, 8, np.geomspace(1e-3, 0.9, 60)
c = np.arange(few + 1)
weight_RC = distributions.binom.pmf(c, few, rate_R[:, None])
truth_R = 1 - (1 - rate_R) ** k
bias = {
    "plug-in, 1 - (1 - c/n)^k": weight_RC @ (1 - (1 - c / few) ** k) - truth_R,
    "unbiased, 1 - C(n-c,k) / C(n,k)": weight_RC @ pass_at_k(few, c, k) - truth_R,
}
assert np.abs(bias["unbiased, 1 - C(n-c,k) / C(n,k)"]).max() < 1e-12

figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name, bias_R in bias.items():
    axes.plot(rate_R, bias_R, label=name)
axes.set(xscale="log", xlabel="true success rate of one sample", ylabel="bias", title=f"pass@{k} from {few} samples")
axes.legend(frameon=False)
figure.savefig(OUT / "bias.png", dpi=150)
pandas.DataFrame({"rate": rate_R, **bias}).to_csv(OUT / "bias.csv", index=False)
plt.show()

# %% [markdown]
# And k may not exceed n: sixteen samples say nothing unbiased about 32 tries. The function refuses.

# %%
try:
    pass_at_k(16, 3, 32)
except ValueError as error:
    print(error)

# %% [markdown]
# ## 2. At k = n the estimate is one coin
#
# The estimate is unbiased up to k = n, and useless there: it is 1 if anything was right and 0 otherwise, a single draw
# per problem. Its standard deviation for one problem, again without simulation, grows with k until it is that of a
# coin. This is why a verdict here is given at k <= n / 2.

# %%
many = 64
ks_all, c = np.arange(1, many + 1), np.arange(many + 1)
value_CK = pass_at_k(many, c[:, None], ks_all)
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for rate in (0.003, 0.01, 0.03, 0.1):
    weight_C = distributions.binom.pmf(c, many, rate)
    mean_K = weight_C @ value_CK
    axes.plot(ks_all, np.sqrt(weight_C @ (value_CK - mean_K) ** 2), label=f"rate {rate}")
axes.axvline(many / 2, color="grey", linewidth=0.8, linestyle=":")
axes.set_xscale("log", base=2)
axes.set(xlabel="k", ylabel="standard deviation", title=f"pass@k of one problem from n = {many} samples")
axes.legend(frameon=False)
figure.savefig(OUT / "spread.png", dpi=150)
plt.show()

# %% [markdown]
# ## 3. Zero of n is not zero
#
# "The base never solves it" means 0 of n. The largest rate that still shows 0 of n once in twenty runs is about 3 / n,
# and at large k such a rate is a lot.

# %%
rows = []
for samples in (16, 64, 256, 512, 1024):
    upper = stats.rate_upper(0, samples)
    rows.append({"n": samples, "0 right: rate below": upper, "pass@256 may still be": 1 - (1 - upper) ** 256})
display(pandas.DataFrame(rows).style.format(precision=4).hide(axis="index"))

# %% [markdown]
# ## 4. A band is over something
#
# The same difference, pass@1 of GRPO minus the base's on depth-4 problems, with four intervals. The first treats every
# sample as a problem of its own, the second every pair of seed and problem, the third looks at one training seed, the
# fourth takes seeds and problems as two crossed samples from something larger: other runs, other problems. One seed
# alone looks certain, and is certain of itself only. The last says what another student with another seed should
# expect, and it is the widest for a reason.

# %%
ARM, GROUP, K = "grpo", "X", shipped["verdict_k"]
d_SP = (curves(ARM, GROUP) - curves("base", GROUP))[..., list(ks).index(1)]
seeds, problems = d_SP.shape


def show(what: str, mean: float, half: float) -> dict:
    return {"interval over": what, "mean": mean, "lo": mean - half, "hi": mean + half, "width": 2 * half}


pooled = [run.count_SP(arm, run.seeds(ARM, "base"))[:, groups == GROUP].sum() for arm in (ARM, "base")]
total = n * d_SP.size
samples_half = 1.96 * np.sqrt(sum(c / total * (1 - c / total) / total for c in pooled))
rng = np.random.default_rng(0)
resampled_D = d_SP.ravel()[rng.integers(d_SP.size, size=(DRAWS, d_SP.size))].mean(axis=1)
one = stats.crossed_interval(d_SP[:1])
crossed = stats.crossed_interval(d_SP)
rows = [
    show("samples, all alike", d_SP.mean(), samples_half),
    show("seed-problem pairs, all alike", d_SP.mean(), 1.96 * resampled_D.std()),
    show("problems, first training seed alone", one.mean, one.hi - one.mean),
    show(f"{seeds} training seeds x {problems} problems", crossed.mean, crossed.hi - crossed.mean),
]
display(pandas.DataFrame(rows).style.format(precision=3).hide(axis="index"))

# %% [markdown]
# ## 5. Two bands that overlap say nothing
#
# Problems differ far more from each other than the arms do on one problem. So each curve's own band is wide, and the
# band of the *difference*, taken problem by problem on the same training seeds, need not be. Compare arms by the paired
# difference, never by eye across two bands. Below, continued pretraining on a very rare skill: the bands overlap up to
# the largest k, and nearly everywhere the difference is below zero all the same. A bootstrap over seeds and problems
# stands beside the formula.

# %%
OTHER, GROUP = "cpt", "V"
base_SPK, arm_SPK = curves("base", GROUP), curves(OTHER, GROUP)
d_SPK = arm_SPK - base_SPK
S, P, _ = d_SPK.shape
w_DS = rng.multinomial(S, np.full(S, 1 / S), size=DRAWS) / S
v_DP = rng.multinomial(P, np.full(P, 1 / P), size=DRAWS) / P
bootstrap_DK = np.einsum("ds,dp,spk->dk", w_DS, v_DP, d_SPK)
paired = [stats.crossed_interval(d_SPK[..., i]) for i in range(len(ks))]

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for arm, value_SPK in (("base", base_SPK), (OTHER, arm_SPK)):
    bands = [stats.crossed_interval(value_SPK[..., i]) for i in range(len(ks))]
    left.plot(ks, [b.mean for b in bands], label=titles[arm])
    left.fill_between(ks, [max(0, b.lo) for b in bands], [min(1, b.hi) for b in bands], alpha=0.2)
left.set_xscale("log", base=2)
left.set(xlabel="k", ylabel="pass@k", title="two curves, two bands")
left.legend(frameon=False)
right.plot(ks, d_SPK.mean(axis=(0, 1)), color="black")
right.fill_between(ks, [i.lo for i in paired], [i.hi for i in paired], alpha=0.2, label="crossed, Student's t")
right.plot(ks, np.quantile(bootstrap_DK, [0.025, 0.975], axis=0).T, color="grey", linestyle=":", label="bootstrap")
right.axhline(0, color="grey", linewidth=0.8)
right.set_xscale("log", base=2)
right.set(xlabel="k", ylabel=f"{titles[OTHER]} - base", title="one paired difference")
handles, labels = right.get_legend_handles_labels()
right.legend(handles[:2], labels[:2], frameon=False)
figure.savefig(OUT / "paired.png", dpi=150)
pandas.DataFrame({"k": ks, "mean": [i.mean for i in paired], "lo": [i.lo for i in paired],
                  "hi": [i.hi for i in paired]}).to_csv(OUT / "paired.csv", index=False)
plt.show()

# %% [markdown]
# Where the seeds differ the bootstrap's band is the narrower one: three of them are too few to resample. The formula
# knows how few they are.

# %% [markdown]
# ## 6. Luck makes discoveries
#
# "The trained model solves problems that the base never solved." So does the base, drawn again. Below: problems with no
# right sample in the base's draw that have one in another draw *of the same model*, beside what chance predicts, and
# beside the trained arm.

# %%
rows = []
seeds = run.seeds("base", "base_redraw", ARM)
for group in dict.fromkeys(groups):
    base_SP, again_SP, arm_SP = (run.count_SP(a, seeds)[:, groups == group] for a in ("base", "base_redraw", ARM))
    luck = verdicts.false_expansion_rate(base_SP, again_SP, n)
    rows.append({
        "group": group, "cells": base_SP.size, "base 0 of n": int((base_SP == 0).sum()),
        "of these, solved by the redraw": luck.gained, "expected": luck.expected * base_SP.size,
        f"by {titles[ARM]}": int(((base_SP == 0) & (arm_SP > 0)).sum()),
    })
luck = pandas.DataFrame(rows)
luck.to_csv(OUT / "luck.csv", index=False)
display(luck.style.format(precision=1).hide(axis="index"))

# %% [markdown]
# ## 7. Any two curves cross
#
# The base's curve above the trained one at large k is read as "the base's ceiling is higher". Two draws of one model
# cross as well; the null arm's rows say how often. A crossing is evidence when the *share* of resamples (over seeds and
# problems) in which the arm, having been above, falls below is near 1, and its k has a narrow band. An arm that is
# below at every k does not cross at all: it has lost something, and the share is 0.

# %%
rows = []
for arm in (ARM, "sft", "distill", "base_redraw"):
    for group in ("C", "X", "M"):
        base_SPK, arm_SPK = curves("base", group), curves(arm, group)
        found = stats.bootstrap_crossing(base_SPK, arm_SPK, ks, draws=DRAWS, seed=0)
        rows.append({"arm": titles[arm], "group": group, **dataclasses.asdict(found)})
crossings = pandas.DataFrame(rows)
crossings.to_csv(OUT / "crossings.csv", index=False)
display(crossings.style.format(precision=2, na_rep="-").hide(axis="index"))

# %% [markdown]
# How a real crossing comes about, with made-up rates. The base solves every problem, rarely. Training puts nearly all
# probability on one way of working, which is right for 60 % of the problems and wrong for the others. pass@1 rises
# eighteenfold, and the curve stops where the problems stop: at high k the base wins. Nothing was learned or forgotten
# between two k's; the curves show two different spreads of the same successes.

# %%
P = 100
base_P = np.full(P, 0.02)
tuned_P = np.where(np.arange(P) < 60, 0.6, 1e-5)
k_K = 2 ** np.arange(11)
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name, rate_P in (("base: all problems, rate .02", base_P), ("tuned: 60 of 100, rate .6", tuned_P)):
    axes.plot(k_K, (1 - (1 - rate_P[:, None]) ** k_K).mean(axis=0), marker="o", markersize=3, label=name)
axes.set_xscale("log", base=2)
axes.set(xlabel="k", ylabel="pass@k", title="the base wins at high k", ylim=(0, 1.02))
axes.legend(frameon=False)
figure.savefig(OUT / "crossing.png", dpi=150)
plt.show()

# %% [markdown]
# ## 8. Guessing has a curve too
#
# With 256 tries, a task of four choices is solved by a coin, and three-digit answers by one model in four. The floor of
# this experiment (one of 10,000 answers) is low enough; on your task, draw it first.

# %%
k_K = 2 ** np.arange(11)
floors = {"4 choices": 1 / 4, "an integer below 1000": 1e-3, "this task": shipped["guess_rate"]}
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name, rate in floors.items():
    axes.plot(k_K, 1 - (1 - rate) ** k_K, label=f"{name}: {rate:g}")
axes.set_xscale("log", base=2)
axes.set(xlabel="k", ylabel="pass@k of guessing", ylim=(0, 1.02), title="the floor")
axes.legend(frameon=False)
figure.savefig(OUT / "floor.png", dpi=150)
plt.show()

# %% [markdown]
# ## The rule
#
# What this project says of an arm and a group of problems, at k <= n / 2, from counts alone and without knowing which
# arm it is:
#
# - **expanded**: the whole paired interval at k lies above what redrawing the base does, in every training seed;
# - **contracted**: the same, below;
# - **re-weighted**: pass@k is unchanged within a margin while pass@1 moved;
# - **not resolved**: everything else. It is the most frequent verdict, and not a failure: the run does not say.
#
# The table asks the rule about every arm of the shipped run. Read `reason`: it holds the numbers of the decision.

# %%
table = summary.verdict_rows(run, "base", "base_redraw", K, shipped["margin"])
verdict = pandas.DataFrame(table)
verdict.to_csv(OUT / "verdicts.csv", index=False)
display(verdict.pivot(index="arm", columns="group", values="verdict")[list(dict.fromkeys(groups))])
for row in table:
    if row["arm"] == ARM:
        print(f"{row['group']:3s} {row['reason']}")

# %% [markdown]
# ## A checklist
#
# 1. Which estimator, and is k at most n / 2?
# 2. How many training seeds? With one, no sentence about *training* is possible.
# 3. Is the difference paired, and over what is its band?
# 4. What does the base, drawn again, do to the same table?
# 5. What does guessing reach?
# 6. Are "new" problems at 0 of how many, and how many does luck make?
# 7. In which share of resamples do the curves cross?
# 8. Did both arms cost the same?
