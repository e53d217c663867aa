"""The same at random on a terminal: what is typed, sent and resized, and when.

What is observed must be equal under a persona and under the program that it stands for.  Left out
is what the spec's B rows put right: Ctrl-Z, and Ctrl-C under dumb-init -c.
"""

from __future__ import annotations

import os
import random
import re
import select
import signal
from pathlib import Path

import pytest

from .inits import (
    NEW_PIDS,
    ORIGINALS,
    PYTHON,
    QUIET,
    Terminal,
    children,
    eventually,
    has_handed_on,
    installed,
    terminal,
)

SCENARIOS, WITH_SANITIZERS = 12, 4  # of each persona
OPTIONS = {
    "tini": [[], ["-g"], ["-e", "7"]],
    "dumb-init": [[], ["-r", "12:10"], ["-r", "1:0"]],
    "catatonit": [[], ["-g"]],
}
SENT = ("HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "TERM", "WINCH", "PWR", "RTMIN")
KEYS = {"\x03": "INT", "\x1c": "QUIT"}
SUBJECT = """
import os, signal, sys
numbers, orphans, end = eval(sys.argv[1])
def handler(number, _):
    if number == 28:
        columns, rows = os.get_terminal_size(0)
        os.write(1, b"<size %d %d>" % (rows, columns))
    else:
        os.write(1, b"<got %d>" % number)
for number in numbers:
    signal.signal(number, handler)
for _ in range(orphans):
    if os.fork() == 0:
        os.setpgid(0, 0)
        os.fork()
        os._exit(3)
    os.wait()
os.write(1, b"<ready %d %d>" % (os.tcgetpgrp(0) == os.getpgrp(), os.getsid(0) == os.getpid()))
word = b""
while word.strip() != b"end":
    word = os.read(0, 100)
    os.write(1, b"<line %s>" % word.strip())
if end == -15:
    signal.signal(15, 0)
if end < 0:
    os.kill(os.getpid(), -end)
os._exit(end)
"""
Action = tuple[str, object]


def actions(chance: random.Random) -> list[Action]:
    """Keys, signals and sizes."""
    found: list[Action] = []
    for _ in range(chance.randint(1, 5)):
        kind = chance.choice(("key", "signal", "size"))
        if kind == "key":
            found.append((kind, chance.choice(list(KEYS))))
        elif kind == "signal":
            found.append((kind, int(getattr(signal, f"SIG{chance.choice(SENT)}"))))
        else:
            found.append((kind, (chance.randint(10, 99), chance.randint(10, 199))))
    return found


def do(session: Terminal, init: int, action: Action) -> None:
    """One of them, as far as the init is concerned."""
    kind, what = action
    if kind == "key":
        session.type(str(what))
    elif kind == "signal":
        os.kill(init, int(str(what)))
    else:
        rows, columns = what if isinstance(what, tuple) else (0, 0)
        session.resize(rows, columns)
    assert eventually(lambda: has_handed_on(init))


def observe(
    program: list[str], told: str, todo: list[Action], delays_s: list[float], as_pid_1: bool
) -> tuple[list[str], int]:
    """What the terminal shows, sorted between two words that are typed, and the exit code."""
    command = [*program, "--", *PYTHON, SUBJECT, told]
    if as_pid_1:
        command = [*NEW_PIDS, "sh", "-c", 'exec setsid -c "$@"', "sh", *command]
    seen: list[str] = []
    with terminal(*command) as session:
        seen += until(session, "ready")
        init = children(session.pid)[0] if as_pid_1 else session.pid
        for number, (action, delay_s) in enumerate(zip(todo, delays_s, strict=True)):
            do(session, init, action)
            select.select([], [], [], delay_s)
            session.type(f"word{number}\n")
            seen += until(session, f"line word{number}")
        session.type("end\n")
        seen += until(session, "line end")
        return seen, session.end()


def until(session: Terminal, last: str) -> list[str]:
    """What the command says up to that."""
    found: list[str] = []

    def said() -> bool:
        session.read()
        found[:] = re.findall("<([^>]*)>", session.seen)
        return any(row.startswith(last) for row in found)

    assert eventually(said, 0), session.seen
    session.seen = session.seen.rpartition(">")[2]
    return sorted(found)


@pytest.mark.parametrize("name", ORIGINALS)
def test_what_is_shown_is_the_same(inits: Path, name: str, request: pytest.FixtureRequest) -> None:
    count = WITH_SANITIZERS if "sanitized" in request.node.name else SCENARIOS
    chance = random.Random(f"terminal {name}")
    caught = [int(getattr(signal, f"SIG{word}")) for word in SENT]
    for number in range(count):
        options = chance.choice(OPTIONS[name])
        todo = actions(chance)
        delays_s = [chance.choice((0, chance.random() / 200)) for _ in todo]
        end = chance.choice((0, 7, 255, -int(signal.SIGTERM), -int(signal.SIGKILL)))
        told = repr((caught, chance.randint(0, 3), end))
        as_pid_1 = chance.random() < 0.4
        what = f"{name} {number}: {options} {told} {todo} {delays_s} pid1={as_pid_1}"
        given = (told, todo, delays_s, as_pid_1)
        theirs = observe([installed(name), *QUIET[name], *options], *given)
        ours = observe([str(inits / name), *QUIET[name], *options], *given)
        assert ours == theirs, what
