"""Where the control group of a process lies, on a host with cgroup v1, v2 or both.

Pure but for those that take a pid or a group: the two texts are those of proc(5).
"""

from __future__ import annotations

import contextlib
import os

SUBTREE = "cgroup.subtree_control"
UNIFIED = ""  # the key of a v2 group; those of v1 are controllers' names


def apart(pid: int, other: int) -> dict[str, str]:
    """The folders of the groups that ``pid`` is in, by controller; empty when it has gone.

    Those that it shares with ``other``, our own process, are left out.  A runtime makes no group in
    some hierarchies (named ones, controllers that it does not know): there a container is in the
    group of whoever started its shim, and that is not its own.
    """
    try:
        theirs, ours = (_read(f"/proc/{who}/cgroup").splitlines() for who in (pid, other))
        mounts = _read("/proc/self/mountinfo")
    except OSError:
        return {}
    return folders("\n".join(line for line in theirs if line not in ours), mounts)


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def folders(membership: str, mountinfo: str) -> dict[str, str]:
    """The folders by controller, from /proc/PID/cgroup and /proc/PID/mountinfo.

    The roots of hierarchies are left out: they are the host's, no container's.  With any group in
    v1 the unified one is left out, since on such a hybrid host it has no controllers.
    """
    points = mount_points(mountinfo)
    found: dict[str, str] = {}
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if path == "/" or path.startswith("/.."):
            continue
        for name in controllers.split(","):
            if name in points:
                root, point = points[name]
                inside = path[len(root.rstrip("/")) :] if path.startswith(root) else path
                found[name] = os.path.join(point, inside.lstrip("/"))
    if len(found) > 1:
        found.pop(UNIFIED, None)
    return found


def mount_points(mountinfo: str) -> dict[str, tuple[str, str]]:
    """Which part of each hierarchy is mounted where, by controller."""
    found: dict[str, tuple[str, str]] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        root, point = unescape(fields[3]), unescape(fields[4])
        if kind[0] == "cgroup2":
            found.setdefault(UNIFIED, (root, point))
        elif kind[0] == "cgroup":
            for name in kind[2].split(","):
                found.setdefault(name, (root, point))
    return found


def unescape(text: str) -> str:
    """A path of mountinfo, in which white space is written in octal."""
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        text = text.replace(code, character)
    return text


def enable_controllers(group: str) -> None:
    """Lets a v2 ``group`` have every controller that the host has, as far as the kernel allows.

    Each folder on the way hands them down by its cgroup.subtree_control; a refusal there, as for a
    folder that holds processes, is no failure (the Go shim logs it).
    """
    folders = [group]
    while os.path.exists(os.path.join(os.path.dirname(folders[-1]), SUBTREE)):
        folders.append(os.path.dirname(folders[-1]))
    try:
        with open(os.path.join(folders[-1], "cgroup.controllers"), encoding="ascii") as file:
            controllers = file.read().split()
    except OSError:
        return
    for folder in reversed(folders[1:]):
        for name in controllers:
            path = os.path.join(folder, SUBTREE)
            with contextlib.suppress(OSError), open(path, "w", encoding="ascii") as file:
                file.write(f"+{name}")


def pids(groups: dict[str, str]) -> list[int]:
    """All processes in a group and below it; empty when there is none.

    They are the same in every hierarchy, so the first that is there counts, also an empty one.
    """
    for name in ("pids", "devices", "memory", UNIFIED, *groups):
        if name in groups and os.path.isdir(groups[name]):
            return sorted(_read_pids(groups[name]))
    return []


def _read_pids(base: str) -> list[int]:
    found: list[int] = []
    for folder, _, files in os.walk(base):
        if "cgroup.procs" in files:
            try:
                with open(os.path.join(folder, "cgroup.procs"), encoding="ascii") as file:
                    found += [int(line) for line in file]
            except OSError:
                continue  # removed meanwhile, or threaded, where it cannot be read
    return found
