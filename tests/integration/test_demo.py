"""`pyshim demo` as a newcomer runs it: what it prints, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .containerd import eventually, scripts

RUN_BOUND_S = 120
ONE_PACKET_BYTES = 4096
STEPS = (
    r"a private containerd answers \(pid \d+\)",
    r"a network namespace with the address 198\.1[89]\.\d+\.\d+",
    r"a container with pyinit as its PID 1 \(pid \d+ on the host\)",
    r"the page, fetched from 127\.0\.0\.1:\d+ through portproxy",
    r"an exec, and its exit code 3",
    r"containerd killed with SIGKILL: the page is still served",
    r"containerd, started again, answers \(pid \d+\)",
    r"the container's exit status 7, read through the new containerd",
)


def as_in_a_terminal() -> None:
    """No signal is ignored, whatever the tests were started with."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Demo:
    """One `pyshim demo` that is at most two lines ahead of what was read from it."""

    def __init__(self, folder: Path, **env: str) -> None:
        # In a pipe of packets that has room for one, the next write waits.
        self.reader, writer = os.pipe2(os.O_DIRECT)
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, ONE_PACKET_BYTES)
        self.errors = folder / "stderr"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [scripts() / "pyshim", "demo"],
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=errors,
                start_new_session=True,
                preexec_fn=as_in_a_terminal,
            )
        os.close(writer)
        self.name = f"pyshim-demo-{self.process.pid}"

    def line(self) -> str:
        """The next line; "" at the end."""
        text = ""
        while not text.endswith("\n") and (part := os.read(self.reader, ONE_PACKET_BYTES)):
            text += part.decode()
        return text

    def end(self) -> tuple[int, list[str], str]:
        """The exit code, the lines that were not yet read, and what it said on stderr."""
        lines = list(iter(self.line, ""))
        return self.process.wait(RUN_BOUND_S), lines, self.errors.read_text()

    def folders(self) -> list[Path]:
        """Its private folder, while there is one."""
        return list(Path("/tmp").glob(f"{self.name}-*"))

    def processes(self) -> list[str]:
        """Processes that have its environment or are in its container."""
        environment = f"PYSHIM_RUNTIME_DIR=/tmp/{self.name}-".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                inside = f"/{self.name}\n" in (entry / "cgroup").read_text()
                if inside or environment in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_text())
        return found

    def nothing_left(self) -> None:
        """No process, mount, link, namespace, cgroup, runtime's state or folder is left."""
        assert self.processes() == []
        assert self.folders() == []
        assert self.name not in Path("/proc/self/mountinfo").read_text()
        assert not Path(f"/sys/class/net/pyd{self.process.pid}").exists()
        assert list(Path("/run/netns").glob(f"*{self.process.pid}*")) == []
        assert not Path("/run/containerd/runc/default", self.name).exists()
        assert list(Path("/sys/fs/cgroup").glob(f"{self.name}")) == []
        assert list(Path("/sys/fs/cgroup").glob(f"*/{self.name}")) == []


@pytest.fixture
def demos(tmp_path: Path) -> Iterator[list[Demo]]:
    """Demos to be ended, whatever the test did."""
    started: list[Demo] = []
    yield started
    for demo in started:
        if demo.process.poll() is None:
            demo.process.terminate()
            demo.end()
        with contextlib.suppress(OSError):
            os.close(demo.reader)


def starts(demos: list[Demo], folder: Path, **env: str) -> Demo:
    """A demo that the fixture ends."""
    demos.append(Demo(folder, **env))
    return demos[-1]


def shows_all(lines: list[str]) -> None:
    """These are the lines of a run in which everything worked."""
    for line, expected in zip(lines, STEPS, strict=False):
        assert re.fullmatch(f"  ok  {expected}\n", line), line
    assert len(lines) == len(STEPS) + 1
    assert re.fullmatch(r"done in \d+ s; everything has been removed\n", lines[-1])


def test_twice_in_a_row(demos: list[Demo], tmp_path: Path) -> None:
    for _ in range(2):
        demo = starts(demos, tmp_path)
        code, lines, errors = demo.end()
        assert (code, errors) == (0, "")
        shows_all(lines)
        demo.nothing_left()


