"""The messages: what is generated is what is committed, and the wire is containerd's."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.message import Message

from pyshim.api import (
    bootstrap_pb2,
    events_pb2,
    forward_pb2,
    generate,
    info_pb2,
    options_pb2,
    runtimeoptions_pb2,
    task_pb2,
    ttrpc_pb2,
)

GOLDEN: list[tuple[Message, str]] = [
    (
        ttrpc_pb2.Request(
            service="s",
            method="m",
            payload=b"p",
            timeout_nano=1,
            metadata=[ttrpc_pb2.KeyValue(key="k", value="v")],
        ),
        "0a0173 12016d 1a0170 2001 2a06 0a016b 120176",
    ),
    (
        ttrpc_pb2.Response(status=ttrpc_pb2.Status(code=5, message="m"), payload=b"p"),
        "0a05 0805 12016d 120170",
    ),
    (
        task_pb2.CreateTaskRequest(
            id="i",
            bundle="b",
            rootfs=[task_pb2.Mount(type="t", source="s", target="g", options=["o"])],
            terminal=True,
            stdin="0",
            stdout="1",
            stderr="2",
        ),
        "0a0169 120162 1a0c 0a0174 120173 1a0167 22016f 2001 2a0130 320131 3a0132",
    ),
    (
        task_pb2.StateResponse(id="i", pid=2, status=task_pb2.STOPPED, exit_status=9, exec_id="e"),
        "0a0169 1802 2003 4809 5a0165",
    ),
    (task_pb2.KillRequest(id="i", exec_id="e", signal=9, all=True), "0a0169 120165 1809 2001"),
    (task_pb2.ConnectResponse(shim_pid=1, task_pid=2, version="3"), "0801 1002 1a0133"),
    (
        events_pb2.TaskCreate(container_id="c", io=events_pb2.TaskIO(terminal=True), pid=6),
        "0a0163 2202 2001 3006",
    ),
    (events_pb2.TaskDelete(container_id="c", pid=2, id="e"), "0a0163 1002 2a0165"),
    (
        forward_pb2.ForwardRequest(envelope=forward_pb2.Envelope(namespace="n", topic="/t")),
        "0a07 12016e 1a022f74",
    ),
    (options_pb2.Options(binary_name="b", systemd_cgroup=True), "320162 4801"),
    (options_pb2.CheckpointOptions(exit=True, parent_path="p"), "0801 520170"),
    (runtimeoptions_pb2.Options(type_url="t", config_body=b"c"), "0a0174 1a0163"),
    (
        bootstrap_pb2.BootstrapParams(
            instance_id="i",
            namespace="n",
            log_level=bootstrap_pb2.DEBUG,
            extensions=[bootstrap_pb2.Extension()],
            socket_dir="d",
        ),
        "0a0169 12016e 18fcffffffffffffffff01 4200 4a0164",
    ),
    (bootstrap_pb2.BootstrapResult(version=2, address="a", protocol="p"), "0802 120161 1a0170"),
    (
        info_pb2.RuntimeInfo(name="n", version=info_pb2.RuntimeVersion(version="v", revision="r")),
        "0a016e 1206 0a0176 120172",
    ),
    (info_pb2.RuntimeRequest(runtime_path="r"), "0a0172"),
]

# Names that appear in type URLs; containerd compares them as they are.
NAMES = [
    (events_pb2.TaskExit, "containerd.events.TaskExit"),
    (events_pb2.TaskOOM, "containerd.events.TaskOOM"),
    (options_pb2.Options, "containerd.runc.v1.Options"),
    (options_pb2.CheckpointOptions, "containerd.runc.v1.CheckpointOptions"),
    (options_pb2.ProcessDetails, "containerd.runc.v1.ProcessDetails"),
    (runtimeoptions_pb2.Options, "runtimeoptions.v1.Options"),
    (bootstrap_pb2.BootstrapParams, "containerd.runtime.bootstrap.v1.BootstrapParams"),
]


def test_the_committed_modules_are_what_is_generated(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    generate.generate(tmp_path)
    committed = {p.name: p.read_text() for p in Path(generate.__file__).parent.glob("*_pb2.py*")}
    fresh = {p.name: p.read_text() for p in (tmp_path / "pyshim" / "api").iterdir()}
    assert fresh == committed


@pytest.mark.parametrize(("message", "wire"), GOLDEN, ids=lambda value: type(value).__name__)
def test_golden_bytes(message: Message, wire: str) -> None:
    data = bytes.fromhex(wire)
    assert message.SerializeToString(deterministic=True) == data
    assert type(message).FromString(data) == message


@pytest.mark.parametrize(("message", "name"), NAMES, ids=[name for _, name in NAMES])
def test_full_names(message: type[Message], name: str) -> None:
    assert message.DESCRIPTOR.full_name == name


def test_statuses_have_the_numbers_of_containerd() -> None:
    names = ["UNKNOWN", "CREATED", "RUNNING", "STOPPED", "PAUSED", "PAUSING"]
    assert [task_pb2.Status.Name(number) for number in task_pb2.Status.values()] == names
    assert task_pb2.Status.values() == list(range(6))
