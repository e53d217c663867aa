"""Children of the zygote that wait for something to do, so that nobody waits for a fork.

A spare has done all that does not depend on what it will be asked for, and waits for a connection.
When it has done what that asked for, it comes back for the next: the memory that it has touched,
and the kernel has copied, is what a fork costs most.  It ends with its zygote.  One that has died
meanwhile costs nothing: the next, or a fork, is taken.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time

from pyshim import settings
from pyshim.monitor.fds import receive
from pyshim.zygote.copies import Copy

# Each takes 4 MB.  A second would serve the service that `start` brings about, which `ctr run`
# does not gain by.
DEFAULT_COUNT = 1
MOST = 16  # more would be memory for nothing
# Long enough that the fork does not compete with what its predecessor is doing.
REFILL_MS = 20
# Who is away comes back when its container has been left alone for a second.
AWAY_MS = 2500
# Who asks all containers for their statistics, one after the other, has an answer sooner than the
# spare is back that gave it.  While lives are as brief as that, the next waits as long for it: a
# fork would cost several times as much, each time again.
BRIEF_S = 0.01
# Those that a burst has left wait so long for the next one.
SURPLUS_MS = 1000
MAX_WAITING = 4
# Each that may come back is a descriptor of the zygote's, which may have some thousand.
MAX_AWAY = 64
MOST_BYTES = 4096
NAME = "pyshim-spare"
NAME_IN_USE = "pyshim-service"


def wanted() -> int:
    """How many there are to be: PYSHIM_ZYGOTE_SPARES."""
    return int(settings.number("PYSHIM_ZYGOTE_SPARES", DEFAULT_COUNT, 0, MOST, "processes"))


class Spares:
    """The zygote's ends of the spares' sockets: ``count`` are to wait, others are away.

    ``poller`` hears of each that comes back, and of each that ends; ``copy`` of what it has used.
    """

    def __init__(self, count: int, poller: select.poll, copy: Copy) -> None:
        self._count = count
        self._poller = poller
        self._copy = copy
        self._waiting: list[socket.socket] = []
        self._away: dict[int, socket.socket] = {}
        self._lent_at: dict[int, float] = {}
        self._was_brief = False

    def expected(self, waiting: int) -> bool:
        """Whether one more than ``waiting`` spares are to be expected back at any moment."""
        if not self._was_brief or not self._count:
            return False
        since = time.monotonic() - BRIEF_S
        return sum(at > since for at in self._lent_at.values()) > waiting

    @property
    def lacking(self) -> bool:
        """Whether another one is to be forked when there is time."""
        return len(self._waiting) < self._count and len(self._away) < MAX_AWAY

    @property
    def due_ms(self) -> int | None:
        """How long to wait before the number of those that wait is put right; None: it is."""
        if self.lacking:
            return AWAY_MS if self._away else REFILL_MS
        return SURPLUS_MS if len(self._waiting) > self._count else None

    def add(self) -> socket.socket:
        """Makes room for a spare; returns its end, which the fork is to close in the zygote."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._poller.register(ours, select.POLLIN)
        self._waiting.append(ours)
        return theirs

    def add_away(self) -> socket.socket:
        """The same for one that is forked with something to do; of many the rest cannot return."""
        end = self.add()
        if len(self._away) < MAX_AWAY:
            self._lend(self._waiting.pop())
        else:
            self._drop(self._waiting.pop())
        return end

    def withdraw(self, end: socket.socket) -> None:
        """Undoes ``add`` or ``add_away``, for a fork that failed: nobody has the other ``end``."""
        end.close()
        for ours in [*self._waiting, *self._away.values()]:
            self.heard(ours.fileno())

    def give(self, connection: socket.socket) -> bool:
        """Hands ``connection`` to a spare; false when there is none that lives."""
        while self._waiting:
            end = self._waiting.pop()  # it came back last, and has most in the processor's caches
            try:
                fds = [connection.fileno(), *([self._copy.fd] if self._copy.fd >= 0 else [])]
                socket.send_fds(end, [self._copy.about], fds, socket.MSG_DONTWAIT)
            except OSError:
                self._drop(end)
                continue
            self._lend(end)
            return True
        return False

    def heard(self, fd: int) -> None:
        """Takes back the spare behind ``fd``, or drops it when it has ended; else does nothing."""
        end = next((each for each in self._waiting if each.fileno() == fd), self._away.get(fd))
        if end is None:
            return
        try:
            said = end.recv(MOST_BYTES, socket.MSG_DONTWAIT)
            is_back = bool(said)
            if said[1:]:
                self._copy.used(os.fsdecode(said[1:]))
        except BlockingIOError:
            return
        except OSError:
            is_back = False
        if self._away.pop(fd, None) is None:
            self._waiting.remove(end)
        lent_at = self._lent_at.pop(fd, 0.0)
        self._was_brief = is_back and time.monotonic() - lent_at < BRIEF_S
        most = max(self._count, MAX_WAITING) if self._count else 0
        if is_back and len(self._waiting) < most:
            self._waiting.append(end)
        else:
            self._drop(end)

    def trim(self) -> None:
        """Ends those that are too many."""
        while len(self._waiting) > self._count:
            self._drop(self._waiting.pop(0))

    def close(self) -> None:
        """Closes all ends: in a child, which must not keep the others from seeing the zygote's."""
        for end in [*self._waiting, *self._away.values()]:
            end.close()
        self._waiting.clear()
        self._away.clear()
        self._lent_at.clear()

    def _lend(self, end: socket.socket) -> None:
        self._away[end.fileno()] = end
        self._lent_at[end.fileno()] = time.monotonic()

    def _drop(self, end: socket.socket) -> None:
        self._poller.unregister(end)
        end.close()


def await_connection(end: socket.socket) -> tuple[socket.socket, int, bytes]:
    """In the spare: the connection that it is given; a copy of a program or -1; ``Copy.about``.

    Ends the process when the zygote has ended.
    """
    data, fds, _ = receive(end, MOST_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
    if not fds:
        os._exit(0)
    rename(NAME_IN_USE)
    return socket.socket(fileno=fds[0]), fds[1] if len(fds) > 1 else -1, data


def come_back(end: socket.socket, used: str) -> None:
    """In the spare: says that it may be given another connection, and which program it has used.

    Ends as ``await_connection``.
    """
    rename(NAME)
    try:
        end.send(b"\0" + os.fsencode(used)[: MOST_BYTES - 1], socket.MSG_NOSIGNAL)
    except OSError:
        os._exit(0)


def rename(name: str) -> None:
    """What `ps` and `top` show of this process (proc(5), comm)."""
    with contextlib.suppress(OSError):
        fd = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, name.encode())
        finally:
            os.close(fd)
