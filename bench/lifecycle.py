"""A container's life and its idle memory: our shim beside containerd's own, in one containerd.

``python -m bench.lifecycle [--runs N] [--containers N]``, as root.  Prints one table and writes
``bench/results.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.integration.containerd import (
    RUNTIME,
    Containerd,
    eventually,
    make_rootfs,
    processes_of,
)

OURS, THEIRS = RUNTIME, "io.containerd.runc.v2"
THEIR_SHIM = "containerd-shim-runc-v2"
RESULTS = Path(__file__).with_name("results.json")
STEADY_S = 1.0
STEADY_SHARE = 0.01
# runc keeps all containers of the host in one folder.
PREFIX = f"bench{os.getpid()}"
KIB = 1024

Record = dict[str, Any]


def main() -> int:
    """Measures, prints, writes; 1 when something did not work."""
    parser = argparse.ArgumentParser(prog="bench.lifecycle", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="`ctr run`s of each kind")
    parser.add_argument("--containers", type=int, default=20, help="idle containers of each kind")
    arguments = parser.parse_args()
    if os.geteuid():
        print("bench.lifecycle: containers need root", file=sys.stderr)
        return 1
    on_interrupt(signal.default_int_handler)
    try:
        with private_containerd() as containerd:
            # Memory first: nothing of either kind has run in this containerd yet.
            memory = measure_memory(containerd, arguments.containers)
            times = measure_times(containerd, arguments.runs)
    except KeyboardInterrupt:
        print("bench.lifecycle: interrupted; everything has been removed", file=sys.stderr)
        return 130
    results = {"host": describe_host(), "memory": memory, "run": times}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    Console().print(table_of(results))
    return 0


def on_interrupt(action: Callable[[int, FrameType | None], Any] | signal.Handlers) -> None:
    """What the three ways to end a command from outside do from now on."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, action)


@contextmanager
def private_containerd() -> Iterator[Containerd]:
    """A running containerd of our own; nothing of it is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="pyshim-bench-") as folder:
        home, rootfs = Path(folder), Path(folder) / "rootfs"
        make_rootfs(rootfs)
        containerd = Containerd(home, rootfs)
        try:
            containerd.start()
            yield containerd
        finally:
            on_interrupt(signal.SIG_IGN)  # a second Ctrl-C must not leave containers behind
            containerd.stop()


def describe_host() -> Record:
    """What the figures depend on."""
    return {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "containerd": first_line("containerd", "--version"),
        "runc": first_line("runc", "--version"),
    }


def first_line(*command: str) -> str:
    """The first line that ``command`` prints."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[0]


# --- Time ----------------------------------------------------------------------------------------


def measure_times(containerd: Containerd, runs: int) -> Record:
    """`ctr run --rm … /bin/true`, ours and theirs in turn, so that both see the same host."""
    seconds: dict[str, list[float]] = {OURS: [], THEIRS: []}
    for runtime in seconds:
        time_of_run(containerd, "warm", runtime)  # starts the zygote, fills the page cache
    for number in range(runs):
        for runtime, found in seconds.items():
            found.append(time_of_run(containerd, f"run{number}", runtime))
    ours, theirs = summary(seconds[OURS]), summary(seconds[THEIRS])
    return {"ours": ours, "theirs": theirs, "ratio": ours["median_ms"] / theirs["median_ms"]}


def time_of_run(containerd: Containerd, name: str, runtime: str) -> float:
    """Seconds from the start of ctr to its end; raises AssertionError when the run fails."""
    command = containerd.run(f"{PREFIX}-{name}", "/bin/true", runtime=runtime)
    started = time.perf_counter()
    done = containerd.ctr(*command)
    assert done.returncode == 0, f"ctr run with {runtime}: {done.stderr}"
    return time.perf_counter() - started


def summary(seconds: list[float]) -> Record:
    """Median and spread in milliseconds, and every sample."""
    samples = [second * 1000 for second in seconds]
    quartiles = statistics.quantiles(samples, n=4) if len(samples) > 1 else samples * 3
    return {
        "median_ms": statistics.median(samples),
        "quartiles_ms": [quartiles[0], quartiles[2]],
        "range_ms": [min(samples), max(samples)],
        "samples_ms": samples,
    }


# --- Memory --------------------------------------------------------------------------------------


