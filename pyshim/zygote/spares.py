"""Children of the zygote that were forked ahead, so that nobody waits for a fork.

A spare has done all that does not depend on what it will be asked for, and waits for a connection.
It ends with its zygote.  One that has died meanwhile costs nothing: the next, or a fork, is taken.

A spare whose service has only answered Stats comes back: what polls a host's containers, one after
the other, has them all answered by the same process, whose memory is there and warm.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from pathlib import Path

from pyshim import settings
from pyshim.monitor.fds import receive

# Each takes 4 MB.  A second would serve the service that `start` brings about, which `ctr run`
# does not gain by.
DEFAULT_COUNT = 1
MOST = 16  # more would be memory for nothing
# Long enough that the fork does not compete with what its predecessor is doing.
REFILL_MS = 20
# What a life leaves behind in the interpreter is not looked for; it ends with the process.
LIVES = 1000
BACK = b"\1"
# What a service returns that has left nothing in its process; no exit code.
FREE_AGAIN = -1
NAME = "pyshim-spare"
NAME_IN_USE = "pyshim-service"


def wanted() -> int:
    """How many there are to be: PYSHIM_ZYGOTE_SPARES."""
    return int(settings.number("PYSHIM_ZYGOTE_SPARES", DEFAULT_COUNT, 0, MOST, "processes"))


class Spares:
    """The zygote's ends of the spares' sockets: of those that wait, of which there are to be
    ``count``, and of the latest that were given something to do, which may come back.
    """

    def __init__(self, count: int, poller: select.poll) -> None:
        self._count = count
        self._poller = poller
        self._ends: list[socket.socket] = []
        self._lent: dict[int, socket.socket] = {}

    @property
    def lacking(self) -> bool:
        """Whether another one is to be forked when there is time."""
        return len(self._ends) < self._count

    def add(self) -> socket.socket:
        """Makes room for a spare; returns its end, which the fork is to close in the zygote."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ends.append(ours)
        return theirs

    def withdraw(self) -> None:
        """Undoes ``add``, for a fork that failed."""
        self._ends.pop().close()

    def give(self, connection: socket.socket) -> bool:
        """Hands ``connection`` to a spare; false when there is none that lives."""
        while self._ends:
            end = self._ends.pop()  # the last: it has been used last
            try:
                socket.send_fds(end, [b"\0"], [connection.fileno()], socket.MSG_DONTWAIT)
            except OSError:
                end.close()
                continue
            if len(self._lent) == MOST:
                self._forget(next(iter(self._lent)))
            self._lent[end.fileno()] = end
            self._poller.register(end, select.POLLIN)
            return True
        return False

    def heard(self, fd: int) -> None:
        """``fd`` is readable: one that had something to do comes back, or has ended."""
        end = self._lent.get(fd)
        if end is None:
            return
        with contextlib.suppress(OSError):
            if end.recv(1, socket.MSG_DONTWAIT) == BACK and self.lacking:
                self._ends.append(end.dup())
        self._forget(fd)

    def _forget(self, fd: int) -> None:
        """Without us it is not told to come back, and ends when its service does."""
        self._poller.unregister(fd)
        self._lent.pop(fd).close()

    def close(self) -> None:
        """Closes all ends: in a child, which must not keep the others from seeing the zygote's."""
        for end in [*self._ends, *self._lent.values()]:
            end.close()
        self._ends.clear()
        self._lent.clear()


def await_connection(end: socket.socket) -> socket.socket:
    """In the spare: the connection that it is given; ends the process when the zygote has ended."""
    rename(NAME)
    _, fds, _ = receive(end, 1, 1, socket.MSG_CMSG_CLOEXEC)
    if not fds:
        os._exit(0)
    rename(NAME_IN_USE)
    return socket.socket(fileno=fds[0])


def come_back(end: socket.socket) -> bool:
    """In the spare: says that it is free again; false when there is no zygote any more."""
    try:
        return end.send(BACK, socket.MSG_NOSIGNAL) == len(BACK)
    except OSError:
        return False


def open_files() -> set[str]:
    """The descriptors of this process: a life that has left one ends its process."""
    return set(os.listdir("/proc/self/fd"))


def rename(name: str) -> None:
    """What `ps` and `top` show of this process (proc(5), comm)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)
