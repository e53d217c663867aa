"""Items 36 to 48 of the spec: each shown to fail in the original, and to work here."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.conftest import plain_only

from .inits import (
    HANG_S,
    ORIGINALS,
    PATIENCE_S,
    PERSONAS,
    PYTHON,
    QUIET,
    broken_within,
    children,
    eventually,
    has_handed_on,
    installed,
    line,
    listening,
    run,
    started,
    state,
    status,
)

NAMES = list(ORIGINALS)


def ours_and_theirs(inits: Path, name: str) -> tuple[list[str], list[str]]:
    """Both programs with their quiet options."""
    return [str(inits / name), *QUIET[name]], [installed(name), *QUIET[name]]


def ignore_children() -> None:
    """As a launcher that wants no zombies does."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


@pytest.mark.parametrize("name", PERSONAS)
def test_36_started_with_sigchld_ignored(inits: Path, name: str) -> None:
    command = [str(inits / name), *QUIET[name], "--", "sh", "-c", "exit 6"]
    assert run(*command, preexec_fn=ignore_children).returncode == 6


@pytest.mark.parametrize("name", ["tini", "catatonit"])
def test_36_the_originals_hang(name: str) -> None:
    command = [installed(name), *QUIET[name], "--", "sh", "-c", "echo; read x; exit 6"]
    with started(*command, preexec_fn=ignore_children) as process:
        assert line(process) == ""
        assert eventually(lambda: has_handed_on(process.pid))  # catatonit looks for its child once
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        assert eventually(lambda: not children(process.pid))
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(HANG_S)


def test_37_tini_without_stdin(inits: Path) -> None:
    ours, theirs = ours_and_theirs(inits, "tini")
    script = '"$@" sh -c "exit 5" <&-'
    assert run("sh", "-c", script, "sh", *theirs).returncode == 1
    assert run("sh", "-c", script, "sh", *ours).returncode == 5


def closed_reader() -> int:
    """The writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_38_dumb_init_with_a_log_that_nobody_reads(inits: Path) -> None:
    writer = closed_reader()
    command = ["-v", "sh", "-c", "exit 5"]
    with started(installed("dumb-init"), *command, stderr=writer) as process:
        assert eventually(lambda: seconds_of(process.pid) > 0.2)  # and so on for ever
    assert (
        run(str(inits / "dumb-init"), *command, capture_output=False, stderr=writer).returncode == 5
    )
    os.close(writer)


def seconds_of(pid: int) -> float:
    """The processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("name", PERSONAS)
def test_39_its_own_broken_pipe_is_not_forwarded(inits: Path, name: str) -> None:
    chatty = {"tini": ["-svvv"], "dumb-init": ["-v"], "catatonit": [], "pyinit": ["-vvv"]}[name]
    writer = closed_reader()
    given = {**os.environ, "CATATONIT_DEBUG": ""}
    options = {"capture_output": False, "stdout": writer, "stderr": writer, "env": given}
    script = ["sh", "-c", "sleep 0.2; exit 5"]
    assert run(str(inits / name), *chatty, *script, **options).returncode == 5
    assert run(str(inits / name), *chatty, "no-such", **options).returncode in {127, 2, 1}
    os.close(writer)


@pytest.mark.parametrize("name", ["tini", "catatonit"])
def test_39_in_the_originals_it_ends_the_command(name: str) -> None:
    # tini writes into a buffer, and so only when it ends, unless it is told not to.
    unbuffered = ["stdbuf", "-o0", str(shutil.which("tini")), "-svvv"]
    command = unbuffered if name == "tini" else [installed(name)]
    writer = closed_reader()
    options = {"capture_output": False, "stdout": writer, "stderr": writer}
    options["env"] = {**os.environ, "CATATONIT_DEBUG": ""}
    assert run(*command, "sh", "-c", "sleep 0.2; exit 5", **options).returncode != 5
    os.close(writer)


@pytest.mark.parametrize("name", PERSONAS)
def test_39_somebody_elses_is(inits: Path, name: str) -> None:
    with listening(str(inits / name), *QUIET[name]) as init:
        os.kill(init.pid, signal.SIGPIPE)
        assert line(init.outer).split()[0] == str(int(signal.SIGPIPE))


# Blocks TERM, sends it to itself, and executes an init: it is pending when that starts.
PENDING = (
    "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {15}); "
    "os.kill(os.getpid(), 15); os.execv(sys.argv[1], sys.argv[1:])"
)


