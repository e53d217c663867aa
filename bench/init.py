"""pyinit beside tini-static, dumb-init and catatonit: size, memory, time, system calls.

``python -m bench.init [--runs N] [--orphans N]``, as root.  Prints one table, which says of each
bound whether it is held, writes it into ``docs/pyinit.md``, and all figures into
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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import pyinit
from bench.host import describe_host
from bench.report import inserted
from bench.rows import AT_MOST, Goal

RESULTS = Path(__file__).with_name("init.json")
ORPHANS = Path(__file__).with_name("orphans.c")
MANUAL = Path(__file__).parent.parent / "docs/pyinit.md"
BEGIN, END = "<!-- bench: made by `make bench` -->", "<!-- bench: end -->"
BASELINE = "tini-static"
OTHERS = {"tini-static": ("-s", "--"), "dumb-init": (), "catatonit": ("--",)}
NEW_PIDS = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
NOT_PID_1: tuple[str, ...] = ()
ADOPTS_NOBODY = {"dumb-init"}  # unless it is PID 1
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
Record = dict[str, Any]
Measure = Callable[[list[str]], float]


def main() -> int:
    """Measures, prints, writes; 1 when something is missing."""
    parser = argparse.ArgumentParser(prog="bench.init", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="starts of each program")
    parser.add_argument("--orphans", type=int, default=10000, help="orphans that die at once")
    parser.add_argument("--rounds", type=int, default=5, help="storms of each program")
    arguments = parser.parse_args()
    missing = [name for name in (*OTHERS, "gcc", "strace", "unshare") if shutil.which(name) is None]
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
            for name, source in (
                ("nothing", NOTHING),
                ("echo", ECHO),
                ("orphans", ORPHANS.read_text()),
            )
        )
        results: Record = {"host": describe_host(), "inits": {}}
        results["inits"] = {
            name: {
                "file_bytes": Path(init[0]).resolve().stat().st_size,
                "calls": calls(init, nothing, programs / "trace"),
                **idle(init, echo),
            }
            for name, init in inits.items()
        }
        direct, starts = start_times(inits, nothing, arguments.runs)
        results["direct_start_us"] = direct
        forwards = forward_times(inits, echo, arguments.runs)
        storms = {
            key: in_turn(
                {name: init for name, init in inits.items() if prefix or name not in ADOPTS_NOBODY},
                partial(storm_cpu, orphans, arguments.orphans, prefix),
                arguments.rounds,
            )
            for key, prefix in (("storm_cpu_ms", NEW_PIDS), ("storm_below_ms", NOT_PID_1))
        }
        for name, found in results["inits"].items():
            found["added_start_us"] = starts[name] - direct
            found["forward_us"] = forwards[name]
            for key, storm in storms.items():
                found[key] = storm[name] * 1000 if name in storm else None
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    MANUAL.write_text(inserted(MANUAL.read_text(), markdown(results)))
    Console(width=120).print(table_of(results))
    return 0


def compiled(path: Path, source: str) -> str:
    """A static program of that C source."""
    path.with_suffix(".c").write_text(source)
    command = ["gcc", "-O2", "-w", "-static", "-o", str(path), str(path.with_suffix(".c"))]
    subprocess.run(command, check=True, timeout=BOUND_S)
    return str(path)


def calls(init: list[str], nothing: str, trace: Path) -> float:
    """System calls of the init itself, from its exec to its exit."""
    command = ["strace", "-o", str(trace), *init, nothing]
    subprocess.run(command, check=True, timeout=BOUND_S)
    return float(sum(not x.startswith(("+++", "---")) for x in trace.read_text().splitlines()))


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


def storm_cpu(orphans: str, count: int, prefix: tuple[str, ...], init: list[str]) -> float:
    """Seconds of processor that an init takes for so many orphans dying at once.

    ``prefix`` makes it PID 1, or makes it go on without being that.
    """
    command = [*prefix, *init, orphans, str(count)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        pid = children(process.pid)[0] if prefix == NEW_PIDS else process.pid
        time.sleep(IDLE_S / 10)  # storms come in containers that have run for a while
        before = processor_s(pid)
        process.stdin.write(b"x")
        while len(children(pid)) > 1:
            time.sleep(0.05)
        after = processor_s(pid)
        process.stdin.write(b"x")
        process.wait(BOUND_S)
    return after - before


def children(pid: int) -> list[int]:
    """The children of a process."""
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def processor_s(pid: int) -> float:
    """Seconds that a process has run (the first number of /proc/PID/schedstat, in ns)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


NO_GOAL = Goal()


@dataclass(frozen=True)
class Row:
    """One figure: ``key`` in the results, and the bound that it has to keep, if there is one."""

    key: str
    title: str
    form: str
    goal: Goal = NO_GOAL


ROWS = (
    Row("file_bytes", "file", "{:,.0f} B", Goal(below=32 << 10)),
    Row("rss_kb", "resident while waiting", "{:.0f} kB", Goal(below=40)),
    Row("private_kb", "  of it private", "{:.0f} kB"),
    Row("added_start_us", "added to a start", "{:.0f} µs", Goal(AT_MOST, 0.5)),
    Row("calls", "system calls from exec to exit", "{:.0f}", Goal(below=12)),
    Row("forward_us", "signal to command and back", "{:.1f} µs"),
    Row("storm_cpu_ms", "orphans at once, CPU, as PID 1", "{:.1f} ms", Goal(AT_MOST, 0.9)),
    Row("storm_below_ms", "  as a subreaper", "{:.1f} ms", Goal(AT_MOST, 0.9)),
    Row("wake_ups_per_s", "wake-ups per idle second", "{:.1f}", Goal(below=0)),
)


def header(results: Record) -> list[str]:
    """The columns."""
    return ["", *results["inits"], f"pyinit / {BASELINE}", "bound", "held"]


def cells(row: Row, results: Record) -> list[str]:
    """A row of the table: each figure, the ratio, the bound, and whether it is held."""
    found = results["inits"]
    ours, base = found["pyinit"][row.key], found[BASELINE][row.key]
    ratio = ours / base if base else None
    verdict = {True: "held", False: "not held", None: ""}[row.goal.reached(ours, ratio)]
    return [
        row.title,
        *(shown(row, figures) for figures in found.values()),
        "–" if ratio is None else f"{ratio:.2f}",
        row.goal.text("") if verdict else "",
        verdict,
    ]


def shown(row: Row, figures: Record) -> str:
    """A figure; dumb-init has none of what only a subreaper can do."""
    figure = figures.get(row.key)
    return "–" if figure is None else row.form.format(figure)


def table_of(results: Record) -> Table:
    """What people look at."""
    table = Table(title="pyinit beside other inits (medians)", caption=host(results))
    for number, column in enumerate(header(results)):
        table.add_column(column, justify="right" if number else "left")
    for row in ROWS:
        table.add_row(*cells(row, results))
    return table


def markdown(results: Record) -> str:
    """The same for the manual."""
    columns = header(results)
    rows = [columns, ["---", *("--:" for _ in columns[1:])]]
    rows += [cells(row, results) for row in ROWS]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", f"Medians. {host(results)}."])


def host(results: Record) -> str:
    """Where it was measured."""
    return f"{results['host']['cpus']} CPUs, Linux {results['host']['kernel']}"


if __name__ == "__main__":
    sys.exit(main())
