"""Opens what a process's stdin, stdout and stderr are connected to.

The monitor pumps the bytes; here the ends are opened and the messages are made that give them
to it.  Every descriptor that is opened here is in ``Streams.owned``, to be closed when the datagram
has been sent, or in ``Streams.held``, for the store.

Output is relayed only once the runtime has done its work.  Until then it is the runtime's own, and
what that says on stderr when it fails is not for the container's reader.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import stat
import sys
import termios
from dataclasses import dataclass, field

from pyshim.api import state_pb2
from pyshim.monitor.channel import HoldFlag, Message, RelayFlag, Type
from pyshim.monitor.fds import is_readable
from pyshim.service.store import Store
from pyshim.stdio import logger
from pyshim.stdio.uri import parse, scheme_of
from pyshim.ttrpc.status import Code, StatusError

# containerd's Go shim gives a fifo's reader as long (process.Init, copy set-up).
READER_TIMEOUT_S = 30
READER_POLL_S = 0.005
MAX_PRINTED_BYTES = 4096
F_GETPIPE_SZ = 1032  # fcntl(2)
# Nobody may make us wait, or give us a terminal.
OPENED = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass
class Streams:
    """The ends that a child gets as 0, 1 and 2, and the messages that set up the others."""

    child: list[int] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    owned: list[int] = field(default_factory=list)
    held: dict[int, int] = field(default_factory=dict)

    def own(self, fd: int) -> int:
        """Notes that ``fd`` is to be closed once it has been sent; returns it."""
        self.owned.append(fd)
        return fd

    def hold(self, tag: int, fd: int) -> None:
        """Has the monitor hold ``fd``, which is owned, and the store keep it."""
        self.messages.append(Message(Type.HOLD, (tag, 0), (fd,)))
        self.owned.remove(fd)
        self.held[tag] = fd

    def sent(self, store: Store) -> list[int]:
        """Gives up every descriptor; returns those to be closed with the datagram."""
        store.held.update(self.held)
        owned, self.owned, self.held = self.owned, [], {}
        return owned

    def close(self) -> None:
        """Closes everything, for a set-up that failed."""
        for fd in (*self.owned, *self.held.values()):
            os.close(fd)
        self.owned.clear()
        self.held.clear()


async def pipes(
    store: Store,
    call: state_pb2.Call,
    container: state_pb2.Container,
    process: state_pb2.Process,
) -> Streams:
    """Pipes to the process, a relay for its stdin, and what ``connect`` needs for its output.

    The process's ends belong to the container's root, so that it may open them again by /dev/stdout
    in a user namespace.  Changes ``process`` and ``call`` (what is held for it).
    Raises StatusError or OSError, with nothing left open.
    """
    clear(process)  # what a service noted that was killed before it could begin
    streams = Streams()
    try:
        await _open_all(store, call, container.id, process, streams)
        owner = container.io_uid, container.io_gid
        if owner != (0, 0):
            for fd in set(streams.child):
                if is_fifo(fd):
                    os.fchown(fd, *owner)
    except BaseException:
        streams.close()
        raise
    return streams


async def _open_all(
    store: Store, call: state_pb2.Call, name: str, process: state_pb2.Process, streams: Streams
) -> None:
    null = streams.own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
    streams.child = [null, null, null]
    if process.stdin:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        streams.child[0] = streams.own(reader)
        add_stdin(store, process, streams, streams.own(writer))
    if logger.is_binary(process.stdout):
        streams.child[1:] = await logger.start(store, call, name, process, streams.owned)
        return
    for number, uri in ((1, process.stdout), (2, process.stderr)):
        if number == 2 and uri and (uri == process.stdout or scheme_of(process.stdout) == "file"):
            # To one file, whatever the other says (shim.md 2.12).
            streams.child[2] = streams.child[1]
        elif uri:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            streams.child[number] = streams.own(writer)
            streams.own(reader)
            await open_output(store, call, streams, uri)
            output = process.outputs.add(source_tag=store.new_tag(), uri=uri)
            streams.hold(output.source_tag, reader)


def connect(store: Store, call: state_pb2.Call, process: state_pb2.Process) -> None:
    """Begins to relay the output of a process that the runtime has made; not a terminal's.

    Commits the state.  Raises OSError.
    """
    # What is held for a terminal was so by a service that was killed in ``terminal.connect``: let
    # go here, its reader would see the end.
    if process.terminal or (not process.outputs and not call.holding):
        return
    streams = Streams()
    relays = []
    try:
        for output in process.outputs:
            target, flags = _open(output.uri, streams)
            relays.append(store.new_relay())
            ends = (store.held[output.source_tag], target)
            streams.messages.append(Message(Type.RELAY, (relays[-1], flags), ends))
    except BaseException:
        streams.close()
        raise
    for output in process.outputs:
        streams.own(store.held.pop(output.source_tag))
        streams.messages += store.drop(output.source_tag)
    process.relays.extend(relays)
    del process.outputs[:]
    store.commit(*streams.messages, *let_go(store, call), owned=streams.sent(store))


def relieve(store: Store, call: state_pb2.Call, process: state_pb2.Process) -> None:
    """Begins to relay while the runtime is still at work, when it has filled half of a pipe.

    It would block for ever in the next write; the Go shim relays all that a runtime prints.
    """
    for output in process.outputs:
        source = store.held.get(output.source_tag)
        # A page may hold one write of little more than half of it.
        if source is not None and waiting(source) * 2 >= fcntl.fcntl(source, F_GETPIPE_SZ):
            with contextlib.suppress(OSError):  # then it waits; its command has a bound
                connect(store, call, process)
            return


def waiting(pipe: int) -> int:
    """How many bytes wait in a pipe (FIONREAD).  Raises OSError."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def printed(store: Store, process: state_pb2.Process) -> str:
    """What the runtime has said on stderr instead of making the process, "" when that is unknown.

    It is still in the pipe, since nothing is relayed before there is a process.
    """
    for output in process.outputs:
        source = store.held.get(output.source_tag)
        if source is None or output.uri != (process.stderr or process.stdout):
            continue
        if is_readable(source):
            return os.read(source, MAX_PRINTED_BYTES).decode(errors="replace")
    return ""


