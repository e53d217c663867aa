"""That orphans may be left to the kernel, and that the command's status is never lost by it.

As PID 1, from the first orphan on, pyinit has the kernel reap (SA_NOCLDWAIT), where that keeps the
status of the command in a pidfd: since Linux 6.16.  Older kernels are simulated here.
"""

from __future__ import annotations

import contextlib
import os
import platform
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
    QUIET,
    children,
    eventually,
    line,
    run,
    started,
    state,
    tell,
    waits_for_ever,
)

CAN_KEEP = tuple(map(int, platform.release().split(".")[:2])) >= (6, 16)
TOGETHER_AT_ONCE = 10
# Leaves as many orphans as the third word says, who die at once; once none of those is left it
# tells that it and the orphans of the second word wait.  Then all end together: it with the status
# of the first, or by that signal if it is negative.
TOGETHER = """
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void leave(int count, int *gate) {
    char byte;
    if (!fork()) {
        while (count--) {
            if (!fork()) {
                if (gate) { close(gate[1]); read(gate[0], &byte, 1); }
                _exit(0);
            }
        }
        _exit(0);
    }
    wait(0);
}
int main(int count, char **words) {
    int gate[2], end = atoi(words[1]);
    char byte;
    pipe(gate);
    leave(atoi(words[3]), 0);
    leave(atoi(words[2]), gate);
    write(1, "ready\\n", 6);
    read(0, &byte, 1);
    if (end < 0) kill(getpid(), -end);
    _exit(end);
}
"""
# Ends while those whom it leaves die, but for one, who is deaf to TERM and lives until it is told.
SURVIVOR = (
    TOGETHER.partition("int main")[0]
    + """
int main(void) {
    char byte;
    signal(SIGTERM, SIG_IGN);
    if (!fork()) {
        if (!fork()) {
            write(1, "ready\\n", 6);
            read(0, &byte, 1);
            write(1, "late\\n", 5);
            _exit(0);
        }
        _exit(0);
    }
    wait(0);
    leave(300, 0);
    _exit(7);
}
"""
)
# Its first thread ends before another ends the process.
LATE_THREAD = """
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
static void *run(void *nothing) { usleep(500000); exit(5); }
int main(void) {
    pthread_t thread;
    pthread_create(&thread, 0, run, 0);
    pthread_exit(0);
}
"""
# Runs the rest of its words where one system call is refused, as a kernel does that has none such:
# pidfd_open before Linux 5.3, the ioctl of a pidfd before 6.13.
OLDER = """
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define IS(value, otherwise) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, otherwise)
#define ANSWER(what) BPF_STMT(BPF_RET | BPF_K, what)
int main(int count, char **words) {
    struct sock_filter open[] = {
        LOAD(nr), IS(SYS_pidfd_open, 1),
        ANSWER(SECCOMP_RET_ERRNO | ENOSYS), ANSWER(SECCOMP_RET_ALLOW)};
    struct sock_filter information[] = {
        LOAD(nr), IS(SYS_ioctl, 3), LOAD(args[1]), IS(0xC048FF0B, 1),
        ANSWER(SECCOMP_RET_ERRNO | ENOTTY), ANSWER(SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {4, open};
    if (!strcmp(words[1], "PIDFD_GET_INFO")) {
        program.len = 6;
        program.filter = information;
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, 2, &program)) return 99;
    execvp(words[2], words + 2);
    return 98;
}
"""
KERNELS = ["", "pidfd_open", "PIDFD_GET_INFO"]


def on(kernel: str, compiled: Compiled) -> list[str]:
    """What to put before a command for it to see a kernel that has no such call."""
    return [compiled(OLDER), kernel] if kernel else []


def holds(pid: int) -> bool:
    """Whether a process has a pidfd."""
    files = [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()]
    return any("pidfd" in file for file in files)


