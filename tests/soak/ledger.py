"""What was begun, brought to its end, refused and lost; and the log of every step."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from types import TracebackType

from .order import Told

THINGS = ("containers", "execs", "exit statuses", "events", "bytes of stdio")


class Ledger:
    """Counts by thing, and writes each step to ``path``; for many threads.

    What was begun is lost unless it is finished, or refused with a clear error while a fault
    excused that.  ``tracked`` is what each container's client was told, for the account of its
    events, and ``watched`` the same of containerd's containers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begun: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.complaints: list[str] = []
        self.tracked: list[tuple[str, Told]] = []
        self.watched: list[tuple[str, Told]] = []
        self._origin = time.monotonic()
        self._lock = threading.Lock()
        self._file = path.open("w", buffering=1)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def age_s(self) -> float:
        """Seconds since it was opened."""
        return time.monotonic() - self._origin

    def note(self, who: str, text: str) -> None:
        """One line of the log."""
        with self._lock:
            self._file.write(f"{self.age_s:9.3f} {who}: {text}\n")

    def complain(self, who: str, text: str) -> None:
        """Something is lost or wrong."""
        self.note(who, f"LOST: {text}")
        with self._lock:
            self.complaints.append(f"{self.age_s:.3f} {who}: {text}")

    def begin(self, thing: str, count: int = 1) -> None:
        """So many are to come to an end."""
        with self._lock:
            self.begun[thing] += count

    def finish(self, thing: str, count: int = 1) -> None:
        """So many have."""
        with self._lock:
            self.finished[thing] += count

    def refuse(self, thing: str, count: int = 1) -> None:
        """So many could not be, and the client knows."""
        with self._lock:
            self.refused[thing] += count

    def lost(self, thing: str) -> int:
        """How many have neither come to their end nor been refused."""
        with self._lock:
            return self.begun[thing] - self.finished[thing] - self.refused[thing]
