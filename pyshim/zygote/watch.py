"""Hears of a socket that is removed or replaced while somebody listens on it (inotify(7))."""

from __future__ import annotations

import ctypes
import os

IN_ATTRIB, IN_MOVE_SELF, IN_DELETE_SELF = 0x4, 0x800, 0x400
# An unlinked socket lives on for as long as its listener: only its number of links changes.
EVENTS = IN_ATTRIB | IN_MOVE_SELF | IN_DELETE_SELF
READ_BYTES = 4096


def begin(path: str) -> int:
    """A descriptor that becomes readable when something happens to ``path``, owned by the caller.

    -1 where the host has no more of these (fs.inotify.max_user_instances).
    """
    libc = ctypes.CDLL(None)
    fd = int(libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    if fd >= 0 and libc.inotify_add_watch(fd, os.fsencode(path), EVENTS) < 0:
        os.close(fd)
        return -1
    return fd


def drain(fd: int) -> None:
    """Forgets what has happened so far."""
    try:
        while os.read(fd, READ_BYTES):
            continue
    except BlockingIOError:
        return
