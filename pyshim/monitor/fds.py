"""Descriptors: anonymous files, in which large things travel, and what comes with a message."""

from __future__ import annotations

import array
import os
import select
import socket


def memfd(content: bytes) -> int:
    """A new memfd that holds ``content``, at its start; the caller owns it.  Raises OSError."""
    fd = os.memfd_create("pyshim", os.MFD_CLOEXEC)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_readable(fd: int) -> bool:
    """Whether a read would not block; by poll(2), for select(2) takes no number above 1023."""
    news = select.poll()
    news.register(fd, select.POLLIN)
    return bool(news.poll(0))


def receive(
    sock: socket.socket, size: int, fd_count: int, flags: int
) -> tuple[bytes, list[int], int]:
    """Data, descriptors and flags of one recvmsg(2).  Raises OSError.

    socket.recv_fds of CPython 3.11 drops its ``flags``: a peek would take what it looks at.
    """
    ancillary_size = socket.CMSG_LEN(fd_count * array.array("i").itemsize)
    data, ancillary, got, _ = sock.recvmsg(size, ancillary_size, flags)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds), got
