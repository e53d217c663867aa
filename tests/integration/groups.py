"""Limits for processes: control groups of whichever version the host has, and descriptors."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from pyshim.cgroups import locate
from tests.integration.containerd import eventually

LIMITS = {
    "pids": ("pids.max", "pids.max"),
    "memory": ("memory.limit_in_bytes", "memory.max"),
}


class Group:
    """A group with one controller, ``pids`` or ``memory``."""

    def __init__(self, controller: str) -> None:
        points = locate.mount_points(Path("/proc/self/mountinfo").read_text())
        self._unified = controller not in points
        point = Path(points[locate.UNIFIED if self._unified else controller][1])
        self._controller = controller
        self._parent = point
        self.folder = point / f"pyshim-test-{os.getpid()}-{controller}"
        if self._unified:
            (point / locate.SUBTREE).write_text(f"+{controller}")
        self.folder.mkdir()

    def add(self, pid: int) -> None:
        """Moves a process into the group."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def limit(self, value: int | None) -> None:
        """Sets the controller's limit; None is no limit."""
        unlimited = "max" if self._unified or self._controller == "pids" else "-1"
        text = unlimited if value is None else str(value)
        (self.folder / LIMITS[self._controller][self._unified]).write_text(text)

    def present(self) -> int:
        """How many tasks there are, of a group for ``pids``."""
        return int((self.folder / "pids.current").read_text())

    def kills(self) -> int:
        """How many processes the kernel has killed for want of memory."""
        name = "memory.events" if self._unified else "memory.oom_control"
        lines = (line.split() for line in (self.folder / name).read_text().splitlines())
        return int(dict(lines)["oom_kill"])

    def empty(self) -> None:
        """Moves everybody out."""
        for pid in (self.folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (self._parent / "cgroup.procs").write_text(pid)

    def removed(self) -> bool:
        """Whether it could be removed."""
        self.empty()
        with contextlib.suppress(OSError):
            self.folder.rmdir()
        return not self.folder.exists()


@contextlib.contextmanager
def group(controller: str) -> Iterator[Group]:
    """A Group that has gone in the end; those in it are moved out."""
    made = Group(controller)
    try:
        yield made
    finally:
        made.limit(None)
        eventually(made.removed, "the group has gone")


def allow(pid: int, more: int) -> tuple[int, int]:
    """Lets a process open ``more`` descriptors and no other; returns its limits until now."""
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = set(map(int, os.listdir(f"/proc/{pid}/fd")))
    free = itertools.islice(itertools.filterfalse(taken.__contains__, itertools.count()), more + 1)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(list(free)[-1], limits[1]), limits[1]))
    return limits
