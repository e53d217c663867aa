"""One life of a service: takes over from the monitor, serves, parks.

Crash-only: there is no shutdown but parking, and killing the process at any point is as good.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import resource
import socket
import sys
import time
from typing import Any

from pyshim import settings
from pyshim.api import state_pb2
from pyshim.events.publisher import Publisher
from pyshim.monitor import channel
from pyshim.monitor.channel import Message, StopMode, Type, WelcomeFlag
from pyshim.monitor.fds import memfd
from pyshim.service import exits, migrations, oom
from pyshim.service.link import Link
from pyshim.service.log import Level, Log
from pyshim.service.migrations import StateError
from pyshim.service.news import News
from pyshim.service.server import Server
from pyshim.service.store import Store
from pyshim.service.task import Task

PARK_DELAY_S = settings.seconds("PYSHIM_PARK_DELAY_S", 1)
# Between two looks whether to park, when nobody has said that there is something to see.
LOOK_S = 0.003
# containerd says Create as soon as it has an answer to `start`.
UNUSED_S = settings.seconds("PYSHIM_UNUSED_S", 60)
DUMP_TIMEOUT_S = 10
QUIT_GRACE_S = 3
END_TIMEOUT_S = 1
SHARED_IDLE_S = 10
LATEST_ALARM_MS = 2**32 - 1  # what an ALARM can say; after so long there is another
FIRST_ACCEPTED_TAG = 2**31
LISTENER_TAG = 1
CLONE_NEWNS = 0x00020000


class Activation:
    """Owns the store, the server and the publisher of one life.

    ``home`` is the zygote that later services come from, "" for the one that the monitor knows.
    """

    def __init__(self, sock: socket.socket, home: str = "") -> None:
        self.home = home
        self.store = Store()
        self.publisher = Publisher(self.store)
        self.task = Task(self.store, self.publisher)
        self.server = Server(self.store, self.task.handle)
        self.task.server = self.server
        self.server.rested = self.publisher.rested = self._rested
        self._rest = News()
        self.quit_at = 0.0
        self.ready = asyncio.Event()
        self.ended = asyncio.Event()
        self.store.link = Link(sock, self._received, self.ended.set, self._cut_off)

    async def run(self) -> None:
        """Serves until parked, or until the monitor has gone.

        In the middle of a request that is the end of the process.
        """
        asyncio.get_running_loop().set_exception_handler(self._failed)
        self.store.link.open()
        self.store.keep_reserve()
        ended = asyncio.create_task(self.ended.wait())
        ready = asyncio.create_task(self.ready.wait())
        await asyncio.wait(
            {ready, ended}, timeout=DUMP_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        if not self.ready.is_set():
            return
        self._take_over()
        parking = asyncio.create_task(self._park_when_idle())
        await asyncio.wait({parking, ended}, return_when=asyncio.FIRST_COMPLETED)
        if self.server.busy:
            # At once: a request that was cancelled would undo what the next service goes on with.
            os._exit(1)

    async def end(self) -> None:
        """Leaves nothing in the process, which may have another life; nothing is sent any more.

        Raises TimeoutError when something of it goes on.
        """
        loop = asyncio.get_running_loop()
        # What is found later, with the garbage, is no affair of the next life.
        loop.set_exception_handler(lambda _loop, _context: None)
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            _, left = await asyncio.wait(others, timeout=END_TIMEOUT_S)
            if left:
                raise asyncio.TimeoutError
        self.close()

    def close(self) -> None:
        """Lets go of every descriptor."""
        self.server.close()
        self.store.link.close()
        self.store.close_reserve()
        for fd in self.store.held.values():
            os.close(fd)

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback that could not send or receive leaves us behind the state: another goes on."""
        loop.default_exception_handler(context)
        self.store.log.error(
            "callback failed", id=self.store.state.id, error=context.get("exception")
        )
        if isinstance(context.get("exception"), (OSError, channel.ChannelError)):
            # At once: what another callback committed now would be half of a transaction.
            os._exit(1)

    def _cut_off(self, error: OSError) -> None:
        """The monitor takes nothing from us: it has gone, or has given us up; or we cannot send.

        At once: who handled this as a failure of a request would undo what another goes on with.
        """
        self.store.log.warning("nothing can be sent", id=self.store.state.id, error=error)
        os._exit(1)

    # -- what comes from the monitor -----------------------------------------------------------

    def _received(self, message: Message) -> None:
        if message.type is Type.WELCOME:
            self._welcome(message)
        elif message.type is Type.HELD:
            self._held(message)
        elif message.type is Type.READY:
            self.ready.set()
        elif message.type is Type.RANG:
            self.publisher.wake()
            self.server.expire()
        elif message.type is Type.RECORD and not message.fields[0]:
            self._signalled()
        else:
            self.store.received(message)
            if self.ready.is_set():
                self._happened(message)
        self._touch()

    def _welcome(self, message: Message) -> None:
        _, self.store.monitor_pid, flags, self.store.upgrade_error = message.fields
        self.store.monitor_flags = flags
        for fd in message.fds:
            size = os.fstat(fd).st_size
            self.store.state.ParseFromString(os.pread(fd, size, 0))
            os.close(fd)
        join_mounts_of(self.store.monitor_pid)
        state = self.store.state
        self.store.log = Log(state.bundle, Level.DEBUG if state.debug else Level.INFO)
        self.store.log.debug("service activated", id=state.id, pid=os.getpid())
        if not state.next_number:  # once for a container or pod, before its Create
            for text in settings.refused:
                self.store.log.warning(text)
        try:
            migrations.bring_up(state)
        except StateError as error:
            self._refuse(error)

    def _refuse(self, error: StateError) -> None:
        """Ends this service: the monitor goes back to the version that can go on, or waits for it.

        At once: what another callback committed now would be of our making.
        """
        self.store.log.error(str(error))
        self._greet(errno.EPROTO)
        os._exit(1)

    def _greet(self, error: int) -> None:
        """Says what the monitor has to know of this version: whether it works, and its home."""
        words, owned = [], []
        if self.store.monitor_flags & WelcomeFlag.PROBATION:
            words.append(Message(Type.CONFIRM, (error, 0)))
        # A monitor of before does not understand it, and has every service executed then.
        if self.home and not error and self.store.monitor_flags & WelcomeFlag.UPGRADES:
            owned.append(memfd(channel.encode_names(self.home, sys.executable)))
            words.append(Message(Type.HOME, fds=(owned[0],)))
        self.store.link.send(words, owned)

    def _held(self, message: Message) -> None:
        tag, parent = message.fields[0], message.fields[1]
        fd = message.fds[0]
        if tag >= FIRST_ACCEPTED_TAG and parent == LISTENER_TAG:
            self.server.attach(tag, fd)
            return
        self.store.held[tag] = fd
        if parent:
            self.store.parents[parent] = tag
        self.store.notify()

    def _happened(self, message: Message) -> None:
        if message.type is Type.RECORD:
            for container in self.store.containers():
                exits.settle(self.task, container)
            self._forget_strays()
        elif message.type is Type.RELAY_STATUS and message.fields[1] & channel.RELAY_ENDED:
            self._relay_ended(message.fields[0])

    def _relay_ended(self, relay: int) -> None:
        """A relay that no process has any more leaves a record with the monitor; drops it."""
        if relay not in self._known_relays():
            self.store.link.send([Message(Type.RELAY_STOP, (relay, StopMode.FORGET))])

    def _signalled(self) -> None:
        """SIGTERM to the monitor: as the Go shim it ends, so that a host can shut down.

        containerd, if it is there, then removes what is left of the containers.
        """
        self.store.state.ending = True
        if self.ready.is_set():
            self._end_soon()

    def _end_soon(self) -> None:
        """Notes it first: the monitor tells it only once, and we may not live to do it."""
        self.quit_at = self._now() + QUIT_GRACE_S
        self.store.commit()
        self._rest.tell()

    def _forget_strays(self) -> None:
        """Drops records of commands whose call is over (its client's service crashed late)."""
        if self.task.beginning:
            return  # the state does not name yet what is started for these: a logging binary
        tokens = {call.token for call in self.store.state.calls}
        tokens |= {process.logger_token for process in self._processes()}
        pids = {c.init.pid for c in self.store.containers()}
        pids |= {p.pid for c in self.store.containers() for p in c.execs.values()}
        messages = []
        for pid, record in list(self.store.records.items()):
            if record.exited and record.token not in tokens and pid not in pids and record.token:
                messages += self.store.forget(pid)
        self.store.link.send(messages)

    def _take_over(self) -> None:
        self._greet(0)
        for relay in self.store.ended_relays - self._known_relays():
            self.store.link.send([Message(Type.RELAY_STOP, (relay, StopMode.FORGET))])
        self.server.resume()
        for container in self.store.containers():
            if container.created:
                oom.listen(self.task, container)
                exits.settle(self.task, container)
        self.publisher.wake()
        self.server.expire()
        if self.store.state.ending:
            self._end_soon()

    def _known_relays(self) -> set[int]:
        known = {relay for p in self._processes() for relay in [*p.relays, p.stdin_relay]}
        return known | {call.relay for call in self.store.state.calls}

    def _processes(self) -> list[state_pb2.Process]:
        found = []
        for container in self.store.containers():
            found += [container.init, *container.execs.values()]
        return found

    # -- parking -------------------------------------------------------------------------------

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _touch(self) -> None:
        self._last = self._now()

    async def _park_when_idle(self) -> None:
        self._touch()
        while True:
            if self._over():
                self.task.unlink_socket()
                self.store.quit()
                return
            if is_busy := self._busy():
                self._touch()
            left = self._last + self._delay_s() - self._now()
            if self.store.state.shared and self._emptied():
                # Never parks: over API 3 nobody may ever come again to say Shutdown (#13958).
                left = self._last + SHARED_IDLE_S - self._now()
            elif left <= 0 and not is_busy and await self._park():
                return
            await self._rest.wait(LOOK_S if self.quit_at else max(left, LOOK_S))

    def _rested(self) -> None:
        """Something is done: looks whether to park, where it makes sense before the delay is over.

        Not each time: what goes on meanwhile would wait for it.
        """
        if self.quit_at or self._delay_s() == 0 or self._emptied():
            self._rest.tell()

    def _delay_s(self) -> float:
        """How long to stay after what happened last.

        Who asks for statistics alone has nothing more to say until its next round, and asks the
        next container meanwhile, which can have this process.
        """
        return 0 if self.server.methods == {"Stats"} else PARK_DELAY_S

    def _over(self) -> bool:
        """Whether the monitor has no more purpose.

        Normally Shutdown ends it, or a signal.  A containerd that was killed before it said so, or
        that keeps several containers in one shim (2.0 to 2.3), never does: then it ends by itself.
        """
        if self.quit_at and (not self._busy() or self._now() > self.quit_at):
            return True
        if self._unused_ms() == 0 and not self._busy():
            return True
        if self._busy() or not self._emptied():
            return False
        if self.store.state.shared and self._now() > self._last + SHARED_IDLE_S:
            return True
        return not self.server.connected

    def _emptied(self) -> bool:
        """Whether there were containers, and neither one nor an event is left."""
        state = self.store.state
        return state.next_number > 0 and not state.containers and not state.outbox

    def _unused_ms(self) -> int | None:
        """How long a monitor may yet wait for a container; None while it has something to do.

        A containerd that dies between `start` and Create leaves it, also one that dies while Create
        fails; 1.6 then keeps it connected.
        """
        state = self.store.state
        if state.containers or state.calls or state.outbox:
            return None
        with contextlib.suppress(OSError):  # without its socket nobody finds it any more
            since_s = state.empty_since_ns / 1e9 or os.stat(state.socket).st_mtime
            return max(0, int((UNUSED_S - (time.time() - since_s)) * 1000))
        return 0

    def _busy(self) -> bool:
        asked = self.store.link.waiting or self.store.is_behind
        return self.server.busy or self.publisher.busy or asked

    async def _park(self) -> bool:
        sequence, reply = self.store.link.expect()
        seen = self.store.link.events_seen
        bounds = (self.publisher.retry_ms(), self.server.next_expiry_ms(), self._unused_ms())
        due = [ms for ms in bounds if ms]
        messages = [Message(Type.ALARM, (min(*due, LATEST_ALARM_MS) if due else 0, 0))]
        messages.append(Message(Type.PARK, (seen,), sequence=sequence))
        self.store.link.send(messages)
        error, _ = await asyncio.wait_for(reply, DUMP_TIMEOUT_S)
        return error == 0


