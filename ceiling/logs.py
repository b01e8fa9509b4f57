"""Progress of a run: a live table on a terminal, plain lines without control characters elsewhere."""

import os
import pathlib
import sys
import time

from rich.console import Console
from rich.live import Live
from rich.table import Table

QUIET_S = 30.0  # plain mode: at most one progress line per stage in this time
SHOWN = 0.1  # share of a call's stages that must be behind before the time left is told: the first ones are the priors


class Progress:
    """Shows stages as they start, move and finish. `log` prints a line in either mode, and every line is
    kept in workdir/log.txt. silent: nothing is printed or kept (another host reports)."""

    def __init__(self, stages: int, workdir: pathlib.Path, stream=None, silent: bool = False):
        self.total, self.done, self.skipped, self.began = stages, 0, 0, time.time()
        self.running: dict[str, dict] = {}
        self._printed: dict[str, float] = {}
        self._work = 0.0  # stages done in this call, for the estimate of the time left
        path = os.devnull if silent else pathlib.Path(workdir) / "log.txt"
        self.file = open(path, "a")  # noqa: SIM115 - closed in __exit__
        self.stream = self.file if silent else stream or sys.stdout
        self.live = None
        if self.stream.isatty():
            self.live = Live(console=Console(file=self.stream), get_renderable=self._table, refresh_per_second=4)

    def __enter__(self):
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_):
        if self.live:
            self.live.stop()
        self.file.close()

    def log(self, line: str) -> None:
        stamp = f"{time.time() - self.began:6.0f} s  {line}"
        self.file.write(stamp + "\n")  # one write per line: the report's thread logs too
        self.file.flush()
        if self.live:
            self.live.console.print(stamp, highlight=False, markup=False)
        else:
            print(stamp, file=self.stream, flush=True)

    def skip(self, name: str) -> None:
        """A stage that an earlier call finished."""
        self.done, self.skipped = self.done + 1, self.skipped + 1

    def drop(self, name: str) -> None:
        """A stage that is not worth running."""
        self.total -= 1
        self.log(f"left out {name}: its prior failed the gate  [{self.done}/{self.total}]")

    def start(self, name: str) -> None:
        self.running[name] = {"began": time.time(), "progress": 0.0}
        self._printed[name] = time.time()
        self.log(f"start   {name}  [{self.done}/{self.total}]")

    def update(self, name: str, event: dict) -> None:
        self.running[name].update(event)
        if not self.live and time.time() - self._printed[name] > QUIET_S:
            self._printed[name] = time.time()
            left = "" if self._left() is None else f"  left {_clock(self._left())}"
            self.log(f"        {name}  {_describe(self.running[name])}{left}")

    def finish(self, name: str) -> None:
        state = self.running.pop(name)
        self.done += 1
        self._work += 1
        seconds = time.time() - state["began"]
        self.log(f"done    {name}  {seconds:.0f} s  {_describe(state)}  [{self.done}/{self.total}]")

    def _left(self) -> float | None:
        """Seconds left, from the pace of this call; None until there is one."""
        work = self._work + sum(s["progress"] for s in self.running.values())
        if work < max(0.5, SHOWN * (self.total - self.skipped)):
            return None
        return (time.time() - self.began) / work * (self.total - self.done - (work - self._work))

    def _table(self) -> Table:
        table = Table(title=f"{self.done}/{self.total} stages, {_clock(self._left())} left", expand=False)
        for column in ("stage", "progress", "", "elapsed"):
            table.add_column(column)
        for name, state in list(self.running.items()):
            share = state["progress"]
            bar = "#" * round(20 * share) + "-" * (20 - round(20 * share))
            table.add_row(name, f"{bar} {share:4.0%}", _describe(state), _clock(time.time() - state["began"]))
        return table


def _describe(state: dict) -> str:
    parts = [f"{state['progress']:.0%}"] if "step" not in state else [f"step {state['step']}"]
    if "loss" in state:
        parts.append(f"loss {round(state['loss'], 3) + 0.0:.3f}")  # no "-0.000"
    if "tokens_per_s" in state:
        parts.append(f"{state['tokens_per_s'] / 1e3:.1f}k tokens/s")
    if state.get("flops"):
        parts.append(f"ledger {state['flops']:.3g} FLOP")
    return ", ".join(parts)


def _clock(seconds: float | None) -> str:
    return "?" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
