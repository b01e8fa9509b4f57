"""A TCP connection between a process and the leader, and the port that the leader listens on.

A message is its length (eight bytes, big-endian), a kind, a space, and a text, JSON where it is a value. Nothing is
encrypted or authenticated: the network between the hosts is trusted, as jax trusts it.
"""

import queue
import socket
import struct
import threading


class Connection:
    """Messages (kind, text) over a socket; values: those of kind "value", unpacked, in order."""

    def __init__(self, connected: socket.socket):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.values, self.lock = connected, queue.SimpleQueue(), threading.Lock()

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


def server(port: int) -> socket.socket:
    """Listens on every address of this host. Raises RuntimeError in one line where the port is taken."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=1024)
    except OSError as error:
        raise RuntimeError(
            f"config.hosts.coordinator: port {port}, the one below the coordinator's, cannot be used on this host "
            f"({error.strerror}); choose another"
        ) from None
