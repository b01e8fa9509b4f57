"""A plan as text for a terminal."""

from ceiling.plan import Plan, Stage

MEMORY = ["", "held", "peak in", "adds", "peak", "largest", ""]
WORK = ["", "trained", "FLOPs/update", "updates", "sampling", "scoring", "update", "time", "runs"]


def show(plan: Plan) -> str:
    """Parameters, memory, work and time, then what to change, then what was assumed."""
    P, R = plan.lengths
    lines = [
        f"plan of {plan.name}: {_count(plan.parameters)} parameters on {plan.devices} x {plan.device}, "
        f"{_bytes(plan.limit)} usable on each",
        f"every prompt {P} and every response {R} tokens long: memory and cost at their highest", "",
        "memory on one device", *_rows(MEMORY, map(_memory(plan), plan.stages)), "",
        "work", *_rows(WORK, map(_work(plan), plan.stages)),
        "", f"{_hours(plan.hours)} in all, stages one after another",
    ]  # fmt: skip
    for stage in plan.stages:
        if stage.peak[1] > plan.limit:
            lines.append(f"{stage.name} does not fit: {_turn(stage)}")
    lines += [f"note: {note}" for note in plan.notes]
    return "\n".join(lines)


def _memory(plan: Plan):
    def row(stage: Stage) -> list[str]:
        phase, peak = stage.peak
        fits = "fits" if peak <= plan.limit else "DOES NOT FIT"
        held = sum(stage.held.values())
        return [stage.name, _bytes(held), phase, _bytes(peak - held), _bytes(peak), stage.largest, fits]

    return row


def _work(plan: Plan):
    def row(stage: Stage) -> list[str]:
        times = [_seconds(stage.seconds.get(key, 0)) for key in ("sampling", "scoring", "update")]
        return [stage.name, _count(stage.trained), f"{sum(stage.flops.values()):.2e}", f"{stage.updates:.3g}", *times,
                _hours(stage.hours), str(plan.counts[stage.name])]  # fmt: skip

    return row


def _turn(stage: Stage) -> str:
    """The largest kind that can be turned, and how."""
    return f"{stage.largest} take most in {stage.peak[0]}; {stage.knobs.get(stage.largest, 'use a larger device')}"


def _rows(head: list[str], rows) -> list[str]:
    cells = [head, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def _count(value: float) -> str:
    return _scaled(value, (1e9, " B"), (1e6, " M"), (1e3, " k"))


def _bytes(value: float) -> str:
    return _scaled(value, (1e9, " GB"), (1e6, " MB"), (1e3, " kB"))


def _scaled(value: float, *units: tuple[float, str]) -> str:
    return next((f"{value / size:.2f}{unit}" for size, unit in units if value >= size), f"{value:.0f}")


def _seconds(value: float) -> str:
    return "-" if not value else f"{value:.3g} s"


def _hours(value: float) -> str:
    return f"{value:.1f} h" if value >= 1 else f"{60 * value:.1f} min"
