"""The blocking client against a server of a few lines."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyshim.api import task_pb2
from pyshim.ttrpc import codec, framing
from pyshim.ttrpc.client import Client
from pyshim.ttrpc.status import Code, StatusError

SERVICE = "containerd.task.v2.Task"
Script = Callable[[socket.socket], None]


def requests(peer: socket.socket, count: int) -> list[framing.Frame]:
    """Reads ``count`` requests, a few bytes at a time."""
    reader = framing.FrameReader()
    found: list[framing.Frame] = []
    while len(found) < count:
        data = peer.recv(7)
        assert data
        found += [frame for frame in reader.feed(data) if isinstance(frame, framing.Frame)]
    return found


def reply(peer: socket.socket, stream: int, pid: int) -> None:
    payload = task_pb2.StartResponse(pid=pid).SerializeToString()
    peer.sendall(codec.encode_response(stream, payload))


@contextmanager
def serving(address: str, script: Script) -> Iterator[None]:
    """Runs ``script`` with the first connection to ``address``; its failure fails the test."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(10)
                script(peer)
        except BaseException as error:
            failures.append(error)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        listener.settimeout(10)
        thread = threading.Thread(target=run)
        thread.start()
        yield
        thread.join(10)
    assert not failures
    assert not thread.is_alive()


def start(client: Client, timeout_s: float | None = None) -> task_pb2.StartResponse:
    request = task_pb2.StartRequest(id="c")
    return client.call(SERVICE, "Start", request, task_pb2.StartResponse, timeout_s)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    # Relative: the folder may be too deep for a socket's address.
    monkeypatch.chdir(tmp_path)
    return "s"


@pytest.mark.parametrize("scheme", ["", "unix://"])
def test_call(path: str, scheme: str) -> None:
    def script(peer: socket.socket) -> None:
        (frame,) = requests(peer, 1)
        request = codec.decode_request(frame.payload)
        assert (frame.stream, frame.type, frame.flags) == (1, framing.REQUEST, 0)
        assert (request.service, request.method) == (SERVICE, "Start")
        assert request.timeout_nano == 5 * 10**9
        assert [(m.key, m.value) for m in request.metadata] == [("k", "v")]
        assert task_pb2.StartRequest.FromString(request.payload).id == "c"
        reply(peer, frame.stream, 42)

    with serving(path, script), Client(scheme + path, 10) as client:
        request = task_pb2.StartRequest(id="c")
        answer = client.call(SERVICE, "Start", request, task_pb2.StartResponse, 5, {"k": "v"})
        assert answer.pid == 42


def test_abstract_address() -> None:
    name = f"pyshim-test-{os.getpid()}"

    def script(peer: socket.socket) -> None:
        reply(peer, requests(peer, 1)[0].stream, 1)

    with serving("\0" + name, script), Client("@" + name, 10) as client:
        assert start(client).pid == 1


def test_answers_out_of_order_and_to_nobody(path: str) -> None:
    def script(peer: socket.socket) -> None:
        first, second = requests(peer, 2)
        assert (first.stream, second.stream) == (1, 3)
        peer.sendall(framing.encode_frame(1, 77, b"a type of later"))
        reply(peer, 99, 0)
        reply(peer, second.stream, 2)
        reply(peer, first.stream, 1)

    with serving(path, script), Client(path, 10) as client:
        request = task_pb2.StartRequest(id="c")
        streams = [client.send(SERVICE, "Start", request) for _ in range(2)]
        answers = [task_pb2.StartResponse.FromString(client.receive(s)).pid for s in streams]
        assert answers == [1, 2]


def test_an_error_is_raised_and_the_connection_goes_on(path: str) -> None:
    def script(peer: socket.socket) -> None:
        (frame,) = requests(peer, 1)
        peer.sendall(codec.encode_error(frame.stream, StatusError(Code.NOT_FOUND, "gone")))
        reply(peer, requests(peer, 1)[0].stream, 8)

    with serving(path, script), Client(path, 10) as client:
        with pytest.raises(StatusError) as caught:
            start(client)
        assert (caught.value.code, caught.value.message) == (Code.NOT_FOUND, "gone")
        assert start(client).pid == 8


def test_an_answer_that_is_too_large_is_an_error(path: str) -> None:
    def script(peer: socket.socket) -> None:
        (frame,) = requests(peer, 1)
        length = framing.MAX_BYTES + 1
        peer.sendall(framing.HEADER.pack(length, frame.stream, framing.RESPONSE, 0))
        peer.sendall(bytes(length))
        reply(peer, requests(peer, 1)[0].stream, 8)

    with serving(path, script), Client(path, 10) as client:
        with pytest.raises(StatusError) as caught:
            start(client, 5)
        assert caught.value.code == Code.RESOURCE_EXHAUSTED
        assert start(client).pid == 8


def test_the_peer_goes(path: str) -> None:
    with (
        serving(path, lambda peer: None),
        Client(path, 10) as client,
        pytest.raises(ConnectionError),
    ):
        start(client)


def test_the_bound(path: str) -> None:
    done = threading.Event()

    def script(peer: socket.socket) -> None:
        assert done.wait(10)

    with serving(path, script), Client(path, 10) as client:
        with pytest.raises(TimeoutError):
            start(client, 0.05)
        done.set()


def test_nobody_listens(path: str) -> None:
    with pytest.raises(FileNotFoundError):
        Client(path, 1)


def test_close_on_exec(path: str) -> None:
    with serving(path, lambda peer: None), Client(path, 10) as client:
        assert fcntl.fcntl(client._socket.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
