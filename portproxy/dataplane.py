"""The control plane's end of a running ``portproxy-relay``.

It starts a relay, or takes over one that a former control plane has left, and speaks to it.  No
byte of a connection passes through here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portproxy import channel
from pyshim.monitor.fds import receive

RELAY = "portproxy-relay"
ANSWER_BOUND_S = 15.0
END_BOUND_S = 5.0
CAP_NET_ADMIN = 12
LISTEN_BACKLOG = 4


# A datagram and the descriptors that came with it.
Answered = tuple[bytes, list[int]]


class DataPlaneError(Exception):
    """The relay cannot be started or has gone; the message is one line."""


@dataclass(frozen=True)
class Confinement:
    """Whose privileges a relay has: ``user`` is a name or ``UID:GID``."""

    user: str = "nobody"
    net_admin: bool = False
    seccomp: bool = True

    def options(self) -> list[str]:
        """The relay's options for it.  Raises DataPlaneError."""
        words = [] if self.seccomp else ["-no-seccomp"]
        if os.geteuid() != 0:
            return words
        if self.net_admin:
            words.append("-keep-net-admin")
        uid, _, gid = self.user.partition(":")
        if not (uid.isdecimal() and gid.isdecimal()):
            try:
                found = pwd.getpwnam(self.user)
            except KeyError:
                reason = f"there is no user {self.user!r} to run the data plane as"
                raise DataPlaneError(f"{reason}; name one with user") from None
            uid, gid = str(found.pw_uid), str(found.pw_gid)
        return [*words, "-user", f"{uid}:{gid}"]


