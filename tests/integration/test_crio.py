"""CRI-O's mode "vm": every point of spec/crio-vm.md that a shim can meet."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from pyshim.api import cgroups1_pb2, cgroups2_pb2, task_pb2
from pyshim.ttrpc.status import Code, StatusError
from tests.integration.containerd import eventually
from tests.integration.crio import CrioContainer
from tests.integration.shim import Host

SLEEP = ("/bin/sleep", "1000")
MIB = 1024 * 1024
SPEC = "types.containerd.io/opencontainers/runtime-spec/1"


@pytest.fixture(scope="module")
def crio_host(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host without a daemon that takes events."""
    made = Host(tmp_path_factory.mktemp("crio"), rootfs)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def host(crio_host: Host) -> Iterator[Host]:
    """A host on which nothing is left after the test but a zygote."""
    try:
        yield crio_host
        eventually(lambda: not crio_host.monitors(), "the monitors have ended")
        assert list(crio_host.sockets.glob("*")) == []
    finally:
        for folder in crio_host.bundles.iterdir():
            shutil.rmtree(folder)
        crio_host.clear()


def test_a_pod_of_two_shares_a_shim_until_both_are_deleted(host: Host) -> None:
    pause = CrioContainer(host, "pod1", "pod1", *SLEEP)
    pause.create()
    pause.start()
    app = CrioContainer(host, "app1", "pod1", "/bin/sh", "-c", "echo out; echo err >&2; exit 5")
    assert (pause.bundle / "address").read_text() == (app.bundle / "address").read_text()
    assert len(host.monitors()) == 1
    app.create()
    app.start()
    assert app.wait() == 5
    assert (app.out.text(), app.err.text()) == ("out\n", "err\n")
    app.delete()  # with a Shutdown, which must not end the pod's shim
    assert pause.state().status == task_pb2.RUNNING
    pause.kill(signal.SIGKILL)
    assert pause.wait() == 137
    pause.delete()


def test_a_restarted_crio_finds_everything_again(host: Host) -> None:
    container = CrioContainer(host, "again", "again", *SLEEP)
    container.create()
    container.start()
    container.restart()
    found = container.state()
    assert (found.stdout, found.stderr) == tuple(str(container.fifos[e]) for e in ("out", "err"))
    container.kill(0)  # it lives
    container.kill(signal.SIGKILL)
    assert container.wait() == 137
    container.restart()
    assert container.wait() == 137  # of what is dead already
    with pytest.raises(StatusError) as caught:
        container.kill(0)
    assert caught.value.code == Code.NOT_FOUND
    container.delete()


def test_stats_fill_every_message_that_crio_follows(host: Host) -> None:
    container = CrioContainer(host, "counted", "counted", *SLEEP)
    comm = Path(f"/proc/{container.create()}/comm")
    container.start()
    # The kernel counts threads, and the runtime's init has some of them until it executes.
    eventually(lambda: comm.read_text() == "sleep\n", "the container's own program runs")
    stats = container.stats().stats
    if stats.type_url == "io.containerd.cgroups.v2.Metrics":
        newer = cgroups2_pb2.Metrics.FromString(stats.value)
        assert all(newer.HasField(name) for name in ("cpu", "memory", "pids"))
    else:
        assert stats.type_url == "io.containerd.cgroups.v1.Metrics"
        older = cgroups1_pb2.Metrics.FromString(stats.value)
        assert older.pids.current == 1
        assert older.cpu.HasField("usage") and older.cpu.HasField("throttling")
        entries = ("usage", "swap", "kernel", "kernel_tcp")
        assert all(older.memory.HasField(name) for name in entries)
    container.kill(signal.SIGKILL)
    container.wait()
    container.delete()


def test_an_oom_kill_leaves_a_file(host: Host) -> None:
    command = ("/bin/tail", "/dev/zero")
    container = CrioContainer(host, "big", "big", *command, memory=16 * MIB)
    container.create()
    container.start()
    assert container.wait() == 137
    assert (container.bundle / "oom").exists()
    container.delete()


def test_no_file_says_oom_without_one(host: Host) -> None:
    container = CrioContainer(host, "small", "small", "/bin/sh", "-c", "exit 1")
    container.create()
    container.start()
    assert container.wait() != 0
    assert not (container.bundle / "oom").exists()
    container.delete()


