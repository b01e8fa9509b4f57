"""Measurements of several sides made into one table.

A row is {"size", "work", "flops", "bytes", "matrix_rates": [FLOP/s], "memory_rates": [bytes/s], "sides": {name: side}},
a side {"seconds": [...], "versions": {...}} or {"error": "..."}; one that does not do the work is absent. Our starts
also have "warm_seconds", of a start that finds its programs compiled.
"""

import statistics

from benchmarks import work

OURS = "ceiling"


def median(side: dict | None) -> float | None:
    """Median seconds of a side of a row; None where it has none."""
    return statistics.median(side["seconds"]) if side and "error" not in side else None


def ratio(row: dict, peer: str) -> float | None:
    """How many times as long as ours a peer takes; None unless both were measured."""
    ours, theirs = median(row["sides"].get(OURS)), median(row["sides"].get(peer))
    return theirs / ours if ours and theirs else None


def share(row: dict) -> float | None:
    """The least time that the arithmetic or the weights' way from memory takes, whichever is more, over ours, at the
    rates that the same processes measured; None where ours failed and for starts, which are about neither."""
    ours = None if row["work"].startswith("start_") else median(row["sides"].get(OURS))
    if not ours:
        return None
    arithmetic, memory = (statistics.median(row[rates]) for rates in ("matrix_rates", "memory_rates"))
    return max(row["flops"] / arithmetic, row["bytes"] / memory) / ours


def add(row: dict, side: str, answer: dict) -> None:
    """Puts one round's answer of a side into its row: seconds add up, an error replaces them. Ours also brings what
    the work costs and what the machine did in a matrix product."""
    if "error" in answer:
        row["sides"][side] = {"error": answer["error"]}
        return
    entry = row["sides"].setdefault(side, {"seconds": [], "versions": answer["versions"]})
    entry["seconds"].extend(answer["seconds"])
    if "warm_seconds" in answer:
        entry.setdefault("warm_seconds", []).extend(answer["warm_seconds"])
    if side == OURS:
        row |= {key: answer[key] for key in ("flops", "bytes")}
        row["matrix_rates"].append(answer["matrix_rate"])
        row["memory_rates"].append(answer["memory_rate"])


def markdown(rows: list[dict], peers: dict[str, str]) -> str:
    """The table, and under it the limit and the versions that it holds for; `peers` maps the name of a peer to its
    heading, in the order of the columns."""
    heads = ["work", "ceiling", "share of the limit", *peers.values()]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        of_limit = share(row)
        cells = [f"{work.WORKS[row['work']]}, {row['size']}", _seconds(row["sides"].get(OURS))]
        cells.append("" if of_limit is None else f"{of_limit:.0%}")
        for peer in peers:
            times = ratio(row, peer)
            cells.append(_seconds(row["sides"].get(peer)) + ("" if times is None else f" ({times:.2f}x)"))
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + "\n" + _circumstances(rows)


def _circumstances(rows: list[dict]) -> str:
    arithmetic, memory = ([rate / 1e9 for row in rows for rate in row[key]] for key in ("matrix_rates", "memory_rates"))
    limit = (f"Matrix product: {min(arithmetic):.0f} to {max(arithmetic):.0f} GFLOP/s, memory: {min(memory):.0f} to "
             f"{max(memory):.0f} GB/s. " if arithmetic else "")  # fmt: skip
    versions = [side["versions"].items() for row in rows for side in row["sides"].values() if "versions" in side]
    sets = dict.fromkeys(", ".join(f"{name} {version}" for name, version in items) for items in versions)
    return limit + ("; ".join(sets) + ".\n" if sets else "\n")


def _seconds(side: dict | None) -> str:
    if side is None:
        return ""
    if "error" in side:
        return "failed: " + side["error"].replace("|", "/").replace("\n", " ")[:120]
    warm = f" (warm {statistics.median(side['warm_seconds']):.3g} s)" if "warm_seconds" in side else ""
    return f"{median(side):.3g} s{warm}"
