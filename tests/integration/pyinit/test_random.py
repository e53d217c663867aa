"""The same at random under a persona and under the program it stands for.

A scenario is a small program and what is done to its init from outside.  What is observed
(output, exit code) must be equal; what the spec's B rows put right is left out of the scenarios.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from .inits import (
    NEW_PIDS,
    ORIGINALS,
    PATIENCE_S,
    PYTHON,
    QUIET,
    children,
    eventually,
    has_handed_on,
    installed,
    run,
    started,
)

SCENARIOS, WITH_SANITIZERS = 22, 5  # of each seed
# Signals that every init hands on.
SENT = ("HUP", "INT", "QUIT", "USR1", "USR2", "TERM", "ALRM", "VTALRM", "IO", "PWR", "WINCH", "URG")
OPTIONS = {
    "tini": [[], ["-g"], ["-w"], ["-e", "143"], ["-e", "7", "-e", "129"]],
    "dumb-init": [[], ["-c"], ["-r", "15:10"], ["--rewrite", "1:0"], ["-r", "2:3", "-c"]],
    "catatonit": [[], ["-g"]],
}
ENDS = (0, 7, 255, -signal.SIGKILL, -signal.SIGTERM)
# Catches, ignores, forks and ends as told; answers each line.  (A shell's read ends on a signal.)
SUBJECT = """
import os, signal, sys
caught, ignored, orphans, end = eval(sys.argv[1])
def handler(number, _):
    os.write(1, b"got %d\\n" % number)
for number in range(1, 65):
    if number in caught:
        signal.signal(number, handler)
    elif number in ignored:
        signal.signal(number, signal.SIG_IGN)
for _ in range(orphans):
    if os.fork() == 0:
        os.setpgid(0, 0)  # or the orphan could answer, too
        os.fork()
        os._exit(3)
    os.wait()
os.write(1, b"ready\\n")
word = b""
while word != b"end\\n":
    word = os.read(0, 100)
    os.write(1, word)
    if not word:
        break
if end < 0:
    os.kill(os.getpid(), -end)
os._exit(end)
"""


@dataclass(frozen=True)
class Scenario:
    """Options, what the subject is told, and what is sent once it is ready.

    First some, each of which is waited for.  Then a burst of different ones, with so many seconds
    before each; what comes of those may come in any order, or merge where a rule makes them equal.
    """

    options: list[str]
    told: str
    sent: list[int]
    burst: list[tuple[float, int]]
    last: list[int]


def scenario(chance: random.Random, name: str) -> Scenario:
    """Any."""
    numbers = [int(getattr(signal, f"SIG{word}")) for word in SENT]
    numbers += [34, 50, 64]
    caught = chance.sample(numbers, chance.randint(0, 6))
    ignored = chance.sample([x for x in numbers if x not in caught], chance.randint(0, 2))
    sent = [chance.choice([*caught, *ignored]) for _ in range(5) if caught or ignored]
    # A rule may turn one into what nobody catches, which ends it in the midst of the burst.
    options = chance.choice(OPTIONS[name])
    bursting = caught if "-r" not in options and "--rewrite" not in options else []
    burst = [(chance.random() / 1000, number) for number in chance.sample(bursting, len(bursting))]
    # A signal that nobody catches may end it: at most one, and last.
    last = [chance.choice(numbers)] if chance.random() < 0.3 else []
    told = (caught, ignored, chance.randint(0, 3), int(chance.choice(ENDS)))
    return Scenario(options, repr(told), sent, burst, last)


def observe(program: list[str], case: Scenario, as_pid_1: bool) -> tuple[str, int]:
    """What is seen from outside."""
    command = [*(NEW_PIDS if as_pid_1 else ()), *program, "--", *PYTHON, SUBJECT, case.told]
    with started(*command, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None and process.stdout is not None
        seen = []
        while (row := process.stdout.readline()) not in {"ready\n", ""}:
            seen.append(row)
        init = children(process.pid)[0] if as_pid_1 else process.pid
        for number, step in enumerate([*case.sent, case.burst, *case.last]):
            for delay_s, wanted in step if isinstance(step, list) else [(0.0, step)]:
                select.select([], [], [], delay_s)
                os.kill(init, wanted)
            # Then the answer to this line comes after what the handler writes, or never.
            assert eventually(lambda: has_handed_on(init))
            try:
                process.stdin.write(f"word{number}\n")
                process.stdin.flush()
            except BrokenPipeError:
                break
            rows = []
            while (row := process.stdout.readline()) not in {f"word{number}\n", ""}:
                rows.append(row)
            seen += sorted(rows)
            if not row:
                break
        try:
            process.stdin.write("end\n")
            process.stdin.close()
        except BrokenPipeError:
            pass
        process.stdin = None
        seen.append(process.stdout.read())
        return "".join(seen), process.wait(PATIENCE_S)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ORIGINALS)
def test_what_is_seen_is_the_same(
    inits: Path, name: str, seed: int, request: pytest.FixtureRequest
) -> None:
    count = WITH_SANITIZERS if "sanitized" in request.node.name else SCENARIOS
    chance = random.Random(f"{name} {seed}")
    for number in range(count):
        case = scenario(chance, name)
        as_pid_1 = chance.random() < 0.3
        what = f"{name} {seed} {number}: {case} pid1={as_pid_1}"
        theirs = observe([installed(name), *QUIET[name], *case.options], case, as_pid_1)
        ours = observe([str(inits / name), *QUIET[name], *case.options], case, as_pid_1)
        assert ours == theirs, what


LINES = {
    "tini": ("-s -h", "-e 0", "-e", "-p", "-q x", "-sg -- true", "-s -s true", "-p SIGTERM true"),
    "dumb-init": ("--help", "--verb true", "--rewrite", "-r 1:2:3 true", "-r a:b true", "-cv true"),
    "catatonit": ("-gP --version", "-h", "-g true", "-V x", "--vers", "-gg -- sh -c exit\\ 3"),
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_command_lines_have_the_same_outcome(inits: Path, name: str) -> None:
    for arguments in LINES[name]:
        words = arguments.split()
        ours = run(str(inits / name), *words)
        theirs = run(installed(name), *words)
        assert ours.returncode == theirs.returncode, arguments
        assert bool(ours.stdout) == bool(theirs.stdout), arguments
