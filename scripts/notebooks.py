"""The notebooks of colabs/: made from their .py files, run, and given results to draw.

    python scripts/notebooks.py sync                  # start.py's cells into every NAME.py, NAME.py into NAME.ipynb
    python scripts/notebooks.py run [NAME ...]        # top to bottom in tiny mode, each in a folder of its own
    python scripts/notebooks.py run rlp --full --keep DIR    # as a user runs it; the executed notebook stays in DIR
    python scripts/notebooks.py ship RUN              # counts of a finished run of configs/lab.py -> results/lab.json

NAME.py (jupytext's percent format) is the source; NAME.ipynb has no outputs, and the same source gives the same bytes.
A run fails on a cell that raises, and on a warning that comes from a cell or from this project. Needs
requirements-notebook.txt.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).absolute().parents[1]
HOME = ROOT / "colabs"
NAMES = ("default_experiment", "own_model", "rlp", "passk")
START = "start"  # tag of the cells that all notebooks share
CELL_S = 1800  # longest cell of a run, on a machine that does other things too
POINTS = 40  # of a shipped training curve
SHIPPED_METRIC = "information_gain_nats"


# --- made from .py ----------------------------------------------------------------------------------------


def sync() -> None:
    """Write the shared cells and the .ipynb of every notebook."""
    for name in NAMES:
        source = HOME / f"{name}.py"
        source.write_text(with_start(source.read_text(), (HOME / f"{START}.py").read_text()))
        (HOME / f"{name}.ipynb").write_text(notebook(name, source.read_text()))


def blocks(text: str) -> list[str]:
    """A percent script cut before every cell marker; what stands before the first one comes first."""
    return re.split(r"^(?=# %%)", text, flags=re.M)


def with_start(text: str, start: str) -> str:
    """The script with its shared cells, in order, replaced by those of `start`."""
    shared = iter(blocks(start)[1:])
    is_shared = lambda block: f'tags=["{START}"]' in block.partition("\n")[0]  # noqa: E731
    cells = [next(shared) if is_shared(block) else block for block in blocks(text)]
    if left := len(list(shared)):
        raise ValueError(f"{left} shared cells of colabs/{START}.py have no place; mark one with tags=[\"{START}\"]")
    return "\n\n".join(cell.rstrip("\n") for cell in cells) + "\n"


def notebook(name: str, text: str) -> str:
    """The bytes of NAME.ipynb: cells without outputs, numbered ids."""
    import jupytext
    import nbformat

    made = jupytext.reads(text, fmt="py:percent")
    made.metadata = {key: made.metadata[key] for key in ("kernelspec",)} | {
        "jupytext": {"formats": "ipynb,py:percent"}, "language_info": {"name": "python"},
    }  # fmt: skip
    for i, cell in enumerate(made.cells):
        cell.id = f"{name.replace('_', '-')}-{i:02d}"
    return nbformat.writes(made).rstrip("\n") + "\n"


# --- run --------------------------------------------------------------------------------------------------


def run(names: list[str], *, tiny: bool, keep: pathlib.Path | None) -> int:
    """Execute notebooks one after another, say how long each took, and return how many failed."""
    if tiny:
        os.environ["CEILING_TINY"] = "1"
    failed = 0
    for name in names:
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            folder = keep or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="notebook-")))
            problems = execute(name, folder)
        failed += bool(problems)
        print(f"{'FAILED' if problems else 'ok':8s}{name}  {time.monotonic() - began:.0f} s", flush=True)
        for problem in problems:
            print(problem, flush=True)
    print(f"{len(names) - failed} passed, {failed} failed")
    return failed


def execute(name: str, folder: pathlib.Path) -> list[str]:
    """Run one notebook with `folder` as its working directory, where it is left as executed. What went wrong."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    folder.mkdir(parents=True, exist_ok=True)
    made = nbformat.read(HOME / f"{name}.ipynb", as_version=4)
    client = NotebookClient(
        made, timeout=CELL_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--log-level=ERROR"],  # every start would warn of ports of this very machine
    )  # fmt: skip
    problems = []
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        problems.append(re.sub(r"\x1b\[[\d;]*m", "", str(error)))  # without colours
    nbformat.write(made, folder / f"{name}.ipynb")
    return problems + [f"warning: {line}" for line in own_warnings(made)]


