"""Tools on the host: what of an agent's text is a call, how it is run, and what of its answer becomes tokens.

`Wording` reads and writes the text. Whatever a tool returns is cut and cleared, so that it costs what an observation
may cost, and cannot pass for a control token, a call, or the observation's end.

`Pool` runs calls: at most so many at once, none for longer than its time, none that ends the run. A thread cannot be
ended from outside, so a call that hangs is given up: its result will not be read, its thread ends when the tool
returns, if ever, and another takes its place. Threads are daemons, so none keeps the program alive; a process has at
most ABANDONED of them before the pool refuses to go on.

Example:
    with Pool(environment.call, workers=8, timeout_s=5.0) as pool:
        pool.submit("a", (problem, "<search>Lund</search>"))
        for key, text, status in pool.finished(wait=True): ...
"""

import dataclasses
import functools
import os
import queue
import threading
import time
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from ceiling.tasks.base import Environment

ABANDONED = 64
OK, ERROR, TIMEOUT = "ok", "error", "timeout"


class Wording:
    """Calls in the agent's text, and tools' answers as tokens."""

    def __init__(self, environment: Environment, tokenizer):
        self.tokenizer, self.tags = tokenizer, tuple(environment.tags)
        if not self.tags or not all(self.tags):
            raise ValueError(f"environment: tags={self.tags} must be texts that end a call")
        self.opening, self.closing = (tokenizer.encode(x) for x in (environment.opening, environment.closing))
        self.room = environment.max_observation_tokens - len(self.opening) - len(self.closing)
        if self.room < 1 or not self.opening + self.closing:
            raise ValueError(
                f"environment: max_observation_tokens={environment.max_observation_tokens} must leave room between "
                f"opening and closing ({len(self.opening)} and {len(self.closing)} tokens, at least 1 together)"
            )
        self.pauses, longest = _vocabulary(tokenizer, self.tags)
        self.characters = longest * self.room
        self.banned = tuple({*tokenizer.special, *self.tags, environment.closing.strip() or environment.closing})
        self.failed = tokenizer.encode(environment.failed)[: self.room]

    def call(self, tokens: np.ndarray) -> str | None:
        """The agent's text since the last observation, if its last token completes a tag, alone or with text after
        it."""
        text, before = self.tokenizer.decode(tokens), self.tokenizer.decode(tokens[:-1])
        begun = len(os.path.commonprefix([before, text]))
        found = any(tag in text and text.rindex(tag) + len(tag) > begun for tag in self.tags)
        return text if found else None

    def observation(self, body: str | None) -> tuple[list[int], bool]:
        """Tokens that follow a call, and whether they hold the tool's answer. It is cut in characters before it is
        looked at, whatever its size, then cleared of texts that would pass for something else."""
        tokens = None
        if body is not None:
            try:
                tokens = self.tokenizer.encode(without(body[: self.characters], self.banned))
            except Exception:  # noqa: BLE001 - a tool's text must not end the run; it is counted
                pass
        answered = tokens is not None
        return [*self.opening, *(tokens[: self.room] if answered else self.failed), *self.closing], answered


def without(text: str, banned: Sequence[str]) -> str:
    """text less every occurrence of the banned texts, those that appear when others are taken out too."""
    banned = [b for b in banned if b]
    if not any(b in text for b in banned):
        return text
    kept, lasts = [], {b[-1] for b in banned}
    for character in text:
        kept.append(character)
        if character in lasts:
            for b in banned:
                if "".join(kept[-len(b) :]) == b:
                    del kept[-len(b) :]
                    break
    return "".join(kept)


@functools.lru_cache(maxsize=8)
def _vocabulary(tokenizer, tags: tuple[str, ...]) -> tuple[np.ndarray, int]:
    """(ids of the tokens that may complete a tag: their text has its last character, or, where that takes several
    bytes, a part of one; characters of the longest token)."""
    texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    lasts = {tag[-1] for tag in tags} | ({"\ufffd"} if any(ord(tag[-1]) > 127 for tag in tags) else set())
    pauses = [i for i, text in enumerate(texts) if not lasts.isdisjoint(text)]
    return np.asarray(pauses, np.int64), max(map(len, texts))


