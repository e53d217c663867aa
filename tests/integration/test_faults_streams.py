"""Whoever takes a container's output stops taking it: the container may wait, and nobody else."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyshim.api import task_pb2
from pyshim.stdio.streams import waiting
from pyshim.ttrpc.status import Code, StatusError
from tests.integration.containerd import eventually
from tests.integration.fifos import fifo
from tests.integration.goshim import GoHost, go, module_go
from tests.integration.shim import KILLED, Container, Host, host
from tests.integration.test_catalogue_stdio import logging_binary

__all__ = ["go", "host", "module_go"]

READY_S = 5
STOP = "echo $$ >pid; echo >&5; exec 5>&-; kill -STOP $$"
DIE = "echo $$ >pid; echo >&5; exit 1"
WRITER = ("/bin/sh", "-c", "trap '' PIPE; while :; do echo 0123456789abcdef; done")


@pytest.fixture(scope="module")
def module_host(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host on which a logging binary has to be ready soon."""
    made = Host(tmp_path_factory.mktemp("h"), rootfs)
    made.env["PYSHIM_LOGGER_READY_S"] = str(READY_S)
    try:
        yield made
    finally:
        made.end()


def goes_on(container: Container) -> None:
    """Everything but the container's writing; its deletion too."""
    assert container.state().status == task_pb2.RUNNING
    assert container.run("e", "/bin/sh", "-c", "exit 3") == 3
    container.kill()
    assert container.wait().exit_status == KILLED
    assert container.delete().exit_status == KILLED


@pytest.mark.parametrize("shim", ["ours", "go"])
def test_a_reader_that_never_reads(host: Host, go: GoHost, tmp_path: Path, shim: str) -> None:
    path = fifo(tmp_path / "out")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        where = host if shim == "ours" else go
        container = where.started("/bin/yes", stdout=path, stderr=path)
        eventually(lambda: waiting(reader) and is_full(path), "the fifo is full")
        goes_on(container)
        if shim == "ours":
            container.leave()
    finally:
        os.close(reader)


def is_full(path: Path) -> bool:
    """Whether nobody could write to a fifo, whatever it holds."""
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        return not select.select([], [writer], [], 0)[1]
    finally:
        os.close(writer)


def alive(folder: Path) -> bool:
    """Whether the logging binary in ``folder`` has not ended."""
    return os.path.exists(f"/proc/{int((folder / 'pid').read_text())}")


def hung_before(host: Host, go: GoHost, folder: Path) -> None:
    """A logging binary that is never ready, and does not want to hear SIGTERM."""
    folders = [folder / "ours", folder / "go"]
    for each in folders:
        each.mkdir(parents=True)
    hang = "trap '' TERM; echo $$ >pid; while :; do sleep 0.1; done"
    ours, theirs = host.container(*WRITER), go.container(*WRITER)
    theirs.deadlines = False
    asked = theirs.send(
        "Create", theirs.create_request(stdout=f"binary://{logging_binary(folders[1], hang)}")
    )
    with pytest.raises(StatusError) as caught:
        ours.create(stdout=f"binary://{logging_binary(folders[0], hang)}")
    assert caught.value.code == Code.DEADLINE_EXCEEDED
    assert caught.value.message == f"the logging binary was not ready within {READY_S} s"
    eventually(lambda: not alive(folders[0]), "it has ended")
    with pytest.raises(TimeoutError):  # the Go shim waits for ever
        theirs.client.receive(asked, 1)
    assert alive(folders[1])
    os.kill(int((folders[1] / "pid").read_text()), signal.SIGKILL)  # it would outlive its shim
    ours.create()
    ours.start()
    ours.end()


def hung_after(host: Host, folder: Path) -> None:
    """A logging binary that was ready, and then is stopped: not even SIGTERM ends it."""
    folder.mkdir()
    container = host.started(*WRITER, stdout=f"binary://{logging_binary(folder, STOP)}")
    goes_on(container)
    container.leave()
    assert not alive(folder)


def test_logging_binaries_that_hang(host: Host, go: GoHost, tmp_path: Path) -> None:
    """Both at once, since either takes as long as it is waited for."""
    with ThreadPoolExecutor(2) as pool:
        before = pool.submit(hung_before, host, go, tmp_path / "before")
        after = pool.submit(hung_after, host, tmp_path / "after")
        before.result()
        after.result()


def test_a_logging_binary_that_dies(host: Host, tmp_path: Path) -> None:
    container = host.started(*WRITER, stdout=f"binary://{logging_binary(tmp_path, DIE)}")
    goes_on(container)
    container.leave()
    assert not alive(tmp_path)
