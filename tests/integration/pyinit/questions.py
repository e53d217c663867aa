"""The questions of the matrix (section 1.4 of the spec), put to any init from outside.

Each takes an init and returns its answer in a word or two.  Nothing here knows what is right.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .inits import (
    NEW_PIDS,
    PATIENCE_S,
    PYTHON,
    TIMED_WAIT,
    TSTP,
    TTIN,
    TTOU,
    Process,
    Terminal,
    broken_within,
    children,
    descendants,
    eventually,
    has_handed_on,
    line,
    listening,
    run,
    started,
    state,
    status,
    terminal,
)

SHELL = ("bash", "--norc", "--noprofile", "--noediting", "-i")
LAST = int(signal.SIGWINCH)
ILL = int(signal.SIGILL)
WHERE = """
import os
print("group" * (os.getpgrp() == os.getpid()), "session" * (os.getsid(0) == os.getpid()),
      "terminal" * (os.tcgetpgrp(0) == os.getpgrp()), end=".\\n", flush=True)
os.read(0, 9)
"""
# Two of one group, each of which tells what it gets; the pid of the second first.
BOTH = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {10, 28})
inner = os.fork()
who = b"command" if inner else b"other"
os.write(1, b"%s %d\\n" % (who, inner))
while True:
    os.write(1, b"%s %d\\n" % (who, signal.sigwait({10, 28})))
"""
# Leaves one behind, which tells its pid and then whether it is told to end.
LEFT = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {15, 28})
if os.fork() == 0:
    os.write(1, b"%d\\n" % os.getpid())
    told = signal.sigwait({15, 28}) == 15
    os.write(1, b"told\\n" if told else b"last\\n")
    os._exit(0)
os.read(0, 1)
"""
# A read would not be interrupted by a signal that arrives just before it; so it looks now and then.
ECHOES = """
import os, select, signal
signal.pthread_sigmask(signal.SIG_SETMASK, [])
signal.signal(2, lambda *_: os.write(1, b"got-int\\n"))
signal.signal(12, lambda *_: os.write(1, b"got-usr2\\n"))
os.write(1, b"rea" + b"dy\\n")
while True:
    if select.select([0], [], [], 0.05)[0]:
        os.write(1, b"line " + os.read(0, 99))
