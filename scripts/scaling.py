"""What fits on which slice of TPUs: docs/scaling.md's table from the TPU compiler, without a TPU.

    make test-tpu                                  # compiles every program and keeps what the compiler said
    .venv-tpu/bin/python scripts/scaling.py        # compiles what is missing, then writes the table

Programs and slices are those of ceiling/plan/slices.py. Abstract arguments only: nothing is allocated.
"""

import os
import pathlib

import tables
from absl import app, flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from ceiling.devices import DEVICES  # noqa: E402
from ceiling.plan import compiled  # noqa: E402
from ceiling.plan.programs import programs  # noqa: E402
from ceiling.plan.slices import PROGRAMS, SLICES, planned, setting  # noqa: E402

_FRESH = flags.DEFINE_bool("fresh", False, "compile everything again")
PAGE = pathlib.Path(__file__).parents[1] / "docs" / "scaling.md"
HEAD = ["program", "arguments", "outputs", "temporaries", "code", "of the chip", "plan / compiler", "TFLOP",
        *compiled.KINDS]  # fmt: skip


def row(at, here, made, name: str) -> list[str]:
    """One program on one slice."""
    if _FRESH.value or not at.report(name).exists():
        compiled.report(made[name]().lower(), compiled.QUICK).save(at.report(name))
    found = compiled.Report.load(at.report(name))
    plan = planned(here, name)
    ratio = f"{plan / found.peak:.2f}" if plan else "-"
    gb = lambda value: f"{value / 1e9:.2f}"  # noqa: E731
    cells = [name, gb(found.arguments), gb(found.outputs), gb(found.temporaries), gb(found.code),
             f"{found.total / DEVICES[at.device].memory:.0%}", ratio, f"{found.flops / 1e12:.3g}"]  # fmt: skip
    for kind in compiled.KINDS:
        mine = [c for c in found.collectives if c.kind == kind]
        moved = sum(c.times * c.bytes for c in mine)
        cells.append(f"{len(mine)}: {sum(c.times for c in mine)} x, {gb(moved)} GB" if mine else "-")
    return cells


def section(at) -> str:
    here = setting(at)
    made = programs(here)
    table = tables.markdown(HEAD, [row(at, here, made, name) for name in PROGRAMS])
    micro = next(iter(here.arms.values()))["microbatches"]
    return (
        f"### {at}: {at.chips} chips, {DEVICES[at.device].memory / 1e9:.0f} GB each\n\n"
        f"Mesh data x fsdp x tensor = {at.data} x {at.fsdp} x {at.tensor}, {micro} micro-batches an update, "
        f"{at.slots} slots.\n\n{table}\n"
    )


def main(_) -> None:
    text = "\n".join(section(at) for at in SLICES)
    print(text)
    tables.write(PAGE, "scripts/scaling.py", text)


if __name__ == "__main__":
    app.run(main)
