"""The roll call: who the processes of a run are, and a connection from each to the leader before anything else starts.

jax.distributed alone would end a process whose peers do not come with a stack trace that names nobody.
"""

import contextlib
import re
import socket
import struct
import time

from ceiling.hosts.connection import Connection, server

HELLO = "ceiling"


def place(coordinator: str, processes: int, process: int, timeout_s: float) -> tuple[str, int, int]:
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


def meet(coordinator: str, count: int, rank: int, timeout_s: float) -> dict[int, Connection]:
    """Connections by rank, once every process has come: to each follower in the leader, to the leader in a follower.
    Raises RuntimeError in one line, on every host, that names who did not come or does not belong."""
    host, port = re.fullmatch(r"(.+):(\d+)", coordinator).groups()
    port = int(port) - 1  # jax has the coordinator's own
    return _call(port, count, timeout_s) if rank == 0 else _answer(host, port, count, rank, timeout_s)


def _call(port: int, count: int, timeout_s: float) -> dict[int, Connection]:
    """The leader's connections, once every process has come."""
    until, lines = time.monotonic() + timeout_s, {}
    with server(port) as door:
        while len(lines) < count - 1:
            door.settimeout(max(0.01, until - time.monotonic()))
            try:
                connected, address = door.accept()
            except TimeoutError:
                break
            line = Connection(connected)
            try:
                connected.settimeout(5.0)
                hello, text = line.receive()
                theirs, their_count = map(int, text.split())
            except (OSError, ValueError, struct.error):
                hello = None
            if hello != HELLO:
                connected.close()  # not one of ours
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


def _refused(lines: dict[int, Connection], problem: str) -> RuntimeError:
    for line in lines.values():
        with contextlib.suppress(OSError):
            line.send("failed", problem)
    return RuntimeError(problem)


def _answer(host: str, port: int, count: int, rank: int, timeout_s: float) -> dict[int, Connection]:
    """A follower's connection, once every process has come."""
    until, reason = time.monotonic() + timeout_s, ""
    while (left := until - time.monotonic()) > 0:
        try:
            line = Connection(socket.create_connection((host, port), timeout=min(5.0, left)))
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
