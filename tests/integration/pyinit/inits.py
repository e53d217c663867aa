"""What the tests of pyinit share: the inits by name, how they are run, and how one waits."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 20
HANG_S = 1.5  # for what is known never to come
PERSONAS = ("tini", "dumb-init", "catatonit", "pyinit")
ORIGINALS = {"tini": "tini-static", "dumb-init": "dumb-init", "catatonit": "catatonit"}
# What an init of that name needs to be a subreaper without being PID 1, quietly.
QUIET = {"tini": ("-s",), "dumb-init": (), "catatonit": (), "pyinit": ()}
NEW_PIDS = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
FAULTS = {4, 5, 6, 7, 8, 11, 31}
NEVER_SEEN = {int(signal.SIGKILL), int(signal.SIGSTOP), int(signal.SIGCHLD)}
TSTP, TTIN, TTOU = int(signal.SIGTSTP), int(signal.SIGTTIN), int(signal.SIGTTOU)
# Raw calls: the C library keeps signals 32 and 33 for itself.
RAW = """
import ctypes, os
libc, mask, machine = ctypes.CDLL(None), ctypes.c_uint64(2**64 - 1), os.uname().machine
block, fetch = (14, 128) if machine == "x86_64" else (135, 137)
info = (ctypes.c_int32 * 32)()
"""
# Says its pid, then number, code and value of each signal that it gets, CHLD aside.
LISTENER = (
    RAW
    + """
libc.syscall(block, 0, ctypes.byref(mask), None, 8)
print(os.getpid(), flush=True)
while True:
    number = libc.syscall(fetch, ctypes.byref(mask), info, None, 8)
    if number > 0 and number != 17:
        print(number, info[2], info[6], flush=True)
"""
)
PYTHON = (sys.executable, "-I", "-S", "-c")
# A program in C that leaves processes which all die at once; `make bench` has it, too.
ORPHANS = Path(__file__).resolve().parents[3] / "bench/orphans.c"
# rt_sigtimedwait on x86-64 and aarch64; its third argument is the time limit.
TIMED_WAIT = {128, 137}


def run(*command: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs to the end, with the output captured."""
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        command, **{"capture_output": True, "text": True, "timeout": PATIENCE_S, **options}
    )


def line(process: subprocess.Popen[str]) -> str:
    """The next line of the output."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextlib.contextmanager
def started(*command: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    """Starts, with pipes; afterwards nothing below it is left."""
    process = subprocess.Popen(  # type: ignore[call-overload]
        command,
        **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, **options},
    )
    try:
        yield process
    finally:
        for pid in [*descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)


def children(pid: int) -> list[int]:
    """The children of a process."""
    with contextlib.suppress(OSError):
        return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    below = children(pid)
    for child in below:
        below = below + descendants(child)
    return below


def eventually(condition: Callable[[], bool], every_s: float = 0.01) -> bool:
    """Polls until ``condition`` holds or patience ends."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            return False
        select.select([], [], [], every_s)
    return True


def status(pid: int, field: str) -> str:
    """A field of /proc/PID/status; empty when there is no such process."""
    with contextlib.suppress(OSError):
        for row in Path(f"/proc/{pid}/status").read_text().splitlines():
            if row.startswith(f"{field}:"):
                return row.split(":")[1].strip()
    return ""


def state(pid: int) -> str:
    """R, S, D, T, Z …; empty when there is no such process."""
    return status(pid, "State")[:1]


def stopped(pid: int) -> bool:
    """Whether a process is stopped."""
    return eventually(lambda: state(pid) == "T")


def waits_for_ever(pid: int) -> bool:
    """Whether a process waits for a signal, without a time limit."""
    with contextlib.suppress(OSError):
        call = Path(f"/proc/{pid}/syscall").read_text().split()
        return len(call) > 3 and int(call[0]) in TIMED_WAIT and int(call[3], 16) == 0
    return False


