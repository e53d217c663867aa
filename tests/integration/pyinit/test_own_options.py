"""What no other init has (rows 26 to 40 of the spec), by option and by PYINIT_OPTS."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .inits import (
    NEW_PIDS,
    PATIENCE_S,
    PERSONAS,
    PYTHON,
    QUIET,
    children,
    eventually,
    line,
    listening,
    run,
    started,
    state,
    status,
    waits_for_ever,
)

STUBBORN = "trap 'echo told' TERM; echo ready; while :; do sleep 0.02; done"
SLEEPER = "trap 'echo %s; exit' TERM; echo ready; while :; do sleep 0.02; done"
HANDLER = (
    "import os, select, signal; os.write(1, b'ready\\n'); os.read(0, 9); "
    "signal.signal(10, lambda *_: os.write(1, b'handled\\n')); os.write(1, b'set\\n'); "
    # Not a read, which a signal that arrives just before does not interrupt.
    "[select.select([], [], [], 0.05) for _ in iter(int, 1)]"
)


def test_stop_escalates(pyinit: str) -> None:
    for option, status_code in (("--stop=50ms", 137), ("--stop=0.05s:QUIT", 131)):
        with started(pyinit, option, "sh", "-c", STUBBORN) as process:
            assert line(process) == "ready"
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == status_code


def test_no_time_at_all_is_at_once(pyinit: str) -> None:
    with started(pyinit, "--stop=0", "sh", "-c", STUBBORN) as process:
        assert line(process) == "ready"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 137
    with started(pyinit, "--grace=0", "sh", "-c", f"({STUBBORN}) & read x; exit 5") as process:
        assert line(process) == "ready"
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        assert process.wait(PATIENCE_S) == 5
        assert process.stdout is not None
        process.stdout.read()  # ends when nobody is left
    assert run(pyinit, "--timeout=0", "sh", "-c", "exit 3").returncode == 3  # as timeout(1): none


def test_stop_only_on_what_it_is_about(pyinit: str) -> None:
    with started(
        pyinit, "--stop=1m", "--stop-on=USR1", "--twice", "sh", "-c", f"trap '' USR1; {STUBBORN}"
    ) as process:
        assert line(process) == "ready"
        process.send_signal(signal.SIGTERM)
        assert line(process) == "told"
        process.send_signal(signal.SIGTERM)
        assert line(process) == "told"
        process.send_signal(signal.SIGUSR1)
        assert eventually(lambda: status(process.pid, "ShdPnd") == "0" * 16)
        assert process.poll() is None
        process.send_signal(signal.SIGUSR1)
        assert process.wait(PATIENCE_S) == 137


def test_timeout(pyinit: str) -> None:
    assert run(pyinit, "--timeout=50ms", "sleep", "1000").returncode == 124
    done = run(pyinit, "--timeout=50ms", "--stop=50ms", "sh", "-c", STUBBORN)
    assert done.returncode == 124
    assert run(pyinit, "--timeout=1m", "sh", "-c", "exit 3").returncode == 3


@pytest.mark.parametrize("as_pid_1", [False, True], ids=["process", "pid1"])
def test_grace_ends_everybody(pyinit: str, as_pid_1: bool) -> None:
    """Also who has left the command's group and session; who does not listen is killed."""
    script = (
        f'(setsid sh -c "{SLEEPER % "polite"}" &); (setsid sh -c "{STUBBORN}" &); read x; exit 5'
    )
    prefix = NEW_PIDS if as_pid_1 else ()
    with started(*prefix, pyinit, "--grace=500ms", "--", "sh", "-c", script) as process:
        assert [line(process), line(process)] == ["ready", "ready"]
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        assert sorted([line(process), line(process)]) == ["polite", "told"]
        assert process.wait(PATIENCE_S) == 5
        assert process.stdout is not None and process.stdout.read() == ""


def test_grace_leaves_others_alone(pyinit: str) -> None:
    with started("sleep", "1000") as other:
        script = "(sleep 1000 &); exit 5"
        before = time.monotonic()
        assert run(pyinit, "--grace=1m", "--", "sh", "-c", script).returncode == 5
        assert time.monotonic() - before < PATIENCE_S
        assert other.poll() is None


