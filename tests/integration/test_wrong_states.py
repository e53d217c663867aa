"""Every call in every state of a container and of an exec, over the wire.

The tables here are the Go shim's answers (spec/shim.md 2.10), written down once more, so that they
check those of ``pyshim.service.states`` and not themselves.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from pyshim.api import task_pb2
from pyshim.ttrpc.status import Code, StatusError
from tests.integration.containerd import eventually
from tests.integration.fake_runtime import Gate, fake_runtime
from tests.integration.shim import Container, Host, host, module_host

__all__ = ["host", "module_host"]

SLEEP = ("/bin/sleep", "1000")
PLAIN = Code.UNKNOWN
CREATED, RUNNING, PAUSED, STOPPED = (
    task_pb2.CREATED,
    task_pb2.RUNNING,
    task_pb2.PAUSED,
    task_pb2.STOPPED,
)


def make_created(host: Host) -> Container:
    container = host.container(*SLEEP)
    container.create()
    return container


def make_restorable(host: Host) -> Container:
    container = host.container(*SLEEP)
    request = container.create_request()
    request.checkpoint = "/nonexistent/images"
    container.call("Create", request, task_pb2.CreateTaskResponse)
    return container


def make_running(host: Host) -> Container:
    return host.started(*SLEEP)


def make_paused(host: Host) -> Container:
    container = make_running(host)
    call_of(container, "Pause")
    return container


def make_stopped(host: Host) -> Container:
    container = make_running(host)
    container.kill()
    container.wait()
    return container


def make_deleted(host: Host) -> Container:
    """Deleted, but the shim has not heard Shutdown yet."""
    container = make_stopped(host)
    container.delete()
    return container


STATES: dict[str, Callable[[Host], Container]] = {
    "created": make_created,
    "restorable": make_restorable,
    "running": make_running,
    "paused": make_paused,
    "stopped": make_stopped,
    "deleted": make_deleted,
}


def call_of(container: Container, method: str, exec_id: str = "") -> None:
    """A call with what belongs into its request; raises StatusError."""
    name = container.name
    reply: type[Message] = Empty
    request: Message
    if method == "Start":
        request, reply = task_pb2.StartRequest(id=name, exec_id=exec_id), task_pb2.StartResponse
    elif method == "Delete":
        request, reply = task_pb2.DeleteRequest(id=name, exec_id=exec_id), task_pb2.DeleteResponse
    elif method == "Kill":
        request = task_pb2.KillRequest(id=name, exec_id=exec_id, signal=9)
    elif method == "Exec":
        request = container.exec_request("new", "/bin/true")
    elif method == "Update":
        request = task_pb2.UpdateTaskRequest(id=name)
        request.resources.value = json.dumps({"pids": {"limit": 100}}).encode()
    elif method == "Checkpoint":
        request = task_pb2.CheckpointTaskRequest(id=name, path="/nonexistent/images")
    elif method == "ResizePty":
        request = task_pb2.ResizePtyRequest(id=name, exec_id=exec_id, width=80, height=24)
    elif method == "CloseIO":
        request = task_pb2.CloseIORequest(id=name, exec_id=exec_id, stdin=True)
    elif method == "Stats":
        request, reply = task_pb2.StatsRequest(id=name), task_pb2.StatsResponse
    elif method == "Pids":
        request, reply = task_pb2.PidsRequest(id=name), task_pb2.PidsResponse
    elif method == "State":
        request, reply = task_pb2.StateRequest(id=name, exec_id=exec_id), task_pb2.StateResponse
    elif method == "Connect":
        request, reply = task_pb2.ConnectRequest(id=name), task_pb2.ConnectResponse
    else:
        request = {"Pause": task_pb2.PauseRequest, "Resume": task_pb2.ResumeRequest}[method](
            id=name
        )
    container.call(method, request, reply)


def error_of(container: Container, method: str, exec_id: str = "") -> tuple[int, str]:
    """The code and the message of a call that must fail."""
    with pytest.raises(StatusError) as caught:
        call_of(container, method, exec_id)
    return caught.value.code, caught.value.message


def remove(container: Container) -> None:
    """Whatever its state."""
    container.leave()


WRONG: dict[str, dict[str, tuple[int, str]]] = {
    "created": {
        "Pause": (PLAIN, "cannot pause task in created state"),
        "Resume": (PLAIN, "cannot resume task in created state"),
        "Checkpoint": (PLAIN, "cannot checkpoint a task in created state"),
    },
    "restorable": {
        "Pause": (PLAIN, "cannot pause task in created state"),
        "Resume": (PLAIN, "cannot resume task in created state"),
        "Exec": (PLAIN, "cannot exec in a created state"),
        "Checkpoint": (PLAIN, "cannot checkpoint a task in created state"),
        "Stats": (Code.NOT_FOUND, "cgroup does not exist"),
        "Kill": (Code.NOT_FOUND, "process already finished"),
    },
    "running": {
        "Start": (PLAIN, "cannot start a running process"),
        "Delete": (PLAIN, "cannot delete a running process"),
        "Resume": (PLAIN, "cannot resume a running process"),
    },
    "paused": {
        "Start": (PLAIN, "cannot start a paused process"),
        "Delete": (PLAIN, "cannot delete a paused process"),
        "Pause": (PLAIN, "cannot pause a paused container"),
        "Exec": (PLAIN, "cannot exec in a paused state"),
    },
    "stopped": {
        "Start": (PLAIN, "cannot start a stopped process"),
        "Kill": (Code.NOT_FOUND, "process already finished"),
        "Pause": (PLAIN, "cannot pause a stopped container"),
        "Resume": (PLAIN, "cannot resume a stopped container"),
        "Update": (PLAIN, "cannot update a stopped container"),
        "Exec": (PLAIN, "cannot exec in a stopped state"),
        "Checkpoint": (PLAIN, "cannot checkpoint a stopped container"),
        "Stats": (Code.NOT_FOUND, "cgroup does not exist"),
    },
}
DELETED = ("Start", "Kill", "Pause", "Resume", "Update", "Exec", "Checkpoint", "ResizePty")
DELETED += ("CloseIO", "Stats", "Pids", "State")


@pytest.mark.parametrize("state", WRONG)
def test_what_a_container_refuses(host: Host, state: str) -> None:
    container = STATES[state](host)
    before = container.state().status
    for method, expected in WRONG[state].items():
        assert error_of(container, method) == expected, method
    assert container.state().status == before
    remove(container)


def test_a_deleted_container_is_not_found(host: Host) -> None:
    container = make_deleted(host)
    for method in DELETED:
        code, message = error_of(container, method)
        assert code == Code.NOT_FOUND, method
        assert "container not created" in message
    call_of(container, "Connect")
    remove(container)


# What is allowed, and the state that it leads to.
RIGHT: dict[str, dict[str, int]] = {
    "created": {
        "Start": RUNNING,
        "Kill": STOPPED,
        "Update": CREATED,
        "Exec": CREATED,
        "ResizePty": CREATED,
        "CloseIO": CREATED,
        "Stats": CREATED,
        "Pids": CREATED,
        "Connect": CREATED,
    },
    "restorable": {"Pids": CREATED, "ResizePty": CREATED, "CloseIO": CREATED, "Connect": CREATED},
    "running": {
        "Kill": STOPPED,
        "Pause": PAUSED,
        "Update": RUNNING,
        "Exec": RUNNING,
        "ResizePty": RUNNING,
        "CloseIO": RUNNING,
        "Stats": RUNNING,
        "Pids": RUNNING,
        "Connect": RUNNING,
    },
    "paused": {
        "Kill": STOPPED,
        "Resume": RUNNING,
        "Update": PAUSED,
        "ResizePty": PAUSED,
        "CloseIO": PAUSED,
        "Stats": PAUSED,
        "Pids": PAUSED,
        "Connect": PAUSED,
    },
    "stopped": {"ResizePty": STOPPED, "CloseIO": STOPPED, "Pids": STOPPED, "Connect": STOPPED},
}
CELLS = [(state, method) for state, row in RIGHT.items() for method in row]


@pytest.mark.parametrize(("state", "method"), CELLS)
def test_what_a_container_obeys(host: Host, state: str, method: str) -> None:
    container = STATES[state](host)
    call_of(container, method)
    expected = RIGHT[state][method]
    eventually(lambda: container.state().status == expected, f"{method} has had its effect")
    remove(container)


@pytest.mark.parametrize("state", ["created", "restorable", "stopped"])
def test_where_a_container_can_be_deleted(host: Host, state: str) -> None:
    container = STATES[state](host)
    first = container.delete()
    assert container.delete() == first  # asked again, it has the same answer
    assert error_of(container, "State")[0] == Code.NOT_FOUND
    remove(container)


def test_a_container_is_pausing_while_the_runtime_is_at_it(host: Host, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    runtime = fake_runtime(tmp_path, before_pause=gate.text)
    container = host.started(*SLEEP, runtime=runtime)
    container.exec("e", *SLEEP)
    stream = container.send("Pause", task_pb2.PauseRequest(id=container.name))
    eventually(gate.reached, "the runtime has been called")
    assert container.state().status == task_pb2.PAUSING
    gate.open()
    container.receive(stream, Empty)
    assert container.state().status == PAUSED
    assert container.state("e").status == PAUSED
    call_of(container, "Resume")
    assert container.state("e").status == CREATED
    container.end()


@pytest.mark.parametrize("method", ["Delete", "Kill"])
def test_what_is_being_started_is_waited_for(
    running: Container, tmp_path: Path, method: str
) -> None:
    """Else it would be forgotten, and run on; here a runtime that is slow at both of its ends."""
    host = running.host
    gate = Gate(tmp_path)
    container = host.started(*SLEEP, runtime=fake_runtime(tmp_path, after_exec=gate.text))
    container.exec("e", *SLEEP)
    start = container.send("Start", task_pb2.StartRequest(id=container.name, exec_id="e"))
    eventually(gate.reached, "the runtime has made the process")
    request = {
        "Delete": task_pb2.DeleteRequest(id=container.name, exec_id="e"),
        "Kill": task_pb2.KillRequest(id=container.name, exec_id="e", signal=9),
    }[method]
    stream = container.send(method, request)
    gate.open()
    assert container.receive(start, task_pb2.StartResponse).pid > 0
    if method == "Delete":
        with pytest.raises(StatusError, match="cannot delete a running process"):
            container.receive(stream, task_pb2.DeleteResponse)
        container.kill(exec_id="e")
    else:
        container.receive(stream, Empty)
    assert container.wait("e").exit_status == 137
    container.delete("e")
    container.end()


def test_what_cannot_be_connected_does_not_run_on(running: Container, tmp_path: Path) -> None:
    """The runtime has made it by then, when it is one with a terminal."""
    script = "trap '' HUP; while :; do sleep 0.1; done"
    missing = str(tmp_path / "missing")
    running.exec("e", "/bin/sh", "-c", script, stdin=missing, terminal=True)
    with pytest.raises(StatusError, match="missing"):
        running.start("e")
    request = task_pb2.PidsRequest(id=running.name)

    def alone() -> bool:
        found = running.call("Pids", request, task_pb2.PidsResponse).processes
        return [process.pid for process in found] == [running.state().pid]

    eventually(alone, "only the init is left")
    running.delete("e")


def test_a_create_that_cannot_be_connected_may_be_repeated(host: Host, tmp_path: Path) -> None:
    container = host.container("/bin/sh", "-c", "trap '' HUP; sleep 1000", edit=with_terminal)
    with pytest.raises(StatusError, match="missing"):
        container.create(stdin=tmp_path / "missing", terminal=True)
    os.mkfifo(tmp_path / "there")
    container.create(stdin=tmp_path / "there", terminal=True)
    container.start()
    container.end()


def with_terminal(spec: dict[str, Any]) -> None:
    spec["process"]["terminal"] = True


def test_a_size_that_no_terminal_has(running: Container) -> None:
    request = task_pb2.ResizePtyRequest(id=running.name, width=70_000, height=1)
    with pytest.raises(StatusError) as caught:
        running.call("ResizePty", request, Empty)
    assert caught.value.code == Code.INVALID_ARGUMENT


def test_a_signal_that_there_is_not(host: Host) -> None:
    container = make_running(host)
    for number in (65, 2**31, 2**32 - 1):
        request = task_pb2.KillRequest(id=container.name, signal=number)
        with pytest.raises(StatusError, match="Invalid argument"):
            container.call("Kill", request, Empty)
    container.end()


def test_who_waits_for_what_never_ran_is_answered_at_its_end(host: Host) -> None:
    container = make_restorable(host)
    stream = container.send_wait()
    container.delete()
    assert container.receive(stream, task_pb2.WaitResponse).exit_status == 0
    container.leave()


# --- Execs ---------------------------------------------------------------------------------------


@pytest.fixture
def running(host: Host) -> Iterator[Container]:
    container = make_running(host)
    yield container
    container.end()


EXEC_WRONG: dict[str, dict[str, tuple[int, str]]] = {
    "created": {"Kill": (Code.FAILED_PRECONDITION, "process not created")},
    "running": {
        "Start": (PLAIN, "cannot start a running process"),
        "Delete": (PLAIN, "cannot delete a running process"),
    },
    "stopped": {
        "Start": (PLAIN, "cannot start a stopped process"),
        "Kill": (Code.NOT_FOUND, "process already finished"),
        "ResizePty": (PLAIN, "cannot resize a stopped container"),
    },
}


def make_exec(container: Container, state: str) -> None:
    """The exec ``e`` in a state."""
    container.exec("e", *SLEEP)
    if state != "created":
        container.start("e")
    if state == "stopped":
        container.kill(exec_id="e")
        assert container.wait("e").exit_status == 137


@pytest.mark.parametrize("state", EXEC_WRONG)
def test_what_an_exec_refuses(running: Container, state: str) -> None:
    make_exec(running, state)
    before = running.state("e").status
    for method, expected in EXEC_WRONG[state].items():
        assert error_of(running, method, "e") == expected, method
    assert running.state("e").status == before
    again = running.exec_request("e", "/bin/true")
    with pytest.raises(StatusError) as caught:
        running.call("Exec", again, Empty)
    assert caught.value.code == Code.ALREADY_EXISTS


EXEC_RIGHT: dict[str, dict[str, int]] = {
    "created": {"Start": RUNNING, "ResizePty": CREATED, "CloseIO": CREATED},
    "running": {"Kill": STOPPED, "ResizePty": RUNNING, "CloseIO": RUNNING},
    "stopped": {"CloseIO": STOPPED},
}
EXEC_CELLS = [(state, method) for state, row in EXEC_RIGHT.items() for method in row]


@pytest.mark.parametrize(("state", "method"), EXEC_CELLS)
def test_what_an_exec_obeys(running: Container, state: str, method: str) -> None:
    make_exec(running, state)
    call_of(running, method, "e")
    expected = EXEC_RIGHT[state][method]
    eventually(lambda: running.state("e").status == expected, f"{method} has had its effect")


@pytest.mark.parametrize("state", ["created", "stopped"])
def test_where_an_exec_can_be_deleted(running: Container, state: str) -> None:
    make_exec(running, state)
    first = running.delete("e")
    assert running.delete("e") == first
    for method in ("Start", "Kill", "State", "ResizePty", "CloseIO"):
        assert error_of(running, method, "e")[0] == Code.NOT_FOUND, method
    assert running.run("e", "/bin/sh", "-c", "exit 3") == 3  # the id is free again