def tell(process: subprocess.Popen[str]) -> None:
    """A line on its stdin."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def has_handed_on(init: int) -> bool:
    """Whether it sleeps, with no signal left to fetch; or has ended."""
    now = state(init)
    return now in {"Z", ""} or (now == "S" and status(init, "ShdPnd") == "0" * 16)


def installed(name: str) -> str:
    """The original program; it is in tests/packages.txt."""
    path = shutil.which(ORIGINALS[name])
    assert path, f"{ORIGINALS[name]} is missing; `make test` installs it"
    return path


def queue(pid: int, number: int, value: int) -> None:
    """sigqueue(3)."""
    assert ctypes.CDLL(None).sigqueue(pid, number, ctypes.c_void_p(value)) == 0


@dataclass
class Process:
    """An init that runs as PID 1 of its own namespace, or as a usual process."""

    outer: subprocess.Popen[str]
    pid: int


@contextlib.contextmanager
def listening(
    init: str, *options: str, as_pid_1: bool = False, **more: object
) -> Iterator[Process]:
    """``init`` with a command that tells which signals it gets."""
    prefix = NEW_PIDS if as_pid_1 else ()
    with started(*prefix, init, *options, "--", *PYTHON, LISTENER, **more) as process:
        told = int(line(process))
        if as_pid_1:
            yield Process(process, children(process.pid)[0])
            return
        # It may outlive its init, and is nobody's whom we would find then.
        listener = os.pidfd_open(told)
        try:
            yield Process(process, process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(listener, signal.SIGKILL)
            os.close(listener)


def broken_within(init: list[str], seconds: float) -> bool:
    """Whether whoever feeds a command learns that it has closed its stdin, and its stdout."""
    reader, writer = os.pipe()
    script = "exec <&- >&-; sleep 1000"
    with started(*init, "--", "sh", "-c", script, stdin=reader) as process:
        os.close(reader)
        poller = select.poll()
        poller.register(writer, 0)
        assert process.stdout is not None
        broken = bool(poller.poll(seconds * 1000))
        os.close(writer)
        return broken and bool(select.select([process.stdout], [], [], seconds)[0])


class Terminal:
    """A pseudo-terminal with a session of its own on it."""

    def __init__(self, *command: str, **environment: str) -> None:
        self.seen = ""
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, {**os.environ, "PS1": "$ ", **environment})
        # With a Ctrl-C the kernel would throw away what has been written and not read.
        mode = termios.tcgetattr(self.file)
        mode[3] |= termios.NOFLSH
        termios.tcsetattr(self.file, termios.TCSANOW, mode)

    def type(self, text: str) -> None:
        """What somebody types."""
        os.write(self.file, text.encode())

    def read(self) -> bool:
        """Reads what is there; false at the end."""
        with contextlib.suppress(OSError):
            if not select.select([self.file], [], [], 0.05)[0]:
                return True
            data = os.read(self.file, 4096)
            self.seen += data.decode(errors="replace")
            return bool(data)
        return False

    def shows(self, text: str, patience_s: float = PATIENCE_S) -> bool:
        """Whether ``text`` appears; what has been shown up to it is then forgotten."""
        end = time.monotonic() + patience_s
        while text not in self.seen:
            if not self.read() or time.monotonic() > end:
                return False
        self.seen = self.seen.partition(text)[2]
        return True

    def resize(self, rows: int, columns: int) -> None:
        """A new window size."""
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def hang_up(self) -> None:
        """Closes our end."""
        if self.file >= 0:
            os.close(self.file)
        self.file = -1

    def end(self) -> int:
        """The exit code of what was started; negative for a signal."""
        code: list[int] = []

        def ended() -> bool:
            if self.file >= 0:
                self.read()
            pid, found = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code.append(os.waitstatus_to_exitcode(found))
            return bool(code)

        assert eventually(ended), self.seen
        self.pid = 0
        return code[0]

    def close(self) -> None:
        """Leaves nothing behind."""
        if self.pid:
            for pid in [*descendants(self.pid), self.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.hang_up()


@contextlib.contextmanager
def terminal(*command: str, **environment: str) -> Iterator[Terminal]:
    """A terminal with ``command`` on it."""
    made = Terminal(*command, **environment)
    try:
        yield made
    finally:
        made.close()
