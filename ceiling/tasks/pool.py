r"""Verdicts on untrusted text in processes that can be killed.

Judging a response may hang, eat memory or crash, whatever the grader promises. So it runs in child processes
(`python -m ceiling.tasks.pool GRADER ...`) that speak JSON lines over pipes, one item at a time: a child that
exceeds `item_s` or dies is replaced, its item is an ERROR verdict, and after `batch_s` so is everything unfinished.
No signal, alarm, fork or pickle is involved: a pool works in any thread, in asyncio, in a notebook and in child
processes. A child cannot write files, dump core or outgrow `memory_mb`; its environment and directory are empty.

    with Pool("math", workers=4) as pool:
        verdicts = pool.judge([{"gold": "3", "response": r"\boxed{3}", "style": "boxed", "kind": "math"}])

A grader is a function item -> Verdict of a module under ceiling.tasks; the module may have `warm_up()`, which runs
before any clock does. What became of items is counted in `pool.stats`: judged, timeout, died, raised, deadline.
"""

import collections
import importlib
import json
import os
import pathlib
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref

from ceiling.tasks.base import Outcome, Verdict

GRADERS = {"math": "ceiling.tasks.grading:judge_item"}
START_S = 120.0  # a child that is not ready by then never will be
ITEMS_PER_CHILD = 5000  # then it is replaced: caches of what it judged grow
_MAX_REPLY = 1 << 20  # bytes of one reply
_GRADER = re.compile(r"ceiling\.tasks(?:\.[A-Za-z]\w*)+:[A-Za-z]\w*")


class PoolError(RuntimeError):
    """The pool cannot judge at all: its children do not start."""


class Pool:
    """Judges batches of items in `workers` child processes; one more is kept ready to replace a killed one.

    grader: a name in GRADERS or "ceiling.tasks.MODULE:FUNCTION". command: start of the children's command line
    instead of this module (they are given GRADER, memory_mb and item_s); for tests.
    """

    def __init__(self, grader: str, workers: int = 2, item_s: float = 5.0, batch_s: float = 60.0,
                 memory_mb: int = 1024, *, command: list[str] | None = None):  # fmt: skip
        if workers < 1 or min(item_s, batch_s, memory_mb) <= 0:
            raise ValueError(f"Pool({workers=}, {item_s=}, {batch_s=}, {memory_mb=}): all must be positive")
        self.workers, self.item_s, self.batch_s = workers, item_s, batch_s
        self.stats = collections.Counter()
        module = [sys.executable, "-m", "ceiling.tasks.pool"]
        self._command = [*(command or module), resolve(grader), str(memory_mb), str(item_s)]
        self._lock = threading.Lock()
        self._children: list[_Child] = []
        self._owner = os.getpid()
        self._directory = tempfile.mkdtemp(prefix="ceiling-pool-")
        self._finalizer = weakref.finalize(self, _end, self._children, self._directory, self._owner)

    def judge(self, items: list[dict]) -> list[Verdict]:
        """Verdicts in order. Equal items are judged once. Raises PoolError if no child starts."""
        texts = [json.dumps(item, sort_keys=True) for item in items]
        if not texts:
            return []
        if os.getpid() != self._owner:
            raise PoolError("this pool belongs to another process; make a Pool in the process that uses it")
        with self._lock:
            if not self._finalizer.alive:
                raise PoolError("this pool is closed; make another one")
            with _Batch(self, dict.fromkeys(texts)) as batch:
                verdicts = batch.run()
        return [verdicts[text] for text in texts]

    def close(self) -> None:
        """Ends the children. A judge() that is running in another thread finishes first."""
        if os.getpid() == self._owner:  # a fork has a copy of the lock that nobody may ever release
            with self._lock:
                self._finalizer()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def fill(self) -> list["_Child"]:
        """Starts children until there are workers + 1, without waiting for them; returns the new ones."""
        new = [_Child(self._command, self._directory) for _ in range(self.workers + 1 - len(self._children))]
        self._children += new
        return new

    def drop(self, child: "_Child") -> None:
        self._children.remove(child)
        child.kill()


