"""The service's end of the channel, on real sockets."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from pyshim.monitor import channel
from pyshim.monitor.channel import Message, Type
from pyshim.monitor.fds import receive
from pyshim.service.link import Link

Pair = tuple[socket.socket, socket.socket]
BOUND_S = 30


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends of a channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_a_peek_leaves_data_and_descriptors_to_the_next_reader(pair: Pair) -> None:
    ours, theirs = pair
    with open(os.devnull) as sent:
        socket.send_fds(theirs, [b"terminal"], [sent.fileno()])
    peek = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    for flags in (peek, peek, socket.MSG_CMSG_CLOEXEC):
        data, fds, _ = receive(ours, 4096, 1, flags)
        assert (data, len(fds)) == (b"terminal", 1)
        assert not os.get_inheritable(fds[0])
        os.close(fds[0])
    with pytest.raises(BlockingIOError):
        receive(ours, 4096, 1, peek)


def test_waits_for_a_monitor_that_is_behind(pair: Pair) -> None:
    ours, theirs = pair
    ours.setblocking(False)  # as the event loop does
    full = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            full += ours.send(b"x")
    message = Message(Type.SEND, (5, 3), tail=b"abc")
    link = Link(ours, lambda message: None, lambda: None, lambda error: None)
    sender = threading.Thread(target=link.send, args=([message],), daemon=True)
    sender.start()
    sender.join(0.1)
    assert sender.is_alive()
    theirs.settimeout(BOUND_S)
    assert all(theirs.recv(channel.MAX_DATAGRAM_BYTES) == b"x" for _ in range(full))
    assert channel.decode(theirs.recv(channel.MAX_DATAGRAM_BYTES), []) == [message]
    sender.join(BOUND_S)
    assert not sender.is_alive()


def test_nothing_to_say_is_no_datagram(pair: Pair) -> None:
    ours, theirs = pair
    kept, given = os.pipe()
    Link(ours, lambda message: None, lambda: None, lambda error: None).send([], [given])
    with pytest.raises(BlockingIOError):
        theirs.recv(1, socket.MSG_DONTWAIT)
    assert os.read(kept, 1) == b""  # what was given up is closed all the same
    os.close(kept)


@pytest.mark.parametrize("sequence", [0, 7])
def test_a_transaction_that_was_not_carried_out_ends_the_service(pair: Pair, sequence: int) -> None:
    """As where the monitor has no descriptors left: the next service begins with what is true."""
    ours, theirs = pair
    reply = Message(Type.REPLY, (errno.EBADMSG, 0, 0), sequence=sequence)
    theirs.send(channel.encode([reply])[0])
    link = Link(ours, lambda message: None, lambda: None, lambda error: None)
    with pytest.raises(channel.ChannelError):
        link._readable()


def test_a_monitor_that_has_gone_ends_the_service_before_its_caller_goes_on(pair: Pair) -> None:
    ours, theirs = pair
    theirs.close()
    found: list[OSError] = []

    def cut_off(error: OSError) -> None:
        found.append(error)
        raise SystemExit(1)

    kept, given = os.pipe()
    link = Link(ours, lambda message: None, lambda: None, cut_off)
    with pytest.raises(SystemExit):
        link.send([Message(Type.SEND, (5, 3), tail=b"abc")], [given])
    assert [error.errno for error in found] == [errno.EPIPE]
    assert os.read(kept, 1) == b""
    os.close(kept)


def test_after_quit_nothing_is_said_any_more(pair: Pair) -> None:
    ours, theirs = pair
    ended: list[bool] = []
    link = Link(ours, lambda message: None, lambda: ended.append(True), lambda error: None)
    farewell = Message(Type.SEND, (5, 3), tail=b"abc")
    link.quit(farewell)
    assert ended == [True]
    data = theirs.recv(channel.MAX_DATAGRAM_BYTES)
    assert [message.type for message in channel.decode(data, [])] == [Type.SEND, Type.QUIT]
    theirs.close()
    kept, given = os.pipe()
    link.send([Message(Type.DROP, (5, 0))], [given])
    os.close(kept)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(given)
