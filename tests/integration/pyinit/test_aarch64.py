"""The build for aarch64, under qemu-user: what can be driven through an emulator.

It copies memory that vfork(2) shares: exit codes must not depend on that, but there is no message
then when a command cannot be executed.  It also has no subreapers, without which catatonit refuses
to run when it is not PID 1.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from .inits import PATIENCE_S, children, eventually, line, run, started

ROOT = Path(__file__).resolve().parents[3]
SHELL = ("sh", "-c")
TRAP = "trap 'echo told; exit 4' %s; echo ready; while :; do sleep 0.02; done"


@pytest.fixture(scope="module")
def emulated() -> list[str]:
    """The emulator and the binary."""
    binary, emulator = ROOT / "build/aarch64/pyinit", shutil.which("qemu-aarch64")
    assert emulator, "qemu-aarch64 is missing; `make test` installs it"
    if not binary.is_file():
        pytest.fail(
            "not built; run: python hatch_build.py --arch aarch64 --out build/aarch64 pyinit"
        )
    return [emulator, str(binary)]


def test_it_is_small_and_for_that_machine() -> None:
    binary = ROOT / "build/aarch64/pyinit"
    code = binary.read_bytes()
    assert int.from_bytes(code[18:20], "little") == 183  # EM_AARCH64 of elf(5)
    # Only where less is touched is it resident.
    assert len(code) <= 160 << 10


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--", *SHELL, "exit 7"], 7, ""),
        (["--", *SHELL, "exit 255"], 255, ""),
        (["--", *SHELL, "kill -TERM $$"], 143, ""),
        (["--", *SHELL, "kill -KILL $$"], 137, ""),
        (["no-such-command"], 127, ""),
        (["/etc"], 126, ""),
        (["/etc/passwd/below"], 127, ""),
        ([], 125, "no command to run"),
        (["--frob", "true"], 125, "unrecognized option"),
        (["--version"], 0, "tini version "),
        (["-h"], 0, "--grace="),
        (["-e", "3:9", *SHELL, "exit 3"], 9, ""),
        (["--grace=1s", *SHELL, "(sleep 1000 &); exit 3"], 3, ""),
        (["--timeout=50ms", "sleep", "1000"], 124, ""),
        (["--env=A=5", *SHELL, "exit $A"], 5, ""),
        (["--chdir=/nowhere", "true"], 125, ""),
        (["--chdir=/etc", *SHELL, "test -f passwd && exit 8"], 8, ""),
        (["--why", *SHELL, "exit 3"], 3, "exited with status 3"),
        (["--log=json", *SHELL, "exit 3"], 3, '"ev":"exit","code":3'),
        (["-vv", *SHELL, "exit 3"], 3, "Received SIGCHLD"),
        (["--as=tini", "--version"], 0, "tini version 0.19.0"),
        (["--as=tini", *SHELL, "exit 3"], 3, "zombie reaping won't work"),
        (["--as=tini", "/etc"], 126, "zombie"),
        (["--as=tini", "/etc/passwd/below"], 1, "zombie"),
        (["--as=tini", "-q"], 1, "invalid option -- 'q'"),
        (["--as=dumb-init", "no-such-command"], 2, ""),
        (["--as=dumb-init", "-V"], 0, "dumb-init v1.2.5"),
        (["--as=dumb-init", "-c", *SHELL, "exit 3"], 3, ""),
        (["--as=catatonit", "true"], 1, "cannot become a subreaper"),
        (["--as=catatonit", "--version"], 0, "_catatonit"),
        (["--as=pause", "-v"], 0, "pause 3.10"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_command_lines(emulated: list[str], arguments: list[str], status: int, said: str) -> None:
    done = run(*emulated, *arguments)
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr
    assert said or done.stderr == ""


@pytest.mark.parametrize("persona", ["tini", "dumb-init", "native"])
def test_started_with_sigchld_ignored(emulated: list[str], persona: str) -> None:
    """The emulator refuses that parent and child share their dispositions."""

    def prepare() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    command = [*emulated, f"--as={persona}", *SHELL, "exit 6"]
    assert run(*command, preexec_fn=prepare).returncode == 6


@pytest.mark.parametrize("persona", ["tini", "dumb-init", "native"])
@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "USR1", "TERM", "WINCH"])
def test_signals_are_handed_on(emulated: list[str], persona: str, name: str) -> None:
    with started(*emulated, f"--as={persona}", *SHELL, TRAP % name, stderr=-3) as process:
        assert line(process) == "ready"
        process.send_signal(getattr(signal, f"SIG{name}"))
        assert line(process) == "told"
        assert process.wait(PATIENCE_S) == 4


def test_orphans_are_reaped(emulated: list[str]) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do (true &); done; echo ready; read x; exit 5"
    with started(*emulated, *SHELL, script) as process:
        assert line(process) == "ready"
        assert eventually(lambda: len(children(process.pid)) == 1)
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        assert process.wait(PATIENCE_S) == 5


def test_pause(emulated: list[str]) -> None:
    with started(*emulated, "-P") as process:
        assert eventually(lambda: os.readlink(f"/proc/{process.pid}/cwd") == "/")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
