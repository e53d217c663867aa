"""pyinit beside tini-static, dumb-init and catatonit: size, memory, time.

``python -m bench.init [--runs N] [--orphans N]``, as root.  Prints one table and writes
``bench/init.json``.  The programs take turns, so that all see the same host.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import pyinit
from bench.host import describe_host

RESULTS = Path(__file__).with_name("init.json")
BASELINE = "tini-static"
OTHERS = {"tini-static": ("-s", "--"), "dumb-init": (), "catatonit": ("--",)}
NEW_PIDS = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
WARM_UP = 20
IDLE_S = 3.0
BOUND_S = 60
MICRO = 1e6
# A command that costs as little as can be; and one that answers each signal.
NOTHING = "int main(void) { return 0; }"
ECHO = """
#include <signal.h>
#include <unistd.h>
int main(void) {
    sigset_t set;
    int number;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    write(1, "r", 1);
    while (!sigwait(&set, &number)) write(1, "s", 1);
}
"""
# Forks that many, whose parent then ends; a byte on stdin, and all end at once.
ORPHANS = """
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int count, char **words) {
    int gate[2];
    char byte;
    pipe(gate);
    if (!fork()) {
        for (count = atoi(words[1]); count--;) {
            if (!fork()) { close(gate[1]); read(gate[0], &byte, 1); _exit(0); }
        }
        _exit(0);
    }
    wait(0);
    write(1, "r", 1);
    read(0, &byte, 1);
    close(gate[1]);
    read(0, &byte, 1);
    return 0;
}
"""

Record = dict[str, Any]
Measure = Callable[[list[str]], float]


def main() -> int:
    """Measures, prints, writes; 1 when something is missing."""
    parser = argparse.ArgumentParser(prog="bench.init", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="starts of each program")
    parser.add_argument("--orphans", type=int, default=10000, help="orphans that die at once")
    parser.add_argument("--rounds", type=int, default=5, help="storms of each program")
    arguments = parser.parse_args()
    missing = [name for name in (*OTHERS, "gcc", "unshare") if shutil.which(name) is None]
    if missing or os.geteuid():
        what = f"{', '.join(missing)} missing" if missing else "pid namespaces need root"
        print(f"bench.init: {what}", file=sys.stderr)
        return 1
    inits = {"pyinit": [str(pyinit.path()), "--"]}
    for name, options in OTHERS.items():
        inits[name] = [str(shutil.which(name)), *options]
    with tempfile.TemporaryDirectory(prefix="pyinit-bench-") as folder:
        programs = Path(folder)
        nothing, echo, orphans = (
            compiled(programs / name, source)
            for name, source in (("nothing", NOTHING), ("echo", ECHO), ("orphans", ORPHANS))
        )
        results: Record = {"host": describe_host(), "inits": {}}
        results["inits"] = {
            name: {"file_bytes": Path(init[0]).resolve().stat().st_size, **idle(init, echo)}
            for name, init in inits.items()
        }
        direct, starts = start_times(inits, nothing, arguments.runs)
        results["direct_start_us"] = direct
        forwards = forward_times(inits, echo, arguments.runs)
        storm = in_turn(
            inits, lambda init: storm_cpu(init, orphans, arguments.orphans), arguments.rounds
        )
        for name, found in results["inits"].items():
            found["added_start_us"] = starts[name] - direct
            found["forward_us"] = forwards[name]
            found["storm_cpu_ms"] = storm[name] * 1000
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    Console().print(table_of(results, arguments.orphans))
    return 0


def compiled(path: Path, source: str) -> str:
    """A static program of that C source."""
    path.with_suffix(".c").write_text(source)
    command = ["gcc", "-O2", "-w", "-static", "-o", str(path), str(path.with_suffix(".c"))]
    subprocess.run(command, check=True, timeout=BOUND_S)
    return str(path)


def in_turn(inits: dict[str, list[str]], measure: Measure, rounds: int) -> dict[str, float]:
    """The median of each init, measured one after the other in each round."""
    found: dict[str, list[float]] = {name: [] for name in inits}
    for _ in range(rounds):
        for name, init in inits.items():
            found[name].append(measure(init))
    return {name: statistics.median(values) for name, values in found.items()}


def idle(init: list[str], echo: str) -> Record:
    """Memory and wake-ups of an init whose command waits."""
    with subprocess.Popen([*init, echo], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.read(1)
            time.sleep(IDLE_S / 10)
            before = switches(process.pid)
            time.sleep(IDLE_S)
            rows = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
            sizes = {row.split(":")[0]: int(row.split()[1]) for row in rows}
            return {
                "rss_kb": sizes["Rss"],
                "private_kb": sizes["Private_Dirty"],
                "wake_ups_per_s": (switches(process.pid) - before) / IDLE_S,
            }
        finally:
            process.terminate()


def switches(pid: int) -> int:
    """How often a process has gone to sleep (proc_pid_status(5))."""
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("voluntary"))


def start_times(
    inits: dict[str, list[str]], nothing: str, runs: int
) -> tuple[float, dict[str, float]]:
    """Microseconds from fork to exit of a command that does nothing, alone and under each init."""

    def once(init: list[str]) -> float:
        started = time.perf_counter()
        pid = os.posix_spawn((*init, nothing)[0], [*init, nothing], {})
        os.waitpid(pid, 0)
        return (time.perf_counter() - started) * MICRO

    everybody = {"": [], **inits}
    in_turn(everybody, once, WARM_UP)
    found = in_turn(everybody, once, runs)
    return found.pop(""), found


def forward_times(inits: dict[str, list[str]], echo: str, runs: int) -> dict[str, float]:
    """Microseconds from a signal to the init until its command has answered."""
    processes = {
        name: subprocess.Popen([*init, echo], stdout=subprocess.PIPE, bufsize=0)
        for name, init in inits.items()
    }
    try:
        for process in processes.values():
            assert process.stdout is not None
            process.stdout.read(1)

        def once(init: list[str]) -> float:
            process = processes[next(name for name, known in inits.items() if known is init)]
            assert process.stdout is not None
            started = time.perf_counter()
            os.kill(process.pid, signal.SIGUSR1)
            process.stdout.read(1)
            return (time.perf_counter() - started) * MICRO

        in_turn(inits, once, WARM_UP)
        return in_turn(inits, once, runs)
    finally:
        for process in processes.values():
            process.terminate()
            process.communicate(timeout=BOUND_S)


def storm_cpu(init: list[str], orphans: str, count: int) -> float:
    """Seconds of processor that an init as PID 1 takes for so many orphans dying at once."""
    command = [*NEW_PIDS, *init, orphans, str(count)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.read(1)
        pid = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
        time.sleep(IDLE_S / 10)  # storms come in containers that have run for a while
        before = processor_s(pid)
        process.stdin.write(b"x")
        while len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()) > 1:
            time.sleep(0.05)
        after = processor_s(pid)
        process.stdin.write(b"x")
        process.wait(BOUND_S)
    return after - before


def processor_s(pid: int) -> float:
    """Seconds that a process has run (the first number of /proc/PID/schedstat, in ns)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


ROWS = (
    ("file", "file_bytes", "{:,.0f} B"),
    ("resident while waiting", "rss_kb", "{:.0f} kB"),
    ("  of it private", "private_kb", "{:.0f} kB"),
    ("added to a start", "added_start_us", "{:.0f} µs"),
    ("signal to command and back", "forward_us", "{:.1f} µs"),
    ("{orphans} orphans at once, CPU", "storm_cpu_ms", "{:.1f} ms"),
    ("wake-ups per idle second", "wake_ups_per_s", "{:.1f}"),
)


def table_of(results: Record, orphans: int) -> Table:
    """What people look at."""
    found = results["inits"]
    table = Table(title="pyinit beside other inits (medians)", caption=results["host"]["kernel"])
    table.add_column("")
    for name in (*found, f"pyinit / {BASELINE}"):
        table.add_column(name, justify="right")
    for text, key, form in ROWS:
        values = [form.format(found[name][key]) for name in found]
        base = found[BASELINE][key]
        ratio = f"{found['pyinit'][key] / base:.2f}" if base else "–"
        table.add_row(text.format(orphans=f"{orphans:,}"), *values, ratio)
    return table


if __name__ == "__main__":
    sys.exit(main())
