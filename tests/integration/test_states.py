"""The states of other versions, in a real monitor with real services."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyshim.api import state_pb2, task_pb2
from pyshim.service.migrations import STATE_VERSION
from pyshim.ttrpc.client import Client
from tests.integration import test_monitor
from tests.integration.conftest import BOUND_S, eventually, plain_only
from tests.integration.containerd import parent_of, processes_of
from tests.integration.test_monitor import Monitor
from tests.unit.test_migrations import recorded

pytestmark = plain_only  # it is about the services


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A bundle; what is started by its monitor ends with the test."""
    monkeypatch.setenv("PYSHIM_RUNTIME_DIR", str(tmp_path / "run"))
    yield tmp_path
    eventually(lambda: not killed(tmp_path), "all processes have ended")


def killed(home: Path) -> list[int]:
    """The processes that were there, and have SIGKILL now."""
    found = list(processes_of(home))
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


def monitor_with(
    state: state_pb2.State, programs: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> Monitor:
    """A monitor whose first state is ``state``, and which executes its services itself."""
    state.bundle = str(home)
    blob, memfd = state.SerializeToString(), test_monitor.memfd
    monkeypatch.setattr(test_monitor, "memfd", lambda _: memfd(blob))
    return Monitor(programs / "pyshim-monitor", home, sys.executable, zygote=False)


def state_of(monitor: Monitor) -> state_pb2.State:
    """What the monitor holds; it may be taking another at this moment."""
    found: list[state_pb2.State] = []

    def is_found() -> bool:
        for fd in Path(f"/proc/{monitor.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if "memfd:" in os.readlink(fd):
                    found.append(state_pb2.State.FromString(fd.read_bytes()))
        return bool(found)

    eventually(is_found, "the monitor holds a state")
    return found[-1]


def test_a_service_goes_on_from_the_previous_version(
    programs: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = monitor_with(recorded(1), programs, home, monkeypatch)
    try:
        with Client(monitor.address, BOUND_S) as client:
            request = task_pb2.StateRequest(id="c2", exec_id="e")
            service = "containerd.task.v2.Task"
            reply = client.call(service, "State", request, task_pb2.StateResponse, BOUND_S)
        assert (reply.pid, reply.status) == (19592, task_pb2.RUNNING)
        eventually(lambda: state_of(monitor).version == STATE_VERSION, "the state is brought up")
        assert state_of(monitor).deleted == recorded(1).deleted
    finally:
        monitor.end()


def test_a_newer_state_is_refused_and_kept(
    programs: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every service says what to do and ends; the monitor goes on, for one that knows the state."""
    newer = recorded(1)
    newer.version = STATE_VERSION + 1
    os.mkfifo(home / "log")
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(read_some(home / "log")))
    reader.start()
    monitor = monitor_with(newer, programs, home, monkeypatch)
    try:
        monitor.connect()
        reader.join(BOUND_S)
        assert f"version {STATE_VERSION + 1}, and this pyshim knows {STATE_VERSION}" in lines[0]
        assert "pyshim upgrade" in lines[0]
        assert monitor.process.poll() is None
        assert state_of(monitor) == newer
    finally:
        reader.join(BOUND_S)
        monitor.end()
        eventually(lambda: not services_of(monitor), "the services have ended")


def read_some(path: Path) -> list[str]:
    """The first line of a fifo."""
    with path.open() as file:
        return [file.readline()]


def services_of(monitor: Monitor) -> list[int]:
    """The services that the monitor has executed."""
    pid = monitor.process.pid
    return [p for p in processes_of(monitor.home) if parent_of(p) == pid]
