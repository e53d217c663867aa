"""The picture of the results: how each ratio stands to its goal, and what growth does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.rows import AT_MOST, OURS, THEIRS, row_of

COLOURS = {OURS: "tab:blue", THEIRS: "tab:orange"}
NAMES = {OURS: "pyshim", THEIRS: "Go shim"}
REACHED, MISSED = "tab:green", "tab:red"
PANELS = (
    ("memory_mib", "memory of all shims, MiB"),
    ("start_ms", "`start`, ms"),
    ("exit_ms", "exit → event, ms"),
)


def draw(results: dict[str, Any], path: Path) -> None:
    """Writes an SVG, the same one for the same results."""
    # Text as text, and no random names of elements.
    with mpl.rc_context({"svg.hashsalt": "pyshim", "svg.fonttype": "none"}):
        figure = Figure(figsize=(12, 9), layout="constrained")
        grid = figure.add_gridspec(2, len(PANELS), height_ratios=(3, 2))
        draw_ratios(figure.add_subplot(grid[0, :]), results["rows"])
        for column, (key, title) in enumerate(PANELS):
            draw_growth(figure.add_subplot(grid[1, column]), results["growth"], key, title)
        figure.savefig(path, format="svg", metadata={"Date": None})


def draw_ratios(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """A bar for each row with a goal: how good we are for what is to be reached, which is 1."""
    shown = [row for row in rows if row["ratio"] and row_of(row["key"]).goal.sign]
    for at, row in enumerate(reversed(shown)):
        goal = row_of(row["key"]).goal
        share = row["ratio"] / goal.ratio
        good = 1 / share if goal.sign == AT_MOST else share
        axes.barh(at, good, color=REACHED if row["reached"] else MISSED)
        axes.annotate(f" {row['ratio']:.3g}× ({goal.sign} {goal.ratio:g})", (good, at), va="center")
    titles = [row_of(row["key"]).title.strip().replace("`", "") for row in reversed(shown)]
    axes.set_yticks(range(len(titles)), titles)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_title("beside the Go shim: 1 is what is to be reached, more is better")


def draw_growth(axes: Axes, growth: dict[str, Any], key: str, title: str) -> None:
    """One figure of both sides over the number of containers."""
    for side, colour in COLOURS.items():
        axes.plot(growth["levels"], growth[side][key], "o-", color=colour, label=NAMES[side])
    axes.set_title(title)
    axes.set_xlabel("containers")
    axes.set_ylim(bottom=0)
    axes.legend()