def add_stdin(store: Store, process: state_pb2.Process, streams: Streams, target: int) -> None:
    """A relay from the stdin fifo or file to ``target``.  Changes ``process``.  Raises OSError."""
    path = fifo_path(process.stdin)
    source = streams.own(handle(path))
    process.stdin_relay = store.new_relay()
    if not is_fifo(source):
        source = streams.own(opened(source, os.O_RDONLY, path))
        fields = (process.stdin_relay, int(RelayFlag.STDIN))
        streams.messages.append(Message(Type.RELAY, fields, (source, target)))
        return
    fields = (process.stdin_relay, RelayFlag.STDIN | RelayFlag.OPEN_SOURCE)
    streams.messages.append(Message(Type.RELAY, fields, (source, target)))
    # Holds the fifo open for writing, so that a client that detaches is not an end of file.
    process.keeper_tag = store.new_tag()
    streams.messages.append(Message(Type.HOLD, (process.keeper_tag, HoldFlag.OPEN), (source,)))


async def open_output(
    store: Store, call: state_pb2.Call, streams: Streams, uri: str
) -> tuple[int, int]:
    """Opens the fifo or file that ``uri`` names, a fifo once it has a reader.

    Returns what RELAY wants: the descriptor, which ``streams`` owns, and flags.  Changes ``call``
    for a fifo.  Raises StatusError for an unknown scheme and for a reader that does not come,
    OSError else.
    """
    target, flags = _open(uri, streams)
    if flags & RelayFlag.OPEN_DESTINATION:
        await await_reader(store, call, target, fifo_path(uri))
    return target, flags


def _open(uri: str, streams: Streams) -> tuple[int, int]:
    path = fifo_path(uri)
    target = streams.own(log_file(path) if scheme_of(uri) == "file" else handle(path))
    if is_fifo(target):
        return target, int(RelayFlag.OPEN_DESTINATION)
    if scheme_of(uri) != "file":
        target = streams.own(opened(target, os.O_WRONLY | os.O_APPEND, path))
    return target, 0


def log_file(path: str) -> int:
    """The file of a file:// URI, which is made when it is not there; as in the Go shim a symlink
    leads to it.  Of a fifo that nobody reads, which would make us wait, an O_PATH descriptor.

    Raises OSError.
    """
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | OPENED
    try:
        return os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return os.open(path, os.O_PATH | os.O_CLOEXEC)


def handle(path: str) -> int:
    """An O_PATH descriptor of ``path``, by which to look at it and to open it.

    What is looked at is what is opened, whoever changes the path meanwhile.  And whoever owns the
    folder of a fifo must not have us open another file by a symlink in its place.  Raises OSError.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    if stat.S_ISLNK(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ELOOP, "is a symlink; give the fifo or file itself", path)
    return fd


def opened(fd: int, flags: int, path: str) -> int:
    """What the O_PATH descriptor ``fd`` of ``path`` stands for, opened.  Raises OSError."""
    try:
        return os.open(f"/proc/self/fd/{fd}", flags | OPENED)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


async def await_reader(store: Store, call: state_pb2.Call, fifo: int, path: str) -> None:
    """Waits until ``fifo`` (an O_PATH descriptor) has a reader, and has the monitor keep it.

    A reader whose only writer goes away sees the end; so it is the monitor that opens, and what it
    holds is noted in ``call`` until the relay has taken over.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + READER_TIMEOUT_S
    tag = store.new_tag()
    call.holding.append(tag)
    while True:
        sequence, reply = store.link.expect()
        fields = (tag, int(HoldFlag.OPEN))
        store.commit(Message(Type.HOLD, fields, (fifo,), sequence))
        error, _ = await asyncio.wait_for(reply, READER_TIMEOUT_S)
        if error == 0:
            return
        if error != errno.ENXIO:
            raise OSError(error, os.strerror(error), path)
        if loop.time() > deadline:
            raise StatusError(Code.DEADLINE_EXCEEDED, f"{path}: nobody opened it for reading")
        await asyncio.sleep(READER_POLL_S)


def let_go(store: Store, call: state_pb2.Call) -> list[Message]:
    """The messages that end the holding for ``call``: relays have taken over, or never will."""
    messages = store.drop(*call.holding)
    del call.holding[:]
    return messages


def is_fifo(fd: int) -> bool:
    """Whether ``fd`` stands for a fifo."""
    return stat.S_ISFIFO(os.fstat(fd).st_mode)


def fifo_path(uri: str) -> str:
    """The path in ``uri`` (a plain path, fifo:// or file://).  Raises StatusError on others."""
    if scheme_of(uri) not in {"", "fifo", "file"}:
        raise StatusError(Code.UNKNOWN, f"unknown STDIO scheme {scheme_of(uri)}")
    return parse(uri).path


def clear(process: state_pb2.Process) -> None:
    """Forgets which streams a process has, in the state."""
    del process.relays[:]
    del process.outputs[:]
    process.stdin_relay = process.keeper_tag = process.console_tag = process.master_tag = 0
    process.logger_token = 0
