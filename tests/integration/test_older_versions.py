"""Containers that an older version has started, and `pyshim upgrade` of this one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

import pyshim
from pyshim.api import task_pb2
from tests.integration import older
from tests.integration.conftest import eventually
from tests.integration.containerd import scripts
from tests.integration.fifos import Reader, fifo
from tests.integration.installations import Installation, install
from tests.integration.older import VERSION
from tests.integration.shim import Host

COUNT = "trap 'echo end; exit 7' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"
NEW = "2" * 16


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """This version."""
    return install(tmp_path_factory.mktemp("new"), NEW, scripts().absolute())


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The version before it."""
    return older.make(older.PREVIOUS, tmp_path_factory.mktemp("previous"))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """One that knows of no upgrades."""
    return older.make(older.FIRST, tmp_path_factory.mktemp("first"))


@pytest.fixture
def host(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host of its own for each test, on which nothing is left but a zygote."""
    made = Host(tmp_path_factory.mktemp("o"), rootfs)
    made.env["PYSHIM_PARK_DELAY_S"] = "0.2"
    try:
        yield made
        eventually(lambda: not made.monitors(), "the monitors have ended")
    finally:
        made.end()


def runs_under(host: Host, installation: Installation) -> None:
    """The next containers of ``host`` do."""
    host.programs = installation.bin
    host.env["PATH"] = f"{installation.bin}:{os.environ['PATH']}"


def assert_counted(text: bytes) -> None:
    """What COUNT has written came, all of it and once."""
    *numbers, end, nothing = text.decode().split("\n")
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    assert (end, nothing) == ("end", "")


def test_the_previous_version_is_taken_over(
    host: Host, previous: Installation, new: Installation, tmp_path: Path
) -> None:
    """Its state, its monitor's snapshot, and all that these hold; then there is no way back."""
    runs_under(host, previous)
    output, stdin, echoed = Reader(tmp_path / "out"), fifo(tmp_path / "in"), Reader(tmp_path / "e")
    container = host.started("/bin/sh", "-c", COUNT, stdout=output.path)
    container.exec("e", "/bin/cat", stdin=stdin, stdout=echoed.path)
    container.start("e")
    assert container.run("gone", "/bin/sh", "-c", "exit 4") == 4
    waits = [container.send_wait(), container.send_wait("e")]
    pids = (container.state().pid, container.state("e").pid)
    (monitor,) = host.monitors()
    with stdin.open("wb", buffering=0) as writer:
        writer.write(b"before\n")
        done = new.upgrade(f"{host.bundles}/*", env=host.env)
        assert (done.returncode, done.stderr) == (0, "")
        versions = f"{VERSION} (00000000) -> {pyshim.__version__} ({NEW[:8]})"
        assert done.stdout == f"b/{container.name}  {versions}  pid {monitor}  ok\n"
        assert os.readlink(f"/proc/{monitor}/exe") == str(new.bin / "pyshim-monitor")
        assert (container.state().pid, container.state("e").pid) == pids
        assert container.run("f", "/bin/sh", "-c", "exit 5") == 5
        # What the previous version could not read any more.
        done = previous.upgrade(f"{host.bundles}/*", env=host.env)
        assert done.returncode == 1
        assert "failed: not upgraded: the new version cannot go on from what" in done.stdout
        assert done.stdout.count("\n") == 1
        assert (container.state().pid, container.state("e").pid) == pids
        writer.write(b"after\n")
    close = task_pb2.CloseIORequest(id=container.name, exec_id="e", stdin=True)
    container.call("CloseIO", close, Empty)
    assert container.receive(waits[1], task_pb2.WaitResponse).exit_status == 0
    assert container.delete("e").exit_status == 0
    container.kill(signal.SIGTERM)
    assert container.receive(waits[0], task_pb2.WaitResponse).exit_status == 7
    container.finish()
    assert echoed.all() == b"before\nafter\n"
    assert_counted(output.all())
    execs = ["exec-added", "exec-started", "exit"]
    eventually(lambda: "delete" in host.events.topics(container.name), "all events")
    told = host.events.topics(container.name)
    assert sorted(told) == sorted(["create", "start", *execs * 3, "exit", "delete"])


@pytest.mark.parametrize("services", ["old", "new"])
def test_a_monitor_that_knows_of_no_upgrades_is_left_alone(
    host: Host, first: Installation, new: Installation, tmp_path: Path, services: str
) -> None:
    """And said in one line, whether or not its services are of this version by now."""
    there = first
    if services == "new":
        # What pip does, whose files a monitor's services are executed from.
        there = older.make(older.FIRST, tmp_path / "there")
    runs_under(host, there)
    output = Reader(tmp_path / "out")
    container = host.started("/bin/sh", "-c", COUNT, stdout=output.path)
    init, (monitor,) = container.state().pid, host.monitors()
    program = os.readlink(f"/proc/{monitor}/exe")
    eventually(lambda: not host.services(), "the service has parked")
    if services == "new":
        for pid in host.zygotes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(there.package)
        shutil.copytree(new.package, there.package)
    for _ in range(2):
        done = new.upgrade(f"{host.bundles}/*", env=host.env)
        assert (done.returncode, done.stderr) == (1, "")
        versions = f"{VERSION} (ffffffff)  pid {monitor}  failed: "
        assert done.stdout.startswith(f"b/{container.name}  {versions}it"), done.stdout
        assert "is of a version that cannot be replaced" in done.stdout
        assert done.stdout.count("\n") == 1
    assert host.monitors() == [monitor]
    assert os.readlink(f"/proc/{monitor}/exe") == program
    assert container.state().pid == init
    assert container.run("e", "/bin/sh", "-c", "exit 5") == 5
    container.kill(signal.SIGTERM)
    assert container.wait().exit_status == 7
    container.finish()
    assert_counted(output.all())
