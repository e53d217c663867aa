"""The shim's log: the fifo `log` in the bundle, which containerd and CRI-O copy into their own.

Nobody waits for a reader: a daemon that has gone must not stop a container (catalogue 33 and 34).
So lines are dropped while there is none, and while it does not read.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from enum import IntEnum

NAME = "log"
MAX_LINE_BYTES = 4096  # PIPE_BUF: written whole, or not at all


class Level(IntEnum):
    """How bad it is, by containerd's names."""

    DEBUG = 0
    INFO = 1
    WARNING = 2
    ERROR = 3


class Log:
    """Writes lines for one bundle; below ``least`` they are dropped."""

    def __init__(self, bundle: str = "", least: Level = Level.INFO) -> None:
        self.bundle = bundle
        self.least = least

    def debug(self, text: str, **fields: object) -> None:
        """What helps to follow a call; containerd is told to want it with -debug."""
        self._write(Level.DEBUG, text, fields)

    def info(self, text: str, **fields: object) -> None:
        """What an operator may want to know."""
        self._write(Level.INFO, text, fields)

    def warning(self, text: str, **fields: object) -> None:
        """What went wrong and was made good."""
        self._write(Level.WARNING, text, fields)

    def error(self, text: str, **fields: object) -> None:
        """What went wrong."""
        self._write(Level.ERROR, text, fields)

    def _write(self, level: Level, text: str, fields: dict[str, object]) -> None:
        if level < self.least or not self.bundle:
            return
        line = encode(level, text, fields, time.time())
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_APPEND
        with contextlib.suppress(OSError):
            fd = os.open(os.path.join(self.bundle, NAME), flags)
            try:
                os.write(fd, line)
            finally:
                os.close(fd)


def encode(level: Level, text: str, fields: dict[str, object], now: float) -> bytes:
    """One line in the daemons' form, ``time=… level=… msg=… key=value``; ``now`` in seconds.

    Values are quoted, so that no text can be taken for another line.
    """
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    parts = [f'time="{stamp}.{int(now * 1e9) % 10**9:09d}Z"', f"level={level.name.lower()}"]
    parts.append(f"msg={json.dumps(text)}")
    parts += [f"{key}={json.dumps(str(value))}" for key, value in fields.items()]
    return f"{' '.join(parts)}"[: MAX_LINE_BYTES - 1].encode("ascii", "replace") + b"\n"
