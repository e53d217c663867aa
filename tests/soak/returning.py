"""A fifo's reader that goes away and comes back, again and again."""

from __future__ import annotations

import os
import random
import select
import threading
import time
from pathlib import Path

from tests.integration.containerd import BOUND_S

BLOCK_BYTES = 4096
# What a fifo and the pipe before it may hold.  A reader that leaves when its writer has already
# put its last bytes there and gone, takes them along.
PIPES_BYTES = 2 * 64 * 1024
POLL_MS = 100


class ReturningReader:
    """Reads a new fifo at ``path``, through which ``size`` bytes will come, in several visits."""

    def __init__(self, path: Path, size: int, dice: random.Random) -> None:
        self.path = path
        self._visits = [dice.randrange(1, (size - PIPES_BYTES) // 5) for _ in range(5)]
        self._absences_s = [dice.uniform(0, 0.7) for _ in self._visits]
        self._parts: list[bytes] = []
        self._given_up = threading.Event()
        os.mkfifo(path)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def all(self) -> bytes:
        """Everything, once it has come."""
        self._thread.join(2 * BOUND_S)
        assert not self._thread.is_alive(), f"{self.path}: no end"
        return b"".join(self._parts)

    def give_up(self) -> None:
        """Ends a reader that may never see an end."""
        self._given_up.set()
        self._thread.join(BOUND_S)

    def _read(self) -> None:
        begun = False
        for size, absence_s in zip([*self._visits, 1 << 62], [*self._absences_s, 0], strict=True):
            begun = True if self._visit(size, begun) else begun
            time.sleep(absence_s)

    def _visit(self, size: int, begun: bool) -> bool:
        """Reads ``size`` bytes; an end before the first byte is a writer that has not come yet."""
        fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            while size and not self._given_up.is_set():
                select.select([fd], [], [], POLL_MS / 1000)
                try:
                    part = os.read(fd, min(size, BLOCK_BYTES))
                except BlockingIOError:
                    continue
                if part:
                    begun = True
                    self._parts.append(part)
                    size -= len(part)
                elif begun:
                    return True
                else:
                    time.sleep(POLL_MS / 1000)
        finally:
            os.close(fd)
        return begun