class _Batch:
    """One batch of distinct items: an event loop over the pipes of the pool's children."""

    def __init__(self, pool: Pool, texts: dict[str, None]):
        self.pool, self.verdicts = pool, {}
        self.total, self.queue = len(texts), collections.deque(texts)
        self.busy: dict[_Child, tuple[str, float]] = {}  # child -> item, when its time is up
        self.failed_starts = 0
        self.selector = selectors.DefaultSelector()

    def __enter__(self):
        for child in [c for c in self.pool._children if c.process.poll() is not None]:
            self.pool.drop(child)  # died idle, between batches: no item's fault
        self.pool.fill()
        for child in self.pool._children:
            self._watch(child)
        return self

    def __exit__(self, *exception):
        for child in list(self.busy):  # after an exception too, no child may still think about an old item
            self._replace(child)
        self.selector.close()

    def run(self) -> dict[str, Verdict]:
        """Item -> verdict for all of them. The batch's time runs from when the first child is ready."""
        ends = None
        while len(self.verdicts) < self.total:
            ready = [c for c in self.pool._children if c.ready and c not in self.busy]
            if ends is None and ready:
                ends = time.monotonic() + self.pool.batch_s
            while self.queue and ready and len(self.busy) < self.pool.workers:
                self._send(ready.pop(), self.queue.popleft())
            self._wait(ends)
            now = time.monotonic()
            if ends is not None and now >= ends:
                self._expire()
            for child in [c for c, (_, limit) in self.busy.items() if now >= limit]:
                self._fail(child, "timeout")
            for child in [c for c in self.pool._children if not c.ready and now >= c.must_be_ready]:
                self._not_started(child, f"was not ready after {START_S:.0f} s")
        return self.verdicts

    def _wait(self, ends: float | None) -> None:
        """Reads and writes what can be, at most until the next clock runs out."""
        limits = [limit for _, limit in self.busy.values()] + ([ends] if ends is not None else [])
        limits += [c.must_be_ready for c in self.pool._children if not c.ready]
        for key, _ in self.selector.select(max(0.0, min(limits) - time.monotonic())):
            child, write = key.data
            if child not in self.pool._children:
                continue  # replaced earlier in this round
            if write:
                if child.flush():
                    self.selector.unregister(child.stdin)
            else:
                self._hear(child)

    def _hear(self, child: "_Child") -> None:
        lines = child.read()
        if lines is None:
            if child.ready:
                self._fail(child, "died")
            else:
                self._not_started(child, "died while starting")
            return
        for line in lines:
            if child not in self.pool._children:
                return  # replaced for an earlier line
            if not child.ready:
                if line == {"ready": True}:
                    child.ready = True
                else:
                    self._not_started(child, str(line.get("failed", line)) if isinstance(line, dict) else str(line))
                    return
            else:
                self._reply(child, line)

    def _reply(self, child: "_Child", line) -> None:
        text, _ = self.busy.get(child, (None, 0))
        try:
            if line["number"] != child.sent:
                raise ValueError("not the item that was asked about")
            if "raised" in line:
                self._done(child, Verdict(Outcome.ERROR), "raised")
                return
            outcome, answer, credit, right_process, strategy = line["verdict"]
            self._done(child, Verdict(Outcome(outcome), answer, float(credit), right_process, strategy), "judged")
        except (TypeError, KeyError, ValueError):  # a child that speaks otherwise is not to be trusted with more
            if text is not None:
                self._fail(child, "died")
            else:
                self._replace(child)

    def _send(self, child: "_Child", text: str) -> None:
        self.busy[child] = (text, time.monotonic() + self.pool.item_s)
        if not child.ask(text):
            self.selector.register(child.stdin, selectors.EVENT_WRITE, (child, True))

    def _done(self, child: "_Child", verdict: Verdict, reason: str) -> None:
        text, _ = self.busy.pop(child)
        self.verdicts[text] = verdict
        self.pool.stats[reason] += 1
        if child.sent >= ITEMS_PER_CHILD:
            self._replace(child)

    def _fail(self, child: "_Child", reason: str) -> None:
        """The child's item, if it has one, is an ERROR; the child is replaced."""
        if child in self.busy:
            text, _ = self.busy.pop(child)
            self.verdicts[text] = Verdict(Outcome.ERROR)
            self.pool.stats[reason] += 1
        self._replace(child)

    def _expire(self) -> None:
        """The batch's time is up: everything unfinished is an ERROR."""
        for child in list(self.busy):
            self._fail(child, "deadline")
        self.pool.stats["deadline"] += len(self.queue)
        self.verdicts |= dict.fromkeys(self.queue, Verdict(Outcome.ERROR))
        self.queue.clear()

    def _not_started(self, child: "_Child", why: str) -> None:
        self.failed_starts += 1
        if self.failed_starts > self.pool.workers:
            raise PoolError(f"processes of the verifier do not start: {why}")
        self._replace(child)

    def _replace(self, child: "_Child") -> None:
        self.busy.pop(child, None)
        for pipe in (child.stdout, child.stdin):
            if pipe in self.selector.get_map():
                self.selector.unregister(pipe)
        self.pool.drop(child)
        for new in self.pool.fill():
            self._watch(new)

    def _watch(self, child: "_Child") -> None:
        self.selector.register(child.stdout, selectors.EVENT_READ, (child, False))