def test_grace_has_precedence_over_wait(pyinit: str) -> None:
    script = f'(setsid sh -c "{STUBBORN}" &); read x; exit 5'
    with started(pyinit, "--wait", "--grace=100ms", "--", "sh", "-c", script) as process:
        assert line(process) == "ready"
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        assert line(process) == "told"
        assert process.wait(PATIENCE_S) == 5


def test_grace_ends_though_somebody_cannot_be_seen(pyinit: str) -> None:
    """Without /proc and not as PID 1; whoever stays ends with the namespace."""
    script = (
        f"umount -l /proc; {pyinit} --grace=100ms -- sh -c '(setsid sleep 1000 &); exit 5'; exit $?"
    )
    done = run(*NEW_PIDS, "unshare", "--mount", "sh", "-c", script)
    assert (done.returncode, done.stderr) == (5, "")


def test_wait_for_all(pyinit: str) -> None:
    script = "(sleep 0.1; echo late; exit 9) & exit 5"
    for option, code in (("--wait", 5), ("--wait=last", 9)):
        done = run(pyinit, option, "--", "sh", "-c", script)
        assert (done.returncode, done.stdout) == (code, "late\n")


def test_signals_go_to_everybody_who_is_waited_for(pyinit: str) -> None:
    for prefix in ((), NEW_PIDS):
        script = f'(setsid sh -c "{SLEEPER % "told"}" &); exit 5'
        with started(*prefix, pyinit, "--wait", "--", "sh", "-c", script) as process:
            assert line(process) == "ready"
            init = children(process.pid)[0] if prefix else process.pid
            assert eventually(lambda: alone(init))  # noqa: B023
            os.kill(init, signal.SIGTERM)
            assert line(process) == "told"
            assert process.wait(PATIENCE_S) == 5


def alone(init: int) -> bool:
    """Whether the command is gone and only what it has left behind is there."""
    below = children(init)
    return len(below) == 1 and os.getsid(below[0]) == below[0]


def test_a_stop_just_after_the_command_reaches_who_is_waited_for(pyinit: str) -> None:
    """Which the kernel hands out before SIGCHLD: both wait here until somebody reads the log."""
    script = f'(setsid sh -c "{SLEEPER % "told"}" &); read x; exit 5'
    reader, writer = os.pipe()
    os.write(writer, bytes(fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)))
    command = [pyinit, "-vv", "--wait", "--", "sh", "-c", script]
    with started(*command, stderr=writer) as process:
        os.close(writer)
        assert line(process) == "ready"
        command_pid = next(pid for pid in children(process.pid) if os.getsid(pid) != pid)
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        assert eventually(lambda: state(command_pid) == "Z")
        process.send_signal(signal.SIGTERM)
        with open(reader) as log:
            assert "Spawned child process" in log.readline()
            assert line(process) == "told"
            assert process.wait(PATIENCE_S) == 5


def test_to_everybody(pyinit: str) -> None:
    inner = f'setsid sh -c "{SLEEPER % "inner"}"'
    script = f"trap 'read x; exit 4' TERM; {inner} & ({inner} &); wait"
    for prefix in ((), NEW_PIDS):
        with started(*prefix, pyinit, "--all", "--", "sh", "-c", script) as process:
            assert [line(process), line(process)] == ["ready", "ready"]
            os.kill(children(process.pid)[0] if prefix else process.pid, signal.SIGTERM)
            assert [line(process), line(process)] == ["inner", "inner"]
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
            assert process.wait(PATIENCE_S) == 4


def test_delay(pyinit: str) -> None:
    with listening(pyinit, "--delay=TERM:200ms", "--delay=USR1:1m") as init:
        os.kill(init.pid, signal.SIGTERM)
        os.kill(init.pid, signal.SIGTERM)
        os.kill(init.pid, signal.SIGUSR1)
        os.kill(init.pid, signal.SIGHUP)
        seen = [line(init.outer).split()[0] for _ in range(2)]
        assert seen == ["1", "15"]
        os.kill(init.pid, signal.SIGTERM)  # which the next one cancels
        os.kill(init.pid, signal.SIGINT)
        assert line(init.outer).split()[0] == "2"
        os.kill(init.pid, signal.SIGWINCH)
        assert line(init.outer).split()[0] == "28"


