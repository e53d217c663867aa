"""Start without the runtime: where runc would only read a fifo, and where it would do more."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyshim.api import task_pb2
from pyshim.ttrpc.status import StatusError
from tests.integration.containerd import RUNC_ROOT, eventually
from tests.integration.shim import (
    KILLED,
    Container,
    Edit,
    Host,
    host,
    module_host,
    opened,
    unedited,
)

__all__ = ["host", "module_host"]

SLEEP = ("/bin/sleep", "1000")
FIFO = "exec.fifo"


def make_known(host: Host, runtime: Path) -> None:
    """Uses a runtime twice, so that the zygote looks at it."""
    container = host.started(*SLEEP, runtime=runtime)
    for _ in range(2):
        eventually(lambda: not host.services(), "the service has parked")
        assert container.run("e", "/bin/true") == 0
    eventually(host.has_copy, "there is a copy")
    container.end()


@pytest.fixture
def runtime(host: Host, tmp_path: Path) -> Path:
    """runc in a file of its own, which the zygote knows."""
    found = shutil.which("runc")
    assert found
    path = Path(shutil.copy(found, tmp_path / "runc"))
    make_known(host, path)
    return path


def folder(container: Container) -> Path:
    """Where the runtime keeps a container."""
    return RUNC_ROOT / container.host.namespace / container.name


@contextlib.contextmanager
def useless_runtime(container: Container) -> Iterator[None]:
    """Meanwhile no command of the runtime succeeds for the container: its state is unreadable."""
    state = folder(container) / "state.json"
    content = state.read_bytes()
    state.write_text("{")
    try:
        yield
    finally:
        state.write_bytes(content)


def created(host: Host, runtime: Path, *command: str, edit: Edit = unedited) -> Container:
    """A container whose init waits in the fifo."""
    container = host.container(*command, edit=edit)
    container.create(runtime=runtime)
    assert (folder(container) / FIFO).is_fifo()
    return container


def test_the_runtime_is_not_needed(host: Host, runtime: Path) -> None:
    container = created(host, runtime, "/bin/sh", "-c", "exit 3")
    with useless_runtime(container):
        container.start()
        assert container.wait().exit_status == 3
    assert not (folder(container) / FIFO).exists()
    container.finish()
    assert host.events.topics(container.name) == ["create", "start", "exit", "delete"]


def test_it_runs_when_start_is_answered(host: Host, runtime: Path) -> None:
    """And the runtime takes it for running."""
    container = created(host, runtime, *SLEEP)
    pid = container.start()
    # The kernel closes the fifo a moment before it renames the process.
    comm = Path(f"/proc/{pid}/comm")
    eventually(lambda: comm.read_text() == "sleep\n", "the program has been executed")
    with pytest.raises(StatusError, match="cannot start a running process"):
        container.start()
    container.call("Pause", task_pb2.PauseRequest(id=container.name), task_pb2.PauseRequest)
    container.call("Resume", task_pb2.ResumeRequest(id=container.name), task_pb2.ResumeRequest)
    assert container.run("e", "/bin/true") == 0
    container.end()


def with_hook(name: str) -> Edit:
    """A hook of this kind, which does nothing."""

    def edit(spec: dict[str, Any]) -> None:
        spec["hooks"] = {name: [{"path": "/bin/true", "args": ["true"]}]}

    return edit


@pytest.mark.parametrize("name", ["poststart", "PostStart"])
def test_the_runtime_runs_the_hooks_of_the_start(host: Host, runtime: Path, name: str) -> None:
    container = created(host, runtime, *SLEEP, edit=with_hook(name))
    with useless_runtime(container), pytest.raises(StatusError, match="OCI runtime start failed"):
        container.start()
    container.start()
    container.end()


def test_other_hooks_are_not_those_of_the_start(host: Host, runtime: Path) -> None:
    container = created(host, runtime, *SLEEP, edit=with_hook("prestart"))
    with useless_runtime(container):
        container.start()
    container.end()


def test_one_that_is_named_runc_and_is_not_is_asked(
    host: Host, runtime: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    wrapper = tmp_path / "other/runc"
    wrapper.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/asked\nexec {runtime} "$@"\n')
    wrapper.chmod(0o755)
    container = created(host, wrapper, *SLEEP)
    container.start()
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [f" start {container.name}" in line for line in asked] == [False, True]
    container.end()


def test_one_that_was_replaced_is_asked(host: Host, runtime: Path, tmp_path: Path) -> None:
    container = created(host, runtime, *SLEEP)
    shutil.copy(runtime, tmp_path / "draft").rename(runtime)
    with useless_runtime(container), pytest.raises(StatusError, match="OCI runtime start failed"):
        container.start()
    container.start()
    container.end()


def test_an_init_that_ends_instead_of_going_on(host: Host, runtime: Path) -> None:
    """The runtime says what is wrong."""
    container = host.container(*SLEEP)
    pid = container.create(runtime=runtime)
    os.kill(pid, signal.SIGSTOP)
    request = task_pb2.StartRequest(id=container.name)
    starting = container.send("Start", request)
    eventually(lambda: waits_no_more(container), "the fifo has a reader")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(StatusError, match="OCI runtime start failed: cannot start"):
        container.receive(starting, task_pb2.StartResponse)
    assert container.wait().exit_status == KILLED
    container.finish()
    assert host.events.topics(container.name) == ["create", "exit", "delete"]


def waits_no_more(container: Container) -> bool:
    """Whether the init's fifo has a reader, as the monitor's descriptors say."""
    path = str(folder(container) / FIFO)
    return any(path in opened(pid) for pid in container.host.monitors())


def test_a_fifo_that_has_gone(host: Host, runtime: Path) -> None:
    container = created(host, runtime, *SLEEP)
    (folder(container) / FIFO).rename(folder(container) / "other")
    with pytest.raises(StatusError, match="OCI runtime start failed"):
        container.start()
    (folder(container) / "other").rename(folder(container) / FIFO)
    container.start()
    container.end()
