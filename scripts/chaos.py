"""Kill -9 at random moments, run again until it is finished, compare with the run that was never interrupted.

    python scripts/chaos.py [--kills 100] [--asks 10] [--seed 0] [--arms sft,distill,grpo,rlp] [--write]

A tiny experiment of all stages and regimes (SFT, distillation, GRPO, RLP) on the lab, with a checkpoint after every
step; --asks of the blows are SIGTERM, which must end in the code that says "saved". What must be equal, bit for bit:
parameters, ledgers and times (seconds aside), metrics, sampled records, gains. After each blow every metrics and
results file must parse. Processes are forks of this one, which imports everything and computes nothing: a kill costs
no start-up.
--write puts the table into docs/reliability.md. Exit code 1 if anything differs.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

AFTER_CPU_S = 1.6  # mean of an exponential: most within a stage, some only after several
LISTENING_AFTER_CPU_S = 1.0  # a process that is asked to stop before it listens is simply killed


def config(arms: list[str]):
    """Small, with every kind of stage that the arms need. An untrained model is never right: GRPO learns from its
    entropy bonus, distillation from unfiltered samples."""
    import ceiling

    small = dict(prompts_per_step=2, samples_per_prompt=2, pool=8, lr=1e-2)
    every = {
        "sft": ceiling.arm("sft", **small),
        "distill": ceiling.arm("distill", keep="all", **small),
        "grpo": ceiling.arm("grpo", entropy_bonus=0.1, **small),
        "rlp": ceiling.arm("rlp", max_thought_tokens=8, **small),
        "adapters": ceiling.arm("grpo", entropy_bonus=0.1, lora_rank=2, **small),
    }
    out = ceiling.defaults("lab", arms={name: every[name] for name in arms})
    out.seeds = (1,)
    out.train.mix = {"C": 0.5, "R": 0.5}
    out.task.update(evaluation_per_group=1, training_per_group=8, gate_problems=2, gate_accuracy=0.0)
    out.model.update(width=16, ffn=16, layers=1, heads=2, kv_heads=1, head_dim=8, tied=False, embed_std=1.0,
                     scan_layers=False)  # fmt: skip
    out.prior.update(steps=8, prompts_per_step=4, pool=1, mix={"C": 1.0})
    out.teacher.update(steps=6, prompts_per_step=4, pool=1, mix={"C": 1.0})
    out.budget.flops = 3e7
    out.eval.update(n=4, ks=(1, 2, 4), verdict_k=2, likelihood_samples=1, gain_samples=2)
    out.checkpoint.every_steps = 1
    out.report.html = False
    return out


def get_config(arms: str):
    """The same for the command: `--config scripts/chaos.py:sft,rlp`."""
    return config(arms.split(","))


def in_child(work, *, blow: signal.Signals | None = None, after_cpu_s: float = 0.0) -> int:
    """Run work() in a fork, send it `blow`, and return its exit code (-9 if it was killed). The moment is counted in
    processor seconds of the fork, so that a busy machine does not move it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = int(work() or 0)
        except BaseException as error:  # noqa: BLE001 - a fork must never return into the caller
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(code)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if blow and cpu_s(child) >= after_cpu_s:
            os.kill(child, blow)
            blow = None
        time.sleep(0.002)


def cpu_s(process: int) -> float:
    """Processor seconds of a process so far, from /proc."""
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(workdir: pathlib.Path, arms: list[str]) -> int:
    """The experiment in this process, and the exit code of the command. A few samples at a time, so that an evaluation
    has parts to lose."""
    import ceiling
    from ceiling.evals import sample
    from ceiling.train import signals

    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - of a fork: log.txt keeps the lines
    sample.CHUNK_TOKENS = 600
    try:
        ceiling.run(config(arms), workdir)
    except signals.Stopped:
        return signals.EXIT_CODE
    return 0


def struck(workdir: pathlib.Path) -> str:
    """Where a kill hit, from what it left: "arm grpo, during a save"."""
    log = workdir / "log.txt"
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    events = [(line[2], line[3]) for line in lines if len(line) > 3 and line[2] in ("start", "done", "report:")]
    if not events or events[-1][0] != "start":
        return "between stages"
    name = events[-1][1].split("/")[1]
    steps = sorted(workdir.glob(f"stages/*/{name}/*.tmp/unfinished/checkpoints/*"))
    if any(not (step / "manifest.json").exists() for step in steps):
        return f"{name}, during a save"
    return f"{name}, after a save" if steps else name


