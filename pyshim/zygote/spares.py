"""Children of the zygote that were forked ahead, so that nobody waits for a fork.

A spare has done all that does not depend on what it will be asked for, and waits for a connection.
It ends with its zygote.  One that has died meanwhile costs nothing: the next, or a fork, is taken.
"""

from __future__ import annotations

import contextlib
import os
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
NAME = "pyshim-spare"
NAME_IN_USE = "pyshim-service"


def wanted() -> int:
    """How many there are to be: PYSHIM_ZYGOTE_SPARES."""
    return int(settings.number("PYSHIM_ZYGOTE_SPARES", DEFAULT_COUNT, 0, MOST, "processes"))


class Spares:
    """The zygote's ends of the spares' sockets, of which there are to be ``count``."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._ends: list[socket.socket] = []

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
            with self._ends.pop(0) as end, contextlib.suppress(OSError):
                socket.send_fds(end, [b"\0"], [connection.fileno()], socket.MSG_DONTWAIT)
                return True
        return False

    def close(self) -> None:
        """Closes all ends: in a child, which must not keep the others from seeing the zygote's."""
        for end in self._ends:
            end.close()
        self._ends.clear()


def await_connection(end: socket.socket) -> socket.socket:
    """In the spare: the connection that it is given; ends the process when the zygote has ended."""
    with end:
        _, fds, _ = receive(end, 1, 1, socket.MSG_CMSG_CLOEXEC)
    if not fds:
        os._exit(0)
    rename(NAME_IN_USE)
    return socket.socket(fileno=fds[0])


def rename(name: str) -> None:
    """What `ps` and `top` show of this process (proc(5), comm)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)
