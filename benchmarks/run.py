"""Our speed beside that of the peers: the same work on the same cores, in one call.

    python benchmarks/run.py --envs DIR [--install] [--sizes tiny,small] [--works sft,grpo_uneven,...]
                             [--peers torch,trl,tunix,...] [--threads 1] [--repeats 5] [--rounds 2] [--out DIR]

Peers run in environments of their own under --envs, which --install makes. Sides take turns, round by round, each on
the first --threads cores, so that a slow minute of the machine hits them all; a number is the median of repeats x
rounds. Writes OUT/table.md and OUT/results.json after every row, in place of the row that a call with the same settings
left there and beside the others; benchmarks/goals.py says which of the project's goals they reach. Ours is
scripts/bench.py, which also measures the matrix product and the memory that the limit stands for and prices the work by
the ledger.
"""

import argparse
import json
import math
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import table, work  # noqa: E402

ENVS = {"torch": "python3.11", "tunix": "python3.12"}  # environment -> the Python that its packages want
ROLLOUTS, UPDATES = ("rollout_even", "rollout_uneven"), ("sft", "sft_packed")
STEPS = ("grpo_even", "grpo_uneven")
PEERS = {  # peer -> environment, heading, works
    "torch": ("torch", "torch, transformers", {*UPDATES, *ROLLOUTS, "start_sft"}),
    "torch_compiled": ("torch", "torch.compile", {*UPDATES, "start_sft"}),
    "trl": ("torch", "TRL", {*UPDATES, *STEPS, "start_sft", "start_grpo"}),
    "trl_compiled": ("torch", "TRL, torch.compile", {*UPDATES, *STEPS, "start_sft", "start_grpo"}),
    "tunix": ("tunix", "Tunix", set(work.WORKS)),
    "tunix_1024": ("tunix", "Tunix, cache of 1024", set(ROLLOUTS)),
}


def died(code: int, log: pathlib.Path) -> dict:
    """The answer of a process that gave none: its exit code and the last that it said."""
    said = [line for line in log.read_text().splitlines() if line.strip()]
    return {"error": f"died with exit code {code}; {said[-1] if said else 'it said nothing'}"}


