"""Runs stages in the order of their needs: in this process, or several at once in worker processes.

A worker is `python -m ceiling.workers`: it reads one JSON job per line, runs it, and answers with JSON
events. It ends when its input closes, so a killed run leaves no orphan behind. A stage writes into
`<key>.tmp`, renamed to `<key>` when complete: an output directory exists whole or not at all. What a killed stage
left in the folder `unfinished` of its `.tmp` it continues from; the key says that it belongs to the same settings.

A run that is asked to stop (train/signals.py) starts nothing more, passes the signal on to its workers, and waits
until each has saved.
"""

import json
import os
import pathlib
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable

from ceiling import hosts, pages, programs, tracking
from ceiling.train import signals

UNFINISHED = "unfinished"  # folder of a stage for what a later call continues from; gone from a complete one
REPORT_EVERY_S = 0.5  # a stage's progress events are thinned to this


def execute(
    stages, workdir: pathlib.Path, workers: int, progress, finished: Callable, pointless: Callable, grace_s: float
) -> None:
    """Run every stage whose output is missing. finished(stage, pending) is called after each; pointless(stage) is
    asked again before each start, and what it holds for is left out; grace_s: how long a worker that is asked to stop
    may take. Raises signals.Stopped if that leaves something undone."""
    waiting, finished_before = [], hosts.led(lambda: [stage.directory(workdir).exists() for stage in stages])
    for stage, there in zip(stages, finished_before, strict=True):
        if there:
            progress.skip(stage.name)
        else:
            waiting.append(stage)
    if workers == 1:
        _in_process(waiting, workdir, progress, finished, pointless)
    elif waiting:
        _in_parallel(waiting, workdir, min(workers, len(waiting)), progress, finished, pointless, grace_s)


def job(stage, workdir: pathlib.Path) -> dict:
    """A stage as plain JSON: what a worker needs to know."""
    return {
        "name": stage.name, "kind": stage.kind, "settings": stage.settings, "how": stage.how,
        "workdir": str(workdir), "out": str(stage.directory(workdir)),
        "needs": {name: str(need.directory(workdir)) for name, need in stage.needs.items()},
    }  # fmt: skip


def perform(job: dict, report: Callable[[dict], None], log: Callable[[str], None]) -> None:
    """Run one job here; its output directory appears complete or not at all. On several hosts the leader makes it."""
    from ceiling import stages  # imports jax: only the process that computes pays for it

    out = pathlib.Path(job["out"])
    temporary = out.with_name(out.name + ".tmp")
    if hosts.leader():
        _clear(temporary)
    needs = {name: pathlib.Path(path) for name, path in job["needs"].items()}
    last, held = 0.0, {}

    def thinned(event: dict) -> None:
        nonlocal last
        held.update(event)
        if time.monotonic() - last > REPORT_EVERY_S:
            last = time.monotonic()
            report(held)

    said = lambda line: log(f"{job['name']}: {line}")  # noqa: E731
    track = None
    if hosts.leader():
        track = tracking.target(job["how"]["tracking"], job["workdir"], job["name"], out.name, said)
    began = time.perf_counter()
    stages.STAGES[job["kind"]](
        stages.Context(job["settings"], job["how"], out.name, needs, temporary, thinned, said, track)
    )
    report({**held, "progress": 1.0})  # where the stage ended, whatever was thinned
    record = {key: job[key] for key in ("name", "settings", "how")} | {"seconds": time.perf_counter() - began}

    def complete() -> None:
        (temporary / "stage.json").write_text(json.dumps(record, indent=1))
        temporary.rename(out)
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)  # not before: a kill just now must lose nothing

    hosts.led(complete)
    hosts.seen(out / "stage.json")


def _clear(temporary: pathlib.Path) -> None:
    """The directory of a stage in progress, with nothing of an earlier call but what it may continue from."""
    temporary.mkdir(parents=True, exist_ok=True)
    for path in temporary.iterdir():
        if path.is_dir() and path.name != UNFINISHED:
            shutil.rmtree(path)
        elif not path.is_dir():
            path.unlink()


def _in_process(waiting, workdir, progress, finished, pointless) -> None:
    for i, stage in enumerate(waiting):
        if hosts.led(lambda stage=stage: pointless(stage)):
            progress.drop(stage.name)
            continue
        signals.check(f"before {stage.name}")
        progress.start(stage.name)
        try:
            perform(job(stage, workdir), lambda event, name=stage.name: progress.update(name, event), progress.log)
        except signals.Stopped as stop:
            raise signals.Stopped(f"in {stage.name} {stop.where}") from None
        except Exception as error:  # noqa: BLE001 - named by its stage; the cause stays attached
            raise RuntimeError(f"{stage.name} failed: {_one_line(error)}") from error
        progress.finish(stage.name)
        finished(stage, len(waiting) - i - 1)


