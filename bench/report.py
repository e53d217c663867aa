"""Shows the results: as a table for people, as a picture, and in the README between two marks.

``python -m bench.report`` shows those in ``bench/results.json`` again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.rows import cells

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).with_name("results.json")
README = ROOT / "README.md"
PICTURE = ROOT / "docs/bench.svg"
BEGIN, END = "<!-- bench: made by `make bench` -->", "<!-- bench: end -->"
COLUMNS = ("what", "pyshim", "Go shim", "ratio", "least–most", "to reach", "reached")


def main() -> int:
    """Draws and prints again."""
    try:
        results = json.loads(RESULTS.read_text())
    except FileNotFoundError:
        print(f"bench.report: {RESULTS} is not there; `make bench` writes it", file=sys.stderr)
        return 1
    publish(results)
    return 0


def publish(results: dict[str, Any]) -> None:
    """Writes the picture and the README's table, and prints the table."""
    from bench import picture  # what tests read of this module needs no plotting library

    picture.draw(results, PICTURE)
    README.write_text(inserted(README.read_text(), markdown(results)))
    Console(width=120).print(table_of(results))


def table_of(results: dict[str, Any]) -> Table:
    """What people look at."""
    table = Table(title="pyshim beside containerd-shim-runc-v2 (medians)", caption=host(results))
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if number else "left")
    for result in results["rows"]:
        table.add_row(*cells(result))
    return table


def markdown(results: dict[str, Any]) -> str:
    """The same for the README."""
    rows = [COLUMNS, ("---", *("--:" for _ in COLUMNS[1:])), *map(cells, results["rows"])]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    note = "Medians; the ratio is the median of the repetitions' ratios. " + host(results) + "."
    return "\n".join([*lines, "", note])


def host(results: dict[str, Any]) -> str:
    """Where it was measured, in one line."""
    about = results["host"]
    return (
        f"{about['cpus']} CPUs, Linux {about['kernel']}, Python {about['python']}, "
        f"containerd {about['containerd']}, {about['runc']}"
    )


def inserted(text: str, table: str) -> str:
    """``text`` with ``table`` between the marks.  Raises ValueError when they are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md has no place for the table: {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


if __name__ == "__main__":
    sys.exit(main())
