"""Job control, under a real pseudo-terminal with bash as the shell, and as PID 1 on one."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from .inits import (
    NEW_PIDS,
    ORIGINALS,
    PERSONAS,
    QUIET,
    Terminal,
    children,
    eventually,
    installed,
    state,
    stopped,
    terminal,
)

BASH = ("bash", "--norc", "--noprofile", "--noediting", "-i")
# What the shell runs: says when it has the terminal, and what it gets there.
PROGRAM = """#!{python} -IS
import os, select, signal, sys
def say(*words):
    try:
        os.write(1, " ".join(map(str, words)).encode() + b"\\n")
    except OSError:  # hung up
        pass
def hang_up(*_):
    open("{out}", "w").write("got-hup\\n")
    os._exit(5)
def size(*_):
    columns, rows = os.get_terminal_size(0)
    say("size", rows, columns)
signal.signal(signal.SIGINT, lambda *_: say("got-int"))
signal.signal(signal.SIGQUIT, lambda *_: say("got-quit"))
signal.signal(signal.SIGCONT, lambda *_: say("got-cont"))
signal.signal(signal.SIGWINCH, size)
signal.signal(signal.SIGUSR2, lambda *_: say("got-usr2"))
signal.signal(signal.SIGHUP, hang_up)
say("rea" + "dy")
text = ""
while text != "end":
    # A read would not be interrupted by a signal that arrives just before it.
    if not select.select([0], [], [], 0.05)[0]:
        continue
    try:
        text = os.read(0, 100).decode().strip()
    except OSError:  # hung up; the signal is under way
        text = ""
    if text:
        say("line", text)
sys.exit(6)
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    """A script that tells what happens to it."""
    path = tmp_path / "program"
    path.write_text(PROGRAM.format(python=sys.executable, out=tmp_path / "out"))
    path.chmod(0o755)
    return str(path)


def command(init: str, name: str, program: str) -> str:
    """A command line for the shell."""
    return f"{init} {' '.join(QUIET[name])} {program}"


def inits_of(name: str, inits: Path) -> list[str]:
    """Ours, and the original if there is one."""
    return [str(inits / name)] + ([installed(name)] if name in ORIGINALS else [])


@pytest.mark.parametrize("name", PERSONAS)
def test_in_the_foreground(inits: Path, program: str, name: str) -> None:
    for init in inits_of(name, inits):
        with terminal(*BASH) as shell:
            assert shell.shows("$ ")
            shell.type(command(init, name, program) + "; echo status $?\n")
            assert shell.shows("ready")
            shell.type("hello\n")
            assert shell.shows("line hello")
            shell.type("\x03")
            assert shell.shows("got-int")
            shell.type("\x1c")
            assert shell.shows("got-quit")
            shell.type("end\n")
            assert shell.shows("line end")
            assert "got-" not in shell.seen  # each came once
            assert shell.shows("status 6")
            shell.type("echo $((40 + 2))\n")  # and the shell has its terminal back
            assert shell.shows("42")
            shell.type("exit 4\n")
            assert shell.end() == 4


@pytest.mark.parametrize("name", PERSONAS)
def test_window_size(inits: Path, program: str, name: str) -> None:
    for init in inits_of(name, inits):
        with terminal(init, *QUIET[name], program) as session:
            assert session.shows("ready")
            session.resize(33, 97)
            assert session.shows("size 33 97")
            session.type("end\n")
            assert session.end() == 6


@pytest.mark.parametrize("name", PERSONAS)
def test_ctrl_z_then_fg(inits: Path, program: str, name: str) -> None:
    with terminal(*BASH) as shell:
        assert shell.shows("$ ")
        shell.type(command(str(inits / name), name, program) + "; echo status $?\n")
        assert shell.shows("ready")
        for _ in range(2):
            shell.type("\x1a")
            assert shell.shows("Stopped")
            assert stopped(children(children(shell.pid)[0])[0])
            shell.type("echo $((40 + 2))\n")
            assert shell.shows("42")
            shell.type("fg; echo status $?\n")
            if name != "dumb-init":  # there it is in a session of its own
                assert shell.shows("got-cont")
            shell.type("hello\n")
            assert shell.shows("line hello")
        shell.type("end\n")
        assert shell.shows("status 6")
        shell.type("exit 4\n")
        assert shell.end() == 4


@pytest.mark.parametrize("name", ["tini", "catatonit"])
def test_ctrl_z_under_the_originals_gives_no_prompt(program: str, name: str) -> None:
    with terminal(*BASH) as shell:
        assert shell.shows("$ ")
        shell.type(command(installed(name), name, program) + "; echo status $?\n")
        assert shell.shows("ready")
        shell.type("\x1a")
        init = children(shell.pid)[0]
        program_pid = children(init)[0]
        if name == "tini":
            assert stopped(program_pid)
        assert eventually(lambda: state(init) == "S")
        assert "Stopped" not in shell.seen