@dataclasses.dataclass(eq=False)
class _Job:
    key: Hashable
    arguments: tuple
    started: float | None = None  # seconds of the monotonic clock
    ended: float | None = None
    text: str | None = None
    abandoned: bool = False


class Pool:
    """Calls `call(*arguments) -> str` in at most `workers` threads, or, with 0, in the thread that asks for results
    (then nothing can be given up, and timeout_s is not looked at)."""

    def __init__(self, call: Callable[..., str], workers: int, timeout_s: float):
        if workers < 0 or timeout_s <= 0:
            raise ValueError(f"environment: {workers=} must be at least 0 and {timeout_s=} above 0")
        self._call, self._workers, self._timeout_s = call, workers, timeout_s
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._ended: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._open: dict[Hashable, _Job] = {}
        self._threads = 0  # that take jobs
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Calls whose result was not given out yet."""
        return len(self._open)

    def submit(self, key: Hashable, arguments: tuple) -> None:
        """Queue a call. key: names its result, and is not in use by another that is still open."""
        self._open[key] = job = _Job(key, arguments)
        self._waiting.put(job)
        if self._threads < min(self._workers, len(self._open)):
            self._start()

    def finished(self, wait: bool = False) -> list[tuple[Hashable, str | None, str]]:
        """(key, text or None, "ok" | "error" | "timeout") of every call that has ended since the last time; with
        `wait` at least one, if any is open. Raises RuntimeError when too many calls hang."""
        if not self._workers:
            while not self._waiting.empty():
                self._run(self._waiting.get())
        out = self._collected() + self._expired()
        while wait and self._open and not out:
            running = [job.started for job in self._open.values() if job.started is not None]
            rest = self._timeout_s if not running else min(running) + self._timeout_s - time.monotonic()
            try:
                out = [self._result(self._ended.get(timeout=max(0.0, rest)))]
            except queue.Empty:
                pass
            out = [r for r in out if r is not None] + self._expired()
        return out

    def close(self) -> None:
        """No further call is started; threads end with the call that they are in."""
        self._open.clear()
        while not self._waiting.empty():
            self._waiting.get()
        for _ in range(self._threads):
            self._waiting.put(None)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _collected(self) -> list:
        out = []
        while not self._ended.empty():
            out.append(self._result(self._ended.get()))
        return [r for r in out if r is not None]

    def _result(self, job: _Job):
        """What is said of a job that has ended; None if it was given up before. Late is late, whoever looked when."""
        if job.abandoned or self._open.pop(job.key, None) is None:
            return None
        if self._workers and job.ended - job.started > self._timeout_s:
            return job.key, None, TIMEOUT
        return job.key, job.text, ERROR if job.text is None else OK

    def _expired(self) -> list:
        """Give up what runs for too long."""
        late, until = [], time.monotonic() - self._timeout_s
        for job in list(self._open.values()) if self._workers else ():
            with self._lock:
                job.abandoned = job.started is not None and job.started < until and job.ended is None
            if job.abandoned:
                del self._open[job.key]
                late.append((job.key, None, TIMEOUT))
                self._replace(job)
        return late

    def _replace(self, job: _Job) -> None:
        _abandoned[:] = [a for a in _abandoned if a.ended is None] + [job]
        if len(_abandoned) > ABANDONED:
            raise RuntimeError(
                f"rollout: {len(_abandoned)} tool calls hang beyond environment.timeout_s={self._timeout_s:g}; let the "
                "tool give up by itself, or raise the limit"
            )
        self._start(more=0)

    def _start(self, more: int = 1) -> None:
        self._threads += more
        threading.Thread(target=self._work, daemon=True, name="tool").start()

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            self._run(job)
            if job.abandoned:  # another thread has this one's place
                return

    def _run(self, job: _Job) -> None:
        job.started = time.monotonic()
        try:
            text = self._call(*job.arguments)
        except (Exception, SystemExit):  # noqa: BLE001 - a tool must not end the run; it is counted
            text = None
        with self._lock:
            job.text, job.ended = text if isinstance(text, str) else None, time.monotonic()
        self._ended.put(job)


_abandoned: list[_Job] = []  # of all pools of this process
