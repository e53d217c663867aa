"""Sockets that the relay does not bind itself: those of systemd or a parent, and Unix sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Mapping as Names

FIRST_PASSED_FD = 3  # sd_listen_fds(3)
BACKLOG = 4096


class ListenerError(Exception):
    """There is no such socket, or it cannot be made; the message is one line."""


def passed_sockets(environment: Names[str, str]) -> dict[str, int]:
    """The descriptors that systemd has passed, by number and by name (the first of a name)."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = environment.get("LISTEN_FDS", "0")
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, int] = {}
    for at in range(int(count) if count.isdecimal() else 0):
        found[str(FIRST_PASSED_FD + at)] = FIRST_PASSED_FD + at
        if at < len(names) and names[at]:
            found.setdefault(names[at], FIRST_PASSED_FD + at)
    return found


def passed_socket(name: str, passed: dict[str, int]) -> int:
    """A descriptor of our own of the socket ``name``.  Raises ListenerError."""
    fd = passed.get(name, int(name) if name.isdecimal() else -1)
    if fd < 0:
        known = ", ".join(sorted(passed)) or "none"
        raise ListenerError(f"no socket named {name!r} was passed by systemd; there are: {known}")
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise ListenerError(f"fd {fd} is not a socket")
        return os.dup(fd)
    except OSError as error:
        raise ListenerError(f"fd {fd} was not inherited: {error.strerror}") from error


def unix_listener(path: str) -> socket.socket:
    """A listening socket at ``path``, or with the abstract name behind ``@``.

    A socket that nobody listens on any more is replaced.  Raises ListenerError.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.startswith("@"):
            made.bind("\0" + path[1:])
        else:
            _remove_stale(path)
            made.bind(path)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise ListenerError(f"cannot listen on unix:{path}: {error.strerror}".lower()) from error
    return made


def _remove_stale(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)


def remove_unix(path: str) -> None:
    """Removes a socket's file, if it is there."""
    if path and not path.startswith("@"):
        with contextlib.suppress(OSError):
            os.unlink(path)