def torn(workdir: pathlib.Path) -> list[str]:
    """Files that do not parse, or whose steps are not 0, 1, 2, ...: there must be none at any moment."""
    bad = []
    for path in [*workdir.glob("stages/*/*/*/metrics.jsonl"), *workdir.glob("stages/*/*/*/*.json"),
                 *workdir.glob("results.json")]:  # fmt: skip
        if path.parent.suffix == ".tmp":
            continue  # nobody reads those
        try:
            rows = [json.loads(line) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else []
            if path.suffix == ".json":
                json.loads(path.read_text())
        except ValueError:
            bad.append(str(path))
        if [row["step"] for row in rows] != list(range(len(rows))):
            bad.append(f"{path}: steps skipped or repeated")
    return bad


def outcome(workdir: pathlib.Path) -> dict[str, str]:
    """{what: canonical text or hash} of everything that a run must reproduce, to compare between runs."""
    import hashlib

    import numpy as np
    import orbax.checkpoint as ocp
    from flax import traverse_util

    from ceiling.evals.records import Samples

    out = {}
    for stage in sorted(workdir.glob("stages/*/*/*")):
        name = stage.parent.name
        for path in sorted(stage.iterdir()):
            if path.name == "params":
                with ocp.StandardCheckpointer() as checkpointer:
                    tree = traverse_util.flatten_dict(checkpointer.restore(path), sep="/")
                bits = {key: hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest() for key, leaf in tree.items()}
                out[f"{name} parameters"] = json.dumps(bits, sort_keys=True)
            elif path.name == "ledger.json":
                ledger = json.loads(path.read_text())
                out[f"{name} prompts seen"] = json.dumps(ledger.pop("problems"))
                for row in ledger["entries"]:
                    row.pop("seconds")
                out[f"{name} ledger"] = json.dumps(ledger)
            elif path.name == "times.jsonl":
                steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
                out[f"{name} timed steps"] = json.dumps(steps)
            elif path.suffix == ".parquet":
                samples = Samples.load(path)
                out[f"{name} counts"] = json.dumps(samples.counts.tolist())
                out[f"{name} records"] = hashlib.sha256(repr(samples.table.to_pydict()).encode()).hexdigest()
            elif path.name != "stage.json":
                out[f"{name} {path.name}"] = path.read_text() if path.is_file() else "a folder"
    return out


def compare(reference: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Names of what differs between two finished runs. Runs in a fork: restoring parameters starts jax."""
    report = other / "compared.json"

    def work() -> None:
        one, two = outcome(reference), outcome(other)
        differing = sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))
        report.write_text(json.dumps({"differing": differing, "compared": sorted(one)}))

    if in_child(work) != 0:
        return ["the comparison failed"]
    return json.loads(report.read_text())["differing"]


def chaos(
    workdir: pathlib.Path, kills: int, asks: int, seed: int, arms: list[str]
) -> tuple[collections.Counter, list[str], collections.Counter]:
    """(kills by place, what was wrong, facts) of so many blows; runs follow each other until all have been dealt."""
    from ceiling.train.signals import EXIT_CODE

    draw = random.Random(seed)
    reference, live = workdir / "reference", workdir / "live"
    hits, wrong, facts = collections.Counter(), [], collections.Counter()
    if in_child(lambda: run(reference, arms)) != 0:  # compiles what all the others take from the cache
        return hits, ["the uninterrupted run failed"], facts
    blows = [signal.SIGKILL] * kills + [signal.SIGTERM] * asks
    draw.shuffle(blows)
    while blows or live.exists():
        blow, after = blows[-1] if blows else None, draw.expovariate(1 / AFTER_CPU_S)
        after += LISTENING_AFTER_CPU_S * (blow == signal.SIGTERM)
        code = in_child(lambda: run(live, arms), blow=blow, after_cpu_s=after)
        if code in (-signal.SIGKILL, EXIT_CODE):
            blows.pop()
            facts["asks"] += code == EXIT_CODE
            hits[struck(live)] += code != EXIT_CODE
            wrong += torn(live)
            print(f"{'kill' if code < 0 else 'asked'}: {struck(live)}", flush=True)
        elif code != 0:
            wrong.append(f"a rerun ended with code {code}")
            break
        else:
            facts["runs"] += 1
            facts["continued"] += (live / "log.txt").read_text().count("continues from step")
            differing = compare(reference, live) + torn(live)
            wrong += [f"run {facts['runs']}: {name}" for name in differing]
            wrong += [f"left behind: {path}" for path in live.rglob("unfinished")]
            print(f"run {facts['runs']} finished after {hits.total()} kills: {differing or 'equal'}", flush=True)
            shutil.rmtree(live)
    return hits, wrong, facts


def by_place(hits: collections.Counter) -> list[list[str]]:
    """Rows of the table: a stage, the kills in it, those during a save and those between two."""
    places: dict[str, collections.Counter] = {}
    for place, count in hits.items():
        name, _, moment = place.partition(", ")
        places.setdefault(name, collections.Counter())[moment] += count
    return [[name, *(f"{count}" for count in (m.total(), m["during a save"], m["after a save"]))]
            for name, m in sorted(places.items())]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--asks", type=int, default=10, help="SIGTERMs beside the kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", default="sft,distill,grpo,rlp")
    parser.add_argument("--workdir", type=pathlib.Path, help="kept; without it a temporary directory is used")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        workdir = arguments.workdir or pathlib.Path(temporary)
        workdir.mkdir(parents=True, exist_ok=True)
        os.environ |= {
            "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str((workdir / "xla_cache").absolute()),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
        }  # fmt: skip
        import ceiling.experiment  # noqa: F401 - imported once, for every fork
        import ceiling.stages  # noqa: F401

        arms = arguments.arms.split(",")
        hits, wrong, facts = chaos(workdir, arguments.kills, arguments.asks, arguments.seed, arms)
    import tables  # beside this file, which tests load without its folder

    verdict = "every one bit-equal to the uninterrupted run" if not wrong else f"WRONG: {'; '.join(wrong)}"
    text = (
        f"{hits.total()} kills and {facts['asks']} SIGTERMs (seed {arguments.seed}) in {facts['runs']} runs, "
        f"{facts['continued']} times from a checkpoint; {verdict}.\n\n"
    ) + tables.markdown(["killed in", "kills", "of these during a save", "between two saves"], by_place(hits))
    print(text)
    if arguments.write:
        tables.write(tables.RELIABILITY, "scripts/chaos.py", text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
