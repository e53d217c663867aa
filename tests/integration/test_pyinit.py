"""Drives the built pyinit as a user would; what it promises is in the spec of inits, section 1."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 20
FAULTS = {"SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGSEGV", "SIGSYS"}
NEVER_FORWARDED = {"SIGKILL", "SIGSTOP", "SIGCHLD", "SIGTTIN", "SIGTTOU"}
FORWARDED = [
    number
    for number in range(1, 65)
    if number > 31 or signal.Signals(number).name not in FAULTS | NEVER_FORWARDED
]
# Says its pid, then the number of the first signal that it gets.  All 64 are fetched with raw
# calls: the C library keeps 32 and 33 for itself.
LISTENER = """
import ctypes, os
libc, mask, machine = ctypes.CDLL(None), ctypes.c_uint64(2**64 - 1), os.uname().machine
block, fetch = (14, 128) if machine == "x86_64" else (135, 137)
libc.syscall(block, 0, ctypes.byref(mask), None, 8)
print(os.getpid(), flush=True)
print(libc.syscall(fetch, ctypes.byref(mask), None, None, 8), flush=True)
"""


@pytest.fixture
def pyinit(programs: Path) -> str:
    """The binary."""
    return str(programs / "pyinit")


def run(*command: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs to the end, with the output captured."""
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        command, **{"capture_output": True, "text": True, "timeout": PATIENCE_S, **options}
    )


def start(*command: str, **options: object) -> subprocess.Popen[str]:
    """Starts and returns at once; stdout is a pipe."""
    return subprocess.Popen(command, **{"stdout": subprocess.PIPE, "text": True, **options})  # type: ignore[call-overload,no-any-return]


def line(process: subprocess.Popen[str]) -> str:
    """The next line of the output."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def eventually(condition: Callable[[], bool]) -> bool:
    """Polls until ``condition`` holds or patience ends."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            return False
        select.select([], [], [], 0.01)
    return True


def status_field(text: str, field: str) -> int:
    """One of the masks in /proc/PID/status."""
    return int(next(x for x in text.splitlines() if x.startswith(field)).split()[1], 16)


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("exit 255", 255)]
)
def test_ends_with_the_status_of_the_command(pyinit: str, script: str, status: int) -> None:
    assert run(pyinit, "-s", "--", "sh", "-c", script).returncode == status


def test_a_missing_command_is_127(pyinit: str) -> None:
    done = run(pyinit, "-s", "no-such-command")
    assert done.returncode == 127
    assert done.stderr == (
        "pyinit: cannot run 'no-such-command': No such file or directory; "
        "check the command and the image's PATH\n"
    )


