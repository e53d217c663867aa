"""The zygote's loop: accept, give it to a spare or fork, let the child do the rest.

It must never become the parent of anything that matters, never hold a descriptor of whoever
started it, and never run a thread: a child of a threaded process may inherit a held lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import math
import os
import resource
import select
import signal
import socket
import stat
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import daemon

import pyshim
from pyshim import settings
from pyshim.zygote import address, children, copies, imports, spares, watch

IDLE_S = settings.seconds("PYSHIM_ZYGOTE_IDLE_S", 600)
# The interpreter specialises what has run some ten times.
REHEARSALS = 20
LOCK_TIMEOUT_S = 10.0
NO_RESOURCES_PAUSE_S = 0.1
BACKLOG = 512
FEW_DESCRIPTORS = 256
CAP_SYS_RESOURCE = 24
BUILD_FILE = str(Path(pyshim.__file__).with_name("_build.py"))
STAMP_BYTES = 4096
UMASK = 0o077


def run(path: str, *, detach: bool) -> int:
    """Serves at ``path`` until idle, replaced or told to end; 0 as well when another one does."""
    if len(os.fsencode(path)) > address.MAX_PATH_BYTES:  # before a lock is left there
        raise OSError(errno.ENAMETOOLONG, "a socket's path is too long")
    os.umask(UMASK)
    folder = Path(path).parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_folder(folder)
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if not take_lock(lock, path):
        return 0
    if detach:
        leave_starter()
    context = daemon.DaemonContext(
        detach_process=False,
        files_preserve=[lock] if detach else [lock, sys.stderr],
        stderr=None if detach else sys.stderr,
        umask=UMASK,
        prevent_core=False,
        signal_map={signal.SIGTERM: end, signal.SIGINT: end},
    )
    with few_descriptors():
        context.open()
    with context:
        serve(path, lock)
    return 0


def leave_starter() -> None:
    """Goes on in a child with a session of its own.

    The daemon library would fork twice: nobody waits for the process between the two, so a
    containerd that is process 1 would have it as a zombie.
    """
    if os.fork():
        os._exit(0)
    os.setsid()


@contextlib.contextmanager
def few_descriptors() -> Iterator[None]:
    """A low limit of open files, for as long as it lasts.

    DaemonContext closes every number below the limit, which some builds of Python do one by one;
    containerd.service has a limit of a billion.
    """
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if not may_raise_limits():  # it could not be taken back
        yield
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_DESCRIPTORS, FEW_DESCRIPTORS))
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def check_folder(folder: Path) -> None:
    """Raises PermissionError where another user may put something in our files' place."""
    about = folder.stat()
    if about.st_uid != os.geteuid():
        problem = f"{folder} belongs to uid {about.st_uid}; remove it, or name another folder"
    elif about.st_mode & stat.S_IWOTH:
        problem = f"everybody may write into {folder}; make it mode 0700"
    else:
        return
    raise PermissionError(errno.EPERM, f"{problem} (PYSHIM_RUNTIME_DIR)")


def may_raise_limits() -> bool:
    """Whether we have CAP_SYS_RESOURCE (capabilities(7)); in containers root has not."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_SYS_RESOURCE & 1)
    return False


def take_lock(lock: int, path: str) -> bool:
    """Whether we are the one; waits for a zygote that is ending but holds the lock still."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if address.answers(path) or time.monotonic() > deadline:
                return False
            time.sleep(0.01)


class Ending:
    """Whether a signal has told us to end.

    What it raises is lost where it comes into a finalizer, of which warming up has many.
    """

    told = False


def end(_number: int, _frame: object) -> None:
    """SIGTERM: unwinds ``serve``, which removes the socket."""
    Ending.told = True
    raise SystemExit(0)


