"""Many at once: orphans, children, signals, and a signal at each instant of the start."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import plain_only

from .conftest import Compiled
from .inits import (
    NEW_PIDS,
    ORPHANS,
    PATIENCE_S,
    PERSONAS,
    PYTHON,
    QUIET,
    RAW,
    children,
    eventually,
    line,
    queue,
    started,
    tell,
)

STORM, WITH_SANITIZERS = 10000, 1000
SIGNALS = 1000
STARTS = 1000
# Has orphans of which it learns from nobody, and who die when the first of the queued
# signals arrives; it tells how many of those it has got, and ends on TERM.
COUNTER = (
    RAW
    + """
import sys
libc.syscall(block, 0, ctypes.byref(mask), None, 8)
reader, writer = os.pipe()
middle = os.fork()
if middle == 0:
    for _ in range(int(sys.argv[1])):
        if os.fork() == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    os._exit(0)
os.waitpid(middle, 0)
print("ready", flush=True)
seen, wanted = 0, int(sys.argv[2])
while True:
    number = libc.syscall(fetch, ctypes.byref(mask), info, None, 8)
    if number == 15:
        os._exit(9)
    if number == 34:
        seen += 1
        if seen == 1:
            os.close(writer)
        if seen == wanted:
            print("all", flush=True)
