"""Descriptors that become readable when something happens to a file (inotify(7))."""

from __future__ import annotations

import ctypes
import os

IN_MODIFY, IN_ATTRIB, IN_DELETE_SELF, IN_MOVE_SELF = 0x2, 0x4, 0x400, 0x800

_libc = ctypes.CDLL(None, use_errno=True)


def watch(path: str, events: int) -> int:
    """A descriptor, owned by the caller, that tells of ``events`` (IN_…) of the file at ``path``.

    Raises OSError, also where the host has no more of these (fs.inotify.max_user_instances).
    """
    fd = _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    try:
        _checked(_libc.inotify_add_watch(fd, os.fsencode(path), events))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