def test_the_kernel_reaps_from_the_first_orphan_on(pyinit: str, compiled: Compiled) -> None:
    """Which is seen by the pidfd."""
    with started(*NEW_PIDS, pyinit, "--", compiled(ORPHANS.read_text()), "1") as process:
        assert line(process) == "ready"
        init = children(process.pid)[0]
        assert eventually(lambda: waits_for_ever(init)) and not holds(init)
        tell(process)
        assert eventually(lambda: len(children(init)) == 1 and waits_for_ever(init))
        assert holds(init) == CAN_KEEP
        tell(process)
        assert process.wait(PATIENCE_S) == 9


@pytest.mark.parametrize(
    "options", ["", "--why", "-w", "--grace=1s", "--wait", "--log=text", "-vv", "--lock"]
)
def test_it_reaps_itself_where_somebody_wants_to_know(
    pyinit: str, compiled: Compiled, options: str
) -> None:
    """Of orphans, or, where it is not PID 1, of what they took."""
    command = [*options.split(), "--", compiled(ORPHANS.read_text()), "1"]
    prefix = NEW_PIDS if options else ()
    with started(*prefix, pyinit, *command, stderr=subprocess.DEVNULL) as process:
        assert line(process) == "ready"
        init = children(process.pid)[0] if options else process.pid
        tell(process)
        assert eventually(lambda: len(children(init)) == 1 and waits_for_ever(init))
        assert not holds(init)
        tell(process)
        assert process.wait(PATIENCE_S) == 9


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("early", [0, 1])
@pytest.mark.parametrize("end", [0, 7, 255, -int(signal.SIGKILL), -int(signal.SIGTERM)])
def test_the_status_of_a_command_that_dies_with_its_orphans(
    inits: Path, compiled: Compiled, end: int, early: int, kernel: str
) -> None:
    """Before the kernel reaps, in that instant, and when it has long done so."""
    words = [*on(kernel, compiled), *NEW_PIDS, str(inits / "pyinit"), "--"]
    words += [compiled(TOGETHER), str(end), "100", str(early)]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(started(*words)) for _ in range(TOGETHER_AT_ONCE)]
        for process in processes:
            assert line(process) == "ready"
            init = children(process.pid)[0]
            if early:
                assert eventually(lambda: len(children(init)) == 101)  # noqa: B023
                assert eventually(lambda: waits_for_ever(init))  # noqa: B023
                assert holds(init) == (CAN_KEEP and not kernel)
        for process in processes:
            tell(process)
        for process in processes:
            assert process.wait(PATIENCE_S) == (end if end >= 0 else 128 - end)


@pytest.mark.parametrize("kernel", KERNELS[1:])
@pytest.mark.parametrize("name", PERSONAS)
def test_orphans_are_reaped_on_older_kernels(
    inits: Path, compiled: Compiled, name: str, kernel: str
) -> None:
    command = [*NEW_PIDS, str(inits / name), *QUIET[name], "--"]
    command += [compiled(ORPHANS.read_text()), "1000"]
    with started(*on(kernel, compiled), *command) as process:
        assert line(process) == "ready"
        init = children(process.pid)[0]
        tell(process)
        assert eventually(lambda: len(children(init)) == 1 and waits_for_ever(init))
        assert not holds(init)
        tell(process)
        assert process.wait(PATIENCE_S) == 9


@plain_only
def test_a_kernel_that_answers_but_keeps_no_status(
    inits: Path, compiled: Compiled, tmp_path: Path
) -> None:
    """As 6.13 to 6.15: what it does not know it leaves out of the mask, the first eight bytes."""
    # The first such call of each process: only PID 1 makes one.
    fault = "inject=ioctl:poke_exit=@arg3=0100000000000000"
    trace = ["strace", "-f", "-o", str(tmp_path / "trace"), "-e", "trace=ioctl", "-e", fault]
    command = [str(inits / "pyinit"), "--", compiled(TOGETHER), "7", "10", "1"]
    with started(*trace, *NEW_PIDS, *command) as process:
        assert line(process) == "ready"
        (outer,) = children(process.pid)
        (init,) = children(outer)
        assert eventually(lambda: len(children(init)) == 11 and state(init) == "S")
        assert not holds(init)
        tell(process)
        assert process.wait(PATIENCE_S) == 7


