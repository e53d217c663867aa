"""Many at once: orphans, children, signals, and a signal at each instant of the start."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from tests.integration.conftest import plain_only

from .inits import (
    NEW_PIDS,
    PATIENCE_S,
    PERSONAS,
    PYTHON,
    QUIET,
    children,
    eventually,
    line,
    started,
)

# Forks as many children as told, which wait for the end of a pipe; at a line on stdin its middle
# process ends, and then they do, all at once.
ORPHANS = """
import os, sys
count = int(sys.argv[1])
reader, writer = os.pipe()
middle = os.fork()
if middle == 0:
    os.setsid()
    for _ in range(count):
        if os.fork() == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    os._exit(0)
os.waitpid(middle, 0)
print("ready", flush=True)
sys.stdin.readline()
os.close(writer)
sys.stdin.readline()
"""
# Starts children that end at once, a hundred at a time, and counts the HUPs meanwhile.
CHILDREN = """
import os, signal, sys
seen = 0
def handler(*_):
    global seen
    seen += 1
signal.signal(signal.SIGRTMIN, handler)
print("ready", flush=True)
for _ in range(10):
    pids = []
    for _ in range(100):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
while sys.stdin.readline():
    pass
print(seen, flush=True)
sys.exit(9)
"""


@pytest.mark.parametrize("name", PERSONAS)
def test_orphans_that_die_at_once(inits: Path, name: str, request: pytest.FixtureRequest) -> None:
    plain = "sanitized" not in request.node.name
    count = 10000 if name == "pyinit" and plain else 300
    command = [*NEW_PIDS, str(inits / name), "--", *PYTHON, ORPHANS, str(count)]
    with started(*command) as process:
        assert line(process) == "ready"
        init = children(process.pid)[0]
        assert len(children(init)) == count + 1
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert eventually(lambda: len(children(init)) == 1, 0.2)
        process.stdin.close()
        process.stdin = None
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("name", PERSONAS)
def test_children_that_die_while_signals_arrive(inits: Path, name: str) -> None:
    with started(str(inits / name), *QUIET[name], "--", *PYTHON, CHILDREN) as process:
        assert line(process) == "ready"
        for _ in range(1000):
            os.kill(process.pid, 34)  # queued, so none may be lost
            os.kill(process.pid, signal.SIGWINCH)
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        last = line(process)
        assert process.wait(PATIENCE_S) == 9
        # Python merges those that arrive while its handler is due.
        assert 0 < int(last) <= 1000


def test_double_forks(pyinit: str) -> None:
    script = "for i in $(seq 200); do ( (true &) &) ; done; read x; exit 3"
    with started(pyinit, "--", "sh", "-c", script) as process:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.close()
        process.stdin = None
        assert process.wait(PATIENCE_S) == 3
    assert children(process.pid) == []


@plain_only
@pytest.mark.parametrize("name", PERSONAS)
def test_a_signal_at_each_instant_of_the_start(inits: Path, name: str) -> None:
    """It ends the init, which has nothing to forward to yet, or the command, but never nothing."""
    init = [str(inits / name), *QUIET[name], "--", "sleep", "1000"]
    ends = set()
    for number in range(250):
        pid = os.posix_spawn(init[0], init, dict(os.environ))
        for _ in range(number * 4):  # some 0.1 ms in all: the instants of a start
            os.getppid()
        os.kill(pid, signal.SIGTERM)
        timer = threading.Timer(PATIENCE_S, os.kill, (pid, signal.SIGKILL))
        timer.start()
        ends.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        timer.cancel()
    assert ends <= {-signal.SIGTERM, 128 + signal.SIGTERM}
    assert 128 + signal.SIGTERM in ends
