"""The service's memory: the state that survives it, and what it knows of the monitor's holdings.

``commit`` is the only way in which state leaves the service.  Change the state and commit it
with the messages that belong to the change, without an ``await`` between: the datagram is the
transaction (``monitor/protocol.md``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable

from pyshim.api import state_pb2
from pyshim.monitor import channel
from pyshim.monitor.channel import Message, RecordFlag, StopMode, Type
from pyshim.monitor.fds import memfd
from pyshim.service.link import Link
from pyshim.service.log import Log
from pyshim.service.news import News

# Of each some dozens of bytes in the state, which every transaction writes.
MAX_DELETED = 32
# Of what is committed later; each is some dozens of bytes.
MOST_LATER = 64


class Record:
    """What the monitor last said of a process."""

    def __init__(self, message: Message) -> None:
        self.pid, flags, self.token, status, _, self.seconds, self.nanos = message.fields
        self.exited = bool(flags & RecordFlag.EXITED)
        self.exit_status = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else status >> 8


class Store:
    """The state, the held descriptors by tag, and the processes by pid and token."""

    def __init__(self) -> None:
        self.link: Link
        self.log = Log()
        self.state = state_pb2.State()
        self.held: dict[int, int] = {}
        self.parents: dict[int, int] = {}
        self.monitor_pid = 0
        self.monitor_flags = 0
        self.upgrade_error = 0
        self.records: dict[int, Record] = {}
        self.commands: dict[int, int] = {}
        self.relays: set[int] = set()  # that the monitor has spoken of
        self.ended_relays: set[int] = set()
        self.moved: dict[int, int] = {}  # bytes of those
        self.unread_relays: set[int] = set()
        self._news = News()
        self._later: list[Message] = []
        self._reserve = -1

    # -- numbers -------------------------------------------------------------------------------

    def new_tag(self) -> int:
        """A tag for a descriptor; tag 1 is the listener's."""
        self.state.next_tag = max(self.state.next_tag, 1) + 1
        return self.state.next_tag

    def new_relay(self) -> int:
        """The id of a new relay."""
        self.state.next_relay += 1
        return self.state.next_relay

    def new_number(self) -> int:
        """A number for a runtime command or an event; never given twice."""
        self.state.next_number += 1
        return self.state.next_number

    # -- what the monitor says -----------------------------------------------------------------

    def received(self, message: Message) -> None:
        """Takes in a RECORD or a RELAY."""
        if message.type is Type.RECORD:
            record = Record(message)
            self.records[record.pid] = record
            if message.fields[1] & RecordFlag.SPAWNED:
                self.commands[record.token] = record.pid
        elif message.type is Type.RELAY_STATUS:
            relay, flags = message.fields[:2]
            self.relays.add(relay)
            if flags & channel.RELAY_ENDED:
                self.ended_relays.add(relay)
                self.moved[relay] = message.fields[4]
            elif flags & channel.RELAY_NOBODY_READS:
                self.unread_relays.add(relay)
        self.notify()

    def notify(self) -> None:
        """Lets everyone who waits in ``until`` look again."""
        self._news.tell()

    async def until(self, true: Callable[[], bool], timeout_s: float) -> bool:
        """Waits until ``true()``; says whether it became so within ``timeout_s``."""
        return await self._news.until(true, timeout_s)

    # -- transactions --------------------------------------------------------------------------

    def commit(self, *messages: Message, owned: list[int] | None = None) -> None:
        """Sends ``messages`` and the state as one datagram; closes the descriptors ``owned``.

        What cannot be sent is the end of this service: its memory is not the state any more.
        Raises OSError should ``cut_off`` of the link return.
        """
        blob = self._memory(self.state.SerializeToString())
        batch = [*self._later, *messages, Message(Type.STATE, fds=(blob,))]
        self._later = []
        self.link.send(batch, [blob, *(owned or [])])
        self.keep_reserve()

    def commit_later(self, *messages: Message) -> None:
        """As ``commit``, but in one transaction with the next one.

        That is made by what is begun in this turn of the loop, or else right after it.
        """
        if not self._later:
            asyncio.get_running_loop().call_soon(self._commit_rest)
        self._later += messages
        if len(self._later) >= MOST_LATER:  # a datagram has a bound
            self.commit()

    def quit(self, *messages: Message) -> None:
        """Has the monitor end after ``messages``, and after what was to be committed later.

        Raises as ``Link.send``.
        """
        last = [*self._later, *messages]
        self._later = []
        self.link.quit(*last)

    @property
    def is_behind(self) -> bool:
        """Whether something is to be committed later."""
        return bool(self._later)

    def _commit_rest(self) -> None:
        if self._later:
            self.commit()

    def keep_reserve(self) -> None:
        """Has a descriptor ready that one transaction can have when there is no other.

        So a request that fails for want of descriptors is answered, and says so.
        """
        if self._reserve < 0:
            with contextlib.suppress(OSError):
                self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def close_reserve(self) -> None:
        """Gives it up."""
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1

    def _memory(self, content: bytes) -> int:
        """As ``memfd``; for what must be sent."""
        with contextlib.suppress(OSError):
            return memfd(content)
        self.close_reserve()
        try:
            return memfd(content)
        except OSError as error:
            self.link.cut_off(error)
            raise

    def send(self, tag: int, data: bytes, owned: list[int]) -> Message:
        """A SEND of ``data``; a memfd that it needs is appended to ``owned``."""
        if len(data) <= channel.INLINE_SEND_BYTES:
            return Message(Type.SEND, (tag, len(data)), tail=data)
        fd = self._memory(data)
        owned.append(fd)
        return Message(Type.SEND, (tag, len(data)), fds=(fd,))

    def forget(self, pid: int) -> list[Message]:
        """The message that drops the record of ``pid``, if there is one."""
        record = self.records.pop(pid, None)
        if record is None:
            return []
        self.commands.pop(record.token, None)
        return [Message(Type.FORGET, (pid, 0))]

    def drop(self, *tags: int) -> list[Message]:
        """The messages that end the holding of ``tags``; 0 stands for none."""
        messages = []
        for tag in tags:
            fd = self.held.pop(tag, None)
            if fd is not None:
                os.close(fd)
            if tag:
                messages.append(Message(Type.DROP, (tag, 0)))
        return messages

    def stop_relay(self, relay: int) -> list[Message]:
        """The message that drains and ends a relay, or drops the record of one that has ended."""
        if not relay:
            return []
        mode = StopMode.FORGET if relay in self.ended_relays else StopMode.DRAIN
        return [Message(Type.RELAY_STOP, (relay, mode))]

    # -- what has been deleted -----------------------------------------------------------------

    def remember_deleted(self, container: str, process: state_pb2.Process) -> None:
        """Notes what Delete has answered, for a client that did not hear it and asks again."""
        self.forget_deleted(container, process.id)
        self.state.deleted.add(
            id=container,
            exec_id=process.id,
            pid=process.pid,
            exit_status=process.exit_status,
            exited_seconds=process.exited_seconds,
            exited_nanos=process.exited_nanos,
        )
        del self.state.deleted[:-MAX_DELETED]

    def deleted(self, container: str, exec_id: str) -> state_pb2.Deleted | None:
        """What is remembered of a deleted process."""
        matching = (d for d in self.state.deleted if (d.id, d.exec_id) == (container, exec_id))
        return next(matching, None)

    def forget_deleted(self, container: str, exec_id: str = "") -> None:
        """Of a process whose id is given anew; with its container go its execs."""
        kept = [
            known
            for known in self.state.deleted
            if known.id != container or (exec_id and known.exec_id != exec_id)
        ]
        del self.state.deleted[:]
        self.state.deleted.extend(kept)

    def remove(self, container: str) -> None:
        """Removes a container from the state; when it was the last, notes the time."""
        del self.state.containers[container]
        if not self.state.containers:
            self.state.empty_since_ns = time.time_ns()

    def containers(self) -> list[state_pb2.Container]:
        """All containers of the group."""
        return list(self.state.containers.values())
