"""Every signal from 1 to 64, in every persona, as PID 1 and not; masks, values, targets."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from .inits import (
    FAULTS,
    NEVER_SEEN,
    NEW_PIDS,
    ORIGINALS,
    PATIENCE_S,
    PERSONAS,
    QUIET,
    TSTP,
    TTIN,
    TTOU,
    children,
    eventually,
    installed,
    line,
    listening,
    queue,
    run,
    started,
    state,
    status,
    stopped,
)

ALL = set(range(1, 65))
SIGRTMIN = 34
# A sanitizer's runtime has handlers of its own for some, and takes those for bugs.
HANDLED = ("segv", "sigbus", "sigfpe", "sigill", "abort")
UNHANDLED = {**os.environ, "ASAN_OPTIONS": ":".join(f"handle_{name}=0" for name in HANDLED)}


def forwarded(name: str) -> set[int]:
    """What reaches the command, by the spec's matrix."""
    if name == "tini":
        return ALL - NEVER_SEEN - FAULTS - {TTIN, TTOU}
    if name == "catatonit":
        return ALL - NEVER_SEEN - FAULTS - {TSTP, TTIN, TTOU}
    if name == "dumb-init":
        return ALL - NEVER_SEEN - {TSTP, TTIN, TTOU}  # which stop it: see test_matrix
    return ALL - NEVER_SEEN - {TTIN, TTOU}


@pytest.mark.parametrize("as_pid_1", [False, True], ids=["process", "pid1"])
@pytest.mark.parametrize("name", PERSONAS)
def test_every_signal(inits: Path, name: str, as_pid_1: bool) -> None:
    given = {"as_pid_1": as_pid_1, "env": UNHANDLED}
    with listening(str(inits / name), *QUIET[name], **given) as init:
        for number in sorted(ALL - NEVER_SEEN):
            if name == "dumb-init" and number in {TSTP, TTIN, TTOU}:
                continue
            if number in FAULTS - forwarded(name) and not as_pid_1:
                continue  # these kill it: below
            os.kill(init.pid, number)
            if number in forwarded(name):
                assert line(init.outer).split()[0] == str(number)
        # Whatever should not have been forwarded would have been seen before this one.
        os.kill(init.pid, signal.SIGWINCH)
        assert line(init.outer).split()[0] == str(int(signal.SIGWINCH))
        os.kill(children(init.pid)[0], signal.SIGKILL)
        assert init.outer.wait(PATIENCE_S) == 137


@pytest.mark.parametrize("number", sorted(FAULTS))
@pytest.mark.parametrize("name", ["tini", "catatonit"])
def test_faults_kill_what_is_not_pid_1(inits: Path, name: str, number: int) -> None:
    for program in (str(inits / name), installed(name)):
        with listening(program, *QUIET[name], env=UNHANDLED) as init:
            command = children(init.pid)[0]
            os.kill(init.pid, number)
            assert init.outer.wait(PATIENCE_S) == -number
            os.kill(command, signal.SIGKILL)


@pytest.mark.parametrize("number", [9, 19])
@pytest.mark.parametrize("name", PERSONAS)
def test_kill_and_stop_reach_only_the_init(inits: Path, name: str, number: int) -> None:
    with listening(str(inits / name), *QUIET[name]) as init:
        command = children(init.pid)[0]
        os.kill(init.pid, number)
        if number == signal.SIGSTOP:
            assert eventually(lambda: state(init.pid) == "T")
            assert eventually(lambda: state(command) == "S")
        else:
            assert init.outer.wait(PATIENCE_S) == -9
        os.kill(command, signal.SIGKILL)


@pytest.mark.parametrize("name", PERSONAS)
def test_values_are_forwarded_to_a_single_process(inits: Path, name: str) -> None:
    options = ("-c",) if name == "dumb-init" else QUIET[name]
    with listening(str(inits / name), *options) as init:
        for number in (SIGRTMIN, SIGRTMIN + 5, int(signal.SIGUSR1)):
            queue(init.pid, number, 4711)
            assert line(init.outer).split() == [str(number), "-1", "4711"]
        for value in range(20):  # those are queued, not merged
            queue(init.pid, SIGRTMIN, value)
        seen = [line(init.outer).split() for _ in range(20)]
        assert seen == [[str(SIGRTMIN), "-1", str(value)] for value in range(20)]


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_originals_lose_the_value(name: str) -> None:
    options = ("-c",) if name == "dumb-init" else QUIET[name]
    with listening(installed(name), *options) as init:
        queue(init.pid, SIGRTMIN, 4711)
        assert line(init.outer).split()[1] == "0"


@pytest.mark.parametrize("name", PERSONAS)
def test_mask_and_dispositions_reach_the_command_unchanged(inits: Path, name: str) -> None:
    blocked = {signal.SIGUSR1, signal.SIGTERM, SIGRTMIN, signal.SIGRTMAX}
    ignored = [signal.SIGHUP, signal.SIGCHLD, signal.SIGTTOU, signal.SIGTTIN, SIGRTMIN + 1]

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    def fields(text: str) -> list[str]:
        return [x for x in text.splitlines() if x.startswith(("SigBlk", "SigIgn"))]

    command = ["cat", "/proc/self/status"]
    init = [str(inits / name), *QUIET[name]]
    for options in ({"preexec_fn": prepare}, {}):
        assert fields(run(*init, *command, **options).stdout) == fields(
            run(*command, **options).stdout
        )


