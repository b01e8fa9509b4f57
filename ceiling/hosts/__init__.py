"""One run on several hosts: every host runs the same command, and process 0 leads.

All processes walk the same stages and dispatch the same programs on the same global arrays. What only one of them can
know is decided by the leader and told to the others: which stages are left, what a verifier said, when to save, when
to stop. Only the leader writes files; sharded arrays are written by all, through Orbax. The run directory lies on a
file system that all hosts see.

    with hosts.joined(config["hosts"]):             # processes=1: nothing happens, and all below costs nothing
        left = hosts.led(lambda: find_stages())     # called on the leader; its value everywhere

Every process holds one TCP connection to the leader (connection.py), on the port below the coordinator's. It carries
the roll call at the start (roll_call.py), then the leader's values and a sign of life every few seconds (group.py). A
process that is gone ends all others within the heartbeat time-out, with a line that names it; one that fails takes the
others with it, with its own line. So nobody waits for ever in a collective whose other side is dead.
"""

import hashlib
import math
import os
import pathlib
import socket
import sys
import time
from collections.abc import Callable

from ceiling.hosts.group import FAILED as FAILED
from ceiling.hosts.group import Group
from ceiling.version import __version__

SHARED_S = 60.0  # a network file system may show a new file this late

_group: Group | None = None


def leader() -> bool:
    """Whether this process writes the run's files and decides for all."""
    return _group is None or _group.rank == 0


def alone() -> bool:
    """Whether this process need not keep step with any other."""
    return _group is None


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
    root, total = pathlib.Path(__file__).parents[1], hashlib.sha256()
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
            _group = Group(**self.settings)

    def __exit__(self, kind, error, _):
        global _group
        if not self.active:
            return
        if kind is None or issubclass(kind, self.harmless):
            _group.leave()
            _group = None
        else:
            _group.fail(error)  # stays a group: the process must go by `end`
