"""Sends the events in the outbox to containerd, in order, until it has taken them.

Order is containerd's contract (create < start < exit < delete); so nothing overtakes an event
that failed.
"""

from __future__ import annotations

import asyncio
import time

from google.protobuf.message import Message as Protobuf

from pyshim.api import forward_pb2
from pyshim.service.store import Store
from pyshim.ttrpc import codec, framing
from pyshim.ttrpc.status import StatusError

SERVICE = "containerd.services.events.ttrpc.v1.Events"
# containerd's Go publisher has the same two bounds.
DIAL_TIMEOUT_S = CALL_TIMEOUT_S = 5
RETRY_MAX_MS = 30_000
OUTBOX_MAX_EVENTS = 4096


class Publisher:
    """Owns the connection to containerd's event service while there is something to send."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._task: asyncio.Task[None] | None = None

    def queue(self, topic: str, event: Protobuf) -> None:
        """Adds an event to the outbox; it is sent after the commit that the caller owes.

        The Any's type_url is the bare name: containerd understands no prefix.  Without an address
        there is nobody to tell.
        """
        if not self.store.state.ttrpc_address:
            return
        now = time.time_ns()
        envelope = forward_pb2.Envelope(namespace=self.store.state.namespace, topic=topic)
        envelope.timestamp.FromNanoseconds(now)
        envelope.event.type_url = event.DESCRIPTOR.full_name
        envelope.event.value = event.SerializeToString()
        outbox = self.store.state.outbox
        outbox.add(number=self.store.new_number(), envelope=envelope.SerializeToString())
        if len(outbox) > OUTBOX_MAX_EVENTS:
            oldest = (i for i, e in enumerate(outbox) if b"/tasks/exit" not in e.envelope)
            del outbox[next(oldest, 0)]
            self.store.log.warning("an event was dropped: too many wait", topic=topic)
        asyncio.get_running_loop().call_soon(self.wake)

    def wake(self) -> None:
        """Begins to send what is in the outbox, unless that is under way."""
        if self._task is None and self.store.state.outbox:
            self._task = asyncio.get_running_loop().create_task(self._send_all())

    @property
    def busy(self) -> bool:
        """Whether a delivery is under way."""
        return self._task is not None

    def retry_ms(self) -> int:
        """When to try again; 0 when nothing waits."""
        if not self.store.state.outbox:
            return 0
        return int(min(1000 * 2 ** min(self.store.state.publish_failures, 10), RETRY_MAX_MS))

    async def _send_all(self) -> None:
        failures = self.store.state.publish_failures
        try:
            await self._deliver()
            self.store.state.publish_failures = 0
        except (OSError, asyncio.TimeoutError, EOFError) as error:
            self.store.log.warning("events wait for containerd", error=repr(error))
            self.store.state.publish_failures = failures + 1
            asyncio.get_running_loop().call_later(self.retry_ms() / 1000, self.wake)
        finally:
            self._task = None
        if self.store.state.publish_failures != failures:
            self.store.commit()  # the next service must not begin with the shortest pause again
        self.store.notify()

    async def _deliver(self) -> None:
        path = self.store.state.ttrpc_address.removeprefix("unix://")
        opening = asyncio.open_unix_connection(path)
        reader, writer = await asyncio.wait_for(opening, DIAL_TIMEOUT_S)
        stream = 1
        try:
            while self.store.state.outbox:
                event = self.store.state.outbox[0]
                exchange = self._forward(reader, writer, stream, event.envelope)
                await asyncio.wait_for(exchange, CALL_TIMEOUT_S)
                self._taken(event.number)
                stream += 2
        finally:
            writer.close()

    def _taken(self, number: int) -> None:
        outbox = self.store.state.outbox
        if outbox and outbox[0].number == number:
            del outbox[0]
            self.store.commit()

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        stream: int,
        envelope: bytes,
    ) -> None:
        request = forward_pb2.ForwardRequest()
        request.envelope.ParseFromString(envelope)
        payload = request.SerializeToString()
        writer.write(codec.encode_request(stream, SERVICE, "Forward", payload, 0, None))
        frames = framing.FrameReader()
        while True:
            data = await reader.read(65536)
            if not data:
                raise EOFError
            for frame in frames.feed(data):
                if isinstance(frame, framing.Frame) and frame.stream == stream:
                    try:
                        codec.decode_response(frame.payload)
                    except StatusError:
                        # containerd has seen it and will never like it: trying again is useless.
                        return
                    return