@dataclass
class DataPlane:
    """A relay that is spoken to.  ``process`` is None if somebody else has started it."""

    socket: socket.socket
    process: subprocess.Popen[bytes] | None
    on_event: Callable[[dict[str, Any]], None]
    on_lost: Callable[[], None]
    pid: int = 0
    version: str = ""
    waiting: deque[asyncio.Future[Answered]] = field(default_factory=deque)
    lost: bool = False

    async def begin(self) -> None:
        """Starts to listen to it.  Raises DataPlaneError if it is no relay, or of another time."""
        self.socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self.socket.fileno(), self._read)
        answer = await self.request(channel.simple("hello", channel.VERSION))
        if not isinstance(answer, channel.Done) or answer.number != channel.VERSION:
            raise DataPlaneError("the relay speaks another version of the control channel")
        self.pid = answer.other

    async def request(self, data: bytes, fds: Sequence[int] = ()) -> channel.Done | channel.Refused:
        """One command and its answer.  Raises DataPlaneError if there is none in time."""
        answer, came = await self._exchange(data, fds)
        _close(came)
        return answer

    async def share(self, serial: int) -> list[int]:
        """The listeners of a mapping, which the caller closes; none if it cannot be shared.

        Raises DataPlaneError.
        """
        answer, came = await self._exchange(channel.simple("share", serial))
        if isinstance(answer, channel.Refused):
            _close(came)
            return []
        return came

    async def _exchange(
        self, data: bytes, fds: Sequence[int] = ()
    ) -> tuple[channel.Done | channel.Refused, list[int]]:
        if self.lost:
            raise DataPlaneError("the relay has ended")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answered] = loop.create_future()
        try:
            if fds:
                socket.send_fds(self.socket, [data], list(fds))
            else:
                self.socket.send(data)
        except OSError as error:
            raise DataPlaneError(f"cannot speak to the relay: {error.strerror}") from error
        self.waiting.append(future)
        # Not wait_for(): before Python 3.12 it loses a cancellation that comes with the answer.
        late = loop.call_later(ANSWER_BOUND_S, _give_up, future)
        try:
            raw, came = await future
        finally:
            late.cancel()
        answer = channel.parse(raw)
        assert not isinstance(answer, channel.Event)
        return answer, came

    def has_net_admin(self) -> bool:
        """Whether it has CAP_NET_ADMIN."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> CAP_NET_ADMIN & 1)
        return False

    async def records(self, word: str) -> list[dict[str, Any]]:
        """All mappings (``list``) or connections, and last the record of the whole process."""
        found: list[dict[str, Any]] = []
        cursor = 0
        while True:
            answer = await self.request(channel.simple(word, cursor))
            if isinstance(answer, channel.Refused):
                raise DataPlaneError(f"{word}: {answer.text}")
            *some, last = answer.records()
            found += some
            cursor = int(last["next"])
            if cursor == 0:
                return [*found, last]

    def _read(self) -> None:
        while True:
            try:
                data, came, _ = receive(
                    self.socket, channel.MOST_BYTES, channel.MOST_FDS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                data, came = b"", []
            if not data:
                self._lose()
                return
            if data.startswith(b"{"):
                with contextlib.suppress(channel.ChannelError):
                    event = channel.parse(data)
                    assert isinstance(event, channel.Event)
                    self.on_event(event.record)
            elif self.waiting:
                future = self.waiting.popleft()
                if not future.done():
                    future.set_result((data, came))
                    continue
            _close(came)

    def _lose(self) -> None:
        if self.lost:
            return
        self.lost = True
        asyncio.get_running_loop().remove_reader(self.socket.fileno())
        self.socket.close()
        for future in self.waiting:
            if not future.done():
                future.set_exception(DataPlaneError("the relay has ended"))
        self.waiting.clear()
        self.on_lost()

    def leave(self) -> None:
        """Stops speaking to it; a relay of its own ends with that."""
        self.on_lost = lambda: None
        self._lose()

    def ended_how(self) -> str:
        """How our relay has ended, for people."""
        if self.process is None:
            return ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(END_BOUND_S)
            return f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return ""

    def kill(self) -> None:
        """Ends our relay, whatever it does, and reaps it."""
        self.leave()
        if self.process is not None:
            self.process.kill()
            self.process.wait(END_BOUND_S)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _give_up(future: asyncio.Future[Answered]) -> None:
    if not future.done():
        future.set_exception(
            DataPlaneError(f"the relay has not answered in {ANSWER_BOUND_S:.0f} s")
        )


def find_relay() -> str:
    """The path of the relay: beside the interpreter, or on PATH.  Raises DataPlaneError."""
    beside = Path(sys.executable).parent / RELAY
    if os.access(beside, os.X_OK):
        return str(beside)
    found = shutil.which(RELAY)
    if found is None:
        raise DataPlaneError(f"{RELAY} is neither in {beside.parent} nor on PATH; reinstall pyshim")
    return found


def start(
    confinement: Confinement,
    on_event: Callable[[dict[str, Any]], None],
    on_lost: Callable[[], None],
    path: str = "",
) -> DataPlane:
    """Starts a relay.  With a ``path`` it outlives us, and the next control plane finds it there.

    Raises DataPlaneError.  ``begin`` must follow.
    """
    options = confinement.options()
    program = find_relay()
    if path:
        theirs = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        mask = os.umask(0o177)
        try:
            theirs.bind(path)
            theirs.listen(LISTEN_BACKLOG)
        except OSError as error:
            theirs.close()
            raise DataPlaneError(f"cannot make {path}: {error.strerror}") from error
        finally:
            os.umask(mask)
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    else:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        # In a session of its own: Ctrl-C is for the tool, which ends its relay in order.
        process = subprocess.Popen(
            [program, "-control", str(theirs.fileno()), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        if path:
            ours.connect(path)
    return DataPlane(ours, process, on_event, on_lost)


def adopt(
    path: str, on_event: Callable[[dict[str, Any]], None], on_lost: Callable[[], None]
) -> DataPlane | None:
    """Takes over the relay that listens at ``path``; None if there is none.

    A relay that has just lost its control plane needs a moment to see it.
    """
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    deadline = time.monotonic() + END_BOUND_S
    while True:
        try:
            ours.connect(path)
            return DataPlane(ours, None, on_event, on_lost)
        except BlockingIOError:
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        except OSError:
            break
    ours.close()
    return None
