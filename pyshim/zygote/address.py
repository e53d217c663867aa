"""Where the zygote of an interpreter listens, and how to get one started.

The launcher computes the same address in C: change both.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import socket
import sys
from pathlib import Path

MAX_PATH_BYTES = 107  # sockaddr_un has one more, for a zero
NAME = re.compile(r"zygote-[0-9a-z]+-[0-9a-f]{16}\.sock")


def run_folder() -> Path:
    """The folder of the zygotes' sockets."""
    return Path(os.environ.get("PYSHIM_RUNTIME_DIR") or "/run/pyshim")


def build_id() -> str:
    """What the build wrote into the wheel; "source" in a tree that was never built."""
    try:
        return str(importlib.import_module("pyshim._build").BUILD_ID)
    except ImportError:
        return "source"


def socket_path(python: str = sys.executable, build: str | None = None) -> str:
    """The zygote's socket for the interpreter ``python``."""
    name = f"zygote-{build or build_id()}-{fnv1a_64(os.fsencode(python)):016x}.sock"
    return str(run_folder() / name)


def successor(path: str, python: str = sys.executable) -> str:
    """The socket that takes the place of ``path`` for this build and the interpreter ``python``.

    In the same folder, whatever the environment says.  One that has a name of its own, as a
    systemd unit may give it, stays.
    """
    folder, name = os.path.split(path)
    if not NAME.fullmatch(name):
        return path
    return os.path.join(folder, os.path.basename(socket_path(python)))


def fnv1a_64(data: bytes) -> int:
    """FNV-1a, 64 bits."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def answers(path: str) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # alive, and busy
        except OSError:
            return False
    return True


def ensure(python: str = sys.executable, path: str | None = None) -> None:
    """Starts a zygote when none answers, and does not wait for it.

    It is no child of the caller when this returns, so nobody has to reap it.
    """
    path = path or socket_path(python)
    if answers(path):
        return
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for fd in range(3):
                os.dup2(null, fd)
            close_from(3)
            os.chdir("/")
            command = [python, "-I", "-X", "utf8", "-m", "pyshim.zygote", "--socket", path]
            command.append("--foreground")  # detached already: one more would be a zombie of init
            os.execv(python, command)
    finally:
        os._exit(1)


def close_from(first: int) -> None:
    """Closes every descriptor from ``first`` on; the limit may be a billion, so not by counting."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= first:
            with contextlib.suppress(OSError):
                os.close(int(name))
