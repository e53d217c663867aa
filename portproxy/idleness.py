"""Since when nobody has been there, from what the data plane counts.  Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Idleness:
    """``since_s`` is when somebody was last seen, on the clock that the callers read."""

    since_s: float
    accepted: int = -1  # by all mappings, when it was looked last

    def see(self, records: list[dict[str, Any]], now_s: float) -> None:
        """Takes note of a ``list`` of the data plane: its mappings, and last its process."""
        *mappings, process = records
        accepted = sum(record["accepted"] for record in mappings)
        sessions = sum(record["sessions"] for record in mappings)
        # Whoever has come and gone since the last look was there as well.
        if process["links"] or sessions or accepted != self.accepted:
            self.since_s = now_s
        self.accepted = accepted

    def lasts_s(self, now_s: float) -> float:
        """For how many seconds nobody has been there."""
        return now_s - self.since_s
