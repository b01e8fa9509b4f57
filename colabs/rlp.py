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
# # RLP, equation by equation
#
# *RLP: Reinforcement as a Pretraining Objective* (Hatamizadeh et al., arXiv:2510.01265) trains a language model to
# think before it predicts, on plain text: there is no question, no answer key and no verifier.
#
# First a short run is trained here. Then its very first step is done again by hand, line by line: each equation once
# with the project's function from `ceiling/regimes/rlp.py`, and once in a few lines of NumPy that share no code with
# it.

# %% [markdown]
# ## The equations
#
# For a context $x_{<t}$ and the text $x_{t..}$ that follows it, with the policy $\pi_\theta$ and a slow copy $\phi$ of
# its weights:
#
# $$
# \begin{aligned}
# (1)\quad & c_i \sim \pi_\theta(\cdot \mid x_{<t}), \quad i = 1..G \\
# (2)\quad & S_{\text{pred},i} = \log p_\theta(x_{t..} \mid x_{<t}, c_i), \qquad
# S_{\text{ema}} = \log p_\phi(x_{t..} \mid x_{<t}) \\
# (3)\quad & r_i = \text{sg}\left[S_{\text{pred},i} - S_{\text{ema}}\right] \\
# (4)\quad & A_i = \tfrac{G}{G-1}\,(r_i - \bar r) \\
# (5)\quad & L = -\frac{1}{BG} \sum_{b,i} \frac{1}{\lvert c_i \rvert} \sum_u
# \min\left(\rho_u A_i,\ \text{clip}(\rho_u, 1-\epsilon_l, 1+\epsilon_h)\, A_i\right) \\
# (6)\quad & \phi \leftarrow \tau\phi + (1-\tau)\,\theta \quad \text{after every update}
# \end{aligned}
# $$
#
# $G$ is the number of thoughts of a context; $r_i$ is the information gain in nats, and sg makes it a constant in
# differentiation; $\rho_u$ is the probability of a thought token under the policy over that under the policy that drew
# it.
#
# The paper scores one next token $x_t$; here a thought is scored on the whole continuation, which contains that case
# (`scored_tokens = 1`). Clip widths and updates per rollout are not stated in the paper; they are settings here.

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
from ceiling import experiment, schema
from ceiling.data import order
from ceiling.data.packing import pack
from ceiling.evals import summary
from ceiling.evals.evalset import Cell, EvalSet
from ceiling.model import forward, make_mesh
from ceiling.model.sequences import Forward
from ceiling.regimes import grpo, rlp
from ceiling.regimes.base import Material, Sample, noise_ids
from ceiling.rollout import generate
from ceiling.rollout.scoring import score
from ceiling.stages import load_policy
from ceiling.train.loop import stream

WORKDIR = pathlib.Path("runs/rlp_tiny" if TINY else "runs/rlp")
OUT = WORKDIR / "figures"
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The run
#
# A small transformer is pretrained on the generated corpus of the default experiment; then three arms spend the same
# FLOPs on it:
#
# - **RLP**;
# - **continued pretraining** on the same text, its control: does text alone do it?
# - **RLP with empty thoughts**, cut to one token: does *thinking* do it, or only the procedure around it?
#
# One training seed, so nothing here is a verdict. It takes about two minutes on two CPU cores; run again, the cell
# continues where it stopped.

# %%
config = runpy.run_path(str(HOME / "configs/lab.py"))["get_config"]("tiny" if TINY else "")
for name in set(config.arms) - {"rlp", "cpt", "rlp_empty"}:
    del config.arms[name]
config.report.pair, config.report.html = "", not TINY
config.seeds = config.seeds[:1]
if not TINY:
    config.task.evaluation_per_group = 8
    config.eval.update(n=64, ks=(1, 2, 4, 8, 16, 32), verdict_k=32)
    config.workers = 2 if jax.default_backend() == "cpu" else 1  # one process to an accelerator
result = ceiling.run(config, WORKDIR)

# %% [markdown]
# ## A passage
#
# The task splits plain text at one point. After the context the model may think; a thought ends with the token `stop`;
# then comes the continuation, which is what a thought should make likelier. `empty` is the shortest thing that has the
# form of a thought and says nothing. Keep it in mind for equation (2).

# %%
settings = schema.validate(config)
seed, cfg, task = settings["seeds"][0], settings["arms"]["rlp"], schema.load_task(settings)
stages = {stage.name: stage.directory(WORKDIR) for stage in experiment.plan(settings)}
model = schema.architecture(settings["model"], task.tokenizer.vocab_size)
prior = load_policy(stages[f"seed{seed}/prior"], model, make_mesh())
trained = load_policy(stages[f"seed{seed}/rlp"], model, make_mesh())


def encode(text: str) -> np.ndarray:
    return np.asarray(task.tokenizer.encode(text), np.int32)


