"""A process among the others of its run: the leader's values, and the end of all with the end of one."""

import contextlib
import json
import os
import sys
import threading
import time

from ceiling.hosts.connection import Connection
from ceiling.hosts.roll_call import meet, place

FAILED = 2  # exit code of a process whose peer is gone or has failed, as of any other failure
LAST_WORDS_S = 1.0  # from telling the others of a failure to the end


class Group:
    """This process among the others: lines[rank] to each follower in the leader, lines[0] to the leader in a
    follower."""

    def __init__(self, processes: int, process: int, coordinator: str, start_timeout_s: float,
                 heartbeat_timeout_s: float):  # fmt: skip
        coordinator, self.count, self.rank = place(coordinator, processes, process, start_timeout_s)
        self.heartbeat_s, self.asked, self.over = heartbeat_timeout_s, False, threading.Event()
        self.lines = meet(coordinator, self.count, self.rank, start_timeout_s)
        for rank, line in self.lines.items():
            threading.Thread(target=self._listen, args=(rank, line), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()
        _start_jax(coordinator, self.count, self.rank, start_timeout_s, heartbeat_timeout_s)

    def tell(self, value):
        """The leader's value, everywhere."""
        if self.rank:
            return self.lines[0].values.get()
        text = json.dumps(value, default=lambda x: x.item())
        for line in self.lines.values():
            self._send(line, text)
        return json.loads(text)

    def gather(self, value) -> list | None:
        """Every process's value by rank, in the leader."""
        if self.rank:
            return self._send(self.lines[0], json.dumps(value))
        return [value, *(self.lines[rank].values.get() for rank in range(1, self.count))]

    def wait(self) -> None:
        """Until all are here."""
        self.gather(None)
        self.tell(None)

    def anywhere(self, flag: bool) -> bool:
        if flag and not self.asked:
            self.asked = True
            if self.rank:
                self.lines[0].send("asked")
        return self.tell(self.asked)

    def same(self, about: dict) -> None:
        everyone = self.gather(about)
        different = self.tell(_difference(everyone) if self.rank == 0 else None)
        if different:
            rank, path, ours, theirs = different
            raise RuntimeError(
                f"process {rank} of {self.count} differs from process 0: {path} is {theirs!r} there, {ours!r} at "
                "process 0; start the same code with the same command on every host"
            )

    def leave(self) -> None:
        self.wait()
        self.over.set()
        for line in self.lines.values():
            with contextlib.suppress(OSError):
                line.send("bye")

    def fail(self, error: BaseException) -> None:
        """Tell the others why this process ends. A device program may have failed because a process is gone: then
        that is the news, and whoever listens to that process ends this one meanwhile."""
        text = " ".join(f"{error}".split()) or type(error).__name__
        if "JaxRuntimeError" in f"{type(error).__name__} {text}":
            time.sleep(LAST_WORDS_S)
        self._tell_failure(f"process {self.rank} of {self.count} failed: {text}")
        self.over.set()

    def _send(self, line: Connection, text: str) -> None:
        with contextlib.suppress(OSError):  # who listens there sees it too, and knows what to do
            line.send("value", text)

    def _beat(self) -> None:
        while not self.over.wait(min(5.0, self.heartbeat_s / 4)):
            for line in self.lines.values():
                with contextlib.suppress(OSError):
                    line.send("beat")

    def _listen(self, rank: int, line: Connection) -> None:
        """Take what another process says; end this one when it falls silent."""
        line.socket.settimeout(self.heartbeat_s)
        while True:
            try:
                kind, text = line.receive()
            except TimeoutError:
                kind, text = "failed", f"process {rank} of {self.count} was not heard of for {self.heartbeat_s:g} s"
            except OSError as error:
                kind, text = "failed", f"process {rank} of {self.count} is gone ({error.strerror or error})"
            if kind == "bye" or self.over.is_set():
                return
            if kind == "value":
                line.values.put(json.loads(text))
            elif kind == "asked":
                self.asked = True
            elif kind == "failed":
                own = f"process {self.rank} ends too; the same command continues from the last checkpoint"
                print(f"ceiling: {text}. {own}", file=sys.stderr, flush=True)
                if self.rank == 0:
                    self._tell_failure(text)
                os._exit(FAILED)

    def _tell_failure(self, text: str) -> None:
        for line in self.lines.values():
            with contextlib.suppress(OSError):
                line.send("failed", text)
        time.sleep(LAST_WORDS_S)  # a connection that is closed at once may take its last words with it


def _start_jax(coordinator: str, count: int, rank: int, start_timeout_s: float, heartbeat_s: float) -> None:
    import jax

    if jax.distributed.is_initialized():  # by an earlier run of this program, among the same processes
        return
    # Its own answer to SIGTERM would take the signal from ours.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator, count, rank, initialization_timeout=round(start_timeout_s),
        # Ours speaks first, and names the process.
        heartbeat_timeout_seconds=round(2 * heartbeat_s) + 10, shutdown_timeout_seconds=round(heartbeat_s) + 10,
    )  # fmt: skip


def _difference(everyone: list[dict]) -> list | None:
    """[rank, name, leader's value, its value] of the first process that differs from the leader."""
    for rank, theirs in enumerate(everyone):
        if theirs != everyone[0]:
            return [rank, *_first("", everyone[0], theirs)]
    return None


def _first(path: str, ours, theirs) -> tuple:
    """The first place at which two JSON values differ, and what stands there."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                return _first(f"{path}.{key}".lstrip("."), ours.get(key), theirs.get(key))
    return path, ours, theirs