"""


@dataclass(frozen=True)
class Init:
    """A program with the options that the question is about."""

    words: tuple[str, ...]
    quiet: tuple[str, ...]
    # How long to wait for what may never come.  An original is known to let us wait in vain.
    patience_s: float

    def __call__(self, *command: str) -> list[str]:
        """The command line, without complaints about not being PID 1."""
        return [*self.words, *self.quiet, "--", *command]


def exec_failures(init: Init) -> str:
    """Not there, not allowed, and something else."""
    commands = ("no-such-command", "/etc", "/etc/passwd/below")
    return " ".join(str(run(*init(command)).returncode) for command in commands)


def place_of_the_command(init: Init) -> str:
    """Whether it leads a group or a session, and has the terminal."""
    with terminal(*init(*PYTHON, WHERE)) as session:
        assert eventually(lambda: session.read() and "." in session.seen)
        return " ".join(session.seen.partition(".")[0].split())


def target(init: Init) -> str:
    """Who gets what the init is sent."""
    with started(*init(*PYTHON, BOTH)) as process:
        told = dict(line(process).split() for _ in range(2))
        os.kill(process.pid, signal.SIGUSR1)
        seen: list[str] = []
        while f"command {int(signal.SIGUSR1)}" not in seen:
            seen.append(line(process))
        os.kill(int(told["command"]), LAST)  # which the other gets after what its group has got
        while f"other {LAST}" not in seen:
            seen.append(line(process))
        return " and ".join(sorted({row.split()[0] for row in seen if row != f"other {LAST}"}))


def job_control(init: Init) -> str:
    """What TSTP, TTIN and TTOU do to the command, and to the init."""
    return ", ".join(one_job_signal(init, number) for number in (TSTP, TTIN, TTOU))


def one_job_signal(init: Init, number: int) -> str:
    with listening(*init.words, *init.quiet) as found:
        child = children(found.pid)[0]
        os.kill(found.pid, number)
        assert eventually(lambda: state(found.pid) == "T" or has_handed_on(found.pid))
        if state(found.pid) == "T":
            assert eventually(lambda: state(child) == "T" or readable(found))
            return "both stop" if state(child) == "T" else "passed on and stops"
        os.kill(found.pid, LAST)
        return "passed on" if line(found.outer).split()[0] == str(number) else "dropped"


def readable(init: Process) -> bool:
    """Whether its command has said something."""
    assert init.outer.stdout is not None
    return bool(select.select([init.outer.stdout], [], [], 0)[0])


def faults(init: Init) -> str:
    """What becomes of SIGILL that somebody sends."""
    with listening(*init.words, *init.quiet) as found:
        os.kill(found.pid, ILL)
        assert eventually(lambda: found.outer.poll() is not None or readable(found))
        outside = "ends it" if found.outer.poll() == -ILL else f"forwards {line(found.outer)[0]}"
    with listening(*init.words, *init.quiet, as_pid_1=True) as found:
        os.kill(found.pid, ILL)
        os.kill(found.pid, LAST)
        number = int(line(found.outer).split()[0])
        return f"{outside}, as PID 1 {'forwards 4' if number == ILL else 'nothing'}"


def real_time(init: Init) -> str:
    """Which of the real-time signals get through."""
    with listening(*init.words, *init.quiet) as found:
        seen = []
        for number in (34, 50, 64):
            os.kill(found.pid, number)
            seen.append(line(found.outer).split()[0])
        return " ".join(seen)


def signals_of_the_caller(init: Init) -> str:
    """What the command finds blocked and ignored."""

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def masks(*prefix: str) -> list[int]:
        rows = run(*prefix, "cat", "/proc/self/status", preexec_fn=prepare).stdout.splitlines()
        return [int(x.split()[1], 16) for x in rows if x.startswith(("SigBlk", "SigIgn"))]

    blocked, ignored = masks(*init())
    ours, theirs = masks()
    more = "kept" if blocked == ours else "lost" if blocked == 0 else f"and {blocked ^ ours:#x}"
    return f"{more}, {'kept' if ignored == theirs else 'lost'}"


def without_stdin(init: Init) -> str:
    """The exit code when stdin is closed and the command's is 5."""
    return str(run("sh", "-c", '"$@" <&-', "sh", *init("sh", "-c", "exit 5")).returncode)


def with_children_ignored(init: Init) -> str:
    """The exit code when it is started with SIGCHLD ignored."""

    def prepare() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    with started(*init("sh", "-c", "echo; read x; exit 6"), preexec_fn=prepare) as process:
        assert line(process) == ""
        # An original looks for its child once, and is not to find that gone already.
        assert eventually(lambda: has_handed_on(process.pid))
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        try:
            return str(process.wait(init.patience_s))
        except subprocess.TimeoutExpired:
            assert eventually(lambda: not children(process.pid))
            return "hangs"


def not_pid_1(init: Init) -> str:
    """Whether it complains, and whether orphans come to it."""
    script = "sh -c 'sleep 1000 & echo $!'; read x"
    with started(*init.words, "--", "sh", "-c", script, stderr=subprocess.PIPE) as process:
        orphan = int(line(process))

        def settled() -> bool:
            parent = int(status(orphan, "PPid"))
            return parent == process.pid or parent not in descendants(process.pid)

        assert eventually(settled)
        adopts = int(status(orphan, "PPid")) == process.pid
        os.kill(orphan, signal.SIGKILL)
        assert process.stdin is not None and process.stderr is not None
        process.stdin.close()
        process.stdin = None
        said = process.stderr.read()
        return f"{'warns' if said else 'silent'}, {'adopts' if adopts else 'does not adopt'}"


def in_the_background(init: Init) -> str:
    """Whether it takes the terminal from the shell that has put it into the background."""
    with terminal(*SHELL) as shell:
        assert shell.shows("$ ")
        shell.type(" ".join(init("sleep", "1000")) + " &\n")

        def taken() -> bool:
            shell.read()
            return os.tcgetpgrp(shell.file) != shell.pid

        assert eventually(lambda: taken() or runs(shell, "sleep"))
        return "takes the terminal" if taken() else "leaves it"


