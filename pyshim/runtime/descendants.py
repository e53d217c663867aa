"""Ends a runtime's command together with everything that it has started.

No other process may be hit: each is opened as a pidfd before it is looked at, and counts only if
its parent is one that is stopped already, so that nobody's number can be another's by then.
"""

from __future__ import annotations

import contextlib
import os
import signal

# A process that was forking while it was stopped shows its child in the next pass.
MAX_PASSES = 8


def end(root: int, parent: int) -> None:
    """Kills ``root``, a child of ``parent``, and its descendants; waits for none of them."""
    found: dict[int, int] = {}
    try:
        for _ in range(MAX_PASSES):
            before = len(found)
            _stop(root, parent, found)
            if len(found) == before:
                break
        for fd in found.values():
            _signal(fd, signal.SIGKILL)
    finally:
        for fd in found.values():
            os.close(fd)


def _stop(root: int, parent: int, found: dict[int, int]) -> None:
    """Stops what is not in ``found`` yet and adds its pidfds."""
    waiting = [(root, parent)]
    while waiting:
        pid, parent = waiting.pop()
        if pid not in found and not _open(pid, parent, found):
            continue
        waiting += [(child, pid) for child in _children(pid)]


def _open(pid: int, parent: int, found: dict[int, int]) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    if _parent(pid) != parent:
        os.close(fd)
        return False
    found[pid] = fd
    _signal(fd, signal.SIGSTOP)
    return True


def _signal(fd: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(fd, number)


def _parent(pid: int) -> int:
    """The parent of ``pid`` (proc(5)); 0 when it has gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    return found