@pytest.mark.parametrize("name", PERSONAS)
def test_40_a_stop_right_at_the_start_is_not_lost(inits: Path, name: str) -> None:
    group = [] if name == "dumb-init" else ["-g"]
    for _ in range(5):
        command = [str(inits / name), *QUIET[name], *group, "--", "sleep", "1000"]
        with started(*PYTHON, PENDING, *command) as process:
            # The mask is the caller's: what it blocks stays pending in the command.
            assert eventually(lambda: bool(children(process.pid)))
            command_pid = children(process.pid)[0]
            assert eventually(lambda: bool(pending(command_pid) & 1 << 14))  # noqa: B023


def pending(pid: int) -> int:
    """The signals that wait for a process."""
    for row in Path(f"/proc/{pid}/status").read_text().splitlines():
        if row.startswith("ShdPnd"):
            return int(row.split()[1], 16)
    return 0


def test_40_dumb_init_loses_it() -> None:
    with started(*PYTHON, PENDING, installed("dumb-init"), "sleep", "1000") as process:
        assert eventually(lambda: bool(children(process.pid)))
        command = children(process.pid)[0]
        assert eventually(lambda: "sleep" in Path(f"/proc/{command}/comm").read_text())
        assert eventually(lambda: state(command) == "S")
        assert not pending(command)


# Has the child dwell between its start and the group that is to be signalled.
SLOW_GROUP = ["strace", "-f", "-o", "/dev/null", "-e", "trace=setpgid", "-e"]
SLOW_GROUP += ["inject=setpgid:delay_enter=200000"]


def lost_with_group(init: str, name: str) -> bool:
    """Whether a TERM that waits when the init starts does not reach the command's group."""
    command = [*SLOW_GROUP, *PYTHON, PENDING, init, *QUIET[name], "-g", "--", "sleep", "1000"]
    with started(*command, stderr=subprocess.DEVNULL) as tracer:
        assert eventually(lambda: "sleep" in [status(pid, "Name") for pid in below(tracer.pid)])
        init_pid, command_pid = below(tracer.pid)
        assert eventually(lambda: has_handed_on(init_pid))
        return not pending(command_pid) & 1 << 14


def below(tracer: int) -> list[int]:
    """The init that a tracer runs, and its command."""
    return [pid for init in children(tracer) for pid in (init, *children(init))]


@pytest.mark.parametrize("name", ["tini", "catatonit"])
def test_40_nor_with_a_group_that_is_slow_to_be_made(inits: Path, name: str) -> None:
    assert not lost_with_group(str(inits / name), name)
    assert lost_with_group(installed(name), name)


@pytest.mark.parametrize("name", PERSONAS)
def test_43_a_pipe_is_closed_when_the_command_closes_it(inits: Path, name: str) -> None:
    assert broken_within([str(inits / name), *QUIET[name]], PATIENCE_S)


@pytest.mark.parametrize("name", NAMES)
def test_43_the_originals_hold_it(name: str) -> None:
    assert not broken_within([installed(name), *QUIET[name]], HANG_S)


def test_44_the_command_can_die_with_its_init(inits: Path) -> None:
    for name in PERSONAS:
        given = {**os.environ, "PYINIT_OPTS": "--child-pdeath"}
        with listening(str(inits / name), *QUIET[name], env=given) as init:
            command = children(init.pid)[0]
            os.kill(init.pid, signal.SIGKILL)
            assert eventually(lambda: state(command) in {"", "Z"})  # noqa: B023


@pytest.mark.parametrize("name", NAMES)
def test_44_in_the_originals_it_stays(name: str) -> None:
    with listening(installed(name), *QUIET[name]) as init:
        command = children(init.pid)[0]
        os.kill(init.pid, signal.SIGKILL)
        init.outer.wait(PATIENCE_S)
        lives = eventually(lambda: state(command) == "S")
        os.kill(command, signal.SIGKILL)
        assert lives


# Has the init dwell before it asks for the signal, and the parent leave meanwhile.
SLOW_WISH = ["strace", "-f", "-o", "/dev/null", "-e", "trace=prctl", "-e"]
SLOW_WISH += ["inject=prctl:delay_enter=2000000:when=1"]
LEAVES = """
import os, sys, time
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
while open(f"/proc/{pid}/syscall").read().split()[0] not in {"157", "167"}:  # prctl
    time.sleep(0.01)
print(pid, flush=True)
os._exit(0)
"""


