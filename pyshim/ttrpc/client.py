"""A blocking ttrpc client, for `delete`, the command line and tests."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TypeVar

from google.protobuf.message import Message

from pyshim.ttrpc import codec
from pyshim.ttrpc.framing import MAX_BYTES, RESPONSE, Frame, FrameReader, Oversized
from pyshim.ttrpc.status import Code, StatusError

Reply = TypeVar("Reply", bound=Message)
RECEIVE_BYTES = 64 * 1024


class Client:
    """One connection to the Unix socket ``address`` (``unix://`` and ``@`` are understood).

    ``timeout_s`` bounds connecting and, by default, each call.  Raises OSError.
    """

    def __init__(self, address: str, timeout_s: float = 10) -> None:
        path = address.removeprefix("unix://")
        self._timeout_s = timeout_s
        self._stream = -1
        self._frames = FrameReader()
        self._arrived: dict[int, Frame | Oversized] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect("\0" + path[1:] if path.startswith("@") else path)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._socket.close()

    def send(
        self,
        service: str,
        method: str,
        request: Message,
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> int:
        """Sends a request; returns its stream, for ``receive``.  Raises OSError."""
        self._stream += 2
        bound_ns = int((timeout_s or 0) * 1e9)
        payload = request.SerializeToString()
        frame = codec.encode_request(self._stream, service, method, payload, bound_ns, metadata)
        self._socket.settimeout(timeout_s or self._timeout_s)
        self._socket.sendall(frame)
        return self._stream

    def receive(self, stream: int, timeout_s: float | None = None) -> bytes:
        """What was answered on ``stream``.

        Raises StatusError (RESOURCE_EXHAUSTED for an answer over 4 MiB), TimeoutError at the
        bound, ConnectionError when the peer has gone.
        """
        deadline = time.monotonic() + (timeout_s or self._timeout_s)
        while stream not in self._arrived:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no answer on stream {stream}")
            self._socket.settimeout(left)
            data = self._socket.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionError("the peer closed the connection")
            for frame in self._frames.feed(data):
                if frame.type == RESPONSE:
                    self._arrived[frame.stream] = frame
        frame = self._arrived.pop(stream)
        if isinstance(frame, Oversized):
            text = f"the response has {frame.length} bytes; the maximum is {MAX_BYTES}"
            raise StatusError(Code.RESOURCE_EXHAUSTED, text)
        return codec.decode_response(frame.payload)

    def call(
        self,
        service: str,
        method: str,
        request: Message,
        response_type: type[Reply],
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Reply:
        """Sends a request and waits for its response; raises as ``receive``."""
        stream = self.send(service, method, request, timeout_s, metadata)
        return response_type.FromString(self.receive(stream, timeout_s))
