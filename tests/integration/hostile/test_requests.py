"""The ttrpc server with a real shim behind it, under requests that no client would send.

Each gets an answer or has its connection closed, none that speaks of our insides, and the container
lives on.  The examples are the same in every run; more of them: ``HYPOTHESIS_EXAMPLES=1000``.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pyshim.api import options_pb2, task_pb2, ttrpc_pb2
from pyshim.ttrpc import codec, framing
from pyshim.ttrpc.status import Code
from tests.integration.containerd import BOUND_S, eventually
from tests.integration.shim import SERVICE, Container, Host, module_host

__all__ = ["module_host"]

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "120"))
BOUNDED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    # The example that fails is small, and to make it smaller would wait for many more answers.
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)
SHORT_NS = 50_000_000  # of a Wait for what does not end
# No signal here that a container's init dies of, or stops at: only these two reach it unasked.
LETHAL = (9, 19)
KINDS: dict[str, type[Message]] = {
    "Create": task_pb2.CreateTaskRequest,
    "Start": task_pb2.StartRequest,
    "State": task_pb2.StateRequest,
    "Wait": task_pb2.WaitRequest,
    "Kill": task_pb2.KillRequest,
    "Pause": task_pb2.PauseRequest,
    "Resume": task_pb2.ResumeRequest,
    "Checkpoint": task_pb2.CheckpointTaskRequest,
    "Update": task_pb2.UpdateTaskRequest,
    "Stats": task_pb2.StatsRequest,
    "Delete": task_pb2.DeleteRequest,
    "Exec": task_pb2.ExecProcessRequest,
    "Pids": task_pb2.PidsRequest,
    "Connect": task_pb2.ConnectRequest,
    "CloseIO": task_pb2.CloseIORequest,
    "Shutdown": task_pb2.ShutdownRequest,
    "ResizePty": task_pb2.ResizePtyRequest,
}
TEXTS = ["", "e", "other", "../x", "/no/such", "a\0b", "é\n", "x" * 300, "file://", "binary:///x"]
BLOBS = [b"", b"{}", b"[]", b'{"args":["/bin/true"]}', b"\xff\xfe", b"{" * 3000, b"null", b"5"]
TYPES = ["", "x", options_pb2.Options.DESCRIPTOR.full_name, "runtimeoptions.v1.Options"]
NUMBERS = [0, 1, 15, 17, 65, 10_000, 2**31 - 1]
VARINTS = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_ENUM)


class Victim:
    """The container that all of it is tried on, which must be running to the end."""

    def __init__(self, container: Container) -> None:
        self.container = container

    def connect(self) -> socket.socket:
        """A connection."""
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.container.address.removeprefix("unix://"))
        client.settimeout(BOUND_S)
        return client

    def state_frame(self, stream: int) -> bytes:
        """A call that is always answered."""
        payload = task_pb2.StateRequest(id=self.container.name).SerializeToString()
        return codec.encode_request(stream, SERVICE, "State", payload)

    def ask(self, *frames: bytes, last: int = 99) -> dict[int, ttrpc_pb2.Response]:
        """Sends ``frames`` and a State on the stream ``last``; all answers until that one's."""
        found: dict[int, ttrpc_pb2.Response] = {}
        reader = framing.FrameReader()
        with self.connect() as client:
            client.sendall(b"".join(frames) + self.state_frame(last))
            while last not in found:
                data = client.recv(65536)
                assert data, "the connection was closed"
                for frame in reader.feed(data):
                    assert isinstance(frame, framing.Frame)
                    assert frame.type == framing.RESPONSE
                    found[frame.stream] = ttrpc_pb2.Response.FromString(frame.payload)
        assert found[last].status.code == Code.OK
        return found

    def ask_one(self, method: str, payload: bytes) -> ttrpc_pb2.Response:
        """The answer to one call; raises TimeoutError when there is none."""
        frame = codec.encode_request(1, SERVICE, method, payload, SHORT_NS)
        reader = framing.FrameReader()
        with self.connect() as client:
            client.sendall(frame)
            while True:
                data = client.recv(65536)
                assert data, "the connection was closed"
                for answer in reader.feed(data):
                    assert isinstance(answer, framing.Frame)
                    assert answer.stream == 1
                    return ttrpc_pb2.Response.FromString(answer.payload)