def test_absorb(pyinit: str) -> None:
    with started(pyinit, "--absorb=USR1,HUP", "--", *PYTHON, HANDLER) as process:
        assert line(process) == "ready"
        process.send_signal(signal.SIGUSR1)
        process.send_signal(signal.SIGHUP)
        assert eventually(lambda: status(process.pid, "ShdPnd") == "0" * 16)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert line(process) == "set"
        process.send_signal(signal.SIGUSR1)
        assert line(process) == "handled"


def events(text: str) -> list[dict[str, object]]:
    """The lines of a log."""
    return [json.loads(row) for row in text.splitlines()]


def test_log_for_machines(pyinit: str) -> None:
    reader, writer = os.pipe()
    script = "(exit 3) & wait; echo; read x; exit 7"
    with started(
        pyinit,
        "--log=json",
        f"--log-fd={writer}",
        "--",
        "sh",
        "-c",
        script,
        'quote"',
        pass_fds=[writer],
    ) as process:
        assert line(process) == ""
        process.send_signal(signal.SIGWINCH)
        with open(reader) as log:
            os.close(writer)
            seen = [json.loads(log.readline()) for _ in range(3)]
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
            assert process.wait(PATIENCE_S) == 7
            seen += events(log.read())
    assert [event["ev"] for event in seen] == ["start", "signal", "forward", "reap", "exit"]
    assert {event["pid"] for event in seen} == {process.pid}
    assert seen[0]["command"] == "sh"
    assert (seen[1]["sig"], seen[1]["from"], seen[1]["uid"]) == ("WINCH", os.getpid(), os.getuid())
    assert (seen[2]["sig"], seen[2]["to"], seen[2]["error"]) == ("WINCH", seen[0]["child"], 0)
    assert (seen[3]["child"], seen[3]["code"]) == (seen[0]["child"], 7)
    assert abs(float(str(seen[4]["t"])) - time.time()) < PATIENCE_S


def test_the_log_tells_of_a_stop(pyinit: str) -> None:
    options = ["--log=json", "--timeout=50ms", "--stop=50ms"]
    done = run(pyinit, *options, "sh", "-c", "trap '' TERM; while :; do sleep 0.02; done")
    told = [(event["ev"], event.get("sig")) for event in events(done.stderr)]
    assert told == [
        ("start", None), ("stop", "TERM"), ("forward", "TERM"), ("stop", "KILL"), ("reap", "KILL"),
        ("exit", "KILL"),
    ]  # fmt: skip
    assert done.returncode == 124


def test_log_as_text_and_in_any_persona(inits: Path) -> None:
    given = {**os.environ, "PYINIT_OPTS": "--log=text"}
    for name in PERSONAS:
        done = run(str(inits / name), "sh", "-c", "kill -TERM $$", env=given)
        assert " ev=exit code=143 sig=TERM core=0 " in done.stderr
        assert done.returncode == 143


