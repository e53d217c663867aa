"""Network namespaces by name: ``netns:NAME``, ``netns:/PATH``, ``pid:N``, ``container:ID``."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

NAMED = ("/run/netns", "/var/run/netns")
SHORTEST_ID = 8
Identity = tuple[int, int]


class NamespaceError(Exception):
    """There is no such namespace, or it cannot be entered; the message is one line."""


def open_namespace(reference: str) -> int:
    """A descriptor of the namespace, which the caller owns.  Raises NamespaceError."""
    path = path_of(reference)
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NamespaceError(f"cannot open namespace {reference}: {error.strerror}") from error


def identity(fd: int) -> Identity:
    """What tells the namespace behind a descriptor from all others that there are."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def identity_of(reference: str) -> Identity | None:
    """The same of a name; None if there is no such namespace now."""
    try:
        fd = open_namespace(reference)
    except NamespaceError:
        return None
    try:
        return identity(fd)
    finally:
        os.close(fd)


def path_of(reference: str) -> str:
    """The file of a namespace.  Raises NamespaceError."""
    kind, _, name = reference.partition(":")
    if kind == "pid":
        return f"/proc/{name}/ns/net"
    if kind == "container":
        return f"/proc/{pid_of_container(name)}/ns/net"
    if name.startswith("/"):
        return name
    for folder in NAMED:
        if os.path.exists(f"{folder}/{name}"):
            return f"{folder}/{name}"
    raise NamespaceError(f"there is no namespace {name!r} in {NAMED[0]}; see ip netns")


def pid_of_container(container: str) -> int:
    """The oldest process whose cgroup is named for the container (Docker, Podman, containerd, CRI).

    Raises NamespaceError.
    """
    if len(container) < SHORTEST_ID:
        raise NamespaceError(f"{container!r} is too short for a container's id")
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
                parts = line.rpartition(":")[2].replace("docker-", "/").replace("libpod-", "/")
                names = parts.replace("cri-containerd-", "/").split("/")
                if any(name.startswith(container) for name in names):
                    return pid
    raise NamespaceError(f"no process belongs to a container {container}; does it run?")
