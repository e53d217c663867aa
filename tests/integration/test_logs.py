"""Where a container's output goes when it is no fifo: files and logging binaries."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from .containerd import Containerd, eventually, nothing_left


def logging_binary(folder: Path, body: str) -> Path:
    """A program that logs to files in ``folder``; it is given no PATH."""
    path = folder / "logger"
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\ncd {folder}\n{body}\n")
    path.chmod(0o755)
    return path


LOG_BOTH = "env >env; echo $* >arguments; cat <&3 >out & cat <&4 >err & echo >&5; exec 5>&-; wait"


@pytest.mark.parametrize("kill_services", [False, True])
def test_a_logging_binary_gets_everything(
    containerd: Containerd, tmp_path: Path, kill_services: bool
) -> None:
    path = logging_binary(tmp_path, LOG_BOTH)
    flags = ("-d", "--log-uri", f"binary://{path}?first=1&second=")
    command = ("/bin/sh", "-c", "read x </dev/null; sleep 1; seq 1 20000; echo bad >&2; exit 3")
    done = containerd.ctr(*containerd.run("logged", *command, flags=flags))
    assert done.returncode == 0, done.stderr
    try:
        if kill_services:
            for pid in containerd.services():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        eventually(lambda: containerd.tasks()["logged"][1] == "STOPPED", "the task has stopped")
        assert "exit code 3" in containerd.ctr("task", "delete", "logged").stderr
    finally:
        containerd.ctr("task", "delete", "-f", "logged")
        containerd.ctr("container", "delete", "logged")
    assert (tmp_path / "out").read_text() == "".join(f"{n}\n" for n in range(1, 20001))
    assert (tmp_path / "err").read_text() == "bad\n"
    assert (tmp_path / "arguments").read_text().split() == ["first", "1", "second"]
    variables = {line.split("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert variables - {"PWD", "PATH", "SHLVL", "_", "OLDPWD"} == {
        "CONTAINER_ID",
        "CONTAINER_NAMESPACE",
    }
    nothing_left(containerd)


def test_a_logging_binary_that_does_not_end(containerd: Containerd, tmp_path: Path) -> None:
    path = logging_binary(tmp_path, "echo $$ >pid; echo >&5; exec sleep 1000")
    flags = ("-d", "--log-uri", f"binary://{path}")
    done = containerd.ctr(*containerd.run("stuck", "/bin/true", flags=flags))
    assert done.returncode == 0, done.stderr
    try:
        eventually(lambda: containerd.tasks()["stuck"][1] == "STOPPED", "the task has stopped")
        assert containerd.ctr("task", "delete", "stuck").returncode == 0
        logger = int((tmp_path / "pid").read_text())
        assert not Path(f"/proc/{logger}").exists()
    finally:
        containerd.ctr("task", "delete", "-f", "stuck")
        containerd.ctr("container", "delete", "stuck")
    nothing_left(containerd)


def test_a_logging_binary_that_is_not_there(containerd: Containerd) -> None:
    flags = ("-d", "--log-uri", "binary:///no/such/logger")
    done = containerd.ctr(*containerd.run("unlogged", "/bin/true", flags=flags))
    assert done.returncode != 0
    assert "/no/such/logger" in done.stderr
    containerd.ctr("container", "delete", "unlogged")
    nothing_left(containerd)


def test_a_log_file_whose_folders_are_not_there(containerd: Containerd, tmp_path: Path) -> None:
    path = tmp_path / "some/folder/log"
    flags = ("-d", "--log-uri", f"file://{path}")
    done = containerd.ctr(*containerd.run("filed", "/bin/seq", "1", "50000", flags=flags))
    assert done.returncode == 0, done.stderr
    try:
        eventually(lambda: containerd.tasks()["filed"][1] == "STOPPED", "the task has stopped")
        assert containerd.ctr("task", "delete", "filed").returncode == 0
    finally:
        containerd.ctr("task", "delete", "-f", "filed")
        containerd.ctr("container", "delete", "filed")
    assert path.read_text() == "".join(f"{n}\n" for n in range(1, 50001))
    nothing_left(containerd)


def test_a_logs_url_is_decoded(containerd: Containerd, tmp_path: Path) -> None:
    """containerd's clients encode what a URL cannot hold."""
    log = tmp_path / "a folder/log"
    flags = ("-d", "--log-uri", f"file://{tmp_path}/a%20folder/log")
    script = "echo out; echo err >&2"
    done = containerd.ctr(*containerd.run("spaced", "/bin/sh", "-c", script, flags=flags))
    assert done.returncode == 0, done.stderr
    eventually(lambda: containerd.tasks()["spaced"][1] == "STOPPED", "the task has stopped")
    containerd.ctr("task", "delete", "spaced")
    containerd.ctr("container", "delete", "spaced")
    assert sorted(log.read_text().split()) == ["err", "out"]
    nothing_left(containerd)