def test_what_cannot_be_executed_is_126(pyinit: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")
    for command in (str(plain), str(tmp_path), str(plain / "below")):
        done = run(pyinit, "-s", command)
        assert done.returncode == 126
        assert done.stderr.startswith(f"pyinit: cannot run '{command}': ")
        assert done.stderr.count("\n") == 1


def test_the_status_survives_a_stderr_that_nobody_reads(pyinit: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    assert run(pyinit, "no-such-command", capture_output=False, stderr=writer).returncode == 127
    assert (
        run(pyinit, "-vvv", "sh", "-c", "exit 5", capture_output=False, stderr=writer).returncode
        == 5
    )
    os.close(writer)


def test_a_script_without_interpreter_line_runs_in_the_shell(pyinit: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('echo "$0" "$@"\n')
    script.chmod(0o755)
    assert run(pyinit, "-s", str(script), "a", "b c").stdout == f"{script} a b c\n"
    found = run(pyinit, "-s", "script", env={"PATH": f"/nowhere:{tmp_path}"})
    assert found.stdout == f"{script}\n"


def test_only_its_own_arguments_are_taken(pyinit: str) -> None:
    assert run(pyinit, "-s", "echo", "-x", "--", "-y").stdout == "-x -- -y\n"
    assert run(pyinit, "-s", "--", "echo", "--", "x").stdout == "-- x\n"
    assert run(pyinit, "-s", "echo", "--", "x").stdout == "x\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command"),
        (["-s", "--"], "no command"),
        (["-x", "true"], "unknown option '-x'"),
        (["--frob", "true"], "unknown option '--frob'"),
        (["-e"], "missing after '-e'"),
        (["-e", "256", "true"], "'256'"),
        (["-p", "SIGFOO", "true"], "'SIGFOO'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_1(
    pyinit: str, arguments: list[str], message: str
) -> None:
    done = run(pyinit, *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("pyinit: ") and message in done.stderr
    assert done.stderr.count("\n") == 1


def test_texts(pyinit: str) -> None:
    assert run(pyinit, "--version").stdout.startswith("tini version 0.19.0 - pyinit ")
    assert "-g" in run(pyinit, "-h").stdout
    assert "Apache" in run(pyinit, "-l").stdout


def test_no_arguments_at_all(pyinit: str) -> None:
    script = f"import ctypes; ctypes.CDLL(None).execv({pyinit.encode()!r}, (ctypes.c_char_p * 1)())"
    done = run(sys.executable, "-c", script)
    assert done.returncode == 1
    assert "no command" in done.stderr


def test_a_status_can_be_made_0(pyinit: str) -> None:
    assert run(pyinit, "-s", "-e", "143", "-e3", "sh", "-c", "exit 3").returncode == 0
    assert run(pyinit, "-s", "-e", "143", "sh", "-c", "kill -TERM $$").returncode == 0
    assert run(pyinit, "-s", "-e", "143", "sh", "-c", "exit 4").returncode == 4


@pytest.mark.parametrize("number", FORWARDED)
def test_every_signal_is_forwarded(pyinit: str, number: int) -> None:
    process = start(pyinit, "-s", sys.executable, "-c", LISTENER)
    line(process)
    os.kill(process.pid, number)
    assert line(process) == str(number)
    assert process.wait(PATIENCE_S) == 0


def test_background_signals_are_not_forwarded(pyinit: str) -> None:
    process = start(pyinit, "-s", sys.executable, "-c", LISTENER)
    line(process)
    os.kill(process.pid, signal.SIGTTIN)
    os.kill(process.pid, signal.SIGTTOU)
    os.kill(process.pid, signal.SIGWINCH)
    assert line(process) == str(int(signal.SIGWINCH))
    assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("how", ["option", "environment"])
def test_the_group_gets_the_signal(pyinit: str, how: str) -> None:
    script = "trap 'wait; echo outer; exit 9' TERM; "
    script += "(trap 'echo inner; exit' TERM; echo ready; while :; do sleep 0.02; done) & wait"
    options = ["-g"] if how == "option" else []
    extra = {} if how == "option" else {"TINI_KILL_PROCESS_GROUP": "0"}
    process = start(pyinit, "-s", *options, "sh", "-c", script, env={**os.environ, **extra})
    assert line(process) == "ready"
    os.kill(process.pid, signal.SIGTERM)
    assert {line(process), line(process)} == {"inner", "outer"}
    assert process.wait(PATIENCE_S) == 9


def test_mask_and_dispositions_reach_the_command_unchanged(pyinit: str) -> None:
    blocked = {signal.SIGUSR1, signal.SIGTERM, signal.SIGRTMIN, signal.SIGRTMAX}
    ignored = [signal.SIGHUP, signal.SIGCHLD, signal.SIGTTOU, signal.SIGTTIN, signal.SIGRTMIN + 1]

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    command = ["cat", "/proc/self/status"]
    bare = run(*command, preexec_fn=prepare).stdout
    below = run(pyinit, "-s", *command, preexec_fn=prepare).stdout
    plain = run(pyinit, "-s", *command).stdout
    for field in ("SigBlk", "SigIgn"):
        assert status_field(below, field) == status_field(bare, field)
    assert status_field(below, "SigBlk") == sum(1 << (n - 1) for n in blocked)
    assert status_field(plain, "SigBlk") == 0


def test_started_with_sigchld_ignored(pyinit: str) -> None:
    done = run(
        pyinit, "-s", "sh", "-c", "exit 6",
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
    )  # fmt: skip
    assert done.returncode == 6


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_standard_files(pyinit: str, closed: tuple[int, ...]) -> None:
    shut = " ".join(f"{fd}>&-" for fd in closed)
    assert run("sh", "-c", f'"$0" -s sh -c "exit 5" {shut}; exit $?', pyinit).returncode == 5


ORPHANS = "for i in 1 2 3 4 5; do (sleep 0.05 & echo $!) ; done; echo end; read line; exit 3"


def test_orphans_are_reaped_by_the_subreaper(pyinit: str) -> None:
    process = start(
        pyinit, "-s", "-w", "sh", "-c", ORPHANS, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    pids = [line(process) for _ in range(5)]
    assert line(process) == "end"
    assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    _, errors = process.communicate("\n", timeout=PATIENCE_S)
    assert process.returncode == 3
    for pid in pids:
        assert f"Reaped zombie process with pid={pid}\n" in errors


def test_as_process_1(pyinit: str) -> None:
    script = (
        "pids=$(for i in 1 2 3; do (sleep 0.05 >/dev/null & echo $!); done); cat /proc/1/comm; "
    )
    script += "for pid in $pids; do while [ -e /proc/$pid ]; do sleep 0.02; done; done; exit 3"
    done = run("unshare", "--pid", "--fork", "--mount-proc", pyinit, "-w", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (3, "pyinit\n")
    assert done.stderr.count("Reaped zombie") == 3
    assert "subreaper" not in done.stderr


def test_warns_when_orphans_go_elsewhere(pyinit: str) -> None:
    assert "zombie reaping won't work" in run(pyinit, "true").stderr
    assert run(pyinit, "true", env={**os.environ, "TINI_VERBOSITY": "0"}).stderr == ""
    assert run(pyinit, "true", env={**os.environ, "TINI_SUBREAPER": ""}).stderr == ""


def test_the_signal_of_a_dead_parent(pyinit: str) -> None:
    middle = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:], stdout=1); p.wait()"
    process = start(
        sys.executable, "-c", middle, pyinit, "-s", "-p", "usr1", sys.executable, "-c", LISTENER
    )
    line(process)
    process.kill()
    assert line(process) == str(int(signal.SIGUSR1))
    process.wait(PATIENCE_S)


def test_the_command_gets_the_terminal(pyinit: str) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        script = "trap 'echo interrupted; exit 4' INT; echo group $(ps -o pgid=,tpgid= -p $$); "
        script += "while :; do sleep 0.02; done"
        os.execv(pyinit, [pyinit, "-s", "sh", "-c", script])
    seen = ""
    while "group" not in seen or not seen.endswith("\n"):
        seen += os.read(terminal, 1000).decode()
    group, foreground = seen.split("group")[1].split()
    assert group == foreground != str(pid)
    os.write(terminal, b"\x03")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
    os.close(terminal)


def test_a_background_job_leaves_the_terminal_alone(pyinit: str) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        script = 'set -m; "$0" -s true & wait $!; read answer; exit "$answer"'
        os.execv("/bin/sh", ["/bin/sh", "-c", script, pyinit])
    os.write(terminal, b"8\n")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 8
    os.close(terminal)


def test_the_other_architecture() -> None:
    binary, emulator = ROOT / "build/aarch64/pyinit", shutil.which("qemu-aarch64")
    if emulator is None:
        pytest.skip("qemu-aarch64 is not installed")
    if not binary.is_file():
        pytest.fail("not built; run: python hatch_build.py --arch aarch64 pyinit")
    quiet = {**os.environ, "TINI_VERBOSITY": "0"}
    assert run(emulator, str(binary), "sh", "-c", "exit 7", env=quiet).returncode == 7
    assert run(emulator, str(binary), "no-such-command", env=quiet).returncode == 127
    process = start(emulator, str(binary), sys.executable, "-c", LISTENER, env=quiet)
    line(process)
    os.kill(process.pid, signal.SIGTERM)
    assert line(process) == "15"
    assert process.wait(PATIENCE_S) == 0
