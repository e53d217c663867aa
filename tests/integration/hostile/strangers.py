"""A process of another user that speaks to our sockets, or listens in their place."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.integration.containerd import BOUND_S

NOBODY = 65534
PATIENCE_S = 20
WAITED = 77  # the exit code of a child that was not answered


def as_somebody_else(act: Callable[[], int], folder: Path, uid: int, gid: int) -> int:
    """The exit code of ``act``, run in ``folder`` by another user.

    It enters the folder as root: those above it may be closed to others.
    """
    child = start_as(act, folder, uid, gid)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start_as(act: Callable[[], int], folder: Path, uid: int, gid: int) -> int:
    """Begins what ``as_somebody_else`` does; the child's pid."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(BOUND_S)
        os.chdir(folder)
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        code = act()
    finally:
        os._exit(code)


def asks(name: str, kind: int, *datagrams: bytes) -> Callable[[], int]:
    """Connects to the socket ``name`` of the working directory and says ``datagrams``.

    The exit code is 0 when the other end has closed the connection without a word.
    """

    def act() -> int:
        with socket.socket(socket.AF_UNIX, kind) as client:
            client.settimeout(PATIENCE_S)
            client.connect(name)
            try:
                for datagram in datagrams:
                    client.sendall(datagram)
                return WAITED if client.recv(1) else 0
            except (BrokenPipeError, ConnectionResetError):
                return 0
            except TimeoutError:
                return WAITED

    return act


@contextlib.contextmanager
def impostor(path: Path, uid: int = NOBODY) -> Iterator[Path]:
    """Somebody else listens at ``path``, and writes down what is said there to the file returned.

    Its folder becomes one that everybody may write to, as this takes it.
    """
    folder = path.parent
    folder.mkdir(exist_ok=True)
    mode = folder.stat().st_mode
    folder.chmod(0o777)
    heard = folder / "heard"

    def listen() -> int:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path.name)
            os.chmod(path.name, 0o777)
            listener.listen(8)
            Path("listens").touch()
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(PATIENCE_S)
                    data = connection.recv(1000)
                    with open("heard", "ab") as file:
                        file.write(data or b"nothing\n")

    child = start_as(listen, folder, uid, uid)
    try:
        deadline = time.monotonic() + BOUND_S
        while not (folder / "listens").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield heard
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for name in (path.name, "listens", "heard"):
            (folder / name).unlink(missing_ok=True)
        folder.chmod(mode)
