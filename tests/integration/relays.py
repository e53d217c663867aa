"""Runs a portproxy-relay (or a docker-proxy) between sockets of the test, over loopback only."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

BOUND_S = 30
MIB = 1 << 20


def eventually(true: Callable[[], object], what: str) -> None:
    """Polls until ``true()``; fails the test with ``what`` at the bound."""
    deadline = time.monotonic() + BOUND_S
    while not true():
        assert time.monotonic() < deadline, f"not within {BOUND_S} s: {what}"
        select.select([], [], [], 0.01)


def free_port(family: int = socket.AF_INET) -> int:
    """A port that nobody listens on."""
    with socket.socket(family) as probe:
        probe.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_datagram_port() -> int:
    """A port that no IPv4 datagram socket has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])


def settings(**wanted: str | int) -> dict[str, str]:
    """An environment with settings of the relay: ``idle_timeout="1s"``."""
    named = {f"PORTPROXY_{name.upper()}": str(value) for name, value in wanted.items()}
    return {**os.environ, **named}


def options(
    host_port: int,
    port: int,
    host: str = "127.0.0.1",
    proto: str = "tcp",
    container: str = "127.0.0.1",
) -> list[str]:
    """What an engine passes."""
    listen = ["-proto", proto, "-host-ip", host, "-host-port", str(host_port)]
    return [*listen, "-container-ip", container, "-container-port", str(port)]


class Launched:
    """One relay, with a status pipe on fd 3."""

    def __init__(
        self,
        command: list[str],
        listener: int | None = None,
        first: str = "",
        env: dict[str, str] | None = None,
    ) -> None:
        # A shell puts the descriptors in place: Popen's own pipe may be number 3 in its child.
        self.pipe, low = os.pipe()
        theirs = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 10)
        os.close(low)
        passed = [theirs] if listener is None else [theirs, listener]
        place = f"exec 3>&{theirs} {theirs}>&-"
        if listener is not None:
            place += f" 4<&{listener}"
        script = f'{first} {place}; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "sh", *command], pass_fds=passed, stderr=subprocess.PIPE, env=env
        )
        os.close(theirs)

    def answer(self) -> bytes:
        """Everything that the status pipe says."""
        said = b""
        while select.select([self.pipe], [], [], BOUND_S)[0]:
            part = os.read(self.pipe, 4096)
            if not part:
                return said
            said += part
        pytest.fail("the status pipe stays open")

    def memory_kb(self) -> int:
        """The most resident memory it has had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(x for x in status.splitlines() if x.startswith("VmHWM")).split()[1])

    def fds(self) -> int:
        """How many descriptors it holds."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def private_kb(self) -> int:
        """Its memory that it shares with nobody."""
        rollup = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))

    def end(self) -> None:
        """Kills it if it still runs."""
        os.close(self.pipe)
        self.process.kill()
        self.process.communicate(timeout=BOUND_S)


class Forwarded:
    """A backend and a relay in front of it."""

    def __init__(
        self,
        binary: str,
        host: str = "127.0.0.1",
        first: str = "",
        env: dict[str, str] | None = None,
        container: str = "127.0.0.1",
    ) -> None:
        family = socket.AF_INET6 if ":" in container else socket.AF_INET
        self.backend = socket.create_server((container, 0), family=family)
        self.backend.settimeout(BOUND_S)
        six = ":" in host
        self.where = (host, free_port(socket.AF_INET6 if six else socket.AF_INET))
        port = self.backend.getsockname()[1]
        command = [binary, *options(self.where[1], port, host, container=container)]
        self.relay = Launched(command, first=first, env=env)
        self.sockets: list[socket.socket] = [self.backend]
        try:
            assert self.relay.answer() == b"0\n"
        except BaseException:
            self.end()
            raise

    def client(self, receive_bytes: int = 0) -> socket.socket:
        """A connection to the relay."""
        client = socket.socket(socket.AF_INET6 if ":" in self.where[0] else socket.AF_INET)
        self.sockets.append(client)
        client.settimeout(BOUND_S)
        if receive_bytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.connect(self.where)
        return client

    def pair(self, receive_bytes: int = 0) -> tuple[socket.socket, socket.socket]:
        """A client and what the backend accepted for it."""
        client = self.client(receive_bytes)
        accepted, _ = self.backend.accept()
        self.sockets.append(accepted)
        accepted.settimeout(BOUND_S)
        return client, accepted

    def end(self) -> None:
        """Leaves nothing behind."""
        self.relay.end()
        for each in self.sockets:
            each.close()


class Datagrams:
    """A backend for datagrams and a relay in front of it."""

    def __init__(
        self,
        binary: str,
        host: str = "127.0.0.1",
        container: str = "127.0.0.1",
        env: dict[str, str] | None = None,
    ) -> None:
        self.sockets: list[socket.socket] = []
        self.container = container
        self.backend = self.socket(container)
        self.backend.bind((container, 0))
        self.port = free_datagram_port()
        self.host = host
        behind = self.backend.getsockname()[1]
        command = [binary, *options(self.port, behind, host, "udp", container)]
        self.relay = Launched(command, env=env)
        try:
            assert self.relay.answer() == b"0\n"
        except BaseException:
            self.end()
            raise

    def socket(self, host: str) -> socket.socket:
        """A datagram socket for the family of ``host``; closed by ``end``."""
        made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.sockets.append(made)
        made.settimeout(BOUND_S)
        return made

    def client(self, to: str = "127.0.0.1") -> socket.socket:
        """A socket that is connected to the relay, so that it only takes answers from ``to``."""
        made = self.socket(to)
        made.connect((to, self.port))
        return made

    def exchange(self, client: socket.socket, request: bytes, answer: bytes) -> tuple[str, int]:
        """One request and its answer; whom the backend saw."""
        client.send(request)
        got, seen = self.backend.recvfrom(65536)
        assert got == request
        self.backend.sendto(answer, seen)
        assert client.recv(65536) == answer
        return seen[0], seen[1]

    def end(self) -> None:
        """Leaves nothing behind."""
        self.relay.end()
        for each in self.sockets:
            each.close()


def read_all(source: socket.socket) -> bytes:
    """Everything up to the FIN."""
    parts = []
    while part := source.recv(MIB):
        parts.append(part)
    return b"".join(parts)


def send_and_finish(target: socket.socket, data: bytes) -> threading.Thread:
    """Sends in the background, then a FIN for this direction."""

    def work() -> None:
        with contextlib.suppress(OSError):
            target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def reset(target: socket.socket) -> None:
    """Closes with a reset."""
    target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    target.close()


def digest(data: bytes) -> str:
    """What is compared instead of megabytes."""
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"
