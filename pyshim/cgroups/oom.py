"""Tells when the kernel has killed something for want of memory.

cgroup v1 has an eventfd for it, v2 a counter in a file that inotify(7) watches.  Either is one
descriptor, which the monitor holds and watches while no service runs.
"""

from __future__ import annotations

import os

from pyshim import inotify
from pyshim.cgroups import files, locate

READ_BYTES = 4096


def watch(groups: dict[str, str]) -> int:
    """A descriptor that becomes readable after such a kill; -1 where the kernel offers none.

    The caller owns it.
    """
    try:
        if locate.UNIFIED in groups:
            events = os.path.join(groups[locate.UNIFIED], "memory.events")
            return inotify.watch(events, inotify.IN_MODIFY)
        return _watch_v1(groups["memory"]) if "memory" in groups else -1
    except OSError:
        return -1  # a container must not fail to start for it; containerd's shim logs it


def _watch_v1(folder: str) -> int:
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
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


def kills(groups: dict[str, str], known: int) -> int:
    """How many kills there have been, after the descriptor became readable.

    v1 does not count on every kernel: there the descriptor's word is one more than ``known``,
    unless the group is gone, which makes it readable too.
    """
    if locate.UNIFIED in groups:
        events = files.numbers(groups[locate.UNIFIED], "memory.events")
        return events.get("oom_kill", known)
    return known + bool(files.text(groups["memory"], "memory.oom_control"))