class Side:
    """A process of a peer's environment, started at its first job and after it was closed or died."""

    def __init__(self, command: list[str], log: pathlib.Path, timeout: float):
        self.command, self.log, self.timeout, self.process = command, log, timeout, None

    def measure(self, job: dict) -> dict:
        """The side's answer to a job; {"error": ...} if it died over it or took longer than the timeout."""
        if self.process is None:
            with open(self.log, "a") as log:
                self.process = subprocess.Popen(
                    self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
                )
        timer = threading.Timer(self.timeout, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if line:
            return json.loads(line)
        code = self.process.wait()
        self.close()
        return died(code, self.log)

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def how_shared(name: str, size: str, threads: int) -> tuple[int, str]:
    """(devices, what they share) by which our side is fastest on so many cores. A small model's products are too small
    to be shared out, so each core takes its part of the batch. A larger one decodes fastest where each core reads its
    part of every weight; training it alone is fastest where XLA shares out each product."""
    if size == "tiny":
        return threads, "data"
    if not name.startswith(("rollout", "grpo", "start_grpo")):
        return 1, "data"
    return math.gcd(threads, work.SIZES[size]["kv_heads"]), "tensor"


class Ours:
    """scripts/bench.py, one process a job. Its programs are kept for the next round; starts do not see them."""

    def __init__(self, log: pathlib.Path, timeout: float):
        self.log, self.timeout = log, timeout
        self.programs = tempfile.TemporaryDirectory()

    def measure(self, job: dict) -> dict:
        command = [sys.executable, str(ROOT / "scripts/bench.py"), "--json", f"--sizes={job['size']}"]
        devices, axis = how_shared(job["work"], job["size"], job["threads"])
        command += [f"--works={job['work']}", f"--repeats={job['repeats']}", f"--devices={devices}", f"--axis={axis}"]
        env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": self.programs.name}
        with open(self.log, "a") as log:
            try:
                out = subprocess.run(
                    command, stdout=subprocess.PIPE, stderr=log, text=True, env=env, timeout=self.timeout
                )
            except subprocess.TimeoutExpired:
                return {"error": f"took longer than {self.timeout:.0f} s"}
        if out.returncode:
            return died(out.returncode, self.log)
        head, row = map(json.loads, out.stdout.splitlines())
        return {**row, **head}

    def close(self) -> None:
        self.programs.cleanup()


def install(envs: pathlib.Path, names: set[str]) -> None:
    for name in sorted(names):
        python = shutil.which(ENVS[name])
        if python is None:
            raise SystemExit(f"run.py: {name} needs {ENVS[name]}, which is not on the PATH")
        target = envs / name
        requirements = ROOT / f"benchmarks/requirements-{name}.txt"
        subprocess.run([python, "-m", "venv", str(target)], check=True)
        subprocess.run([str(target / "bin/python"), "-m", "pip", "install", "-q", "-r", str(requirements)], check=True)


def measure(row: dict, name: str, side, job: dict) -> None:
    """One round of one side, into its row."""
    answer = side.measure(job)
    table.add(row, name, answer)
    said = answer.get("error") or " ".join(f"{s:.3f}" for s in answer["seconds"])
    print(f"{row['size']} {row['work']} {name}: {said}", file=sys.stderr, flush=True)


def write(out: pathlib.Path, rows: list[dict], about: str) -> None:
    peers = {name: heading for name, (_, heading, _) in PEERS.items() if any(name in row["sides"] for row in rows)}
    (out / "table.md").write_text(f"{about}\n\n{table.markdown(rows, peers)}")
    (out / "results.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1))


def kept(out: pathlib.Path, about: str) -> list[dict]:
    """Rows of earlier calls into the same folder. Raises SystemExit, one line, if they were measured in another way or
    cannot be read."""
    if not (out / "results.json").exists():
        return []
    try:
        earlier = json.loads((out / "results.json").read_text())
        settings, rows = earlier["about"], earlier["rows"]
    except (ValueError, TypeError, KeyError) as error:
        raise SystemExit(f"run.py: {out}/results.json has no rows ({error!r}); give another folder") from None
    if settings != about:
        raise SystemExit(f"run.py: --out {out} has rows of other settings ({settings}); give another folder")
    return rows


def with_row(rows: list[dict], new: dict) -> list[dict]:
    """The rows in the order of sizes and works, `new` in place of the one of its work."""
    sizes, works = list(work.SIZES), list(work.WORKS)
    place = lambda row: (sizes.index(row["size"]), works.index(row["work"]))  # noqa: E731
    return sorted([*(row for row in rows if place(row) != place(new)), new], key=place)


def chosen(given: str, known, flag: str) -> list[str]:
    """The names of a comma-separated flag, or one line about the first that is unknown."""
    names = [name for name in given.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"run.py: --{flag}: {unknown[0]!r} is not known; use some of {', '.join(known)}")
    return names


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=pathlib.Path, help="folder with the peers' environments")
    parser.add_argument("--install", action="store_true", help="make the environments first")
    parser.add_argument("--sizes", default=",".join(work.SIZES))
    parser.add_argument("--works", default=",".join(work.WORKS))
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="counted repeats of a round (a start: one)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds that one side may take over one round")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs/benchmarks")
    args = parser.parse_args(argv)
    sizes, works = chosen(args.sizes, work.SIZES, "sizes"), chosen(args.works, work.WORKS, "works")
    peers = chosen(args.peers, PEERS, "peers")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    if not 1 <= args.threads <= len(cores):
        raise SystemExit(f"run.py: --threads {args.threads}: {len(cores)} cores can be pinned (needs Linux)")
    if min(args.repeats, args.rounds) < 1:
        raise SystemExit("run.py: --repeats and --rounds count from 1")
    names = {PEERS[peer][0] for peer in peers}
    if names and args.envs is None:
        raise SystemExit("run.py: --envs DIR says where the peers' environments are; --peers= measures ours alone")
    if args.install:
        install(args.envs, names)
    for name in sorted(names):
        if not (args.envs / name / "bin/python").exists():
            raise SystemExit(f"run.py: no environment at {args.envs / name}; make it with --install")
    args.out.mkdir(parents=True, exist_ok=True)
    os.sched_setaffinity(0, cores[: args.threads])  # this process only waits; every side inherits the cores
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    about = (
        f"{platform.machine()}, {args.threads} of {os.cpu_count()} cores; median of {args.repeats} repeats x "
        f"{args.rounds} rounds after warm-up (starts: {args.rounds} fresh processes; ours again with its programs "
        "compiled: warm). In brackets: the peer's seconds over ours."
    )

    def command(env: str) -> list[str]:
        return [str(args.envs.absolute() / env / "bin/python"), "-m", f"benchmarks.peers.{env}_side"]

    ours = Ours(args.out / "ceiling.log", args.timeout)
    sides = {name: Side(command(name), args.out / f"{name}.log", args.timeout) for name in names}
    rows = kept(args.out, about)
    try:
        for size in sizes:
            for name in works:
                row = {"size": size, "work": name, "matrix_rates": [], "memory_rates": [], "sides": {}}
                job = {"work": name, "size": size, "threads": args.threads}
                job["repeats"] = 1 if name.startswith("start_") else args.repeats
                for _ in range(args.rounds):
                    measure(row, table.OURS, ours, job)
                    for peer in peers:
                        env, _, does = PEERS[peer]
                        if name not in does or "error" in row["sides"].get(peer, {}):
                            continue
                        side = sides[env]
                        side.close()  # a fresh process: with TRL in it, `generate` took up to twice as long
                        measure(row, peer, side, {**job, "peer": peer, "began": time.time()})
                rows = with_row(rows, row)
                write(args.out, rows, about)
    finally:
        for side in (ours, *sides.values()):
            side.close()
    print((args.out / "table.md").read_text())


if __name__ == "__main__":
    main()
