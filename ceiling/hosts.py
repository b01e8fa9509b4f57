"""One run on several hosts: every host runs the same command, and process 0 leads.

All processes walk the same stages and dispatch the same programs on the same global arrays. What only one of them can
know is decided by the leader and told to the others: which stages are left, what a verifier said, when to save, when
to stop. Only the leader writes files; sharded arrays are written by all, through Orbax. The run directory lies on a
file system that all hosts see.

    with hosts.joined(config["hosts"]):             # processes=1: nothing happens, and all below costs nothing
        left = hosts.led(lambda: find_stages())     # called on the leader; its value everywhere

Every process holds one TCP connection to the leader, on the port below the coordinator's. It carries the roll call at
the start (jax.distributed ends a process whose peers do not come with a stack trace that names nobody), the leader's
values, and a sign of life every few seconds. A process that is gone ends all others within the heartbeat time-out,
with a line that names it; one that fails takes the others with it, with its own line. So nobody waits for ever in a
collective whose other side is dead. Messages are JSON; the network between the hosts is trusted, as jax trusts it.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import queue
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

from ceiling.version import __version__

FAILED = 2  # exit code of a process whose peer is gone or has failed, as of any other failure
SHARED_S = 60.0  # a network file system may show a new file this late
LAST_WORDS_S = 1.0  # from telling the others of a failure to the end
HELLO = "ceiling"

_group: "_Group | None" = None


def leader() -> bool:
    """Whether this process writes the run's files and decides for all."""
    return _group is None or _group.rank == 0


def led(call: Callable[[], object]):
    """call() of the leader, as plain JSON values, in every process. All must come here, in the same order."""
    if _group is None:
        return call()
    return _group.tell(call() if leader() else None)


def anywhere(flag: bool) -> bool:
    """Whether flag was ever true in any process: the same answer in all of them, perhaps one call late."""
    return flag if _group is None else _group.anywhere(flag)


def same(about: dict) -> None:
    """Raise RuntimeError, in every process, unless all of them bring the same values; the line names the first
    process that differs from the leader, and both values."""
    if _group is not None:
        _group.same(about)


def shared(directory: pathlib.Path) -> None:
    """Raise RuntimeError unless every process sees what the leader writes in this directory."""
    if _group is not None:
        path = directory / led(lambda: f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}.hosts")
        led(path.touch)
        seen(path)
        _group.wait()
        led(path.unlink)


def check_mesh(mesh: dict[str, int]) -> None:
    """Raise ValueError unless the mesh takes every device: a process without one could not follow."""
    if _group is not None:
        import jax

        if math.prod(mesh.values()) != jax.device_count():
            sizes = " * ".join(f"{axis}={size}" for axis, size in mesh.items())
            raise ValueError(
                f"config.mesh: {sizes} is not the {jax.device_count()} devices of {_group.count} processes; a run on "
                "several hosts takes them all"
            )


def seen(path: pathlib.Path) -> None:
    """Wait until a file that the leader has written is here too: network file systems show new ones late."""
    until = time.monotonic() + SHARED_S
    while not (leader() or path.exists()):
        if time.monotonic() > until:
            raise RuntimeError(
                f"process {_group.rank} of {_group.count} does not see {path}, which process 0 has written; the run "
                "directory must lie on a file system that all hosts share"
            )
        time.sleep(0.2)


def end(code: int) -> None:
    """End this process after a failure. One of several must not wait for the others on its way out."""
    if _group is None:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def code_version() -> str:
    """The version and a hash of every source file of this package."""
    root, total = pathlib.Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{__version__}+{total.hexdigest()[:12]}"


class joined:
    """`with joined(settings):` this process is one of the run's; leaving it waits for the others.

    settings: the config's section `hosts`; harmless: exceptions that all processes raise together. Raises RuntimeError
    in one line if the processes do not find each other in time, ValueError if the settings cannot be."""

    def __init__(self, settings: dict, harmless: tuple[type[Exception], ...] = ()):
        self.settings, self.harmless = settings, harmless

    def __enter__(self):
        global _group
        self.active = self.settings["processes"] != 1 and _group is None
        if self.active:
            _group = _Group(**self.settings)

    def __exit__(self, kind, error, _):
        global _group
        if not self.active:
            return
        if kind is None or issubclass(kind, self.harmless):
            _group.leave()
            _group = None
        else:
            _group.fail(error)  # stays a group: the process must go by `end`


class _Group:
    """This process among the others: lines[rank] to each follower in the leader, lines[0] to the leader in a
    follower."""

    def __init__(self, processes: int, process: int, coordinator: str, start_timeout_s: float,
                 heartbeat_timeout_s: float):  # fmt: skip
        coordinator, self.count, self.rank = _place(coordinator, processes, process, start_timeout_s)
        self.heartbeat_s, self.asked, self.over = heartbeat_timeout_s, False, threading.Event()
        host, port = re.fullmatch(r"(.+):(\d+)", coordinator).groups()
        meet = _call_roll if self.rank == 0 else _answer
        self.lines: dict[int, _Line] = meet(host, int(port) - 1, self.count, self.rank, start_timeout_s)
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

    def _send(self, line: "_Line", text: str) -> None:
        with contextlib.suppress(OSError):  # who listens there sees it too, and knows what to do
            line.send("value", text)

    def _beat(self) -> None:
        while not self.over.wait(min(5.0, self.heartbeat_s / 4)):
            for line in self.lines.values():
                with contextlib.suppress(OSError):
                    line.send("beat")

    def _listen(self, rank: int, line: "_Line") -> None:
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


