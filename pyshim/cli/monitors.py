"""The monitors that run on this host, as /proc shows them.

A container may hold a program that has a monitor's name, and run it as root.  So nothing that is
found here is ever executed, and what it says of itself is only shown.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

PROGRAM = "pyshim-monitor"
GONE = " (deleted)"  # what /proc adds to the path of a file that has been replaced
LISTENING, STREAM = 0x10000, 1  # __SO_ACCEPTCON, and SOCK_STREAM, in /proc/net/unix
# What `start` names a shim's socket (bootstrap/address.py).
SOCKET_NAME = re.compile(r"[0-9a-f]{64}")
IDENTITY = re.compile(rb"pyshim-monitor ([0-9A-Za-z.+-]+) ([0-9a-z]{1,16})\n")
MAX_PROGRAM_BYTES = 64 * 1024 * 1024
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Monitor:
    """One running monitor, its bundle, its zygote's socket and the address of its own."""

    pid: int
    bundle: str
    zygote: str
    address: str

    @property
    def name(self) -> str:
        """Namespace and id of its container or pod, by which containerd names bundles."""
        return "/".join(self.bundle.split("/")[-2:])

    def is_one_of(self, patterns: Sequence[str]) -> bool:
        """Whether a pattern (fnmatch) is for its name or its bundle; also when there is none."""
        names = (self.name, self.bundle)
        return not patterns or any(fnmatchcase(name, p) for name in names for p in patterns)


@dataclass(frozen=True)
class Identity:
    """What is written in a monitor's file."""

    version: str = UNKNOWN
    build: str = UNKNOWN

    def __str__(self) -> str:
        return f"{self.version} ({self.build[:8]})"


def running() -> list[Monitor]:
    """Every monitor of our user in our pid namespace, by pid."""
    pids = sorted(int(entry.name) for entry in Path("/proc").glob("[0-9]*"))
    found = (_monitor(pid) for pid in pids)
    return [monitor for monitor in found if monitor is not None]


def _monitor(pid: int) -> Monitor | None:
    """What ``pid`` is, if it is a monitor."""
    proc = Path(f"/proc/{pid}")
    try:
        program = os.readlink(proc / "exe").removesuffix(GONE)
        if os.path.basename(program) != PROGRAM or proc.stat().st_uid != os.geteuid():
            return None
        if os.readlink(proc / "ns/pid") != os.readlink("/proc/self/ns/pid"):
            return None  # of a containerd in a container; to be upgraded from in there
        words = [os.fsdecode(word) for word in (proc / "cmdline").read_bytes().split(b"\0")]
        bundle = os.readlink(proc / "cwd").removesuffix(GONE)
        # One that has been forked and not executed yet has no listening socket; neither has one
        # that only rehearses.
        address = next(_listening(proc), "")
    except OSError:
        return None
    if not address or "--zygote" not in words[:-1] or "--rehearse" in words:
        return None
    zygote = words[words.index("--zygote") + 1]
    return Monitor(pid, bundle, zygote, address)


def _listening(proc: Path) -> Iterator[str]:
    """Where a process listens, by names that a shim gives; a path as we see it."""
    inodes = set()
    for fd in (proc / "fd").iterdir():
        try:
            status = fd.stat()
        except OSError:
            continue
        if stat.S_ISSOCK(status.st_mode):
            inodes.add(str(status.st_ino))
    ours = os.readlink(proc / "ns/mnt") == os.readlink("/proc/self/ns/mnt")
    root = "" if ours else f"{proc}/root"
    for line in (proc / "net/unix").read_text(errors="surrogateescape").splitlines()[1:]:
        _, _, _, flags, kind, _, inode, *path = line.split(maxsplit=7)
        if inode not in inodes or not path or not int(flags, 16) & LISTENING:
            continue
        if int(kind, 16) == STREAM and SOCKET_NAME.fullmatch(os.path.basename(path[0])):
            yield f"{root}{path[0]}"


def identity(program: Path) -> Identity:
    """The version and build of a monitor's file, which may be /proc/PID/exe."""
    found = IDENTITY.search(content(program))
    return Identity(found[1].decode(), found[2].decode()) if found else Identity()


def content(program: Path) -> bytes:
    """A program's file, as far as a monitor's may go; nothing when it cannot be read."""
    try:
        with program.open("rb") as file:
            return file.read(MAX_PROGRAM_BYTES)
    except OSError:
        return b""
