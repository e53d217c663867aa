"""The daemons of this host: their versions, and where a running one looks for programs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
# What systemd gives its services, and the folders that some distributions add.
SERVICE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TIMEOUT_S = 10


class Running(NamedTuple):
    """A daemon that listens."""

    pid: int
    path: str
    version: str


class Version(NamedTuple):
    """A program's version: its first number, and all that it says."""

    major: int
    text: str


def running(address: str) -> Running | None:
    """Who listens on the socket ``address``; None when nobody does, or we may not ask."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT_S)
        client.connect(address)
        size = struct.calcsize("3i")
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        pid = int(struct.unpack("3i", credentials)[0])
        found = version_of(f"/proc/{pid}/exe")
        return Running(pid, _path_of(pid), found.text if found else "of unknown version")
    return None


def _path_of(pid: int) -> str:
    """PATH of a process."""
    for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if entry.startswith(b"PATH="):
            return os.fsdecode(entry[5:])
    return SERVICE_PATH


def search_path() -> str:
    """Our PATH, and the folders of daemons, which some ways to become root leave out."""
    return f"{os.environ.get('PATH', os.defpath)}:{SERVICE_PATH}"


def installed(program: str) -> str | None:
    """Where a program of this host is."""
    return shutil.which(program, path=search_path())


def version_of(program: str | None) -> Version | None:
    """What ``program --version`` says; None when there is none, or it says nothing like it."""
    said = output(program, "--version") if program else ""
    found = re.search(r"(?<![\w.])v?(\d+)\.\d[\w.+~-]*", said)
    return Version(int(found[1]), found[0]) if found else None


def output(*command: str) -> str:
    """What a command prints when it succeeds; "" otherwise."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=True,
        ).stdout
    return ""