def in_background(init: str, name: str, program: str) -> bool:
    """Whether the shell can be used on while the init runs in its background."""
    with terminal(*BASH) as shell:
        assert shell.shows("$ ")
        shell.type(f"{init} {' '.join(QUIET[name])} sleep 1000 & wait -n -p x & sleep 0.3\n")
        shell.type("echo $((40 + 2))\n")
        if not shell.shows("42"):
            return False
        shell.type("kill %1; exit 4\n")
        return shell.end() == 4


@pytest.mark.parametrize("name", PERSONAS)
def test_in_the_background(inits: Path, program: str, name: str) -> None:
    assert in_background(str(inits / name), name, program)


@pytest.mark.parametrize("name", ["tini", "catatonit"])
def test_in_the_background_the_originals_steal_the_terminal(name: str) -> None:
    with terminal(*BASH) as shell:
        assert shell.shows("$ ")
        shell.type(f"{installed(name)} {' '.join(QUIET[name])} sleep 1000 &\n")
        assert shell.shows("[1]")
        assert eventually(lambda: os.tcgetpgrp(shell.file) != shell.pid)
        shell.type("\n")  # bash reads end-of-file after this, says exit and ends
        assert shell.end() >= 0


@pytest.mark.parametrize("name", PERSONAS)
def test_hang_up(inits: Path, program: str, name: str) -> None:
    for init in inits_of(name, inits):
        with terminal(init, *QUIET[name], program) as session:
            assert session.shows("ready")
            out = Path(program).with_name("out")
            session.hang_up()
            assert eventually(lambda: out.exists() and out.read_text() == "got-hup\n")  # noqa: B023
            assert session.end() in {5, 129}
            out.unlink()


def as_pid_1(init: str, name: str, program: str) -> Terminal:
    """The init as PID 1 and session leader on a terminal, as `docker run -it` has it."""
    script = f"exec setsid -c {init} {' '.join(QUIET[name])} {program}"
    return Terminal(*NEW_PIDS, "sh", "-c", script)


@pytest.mark.parametrize("name", PERSONAS)
def test_as_pid_1(inits: Path, program: str, name: str) -> None:
    session = as_pid_1(str(inits / name), name, program)
    try:
        assert session.shows("ready")
        session.type("\x03")
        assert session.shows("got-int")
        session.type("\x1c")
        assert session.shows("got-quit")
        session.type("\x1a")  # nobody could resume it, so it must not stop
        session.type("hello\n")
        assert session.shows("line hello")
        session.resize(33, 97)
        assert session.shows("size 33 97")
        session.type("end\n")
        assert session.end() == 6
    finally:
        session.close()


@pytest.mark.parametrize("name", PERSONAS)
def test_hang_up_as_pid_1(inits: Path, program: str, name: str) -> None:
    session = as_pid_1(str(inits / name), name, program)
    try:
        assert session.shows("ready")
        out = Path(program).with_name("out")
        session.hang_up()
        assert eventually(lambda: out.exists() and out.read_text() == "got-hup\n")
        assert session.end() in {5, 129, -int(signal.SIGHUP)}  # unshare is hung up, too
    finally:
        session.close()


def test_as_pid_1_tini_leaves_the_command_stopped(program: str) -> None:
    session = as_pid_1(installed("tini"), "tini", program)
    try:
        assert session.shows("ready")
        session.type("\x1a")
        init = children(session.pid)[0]
        assert stopped(children(init)[0])
        session.type("hello\n")
        assert state(children(init)[0]) == "T"
    finally:
        session.close()


def test_ctrl_c_once_and_twice(inits: Path, program: str) -> None:
    """dumb-init -c hands on what the terminal has already told the command."""
    for init, twice in ((str(inits / "dumb-init"), False), (installed("dumb-init"), True)):
        with terminal(init, "-v", "-c", program) as session:
            assert session.shows("ready")
            session.type("\x03")
            assert session.shows("Received signal 2.")
            os.kill(session.pid, signal.SIGUSR2)  # what a process sends is handed on
            assert eventually(lambda: session.read() and "signal 12 to" in session.seen)
            assert ("Forwarded signal 2 to" in session.seen) == twice


def test_the_hang_up_of_a_terminal_that_dumb_init_gives_away(inits: Path, program: str) -> None:
    with terminal(str(inits / "dumb-init"), "-v", program) as session:
        assert session.shows("Ignoring tty hand-off signal 1.")
        assert session.shows("Ignoring tty hand-off signal 18.")
        assert session.shows("ready")
        os.kill(session.pid, signal.SIGCONT)  # the first from somebody else is handed on
        assert session.shows("Forwarded signal 18 to children.")
        session.type("end\n")
        assert session.end() == 6


def test_the_terminal_is_not_taken_from_whoever_reads(inits: Path, tmp_path: Path) -> None:
    """A command without a terminal of its own on stdin leaves the foreground as it is."""
    script = f'{inits / "pyinit"} sh -c "exit 3" </dev/null; read answer; exit "$answer"'
    with terminal("sh", "-c", script) as session:
        session.type("8\n")
        assert session.end() == 8