def measure_memory(containerd: Containerd, count: int) -> Record:
    """PSS of all that is resident for ``count`` idle containers, theirs and then ours."""
    with idle_containers(containerd, count, THEIRS):
        theirs = steady_pss(containerd)
    with idle_containers(containerd, count, OURS):
        eventually(lambda: not containerd.services(), "all services have parked")
        ours = steady_pss(containerd)
    per_container = sum(ours.values()) / count
    without = (sum(ours.values()) - ours.get("zygote", 0)) / count
    of_theirs = sum(theirs.values()) / count
    return {
        "containers": count,
        "ours_bytes": ours,
        "theirs_bytes": theirs,
        "ours_per_container": per_container,
        "ours_per_container_without_zygote": without,
        "theirs_per_container": of_theirs,
        "ratio": per_container / of_theirs,
        "ratio_without_zygote": without / of_theirs,
    }


@contextmanager
def idle_containers(containerd: Containerd, count: int, runtime: str) -> Iterator[None]:
    """That many sleeping containers; removed afterwards, and with them their shims."""
    names = [f"{PREFIX}-idle{number}" for number in range(count)]
    for name in names:
        command = containerd.run(name, "/bin/sleep", "100000", flags=("-d",), runtime=runtime)
        done = containerd.ctr(*command)
        assert done.returncode == 0, f"ctr run with {runtime}: {done.stderr}"
    yield
    for name in names:
        containerd.ctr("task", "delete", "--force", name)
        containerd.ctr("container", "delete", name)
    eventually(lambda: not set(kinds(containerd).values()) - {"zygote"}, "all shims have ended")


def steady_pss(containerd: Containerd) -> dict[str, int]:
    """Bytes by kind of process, once two sums that are a while apart agree."""
    seen = [pss_by_kind(containerd)]

    def is_steady() -> bool:
        time.sleep(STEADY_S)
        seen.append(pss_by_kind(containerd))
        before, now = (sum(found.values()) for found in seen[-2:])
        return abs(now - before) <= STEADY_SHARE * now

    eventually(is_steady, "memory has settled")
    return seen[-1]


def pss_by_kind(containerd: Containerd) -> dict[str, int]:
    """Proportional set size in bytes, summed by kind of process."""
    found: dict[str, int] = {}
    for pid, kind in kinds(containerd).items():
        found[kind] = found.get(kind, 0) + pss(pid)
    return found


def kinds(containerd: Containerd) -> dict[int, str]:
    """What is resident beside containerd itself: pid → monitor, zygote, shim (theirs) or other."""
    assert containerd.process is not None
    found = {}
    for pid, line in processes_of(containerd.home).items():
        program = Path(line.split(" ")[0]).name
        if pid == containerd.process.pid:
            continue
        if program == THEIR_SHIM:
            found[pid] = "shim"
        elif program == "pyshim-monitor":
            found[pid] = "monitor"
        else:
            found[pid] = "zygote" if "pyshim.zygote" in line else "other"
    return found


def pss(pid: int) -> int:
    """Bytes of ``pid``, pages that others map too counted by share (proc_pid_smaps(5))."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * KIB
    raise ValueError(f"/proc/{pid}/smaps_rollup has no Pss")


# --- The table -----------------------------------------------------------------------------------


def table_of(results: Record) -> Table:
    """What people look at."""
    host, memory, times = results["host"], results["memory"], results["run"]
    table = Table(
        title=f"pyshim beside {THEIR_SHIM}", caption=f"{host['containerd']}; {host['runc']}"
    )
    for column in ("", "pyshim", "runc-v2", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    runs = len(times["ours"]["samples_ms"])
    table.add_row(
        f"ctr run --rm /bin/true, median of {runs}",
        *(f"{times[side]['median_ms']:.0f} ms" for side in ("ours", "theirs")),
        f"{times['ratio']:.2f}",
    )
    for name, key in (("quartiles", "quartiles_ms"), ("least and most", "range_ms")):
        cells = ("{:.0f}–{:.0f} ms".format(*times[side][key]) for side in ("ours", "theirs"))
        table.add_row(f"  {name}", *cells, "")
    theirs = kib(memory["theirs_per_container"])
    table.add_row(
        f"memory (PSS) per idle container, {memory['containers']} of them",
        kib(memory["ours_per_container"]),
        theirs,
        f"{memory['ratio']:.3f}",
    )
    table.add_row(
        "  without the zygote, which they share",
        kib(memory["ours_per_container_without_zygote"]),
        theirs,
        f"{memory['ratio_without_zygote']:.3f}",
    )
    return table


def kib(size: float) -> str:
    """Bytes for people."""
    return f"{size / KIB:.0f} KiB"


if __name__ == "__main__":
    sys.exit(main())
