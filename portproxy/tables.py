"""What ``status``, ``ps`` and ``top`` print for people."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

Json = dict[str, Any]
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
PER_SECOND = 1000
WIDE = 400  # columns


def amount(count: float) -> str:
    """A number of bytes with a unit."""
    for unit in UNITS:
        if count < 1024 or unit == UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def _console() -> Console:
    """As wide as the terminal; where there is none, as wide as any line."""
    return Console() if sys.stdout.isatty() else Console(width=WIDE)


def _table(*columns: str) -> Table:
    made = Table(box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def status(answer: Json) -> None:
    """All mappings."""
    console = _console()
    ready = "ready" if answer["ready"] == "yes" else f"not ready: {answer['ready']}"
    pids = ", ".join(str(pid) for pid in answer["workers"].values())
    console.print(f"portproxy {answer['pid']}, data plane {pids}, {ready}", markup=False)
    made = _table("MAPPING", "STATE", "PORTS", "OPEN NOW", "ACCEPTED", "FAILED", "UP", "DOWN")
    for each in answer["mappings"]:
        state = "kernel" if each["kernel"] else each["state"]
        now = each["connections"] + each["sessions"]
        ports = f"{each['open']}/{each['ports']}"
        sizes = amount(each["up"]), amount(each["down"])
        counts = str(now), str(each["accepted"]), str(each["failed"])
        made.add_row(each["where"], state, ports, *counts, *sizes)
    console.print(made)


def connection_table(connections: list[Json], before: dict[Any, int], passed_s: float) -> Table:
    """All connections, the busiest first if it is known what they had carried before."""
    made = _table("ID", "CLIENT", "LOCAL", "BACKEND", "PHASE", "UP", "DOWN", "RATE", "RTT", "AGE")

    def rate(each: Json) -> float:
        gained = each["up"] + each["down"] - before.get(each["serial"], 0)
        return gained / passed_s if passed_s else 0.0

    for each in sorted(connections, key=rate, reverse=True):
        made.add_row(
            str(each["serial"]),
            f"{each['client']}:{each['client_port']}",
            f"{each['local']}:{each['local_port']}",
            each.get("backend", "-"),
            each["phase"],
            amount(each["up"]),
            amount(each["down"]),
            f"{amount(rate(each))}/s" if passed_s else "-",
            f"{each['rtt_us'] / PER_SECOND:.1f} ms" if "rtt_us" in each else "-",
            f"{each['ms'] / PER_SECOND:.0f} s",
        )
    return made


def connections(found: list[Json]) -> None:
    """All connections, once."""
    _console().print(connection_table(found, {}, 0))


def top(look: Callable[[], list[Json]], wait_s: float, once: bool) -> None:
    """All connections, every ``wait_s`` seconds until Ctrl-C, or a second look only."""
    found, at_s = look(), time.monotonic()
    with Live(connection_table(found, {}, 0), console=_console(), auto_refresh=False) as live:
        while True:
            before = {each["serial"]: each["up"] + each["down"] for each in found}
            time.sleep(wait_s)
            found, now_s = look(), time.monotonic()
            live.update(connection_table(found, before, now_s - at_s), refresh=True)
            at_s = now_s
            if once:
                return
