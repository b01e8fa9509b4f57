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
# # Your own model on one GPU
#
# A checkpoint directory in the Hugging Face layout (Qwen 2.5 and 3, Llama 3, Gemma 3, OLMo 2; `config.json`,
# `*.safetensors`, `tokenizer.json`) goes through the whole instrument: what fits, a run, the base against what was
# trained, and a trained model that other tools open.
#
# Without a checkpoint the notebook makes a random one with a tokenizer of its own: every cell works, nothing is
# downloaded, and nothing is learned. With one, set two variables below. No login is needed for a directory that is
# already here.

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
import runpy

import jax
import matplotlib.pyplot as plt
import pandas
from IPython.display import display

import ceiling
from ceiling import experiment, plan, schema
from ceiling.devices import DEVICES
from ceiling.export import export
from ceiling.model import hf, make_mesh
from ceiling.model.config import ModelConfig, parameter_count
from ceiling.model.families import PRESETS
from ceiling.stages import load_policy
from ceiling.train import manifest

MODEL = ""  # a checkpoint directory of yours; empty: a random one is made
QUESTIONS = ""  # a JSONL with the fields question and answer ("... #### 42"); empty: generated sums
DRIVE = ""  # a folder that outlives the session, e.g. "/content/drive/MyDrive/ceiling"; empty: a local stand-in

WORKDIR = pathlib.Path("runs/own_tiny" if TINY else "runs/own")
OUT = WORKDIR / "figures"
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## What fits on one device
#
# Full training with AdamW in float32 holds four numbers of four bytes for every parameter: the weight, its gradient and
# two moments. 16 bytes, before any activation or cache. An adapter (LoRA) holds the frozen weight (4 bytes) and 16 for
# each of its own few parameters. The weights stay float32 even where the arithmetic is bfloat16: at the learning rates
# of reward training an update of a bfloat16 weight rounds to nothing.
#
# A 0.5B model fits a T4 barely, with little left for activations and cache; 1.5B does not, and needs LoRA.

# %%
RANK = 16
usable = {name: plan.USABLE * DEVICES[name].memory for name in ("t4", "l4", "a100-40g")}
rows = []
for name, fields in PRESETS.items():
    base = ModelConfig(**fields)
    adapted = ModelConfig(**fields, lora_rank=RANK)
    adapters = parameter_count(adapted) - parameter_count(base)
    sizes = {"AdamW": 16 * parameter_count(base), f"LoRA, rank {RANK}": 4 * parameter_count(base) + 16 * adapters}
    row = {"model": name, "parameters": f"{parameter_count(base) / 1e9:.2f} B"}
    for how, size in sizes.items():
        fitting = [device.upper() for device, room in usable.items() if size < room]
        row |= {f"{how}, GB": round(size / 1e9, 1), f"{how} fits": ", ".join(fitting) or "none of them"}
    rows.append(row)
memory = pandas.DataFrame(rows)
memory.to_csv(OUT / "memory.csv", index=False)
display(memory.style.format(precision=1).hide(axis="index"))

# %% [markdown]
# ## The checkpoint
#
# `scripts/make_model.py` writes a directory as a download would: a random Qwen 3 of two layers, a byte-level tokenizer,
# a chat template, and questions whose answers are sums.

# %%
model = MODEL or "runs/tiny_model"
if not MODEL and not pathlib.Path(model, "config.json").exists():
    subprocess.run([sys.executable, HOME / "scripts/make_model.py", model], check=True)
questions = QUESTIONS or "runs/tiny_model/questions.jsonl"
base_config, base_params = hf.load(model)
print(f"{model}: {parameter_count(base_config) / 1e6:.2f} M parameters, {base_config.layers} layers, "
      f"vocabulary of {base_config.vocab_size}")

# %% [markdown]
# ## The configuration
#
# `configs/real.py:tiny` has every regime on a few questions. For a model of yours the sizes below are a first hour on
# one GPU rather than a study: LoRA in every arm, 64 questions, 32 samples of each, one training seed. For published
# settings and verdicts (three seeds, 256 samples) read `configs/real.py`.

# %%
config = runpy.run_path(str(HOME / "configs/real.py"))["get_config"]("tiny")
config.model.path, config.data.path = model, questions
config.model.compute_dtype = doctor.compute_dtype()
if MODEL:
    del config.arms["distill"]  # its teacher would be the base, continued on demonstrations: name one to keep it
    config.task.update(evaluation_problems=64, max_prompt_tokens=256, max_response_tokens=256)
    config.model.update(remat="block", head_chunk_tokens=2048)
    config.budget.flops = 100 * 6 * parameter_count(base_config) * 64 * 400  # about a hundred updates of GRPO
    config.eval.update(n=32, ks=(1, 2, 4, 8, 16), verdict_k=16, slots=64)
    config.arms.rlp.max_thought_tokens = 192
    for arm in config.arms.values():
        arm.update(lora_rank=RANK, lr=1e-4, prompts_per_step=8, samples_per_prompt=8, microbatches=16, slots=64)
if TINY:
    for name in set(config.arms) - {"grpo", "sft"}:
        del config.arms[name]
    config.budget.flops = 2e8
    config.report.html = False
settings = schema.validate(config)

# %% [markdown]
# ## The plan, first
#
# What `python -m ceiling --config ... --plan` prints: parameters, peak memory by stage and what takes most of it, FLOPs
# of an update, how many updates the budget buys, hours. Nothing is loaded and nothing runs. If a stage does not fit,
# the plan says which key to turn. Name the device that it should plan for.

