"""How long a service stays for whom."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyshim.api import task_pb2
from tests.integration.containerd import eventually
from tests.integration.shim import Host


@pytest.fixture
def patient(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host whose services do not park by themselves within a test."""
    made = Host(tmp_path_factory.mktemp("p"), rootfs)
    made.env["PYSHIM_PARK_DELAY_S"] = "1000"
    try:
        yield made
    finally:
        made.end()


def test_statistics_alone_keep_no_service(patient: Host) -> None:
    """Polled every few seconds, services would be there most of the time."""
    container = patient.started("/bin/sleep", "1000")
    assert patient.services()
    request = task_pb2.StatsRequest(id=container.name)
    # One that has been killed is followed by one that nobody has asked for anything yet.
    patient.kill_services()
    for _ in range(2):
        assert container.call("Stats", request, task_pb2.StatsResponse).stats.value
        eventually(lambda: not patient.services(), "the service has parked")
    pid = container.state().pid
    assert patient.services()
    os.kill(pid, 9)
    assert container.wait().exit_status == 137
    container.finish()