def test_two_at_once(demos: list[Demo], tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        starts(demos, tmp_path / name)
    for demo in demos:
        code, lines, errors = demo.end()
        assert (code, errors) == (0, "")
        shows_all(lines)
    for demo in demos:
        demo.nothing_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("shown", range(len(STEPS) - 1))
def test_interrupted(demos: list[Demo], tmp_path: Path, shown: int, number: signal.Signals) -> None:
    demo = starts(demos, tmp_path)
    eventually(demo.folders, "it has begun")
    for _ in range(shown):
        assert demo.line().startswith("  ok  "), demo.errors.read_text()
    # As a terminal does it, and somebody who is in a hurry.
    for _ in range(2):
        os.killpg(demo.process.pid, number)
    code, lines, errors = demo.end()
    assert (code, errors) == (128 + number, "demo: interrupted; everything has been removed\n")
    assert not any(line.startswith("done") for line in lines)
    demo.nothing_left()


@pytest.mark.parametrize("call", ["run", "exec", "ls", "kill", "delete"])
def test_interrupted_in_the_middle_of_a_step(demos: list[Demo], tmp_path: Path, call: str) -> None:
    demo = starts(demos, tmp_path, PATH=faked(tmp_path, "ctr", call, "kill -s TERM $PPID"))
    code, _, errors = demo.end()
    assert (code, errors) == (143, "demo: interrupted; everything has been removed\n")
    demo.nothing_left()


def test_the_reader_of_its_output_goes_away(demos: list[Demo], tmp_path: Path) -> None:
    demo = starts(demos, tmp_path)
    assert demo.line()
    os.close(demo.reader)
    assert demo.process.wait(RUN_BOUND_S) != 0
    demo.nothing_left()


@pytest.mark.parametrize(
    ("program", "call", "script", "reason"),
    [
        ("containerd", "", "echo first; echo last >&2; exit 3", r"containerd ended \(3\): last"),
        ("ctr", "run", "echo broken >&2; exit 4", "ctr run --detach: broken"),
        ("ctr", "run", "exit 4", "ctr run --detach: exit code 4"),
        ("ctr", "exec", "exit 0", "exec gave 0 instead of 3: "),
        ("ctr", "delete", "exit 0", "the container's exit status was 0 instead of 7"),
        ("ctr", "ls", "echo TASK PID STATUS; exit 0", "`ctr task ls` does not list the container"),
        ("busybox", "", "exit 1", "the container ended instead of serving"),
        ("runc", "create", "echo no >&2; exit 1", r"ctr run --detach: .*OCI runtime create .*"),
    ],
)
def test_a_step_that_does_not_show_what_it_should(
    demos: list[Demo], tmp_path: Path, program: str, call: str, script: str, reason: str
) -> None:
    demo = starts(demos, tmp_path, PATH=faked(tmp_path, program, call, script))
    code, lines, errors = demo.end()
    assert code == 1
    assert re.fullmatch(f"demo: {reason}\n", errors), errors
    assert all(line.startswith("  ok  ") for line in lines)
    demo.nothing_left()


def test_a_program_that_is_missing(demos: list[Demo], tmp_path: Path) -> None:
    demo = starts(demos, tmp_path, PATH=str(tmp_path))
    reason = "demo: containerd is not on PATH; `make demo` installs it\n"
    assert demo.end() == (1, [], reason)
    demo.nothing_left()


def faked(folder: Path, program: str, call: str, script: str) -> str:
    """A PATH on which ``program`` does ``script`` first when ``call`` is among its arguments."""
    (folder / "bin").mkdir()
    real = shutil.which(program)
    assert real, f"{program} is missing; `make test` installs it"
    fake = folder / "bin" / program
    fake.write_text(
        f'#!/bin/sh\ncase " $* " in *" {call} "*) {script} ;; esac\nexec {real} "$@"\n'
        if call
        else f"#!/bin/sh\n{script}\n"
    )
    fake.chmod(0o755)
    return f"{folder}/bin:{os.environ['PATH']}"