def test_zombies(pyinit: str) -> None:
    script = "import os, time; os.fork() or os._exit(0); print(flush=True); time.sleep(1000)"
    with started(
        *NEW_PIDS, pyinit, "--zombies=50ms", "--", *PYTHON, script, stderr=subprocess.PIPE
    ) as process:
        assert line(process) == ""
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said.startswith("pyinit: zombie 3 (") and "its parent 2 (" in said
        os.kill(children(process.pid)[0], signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 143


def test_user_folder_and_variables(pyinit: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents[:2]:
        folder.chmod(0o755)
    script = "id -u; id -g; id -G; pwd; echo $A $B; grep NoNewPrivs /proc/self/status"
    options = ["--user=4711:4712,4713,4714", f"--chdir={tmp_path}", "--env", "A=1", "--env=B=2"]
    options += ["--env=A=3", "--nnp"]
    done = run(pyinit, *options, "sh", "-c", script, env={**os.environ, "A": "0", "B": "0"})
    assert done.stdout.splitlines() == [
        "4711", "4712", "4712 4713 4714", str(tmp_path), "3 2", "NoNewPrivs:\t1",
    ]  # fmt: skip
    assert run(pyinit, "--user=4711", "id", "-g").stdout == "4711\n"


# What cannot be arranged for the command, and what is then said.
REFUSED = {
    "--chdir=/nowhere": "cannot chdir to '/nowhere' (--chdir): No such file or directory; ",
    "--chdir=/etc/passwd": "cannot chdir to '/etc/passwd' (--chdir): Not a directory; ",
    "--user=0:0": "cannot setgroups (--user): Operation not permitted; it needs root, or CAP_",
}


@pytest.mark.parametrize("option", REFUSED)
@pytest.mark.parametrize("name", PERSONAS)
def test_what_cannot_be_arranged_is_an_error_of_the_init(
    inits: Path, tmp_path: Path, name: str, option: str
) -> None:
    """Said in one line, by what failed; the command, which is there, has nothing to do with it."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    shutil.copy(inits / name, tmp_path / name)
    init = [str(tmp_path / name), *QUIET[name], "true"]
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    prefix = as_nobody if option.startswith("--user") else []
    done = run(*prefix, *init, env={**os.environ, "PYINIT_OPTS": option})
    assert done.returncode == (125 if name == "pyinit" else 1)
    assert REFUSED[option] in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("call", "error"), [("setgroups", "EPERM"), ("setresgid", "EPERM"), ("setresuid", "EAGAIN")]
)
def test_the_call_that_was_refused_is_named(
    pyinit: str, tmp_path: Path, call: str, error: str
) -> None:
    trace = ["strace", "-f", "-o", str(tmp_path / "trace"), "-e", f"trace={call}"]
    fault = ["-e", f"inject={call}:error={error}"]
    done = run(*trace, *fault, pyinit, "--user=4711", "true")
    assert done.returncode == 125
    assert f"pyinit: cannot {call} (--user): " in done.stderr


def test_locked_it_still_works(pyinit: str) -> None:
    options = ("--lock", "--grace=1s", "--why")
    script = "(sleep 1000 &); trap 'exit 6' TERM; echo; while :; do sleep 0.02; done"
    with started(pyinit, *options, "--", "sh", "-c", script, stderr=subprocess.PIPE) as process:
        assert line(process) == ""
        # The command runs as soon as it is there, whatever its init does yet.
        assert eventually(lambda: status(process.pid, "Seccomp") == "2")
        assert status(children(process.pid)[0], "Seccomp") == "0"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 6


def test_signals_while_a_parent_death_is_watched(pyinit: str) -> None:
    with listening(pyinit, "--child-pdeath=USR2") as init:
        command = children(init.pid)[0]
        os.kill(init.pid, signal.SIGKILL)
        assert line(init.outer).split()[0] == str(int(signal.SIGUSR2))
        assert eventually(lambda: state(command) == "S")
        os.kill(command, signal.SIGKILL)


def test_a_number_too_large_is_not_cut_to_another(pyinit: str) -> None:
    """2 to the power of 32 would be root."""
    for option in ("--user=4294967296", "--user=1:4294967296", "--user=1:1,4294967296"):
        done = run(pyinit, option, "true")
        assert done.returncode == 125 and "--user: not UID" in done.stderr
    done = run(pyinit, "-e", "4294967303", "sh", "-c", "exit 7")
    assert done.returncode == 125 and "-e: 4294967303" in done.stderr.replace("'", "")


def test_a_pause_with_a_time_limit_sleeps(pyinit: str) -> None:
    """What is due is done once; a time limit for a command has no meaning without one."""
    with started(pyinit, "-P", "--timeout=10ms") as process:
        assert eventually(lambda: waits_for_ever(process.pid))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    parent = "import os, time; os.fork() or os._exit(0); time.sleep(1000)"
    with started(*PYTHON, parent) as other:
        assert eventually(lambda: [state(pid) for pid in children(other.pid)] == ["Z"])
        zombie = f"zombie {children(other.pid)[0]} "
        with started(pyinit, "-P", "--zombies=10ms", stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            assert any(told.partition(": ")[2].startswith(zombie) for told in process.stderr)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0


def test_child_pdeath_for_the_first_of_a_namespace(pyinit: str) -> None:
    """Which cannot see its parent, that is outside."""
    done = run("unshare", "--pid", pyinit, "--child-pdeath", "sh", "-c", "echo $$; exit 4")
    assert (done.returncode, done.stdout) == (4, "1\n")


def test_a_long_name_is_cut_within_its_quotes(pyinit: str, tmp_path: Path) -> None:
    program = tmp_path / ("a" * 250) / ("b" * 250) / "true"
    program.parent.mkdir(parents=True)
    program.symlink_to("/bin/true")
    done = run(pyinit, "--log=json", str(program))
    start = json.loads(done.stderr.splitlines()[0])
    assert done.returncode == 0 and str(program).startswith(start["command"])
