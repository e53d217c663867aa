"""Says who has a port that cannot be had, from /proc."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

LISTENING = "0A"
CONTAINER = re.compile(r"[0-9a-f]{64}")


def holder_of(protocol: str, port: int) -> str:
    """``nginx, pid 12, container 0123456789ab``; empty if nobody is found, as without privilege."""
    inodes = _inodes(protocol, port)
    if not inodes:
        return ""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for pid in sorted((name for name in os.listdir("/proc") if name.isdigit()), key=int):
        with contextlib.suppress(OSError):
            for fd in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(fd.path) in wanted:
                        return _describe(pid)
    return ""


def _inodes(protocol: str, port: int) -> set[str]:
    """The sockets that listen on the port, or are bound to it."""
    found = set()
    for name in (protocol, f"{protocol}6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
                words = line.split()
                here = int(words[1].rpartition(":")[2], 16) == port
                if here and (protocol != "tcp" or words[3] == LISTENING):
                    found.add(words[9])
    return found


def _describe(pid: str) -> str:
    words = [Path(f"/proc/{pid}/comm").read_text().strip(), f"pid {pid}"]
    with contextlib.suppress(OSError):
        match = CONTAINER.search(Path(f"/proc/{pid}/cgroup").read_text())
        if match is not None:
            words.append(f"container {match.group()[:12]}")
    return ", ".join(words)
