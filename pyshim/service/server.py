"""The ttrpc server over connections that the monitor owns.

A request is peeked, and only then recorded in the state and consumed, in one transaction; its
answer and its removal from the state are one transaction too.  So whoever serves next finds each
request exactly once: in the socket, in the state, or answered.
"""

from __future__ import annotations

import asyncio
import socket
import time
import traceback
from collections.abc import Awaitable, Callable

from google.protobuf.message import DecodeError

from pyshim.api import state_pb2
from pyshim.monitor.channel import Message, ProgramError, Type
from pyshim.service.store import Store
from pyshim.ttrpc import codec, framing
from pyshim.ttrpc.status import Code, StatusError, text_of

# Enough for any request but a large exec; a larger one arrives in several peeks.
PEEK_BYTES = 64 * 1024
REQUEST = 1
NEVER_NS = 2**63 - 1  # the last moment that the state can hold

Handler = Callable[[state_pb2.Call], Awaitable[None]]


class Server:
    """Reads requests from held connections and runs ``handler`` for each.

    The handler answers through ``answer`` or ``fail``, now or after any number of services.
    """

    def __init__(self, store: Store, handler: Handler) -> None:
        self.store = store
        self.running: dict[tuple[int, int], asyncio.Task[None]] = {}
        self.methods: set[str] = set()  # that were called in this life
        self.rested: Callable[[], None] = lambda: None  # is called when it may be time to park
        self._handler = handler
        self._readers: dict[int, framing.FrameReader] = {}
        self._sockets: dict[int, socket.socket] = {}

    def attach(self, tag: int, fd: int) -> None:
        """Begins to read the connection ``tag``, where its last reader stopped."""
        known = next((c for c in self.store.state.connections if c.tag == tag), None)
        pending, discarding = (known.pending, known.discarding) if known else (b"", 0)
        self._readers[tag] = framing.FrameReader(pending, discarding)
        self._sockets[tag] = socket.socket(fileno=fd)
        self._watch(tag)

    def close(self) -> None:
        """Lets go of all connections."""
        for sock in self._sockets.values():
            asyncio.get_running_loop().remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()

    def resume(self) -> None:
        """Runs the requests that an earlier service left, also those whose client has gone.

        Only waits end with their client: what changes something has to be brought to its end.
        """
        for call in list(self.store.state.calls):
            if (call.tag, call.stream) in self.running:
                continue
            if call.tag in self._sockets or call.method != "Wait":
                self._run(call)
            else:
                self._remove(call)

    def _watch(self, tag: int) -> None:
        if tag in self._sockets:
            loop = asyncio.get_running_loop()
            loop.add_reader(self._sockets[tag].fileno(), self._readable, tag)

    def _readable(self, tag: int) -> None:
        sock = self._sockets[tag]
        try:
            data = sock.recv(PEEK_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        asyncio.get_running_loop().remove_reader(sock.fileno())
        if data:
            self._take(tag, data)
        else:
            self._closed(tag)

    def _take(self, tag: int, data: bytes) -> None:
        reader = self._readers[tag]
        calls: list[state_pb2.Call] = []
        refusals = bytearray()
        owned: list[int] = []
        sequence, consumed = self.store.link.expect()
        messages = [Message(Type.CONSUME, (tag, len(data)), sequence=sequence)]
        for frame in reader.feed(data):
            try:
                call = self._request(tag, frame)
            except StatusError as error:
                refusals += codec.encode_error(frame.stream, error)
                continue
            if call is not None:
                calls.append(call)
        if refusals:
            messages.append(self.store.send(tag, bytes(refusals), owned))
        self._remember(tag, reader)
        consumed.add_done_callback(lambda _: self._consumed(tag))
        for call in calls:
            self.methods.add(call.method)
            self._run(call)
        if refusals:
            self.store.commit(*messages, owned=owned)
        else:  # with their answers, where these are at hand
            self.store.commit_later(*messages)

    def _consumed(self, tag: int) -> None:
        self._watch(tag)
        self.rested()

    def _request(self, tag: int, frame: framing.Frame | framing.Oversized) -> state_pb2.Call | None:
        """The call that a frame asks for; None for a frame to skip; raises StatusError."""
        if isinstance(frame, framing.Oversized):
            text = f"message of {frame.length} bytes exceeds the maximum of {framing.MAX_BYTES}"
            raise StatusError(Code.RESOURCE_EXHAUSTED, text)
        if frame.type != REQUEST:
            return None
        if frame.stream % 2 == 0:
            raise StatusError(Code.INVALID_ARGUMENT, f"stream id {frame.stream} must be odd")
        request = codec.decode_request(frame.payload)
        deadline = min(time.time_ns() + request.timeout_nano, NEVER_NS)
        namespaces = (m.value for m in request.metadata if m.key == "containerd-namespace-ttrpc")
        # Added when it is whole: half of one would stay in the state.
        call = state_pb2.Call(
            tag=tag,
            stream=frame.stream,
            service=request.service,
            method=request.method,
            payload=request.payload,
            deadline_ns=deadline if request.timeout_nano else 0,
            namespace=next(namespaces, ""),
        )
        self.store.state.calls.append(call)
        return self.store.state.calls[-1]

    def _remember(self, tag: int, reader: framing.FrameReader) -> None:
        connections = self.store.state.connections
        for at, known in enumerate(connections):
            if known.tag == tag:
                del connections[at]
                break
        if reader.pending or reader.discarding:
            connections.add(tag=tag, pending=reader.pending, discarding=reader.discarding)

    def _run(self, call: state_pb2.Call) -> None:
        key = (call.tag, call.stream)
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._guard(call))
        self.running[key] = task
        if call.method == "Wait" and call.deadline_ns:
            loop.call_later(self._left_ms(call) / 1000, self.expire)
        task.add_done_callback(lambda _: self._done(key))

    def _done(self, key: tuple[int, int]) -> None:
        self.running.pop(key, None)
        self.rested()

    def expire(self) -> None:
        """Ends the waits whose time is over.

        The other calls have bounds of their own: half of what they do is no answer to anybody.
        """
        for call in [c for c in self.store.state.calls if c.deadline_ns and c.method == "Wait"]:
            if self._left_ms(call) == 0:
                self.fail(call, StatusError(Code.DEADLINE_EXCEEDED, "context deadline exceeded"))

    def next_expiry_ms(self) -> int:
        """How long until the first wait is to end, at least 1; 0 when none has a deadline."""
        calls = self.store.state.calls
        left = [self._left_ms(c) for c in calls if c.deadline_ns and c.method == "Wait"]
        return max(1, min(left)) if left else 0

    def _left_ms(self, call: state_pb2.Call) -> int:
        return max(0, -(-(call.deadline_ns - time.time_ns()) // 1_000_000))

    async def _guard(self, call: state_pb2.Call) -> None:
        self.store.log.debug("call", method=call.method, stream=call.stream)
        try:
            await self._handler(call)
        except StatusError as error:
            self.store.log.debug("call failed", method=call.method, error=error)
            self.fail(call, error)
        except DecodeError:
            text = f"{call.method}: the payload is no such request"
            self.fail(call, StatusError(Code.INVALID_ARGUMENT, text))
        except ProgramError as error:
            self.fail(call, StatusError(Code.INVALID_ARGUMENT, f"{call.method}: {error}"))
        except OSError as error:
            self.fail(call, StatusError(Code.UNKNOWN, text_of(error)))
        except Exception as error:
            # A bug must cost one request an error, not the container its supervisor.
            text = f"{call.method}: internal error: {type(error).__name__}: {error}"
            self.store.log.error(text, trace=traceback.format_exc())
            self.fail(call, StatusError(Code.INTERNAL, text))

    def answer(self, call: state_pb2.Call, payload: bytes, *messages: Message) -> None:
        """Answers ``call`` with ``payload`` in one transaction with ``messages`` and the state."""
        self._reply(call, codec.encode_response(call.stream, payload), *messages)

    def answer_and_quit(self, call: state_pb2.Call) -> None:
        """Answers ``call`` and ends the monitor in one transaction.

        In two, a service killed between them would leave a monitor that nobody ends.
        """
        frame = codec.encode_response(call.stream, b"")
        self._remove(call)
        self.store.quit(self.store.send(call.tag, frame, []))

    def fail(self, call: state_pb2.Call, error: StatusError, *messages: Message) -> None:
        """Answers ``call`` with an error, likewise."""
        self._reply(call, codec.encode_error(call.stream, error), *messages)

    def _reply(self, call: state_pb2.Call, frame: bytes, *messages: Message) -> None:
        owned: list[int] = []
        command = self.store.commands.get(call.token) if call.token else None
        done = self.store.forget(command) if command else []
        held = self.store.drop(*call.holding)
        send = self.store.send(call.tag, frame, owned)
        self._remove(call)
        self.store.commit(*messages, *done, *held, send, owned=owned)

    def _remove(self, call: state_pb2.Call) -> None:
        calls = self.store.state.calls
        for at, known in enumerate(calls):
            if (known.tag, known.stream) == (call.tag, call.stream):
                del calls[at]
                return

    def _closed(self, tag: int) -> None:
        """The peer has gone: its waits end, what changes something goes on."""
        self._sockets.pop(tag).close()
        del self._readers[tag]
        self._remember(tag, framing.FrameReader())
        for call in [c for c in self.store.state.calls if c.tag == tag and c.method == "Wait"]:
            self._remove(call)
        self.store.commit(*self.store.drop(tag))

    @property
    def connected(self) -> bool:
        """Whether anybody is connected."""
        return bool(self._sockets)

    @property
    def busy(self) -> bool:
        """Whether a request is being handled."""
        return bool(self.running)
