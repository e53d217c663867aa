"""What a child of the zygote does: one life after another, each as a service or for a launcher.

Between two lives it is as if it had just been forked: what it opened is closed, what it entered is
left, and no task, timer or object of the one before can reach the next.  Where that cannot be seen
to be so, it ends instead.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING

from pyshim.monitor import channel
from pyshim.monitor.fds import receive
from pyshim.runtime import program
from pyshim.zygote import messages, spares
from pyshim.zygote.messages import Kind

if TYPE_CHECKING:
    import asyncio

    from pyshim.zygote.copies import Copy

REQUEST_TIMEOUT_S = 5.0
# Whatever one life has left in memory ends with the last.
MAX_LIVES = 200


def become(end: socket.socket, path: str, connection: socket.socket | None, copy: Copy) -> None:
    """Does what a connection asks for: ``connection``, then those that come from ``end``.

    Without the first it is a spare, which has time to get ready.  ``copy`` is the zygote's.
    Never returns.
    """
    code = 1
    try:
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.umask(0o022)
        os.setsid()
        code = live(end, path, connection, copy)
    except BaseException as error:  # whatever it is, nobody above us may see it
        with contextlib.suppress(OSError):
            os.write(2, f"pyshim: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def live(end: socket.socket, path: str, connection: socket.socket | None, copy: Copy) -> int:
    """All lives; the exit code of the last."""
    if connection is None:
        copy.close()
    fd, about = copy.fd, copy.about
    before = place(but=(connection is not None) + (fd >= 0))
    loop = None
    if connection is None:
        spares.rename(spares.NAME)
        rehearse()
        loop = prepare()
        connection, fd, about = spares.await_connection(end)
    for _ in range(MAX_LIVES):
        program.begin(fd, about)
        with connection:
            code = answer(connection, path, loop)
        used = program.end()
        if loop is not None and not loop.is_closed():
            loop.close()
        if code or place() != before:
            return code
        loop = prepare()
        spares.come_back(end, used)
        connection, fd, about = spares.await_connection(end)
    return 0


def rehearse() -> None:
    """One life of a service that is none; one that fails has cost us only time."""
    with contextlib.suppress(Exception):
        importlib.import_module("pyshim.zygote.rehearsal").run()


def prepare() -> asyncio.AbstractEventLoop | None:
    """The loop of a service to come."""
    with contextlib.suppress(ImportError):
        loop: asyncio.AbstractEventLoop = importlib.import_module(
            "pyshim.service.activation"
        ).prepare()
        return loop
    return None


def place(but: int = 0) -> tuple[int, int, int]:
    """What no life may leave changed: how many files are open, without ``but``; where; threads.

    A thread is one that waits for a mount still, and would mount it in the midst of another life.
    """
    files = len(os.listdir("/proc/self/fd")) - but
    return files, os.stat("/proc/self/ns/mnt").st_ino, threading.active_count()


def answer(
    connection: socket.socket, path: str, loop: asyncio.AbstractEventLoop | None = None
) -> int:
    """Reads the request and carries it out; a service runs on ``loop`` when there is one."""
    if messages.peer(connection)[1] != os.geteuid():
        return 1
    connection.settimeout(REQUEST_TIMEOUT_S)
    data, fds, _ = receive(connection, messages.HEADER.size, 8, socket.MSG_CMSG_CLOEXEC)
    connection.settimeout(None)
    if data == messages.header(Kind.ACTIVATE) and len(fds) == 1:
        connection.close()
        return activate(fds[0], loop)
    if data == messages.header(Kind.RUN) and len(fds) == 3:
        return run_for(connection, fds, path)
    return 1


def activate(fd: int, loop: asyncio.AbstractEventLoop | None) -> int:
    """Becomes a service on the channel ``fd``."""
    service = importlib.import_module("pyshim.service.activation")
    code = service.main(socket.socket(fileno=fd), loop=loop)
    return code if isinstance(code, int) else 0


def run_for(launcher: socket.socket, fds: list[int], path: str) -> int:
    """Becomes what the launcher was asked to be, and gives it the answer to print.

    Nothing is done before the launcher's word: one that has waited too long does it without us.
    """
    with contextlib.ExitStack() as kept:
        ourselves = []
        with contextlib.suppress(OSError):  # older than Linux 5.3
            ourselves = [os.pidfd_open(os.getpid())]
            kept.callback(os.close, ourselves[0])
        begun = messages.with_value(Kind.BEGUN, os.getpid())
        socket.send_fds(launcher, [begun], ourselves)
    launcher.settimeout(REQUEST_TIMEOUT_S)
    word = launcher.recv(messages.VALUE.size)
    launcher.settimeout(None)
    if word[: messages.HEADER.size] != messages.header(Kind.GO):
        return 1
    environment = dict(os.environ)
    try:
        argv, env = enter(*fds)
        os.environ.clear()
        os.environ.update(env)
        bootstrap = importlib.import_module("pyshim.bootstrap")
        code, text = bootstrap.answer(argv[1:], launcher, path)
    finally:
        leave(environment)
    launcher.send(messages.with_value(Kind.EXIT, code) + text)
    return int(code)


def enter(standard_input: int, folder: int, program: int) -> tuple[list[str], dict[str, str]]:
    """Takes the launcher's stdin and folder; its arguments and environment."""
    os.dup2(standard_input, 0)
    os.close(standard_input)
    os.fchdir(folder)
    os.close(folder)
    with open(program, "rb") as file:
        file.seek(0)
        _, argv, env = channel.decode_program(file.read())
    return argv, env


def leave(environment: dict[str, str]) -> None:
    """Gives them back: nobody may find a pipe open, or a folder in use, because of a spare.

    ``environment`` is the one that was there before.
    """
    os.environ.clear()
    os.environ.update(environment)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.close(null)