def test_the_status_of_a_command_whose_first_thread_is_gone(
    inits: Path, compiled: Compiled
) -> None:
    for prefix in ((), NEW_PIDS):
        done = run(*prefix, str(inits / "pyinit"), "--", compiled(LATE_THREAD))
        assert done.returncode == 5


def test_ctrl_z_when_the_kernel_reaps(inits: Path, compiled: Compiled) -> None:
    """A child that stops is told of, as before."""
    command = ["setsid", str(inits / "pyinit"), "--", compiled(TOGETHER), "7", "10", "1"]
    with started(*NEW_PIDS, *command) as process:
        assert line(process) == "ready"
        init = children(process.pid)[0]
        assert eventually(lambda: len(children(init)) == 11 and waits_for_ever(init))
        assert holds(init) == CAN_KEEP
        child = children(init)[0]
        os.kill(child, signal.SIGTSTP)
        assert eventually(lambda: state(child) == "S")
        tell(process)
        assert process.wait(PATIENCE_S) == 7


@pytest.mark.parametrize("as_pid_1", [False, True], ids=["process", "pid1"])
def test_the_end_of_the_command_is_seen_while_it_rains_orphans(
    inits: Path, compiled: Compiled, as_pid_1: bool
) -> None:
    """Orphans are then collected later, but the command is not."""
    source = TOGETHER.replace("_exit(end);", "leave(300, 0); _exit(end);")
    prefix = NEW_PIDS if as_pid_1 else ()
    command = [*prefix, str(inits / "pyinit"), "--", compiled(source), "7", "300", "300"]
    with started(*command) as process:
        assert line(process) == "ready"
        init = children(process.pid)[0] if as_pid_1 else process.pid
        assert eventually(lambda: len(children(init)) == 301)
        tell(process)
        assert process.wait(PATIENCE_S) == 7


@pytest.mark.parametrize("option", ["--wait", "--grace=1m"])
@pytest.mark.parametrize("as_pid_1", [False, True], ids=["process", "pid1"])
def test_who_is_to_be_waited_for_is_waited_for_when_it_rains(
    inits: Path, compiled: Compiled, as_pid_1: bool, option: str
) -> None:
    """The command ends in the rain, when only its own end is looked for."""
    prefix = NEW_PIDS if as_pid_1 else ()
    for _ in range(5):
        with started(*prefix, str(inits / "pyinit"), option, "--", compiled(SURVIVOR)) as process:
            assert line(process) == "ready"
            init = children(process.pid)[0] if as_pid_1 else process.pid
            assert eventually(lambda: len(children(init)) == 1)  # noqa: B023
            assert state(children(init)[0]) in {"S", "R"}
            tell(process)
            assert line(process) == "late"
            assert process.wait(PATIENCE_S) == 7


@pytest.mark.parametrize("name", PERSONAS)
def test_a_signal_does_not_hide_who_has_died(inits: Path, compiled: Compiled, name: str) -> None:
    """Nobody stays dead when another signal comes while orphans are left for a moment."""
    command = [*NEW_PIDS, str(inits / name), *QUIET[name], "--"]
    command += [compiled(ORPHANS.read_text()), "50"]
    with started(*on("pidfd_open", compiled), *command) as process:
        assert line(process) == "ready"
        init = children(process.pid)[0]
        tell(process)
        for _ in range(100):
            os.kill(init, signal.SIGWINCH)
        assert eventually(lambda: len(children(init)) == 1)
        tell(process)
        assert process.wait(PATIENCE_S) == 9
