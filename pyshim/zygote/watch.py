"""Hears of a socket that is removed or replaced while somebody listens on it (inotify(7))."""

from __future__ import annotations

import os

from pyshim import inotify

# An unlinked socket lives on for as long as its listener: only its number of links changes.
EVENTS = inotify.IN_ATTRIB | inotify.IN_MOVE_SELF | inotify.IN_DELETE_SELF
READ_BYTES = 4096


def begin(path: str) -> int:
    """A descriptor that becomes readable when something happens to ``path``, owned by the caller.

    -1 where the host has no more of these (fs.inotify.max_user_instances).
    """
    try:
        return inotify.watch(path, EVENTS)
    except OSError:
        return -1


def drain(fd: int) -> None:
    """Forgets what has happened so far."""
    try:
        while os.read(fd, READ_BYTES):
            continue
    except BlockingIOError:
        return