class _Child:
    """A child process and its two pipes, never blocking."""

    def __init__(self, command: list[str], directory: str):
        root = str(pathlib.Path(__file__).resolve().parents[2])
        paths = [root, *(os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p)]
        environment = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0", "PYTHONUTF8": "1",
                       "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # fmt: skip
        if "LD_LIBRARY_PATH" in os.environ:
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=directory,
            env=environment, start_new_session=True, bufsize=0)  # fmt: skip
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        for pipe in (self.stdin, self.stdout):
            os.set_blocking(pipe.fileno(), False)
        self.ready, self.sent, self.must_be_ready = False, 0, time.monotonic() + START_S
        self._out, self._in = b"", b""

    def ask(self, text: str) -> bool:
        """Sends one item; whether all of it went out."""
        self.sent += 1
        self._out = f'{{"number": {self.sent}, "item": {text}}}\n'.encode()
        return self.flush()

    def flush(self) -> bool:
        """Sends what is left of the item. A broken pipe is seen when reading."""
        try:
            while self._out:
                written = os.write(self.stdin.fileno(), self._out)
                self._out = self._out[written:]
        except BlockingIOError:
            return False
        except OSError:
            self._out = b""
        return True

    def read(self) -> list | None:
        """The lines that have come, None if no more will or they are not JSON."""
        try:
            part = os.read(self.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return []
        *lines, self._in = (self._in + part).split(b"\n")
        try:
            found = [json.loads(line) for line in lines]
        except ValueError:
            return None
        return found if part and len(self._in) <= _MAX_REPLY else None

    def kill(self) -> None:
        """Ends the process and whatever it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self.process.kill()
        self.process.wait()
        self.stdin.close()
        self.stdout.close()


def _end(children: list[_Child], directory: str, owner: int) -> None:
    """Also at exit and when a pool is forgotten; not in a fork, whose children these are not."""
    if os.getpid() == owner:
        while children:
            children.pop().kill()
        shutil.rmtree(directory, ignore_errors=True)


def resolve(grader: str) -> str:
    """ "module:function" of a grader's name; anything outside ceiling.tasks is refused."""
    path = GRADERS.get(grader, grader)
    if not _GRADER.fullmatch(path):
        raise ValueError(f"grader {grader!r} is not known; use {', '.join(GRADERS)} or ceiling.tasks.MODULE:FUNCTION")
    return path


# --- the child -----------------------------------------------------------------------------------------------------


def serve(load, memory_mb: int, item_s: float) -> None:
    """A child's life: limits first, then judge = load(), then one item per line until the pipe closes."""
    # Copies that nobody knows: what a grader prints must not reach the parent.
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)

    def say(**line):
        replies.write(json.dumps(line).encode() + b"\n")
        replies.flush()

    try:
        _limit(memory_mb)
        judge = load()
    except Exception as error:  # noqa: BLE001 - said to the parent, which raises it
        say(failed=f"{type(error).__name__}: {error}")
        return
    say(ready=True)
    for line in requests:
        request = json.loads(line)
        _limit_cpu(item_s)
        try:
            verdict = judge(request["item"])
            fields = [int(verdict.outcome), verdict.answer, verdict.credit, verdict.process, verdict.strategy]
        except MemoryError:
            os._exit(1)  # what is left of this process is not to be trusted
        except Exception as error:  # noqa: BLE001 - counted by the parent
            say(number=request["number"], raised=type(error).__name__)
        else:
            say(number=request["number"], verdict=fields)


def _limit(memory_mb: int) -> None:
    """Memory, no files, no core dumps."""
    import resource

    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    if sys.platform == "linux":  # elsewhere the kernel refuses or ignores it
        limits[resource.RLIMIT_AS] = memory_mb << 20
    for what, value in limits.items():
        resource.setrlimit(what, (value, value))


def _limit_cpu(item_s: float) -> None:
    """The kernel ends a child that computes on although its parent is gone."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + item_s) + 2, hard))


def _load(grader: str):
    """The function that `grader` names, warmed up."""
    module, _, function = resolve(grader).partition(":")
    found = importlib.import_module(module)
    if hasattr(found, "warm_up"):
        found.warm_up()
    return getattr(found, function)


if __name__ == "__main__":
    serve(lambda: _load(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
