"""Connections that cost more than they say: idle ones by the thousand, and slow ones."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Iterator

import pytest

from pyshim.api import task_pb2
from pyshim.ttrpc import codec, framing
from tests.integration.containerd import BOUND_S, eventually
from tests.integration.shim import SERVICE, Container, Host, descriptors, host, module_host

__all__ = ["host", "module_host"]

SLEEP = ("/bin/sleep", "1000")
IDLE, SLOW = 1000, 20
SLOW_BYTES = 40
PAUSE_S = 0.1


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """As many as a thousand connections take on our side."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], min(limits[1], 4096)), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def connect(container: Container) -> socket.socket:
    """One more connection; it waits where the queue is full."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(container.address.removeprefix("unix://"))
    client.settimeout(BOUND_S)  # before, a full queue would be an error
    return client


def state_frame(container: Container, stream: int = 1) -> bytes:
    """A State call."""
    payload = task_pb2.StateRequest(id=container.name).SerializeToString()
    return codec.encode_request(stream, SERVICE, "State", payload)


def answer(client: socket.socket) -> framing.Frame:
    """The next frame."""
    reader = framing.FrameReader()
    while True:
        data = client.recv(65536)
        assert data, "the connection was closed"
        for frame in reader.feed(data):
            assert isinstance(frame, framing.Frame)
            return frame


def accepted(pid: int) -> int:
    """How many sockets a process has."""
    return descriptors(pid).count("socket")


def test_a_thousand_idle_connections(host: Host, many_descriptors: None) -> None:
    container = host.started(*SLEEP)
    (monitor,) = host.monitors()
    eventually(lambda: not host.services(), "the service has parked")
    before = accepted(monitor)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(container)) for _ in range(IDLE)]
        eventually(lambda: accepted(monitor) >= before + IDLE, "all are accepted")
        assert container.state().status == task_pb2.RUNNING
        assert container.run("e", "/bin/true") == 0
        eventually(lambda: not host.services(), "they keep no service")
        for at in (0, IDLE // 2, IDLE - 1):
            clients[at].sendall(state_frame(container))
            assert codec.decode_response(answer(clients[at]).payload)
    eventually(lambda: accepted(monitor) <= before, "those that have gone are let go")
    container.end()


def test_slow_clients(host: Host) -> None:
    """Half a frame, byte by byte: others are served, and nothing waits for the rest of it."""
    container = host.started(*SLEEP)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(container)) for _ in range(SLOW)]
        frame = state_frame(container)
        for at in range(SLOW_BYTES):
            for client in slow:
                client.sendall(frame[at : at + 1])
            assert container.state().status == task_pb2.RUNNING
            time.sleep(PAUSE_S)  # their pace
        eventually(lambda: not host.services(), "half a frame keeps no service")
        for client in slow:
            client.sendall(frame[SLOW_BYTES:])
        for client in slow:
            assert codec.decode_response(answer(client).payload)
    container.end()


def test_a_client_that_announces_and_sends_nothing(host: Host) -> None:
    container = host.started(*SLEEP)
    with connect(container) as client:
        client.sendall(framing.HEADER.pack(framing.MAX_BYTES, 1, 1, 0))
        assert container.state().status == task_pb2.RUNNING
        eventually(lambda: not host.services(), "it keeps no service")
        client.sendall(bytes(1000))
        assert container.state().status == task_pb2.RUNNING
    container.end()


def test_a_client_that_reads_no_answer(host: Host) -> None:
    """Its answers wait with the monitor, up to a bound; then it is the one who is cut off."""
    container = host.started(*SLEEP)
    with connect(container) as client:
        client.settimeout(PAUSE_S)
        frames = b"".join(state_frame(container, stream) for stream in range(1, 401, 2))
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(20):
                client.sendall(frames)
        assert container.state().status == task_pb2.RUNNING
        eventually(lambda: not host.services(), "it keeps no service")
    assert container.state().status == task_pb2.RUNNING
    container.end()