@pytest.mark.parametrize("name", PERSONAS)
def test_group_and_session(inits: Path, name: str) -> None:
    def numbers(program: str) -> list[bool]:
        with started(program, *QUIET[name], "--", "sh", "-c", "echo ready; read x") as process:
            assert line(process) == "ready"
            command = children(process.pid)[0]
            return [
                os.getpgid(command) == command,
                os.getsid(command) == command,
                os.getpgid(process.pid) == command,
            ]

    expected = [True, name == "dumb-init", False]
    assert numbers(str(inits / name)) == expected
    if name in ORIGINALS:
        assert numbers(installed(name)) == expected


def test_single_child_stays_in_the_group(inits: Path) -> None:
    for given in (("-c",), ("--single-child",), ("--single",)):
        with started(str(inits / "dumb-init"), *given, "sh", "-c", "echo; read x") as process:
            assert line(process) == ""
            command = children(process.pid)[0]
            assert os.getpgid(command) == os.getpgid(process.pid)
    with started(
        str(inits / "dumb-init"), "sh", "-c", "echo; read x",
        env={**os.environ, "DUMB_INIT_SETSID": "0"},
    ) as process:  # fmt: skip
        assert line(process) == ""
        assert os.getpgid(children(process.pid)[0]) == os.getpgid(process.pid)


ORPHAN = "sh -c 'sleep 1000 & echo $!'; read x"


@pytest.mark.parametrize("name", PERSONAS)
def test_orphans_are_adopted_where_they_should_be(inits: Path, name: str) -> None:
    with started(str(inits / name), "--", "sh", "-c", ORPHAN, stderr=-3) as process:
        orphan = int(line(process))
        theirs = name in {"catatonit", "pyinit"}
        adopter = str(process.pid)
        assert eventually(lambda: (status(orphan, "PPid") == adopter) == theirs)
        os.kill(orphan, signal.SIGKILL)
        assert eventually(lambda: state(orphan) in {"", "Z"})


@pytest.mark.parametrize("name", PERSONAS)
def test_orphans_are_adopted_by_pid_1(inits: Path, name: str) -> None:
    with started(*NEW_PIDS, str(inits / name), "--", "sh", "-c", ORPHAN) as process:
        assert int(line(process)) < 10  # a number of the namespace
        init = children(process.pid)[0]
        assert eventually(lambda: len(children(init)) == 2)
        os.kill(children(init)[1], signal.SIGKILL)
        assert eventually(lambda: len(children(init)) == 1)


def test_no_subreaper_on_request(inits: Path) -> None:
    with started(
        str(inits / "pyinit"), "--no-subreaper", "sh", "-c", "sh -c 'sleep 1000 & echo $!'; read x"
    ) as process:
        orphan = int(line(process))
        assert eventually(lambda: status(orphan, "PPid") not in {str(process.pid), ""})
        os.kill(orphan, signal.SIGKILL)


# --- What stops, and what is stopped for good -----------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU])
def test_background_signals_as_the_originals_do(inits: Path, number: int) -> None:
    """Without a terminal: tini passes TSTP on, dumb-init stops with its child, catatonit drops."""
    for name in PERSONAS:
        for program in [str(inits / name)] + ([installed(name)] if name in ORIGINALS else []):
            with started(
                program, *QUIET[name], "--", "sh", "-c", "echo; read x; exit 3"
            ) as process:
                assert line(process) == ""
                child = children(process.pid)[0]
                os.kill(process.pid, number)
                if name == "dumb-init":
                    assert stopped(child) and stopped(process.pid), program
                    os.kill(process.pid, signal.SIGCONT)
                elif number == signal.SIGTSTP and name != "catatonit":
                    assert stopped(child), program
                    assert state(process.pid) in {"R", "S"}
                    os.kill(process.pid, signal.SIGCONT)
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.wait(PATIENCE_S) == 3, program


def test_dumb_init_ends_its_group(inits: Path) -> None:
    script = "(trap 'echo told; exit' TERM; echo ready; while :; do sleep 0.02; done) & read x"
    for program in (str(inits / "dumb-init"), installed("dumb-init")):
        with started(program, "sh", "-c", script) as process:
            assert line(process) == "ready"
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
            assert line(process) == "told"
        for rule, told in (("15:0", ""), ("15:10", "usr1")):
            swapped = script.replace("trap", "trap 'echo usr1; exit' USR1; trap")
            with started(program, "-r", rule, "sh", "-c", swapped) as process:
                assert line(process) == "ready"
                below = children(children(process.pid)[0])[0]
                assert process.stdin is not None
                process.stdin.close()
                process.stdin = None
                assert process.wait(PATIENCE_S) == 1
                assert told == "" or line(process) == told
                os.kill(below, signal.SIGKILL) if told == "" else None


@pytest.mark.parametrize("name", PERSONAS)
def test_what_somebody_stops_is_not_resumed(inits: Path, name: str) -> None:
    with listening(str(inits / name), *QUIET[name], as_pid_1=True) as init:
        child = children(init.pid)[0]
        os.kill(child, signal.SIGSTOP)  # somebody means it
        assert stopped(child)
        os.kill(child, signal.SIGCONT)
        assert line(init.outer).split()[0] == str(int(signal.SIGCONT))
