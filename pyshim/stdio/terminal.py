"""A process's terminal: how the runtime delivers it, its relays and its size.

The monitor accepts the runtime's connection and holds it, so that the terminal is not lost with a
service.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import termios

from pyshim.api import state_pb2
from pyshim.monitor.channel import HoldFlag, Message, Type
from pyshim.monitor.fds import receive
from pyshim.service.store import Store
from pyshim.stdio import logger
from pyshim.stdio.streams import Streams, add_stdin, clear, let_go, open_output
from pyshim.ttrpc.status import Code, StatusError

TERMINAL_TIMEOUT_S = 10
MAX_SIZE = 2**16 - 1  # struct winsize


def console(store: Store, bundle: str, process: state_pb2.Process) -> Streams:
    """A listening socket in the bundle, on which the runtime will deliver the terminal.

    Changes ``process``.  Raises OSError.
    """
    clear(process)
    streams = Streams()
    process.console_tag = store.new_tag()
    name = f"pty{process.console_tag}.sock"
    process.console_path = os.path.join(bundle, name)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(process.console_path)  # by a service that was killed here
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    folder = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # A bundle's path may be longer than a socket's address; the runtime, whose working
        # directory it is, gets the bare name.
        listener.bind(f"/proc/self/fd/{folder}/{name}")
        os.chmod(process.console_path, 0o600)
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(folder)
    fd = streams.own(listener.detach())
    streams.messages.append(Message(Type.HOLD, (process.console_tag, HoldFlag.ACCEPT), (fd,)))
    return streams


async def connect(
    store: Store, call: state_pb2.Call, name: str, process: state_pb2.Process
) -> None:
    """Takes the terminal that the runtime has sent, if there is to be one, and relays it.

    Commits the state.  Raises StatusError or OSError.
    """
    if not process.console_tag or process.master_tag:
        return
    tag = process.console_tag
    if not await store.until(lambda: tag in store.parents, TERMINAL_TIMEOUT_S):
        raise StatusError(Code.UNKNOWN, "the OCI runtime sent no terminal")
    master = peek(store.held[store.parents[tag]])
    if master < 0:
        raise StatusError(Code.UNKNOWN, "the OCI runtime connected but sent no terminal")
    streams = await _relays(store, call, name, process, master)
    store.commit(*streams.messages, *let_go(store, call), owned=streams.sent(store))


def peek(connection: int) -> int:
    """The terminal that waits in ``connection``; it is left there for the next service.

    Returns the descriptor, or -1 when it has not come yet.  Raises OSError.
    """
    with socket.socket(fileno=os.dup(connection)) as sock:
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            _, fds, _ = receive(sock, 4096, 1, flags)
        except BlockingIOError:
            return -1
    return fds[0] if fds else -1


async def _relays(
    store: Store, call: state_pb2.Call, name: str, process: state_pb2.Process, master: int
) -> Streams:
    """Relays between the terminal ``master`` (now owned) and the process's fifos.

    Changes ``process`` and ``call``.  Raises StatusError or OSError, with nothing left open.
    """
    del process.relays[:]  # what a service noted that was killed before it could commit them
    streams = Streams()
    streams.own(master)
    try:
        if process.stdout:
            if logger.is_binary(process.stdout):
                writers = await logger.start(store, call, name, process, streams.owned)
                target, flags = writers[0], 0
            else:
                target, flags = await open_output(store, call, streams, process.stdout)
            relay = store.new_relay()
            process.relays.append(relay)
            streams.messages.append(Message(Type.RELAY, (relay, flags), (master, target)))
        if process.stdin:
            add_stdin(store, process, streams, master)
        process.master_tag = store.new_tag()
        streams.hold(process.master_tag, master)
    except BaseException:
        streams.close()
        raise
    return streams


def forget_console(store: Store, process: state_pb2.Process) -> list[Message]:
    """The messages that close the socket on which the terminal was delivered; removes its file."""
    connection = store.parents.pop(process.console_tag, 0)
    messages = store.drop(process.console_tag, connection)
    if process.console_path:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(process.console_path)
    process.console_path = ""
    process.console_tag = 0
    return messages


def set_size(terminal: int, width: int, height: int) -> None:
    """Sets a terminal's size in characters (TIOCSWINSZ, ioctl_tty(2)).  Raises OSError."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
