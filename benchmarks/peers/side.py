"""What the peers' sides share: jobs in, measurements out, and a trainer's own loop taken one step at a time.

A side is a process of the peer's environment. It reads one JSON object a line and answers each with one:

    {"peer": "trl", "work": "sft", "size": "tiny", "repeats": 5, "threads": 1}
    {"peer": "trl", "work": "sft", "size": "tiny", "seconds": [...], "versions": {...}}   or   {..., "error": "..."}

A start_* job carries "began", the time.time() at which the process was launched.
"""

import importlib.metadata
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable

WARM_UP = 2  # steps before the first counted one: the second may compile again, for arrays that are placed now


class Stepper:
    """Steps of a loop that a trainer owns. `train(gate)` runs the trainer in a thread; the trainer's hook calls gate()
    between steps, which returns when the next step may start: True, or False if there is none."""

    def __init__(self, train: Callable[[Callable[[], bool]], None]):
        self._go, self._done = queue.Queue(), queue.Queue()
        self._thread = threading.Thread(target=self._run, args=(train,), daemon=True)

    def _run(self, train) -> None:
        try:
            train(self._gate)
            self._done.put(RuntimeError("the trainer's loop ended by itself"))
        except Exception as error:
            self._done.put(error)

    def _gate(self) -> bool:
        self._done.put(None)
        return self._go.get()

    def __call__(self) -> None:
        """One step, from the end of the one before to its own; the first also starts the trainer."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.put(True)
        if error := self._done.get():
            raise error

    def close(self) -> None:
        self._go.put(False)


def serve(peers: dict[str, Callable], packages: list[str], configure: Callable[[int], None] = lambda threads: None):
    """Answers jobs until standard input ends.

    peers[name](kind, size, uneven) makes a callable that does one measured step, finished when it returns; kind is
    sft, rollout or grpo. What libraries print goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    versions = {name: importlib.metadata.version(name) for name in packages}
    ready = {}  # peer -> (key, step): the last work only, so that no more than one model a peer is in memory
    for line in sys.stdin:
        job = json.loads(line)
        answer = {name: job[name] for name in ("peer", "work", "size")} | {"versions": versions}
        configure(job["threads"])
        try:
            answer["seconds"] = _measure(job, peers[job["peer"]], ready)
        except Exception as error:  # the other works go on
            answer["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), file=answers, flush=True)


def _measure(job: dict, make: Callable, ready: dict) -> list[float]:
    kind = next(kind for kind in ("sft", "rollout", "grpo") if kind in job["work"])
    uneven = job["work"].endswith(("_uneven", "_packed"))
    if job["work"].startswith("start_"):
        make(kind, job["size"], uneven)()
        return [time.time() - job["began"]]
    key, step = ready.get(job["peer"], (None, None))
    warm_up = 1
    if key != (job["work"], job["size"]):
        if isinstance(step, Stepper):
            step.close()
        step, warm_up = make(kind, job["size"], uneven), WARM_UP
        ready[job["peer"]] = (job["work"], job["size"]), step
    for _ in range(warm_up):
        step()
    seconds = []
    for _ in range(job["repeats"]):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return seconds
