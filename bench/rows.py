"""The rows of the comparison: what is measured, and what is to be reached.  Pure.

A sample is a pair, ours and the peer's, of one repetition.  Each figure is a median; a ratio is the
median of the repetitions' ratios, so that a host that slows down for a while does not shift it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OURS, THEIRS = "ours", "theirs"
AT_MOST, AT_LEAST = "≤", "≥"


@dataclass(frozen=True)
class Goal:
    """What a ratio is to reach; ``below`` is a bound of our own figure, whatever the peer's is."""

    sign: str = ""
    ratio: float = 0.0
    below: float | None = None

    def text(self, unit: str) -> str:
        """The goal as the table has it."""
        parts = [f"{self.sign} {self.ratio:g}×"] if self.sign else []
        if self.below is not None:
            parts.append(f"≤ {self.below:g} {unit}".rstrip())
        return ", ".join(parts) or "reported"

    def reached(self, ours: float, ratio: float | None) -> bool | None:
        """Whether it is; None when there is no goal.  Without a ratio the peer's figure was 0."""
        if not self.sign and self.below is None:
            return None
        held = [] if self.below is None else [ours <= self.below]
        if self.sign and ratio is None:
            held.append(False)
        elif self.sign and ratio is not None:
            held.append(ratio <= self.ratio if self.sign == AT_MOST else ratio >= self.ratio)
        return all(held)


@dataclass(frozen=True)
class Row:
    """One figure: ``key`` in the samples, ``title`` and ``unit`` in the table."""

    key: str
    title: str
    unit: str
    goal: Goal = Goal()
    digits: int = 1


ROWS = (
    Row("memory", "memory per idle container, 50 of them", "KiB", Goal(AT_MOST, 0.30), 0),
    Row("marginal", "memory of one more idle container", "KiB", Goal(AT_MOST, 0.08), 0),
    Row("polled", "memory per container polled every 10 s", "KiB", Goal(AT_MOST, 0.5), 0),
    Row("poll_cpu", "  CPU per poll", "ms", Goal(AT_MOST, 2.0), 2),
    Row("wakeups", "wake-ups per second of an idle container", "", Goal(below=0.0), 3),
    Row("start", "`start`: exec to answer", "ms", Goal(AT_MOST, 0.5)),
    Row("delete", "`delete`: exec to answer", "ms", Goal(AT_MOST, 0.8)),
    Row("run", "`ctr run --rm /bin/true`", "ms", Goal(AT_MOST, 0.9)),
    Row("at_once", "20 containers at once, until all have run", "ms", Goal(AT_MOST, 0.9), 0),
    Row("exec", "exec of `/bin/true` in an idle container", "ms", Goal(AT_MOST, 1.0)),
    Row("exit", "container's exit → event received", "ms", Goal(AT_MOST, 1.5, below=10.0), 2),
    Row("file", "stdout to `file://`, 1 GiB", "MB/s", Goal(AT_LEAST, 5.0), 0),
    Row("file_limit", "  no shim, the writer has the file itself", "MB/s", digits=0),
    Row("fifo", "stdout through a fifo, 1 GiB", "MB/s", Goal(AT_LEAST, 3.0), 0),
    Row("lines", "2 million lines of 80 bytes to `file://`", "MB/s", Goal(AT_LEAST, 2.0)),
    Row("lines_limit", "  no shim, a pipe that is thrown away", "MB/s"),
    Row("lines_cpu", "  CPU of the shim", "s", Goal(AT_MOST, 0.5), 2),
    Row("terminal", "terminal, 200 MB", "MB/s", Goal(AT_LEAST, 1.0)),
    Row("conmon_memory", "memory per idle container, beside conmon", "KiB", digits=0),
    Row("conmon_lines", "2 million lines to a log, beside conmon", "MB/s"),
    Row("conmon_lines_cpu", "  CPU, beside conmon", "s", digits=2),
)

Samples = Mapping[str, Mapping[str, Sequence[float]]]


def summarised(row: Row, samples: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Medians, ratio, spread and samples of one figure.

    Raises ValueError when a side has no sample, or the sides have not the same number of them.
    """
    ours, theirs = samples[OURS], samples[THEIRS]
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"{row.key}: {len(ours)} samples of ours and {len(theirs)} of the peer's")
    ratios = [one / other for one, other in zip(ours, theirs, strict=True) if other]
    ratio = statistics.median(ratios) if ratios else None
    median = statistics.median(ours)
    return {
        "key": row.key,
        "ours": median,
        "theirs": statistics.median(theirs),
        "ratio": ratio,
        "spread": [min(ratios), max(ratios)] if ratios else None,
        "reached": row.goal.reached(median, ratio),
        "samples": {OURS: list(ours), THEIRS: list(theirs)},
    }


def results_of(samples: Samples) -> list[dict[str, Any]]:
    """All rows that were measured, in the order of the table.  Raises as ``summarised``."""
    return [summarised(row, samples[row.key]) for row in ROWS if row.key in samples]


def row_of(key: str) -> Row:
    """The row of that key.  Raises KeyError."""
    for row in ROWS:
        if row.key == key:
            return row
    raise KeyError(key)


def cells(result: Mapping[str, Any]) -> tuple[str, str, str, str, str, str, str]:
    """The texts of a result: title, ours, the peer's, ratio, spread, goal, and whether reached."""
    row = row_of(result["key"])
    unit = f" {row.unit}".rstrip()
    ratio, spread = result["ratio"], result["spread"]
    verdict = {True: "yes", False: "no", None: ""}[result["reached"]]
    return (
        row.title,
        f"{result['ours']:,.{row.digits}f}{unit}",
        f"{result['theirs']:,.{row.digits}f}{unit}",
        "–" if ratio is None else f"{ratio:.3f}",
        "" if spread is None else f"{spread[0]:.2f}–{spread[1]:.2f}",
        row.goal.text(row.unit),
        verdict,
    )