@pytest.fixture(scope="module")
def victim(module_host: Host) -> Iterator[Victim]:
    """A running container; nothing else must be left when it has been removed."""
    container = module_host.started("/bin/sleep", "100000")
    try:
        yield Victim(container)
        container.reconnect()
        assert container.state().status == task_pb2.RUNNING
        assert container.run("last", "/bin/true") == 0
        container.end()
        module_host.nothing_left()
    finally:
        module_host.clear()


def says_nothing_wrong(response: ttrpc_pb2.Response) -> None:
    """The answer is a result or a client's error."""
    assert response.status.code != Code.INTERNAL, response.status.message
    assert "Traceback" not in response.status.message
    assert "internal error" not in response.status.message


# --- Frames --------------------------------------------------------------------------------------


@given(data=st.binary(max_size=200))
@BOUNDED
def test_bytes(victim: Victim, data: bytes) -> None:
    """They may be the beginning of a frame that never ends; nobody else is kept waiting."""
    with victim.connect() as client:
        client.sendall(data)
    victim.ask()


@given(
    frames=st.lists(
        st.tuples(
            st.integers(0, 2**32 - 1).filter(lambda stream: stream != 99),
            st.integers(0, 255),
            st.integers(0, 255),
            st.binary(max_size=60),
        ),
        max_size=8,
    )
)
@BOUNDED
def test_frames(victim: Victim, frames: list[tuple[int, int, int, bytes]]) -> None:
    sent = [
        framing.HEADER.pack(len(payload), stream, kind, flags) + payload
        for stream, kind, flags, payload in frames
    ]
    for response in victim.ask(*sent).values():
        says_nothing_wrong(response)


@given(
    service=st.sampled_from([SERVICE, "containerd.task.v3.Task", "", "x" * 500, "a\0b", "../Task"]),
    method=st.sampled_from([*KINDS, "", "__init__", "handle", "state", "a\0b", "é" * 200]),
    payload=st.binary(max_size=40),
    timeout=st.sampled_from([0, 1, SHORT_NS, 2**63 - 1, -1, -(2**63)]),
)
@BOUNDED
def test_calls(victim: Victim, service: str, method: str, payload: bytes, timeout: int) -> None:
    frame = codec.encode_request(1, service, method, payload, timeout)
    found = victim.ask(frame)
    if 1 in found:
        says_nothing_wrong(found[1])
        if service not in {SERVICE, "containerd.task.v3.Task"} or method not in KINDS:
            assert found[1].status.code == Code.UNIMPLEMENTED


@pytest.mark.parametrize("length", [framing.MAX_BYTES + 1, 2**32 - 1])
def test_a_frame_that_is_too_long(victim: Victim, length: int) -> None:
    with victim.connect() as client:
        client.sendall(framing.HEADER.pack(length, 1, framing.REQUEST, 0) + bytes(70_000))
        (size, stream, kind, _) = framing.HEADER.unpack(client.recv(framing.HEADER.size))
        response = ttrpc_pb2.Response.FromString(client.recv(size))
    assert (stream, kind) == (1, framing.RESPONSE)
    assert response.status.code == Code.RESOURCE_EXHAUSTED
    victim.ask()


def test_the_same_stream_twice_at_once(victim: Victim) -> None:
    payload = task_pb2.WaitRequest(id=victim.container.name).SerializeToString()
    wait = codec.encode_request(1, SERVICE, "Wait", payload)
    victim.ask(wait, wait, victim.state_frame(1), wait)
    victim.ask()


# --- Requests ------------------------------------------------------------------------------------


def messages(kind: type[Message], name: str) -> st.SearchStrategy[Any]:
    """Any message of ``kind``, about the container ``name`` more often than not."""
    fields = {field.name: values(field, name) for field in kind.DESCRIPTOR.fields}
    return st.fixed_dictionaries({}, optional=fields).map(lambda given: kind(**given))