def join_mounts_of(pid: int) -> None:
    """Enters the mount namespace of ``pid`` where it is another (setns(2)).

    The zygote may have been started by a containerd in another namespace; paths must mean what
    they mean to the monitor.  Raises OSError.
    """
    theirs = f"/proc/{pid}/ns/mnt"
    if os.stat(theirs).st_ino == os.stat("/proc/self/ns/mnt").st_ino:
        return
    fd = os.open(theirs, os.O_RDONLY | os.O_CLOEXEC)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNS):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), theirs)
    os.close(fd)


def prepare() -> asyncio.AbstractEventLoop:
    """A loop for ``main`` that has run: its first turn is its slowest."""
    loop = asyncio.SelectorEventLoop()
    loop.run_until_complete(asyncio.sleep(0))
    return loop


def main(sock: socket.socket, home: str = "", loop: asyncio.AbstractEventLoop | None = None) -> int:
    """Serves over the channel ``sock`` until parked; returns the exit code.

    ``home`` is as for Activation, ``loop`` one that ``prepare`` has made in this process; it is
    closed.  After 0 nothing of this life is left, and the process may have another one.
    """
    # Whatever the monitor holds comes here too, and a burst of execs needs some for each.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    loop = loop or prepare()
    asyncio.set_event_loop(loop)
    try:
        life = Activation(sock, home)
        loop.run_until_complete(life.run())
        loop.run_until_complete(life.end())
    except (OSError, asyncio.TimeoutError, channel.ChannelError) as error:
        print(f"pyshim service: {error}", file=sys.stderr)
        return 1
    finally:
        loop.close()
    return 0