def runs(shell: Terminal, name: str) -> bool:
    """Whether a job of the shell is an init whose command has that name."""
    below = [child for init in children(shell.pid) for child in children(init)]
    return any(status(pid, "Name") == name for pid in below)


def suspended(init: Init) -> str:
    """Ctrl-Z in a shell: whether that comes back."""
    with terminal(*SHELL) as shell:
        assert shell.shows("$ ")
        shell.type(" ".join(init("sleep", "1000")) + "\n")
        assert eventually(lambda: shell.read() and runs(shell, "sleep"))
        shell.type("\x1a")
        return "prompt" if shell.shows("Stopped", init.patience_s) else "no prompt"


@contextlib.contextmanager
def on_a_terminal_as_pid_1(init: Init, script: str) -> Iterator[Terminal]:
    """As `docker run -it` has it."""
    command = ["sh", "-c", 'exec setsid -c "$@"', "sh", *init(*PYTHON, script)]
    with terminal(*NEW_PIDS, *command) as session:
        yield session


def suspended_as_pid_1(init: Init) -> str:
    """Ctrl-Z where nobody could resume: whether the command goes on."""
    with on_a_terminal_as_pid_1(init, ECHOES) as session:
        assert session.shows("ready")
        session.type("\x1a")
        session.type("hello\n")
        return "goes on" if session.shows("line hello", init.patience_s) else "stays stopped"


def interrupted(init: Init) -> str:
    """Ctrl-C: how often it is handed on to a command that the terminal has told already."""
    shares_group = "-c" in init.words
    options = ["-v"] if shares_group else init.quiet
    with terminal(*init.words, *options, "--", *PYTHON, ECHOES) as session:
        assert session.shows("ready")
        session.type("\x03")
        os.kill(session.pid, signal.SIGUSR2)  # fetched after the INT, for its number is higher
        assert eventually(
            lambda: session.read() and "got-usr2" in session.seen and "got-int" in session.seen
        )
        # Two of one kind may merge on their way, so where there can be two the log is asked.
        twice = "Forwarded signal 2 " in session.seen if shares_group else False
        return "twice" if twice or session.seen.count("got-int") > 1 else "once"


def folder_held(init: Init) -> str:
    """Whether its working directory is still that of whoever started it."""
    words = [*init.words, *init.quiet]
    with tempfile.TemporaryDirectory() as folder, listening(*words, cwd=folder) as found:
        assert eventually(lambda: state(found.pid) == "S")  # its command may run before it goes on
        return "held" if os.readlink(f"/proc/{found.pid}/cwd") != "/" else "let go"


def files_held(init: Init) -> str:
    """Whether it holds a file that was meant for the command."""
    with tempfile.NamedTemporaryFile() as file, listening(
        *init.words, *init.quiet, pass_fds=[file.fileno()]
    ) as found:  # fmt: skip
        assert eventually(lambda: state(found.pid) == "S")
        held = [os.readlink(x) for x in Path(f"/proc/{found.pid}/fd").iterdir()]
        return "held" if file.name in held else "let go"


def pipes_held(init: Init) -> str:
    """Whether whoever feeds the command learns that it has closed its stdin."""
    return "let go" if broken_within([*init.words, *init.quiet], init.patience_s) else "held"


def idle(init: Init) -> str:
    """Whether it waits for a signal without a time limit."""
    with listening(*init.words, *init.quiet) as found:
        file = Path(f"/proc/{found.pid}/syscall")
        assert eventually(lambda: state(found.pid) == "S" and file.read_text() != "running\n")
        number, _, _, limit, *_ = file.read_text().split()
        return "ticks" if int(number) in TIMED_WAIT and int(limit, 16) else "sleeps"


def after_the_end(init: Init) -> str:
    """Whether what is left of the command's group is told to end."""
    with started(*init(*PYTHON, LEFT)) as process:
        left = int(line(process))
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        process.wait(PATIENCE_S)
        os.kill(left, LAST)
        return "told" if line(process) == "told" else "left alone"
