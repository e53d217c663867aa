"""Tells when the kernel has killed something for want of memory.

cgroup v1 has an eventfd for it, v2 a counter in a file that inotify(7) watches.  Either is one
descriptor, which the monitor holds and watches while no service runs.
"""

from __future__ import annotations

import ctypes
import os

from pyshim.cgroups import files, locate

IN_MODIFY = 0x2
EFD_CLOEXEC, EFD_NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK
READ_BYTES = 4096

_libc = ctypes.CDLL(None, use_errno=True)


def watch(groups: dict[str, str]) -> int:
    """A descriptor that becomes readable after such a kill; -1 where the kernel offers none.

    The caller owns it.
    """
    try:
        if locate.UNIFIED in groups:
            return _watch_v2(groups[locate.UNIFIED])
        return _watch_v1(groups["memory"]) if "memory" in groups else -1
    except OSError:
        return -1  # a container must not fail to start for it; containerd's shim logs it


def _watch_v1(folder: str) -> int:
    event = _checked(_libc.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))
    try:
        control = os.open(os.path.join(folder, "memory.oom_control"), os.O_RDONLY | os.O_CLOEXEC)
        try:
            with open(os.path.join(folder, "cgroup.event_control"), "w", encoding="ascii") as file:
                file.write(f"{event} {control}")
        finally:
            os.close(control)
    except BaseException:
        os.close(event)
        raise
    return event


def _watch_v2(folder: str) -> int:
    watcher = _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    try:
        path = os.fsencode(os.path.join(folder, "memory.events"))
        _checked(_libc.inotify_add_watch(watcher, path, IN_MODIFY))
    except BaseException:
        os.close(watcher)
        raise
    return watcher


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def kills(groups: dict[str, str], known: int) -> int:
    """How many kills there have been, after the descriptor became readable.

    v1 does not count on every kernel: there the descriptor's word is one more than ``known``,
    unless the group is gone, which makes it readable too.
    """
    if locate.UNIFIED in groups:
        events = files.numbers(groups[locate.UNIFIED], "memory.events")
        return events.get("oom_kill", known)
    return known + bool(files.text(groups["memory"], "memory.oom_control"))