def test_the_log_goes_to_the_fifo(host: Host) -> None:
    container = CrioContainer(host, "logged", "logged", *SLEEP)
    container.create()
    container.start()
    with pytest.raises(StatusError):
        container.call("Pause", task_pb2.PauseRequest(id="no such"), Empty)
    eventually(lambda: b"call failed" in container.log.data, "a line about the failed call")
    lines = container.log.data.decode().splitlines()
    assert all(line.startswith('time="') and " level=" in line for line in lines)
    assert any('method="Create"' in line for line in lines)
    container.kill(signal.SIGKILL)
    container.wait()
    container.delete()


def test_a_log_that_nobody_reads_stops_nothing(host: Host) -> None:
    container = CrioContainer(host, "mute", "mute", *SLEEP)
    container.create()
    container.start()
    for _ in range(2000):  # with -debug, two lines each: more than a pipe holds
        container.state()
    container.kill(signal.SIGKILL)
    assert container.wait() == 137
    container.delete()


def test_the_runtime_is_chosen_by_runtime_config_path(host: Host, tmp_path: Path) -> None:
    called = tmp_path / "called"
    runtime = tmp_path / "my-runtime"
    runtime.write_text(f'#!/bin/sh\necho "$*" >>{called}\nexec runc "$@"\n')
    runtime.chmod(0o755)
    config = tmp_path / "runtime.toml"
    config.write_text(f'BinaryName = "{runtime}"\nRoot = "{tmp_path}/root"\n')
    container = CrioContainer(host, "chosen", "chosen", *SLEEP)
    container.create(config)
    assert f"--root {tmp_path}/root/{host.namespace}" in called.read_text()
    container.start()
    container.kill(signal.SIGKILL)
    container.wait()
    container.delete()


def test_the_systemd_driver_is_seen_by_its_path(host: Host, tmp_path: Path) -> None:
    called = tmp_path / "called"
    runtime = tmp_path / "my-runtime"
    runtime.write_text(f'#!/bin/sh\necho "$*" >>{called}\nexit 3\n')
    runtime.chmod(0o755)
    config = tmp_path / "runtime.toml"
    config.write_text(f'BinaryName = "{runtime}"\n')
    container = CrioContainer(host, "slice", "slice", *SLEEP)
    path = container.bundle / "config.json"
    spec = json.loads(path.read_text())
    spec["linux"]["cgroupsPath"] = "kubepods.slice:crio:slice"
    path.write_text(json.dumps(spec))
    with pytest.raises(StatusError, match="OCI runtime create failed"):
        container.create(config)
    assert "--systemd-cgroup" in called.read_text()
    container.call("Shutdown", task_pb2.ShutdownRequest(id="slice"), Empty)


def test_an_exec_and_an_update(host: Host) -> None:
    container = CrioContainer(host, "busy", "busy", *SLEEP)
    container.create()
    container.start()
    process = {**host.spec["process"], "args": ["/bin/sh", "-c", "exit 9"], "terminal": False}
    request = task_pb2.ExecProcessRequest(id="busy", exec_id="e")
    spec = AnyMessage(type_url=f"{SPEC}/Process", value=json.dumps(process).encode())
    request.spec.CopyFrom(spec)
    container.call("Exec", request, Empty)
    container.call("Start", task_pb2.StartRequest(id="busy", exec_id="e"), task_pb2.StartResponse)
    waited = task_pb2.WaitRequest(id="busy", exec_id="e")
    assert container.call("Wait", waited, task_pb2.WaitResponse).exit_status == 9
    limits = {"memory": {"limit": 64 * MIB}}
    update = task_pb2.UpdateTaskRequest(id="busy")
    resources = AnyMessage(type_url=f"{SPEC}/LinuxResources", value=json.dumps(limits).encode())
    update.resources.CopyFrom(resources)
    container.call("Update", update, Empty)
    for method, request_ in (
        ("Pause", task_pb2.PauseRequest(id="busy")),
        ("Resume", task_pb2.ResumeRequest(id="busy")),
        ("ResizePty", task_pb2.ResizePtyRequest(id="busy", width=80, height=24)),
        ("CloseIO", task_pb2.CloseIORequest(id="busy", stdin=True)),
    ):
        container.call(method, request_, Empty)
    container.kill(signal.SIGKILL)
    assert container.wait() == 137
    container.delete()