# The problems of the arm's first step, in the order in which the loop drew them.
pool = task.training(schema.mix_of(cfg, settings), cfg["pool"])
problems = [pool[i] for i in order.indices(seed, 0, cfg["prompts_per_step"], len(pool))]
passages = [task.passage(problem) for problem in problems]
print(passages[0])

# %% [markdown]
# ## An independent ruler
#
# Everything below needs log-probabilities. The project packs sequences into rows and never builds the table of all
# logits; this function does, for all sequences at once, and takes the log-softmax in NumPy.

# %%
def log_probs(params, sequences: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """log p of text given what stands before it: one row for each (before, text)."""
    T = max(len(before) + len(text) for before, text in sequences)
    tokens_BT = np.zeros((len(sequences), T), np.int32)
    for row_T, pair in zip(tokens_BT, sequences, strict=True):
        row_T[: sum(map(len, pair))] = np.concatenate(pair)
    logits_BTV = np.asarray(jax.jit(forward, static_argnums=1)(params, model, tokens_BT), np.float64)
    logits_BTV -= logits_BTV.max(axis=2, keepdims=True)
    logp_BTV = logits_BTV - np.log(np.exp(logits_BTV).sum(axis=2, keepdims=True))
    return [
        logp_TV[np.arange(len(before), len(before) + len(text)) - 1, text]  # token t is predicted at t - 1
        for logp_TV, (before, text) in zip(logp_BTV, sequences, strict=True)
    ]


def agree(ours, theirs, tolerance: float = 1e-4) -> str:
    worst = np.abs(np.concatenate(ours) - np.concatenate(theirs)).max()
    assert worst < tolerance, worst
    return f"{sum(map(len, ours))} numbers, largest difference {worst:.1e}"

# %% [markdown]
# ## (1) Thoughts
#
# $G$ thoughts per context. The seed of the noise is the loop's own for step 0, so these are the thoughts that the arm
# was trained on first.

# %%
G, stop = cfg["samples_per_prompt"], encode(passages[0].stop)
contexts = [encode(passage.context) for passage in passages]
out = generate(
    prior.replace(stop_ids=tuple(stop.tolist())), contexts, n=G, max_new_tokens=cfg["max_thought_tokens"],
    temperature=cfg["temperature"], seed=stream(seed, 0, 0), problem_ids=noise_ids(problems),
)
thoughts = [
    [Sample(contexts[i], out.response(i, j), out.logprobs[i, j, : out.lengths[i, j]], bool(out.stopped[i, j]), None)
     for j in range(G)]
    for i in range(len(problems))
]
flat = [thought for group in thoughts for thought in group]

theirs = log_probs(prior.params, [(t.prompt, t.tokens) for t in flat])
print("log-probs of thought tokens, sampler against NumPy:", agree([t.logprobs for t in flat], theirs))
for passage, group in zip(passages[:2], thoughts, strict=False):
    print(f"\n{passage.context} ...")
    for thought in group[:4]:
        print(f"    {task.tokenizer.decode(thought.tokens)}")

# %% [markdown]
# ## (2) Two predictions of the same text
#
# With the thought, by the policy; without one, by the slow copy. At step 0 the slow copy *is* the prior.
#
# Two choices are hidden in "without". A model that has only seen text with thoughts is surprised by text without any,
# and that surprise is not information. So the default baseline is the *wrapped* one: the slow copy sees the empty
# thought. And one confident wrong digit costs tens of nats, so a `floor` $f$ can mix in a uniform guess, which bounds
# what a token can cost: $\log((1-f)\,p + f/V)$.

# %%
material = Material(task=task, problems=problems, samples=[thoughts], scores={}, replay=None, rng=None)
longest = max(len(encode(p.prompt)) for p in task.evaluation()) + task.max_response_tokens
for name, request in rlp.scores(material, cfg).items():
    material.scores[name], _ = score(prior.params, model, request.examples, max_tokens=longest)

continuations = [encode(passage.continuation) for passage in passages]
after_thought = [
    (np.concatenate([t.prompt, t.tokens, encode(p.bridge if t.stopped else p.stop + p.bridge)]), continuation)
    for p, continuation, group in zip(passages, continuations, thoughts, strict=True) for t in group
]
after_nothing = [(encode(p.context + p.empty), c) for p, c in zip(passages, continuations, strict=True)]
pred, ema = log_probs(prior.params, after_thought), log_probs(prior.params, after_nothing)
print("S_pred, score against NumPy:", agree(material.scores["with_thought"], pred))
print("S_ema,  score against NumPy:", agree(material.scores["without"], ema))

# %%
f, V = cfg["floor"], task.tokenizer.vocab_size


def floored(logp: np.ndarray) -> np.ndarray:
    return np.log((1 - f) * np.exp(logp) + f / V)


logp = np.linspace(-30, 0, 7)
print("floor:", agree([rlp.floored(logp, f, V)], [floored(logp)], 1e-12))
display(pandas.DataFrame({"log p": logp, f"with floor {f:g}": floored(logp)}).style.format("{:.2f}").hide(axis="index"))

# %% [markdown]
# ## (3) Information gain
#
# The reward of a thought: how many nats likelier it made the text that really followed. It is a constant: its gradient
# is zero by construction, so the policy cannot raise its reward by predicting better without thinking better.
#
# The mean over the step is what the training curve calls `information_gain_nats`. The first line of the arm's curve,
# written by the run above, must be this very number.

# %%
gain_NG = rlp.gains(material, cfg)
S_pred_NG = np.reshape([floored(x).sum() for x in pred], (-1, G))
S_ema_N = np.array([floored(x).sum() for x in ema])
print("gains, function against NumPy:", agree(gain_NG, S_pred_NG - S_ema_N[:, None], 1e-3))
print("gradient of the gain:", jax.grad(lambda S: rlp.information_gain(S, 0.0))(1.0))

first = json.loads((stages[f"seed{seed}/rlp"] / "metrics.jsonl").read_text().splitlines()[0])
print(f"mean gain of the step: {gain_NG.mean():.6f} nats by hand, {first['information_gain_nats']:.6f} in the curve")
assert abs(gain_NG.mean() - first["information_gain_nats"]) < 1e-3

best, worst = (np.unravel_index(index, gain_NG.shape) for index in (gain_NG.argmax(), gain_NG.argmin()))
for what, (i, j) in (("best", best), ("worst", worst)):
    text = task.tokenizer.decode(thoughts[i][j].tokens)
    print(f"{what:5s} {gain_NG[i, j]:+7.2f} nats: {passages[i].context} | {text} | {passages[i].continuation}")

# %% [markdown]
# ## (4) Advantages
#
# $\frac{G}{G-1}(r_i - \bar r)$ is the same as $r_i$ minus the mean of the *others*: a thought does not lower its own
# baseline. There is no division by the standard deviation.
#
# $S_{\text{ema}}$ is one number per group, so it cancels here: it sets the reported gain, not the gradient.

# %%
advantage_NG = np.asarray(grpo.advantages(gain_NG, kind="leave_one_out"))
others_NG = np.array([[r_i - (r_G.sum() - r_i) / (G - 1) for r_i in r_G] for r_G in gain_NG.astype(np.float64)])
print("advantages, function against NumPy:", agree(advantage_NG, others_NG, 1e-3))
shifted_NG = np.asarray(grpo.advantages(gain_NG + np.arange(len(problems))[:, None], kind="leave_one_out"))
print("with another baseline per group:   ", agree(advantage_NG, shifted_NG, 1e-3))

# %% [markdown]
# ## (5) The loss
#
# On thought tokens alone: context and continuation carry none. On the first update after a rollout the policy is the
# one that drew the thoughts, every ratio is 1, and the loss is minus the mean advantage: exactly zero, while its
# gradient is not. A curve of this loss shows nothing.

# %%
examples = rlp.examples(material, cfg)
batch = pack(examples, sequences=len(examples), max_tokens=longest, row_tokens=longest)
on_policy = {**cfg, "max_tokens": cfg["max_thought_tokens"]}


def loss(params, settings):
    total, count, metrics = rlp.loss(params, batch, {}, Forward(model), settings)
    return total / count, metrics


(value, _), gradient = jax.jit(jax.value_and_grad(lambda params: loss(params, on_policy), has_aux=True))(prior.params)
norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient)))
print(f"on policy: loss {float(value):+.1e}, norm of its gradient {norm:.3f}")
assert abs(float(value)) < 1e-3 and norm > 0

