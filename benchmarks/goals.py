"""What this project set itself beside the peers, and what came of it.

    python benchmarks/goals.py OUT/results.json [OUT_OF_ANOTHER_CALL/results.json ...]

One column for each file, headed by what it was run on: ratios to the peer at tiny and small; bold: not reached, ?: not
measured.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import table, work  # noqa: E402

RATIOS = (  # work, peer, its name here, at least so many times as long as ours at tiny and small
    ("rollout_even", "torch", "`generate`", 2.0, 1.5),
    ("rollout_even", "tunix", "Tunix", 2.0, 2.0),
    ("rollout_even", "tunix_1024", "Tunix with its cache of 1,024", 10.0, 10.0),
    ("rollout_uneven", "torch", "`generate`", 5.0, 3.0),
    ("grpo_even", "trl", "TRL", 2.0, 1.4),
    ("grpo_even", "tunix", "Tunix", 3.0, 1.75),
    ("grpo_uneven", "trl", "TRL", 3.5, 2.2),
    ("sft", "trl", "TRL", 1.3, 1.1),
    ("sft_packed", "trl", "TRL", 2.5, 2.5),
)
STARTS = (("start_sft", 6.0, 4.0), ("start_grpo", 9.0, 5.0))  # at tiny: seconds with nothing compiled, and compiled


def markdown(calls: list[tuple[str, list[dict]]]) -> str:
    """The table; calls: (heading of a column, rows), see benchmarks/table.py."""
    found = [{(row["work"], row["size"]): row for row in rows} for _, rows in calls]
    lines = [["work", "goal", *(heading for heading, _ in calls)], ["---"] * (2 + len(calls))]
    for name, peer, called, *least in RATIOS:
        goal = " and ".join(f"{x:g}" for x in dict.fromkeys(least))
        needs = list(zip(work.SIZES, least, strict=True))
        cells = [", ".join(_ratio(rows.get((name, size)), peer, need) for size, need in needs) for rows in found]
        lines.append([work.WORKS[name], f"{goal} x {called}", *cells])
    for name, cold, warm in STARTS:
        cells = [_start(rows.get((name, "tiny")), cold, warm) for rows in found]
        lines.append([f"{work.WORKS[name]}, tiny", f"{cold:g} s (compiled {warm:g} s)", *cells])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _ratio(row: dict | None, peer: str, least: float) -> str:
    times = row and table.ratio(row, peer)
    return "?" if times is None else _said(f"{times:.2f}", times >= least)


def _start(row: dict | None, cold: float, warm: float) -> str:
    ours = row and row["sides"].get(table.OURS)
    took = table.median(ours)
    if took is None:
        return "?"
    again = table.median({"seconds": ours["warm_seconds"]})
    return f"{_said(f'{took:.1f}', took <= cold)} ({_said(f'{again:.1f}', again <= warm)})"


def _said(text: str, reached: bool) -> str:
    return text if reached else f"**{text}**"


def main(paths: list[str]) -> None:
    if not paths:
        raise SystemExit("goals.py: name the results.json of one call of benchmarks/run.py or of several")
    answers = [json.loads(pathlib.Path(path).read_text()) for path in paths]
    print(markdown([(answer["about"].split(";")[0], answer["rows"]) for answer in answers]), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
