"""The datagrams on the zygote's socket (``monitor/protocol.md``, "The zygote's socket")."""

from __future__ import annotations

import socket
import struct
from enum import IntEnum

from pyshim.monitor.channel import ZYGOTE_MAGIC as MAGIC

HEADER = struct.Struct("<II")
VALUE = struct.Struct("<IIi")
PEER_CREDENTIALS = struct.Struct("3i")


class Kind(IntEnum):
    """What a datagram is."""

    ACTIVATE = 1
    RUN = 2
    EXIT = 3
    START_MONITOR = 4
    STARTED = 5
    BEGUN = 6
    GO = 7


def header(kind: Kind) -> bytes:
    """The beginning of every datagram."""
    return HEADER.pack(MAGIC, kind)


def with_value(kind: Kind, value: int) -> bytes:
    """A datagram of a kind and a value."""
    return VALUE.pack(MAGIC, kind, value)


def peer(connection: socket.socket) -> tuple[int, int]:
    """Pid and uid of the other end (unix(7), SO_PEERCRED).  Raises OSError."""
    size = PEER_CREDENTIALS.size
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, _ = PEER_CREDENTIALS.unpack(data)
    return pid, uid