def runs_without_parent(init: str) -> bool:
    """Whether ``-p`` does nothing when the parent dies just before it is heeded."""
    command = [*PYTHON, LEAVES, init, "-s", "-p", "KILL" if "/tini-" not in init else "SIGKILL"]
    with started(*SLOW_WISH, *command, "--", "sleep", "1000", stderr=subprocess.DEVNULL) as tracer:
        pid = int(line(tracer))
        assert eventually(lambda: not state(pid) or bool(children(pid)))
        lives = bool(state(pid))
        for process in [*children(pid), pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        tracer.wait(PATIENCE_S)
        return lives


@plain_only
def test_44_the_parent_is_gone_already(inits: Path) -> None:
    assert runs_without_parent(installed("tini"))
    assert not runs_without_parent(str(inits / "tini"))


def test_45_catatonit_blocks_what_it_should_not(inits: Path) -> None:
    def blocked(init: str) -> int:
        rows = run(init, "cat", "/proc/self/status").stdout.splitlines()
        return int(next(x for x in rows if x.startswith("SigBlk")).split()[1], 16)

    assert blocked(installed("catatonit")) == 0x380000
    assert blocked(str(inits / "catatonit")) == 0


def test_45_dumb_init_forgets_what_was_ignored(inits: Path) -> None:
    def ignored(init: str) -> bool:
        done = run(
            init, "sh", "-c", "kill -HUP $$; exit 3",
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        )  # fmt: skip
        return done.returncode == 3

    assert not ignored(installed("dumb-init"))
    assert ignored(str(inits / "dumb-init"))


def test_46_tini_wakes_up_and_talks_on_stdout(inits: Path) -> None:
    ours, theirs = ours_and_theirs(inits, "tini")
    assert "INFO" in run(*theirs, "-vv", "--", "true").stdout
    said = run(*theirs, "-vvv", "--", "no-such").stdout
    assert said.count("Registered as child subreaper") == 2  # by the child's copy of the buffer
    done = run(*ours, "-vvv", "--", "true")
    assert done.stdout == "" and "INFO" in done.stderr

    def wake_ups(pid: int) -> int:
        rows = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(x for x in rows if x.startswith("voluntary")).split()[1])

    with listening(*theirs) as init:
        before = wake_ups(init.pid)
        assert eventually(lambda: wake_ups(init.pid) > before)
    with listening(*ours) as init:
        assert eventually(lambda: state(init.pid) == "S")
        before = wake_ups(init.pid)
        end = time.monotonic() + HANG_S
        assert eventually(lambda: time.monotonic() > end)
        assert wake_ups(init.pid) == before


def test_47_exec_failures_are_not_mapped(inits: Path) -> None:
    assert run(installed("tini"), "-s", "-e", "127", "no-such").returncode == 0
    assert run(str(inits / "pyinit"), "-e", "127", "no-such").returncode == 127
    assert run(str(inits / "pyinit"), "-e", "127", "sh", "-c", "exit 127").returncode == 0
    assert run(str(inits / "pyinit"), "-e", "", "true").returncode == 125
    # Scripts may rely on these in tini.
    for program in (str(inits / "tini"), installed("tini")):
        assert run(program, "-s", "-e", "127", "no-such").returncode == 0
        assert run(program, "-s", "-e", "", "true").returncode == 0


def test_48_pause_does_not_leave_on_what_was_ignored(inits: Path) -> None:
    def ends(init: str, *options: str) -> bool:
        with started(
            init, *options, stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        ) as process:  # fmt: skip
            assert eventually(
                lambda: state(process.pid) == "S" and init.encode() in command(process.pid)
            )
            process.send_signal(signal.SIGINT)
            try:
                return process.wait(HANG_S) == 0
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                assert process.wait(PATIENCE_S) == 0
                return False

    assert ends(installed("catatonit"), "-P")
    assert not ends(str(inits / "catatonit"), "-P")
    assert not ends(str(inits / "pyinit"), "-P")
    assert not ends(str(inits / "pause"))


def command(pid: int) -> bytes:
    """Its command line."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize(
    ("name", "options"), [("catatonit", "-P"), ("pyinit", "-P"), ("pause", "")]
)
def test_pause(inits: Path, name: str, options: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        with started(str(inits / name), *options.split(), stderr=subprocess.PIPE) as process:
            assert eventually(lambda: os.readlink(f"/proc/{process.pid}/cwd") == "/")
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGUSR1)
            process.send_signal(number)
            assert process.wait(PATIENCE_S) == 0
            assert process.stderr is not None
            said = process.stderr.read()
            assert (f"got signal: {number.name} from process {os.getpid()}" in said) == (
                name == "pause"
            )


@pytest.mark.parametrize(
    ("name", "options"), [("catatonit", "-P"), ("pyinit", "-P"), ("pause", "")]
)
def test_pause_reaps_who_is_dead_and_who_will_be(inits: Path, name: str, options: str) -> None:
    script = 'exec 3<&0; true & echo $!; (read x <&3) & exec "$@" 3<&-'
    with started("sh", "-c", script, "sh", str(inits / name), *options.split()) as process:
        dead = int(line(process))
        assert eventually(lambda: os.readlink(f"/proc/{process.pid}/cwd") == "/")
        assert eventually(lambda: len(children(process.pid)) == 1 and not state(dead))
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert eventually(lambda: not children(process.pid))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
