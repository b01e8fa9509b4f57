"""Every regime in two processes against the same run in one: parameters, curves, ledgers, samples, bit by bit.

    python scripts/host_equality.py [--write]      # prints the tables; --write puts them into docs/reliability.md

The run is that of scripts/chaos.py, with an arm on adapters beside it, on two CPU devices: those of one process, and
one each of two processes that jax.distributed joins over localhost. Once the rows are divided over the two, once the
weights too. Seconds aside, every number that a run leaves is compared. Exit status 1 where one differs.
"""

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
ARMS = ("sft", "distill", "grpo", "adapters", "rlp")
# Rows of the table, and the stages that they are about.
STAGES = {"prior": ("prior", "base.evaluate", "base_redraw.evaluate"), "teacher": ("teacher",),
          **{arm: (arm, f"{arm}.evaluate") for arm in ARMS}, "rlp": ("rlp", "rlp.evaluate", "rlp.gain")}  # fmt: skip
COLUMNS = ("parameters", "metrics", "ledger", "records", "likelihood", "gain")


def free_port() -> int:
    """A port whose neighbour below is free too: both are used."""
    while True:
        with socket.socket() as one, socket.socket() as below:
            one.bind(("", 0))
            try:
                below.bind(("", one.getsockname()[1] - 1))
            except OSError:
                continue
            return one.getsockname()[1]


def environment(devices: int) -> dict[str, str]:
    """A user's, with so many CPU devices, and of the settings here only how much XLA optimises."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    flags += [f"--xla_force_host_platform_device_count={devices}"]
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": " ".join(flags)}


def start(config, workdir, *arguments, devices: int = 1) -> subprocess.Popen:
    words = [sys.executable, "-m", "ceiling", "--config", str(config), "--workdir", str(workdir), *arguments]
    return subprocess.Popen(words, cwd=ROOT, env=environment(devices), text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)  # fmt: skip


def start_two(config, workdir, *arguments, own=((), ())) -> list[subprocess.Popen]:
    """Two processes of one run, one device each; own: arguments of each alone."""
    hosts = {"processes": 2, "coordinator": f"localhost:{free_port()}", "start_timeout_s": 120,
             "heartbeat_timeout_s": 30}  # fmt: skip
    common = [f"--config.hosts.{key}={value}" for key, value in hosts.items()]
    return [start(config, workdir, *common, *arguments, *own[r], f"--config.hosts.process={r}") for r in (0, 1)]


def end(processes: list[subprocess.Popen], timeout: float = 3600) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each; none outlives this call."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
        return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]
    finally:
        for process in processes:
            process.kill()


def contents(stage: pathlib.Path) -> dict[str, object]:
    """{what: plain values and arrays} of a finished stage, seconds aside."""
    import jax
    import pyarrow.parquet as pq

    from ceiling import schema
    from ceiling.model.sharding import make_mesh
    from ceiling.stages import load_policy

    out = {}
    if (stage / "params").exists():
        settings = json.loads((stage / "stage.json").read_text())["settings"]
        model = schema.architecture(settings["model"], schema.load_task(settings).tokenizer.vocab_size)
        out["parameters"] = jax.device_get(load_policy(stage, model, make_mesh()).params)
        out["metrics"] = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    for path in (stage / f"{name}.json" for name in ("ledger", "likelihood", "gain")):
        if path.exists():
            out[path.stem] = json.loads(path.read_text())
    for entry in out.get("ledger", {}).get("entries", ()):
        entry.pop("seconds")
    if (stage / "records.parquet").exists():
        out["records"] = pq.read_table(stage / "records.parquet").to_pydict()
    return out


def differing(one, two) -> tuple[int, int]:
    """(values that differ, values) of two trees; trees of another shape differ in every value."""
    import jax
    import numpy as np

    (ones, shape), (twos, other) = jax.tree.flatten(one), jax.tree.flatten(two)
    ones, twos = ([np.asarray(leaf) for leaf in leaves] for leaves in (ones, twos))
    count = sum(leaf.size for leaf in ones)
    if shape != other or [leaf.shape for leaf in ones] != [leaf.shape for leaf in twos]:
        return count, count
    both_nan = lambda a, b: (a != a) & (b != b)  # noqa: E731
    return sum(int(np.sum((a != b) & ~both_nan(a, b))) for a, b in zip(ones, twos, strict=True)), count


def compare(one: pathlib.Path, two: pathlib.Path) -> dict[str, tuple[int, int]]:
    """{what: (values that differ, values)} of the same stage of two runs."""
    ones, twos = contents(one), contents(two)
    assert ones.keys() == twos.keys(), f"{one} has {sorted(ones)}, {two} has {sorted(twos)}"
    return {what: differing(ones[what], twos[what]) for what in ones}


def measure(axis: str, home: pathlib.Path) -> list[list[str]]:
    """Both runs with the axis divided in two; a row of cells for each of STAGES."""
    config, mesh = f"{ROOT / 'scripts' / 'chaos.py'}:{','.join(ARMS)}", f"--config.mesh.{axis}=2"
    for code, _, errors in end([start(config, home / "one", mesh, devices=2), *start_two(config, home / "two", mesh)]):
        if code:
            raise RuntimeError(errors)
    stages = {path.parent.name: path for path in (home / "one").glob("stages/seed1/*/*")}
    assert {*stages} == {name for names in STAGES.values() for name in names}
    rows = []
    for row, names in STAGES.items():
        found = [compare(stages[name], home / "two" / stages[name].relative_to(home / "one")) for name in names]
        cells = [[part[what] for part in found if what in part] for what in COLUMNS]
        rows.append([row, *(f"{sum(d for d, _ in cell)} of {sum(c for _, c in cell):,}" if cell else ""
                            for cell in cells)])  # fmt: skip
        print(axis, *rows[-1], sep=" | ", flush=True)
    return rows


def main() -> int:
    import tables  # beside this file, which tests load without its folder

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/reliability.md")
    write, parts, wrong = parser.parse_args().write, [], False
    for axis, what in (("data", "rows divided over the processes"), ("fsdp", "rows and weights divided over them")):
        with tempfile.TemporaryDirectory() as home:
            rows = measure(axis, pathlib.Path(home))
        wrong |= any(cell and not cell.startswith("0 of ") for row in rows for cell in row[1:])
        parts.append(f"`config.mesh.{axis}=2`, {what}:\n\n{tables.markdown(['', *COLUMNS], rows)}")
    verdict = "WRONG: some differ" if wrong else "every one is equal"
    text = "\n\n".join([f"Values that differ, of all values; {verdict}.", *parts])
    print(text)
    if write:
        tables.write(tables.RELIABILITY, "scripts/host_equality.py", text)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
