"""The table of the compatibility tests: scenario by generation, our shim beside the Go shim.

Each process of a run has rows of its own; ``plain`` and ``merge`` bring them together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

SAME = "same"


@dataclass
class Cell:
    """How a scenario went on a generation."""

    ours: str = "FAILED"
    keys: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return (
            f"{self.ours:<6} {', '.join(sorted(self.keys)) or (SAME if self.ours == 'ok' else '?')}"
        )


class Table:
    """What is printed when all scenarios have run."""

    def __init__(self) -> None:
        self.cells: dict[str, dict[str, Cell]] = {}
        self.columns: list[str] = []
        self.not_tested: dict[str, str] = {}
        self.wordings: set[str] = set()

    @contextlib.contextmanager
    def cell(self, scenario: str, column: str) -> Iterator[Cell]:
        """The cell of a scenario that runs now; it is "ok" if nothing is raised."""
        if column not in self.columns:
            self.columns.append(column)
        made = self.cells.setdefault(scenario, {})[column] = Cell()
        yield made
        made.ours = "ok"

    def missing(self, daemon: str, suite: str, reason: str) -> None:
        """Notes a generation that could not be had."""
        self.not_tested[f"{daemon} of {suite}"] = reason

    def lines(self) -> Iterator[str]:
        """The table as text."""
        rows = [["scenario", *(f"{c}: ours, Go" for c in self.columns)]]
        for name, cells in self.cells.items():
            rows.append([name, *(str(cells.get(column, "–")) for column in self.columns)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = zip(row, widths, strict=True)
            yield "  ".join(text.ljust(width) for text, width in cells).rstrip()

    def plain(self) -> dict[str, Any]:
        """What ``merge`` takes, of plain values."""
        cells = {
            name: {column: (cell.ours, sorted(cell.keys)) for column, cell in row.items()}
            for name, row in self.cells.items()
        }
        return {"cells": cells, "columns": self.columns, "not_tested": self.not_tested}

    def merge(self, plain: dict[str, Any]) -> None:
        """Adds the rows of another process."""
        self.columns += [column for column in plain["columns"] if column not in self.columns]
        self.not_tested.update(plain["not_tested"])
        for name, row in plain["cells"].items():
            made = {column: Cell(ours, set(keys)) for column, (ours, keys) in row.items()}
            self.cells.setdefault(name, {}).update(made)


KEY: pytest.StashKey[Table] = pytest.StashKey()
