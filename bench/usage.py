"""What processes have cost: memory, processor time, wake-ups (proc(5))."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

KIB = 1024
TICKS = os.sysconf("SC_CLK_TCK")
NS = 1e-9


def pss(pid: int) -> int:
    """Bytes of ``pid``, pages that others map too counted by share; 0 when it has gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return parse_pss(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return 0


def parse_pss(text: str) -> int:
    """The bytes in a smaps_rollup; 0 for that of a process without memory, a zombie."""
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * KIB
    return 0


def private_kib(pid: int) -> float:
    """KiB that ``pid`` shares with nobody.  Raises OSError when it has gone."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return float(sum(int(line.split()[1]) for line in rollup if line.startswith("Private_")))


def switches(pid: int) -> int:
    """How often all threads of ``pid`` have gone to sleep, so far."""
    found = 0
    for path in Path(f"/proc/{pid}/task").glob("*/status"):
        found += parse_switches(path.read_text())
    return found


def parse_switches(text: str) -> int:
    """The voluntary context switches in a status file.  Raises ValueError without them."""
    for line in text.splitlines():
        if line.startswith("voluntary_ctxt_switches:"):
            return int(line.split()[1])
    raise ValueError("no voluntary_ctxt_switches")


def cpu_s(pid: int) -> float:
    """Seconds that all threads of ``pid`` have run, so far, in steps of 10 ms."""
    return parse_cpu_s(Path(f"/proc/{pid}/stat").read_text())


def parse_cpu_s(text: str) -> float:
    """The processor time in a stat file; a program's name may hold anything."""
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Account:
    """A control group, whose processor time counts also what has ended long since.

    ``enter`` moves this process into it and so what it starts, until ``leave``.
    """

    def __init__(self, name: str) -> None:
        """Makes the group.  Raises OSError."""
        first = Path("/sys/fs/cgroup/cpuacct")
        self._is_first = first.is_dir()
        self._root = first if self._is_first else Path("/sys/fs/cgroup")
        self._folder = self._root / name
        self._folder.mkdir()
        self._home = self._root / self._current()

    def _current(self) -> str:
        """Where this process is: in its containers, a path that lies below the mount."""
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            if ("cpuacct" in names.split(",")) if self._is_first else not names:
                return path.lstrip("/")
        return ""

    def enter(self) -> None:
        """From now on this process, and what it starts, is in the group."""
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def leave(self) -> None:
        """Back to where this process was."""
        (self._home / "cgroup.procs").write_text(str(os.getpid()))

    def cpu_s(self) -> float:
        """The seconds that have been used in it."""
        if self._is_first:
            return int((self._folder / "cpuacct.usage").read_text()) * NS
        for line in (self._folder / "cpu.stat").read_text().splitlines():
            if line.startswith("usage_usec"):
                return int(line.split()[1]) / 1e6
        raise ValueError(f"{self._folder}/cpu.stat has no usage_usec")

    def close(self) -> None:
        """Removes the group.  Raises OSError while processes are in it."""
        self._folder.rmdir()
