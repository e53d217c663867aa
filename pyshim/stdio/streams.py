"""Opens what a process's stdin, stdout and stderr are connected to.

The monitor pumps the bytes; here the ends are opened and the messages are made that give them
to it.  Every descriptor that is opened here is in ``Streams.owned`` until the datagram is sent.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pyshim.api import state_pb2
from pyshim.monitor import channel
from pyshim.monitor.channel import Message, Type
from pyshim.service.store import Store
from pyshim.ttrpc.status import Code, StatusError

# containerd's Go shim gives a fifo's reader as long (process.Init, copy set-up).
READER_TIMEOUT_S = 30
READER_POLL_S = 0.005


@dataclass
class Streams:
    """The ends that a child gets as 0, 1 and 2, and the messages that set up the others."""

    child: list[int] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    owned: list[int] = field(default_factory=list)

    def own(self, fd: int) -> int:
        """Notes that ``fd`` is to be closed once it has been sent; returns it."""
        self.owned.append(fd)
        return fd

    def close(self) -> None:
        """Closes everything, for a set-up that failed."""
        for fd in self.owned:
            os.close(fd)
        self.owned.clear()


async def pipes(store: Store, process: state_pb2.Process) -> Streams:
    """Pipes to the process, and relays between them and its fifos or files.

    Changes ``process`` (relays, keeper).  Raises StatusError or OSError, with nothing left open.
    """
    clear(process)  # what a service noted that was killed before it could begin
    streams = Streams()
    try:
        await _open_all(store, process, streams)
    except BaseException:
        streams.close()
        raise
    return streams


async def _open_all(store: Store, process: state_pb2.Process, streams: Streams) -> None:
    null = streams.own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
    streams.child = [null, null, null]
    if process.stdin:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        streams.child[0] = streams.own(reader)
        streams.own(writer)
        open_stdin(store, process, streams, writer)
    shared: int | None = None
    for number, path in ((1, process.stdout), (2, process.stderr)):
        if not path:
            continue
        target = await open_output(path, streams)
        if number == 2 and path == process.stdout and shared is not None:
            streams.child[2] = shared
            continue
        reader, writer = os.pipe2(os.O_CLOEXEC)
        streams.own(reader)
        shared = streams.child[number] = streams.own(writer)
        relay = store.new_relay()
        process.relays.append(relay)
        streams.messages.append(Message(Type.RELAY, (relay, 0), (reader, target)))


def open_stdin(store: Store, process: state_pb2.Process, streams: Streams, target: int) -> None:
    """A relay from the stdin fifo to ``target``.  Changes ``process``.  Raises OSError."""
    path = fifo_path(process.stdin)
    source = streams.own(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    # Holds the fifo open for writing, so that a client that detaches is not an end of file.
    keeper = streams.own(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    process.stdin_relay = store.new_relay()
    process.keeper_tag = store.new_tag()
    fields = (process.stdin_relay, channel.RELAY_STDIN)
    streams.messages.append(Message(Type.RELAY, fields, (source, target)))
    streams.messages.append(Message(Type.HOLD, (process.keeper_tag, 0), (keeper,)))


async def open_output(uri: str, streams: Streams) -> int:
    """Opens the fifo or file that ``uri`` names for writing; ``streams`` owns it.

    A fifo is opened once its reader is there, and then once more for reading, so that a reader
    that goes away and comes back (containerd restarted) is no EPIPE.  Raises StatusError for an
    unknown scheme and for a reader that does not come, OSError else.
    """
    path = fifo_path(uri)
    if urlsplit(uri).scheme == "file":
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return streams.own(os.open(path, flags, 0o644))
    if not stat.S_ISFIFO(os.stat(path).st_mode):
        return streams.own(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))
    loop = asyncio.get_running_loop()
    deadline = loop.time() + READER_TIMEOUT_S
    while True:
        try:
            writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            break
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        if loop.time() > deadline:
            raise StatusError(Code.DEADLINE_EXCEEDED, f"{path}: nobody opened it for reading")
        await asyncio.sleep(READER_POLL_S)
    try:
        return streams.own(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    finally:
        os.close(writer)


def fifo_path(uri: str) -> str:
    """The path in ``uri`` (a plain path, fifo:// or file://).  Raises StatusError on others."""
    parts = urlsplit(uri)
    if parts.scheme not in {"", "fifo", "file"}:
        raise StatusError(Code.UNKNOWN, f"unknown STDIO scheme {parts.scheme}")
    if not parts.path.startswith("/") or "\0" in parts.path:
        raise StatusError(Code.INVALID_ARGUMENT, f"{uri!r}: not an absolute path")
    return parts.path


def clear(process: state_pb2.Process) -> None:
    """Forgets which streams a process has, in the state."""
    del process.relays[:]
    process.stdin_relay = process.keeper_tag = process.console_tag = process.master_tag = 0
