"""SIGTERM and SIGINT: the step in flight is finished and saved, then the process ends with code 75.

Python runs a handler only between two bytecodes of the main thread, and a compiled program may keep it from there for
longer than the machine grants. So a thread of its own hears of signals through the wake-up file descriptor, starts
the clock, and ends the process when the grace period is over: checkpoints are whole at every moment, so nothing
that was saved is lost. A second SIGTERM changes nothing; a second SIGINT (Ctrl-C) ends the process at once.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable

from ceiling import hosts

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: not a failure, the same command continues
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """Work ended early, in the place that `where` names, because the process was asked to stop. It is saved."""

    def __init__(self, where: str):
        super().__init__(f"stopped {where}; the same command continues there")
        self.where = where


_watch: "watched | None" = None


def asked() -> bool:
    """Whether this process was asked to stop; on several hosts, whether any was, and all hear it in the same place."""
    return hosts.anywhere(_watch is not None and _watch.asked)


def check(where: str) -> None:
    """Raise Stopped if the process was asked to stop. Called where everything done so far is on disk."""
    if asked():
        raise Stopped(where)


def notify(call: Callable[[], None]) -> None:
    """Have `call` run, in another thread, when the process is asked to stop."""
    if _watch is not None:
        _watch.calls.append(call)
        if _watch.asked:
            call()


class watched:
    """`with watched(grace_s):` signals ask for a stop instead of ending the process. Only the main thread can have
    this: elsewhere it does nothing, and the program around decides what signals do."""

    def __init__(self, grace_s: float):
        self.grace_s, self.asked, self.calls, self.deadline = grace_s, False, [], None

    def __enter__(self):
        global _watch
        self.active = threading.current_thread() is threading.main_thread() and _watch is None
        if self.active:
            self.source, self.sink = os.pipe()
            os.set_blocking(self.sink, False)
            self.handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
            self.descriptor = signal.set_wakeup_fd(self.sink, warn_on_full_buffer=False)
            self.thread = threading.Thread(target=self._listen, daemon=True)
            self.thread.start()
            _watch = self
        return self

    def __exit__(self, *_):
        global _watch
        if not self.active:
            return
        _watch = None
        signal.set_wakeup_fd(self.descriptor)
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        os.close(self.sink)  # the listener reads the end of the pipe
        self.thread.join()
        os.close(self.source)
        if self.deadline is not None:
            self.deadline.cancel()

    def _listen(self) -> None:
        while arrived := os.read(self.source, 64):
            for number in arrived:
                if number in SIGNALS:
                    self._ask(signal.Signals(number))

    def _ask(self, number: signal.Signals) -> None:
        if self.asked:
            if number == signal.SIGINT:
                _end("interrupted twice")
            return
        self.deadline = threading.Timer(self.grace_s, _end, [f"the {self.grace_s:g} s of grace are over"])
        self.deadline.daemon = True
        self.deadline.start()
        self.asked = True
        for call in list(self.calls):
            call()


def _end(reason: str) -> None:
    line = f"ceiling: stopped: {reason}; the same command continues from the last checkpoint"
    print(line, file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)
