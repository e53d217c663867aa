"""The processes in a container's control group (cgroups(7)), v1 and v2."""

from __future__ import annotations

import os


def pids_around(pid: int) -> list[int]:
    """All pids in the cgroup of ``pid`` and below it; empty when there is none (cgroups(7))."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return []
    for _, controllers, path in lines:
        for name in controllers.split(","):
            if name in {"pids", "devices", "memory", ""}:
                base = os.path.join("/sys/fs/cgroup", name, path.lstrip("/"))
                found = _read_pids(base) if path.strip("/") else []
                if found:
                    return sorted(found)
    return []


def _read_pids(base: str) -> list[int]:
    found: list[int] = []
    for folder, _, files in os.walk(base):
        if "cgroup.procs" in files:
            try:
                with open(os.path.join(folder, "cgroup.procs"), encoding="ascii") as file:
                    found += [int(line) for line in file]
            except OSError:
                continue
    return found
