"""Sends the events in the outbox to containerd, in order, until it has taken them.

Order is containerd's contract (create < start < exit < delete); so nothing overtakes an event
that failed.  The connection is the monitor's: an event is sent in the transaction that notes it
as sent, and leaves the outbox in the one that consumes the answer, so that a service that is
killed repeats none.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable

from pyshim.api import events_pb2, forward_pb2
from pyshim.events.spool import Spool
from pyshim.monitor.channel import HoldFlag, Message, Type
from pyshim.service.store import Store
from pyshim.ttrpc import codec, framing

SERVICE = "containerd.services.events.ttrpc.v1.Events"
DIAL_TIMEOUT_S = 5  # the Go publisher's
# For an answer that is later than this no service stays: it activates one when it comes.
PATIENCE_S = 5
# Only then is an event sent again.  A containerd that is stopped or swamped has it already, and
# would tell it twice.
ANSWER_TIMEOUT_S = 60
PEEK_BYTES = 64 * 1024
PARTIAL_POLL_S = 0.01
RETRY_MAX_MS = 30_000
OUTBOX_MAX_EVENTS = 4096
EXIT_TOPIC = "/tasks/exit"
# What a client learns from the answer to its call: its next call, which comes at once, goes first.
UNHURRIED = {"/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started"}
UNHURRIED_S = 0.003

TaskEvent = (
    events_pb2.TaskCreate
    | events_pb2.TaskStart
    | events_pb2.TaskExit
    | events_pb2.TaskDelete
    | events_pb2.TaskOOM
    | events_pb2.TaskExecAdded
    | events_pb2.TaskExecStarted
    | events_pb2.TaskPaused
    | events_pb2.TaskResumed
)


class Publisher:
    """Owns the connection to containerd's event service while there is something to send."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._task: asyncio.Task[None] | None = None
        self._late = False
        self._timer: asyncio.TimerHandle | None = None
        self._spool = Spool()
        self.rested: Callable[[], None] = lambda: None  # is called when all has been told

    def queue(self, topic: str, event: TaskEvent) -> None:
        """Adds an event to the outbox; it is sent after the commit that the caller owes.

        An outbox that is full loses its oldest event that is no exit, and says so.

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
        outbox.add(
            number=self.store.new_number(),
            envelope=envelope.SerializeToString(),
            container=event.container_id,
            is_exit=topic == EXIT_TOPIC,
        )
        if len(outbox) > OUTBOX_MAX_EVENTS:
            # What is being sent cannot be taken back.
            sent = self.store.state.publishing
            oldest = (i for i, e in enumerate(outbox) if not e.is_exit and e.number != sent)
            del outbox[next(oldest, 1)]
            self.store.state.dropped += 1
        loop = asyncio.get_running_loop()
        if topic not in UNHURRIED:
            loop.call_soon(self.wake)
        elif self._timer is None:
            self._timer = loop.call_later(UNHURRIED_S, self.wake)

    def wake(self) -> None:
        """Begins to send what is in the outbox, unless that is under way.

        While containerd is known to be away, puts it on disk first.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.store.state.publish_failures:
            self._keep()
        if self._task is None and self.store.state.outbox:
            self._task = asyncio.get_running_loop().create_task(self._send_all())

    def _keep(self) -> None:
        try:
            self._spool.keep(self.store.state.outbox, self._bundles())
        except OSError as error:
            self.store.log.error("events cannot be kept on disk", error=error)

    def _bundles(self) -> dict[str, str]:
        return {container.id: container.bundle for container in self.store.containers()}

    @property
    def busy(self) -> bool:
        """Whether a delivery is under way that it makes sense to wait for."""
        return (self._task is not None and not self._late) or self._timer is not None

    def retry_ms(self) -> int:
        """When to try again; 0 when nothing waits."""
        state = self.store.state
        if not state.outbox:
            return 0
        if state.publishing:
            return max(1, int(self._answer_left_s() * 1000))
        return int(min(1000 * 2 ** min(state.publish_failures, 10), RETRY_MAX_MS))

    def _answer_left_s(self) -> float:
        return (self.store.state.publish_until_ns - time.time_ns()) / 1e9

    async def _send_all(self) -> None:
        state = self.store.state
        failures = state.publish_failures
        try:
            await self._deliver()
            state.publish_failures = 0
        except (OSError, asyncio.TimeoutError, EOFError) as error:
            self.store.log.warning("events wait for containerd", error=repr(error))
            state.publish_failures = failures + 1
            self.store.commit(*self._hang_up())
            self._keep()
            asyncio.get_running_loop().call_later(self.retry_ms() / 1000, self.wake)
        finally:
            self._task = None
            self._late = False
        if state.publish_failures < failures:
            self._caught_up()
        self.store.notify()
        self.rested()

    def _caught_up(self) -> None:
        """The next service must begin with the shortest pause again."""
        self._spool.clear(self._bundles().values())
        if self.store.state.dropped:
            # Not before: while containerd was away nobody read the log.
            text = "events were dropped while containerd was away: too many waited"
            self.store.log.warning(text, dropped=self.store.state.dropped)
            self.store.state.dropped = 0
        self.store.commit()

    async def _deliver(self) -> None:
        """Sends until the outbox is empty; goes on where an earlier service was."""
        state = self.store.state
        while state.outbox or state.publishing:
            owned: list[int] = []
            if state.publisher_tag in self.store.held and state.publishing:
                await self._answer()
                continue
            left = self._hang_up()
            messages = await self._connect()
            self.store.commit(*left, *messages, *self._next(owned), owned=owned)

    async def _connect(self) -> list[Message]:
        """A connection to containerd; the message that has the monitor keep it."""
        path = self.store.state.ttrpc_address.removeprefix("unix://")
        flags = socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with socket.socket(socket.AF_UNIX, flags) as sock:
            connecting = asyncio.get_running_loop().sock_connect(sock, path)
            await asyncio.wait_for(connecting, DIAL_TIMEOUT_S)
            fd = sock.detach()
        tag = self.store.new_tag()
        self.store.state.publisher_tag = tag
        self.store.held[tag] = fd
        return [Message(Type.HOLD, (tag, HoldFlag.WATCH), (fd,))]

    def _hang_up(self) -> list[Message]:
        """Forgets the connection and what was sent on it; the message that closes it."""
        state = self.store.state
        tag = state.publisher_tag
        state.publisher_tag = state.publisher_stream = 0
        state.publishing = state.publish_until_ns = 0
        return self.store.drop(tag)

    def _next(self, owned: list[int]) -> list[Message]:
        """The message that sends the first event; the one that hangs up when there is none."""
        state = self.store.state
        if not state.outbox:
            return self._hang_up()
        event = state.outbox[0]
        state.publisher_stream += 2 if state.publisher_stream else 1
        state.publishing = event.number
        state.publish_until_ns = time.time_ns() + int(ANSWER_TIMEOUT_S * 1e9)
        request = forward_pb2.ForwardRequest()
        request.envelope.ParseFromString(event.envelope)
        frame = codec.encode_request(
            state.publisher_stream, SERVICE, "Forward", request.SerializeToString()
        )
        return [self.store.send(state.publisher_tag, frame, owned)]

    async def _answer(self) -> None:
        """Takes what containerd has said, and with its answer sends the next event.

        What it answers does not matter: what it has refused it will never like.
        """
        state = self.store.state
        tag = state.publisher_tag
        await self._readable(self.store.held[tag])
        data = peek(self.store.held[tag])
        reader = framing.FrameReader()
        frames = reader.feed(data)
        if not frames:
            await asyncio.sleep(PARTIAL_POLL_S)
            return
        owned: list[int] = []
        sequence, consumed = self.store.link.expect()
        size = len(data) - len(reader.pending)
        messages = [Message(Type.CONSUME, (tag, size), sequence=sequence)]
        if any(frame.stream == state.publisher_stream for frame in frames):
            self._taken()
            messages += self._next(owned)
        self.store.commit(*messages, owned=owned)
        await consumed

    def _taken(self) -> None:
        """containerd has the event that was sent."""
        state = self.store.state
        for at, event in enumerate(state.outbox):
            if event.number == state.publishing:
                del state.outbox[at]
                self._spool.taken(event.number)
                break
        state.publishing = 0

    async def _readable(self, fd: int) -> None:
        """Waits for news on the connection; raises TimeoutError when there has been none long."""
        loop = asyncio.get_running_loop()
        came = asyncio.Event()
        loop.add_reader(fd, came.set)
        patience = loop.call_later(PATIENCE_S, self._lose_patience)
        try:
            await asyncio.wait_for(came.wait(), max(0, self._answer_left_s()))
        finally:
            patience.cancel()
            loop.remove_reader(fd)
            self._late = False

    def _lose_patience(self) -> None:
        self._late = True
        self.store.notify()


def peek(connection: int) -> bytes:
    """What waits in ``connection``, and stays there; raises EOFError at its end, OSError."""
    with socket.socket(fileno=os.dup(connection)) as sock:
        data = sock.recv(PEEK_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    if not data:
        raise EOFError("containerd has closed the connection")
    return data
