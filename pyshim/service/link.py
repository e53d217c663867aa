"""The service's end of the monitor's channel: datagrams out, replies and events in.

It knows messages, never what they are for.
"""

from __future__ import annotations

import array
import asyncio
import errno
import os
import select
import socket
from collections.abc import Callable, Iterable, Sequence

from pyshim.monitor import channel
from pyshim.monitor.channel import Message, Type
from pyshim.monitor.fds import receive

# A monitor that takes nothing for this long is stopped or gone; the service cannot go on.
SEND_TIMEOUT_S = 30
EVENTS = {Type.HELD, Type.RECORD, Type.RELAY_STATUS, Type.RANG}


class Link:
    """Owns the channel's socket.

    ``received(message)`` is called for every message that is no REPLY, ``lost()`` once when the
    monitor has gone, ``cut_off(error)`` when a datagram could not be sent.
    """

    def __init__(
        self,
        sock: socket.socket,
        received: Callable[[Message], None],
        lost: Callable[[], None],
        cut_off: Callable[[OSError], None],
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.events_seen = 0
        self._received = received
        self._lost = lost
        self.cut_off = cut_off
        self._has_quit = False
        self._sequence = 0
        self._replies: dict[int, asyncio.Future[tuple[int, int]]] = {}

    def open(self) -> None:
        """Says HELLO and begins to receive; needs a running loop."""
        asyncio.get_running_loop().add_reader(self.sock.fileno(), self._readable)
        self.send([Message(Type.HELLO, (channel.VERSION, os.getpid()))])

    def close(self) -> None:
        """The end of ``open``."""
        asyncio.get_running_loop().remove_reader(self.sock.fileno())
        self.sock.close()

    def send(self, messages: Iterable[Message], owned: Sequence[int] = ()) -> None:
        """Sends one datagram, then closes ``owned``: the monitor has its own copies.

        Waits while the monitor is behind.  When it has gone, has given us up or takes nothing,
        ``cut_off`` is called; raises OSError should that return.
        """
        try:
            data, fds = channel.encode([] if self._has_quit else messages)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            # Nothing to say is no datagram: an empty one is not understood.
            while data and not self._sent(data, rights):
                self._await_room()
        except OSError as error:
            self.cut_off(error)
            raise
        finally:
            for fd in owned:
                os.close(fd)

    def quit(self, *messages: Message) -> None:
        """Sends ``messages`` and has the monitor end: this life is over, and says no more.

        Who hung up on what the monitor closes now would be told of it in vain, and fail by that.
        Raises as ``send``.
        """
        self.send([*messages, Message(Type.QUIT)])
        self._has_quit = True
        self._lost()

    def _sent(self, data: bytes, rights: list[tuple[int, int, array.array[int]]]) -> bool:
        """Whether there was room; the loop has made the socket non-blocking."""
        try:
            self.sock.sendmsg([data], rights)
        except BlockingIOError:
            return False
        return True

    def _await_room(self) -> None:
        room = select.poll()
        room.register(self.sock, select.POLLOUT)
        if not room.poll(SEND_TIMEOUT_S * 1000):
            raise TimeoutError(f"the monitor has taken nothing for {SEND_TIMEOUT_S} s")

    def expect(self) -> tuple[int, asyncio.Future[tuple[int, int]]]:
        """A sequence number for a request, and the future of its reply (errno, value)."""
        self._sequence += 1
        future = asyncio.get_running_loop().create_future()
        self._replies[self._sequence] = future
        return self._sequence, future

    def forget(self, sequence: int) -> None:
        """Waits no longer for a reply that may never come."""
        self._replies.pop(sequence, None)

    @property
    def waiting(self) -> bool:
        """Whether a reply is outstanding."""
        return bool(self._replies)

    def _readable(self) -> None:
        for _ in range(64):
            try:
                data, fds, flags = receive(
                    self.sock,
                    channel.MAX_DATAGRAM_BYTES,
                    channel.MAX_DATAGRAM_FDS,
                    socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC,
                )
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                asyncio.get_running_loop().remove_reader(self.sock.fileno())
                self._lost()
                return
            if flags & socket.MSG_CTRUNC:
                raise channel.ChannelError("descriptors were lost on the way; raise RLIMIT_NOFILE")
            for message in channel.decode(data, fds):
                self._deliver(message)

    def _deliver(self, message: Message) -> None:
        if message.type is Type.REPLY:
            if message.fields[0] == errno.EBADMSG:
                # Some transaction was not carried out: the state is no longer what we think.
                raise channel.ChannelError("the monitor did not understand, or had no descriptors")
            future = self._replies.pop(message.sequence, None)
            if future and not future.done():
                future.set_result((message.fields[0], message.fields[2]))
            return
        self.events_seen += message.type in EVENTS
        self._received(message)
