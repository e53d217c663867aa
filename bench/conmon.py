"""conmon, which CRI-O and Podman have in a shim's place, at the work that it shares with one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.rows import OURS, THEIRS
from bench.stand import Bench, kib
from bench.throughput import LINE_BYTES, LINES, MEGA, PATIENCE_S, POLL_S, open_gate
from bench.usage import cpu_s, pss
from tests.integration.containerd import BOUND_S, eventually, processes_of

IDLE = 20
PROGRAM = "conmon"

Found = dict[str, dict[str, list[float]]]


def measure(bench: Bench, ours: Found) -> Found:
    """conmon's samples beside those of ``ours`` that were taken before."""
    memory, rates, used = [], [], []
    for _ in range(bench.repetitions):
        with containers(bench, IDLE, "/bin/sleep", "1000000") as pids:
            memory.append(kib(sum(map(pss, pids)) / IDLE))
        rate, used_s = _lines(bench)
        rates.append(rate)
        used.append(used_s)
    return {
        "conmon_memory": {OURS: ours["memory"][OURS], THEIRS: memory},
        "conmon_lines": {OURS: ours["lines"][OURS], THEIRS: rates},
        "conmon_lines_cpu": {OURS: ours["lines_cpu"][OURS], THEIRS: used},
    }


@contextlib.contextmanager
def containers(bench: Bench, count: int, *command: str) -> Iterator[list[int]]:
    """So many running containers, each with a conmon, whose pids are given; removed afterwards."""
    home = bench.home / PROGRAM
    (home / "sockets").mkdir(parents=True)
    try:
        for number in range(count):
            _start(bench, home, f"c{number}", command)
        yield [pid for pid, line in processes_of(home).items() if _is_conmon(line)]
    finally:
        _remove(home)


def _start(bench: Bench, home: Path, name: str, command: tuple[str, ...]) -> None:
    stand = bench.stands[OURS]
    bundle = home / name
    bundle.mkdir()
    spec = json.loads(json.dumps(stand.spec))
    spec["process"]["args"] = list(command)
    spec["process"]["env"].append(f"PYSHIM_TEST={home}")
    spec["linux"]["cgroupsPath"] = f"/{stand.namespace}/conmon-{name}"
    (bundle / "config.json").write_text(json.dumps(spec))
    runc = str(shutil.which("runc"))
    arguments = ["-c", name, "-u", name, "-n", name, "-r", runc, "-b", str(bundle)]
    arguments += ["-p", str(bundle / "pid"), "-l", f"k8s-file:{bundle / 'log'}"]
    arguments += ["--exit-dir", str(home), "--persist-dir", str(bundle)]
    arguments += [
        "--socket-dir-path",
        str(home / "sockets"),
        f"--runtime-arg=--root={home / 'runc'}",
    ]
    _quietly(PROGRAM, *arguments)
    eventually((bundle / "pid").exists, f"conmon has made {name}")
    _quietly(runc, "--root", str(home / "runc"), "start", name)


def _quietly(*command: str) -> None:
    """What is started may keep its output open, so none is read."""
    null = subprocess.DEVNULL
    subprocess.run(command, check=True, timeout=BOUND_S, stdin=null, stdout=null, stderr=null)


def _is_conmon(line: str) -> bool:
    return Path(line.split(" ", maxsplit=1)[0]).name == PROGRAM


def _lines(bench: Bench) -> tuple[float, float]:
    """MB a second of what the container writes (the log has more), and conmon's seconds of CPU."""
    size = LINE_BYTES * LINES
    with containers(bench, 1, "/bin/emit", str(LINE_BYTES), str(LINES)) as pids:
        begun = open_gate(bench.rootfs)
        log = bench.home / PROGRAM / "c0/log"
        deadline = time.monotonic() + PATIENCE_S
        used = seen = 0.0
        # The container's end is conmon's, and before it all has been written.
        while any(_is_conmon(line) for line in processes_of(bench.home / PROGRAM).values()):
            assert time.monotonic() < deadline, f"conmon: {seen} bytes within {PATIENCE_S} s"
            with contextlib.suppress(OSError):
                used = sum(map(cpu_s, pids))
            time.sleep(POLL_S)
        took = time.perf_counter() - begun
        seen = log.stat().st_size
        assert seen > size, f"{log} has {seen} bytes"
    return size / MEGA / took, used


def _remove(home: Path) -> None:
    def ended() -> bool:
        found = processes_of(home)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not found

    eventually(ended, "conmon and its containers have ended")
    for state in (home / "runc").glob("*"):
        command = ["runc", "--root", str(home / "runc"), "delete", "--force", state.name]
        subprocess.run(command, check=False, timeout=BOUND_S, capture_output=True)
    shutil.rmtree(home)
