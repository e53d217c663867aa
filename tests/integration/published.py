"""containerd's event service, for one shim: it keeps what is published."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from pyshim.api import events_pb2, forward_pb2
from pyshim.ttrpc import codec, framing
from tests.integration.containerd import BOUND_S, eventually

METHOD = ("containerd.services.events.ttrpc.v1.Events", "Forward")


class Events:
    """Listens on ``path``; answers each event, unless it was told to be slow."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._unanswered = 0
        self._seen: dict[str, list[tuple[str, Any]]] = {}
        self._times: dict[tuple[str, str], float] = {}
        self._news = threading.Condition()
        self._answering = threading.Event()
        self._answering.set()
        self._connections: set[socket.socket] = set()
        self._changing = threading.Lock()
        self._listen()

    def _listen(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen(128)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        """No more events are taken; those that were kept have been answered."""
        with self._changing:
            for sock in (self._listener, *self._connections):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            self._connections.clear()
            self._listener.close()
        self._answering.set()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """As a containerd that has ended, and is started again."""
        self.close()  # and leaves its socket, as one that is killed
        try:
            yield
        finally:
            Path(self.address).unlink()
            self._listen()

    def block(self) -> None:
        """From now on nothing is answered."""
        self._answering.clear()

    def unblock(self) -> None:
        """The end of ``block``."""
        self._answering.set()

    def pending(self) -> int:
        """How many events at least have been offered and not been answered, of one shim."""
        with self._changing:
            unread = [fcntl.ioctl(sock, termios.FIONREAD, bytes(4)) for sock in self._connections]
        return self._unanswered + any(map(any, unread))

    def of(self, container: str) -> list[tuple[str, Any]]:
        """The topics (without ``/tasks/``) and events of ``container``, in the order they came."""
        return list(self._seen.get(container, ()))

    def topics(self, container: str) -> list[str]:
        """The topics alone."""
        return [topic for topic, _ in self.of(container)]

    def whole(self, container: str) -> list[str]:
        """The topics once the last, delete, has come; the answer to Delete may be here before."""
        self.await_topic(container, "delete")
        return self.topics(container)

    def exits(self, container: str) -> list[tuple[str, int]]:
        """The ids and statuses of the exits of ``container``, in order."""
        return [(e.id, e.exit_status) for topic, e in self.of(container) if topic == "exit"]

    def await_topic(self, container: str, topic: str) -> None:
        """Waits until an event has come."""
        what = f"{topic} of {container}"
        eventually(lambda: topic in self.topics(container), what, BOUND_S)

    def arrival(self, container: str, topic: str) -> float:
        """When the first such event came (``time.perf_counter``); waits for it without polling."""
        key = (container, topic)
        with self._news:
            assert self._news.wait_for(lambda: key in self._times, BOUND_S), (
                f"{topic} of {container}"
            )
        return self._times[key]

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with self._changing:
                    if listener.fileno() < 0:
                        connection.close()
                        return
                    self._connections.add(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        frames = framing.FrameReader()
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                for frame in frames.feed(data):
                    self._unanswered += 1
                    self._answering.wait()
                    self._unanswered -= 1
                    assert isinstance(frame, framing.Frame)
                    request = codec.decode_request(frame.payload)
                    assert (request.service, request.method) == METHOD
                    with self._changing:
                        if connection not in self._connections:
                            return
                        self._keep(forward_pb2.ForwardRequest.FromString(request.payload).envelope)
                        connection.sendall(codec.encode_response(frame.stream, b""))
            self._connections.discard(connection)

    def _keep(self, envelope: forward_pb2.Envelope) -> None:
        now = time.perf_counter()
        name = envelope.event.type_url.removeprefix("containerd.events.")
        kind: type[Message] = getattr(events_pb2, name)
        topic = envelope.topic.removeprefix("/tasks/")
        event: Any = kind.FromString(envelope.event.value)
        self._seen.setdefault(event.container_id, []).append((topic, event))
        with self._news:
            self._times.setdefault((event.container_id, topic), now)
            self._news.notify_all()
