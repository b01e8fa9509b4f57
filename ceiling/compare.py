"""Runs side by side: python -m ceiling.compare runs/a runs/b ... --out runs/compare.html.

One page with what differs between the runs, their verdicts, curves and budgets, and paired differences to the first of
them where their samples are of the same problems; see docs/compare.md.

A command, not a module to import: `ceiling.compare` in Python is the function of `ceiling/comparison.py`.
"""

from absl import flags

from ceiling import cli, comparison

_OUT = flags.DEFINE_string("out", None, "The page to write, an .html file")


def main(directories: list[str]) -> None:
    found = comparison.compare(directories)
    page = found.write(_OUT.value)
    for note in found.notes:
        print(note)
    differing = len({(row["kind"], row["key"]) for row in found.settings})
    print(f"{len(found.runs)} runs, {differing} differences in settings and versions: {page}")


if __name__ == "__main__":
    cli.start(main, ["out"], names=True)