def serve(path: str, lock: int) -> None:
    """Binds before importing, so that callers queue instead of starting zygotes of their own."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(BACKLOG)
    ours = os.stat(path)
    try:
        record_interpreter(Path(path).parent / "interpreter")
        warm_up()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps our children
        loop(listener, lock, path, ours)
    finally:
        if is_ours(path, ours):
            os.unlink(path)
        listener.close()


def record_interpreter(path: Path) -> None:
    """Tells launchers that lie outside of an environment which interpreter has pyshim."""
    text = f"{sys.executable}\n"
    with contextlib.suppress(OSError):
        if not path.exists() or path.read_text() != text:
            draft = path.with_name(f".{path.name}.{os.getpid()}")
            draft.write_text(text)
            draft.replace(path)


def warm_up() -> None:
    """Imports what children use, and keeps their collector away from all of it."""
    imports.import_all()
    for _ in range(REHEARSALS):
        children.rehearse()
    gc.collect()
    # What imports and rehearsals have left free between what they have kept: about 1 MB.
    with contextlib.suppress(AttributeError):  # a libc that has none
        ctypes.CDLL(None).malloc_trim(0)
    gc.freeze()


def is_ours(path: str, ours: os.stat_result) -> bool:
    """Whether the socket at ``path`` is still the one that we bound."""
    try:
        now = os.stat(path)
    except OSError:
        return False
    return (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino)


def build_stamp() -> bytes:
    """What tells this installation from the one that may take its place; empty when there is none.

    One that has been removed is served from memory, for whoever needs it yet.
    """
    try:
        fd = os.open(BUILD_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, STAMP_BYTES)
    finally:
        os.close(fd)


def loop(listener: socket.socket, lock: int, path: str, ours: os.stat_result) -> None:
    """Forks for each connection; returns when there was none for long or nobody can find us.

    Whoever has the lock and cannot be found would keep everybody from having a zygote.  One in
    whose place another version has been installed ends too: who has connected then finds nobody,
    and starts that one.
    """
    stamp = build_stamp()
    idle_ms = math.ceil(IDLE_S * 1000)
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    gone = watch.begin(path)
    if gone >= 0:
        poller.register(gone, select.POLLIN)
    family = Family(path, [listener.fileno(), lock, gone], poller)
    while is_ours(path, ours) and not Ending.told:
        due_ms = family.spares.due_ms
        copy_ms = family.copy.due_ms
        queue_ms = family.queue_ms
        waits = [ms for ms in (idle_ms, due_ms, copy_ms, queue_ms) if ms is not None]
        ready = [fd for fd, _ in poller.poll(min(waits))]
        if not ready and len(waits) == 1:
            return
        for fd in ready:
            family.spares.heard(fd)
        family.copy.settle()
        try:
            family.serve_queue()
            if not ready and due_ms == min(waits):
                family.settle()
            elif listener.fileno() in ready:
                connection, _ = listener.accept()
                if build_stamp() not in {stamp, b""}:
                    connection.close()
                    return
                family.serve(connection)
                family.serve_queue()
        except OSError:
            # Without a descriptor what waits still waits; without a process it is done elsewhere.
            time.sleep(NO_RESOURCES_PAUSE_S)
        if gone >= 0:
            watch.drain(gone)


class Family:
    """What a child must not have of the zygote's, and the forks."""

    def __init__(self, path: str, fds: list[int], poller: select.poll) -> None:
        self.path = path
        self.fds = fds
        self.copy = copies.Copy()
        self.spares = spares.Spares(spares.wanted(), poller, self.copy)
        self._queue: deque[tuple[float, socket.socket]] = deque()

    @property
    def queue_ms(self) -> int | None:
        """How long the first in the queue may yet wait; None: there is none."""
        if not self._queue:
            return None
        return max(0, math.ceil((self._queue[0][0] - time.monotonic()) * 1000))

    def serve(self, connection: socket.socket) -> None:
        """Gives ``connection``, which is ours, to a spare, or to one that is expected, or forks.

        Raises OSError; the caller of the connection sees its end then.
        """
        if self.spares.expected(len(self._queue)):
            self._queue.append((time.monotonic() + spares.BRIEF_S, connection))
        else:
            with connection:
                if not self.spares.give(connection):
                    self.fork(connection)

    def serve_queue(self) -> None:
        """Gives those who wait to the spares that are back; forks for those that waited too long.

        Raises as ``serve``.
        """
        while self._queue:
            until, connection = self._queue[0]
            is_given = self.spares.give(connection)
            if not is_given and time.monotonic() < until:
                return
            self._queue.popleft()
            with connection:
                if not is_given:
                    self.fork(connection)

    def settle(self) -> None:
        """Forks a spare that is lacking, or ends those that are too many.  Raises OSError."""
        if self.spares.lacking:
            self._fork(self.spares.add(), None)
        else:
            self.spares.trim()

    def fork(self, connection: socket.socket) -> None:
        """Starts the child for one connection; without one the caller sees the connection end."""
        self._fork(self.spares.add_away(), connection)

    def _fork(self, end: socket.socket, connection: socket.socket | None) -> None:
        # A SIGTERM that the child would take with our handler would unlink our socket.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
        try:
            if os.fork() == 0:
                for fd in self.fds:
                    if fd >= 0:
                        os.close(fd)
                self.spares.close()
                for _, waiting in self._queue:
                    waiting.close()
                children.become(end, self.path, connection, self.copy)
        except OSError:
            self.spares.withdraw(end)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGINT])
        end.close()