def _in_parallel(waiting, workdir, count, progress, finished, pointless, grace_s) -> None:
    events: queue.Queue = queue.Queue()
    pool = [_Worker(i, workdir, events, grace_s) for i in range(count)]
    running: dict[int, object] = {}
    waiting, asked, stopped = list(waiting), False, []
    signals.notify(lambda: events.put((None, {"event": "asked"})))
    try:
        while running or (waiting and not asked):
            for stage in [s for s in waiting if pointless(s)]:
                waiting.remove(stage)
                progress.drop(stage.name)
            if not waiting and not running:
                break
            for worker in () if asked else pool:
                ready = next((s for s in waiting if all(n.directory(workdir).exists() for n in s.needs.values())), None)
                if worker.index not in running and ready is not None:
                    waiting.remove(ready)
                    running[worker.index] = ready
                    progress.start(ready.name)
                    worker.send(job(ready, workdir))
            index, event = events.get()
            stage = running.get(index)
            if event["event"] in ("asked", "stopped") and not asked:
                asked = True  # a worker that heard the signal first speaks for all
                for each in running:
                    pool[each].process.terminate()
            if event["event"] == "stopped":
                stopped.append(f"in {stage.name} {event['where']}")
                del running[index]
            elif event["event"] == "ended" and asked and event["code"] in (signals.EXIT_CODE, -signal.SIGTERM):
                if stage:
                    stopped.append(f"in {stage.name}, within its step")
                    del running[index]
            elif event["event"] == "progress":
                progress.update(stage.name, event["values"])
            elif event["event"] == "log":
                progress.log(event["line"])
            elif event["event"] == "done":
                progress.finish(stage.name)
                del running[index]
                finished(stage, len(waiting) + len(running))
            elif event["event"] in ("error", "ended"):
                name = stage.name if stage else f"worker {index}"
                raise RuntimeError(f"{name} failed: {event['message']} (details: {pool[index].log_path})")
    finally:
        for worker in pool:
            worker.stop()
    if stopped or waiting:
        raise signals.Stopped(", ".join(stopped) or f"before {waiting[0].name}")


class _Worker:
    """A child process and a thread that turns its output into events on a shared queue."""

    def __init__(self, index: int, workdir: pathlib.Path, events: queue.Queue, grace_s: float):
        self.index = index
        self.log_path = workdir / f"worker{index}.log"
        # One computing thread each: two workers on two cores do not fight over them, and results do
        # not depend on how many cores there are.
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        env = {
            **os.environ, **programs.environment(), **pages.environment(), "OMP_NUM_THREADS": "1",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
        }  # fmt: skip
        package_root = str(pathlib.Path(__file__).parents[1])
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, env.get("PYTHONPATH", "")]))
        self.log = open(self.log_path, "a")  # noqa: SIM115 - closed in stop
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ceiling.workers", str(grace_s)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log, env=env, text=True, bufsize=1,
        )  # fmt: skip
        self.listener = threading.Thread(target=self._listen, args=(events,), daemon=True)
        self.listener.start()

    def send(self, work: dict) -> None:
        self.process.stdin.write(json.dumps(work) + "\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        self.process.kill()
        self.listener.join()  # it reads the output to its end
        for pipe in (self.process.stdin, self.process.stdout, self.log):
            pipe.close()

    def _listen(self, events: queue.Queue) -> None:
        for line in self.process.stdout:
            events.put((self.index, json.loads(line)))
        code = self.process.wait()
        events.put((self.index, {"event": "ended", "code": code, "message": f"worker process ended with code {code}"}))


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def main() -> None:
    """The worker: jobs in on stdin, events out on stdout; everything else printed goes to stderr. argv: the seconds
    that it may take to stop once it is asked to."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    jobs: queue.Queue = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            jobs.put(json.loads(line))
        os._exit(0)  # the parent is gone: stop at once, the unfinished directory stays a .tmp

    threading.Thread(target=read, daemon=True).start()

    def say(event: str, **values) -> None:
        out.write(json.dumps({"event": event, **values}) + "\n")

    with signals.watched(float(sys.argv[1])):
        while True:
            work = jobs.get()
            try:
                perform(work, lambda values: say("progress", values=values), lambda line: say("log", line=line))
            except signals.Stopped as stop:
                say("stopped", where=stop.where)
            except Exception as error:  # noqa: BLE001 - reported to the parent, which stops the run
                traceback.print_exc()
                say("error", message=_one_line(error))
            else:
                say("done")


if __name__ == "__main__":
    main()