# %% [markdown]
# For the clip to act, policy and sampler must differ: the trained arm's weights stand in for $\theta$ now, and the
# recorded log-probs of the thoughts for $\pi_{\theta_{\text{old}}}$. That is what `minibatches = 2` makes of the loss.
# Clipping only takes away: a token whose ratio has moved beyond the width *in the direction of its advantage* earns no
# more.

# %%
off_policy = {**on_policy, "minibatches": 2}
value, metrics = jax.jit(lambda params: loss(params, off_policy))(trained.params)

low, high = 1 - cfg["clip_low"], 1 + cfg["clip_high"]
new = log_probs(trained.params, [(t.prompt, t.tokens) for t in flat])
terms, clipped, tokens = [], 0, 0
for thought, new_u, A in zip(flat, new, advantage_NG.ravel(), strict=True):
    rho_u = np.exp(new_u - thought.logprobs)
    terms.append(np.minimum(rho_u * A, np.clip(rho_u, low, high) * A).mean())
    clipped += ((rho_u > high) if A > 0 else (rho_u < low)).sum()
    tokens += len(rho_u)
print("loss, function against NumPy:", agree([[float(value)]], [[-np.mean(terms)]], 1e-2 * max(1, abs(float(value)))))
shares = {name: float(total / count) for name, (total, count) in metrics.items() if name.startswith("clip")}
print(f"clipped tokens: {clipped / tokens:.3f} by hand, {sum(shares.values()):.3f} by the function {shares}")