# %%
config.plan.device = "cpu" if jax.default_backend() == "cpu" else "t4"  # or l4, a100-40g, h100, v5e, ...
print(plan.main_plan(config))

# %% [markdown]
# ## The run
#
# This cell is also **the resume cell**. Sessions die: run the cells from the top again, and this one continues from its
# last checkpoint and repeats no finished stage. The numbers are those of a run that was never interrupted.

# %%
result = ceiling.run(config, WORKDIR)

# %% [markdown]
# ## Base and trained
#
# Differences are paired: the same questions, sampled from the base and from the arm. With one training seed the verdict
# is *not resolved* whatever the numbers say; set `config.seeds = (1, 2, 3)` for one.

# %%
curves = result.curves.to_pandas()
curves.to_csv(OUT / "pass_at_k.csv", index=False)
figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
for arm in ("base", *config.arms):
    line = curves[curves["arm"] == arm].sort_values("k")
    axes.errorbar(line["k"], line["mean"], [line["mean"] - line["lo"], line["hi"] - line["mean"]], label=arm, capsize=2)
axes.set_xscale("log", base=2)
axes.set(xlabel="k", ylabel="pass@k", ylim=(-0.02, 1.02), title="base and trained")
axes.legend(frameon=False)
figure.savefig(OUT / "pass_at_k.png", dpi=150)
plt.show()

verdicts = result.verdicts.to_pandas()
display(verdicts[["arm", "group", "verdict", "reason"]].style.hide(axis="index"))
print(f"the whole report: {result.report}")

# %% [markdown]
# ## Take it elsewhere
#
# `export` writes a stage's policy in the Hugging Face layout, adapters multiplied out, with the tokenizer of the base:
# transformers and vLLM open it, and so does `config.model.path` of another run. It overwrites nothing, so it is made
# once.

# %%
arm = "grpo"
stages = {stage.name: stage.directory(WORKDIR) for stage in experiment.plan(settings)}
stage = stages[f"seed{config.seeds[0]}/{arm}"]
exported = WORKDIR / f"exported-{arm}-{stage.name}"
if not exported.exists():
    export(stage, exported)
print(", ".join(sorted(path.name for path in exported.iterdir())))

# %% [markdown]
# Is it the same model? Base, stage and export are sampled with the same noise. Stage and export should give the same
# responses (with adapters all but a few, as multiplying them out rounds); the base others, as far as training moved it.

# %%
task, architecture = schema.load_task(settings), schema.architecture(settings["model"], 0)
policies = {
    "base": ceiling.Policy(hf.load(model)[1], architecture, ()),
    "stage": load_policy(stage, architecture, make_mesh()),
    "export": ceiling.Policy(hf.load(exported)[1], architecture, ()),
}
samples = {
    name: ceiling.evaluate(policy.replace(stop_ids=task.tokenizer.stop_ids), task, n=config.eval.n, seed=0)
    for name, policy in policies.items()
}
for name in ("stage", "base"):
    alike = (samples[name].responses == samples["export"].responses).mean()
    print(f"{name} and export: {alike:.1%} of {samples[name].responses.size} responses are the same")
print("right of", config.eval.n, {name: drawn.counts[:, 1].tolist() for name, drawn in samples.items()})

# %% [markdown]
# ## Keep it: Drive, verified
#
# A Drive mount is no disk: renames are not atomic there, and a copy can be cut short without an error. So a run writes
# to the local disk, and what is finished is copied, as few large files, with a manifest (the SHA-256 of each) that is
# read at the far end and names the first file that is not what was written.
#
# For Drive, mount it (`from google.colab import drive; drive.mount("/content/drive")`), set `DRIVE` above, and run this
# cell now and then. Without it a local folder stands in.

# %%
bundle, far = WORKDIR / "bundle", pathlib.Path(DRIVE or "runs/stand_in_for_drive") / WORKDIR.name
for folder in (bundle, far):
    shutil.rmtree(folder, ignore_errors=True)
shutil.copytree(exported, bundle / exported.name)
shutil.make_archive(str(bundle / "stages"), "tar", WORKDIR / "stages")
manifest.write(bundle, {"run": WORKDIR.name, "arm": arm})
shutil.copytree(bundle, far)
print("verified:", manifest.read(far))

# %% [markdown]
# What damage looks like: one bit of the copied weights is flipped, and flipped back.

# %%
weights = far / exported.name / "model.safetensors"
content = weights.read_bytes()
weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
try:
    manifest.read(far)
except manifest.Damaged as error:
    print("refused:", error)
weights.write_bytes(content)
print("verified:", manifest.read(far))

# %% [markdown]
# After a disconnect the local disk is empty. Verify the copy, unpack the stages into a run directory, and call the
# resume cell: here into another directory, where the same call finds every stage done and gives the same tables.

# %%
restored = WORKDIR.with_name(f"{WORKDIR.name}_restored")
shutil.rmtree(restored, ignore_errors=True)
manifest.read(far)
shutil.unpack_archive(far / "stages.tar", restored / "stages")
again = ceiling.run(config, restored)
print("the same curves:", again.curves == result.curves)

# %% [markdown]
# ## Where to go
#
# - `config.seeds = (1, 2, 3)` and the run cell again: verdicts.
# - `config.arms.grpo.advantage = "group_mean"`, `config.arms.sft.lr = 3e-4`: only that arm is trained again.
# - `config.task.template`, or `chat=True` for the checkpoint's own template; the hashes of both are in every record.
# - Several devices: `config.mesh`. A cluster: `docs/hosts.md`.
