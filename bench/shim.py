"""Our shim beside containerd's own and conmon: memory, time, throughput, growth.

``python -m bench.shim [--repetitions N] [--only PART…]``, as root.  Prints one table; when all
parts were measured it also writes ``bench/results.json``, ``docs/bench.svg`` and what the README
shows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import conmon, growth, latency, limits, memory, report, throughput
from bench.host import describe_host, on_interrupt
from bench.rows import THEIRS, results_of
from bench.stand import PROGRAMS, Bench, stands
from tests.integration.containerd import Containerd, make_rootfs

PARTS = {
    "idle": memory.idle,
    "polled": memory.polled,
    "cycles": latency.cycles,
    "execs": latency.execs,
    "runs": latency.runs,
    "file": throughput.to_file,
    "fifo": throughput.to_fifo,
    "lines": throughput.lines,
    "terminal": throughput.terminal,
}
NEEDED = (PROGRAMS[THEIRS], "containerd", "ctr", "runc", conmon.PROGRAM, "gcc")


def main() -> int:
    """Measures, prints, writes; 1 when something is missing."""
    parser = argparse.ArgumentParser(prog="bench.shim", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5, help="least samples of a figure")
    parser.add_argument("--only", nargs="+", choices=[*PARTS, "growth"], help="these parts alone")
    arguments = parser.parse_args()
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing or os.geteuid():
        what = f"missing: {', '.join(missing)}" if missing else "containers need root"
        print(f"bench.shim: {what}", file=sys.stderr)
        return 1
    on_interrupt(signal.default_int_handler)
    try:
        with benches(arguments.repetitions) as bench:
            results = measure(bench, arguments.only)
    except KeyboardInterrupt:
        print("bench.shim: interrupted; everything has been removed", file=sys.stderr)
        return 130
    if arguments.only:
        Console(width=120).print(report.table_of(results))
        return 0
    report.RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    report.publish(results)
    return 0


@contextlib.contextmanager
def benches(repetitions: int) -> Iterator[Bench]:
    """Both shims and a containerd; nothing of them is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="pyshim-bench-") as folder, contextlib.ExitStack() as s:
        home = Path(folder)
        rootfs = home / "rootfs"
        make_rootfs(rootfs)
        throughput.install(rootfs)
        made = s.enter_context(stands(home, rootfs))
        (home / "c").mkdir()
        containerd = Containerd(home / "c", rootfs)
        s.callback(containerd.stop)
        # A second Ctrl-C must not leave containers behind.
        s.callback(on_interrupt, signal.SIG_IGN)
        containerd.start()
        yield Bench(home, rootfs, made, containerd, repetitions)


def measure(bench: Bench, only: list[str] | None) -> dict[str, Any]:
    """All figures, or those of ``only`` some parts."""
    samples: dict[str, dict[str, list[float]]] = {}
    took: dict[str, float] = {}
    for name, part in PARTS.items():
        if not only or name in only:
            with timed(took, name):
                samples |= part(bench)
    if {"memory", "lines"} <= set(samples):
        with timed(took, "conmon"):
            samples |= conmon.measure(bench, samples)
    if {"file", "lines"} <= set(samples):
        with timed(took, "limits"):
            samples |= limits.measure(bench, samples)
    results = {"host": describe_host(), "rows": results_of(samples)}
    if not only or "growth" in only:
        with timed(took, "growth"):
            results["growth"] = growth.measure(bench)
    return results | {"seconds": took}


@contextlib.contextmanager
def timed(took: dict[str, float], name: str) -> Iterator[None]:
    """Notes how long a part takes, and says so: a run takes minutes."""
    begun = time.monotonic()
    yield
    took[name] = round(time.monotonic() - begun, 1)
    print(f"bench.shim: {name}: {took[name]} s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