def values(field: FieldDescriptor, name: str) -> st.SearchStrategy[Any]:
    """Any value of a field."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return st.dictionaries(st.sampled_from(TEXTS), st.sampled_from(TEXTS), max_size=2)
    if field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED:
        return st.lists(value(field, name), max_size=2)
    return value(field, name)


def value(field: FieldDescriptor, name: str) -> st.SearchStrategy[Any]:
    """Any single value of a field."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return st.sampled_from(BLOBS)
        return st.sampled_from([name, name, *TEXTS] if field.name == "id" else TEXTS)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        return nested(field.message_type, name)
    return st.sampled_from(NUMBERS)


def nested(kind: Descriptor, name: str) -> st.SearchStrategy[Any]:
    """A message in another."""
    if kind.full_name == AnyMessage.DESCRIPTOR.full_name:
        packed = [options_pb2.Options(binary_name="/no/such", root="a\0b").SerializeToString()]
        return st.builds(
            AnyMessage, type_url=st.sampled_from(TYPES), value=st.sampled_from(BLOBS + packed)
        )
    return messages(kind._concrete_class, name)


def is_harmless(request: Message) -> bool:
    """Whether it may do what it says to a container that is to go on."""
    if isinstance(request, task_pb2.KillRequest):
        return request.signal not in LETHAL and not request.all
    return not isinstance(request, task_pb2.CheckpointTaskRequest) or "/" not in request.path[:1]


@pytest.mark.parametrize("method", KINDS)
def test_any_request(victim: Victim, method: str) -> None:
    @given(request=messages(KINDS[method], victim.container.name).filter(is_harmless))
    @settings(BOUNDED, max_examples=max(5, EXAMPLES // 4))
    def check(request: Message) -> None:
        says_nothing_wrong(victim.ask_one(method, request.SerializeToString()))

    check()
    victim.ask_one("Resume", task_pb2.ResumeRequest(id=victim.container.name).SerializeToString())
    victim.ask()


@pytest.mark.parametrize("method", KINDS)
def test_damaged_requests(victim: Victim, method: str) -> None:
    """What a client sends, with some of its bytes changed or cut off."""
    name = victim.container.name
    if method == "Kill":
        whole = task_pb2.KillRequest(id="other", exec_id="e", signal=0).SerializeToString()
    elif method in {"Delete", "Shutdown"}:
        whole = KINDS[method](id="other").SerializeToString()
    else:
        whole = KINDS[method](id=name).SerializeToString()

    @given(at=st.integers(0, len(whole)), put=st.binary(max_size=3), cut=st.integers(0, 3))
    @settings(BOUNDED, max_examples=max(5, EXAMPLES // 6))
    def check(at: int, put: bytes, cut: int) -> None:
        says_nothing_wrong(victim.ask_one(method, whole[:at] + put + whole[at + cut :]))

    check()
    victim.ask_one("Resume", task_pb2.ResumeRequest(id=name).SerializeToString())
    victim.ask()


def test_a_wait_that_ends_in_three_centuries(victim: Victim) -> None:
    """Its end is later than an alarm can be set for; services park all the same."""
    payload = task_pb2.WaitRequest(id=victim.container.name).SerializeToString()
    host = victim.container.host
    with victim.connect() as client:
        client.sendall(codec.encode_request(1, SERVICE, "Wait", payload, 2**63 - 1))
        client.sendall(victim.state_frame(3))
        assert client.recv(65536)
        eventually(lambda: not host.services(), "the service has parked")
        client.sendall(victim.state_frame(5))
        assert client.recv(65536)


def test_a_request_of_another_method(victim: Victim) -> None:
    """Every method with the bytes of every other."""
    name = victim.container.name
    samples = [
        task_pb2.ExecProcessRequest(id=name, exec_id="e").SerializeToString(),
        task_pb2.ResizePtyRequest(id=name, width=2**32 - 1, height=5).SerializeToString(),
        task_pb2.CreateTaskRequest(id=name, bundle="/").SerializeToString(),
        struct.pack("<I", 0xFFFFFFFF),
    ]
    for method in KINDS:
        if method not in {"Kill", "Delete"}:
            for payload in samples:
                says_nothing_wrong(victim.ask_one(method, payload))
    victim.ask_one("Resume", task_pb2.ResumeRequest(id=name).SerializeToString())
