"""Sockets that stand where a zygote's should be."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.integration.containerd import BOUND_S

MAGIC = 0x5053595A
START_MONITOR, BEGUN = 4, 6
NOBODY = 65534

Answer = Callable[[socket.socket], None]


class Impostor:
    """Listens at ``path``, as another user if need be, and gives each connection to ``answer``.

    A connection stays open until the end, and with ``keeps`` the descriptors that have come by it;
    else they are closed at once.  ``heard`` are the first datagrams.
    """

    def __init__(self, path: Path, answer: Answer, uid: int = 0, keeps: bool = True) -> None:
        self.path = path
        self.heard: list[bytes] = []
        self.connected = threading.Event()
        self._answer = answer
        self._keeps = keeps
        self._kept = contextlib.ExitStack()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        listen_as(self._listener, uid)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it; whoever replaced the socket keeps it."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(BOUND_S)
        self._listener.close()
        self._kept.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._kept.enter_context(connection)
                self.connected.set()
                with contextlib.suppress(OSError):
                    connection.settimeout(BOUND_S)
                    data, fds, _, _ = socket.recv_fds(connection, 4096, 8)
                    for fd in fds:
                        if self._keeps:
                            self._kept.callback(os.close, fd)
                        else:
                            os.close(fd)
                    if data:
                        self.heard.append(data)
                        self._answer(connection)


def listen_as(listener: socket.socket, uid: int) -> None:
    """listen(2) with the effective user ``uid``, which is what SO_PEERCRED then says."""
    if not uid:
        listener.listen(64)
        return
    os.seteuid(uid)
    try:
        listener.listen(64)
    finally:
        os.seteuid(0)


def silent(_connection: socket.socket) -> None:
    """Says nothing."""


def garbage(connection: socket.socket) -> None:
    """Says what nobody understands, and goes on."""
    for _ in range(100):
        connection.send(b"\xff" * 100)


def hangs_up(connection: socket.socket) -> None:
    """Goes without a word."""
    connection.shutdown(socket.SHUT_RDWR)


def wrong_descriptors(connection: socket.socket) -> None:
    """Asks for a monitor with descriptors that are none of a zygote's."""
    with open(os.devnull, "rb") as null:
        wanted = struct.pack("<II", MAGIC, START_MONITOR)
        socket.send_fds(connection, [wanted], [null.fileno()] * 3)


def no_descriptor(connection: socket.socket) -> None:
    """Begins, and cannot be ended."""
    connection.send(struct.pack("<IIi", MAGIC, BEGUN, os.getpid()))


class HungChildren:
    """Processes that begin to answer and do not go on, as children of a zygote that are stopped."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, connection: socket.socket) -> None:
        """BEGUN, with another process as its pidfd, and no more."""
        process = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
        self.processes.append(process)
        pidfd = os.pidfd_open(process.pid)
        try:
            begun = struct.pack("<IIi", MAGIC, BEGUN, process.pid)
            socket.send_fds(connection, [begun], [pidfd])
        finally:
            os.close(pidfd)

    def end(self) -> list[int]:
        """Their exit statuses; those that have not ended are ended."""
        for process in self.processes:
            process.terminate()
        return [process.wait(BOUND_S) for process in self.processes]


@contextlib.contextmanager
def impostor(path: Path, answer: Answer, uid: int = 0, keeps: bool = True) -> Iterator[Impostor]:
    """An Impostor that is closed in the end."""
    made = Impostor(path, answer, uid, keeps)
    try:
        yield made
    finally:
        made.close()