class _Line:
    """Messages (kind, text) over a connection; values: those of kind "value", unpacked, in order."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.values, self.lock = connection, queue.SimpleQueue(), threading.Lock()

    def send(self, kind: str, text: str = "") -> None:
        body = f"{kind} {text}".encode()
        with self.lock:
            self.socket.sendall(struct.pack(">Q", len(body)) + body)

    def receive(self) -> tuple[str, str]:
        (size,) = struct.unpack(">Q", self._exactly(8))
        kind, _, text = self._exactly(size).decode().partition(" ")
        return kind, text

    def _exactly(self, size: int) -> bytes:
        out = bytearray()
        while len(out) < size:
            part = self.socket.recv(min(size - len(out), 1 << 20))
            if not part:
                raise ConnectionError("it closed the connection")
            out += part
        return bytes(out)


def _place(coordinator: str, processes: int, process: int, timeout_s: float) -> tuple[str, int, int]:
    """(coordinator, count, rank): what the config says, and the launcher where it says nothing."""
    from jax._src.clusters import ClusterEnv  # jax.distributed.initialize's own detection, which has no public name

    if coordinator and not re.fullmatch(r".+:\d+", coordinator):
        raise ValueError(f"config.hosts.coordinator={coordinator!r} must be HOST:PORT of process 0")
    known = coordinator or None, processes or None, process if process >= 0 else None
    if None in known:
        known = ClusterEnv.auto_detect_unset_distributed_params(*known, None, None, round(timeout_s))[:3]
    for name, value in zip(("coordinator", "processes", "process"), known, strict=True):
        if value is None:
            raise ValueError(f"config.hosts.{name} is not set, and no launcher that jax knows (Slurm, ...) says it")
    if known[2] >= known[1]:
        raise ValueError(f"config.hosts.process={known[2]} must be below config.hosts.processes={known[1]}")
    return known


def _call_roll(host: str, port: int, count: int, rank: int, timeout_s: float) -> dict[int, _Line]:
    """The leader's connections, once every process has come."""
    until, lines = time.monotonic() + timeout_s, {}
    with _server(port) as server:
        while len(lines) < count - 1:
            server.settimeout(max(0.01, until - time.monotonic()))
            try:
                connection, address = server.accept()
            except TimeoutError:
                break
            line = _Line(connection)
            try:
                connection.settimeout(5.0)
                hello, text = line.receive()
                theirs, their_count = map(int, text.split())
            except (OSError, ValueError, struct.error):
                hello = None
            if hello != HELLO:
                connection.close()  # not one of ours
                continue
            problem = None
            if their_count != count:
                problem = f"process {theirs} was started as one of {their_count}, process 0 as one of {count}"
            elif theirs in (0, *lines):
                problem = f"two processes say that they are process {theirs} of {count} (one at {address[0]})"
            lines[theirs] = line
            if problem:
                raise _refused(lines, problem)
    if missing := [str(r) for r in range(1, count) if r not in lines]:
        who = f"process {missing[0]}" if len(missing) == 1 else f"processes {', '.join(missing)}"
        raise _refused(lines, f"{who} of {count} did not come within {timeout_s:g} s (here: "
                              f"{', '.join(map(str, sorted([0, *lines])))})")  # fmt: skip
    for line in lines.values():
        line.send("go")
    return lines


def _refused(lines: dict[int, _Line], problem: str) -> RuntimeError:
    for line in lines.values():
        with contextlib.suppress(OSError):
            line.send("failed", problem)
    return RuntimeError(problem)


def _answer(host: str, port: int, count: int, rank: int, timeout_s: float) -> dict[int, _Line]:
    """A follower's connection, once every process has come."""
    until, reason = time.monotonic() + timeout_s, ""
    while (left := until - time.monotonic()) > 0:
        try:
            line = _Line(socket.create_connection((host, port), timeout=min(5.0, left)))
            break
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(0.2)
    else:
        where = f"{host}:{port}" + ", which is this host itself," * (host in ("localhost", "127.0.0.1", "::1"))
        raise RuntimeError(
            f"process {rank} of {count} did not reach process 0 at {where} within {timeout_s:g} s ({reason})"
        )
    line.socket.settimeout(timeout_s + 10)
    try:
        line.send(HELLO, f"{rank} {count}")
        kind, text = line.receive()
    except OSError as error:
        kind, text = "failed", f"process 0 of {count} is gone ({error.strerror or error})"
    if kind != "go":
        raise RuntimeError(text)
    return {0: line}


def _server(port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=1024)
    except OSError as error:
        raise RuntimeError(
            f"config.hosts.coordinator: port {port}, the one below the coordinator's, cannot be used on this host "
            f"({error.strerror}); choose another"
        ) from None


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
