"""The Task service of a running container, spoken to as no containerd would."""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import empty_pb2

from pyshim.api import cgroups1_pb2, task_pb2, ttrpc_pb2
from pyshim.ttrpc import codec, framing
from pyshim.ttrpc.client import Client
from pyshim.ttrpc.status import Code, StatusError

from .conftest import BOUND_S, Containerd, eventually

TASK_V2 = "containerd.task.v2.Task"
TASK_V3 = "containerd.task.v3.Task"
NAME = "spoken-to"
MIB = 1024 * 1024


@pytest.fixture
def address(containerd: Containerd) -> Iterator[str]:
    """The socket of a running container's shim."""
    assert (
        containerd.ctr(*containerd.run(NAME, "/bin/sleep", "1000", flags=("-d",))).returncode == 0
    )
    try:
        (path,) = [p for p in containerd.sockets.iterdir() if p.is_socket()]
        yield str(path)
    finally:
        containerd.ctr("task", "delete", "-f", NAME)
        assert containerd.ctr("container", "delete", NAME).returncode == 0
        eventually(lambda: not containerd.monitors(), "the monitor has ended")


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, BOUND_S) as opened:
        yield opened


@pytest.fixture
def raw(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.settimeout(BOUND_S)
        opened.connect(address)
        yield opened


def state_request(stream: int, timeout_ns: int = 0) -> bytes:
    """The frame of a State call."""
    payload = task_pb2.StateRequest(id=NAME).SerializeToString()
    return codec.encode_request(stream, TASK_V2, "State", payload, timeout_ns)


def answers(raw: socket.socket, count: int = 1) -> dict[int, ttrpc_pb2.Response]:
    """The next ``count`` responses by stream."""
    reader = framing.FrameReader()
    found: dict[int, ttrpc_pb2.Response] = {}
    while len(found) < count:
        data = raw.recv(65536)
        assert data, "the connection was closed"
        for frame in reader.feed(data):
            assert isinstance(frame, framing.Frame)
            assert frame.stream not in found
            found[frame.stream] = ttrpc_pb2.Response.FromString(frame.payload)
    return found


def refused(client: Client, service: str, method: str, request: object) -> tuple[int, str]:
    """The code and message of a call that must fail."""
    with pytest.raises(StatusError) as caught:
        client.call(service, method, request, empty_pb2.Empty)  # type: ignore[arg-type]
    return caught.value.code, caught.value.message


@pytest.mark.parametrize("service", [TASK_V2, TASK_V3])
def test_both_names_are_served(client: Client, service: str, containerd: Containerd) -> None:
    reply = client.call(
        service, "Connect", task_pb2.ConnectRequest(id=NAME), task_pb2.ConnectResponse
    )
    assert [reply.shim_pid] == containerd.monitors()
    assert reply.task_pid == containerd.tasks()[NAME][0]


def test_stats(client: Client, containerd: Containerd) -> None:
    comm = Path(f"/proc/{containerd.tasks()[NAME][0]}/comm")
    # The kernel counts threads, and the runtime's init has some of them until it executes.
    eventually(lambda: comm.read_text() == "sleep\n", "the container's own program runs")
    reply = client.call(TASK_V2, "Stats", task_pb2.StatsRequest(id=NAME), task_pb2.StatsResponse)
    assert reply.stats.type_url == "io.containerd.cgroups.v1.Metrics"
    found = cgroups1_pb2.Metrics.FromString(reply.stats.value)
    assert found.pids.current == 1
    assert found.cpu.usage.total > 0
    assert found.memory.usage.usage > 0
    assert found.memory.usage.limit > found.memory.usage.usage


def test_what_is_wrong_has_its_code(client: Client) -> None:
    request = task_pb2.StateRequest(id=NAME)
    assert refused(client, "no.Such", "State", request)[0] == Code.UNIMPLEMENTED
    assert refused(client, TASK_V2, "NoSuch", request)[0] == Code.UNIMPLEMENTED
    unknown = task_pb2.StateRequest(id="unknown")
    assert refused(client, TASK_V2, "State", unknown)[0] == Code.NOT_FOUND
    unknown = task_pb2.StateRequest(id=NAME, exec_id="unknown")
    assert refused(client, TASK_V2, "State", unknown)[0] == Code.NOT_FOUND
    code, message = refused(client, TASK_V2, "Delete", task_pb2.DeleteRequest(id=NAME))
    assert (code, message) == (Code.UNKNOWN, "cannot delete a running process")
    create = task_pb2.CreateTaskRequest(id=NAME, bundle="/nowhere")
    assert refused(client, TASK_V2, "Create", create)[0] == Code.ALREADY_EXISTS
    assert refused(client, TASK_V2, "Start", task_pb2.StartRequest(id=NAME))[0] == Code.UNKNOWN


@pytest.mark.parametrize("exec_id", ["", "../up", "a\0b", "a/b"])
def test_an_exec_id_is_no_path(client: Client, exec_id: str) -> None:
    request = task_pb2.ExecProcessRequest(id=NAME, exec_id=exec_id)
    request.spec.value = b"{}"
    assert refused(client, TASK_V2, "Exec", request)[0] == Code.INVALID_ARGUMENT


@pytest.mark.parametrize("spec", [b"", b"{", b"[]", b"\xff"])
def test_an_exec_spec_is_json(client: Client, spec: bytes) -> None:
    request = task_pb2.ExecProcessRequest(id=NAME, exec_id="e")
    request.spec.value = spec
    assert refused(client, TASK_V2, "Exec", request)[0] == Code.INVALID_ARGUMENT
    state = task_pb2.StateRequest(id=NAME, exec_id="e")
    assert refused(client, TASK_V2, "State", state)[0] == Code.NOT_FOUND


def test_a_container_whose_bundle_is_not_there(client: Client) -> None:
    request = task_pb2.CreateTaskRequest(id="other", bundle="/nonexistent/bundle")
    code, message = refused(client, TASK_V2, "Create", request)
    assert code == Code.INVALID_ARGUMENT
    assert "/nonexistent/bundle/config.json" in message
    assert refused(client, TASK_V2, "State", task_pb2.StateRequest(id="other"))[0] == Code.NOT_FOUND


def test_a_payload_that_is_no_request(raw: socket.socket) -> None:
    raw.sendall(codec.encode_request(1, TASK_V2, "State", b"\xff\xff\xff", 0, None))
    raw.sendall(framing.encode_frame(3, framing.REQUEST, b"\xff\xff\xff"))
    raw.sendall(framing.encode_frame(4, framing.REQUEST, b""))
    raw.sendall(framing.encode_frame(5, 99, b"a frame of a type to come"))
    raw.sendall(state_request(7))
    found = answers(raw, 4)
    wrong = {stream: found[stream].status.code for stream in (1, 3, 4)}
    assert wrong == dict.fromkeys((1, 3, 4), Code.INVALID_ARGUMENT)
    assert task_pb2.StateResponse.FromString(found[7].payload).status == task_pb2.RUNNING


def test_an_oversized_frame_costs_its_stream_alone(raw: socket.socket) -> None:
    length = 5 * MIB
    raw.sendall(struct.pack(">IIBB", length, 1, framing.REQUEST, 0))
    raw.sendall(bytes(length))
    raw.sendall(state_request(3))
    found = answers(raw, 2)
    assert found[1].status.code == Code.RESOURCE_EXHAUSTED
    assert not found[3].status.code


def test_the_largest_frame_is_read(raw: socket.socket) -> None:
    payload = bytes(4 * MIB - 1000)
    raw.sendall(codec.encode_request(1, TASK_V2, "NoSuch", payload))
    assert answers(raw)[1].status.code == Code.UNIMPLEMENTED


def test_many_requests_in_one_write(raw: socket.socket) -> None:
    good = [2 * number + 1 for number in range(1000)]
    bad = [2 * number for number in range(1000)]
    frames = [state_request(stream) for stream in good]
    frames += [framing.encode_frame(stream, framing.REQUEST, b"") for stream in bad]
    raw.sendall(b"".join(frames))
    found = answers(raw, 2000)
    assert all(not found[stream].status.code for stream in good)
    assert all(found[stream].status.code == Code.INVALID_ARGUMENT for stream in bad)


def test_a_truncated_frame_leaves_nothing(
    raw: socket.socket, address: str, containerd: Containerd
) -> None:
    raw.sendall(state_request(1)[:-3])
    raw.close()
    eventually(lambda: not containerd.services(), "the service has parked")
    (monitor,) = containerd.monitors()
    sockets = [link for link in Path(f"/proc/{monitor}/fd").iterdir() if link.is_socket()]
    with Client(address, BOUND_S) as other:
        other.call(TASK_V2, "State", task_pb2.StateRequest(id=NAME), task_pb2.StateResponse)
    eventually(lambda: not containerd.services(), "the service has parked")
    after = [link for link in Path(f"/proc/{monitor}/fd").iterdir() if link.is_socket()]
    assert len(after) == len(sockets)


@pytest.mark.parametrize("end", ["parked", "killed"])
def test_half_a_frame_survives_its_service(
    raw: socket.socket, containerd: Containerd, end: str
) -> None:
    frame = state_request(1)
    raw.sendall(frame[:17])
    if end == "killed":
        # One that has parked already, containerd's question activates again.
        eventually(
            lambda: containerd.services() or (containerd.tasks(), containerd.services())[1],
            "a service is there",
        )
        for pid in containerd.services():
            os.kill(pid, signal.SIGKILL)
    else:
        eventually(lambda: not containerd.services(), "the service has parked")
    raw.sendall(frame[17:])
    reply = task_pb2.StateResponse.FromString(answers(raw)[1].payload)
    assert reply.pid == containerd.tasks()[NAME][0]


@pytest.mark.parametrize("timeout_s", [0.3, 2.5])
def test_a_wait_ends_at_its_deadline(raw: socket.socket, timeout_s: float) -> None:
    """The longer one while no service is active: it parks after a second."""
    payload = task_pb2.WaitRequest(id=NAME).SerializeToString()
    raw.sendall(codec.encode_request(1, TASK_V2, "Wait", payload, int(timeout_s * 1e9)))
    raw.sendall(codec.encode_request(3, TASK_V2, "Wait", payload))
    assert answers(raw)[1].status.code == Code.DEADLINE_EXCEEDED
    raw.sendall(state_request(5))
    assert not answers(raw)[5].status.code


def test_a_wait_outlives_services(raw: socket.socket, containerd: Containerd) -> None:
    payload = task_pb2.WaitRequest(id=NAME).SerializeToString()
    raw.sendall(codec.encode_request(1, TASK_V2, "Wait", payload))
    eventually(lambda: not containerd.services(), "the service has parked")
    os.kill(containerd.tasks()[NAME][0], signal.SIGKILL)
    reply = task_pb2.WaitResponse.FromString(answers(raw)[1].payload)
    assert reply.exit_status == 137
    assert reply.exited_at.seconds > 0
    raw.sendall(codec.encode_request(3, TASK_V2, "Wait", payload))
    assert task_pb2.WaitResponse.FromString(answers(raw)[3].payload) == reply
    request = task_pb2.KillRequest(id=NAME, signal=9).SerializeToString()
    raw.sendall(codec.encode_request(5, TASK_V2, "Kill", request))
    assert answers(raw)[5].status.code == Code.NOT_FOUND
    pids = task_pb2.PidsRequest(id=NAME).SerializeToString()
    raw.sendall(codec.encode_request(7, TASK_V2, "Pids", pids))
    listed = task_pb2.PidsResponse.FromString(answers(raw)[7].payload)
    assert len(listed.processes) == 1
