"""The other ends of a container's fifos."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

from tests.integration.containerd import BOUND_S

PAGE_BYTES = 4096
BLOCK_BYTES = 65536


class Reader:
    """Reads a new fifo to its end, or until ``stop_after`` bytes have come.

    From ``slow_after`` bytes on it takes a page at a time, with ``pause_s`` before each.
    """

    def __init__(
        self,
        path: Path,
        stop_after: int = 1 << 62,
        slow_after: int = 1 << 62,
        pause_s: float = 0.0,
    ) -> None:
        self.path = path
        self._stop_after, self._slow_after, self._pause_s = stop_after, slow_after, pause_s
        self._parts: list[bytes] = []
        self.size = 0
        if not path.exists():
            os.mkfifo(path)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def all(self) -> bytes:
        """Everything, once it has come."""
        self._thread.join(BOUND_S)
        assert not self._thread.is_alive(), f"{self.path}: no end after {self.size} bytes"
        return b"".join(self._parts)

    def give_up(self) -> None:
        """Ends a reader that nobody will ever write to."""
        with contextlib.suppress(OSError):
            os.close(os.open(self.path, os.O_WRONLY | os.O_NONBLOCK))
        self._thread.join(BOUND_S)

    def _read(self) -> None:
        fd = os.open(self.path, os.O_RDONLY)
        try:
            while self.size < self._stop_after:
                left = min(self._stop_after, self._slow_after) - self.size
                if left <= 0:
                    time.sleep(self._pause_s)
                part = os.read(fd, min(left, BLOCK_BYTES) if left > 0 else PAGE_BYTES)
                if not part:
                    return
                self._parts.append(part)
                self.size += len(part)
        finally:
            os.close(fd)


def fifo(path: Path) -> Path:
    """A new fifo."""
    os.mkfifo(path)
    return path
