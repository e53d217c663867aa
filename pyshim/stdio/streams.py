"""Opens what a process's stdin, stdout and stderr are connected to.

The monitor pumps the bytes; here the ends are opened and the messages are made that give them
to it.  Every descriptor that is opened here is in ``Streams.owned`` until the datagram is sent.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import tempfile
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pyshim.api import state_pb2
from pyshim.monitor import channel
from pyshim.monitor.channel import HoldFlag, Message, Type
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
    streams = Streams()
    try:
        await _output(store, process, streams)
    except BaseException:
        streams.close()
        raise
    return streams


async def _output(store: Store, process: state_pb2.Process, streams: Streams) -> None:
    null = streams.own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
    streams.child = [null, null, null]
    if process.stdin:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        streams.child[0] = streams.own(reader)
        streams.own(writer)
        _stdin(store, process, streams, writer)
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


def _stdin(store: Store, process: state_pb2.Process, streams: Streams, target: int) -> None:
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


def console(store: Store, process: state_pb2.Process) -> Streams:
    """A listening socket on which the runtime will deliver the terminal.

    The monitor accepts on it, so that the terminal is not lost with a service.  Changes
    ``process``.  Raises OSError.
    """
    streams = Streams()
    folder = tempfile.mkdtemp(prefix="pyshim-pty", dir="/tmp")
    process.console_path = os.path.join(folder, "s")
    process.console_tag = store.new_tag()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(process.console_path)
    os.chmod(process.console_path, 0o600)
    listener.listen(1)
    fd = streams.own(listener.detach())
    streams.messages.append(Message(Type.HOLD, (process.console_tag, HoldFlag.ACCEPT), (fd,)))
    return streams


def peek_terminal(connection: int) -> int:
    """The terminal that waits in ``connection``; it is left there for the next service.

    Returns the descriptor, or -1 when it has not come yet.  Raises OSError.
    """
    sock = socket.socket(fileno=os.dup(connection))
    with sock:
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            _, fds, _, _ = socket.recv_fds(sock, 4096, 1, flags)
        except BlockingIOError:
            return -1
    return fds[0] if fds else -1


async def terminal(store: Store, process: state_pb2.Process, master: int) -> Streams:
    """Relays between the terminal ``master`` (now owned) and the process's fifos.

    Changes ``process``.  Raises StatusError or OSError, with nothing left open.
    """
    streams = Streams()
    streams.own(master)
    try:
        process.master_tag = store.new_tag()
        if process.stdin:
            _stdin(store, process, streams, master)
        if process.stdout:
            target = await open_output(process.stdout, streams)
            relay = store.new_relay()
            process.relays.append(relay)
            streams.messages.append(Message(Type.RELAY, (relay, 0), (master, target)))
        streams.messages.append(Message(Type.HOLD, (process.master_tag, 0), (master,)))
    except BaseException:
        streams.close()
        raise
    return streams


def remove_console(process: state_pb2.Process) -> None:
    """Removes the console socket's directory, if there is one."""
    if process.console_path:
        for remove, path in (
            (os.unlink, process.console_path),
            (os.rmdir, os.path.dirname(process.console_path)),
        ):
            try:
                remove(path)
            except FileNotFoundError:
                continue
        process.console_path = ""