def own_warnings(made) -> list[str]:
    """Lines of a notebook's stderr that are warnings raised by a cell or by a file of this project."""
    own = re.compile(rf"(?:{re.escape(str(ROOT / 'ceiling'))}|{re.escape(str(HOME))}|ipykernel_\d+|<ipython).*Warning:")
    texts = [out.text for cell in made.cells for out in cell.get("outputs", ()) if out.get("name") == "stderr"]
    return [line for text in texts for line in text.splitlines() if own.search(line)]


# --- results to draw --------------------------------------------------------------------------------------


def ship(run_home: pathlib.Path) -> None:
    """Write colabs/results/lab.json from a finished run: right samples by arm, seed and problem, and RLP's gain."""
    content = shipped(run_home)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    (HOME / "results").mkdir(exist_ok=True)
    (HOME / "results/lab.json").write_text(f"{{\n{lines}\n}}\n")


def shipped(run_home: pathlib.Path) -> dict:
    """What is shipped of a run: counts, from its records, and what they are counts of."""
    from ceiling import experiment, schema
    from ceiling.evals.records import Samples

    results = json.loads((run_home / "results.json").read_text())
    meta = results["meta"]
    if not meta["complete"]:
        raise ValueError(f"{run_home}: the run is not finished; the same command continues it")
    counts, groups = {}, []
    for stage in experiment.plan(meta["config"]):
        if stage.kind == "evaluate":
            samples = Samples.load(stage.directory(run_home) / "records.parquet")
            counts.setdefault(stage.arm, {})[str(stage.seed)] = samples.counts[:, 1].tolist()
            groups = samples.groups
    task = schema.load_task(meta["config"])
    return {
        "provenance": f"python -m ceiling --config configs/{meta['name']}.py: ceiling {meta['version']}, jax "
        f"{meta['packages']['jax']}, {meta['device']}, {results['budget']['target_flops']:g} FLOP an arm",
        "config_hash": meta["config_hash"], "seeds": meta["seeds"], "n": meta["n"], "ks": meta["ks"],
        "verdict_k": meta["verdict_k"], "margin": meta["margin"], "guess_rate": task.guess_rate,
        "about_groups": [
            {"group": g.name, "what": g.description, "in the prior": g.prior, "designed trap": g.trap}
            for g in task.groups
        ],
        "arms": [
            {key: arm[key] for key in ("name", "title", "control")} for arm in meta["arms"] if arm["name"] in counts
        ],
        "groups": groups, "counts": counts, "training": thinned(results["training"]),
    }  # fmt: skip


def thinned(rows: list[dict]) -> list[dict]:
    """The shipped metric's curves, of at most POINTS points each."""
    curves: dict[tuple, list[dict]] = {}
    for row in rows:
        if row["metric"] == SHIPPED_METRIC:
            curves.setdefault((row["arm"], row["seed"]), []).append(row)
    kept = [row for curve in curves.values() for row in curve[:: -(-len(curve) // POINTS)]]
    return [{**row, "flops": float(f"{row['flops']:.4g}"), "value": float(f"{row['value']:.4g}")} for row in kept]


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("sync", help="write the shared cells and the .ipynb files")
    running = commands.add_parser("run", help="execute notebooks")
    running.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    running.add_argument("--full", action="store_true", help="as a user runs it, not in tiny mode")
    running.add_argument("--keep", type=pathlib.Path, help="folder to run in, which stays")
    shipping = commands.add_parser("ship", help="results to draw from a finished run")
    shipping.add_argument("run", type=pathlib.Path)
    args = parser.parse_args(argv)
    if args.command == "run":
        if unknown := set(args.names) - set(NAMES):
            parser.error(f"no notebook {min(unknown)!r}; use {', '.join(NAMES)}")
        return min(1, run(args.names or list(NAMES), tiny=not args.full, keep=args.keep))
    ship(args.run) if args.command == "ship" else sync()
    return 0


if __name__ == "__main__":
    sys.exit(main())