"""
)
# Each of so many: its child ends at once, and leaves one behind that does, too.
DOUBLE = """
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int count, char **words) {
    char byte;
    for (count = atoi(words[1]); count--;) {
        int middle = fork();
        if (!middle) { if (!fork()) _exit(3); _exit(4); }
        waitpid(middle, 0, 0);
    }
    write(1, "ready\\n", 6);
    read(0, &byte, 1);
    return 9;
}
"""
# Starts a program so often, as PID 1 of a new namespace or not, and sends it TERM at an instant
# that moves through the first millisecond.  PID 1 has it blocked when it starts: the kernel drops
# what the first process of a namespace neither blocks nor handles.  Tells each status that it saw
# and how often; -1 is for one that was still there after a long while.
STARTER = """
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}
int main(int argc, char **argv) {
    int count = atoi(argv[1]), as_pid_1 = atoi(argv[2]), patience_s = atoi(argv[3]), status;
    int seen[256 + 64] = {0}, lost = 0;
    sigset_t term, chld;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    sigemptyset(&chld);
    sigaddset(&chld, SIGCHLD);
    sigprocmask(SIG_BLOCK, &chld, 0);
    if (as_pid_1) sigprocmask(SIG_BLOCK, &term, 0);
    for (int i = 0; i < count; i++) {
        struct timespec limit = {patience_s, 0};
        int pid = syscall(SYS_clone, SIGCHLD | (as_pid_1 ? CLONE_NEWPID : 0), 0, 0, 0, 0);
        if (!pid) {
            sigprocmask(SIG_UNBLOCK, &chld, 0);
            execv(argv[4], argv + 4);
            _exit(120);
        }
        for (long end = now() + i * 1000000L / count; now() < end;);
        kill(pid, SIGTERM);
        while (waitpid(pid, &status, WNOHANG) == 0) {
            if (sigtimedwait(&chld, 0, &limit) < 0) {
                lost++;
                kill(pid, SIGKILL);
            }
        }
        seen[WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status)]++;
    }
    if (lost) printf("-1:%d ", lost);
    for (int i = 0; i < 256 + 64; i++) if (seen[i]) printf("%d:%d ", i, seen[i]);
    return 0;
}
"""
# What is started so: ends on TERM, which it may find blocked.
ENDS = """
#include <signal.h>
#include <unistd.h>
int main(void) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, 0);
    for (;;) pause();
}
"""


@pytest.mark.parametrize("name", PERSONAS)
def test_orphans_that_die_at_once(
    inits: Path, name: str, compiled: Compiled, request: pytest.FixtureRequest
) -> None:
    count = WITH_SANITIZERS if "sanitized" in request.node.name else STORM
    command = [*NEW_PIDS, str(inits / name), "--", compiled(ORPHANS.read_text()), str(count)]
    with started(*command) as process:
        assert line(process) == "ready"
        init = children(process.pid)[0]
        assert len(children(init)) == count + 1
        tell(process)
        assert eventually(lambda: len(children(init)) == 1, 0.2)
        tell(process)
        assert process.wait(PATIENCE_S) == 9


# dumb-init adopts nobody unless it is PID 1.
ADOPTING = [(name, True) for name in PERSONAS]
ADOPTING += [(name, False) for name in PERSONAS if name != "dumb-init"]


@pytest.mark.parametrize(("name", "as_pid_1"), ADOPTING)
def test_a_thousand_that_die_while_signals_arrive(inits: Path, name: str, as_pid_1: bool) -> None:
    """Not one of the queued signals is lost or sent twice, and nobody stays unreaped."""
    command = [*PYTHON, COUNTER, "1000", str(SIGNALS)]
    options = ["-c"] if name == "dumb-init" else QUIET[name]  # the others should get none
    prefix = NEW_PIDS if as_pid_1 else ()
    with started(*prefix, str(inits / name), *options, "--", *command) as process:
        assert line(process) == "ready"
        init = children(process.pid)[0] if as_pid_1 else process.pid
        for value in range(SIGNALS):
            queue(init, 34, value)
            os.kill(init, signal.SIGWINCH)
        assert line(process) == "all"
        assert eventually(lambda: len(children(init)) == 1)
        os.kill(init, signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 9


@pytest.mark.parametrize("as_pid_1", [False, True], ids=["process", "pid1"])
@pytest.mark.parametrize("name", PERSONAS)
def test_the_end_is_seen_in_a_stream_of_signals(inits: Path, name: str, as_pid_1: bool) -> None:
    """The kernel hands out those before SIGCHLD, which has a higher number."""
    command = ["sh", "-c", "trap '' HUP; echo ready; read x; exit 5"]
    prefix = NEW_PIDS if as_pid_1 else ()
    with started(*prefix, str(inits / name), *QUIET[name], "--", *command) as process:
        assert line(process) == "ready"
        init = children(process.pid)[0] if as_pid_1 else process.pid
        stream = f"while kill -HUP {init}; do :; done"
        with started("sh", "-c", stream, stderr=subprocess.DEVNULL) as sender:
            tell(process)
            assert process.wait(PATIENCE_S) == 5
            assert sender.wait(PATIENCE_S) == 0


@pytest.mark.parametrize(("name", "as_pid_1"), ADOPTING)
def test_double_forks(inits: Path, name: str, compiled: Compiled, as_pid_1: bool) -> None:
    prefix = NEW_PIDS if as_pid_1 else ()
    command = [*prefix, str(inits / name), *QUIET[name], "--", compiled(DOUBLE), "1000"]
    with started(*command) as process:
        assert line(process) == "ready"
        init = children(process.pid)[0] if as_pid_1 else process.pid
        assert eventually(lambda: len(children(init)) == 1)
        tell(process)
        assert process.wait(PATIENCE_S) == 9


@plain_only
@pytest.mark.parametrize("as_pid_1", [False, True], ids=["process", "pid1"])
@pytest.mark.parametrize("name", PERSONAS)
def test_a_signal_at_each_instant_of_the_start(
    inits: Path, name: str, compiled: Compiled, as_pid_1: bool
) -> None:
    """It ends the init, which has nothing to forward to yet, or the command, but never nothing."""
    command = [compiled(STARTER), str(STARTS), str(int(as_pid_1)), str(PATIENCE_S)]
    command += [str(inits / name), *QUIET[name], "--", compiled(ENDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    seen = {int(k): int(v) for k, v in (x.split(":") for x in done.stdout.split())}
    assert sum(seen.values()) == STARTS
    ended_before, ended_command = 256 + signal.SIGTERM, 128 + signal.SIGTERM
    assert set(seen) <= ({ended_command} if as_pid_1 else {ended_before, ended_command})
    assert ended_command in seen