# %% [markdown]
# ## (6) The slow copy
#
# After $k$ steps with constant $\theta$, $\phi_k = \tau^k \phi_0 + (1 - \tau^k)\,\theta$: the copy forgets with a time
# constant of $1/(1-\tau)$ steps, 1000 at the paper's $\tau = 0.999$. In a run as short as this one it stays near the
# prior.

# %%
tau, k = cfg["ema_decay"], 10
slow = prior.params
for _ in range(k):
    slow = rlp.ema(slow, trained.params, tau)
closed = jax.tree.map(lambda p, t: tau**k * np.asarray(p) + (1 - tau**k) * np.asarray(t), prior.params, trained.params)
leaves = [[np.ravel(leaf) for leaf in jax.tree.leaves(tree)] for tree in (slow, closed)]
print(f"{k} steps against the closed form:", agree(*leaves, 1e-5))

# %% [markdown]
# ## What training did
#
# Left, the gain of equation (3) along the run, against the wrapped baseline, in nats. Right, what the thoughts are
# worth to somebody who asks for answers: pass@1 on common, rare and very rare skills. One seed.

# %%
def draw(training: list[dict], curves: list[dict], titles: dict[str, str], name: str) -> None:
    """Gain against FLOPs and pass@1 by group; a PNG and a CSV of the bars."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    table = pandas.DataFrame(training)
    table = table[table["metric"] == "information_gain_nats"]
    for arm in ("rlp", "rlp_empty"):
        colour = f"C{list(titles).index(arm)}"
        for _, line in table[table["arm"] == arm].groupby("seed"):
            left.plot(line["flops"], line["value"].rolling(5, min_periods=1).mean(), color=colour, linewidth=1)
        left.plot([], [], color=colour, label=titles[arm])
    left.axhline(0, color="grey", linewidth=0.8)
    left.set(xlabel="FLOPs of the arm", ylabel="information gain, nats", title="one line a seed, mean of five steps")
    left.legend(frameon=False)
    bars = pandas.DataFrame(curves).query("k == 1 and group in ['C', 'R', 'V']")
    bars = bars.pivot(index="group", columns="arm", values="mean")[list(titles)].rename(columns=titles)
    bars.plot.bar(ax=right, rot=0, ylim=(0, 1.02), ylabel="pass@1", title="answers")
    right.legend(frameon=False)
    figure.savefig(OUT / f"{name}.png", dpi=150)
    bars.to_csv(OUT / f"{name}.csv")
    plt.show()


titles = {"base": "base", "rlp": "RLP", "cpt": "continued pretraining", "rlp_empty": "RLP, empty thoughts"}
draw(result.tables["training"], result.curves, titles, "training")

# %% [markdown]
# The table asks the same of held-out passages, with controls: the gain over the raw and the wrapped non-thought, what
# an empty wrapper brings, and what another problem's thought does. A gain that only exists over the *raw* baseline is
# the surprise of equation (2), not information.

# %%
gains = pandas.DataFrame(result.tables["rlp"]).query("arm == 'rlp'")[["metric", "value", "lo", "hi"]]
display(gains.style.format(precision=2).hide(axis="index"))

# %% [markdown]
# ## Three seeds, from shipped results
#
# The same figure from the full default experiment: three training seeds, counts of right samples shipped with the
# project, no training. Read it with the verdicts below it: RLP raises pass@1 from plain text here, and whether its gain
# over the wrapped non-thought is positive at all is another matter.

# %%
shipped = json.loads((HOME / "colabs/results/lab.json").read_text())
cells = {
    (arm, int(seed)): Cell(np.array(count_P))
    for arm, by_seed in shipped["counts"].items() for seed, count_P in by_seed.items()
}
full = EvalSet(shipped["n"], shipped["groups"], cells)
print(shipped["provenance"])
draw(shipped["training"], summary.curves(full, [1]), titles, "full_training")

# %%
rows = summary.verdict_rows(full, "base", "base_redraw", shipped["verdict_k"], shipped["margin"])
table = pandas.DataFrame(rows)
table = table[table["arm"].isin(titles) & table["group"].isin(["C", "R", "V"])]
table.to_csv(OUT / "full_verdicts.csv", index=False)
shown = table[["arm", "group", "delta_1", "delta_1_lo", "delta_1_hi", "verdict"]]
display(shown.style.format(precision=2).hide(axis="index"))
