"""A runtime that prints without end, leaves something behind, or writes nonsense."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyshim.api import task_pb2
from pyshim.ttrpc.status import StatusError
from tests.integration.containerd import BOUND_S, eventually
from tests.integration.fake_runtime import fake_runtime
from tests.integration.fifos import Reader
from tests.integration.goshim import GoHost, go, module_go
from tests.integration.shim import Container, Host, host, module_host
from tests.integration.test_faults_limits import MIB, memory_of

__all__ = ["go", "host", "module_go", "module_host"]

SLEEP = ("/bin/sleep", "1000")
MUCH = 100_000_000
PATIENCE_S = 3
PRINT = f"head -c {MUCH} /dev/zero | tr '\\0' x"


def with_runtime(host: Host, folder: Path, **hooks: str) -> Container:
    """A container that is not created yet, whose runtime has ``hooks``."""
    container = host.container(*SLEEP)
    container.runtime = fake_runtime(folder, **hooks)
    return container


# --- It prints without end -----------------------------------------------------------------------


@pytest.mark.parametrize("action", ["create", "exec"])
def test_much_on_the_containers_stream(host: Host, tmp_path: Path, action: str) -> None:
    """More than a pipe holds: it is passed on as the container's own, as the Go shim does."""
    output = Reader(tmp_path / "out")
    container = with_runtime(host, tmp_path, **{f"before_{action}": f"{PRINT} >&2"})
    if action == "create":
        container.create(stderr=output.path)
        container.start()
    else:
        container.create()
        container.start()
        container.exec("e", "/bin/true", stderr=output.path)
        container.start("e")
        container.wait("e")
        container.delete("e")
    container.end()
    assert output.all() == b"x" * MUCH


def test_much_on_a_stream_of_its_own(host: Host, tmp_path: Path) -> None:
    """So much is kept of it that it may be used for an error, and memory is not used up."""
    hook = f"test -e {tmp_path}/worked || {{ {PRINT}; {PRINT} >&2; }}; : >{tmp_path}/worked"
    container = with_runtime(host, tmp_path, before_start=hook)
    container.create()
    container.start()
    container.end()


def test_a_huge_log(host: Host, tmp_path: Path) -> None:
    """The last error in it is found, and nobody else waits meanwhile."""
    line = '{"level":"error","msg":"what it is about"}'
    hook = f"truncate -s {MUCH} log.json; printf '\\n%s\\n' '{line}' >>log.json; exit 1"
    container = with_runtime(host, tmp_path, before_update=hook)
    container.create()
    container.start()
    (monitor,) = host.monitors()
    before = memory_of(monitor)
    with pytest.raises(StatusError) as caught:
        container.update()
    assert caught.value.message == "what it is about"
    assert memory_of(monitor) - before < MIB
    container.end()


def test_the_go_shim_keeps_all_that_is_printed(go: GoHost, tmp_path: Path) -> None:
    """In its memory, and does not give it back."""
    hook = f"test -e {tmp_path}/worked || {{ {PRINT}; {PRINT} >&2; }}; : >{tmp_path}/worked"
    container = with_runtime(go, tmp_path, before_start=hook)
    container.create()
    (shim,) = go.monitors()
    before = memory_of(shim)
    container.start()
    assert memory_of(shim) - before > MUCH


# --- It leaves something -------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["create", "start", "exec"])
def test_a_grandchild_that_keeps_what_it_got(host: Host, tmp_path: Path, action: str) -> None:
    """It holds the streams of the command, which may be the container's; nobody waits for it."""
    output = Reader(tmp_path / "out")
    hook = f"sh -c 'echo $$ >{tmp_path}/pid; exec sleep 1000' & true"
    container = with_runtime(host, tmp_path, **{f"after_{action}": hook})
    container.create(stdout=output.path, stderr=output.path)
    container.start()
    if action == "exec":
        assert container.run("e", "/bin/sh", "-c", "exit 3") == 3
    container.kill()
    container.wait()
    container.delete()
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    container.leave()
    assert output.all() == b""


def test_the_go_shim_waits_for_a_grandchild(go: GoHost, tmp_path: Path) -> None:
    hook = f"sh -c 'echo $$ >{tmp_path}/pid; exec sleep 1000' & true"
    container = with_runtime(go, tmp_path, after_start=hook)
    container.create()
    started = container.send("Start", task_pb2.StartRequest(id=container.name))
    with pytest.raises(TimeoutError):
        container.client.receive(started, PATIENCE_S)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert container.receive(started, task_pb2.StartResponse).pid


# --- It writes nonsense --------------------------------------------------------------------------


@pytest.fixture
def innocent() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with any container."""
    process = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait(BOUND_S)


NONSENSE = ["", "no number", "-1", "0", "1", "99999999999999999999", "INNOCENT"]


@pytest.mark.parametrize("text", NONSENSE)
def test_a_pid_file_that_names_no_process_of_the_container(
    host: Host, tmp_path: Path, innocent: subprocess.Popen[bytes], text: str
) -> None:
    """What has been made is removed, and nobody else's process is hit."""
    text = text.replace("INNOCENT", str(innocent.pid))
    once = f"test -e {tmp_path}/{{0}} || printf '{text}' >{{0}}.pid; : >{tmp_path}/{{0}}"
    hooks = {"after_create": once.format("init"), "after_exec": once.format("e")}
    container = with_runtime(host, tmp_path, **hooks)
    with pytest.raises(StatusError) as caught:
        container.create()
    is_told(caught.value, container.bundle / "init.pid", text)
    container.create()
    container.start()
    container.exec("e", *SLEEP)
    with pytest.raises(StatusError) as caught:
        container.start("e")
    is_told(caught.value, container.bundle / "e.pid", text)
    container.delete("e")
    assert container.run("e", "/bin/sh", "-c", "exit 3") == 3
    container.end()
    assert innocent.poll() is None


def is_told(error: StatusError, path: Path, text: str) -> None:
    """The error says what was wrong: with the file, or with the process that it names."""
    if text.isdigit() and 0 < int(text) <= 4194304:
        assert f"process {text}, which the OCI runtime started, has gone" in error.message
    else:
        assert f"{path}: the OCI runtime has left no pid there but" in error.message


def test_the_go_shim_kills_whom_a_pid_file_names(
    go: GoHost, tmp_path: Path, innocent: subprocess.Popen[bytes]
) -> None:
    container = go.container(*SLEEP)
    hook = f"printf {innocent.pid} >{container.bundle}/e.pid"
    container.runtime = fake_runtime(tmp_path, after_exec=hook)
    container.create()
    container.start()
    container.exec("e", *SLEEP)
    assert container.start("e") == innocent.pid
    container.kill(exec_id="e")
    eventually(lambda: innocent.poll() == -signal.SIGKILL, "it has been killed")
