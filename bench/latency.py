"""How long a container's life takes, by the shim alone and by ctr."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from bench.stand import RUNTIMES, Bench, Stand
from tests.integration.containerd import BOUND_S, eventually

AT_ONCE = 20
MORE = 4  # short ones vary more, and cost little
MS = 1000

Found = dict[str, dict[str, list[float]]]


def cycles(bench: Bench) -> Found:
    """`start`, `delete`, and from a container's exit to its event."""
    bench.alternately(cycle)  # the zygote, the page cache
    return bench.alternately(cycle, MORE)


def cycle(stand: Stand) -> dict[str, float]:
    """One life of a container that is killed when it has been left alone for a while."""
    container = stand.container("/bin/sleep", "1000000")
    container.create()
    pid = container.start()
    stand.leave_alone()
    killed = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    arrived = stand.events.arrival(container.name, "exit")
    container.finish()
    return {
        "start": stand.took["start", container.name] * MS,
        "exit": (arrived - killed) * MS,
        "delete": stand.took["delete", container.name] * MS,
    }


def execs(bench: Bench) -> Found:
    """An exec of /bin/true in a container that has been left alone: Exec, Start, Wait, Delete."""
    containers = {
        side: stand.started("/bin/sleep", "1000000") for side, stand in bench.stands.items()
    }

    def one(stand: Stand) -> dict[str, float]:
        stand.leave_alone()
        begun = time.perf_counter()
        assert containers[stand.side].run("x", "/bin/true") == 0
        return {"exec": (time.perf_counter() - begun) * MS}

    found = bench.alternately(one, MORE)
    for container in containers.values():
        container.end()
    return found


def runs(bench: Bench) -> Found:
    """`ctr run --rm /bin/true`, and many of them at once."""
    _run(bench, bench.stands["ours"])
    _run(bench, bench.stands["theirs"])
    found = bench.alternately(lambda stand: _run(bench, stand), 2 * MORE)
    return found | bench.alternately(lambda stand: _at_once(bench, stand))


def _run(bench: Bench, stand: Stand) -> dict[str, float]:
    command = bench.containerd.run("run", "/bin/true", runtime=RUNTIMES[stand.side])
    begun = time.perf_counter()
    done = bench.containerd.ctr(*command)
    took = time.perf_counter() - begun
    assert done.returncode == 0, f"ctr run: {done.stderr}"
    return {"run": took * MS}


def _at_once(bench: Bench, stand: Stand) -> dict[str, float]:
    containerd = bench.containerd
    reader, writer = os.pipe()  # ctr 1.6 hangs when its stdin ends too early
    begun = time.perf_counter()
    running = []
    try:
        for number in range(AT_ONCE):
            command = containerd.run(f"run{number}", "/bin/true", runtime=RUNTIMES[stand.side])
            running.append(containerd.spawn(*command, stdin=reader))
        for process in running:
            _, error = process.communicate(timeout=BOUND_S)
            assert process.returncode == 0, f"ctr run: {error}"
        took = time.perf_counter() - begun
    finally:
        os.close(reader)
        os.close(writer)
        _kill(running)
    eventually(lambda: not containerd.services(), "the services have parked")
    return {"at_once": took * MS}


def _kill(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()
        process.communicate(timeout=BOUND_S)
