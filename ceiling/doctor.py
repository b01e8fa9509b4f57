"""Is this machine ready? python -m ceiling.doctor [--workdir DIR]; from Python, `report(workdir)`.

One line for everything that was looked at, "ok" or "FAILED what: what to do": versions, devices, memory, disk, the
folder of compiled programs, optional parts; then a self-check of about 20 seconds on a tiny model of the generated
task: its loss falls, what the sampler says of its tokens is what a pass over the text says, a right and a wrong answer
are told apart, a checkpoint comes back bit for bit. Exit code 1 if anything failed, 0 otherwise. Nothing is kept.
"""

import dataclasses
import importlib.metadata as metadata
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

from absl import flags

from ceiling import cli
from ceiling.version import __version__

GIB = 1 << 30
LEAST_MEMORY, LEAST_DISK = 2 * GIB, 2 * GIB  # rules of thumb: two small workers; checkpoints and records of a run
STEPS, ROWS, LR = 30, 32, 6e-3
FALL = 0.9  # the last losses over the first, at most; 0.69 on the CPU that this was written on
TOLERANCE = 1e-5  # nats, float32
PROVIDES = {"jax[cuda13]": "jax-cuda13-plugin", "jax[tpu]": "libtpu"}  # a requirement's extra -> what it brings
PCI = pathlib.Path("/sys/bus/pci/devices")
GOOGLE = "0x1ae0"  # a PCI vendor; of its devices, those that are TPUs
TPUS = {"0x0027": "v2 or v3", "0x005e": "v4", "0x0062": "v5p", "0x0063": "v5e", "0x006f": "v6e", "0x0076": "7x"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """what was looked at, and what came of it; do: the remedy, empty where it is ok."""

    ok: bool
    what: str
    do: str = ""

    def __str__(self):
        return f"{'ok' if self.ok else 'FAILED':8s}{self.what}" + (f": {self.do}" if self.do else "")


def report(workdir: str | pathlib.Path = ".", heard: Callable[[Finding], None] = lambda finding: None) -> list[Finding]:
    """Everything that was found, in order. heard gets each finding as it is made. workdir: where runs are to be
    written; it need not exist, and what the self-check writes beside it is removed. Raises nothing: a check that raises
    is a finding."""
    found, home = [], _existing(pathlib.Path(workdir))

    def add(finding: Finding) -> None:
        found.append(finding)
        heard(finding)

    for name, check in CHECKS.items():
        try:
            for finding in check(home):
                add(finding)
        except Exception as error:  # noqa: BLE001 - whatever is broken here is what was asked for
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            add(Finding(False, f"{name} ({reason})", REMEDIES[name]))
    return found


# --- what is installed, and where -------------------------------------------------------------------------


def versions(home: pathlib.Path) -> Iterator[Finding]:
    """Every requirement, against the least version that this project names."""
    good = [f"python {platform.python_version()}", f"ceiling {__version__}"]
    for name, least, _ in [("jaxlib", "", "")] + [row for row in _requirements() if not row[2]]:
        have = _version(name)
        if have is None or _order(have) < _order(least):
            state = "is missing" if have is None else f"{have} is too old"
            yield Finding(False, f"{name} {state}", f'pip install "{name}{least and ">=" + least}"')
        else:
            good.append(f"{name} {have}")
    yield Finding(True, f"versions {', '.join(good)}")


def extras(home: pathlib.Path) -> Iterator[Finding]:
    """Optional parts, there or not; one that is there but too old has failed."""
    asked = [row for row in _requirements() if row[2] not in ("", "dev")]
    for extra in dict.fromkeys(extra for *_, extra in asked):
        there, old, missing, install = [], [], [], f'pip install "ceiling[{extra}]"'
        for name, least in [(name, least) for name, least, of in asked if of == extra]:
            have = _version(PROVIDES.get(name, name))
            (there if have else missing).append(f"{name} {have}" if have else name)
            if have and name not in PROVIDES and _order(have) < _order(least):
                old.append(f"{name} {have}")
        if old:
            yield Finding(False, f"extra {extra}: {', '.join(old)} is too old", install)
        elif there:
            lacks = f"; not installed: {', '.join(missing)} ({install})" if missing else ""
            yield Finding(True, f"extra {extra}: {', '.join(there)}{lacks}")
        else:
            yield Finding(True, f"extra {extra}: not installed ({install})")


def devices(home: pathlib.Path) -> Iterator[Finding]:
    """What jax computes on, and in which dtype best; an accelerator that it does not see is a failure."""
    import jax

    seen, backend, asked = jax.devices(), jax.default_backend(), os.environ.get("JAX_PLATFORMS", "")
    kinds = ", ".join(sorted({d.device_kind for d in seen}))
    limit = (seen[0].memory_stats() or {}).get("bytes_limit")
    memory = f", {limit / GIB:.1f} GiB of memory for jax" if limit else ""
    yield Finding(True, f"backend {backend}, {len(seen)} device(s): {kinds}{memory}; {os.cpu_count()} CPU cores; "
                  f"compute dtype {compute_dtype(seen[0])}")  # fmt: skip
    remedies = {
        "GPU": 'pip install "ceiling[gpu]" (jax for CUDA 13), and see that `nvidia-smi` works for this user',
        "TPU": 'pip install "ceiling[tpu]" (jax for TPUs), and see that no other process holds the chip',
    }
    for name, here in (("GPU", gpu()), ("TPU", tpu())) if backend == "cpu" else ():
        if here:
            do = f"unset JAX_PLATFORMS (it is {asked!r})" if "cpu" in asked else remedies[name]
            yield Finding(False, f"A {name} IS HERE ({here}) BUT JAX COMPUTES ON THE CPU", do)


def compute_dtype(device=None) -> str:
    """What `config.model.compute_dtype` should be on a device of jax's (the first, if None): "bfloat16" where its
    matrix units take it, "float32" on a CPU and on NVIDIA GPUs below compute capability 8 (a T4 has 7.5)."""
    import jax

    device = device or jax.devices()[0]
    old = re.fullmatch(r"[1-7]\.\d", str(getattr(device, "compute_capability", "")))
    return "float32" if device.platform == "cpu" or old else "bfloat16"


def gpu() -> str:
    """The first GPU of this machine as its driver names it, or its device file; empty: none."""
    if shutil.which("nvidia-smi"):
        try:
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            listed = None
        if listed and listed.returncode == 0 and listed.stdout.strip():
            return listed.stdout.splitlines()[0].split(" (UUID")[0]
    return next((str(path) for path in sorted(pathlib.Path("/dev").glob("nvidia[0-9]*"))), "")


def tpu() -> str:
    """The first TPU of this machine, as it stands on the PCI bus; empty: none."""
    for vendor in sorted(PCI.glob("*/vendor")):
        chip = TPUS.get(_text(vendor.parent / "device").strip(), "")
        if chip and _text(vendor).strip() == GOOGLE:
            return f"TPU {chip} at {vendor.parent.name}"
    return ""


def room(home: pathlib.Path) -> Iterator[Finding]:
    """Memory of the machine and disk of the run directory."""
    memory = free_memory()
    what = f"memory {memory / GIB:.1f} GiB free"
    yield Finding(memory >= LEAST_MEMORY, what,
                  "" if memory >= LEAST_MEMORY else "end other programs, or set --config.workers=1")  # fmt: skip
    disk = shutil.disk_usage(home).free
    what = f"disk {disk / GIB:.1f} GiB free at {home}"
    yield Finding(disk >= LEAST_DISK, what,
                  "" if disk >= LEAST_DISK else "free some, or name another --workdir")  # fmt: skip
    if not os.access(home, os.W_OK | os.X_OK):
        yield Finding(False, f"{home} cannot be written", "name another --workdir")


def free_memory() -> float:
    """Bytes that this process may still take: of the machine, and of its control group where that has a limit."""
    known = re.search(r"MemAvailable:\s+(\d+) kB", _text("/proc/meminfo"))
    pages = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
    free = int(known[1]) * 1024 if known else float(os.sysconf(pages[0]) * os.sysconf(pages[1]))
    group = [_text(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current")]
    return min(free, int(group[0]) - int(group[1])) if all(map(str.isdecimal, group)) else free


def programs(home: pathlib.Path) -> Iterator[Finding]:
    """The folder where compiled programs are kept for later processes."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not folder:
        why = "this process has none; commands of the project keep one" if folder is None else "kept nowhere, as set"
        yield Finding(True, f"compiled programs: {why}")
        return
    path = pathlib.Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
        yield Finding(True, f"compiled programs in {path}")
    except OSError as error:
        yield Finding(False, f"compiled programs cannot be kept in {path} ({error.strerror})",
                      "set JAX_COMPILATION_CACHE_DIR to a folder that you can write, or to nothing")  # fmt: skip


# --- does it compute --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Specimen:
    """What the self-check works on: the task, a trainer whose steps are done, its losses in nats."""

    task: object
    trainer: object
    losses: list[float]


def self_check(home: pathlib.Path) -> Iterator[Finding]:
    """A tiny model, trained and looked at. Products in full float32: an accelerator's default is coarser."""
    import jax

    with jax.default_matmul_precision("highest"):
        specimen = trained()
        yield learns(specimen)
        yield samples_as_it_scores(specimen)
        yield tells_right_from_wrong(specimen)
        with tempfile.TemporaryDirectory(dir=home, prefix=".doctor-") as folder:
            yield comes_back(specimen, pathlib.Path(folder))


def trained() -> Specimen:
    """A model of one layer, taught for STEPS steps on the generated prior's corpus."""
    import jax

    from ceiling import schema
    from ceiling.claims.lab import SCALES, experiment
    from ceiling.model.config import init
    from ceiling.model.policy import Policy
    from ceiling.model.sharding import make_mesh, place
    from ceiling.regimes.base import load
    from ceiling.train.loop import Budget, Trainer

    config = experiment(SCALES["tiny"], {})
    config.model.update(layers=1, width=32, ffn=64)
    config.prior.update(steps=STEPS, prompts_per_step=ROWS, lr=LR)
    config = schema.validate(config)
    task, mesh = schema.load_task(config), make_mesh()
    model = schema.architecture(config["model"], task.tokenizer.vocab_size)
    start = Policy(place(init(model, jax.random.key(0)), model, mesh), model, task.tokenizer.stop_ids)
    documents = task.corpus("prior", 0, STEPS * ROWS)
    trainer = Trainer(load("sft"), config["prior"], start, task, models={}, seed=0, budget=Budget(steps=STEPS),
                      mesh=mesh, corpus=lambda at, count: documents[at : at + count])  # fmt: skip
    return Specimen(task, trainer, [row["loss"] for row in trainer.run(lambda row: None).curve])


def learns(specimen: Specimen) -> Finding:
    """The loss of the last steps is clearly below that of the first."""
    first, last = (sum(part) / 5 for part in (specimen.losses[:5], specimen.losses[-5:]))
    ok = last <= FALL * first  # false for nan
    what = f"self-check, training: loss {first:.3f} to {last:.3f} nats in {len(specimen.losses)} steps"
    return Finding(ok, what, "" if ok else f"it should fall below {FALL:g} of the first; {_REINSTALL}")


def samples_as_it_scores(specimen: Specimen) -> Finding:
    """Log-probs of drawn tokens, one at a time out of the cache, against one pass over the whole text."""
    import numpy as np

    from ceiling.data.packing import Example
    from ceiling.model.policy import Policy
    from ceiling.rollout import generate
    from ceiling.rollout.scoring import score

    task, trainer = specimen.task, specimen.trainer
    policy = Policy(trainer.state.params, trainer.model_config, task.tokenizer.stop_ids)
    prompts = [task.tokenizer.encode(p.prompt) for p in task.evaluation()[:4]]
    out = generate(policy, prompts, n=2, max_new_tokens=task.max_response_tokens, temperature=1.0, top_p=1.0, seed=0)
    drawn = [(i, j) for i in range(len(prompts)) for j in range(2)]
    texts = [np.concatenate([prompts[i], out.response(i, j)]).astype(np.int32) for i, j in drawn]
    masks = [(np.arange(len(text)) >= len(prompts[i])).astype(np.float32) for text, (i, _) in zip(texts, drawn,
             strict=True)]  # fmt: skip
    scored, _ = score(policy.params, policy.config, [Example(*pair) for pair in zip(texts, masks, strict=True)],
                      max_tokens=max(map(len, texts)))  # fmt: skip
    worst = max(float(np.abs(out.logprobs[i, j, : len(s)] - s).max()) for (i, j), s in zip(drawn, scored, strict=True))
    ok = worst <= TOLERANCE
    what = f"self-check, sampling: log-probs of {sum(map(len, scored))} drawn tokens within {worst:.1e} of a pass"
    return Finding(ok, what, "" if ok else f"{TOLERANCE:g} is allowed; {_REINSTALL}")


def tells_right_from_wrong(specimen: Specimen) -> Finding:
    """A demonstration is right for its problem, and wrong for one with another answer."""
    import numpy as np

    from ceiling.tasks.base import Outcome, Verifier

    task, verify = specimen.task, Verifier(specimen.task)
    shown = [(p, task.demonstration(p, np.random.default_rng(0))) for p in task.evaluation()]
    problem, response = next(pair for pair in shown if pair[1] is not None)
    other = next(p for p, _ in shown if p.answer != problem.answer)
    right, wrong = verify(problem, response).outcome, verify(other, response).outcome
    ok = right is Outcome.RIGHT and wrong is Outcome.WRONG
    what = f"self-check, verdicts: a right answer is {right.name}, another problem's is {wrong.name}"
    return Finding(ok, what, "" if ok else f"they should be RIGHT and WRONG; {_REINSTALL}")


def comes_back(specimen: Specimen, folder: pathlib.Path) -> Finding:
    """The train state, saved and restored as a run that was killed does it."""
    import jax
    import numpy as np

    from ceiling.train.checkpoint import Checkpoints

    before = jax.tree.map(np.array, specimen.trainer.state)
    with Checkpoints(folder / "checkpoints", "doctor", log=lambda line: None) as checkpoints:
        checkpoints.save(STEPS, specimen.trainer.state, {})
        after, _ = checkpoints.restore(jax.tree.map(lambda x: x.copy(), specimen.trainer.state))
    pairs = list(zip(*map(jax.tree.leaves, (before, after)), strict=True))
    odd = sum(a.tobytes() != np.asarray(b).tobytes() for a, b in pairs)
    what = f"self-check, checkpoint in {folder.parent}: {len(pairs) - odd} of {len(pairs)} arrays come back bit for bit"
    return Finding(not odd, what, "name a --workdir on another disk" if odd else "")


# --- helpers ----------------------------------------------------------------------------------------------

_REINSTALL = "jax and jaxlib do not fit each other or this machine: make a fresh environment (make quickstart)"
CHECKS = {"versions": versions, "extras": extras, "devices": devices, "room": room, "compiled programs": programs,
          "self-check": self_check}  # fmt: skip
REMEDIES = {
    "versions": "install the project: pip install -e .",
    "extras": "install the project: pip install -e .",
    "devices": "jax does not start: see that jaxlib, its plugin and the driver fit each other",
    "room": "name another --workdir",
    "compiled programs": "set JAX_COMPILATION_CACHE_DIR to a folder that you can write, or to nothing",
    "self-check": _REINSTALL,
}


def _existing(path: pathlib.Path) -> pathlib.Path:
    """The folder itself, or the nearest one above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _requirements() -> list[tuple[str, str, str]]:
    """(name, least version, extra or "") of everything that pyproject.toml asks for, as it was installed."""
    pattern = re.compile(r"([\w.\[\]-]+?)\s*>=\s*([\d.]+)(?:\s*;\s*extra == [\"'](\w+)[\"'])?")
    return [(m[1], m[2], m[3] or "") for m in map(pattern.fullmatch, metadata.requires("ceiling") or ()) if m]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _order(version: str) -> tuple[int, ...]:
    """A version's numbers, for comparisons: "0.10.2.dev1" -> (0, 10, 2)."""
    return tuple(map(int, re.match(r"[\d.]*", version)[0].strip(".").split("."))) if version else ()


def _text(path: str | pathlib.Path) -> str:
    """A file of the system's, empty where it has none."""
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""


def main() -> None:
    found = report(flags.FLAGS.workdir, lambda finding: print(finding, flush=True))
    sys.exit(0 if all(finding.ok for finding in found) else 1)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", ".", "Where runs are to be written")
    cli.start(main, [])
