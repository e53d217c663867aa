"""The table at the end: scenario by generation, our shim's column beside the Go shim's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.containerd import make_rootfs

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


KEY: pytest.StashKey[Table] = pytest.StashKey()


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Table:
    """The table of this run."""
    return request.config.stash.setdefault(KEY, Table())


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root filesystem of busybox, its links and pyinit."""
    folder = tmp_path_factory.mktemp("rootfs")
    make_rootfs(folder)
    folder.chmod(0o755)  # for those who are not root in a container
    return folder


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Prints the table; and what could not be tested, so that nobody overlooks it."""
    table = config.stash.get(KEY, None)
    if table is None:
        return
    terminalreporter.section("the two shims, scenario by generation")
    for line in table.lines():
        terminalreporter.write_line(line)
    for name, reason in table.not_tested.items():
        terminalreporter.write_line(f"!!! NOT TESTED: {name}: {reason}", red=True, bold=True)
