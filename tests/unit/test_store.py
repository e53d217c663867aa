"""The store's transactions where there are no descriptors: sent, or the end of the service."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Iterator

import pytest

from pyshim.monitor import channel
from pyshim.monitor.channel import Message, Type
from pyshim.monitor.fds import memfd, receive
from pyshim.service import store as module
from pyshim.service.link import Link
from pyshim.service.store import Store

FULL = OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Peer:
    """The monitor's end of a store's link, and how the link was cut off."""

    def __init__(self, store: Store) -> None:
        self.socket, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.errors: list[OSError] = []
        self.link = store.link = Link(ours, lambda message: None, lambda: None, self.errors.append)

    def sent(self) -> int:
        """How many datagrams have come since this was last asked."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while self.socket.recv(1, socket.MSG_DONTWAIT):
                count += 1
        return count

    def types(self) -> list[Type]:
        """What the messages of the next datagram are."""
        data, fds, _ = receive(self.socket, channel.MAX_DATAGRAM_BYTES, 8, socket.MSG_DONTWAIT)
        messages = channel.decode(data, fds)
        for fd in fds:
            os.close(fd)
        return [message.type for message in messages]

    def close(self) -> None:
        self.socket.close()
        self.link.sock.close()


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    made.keep_reserve()
    yield made
    made.close_reserve()


@pytest.fixture
def peer(store: Store) -> Iterator[Peer]:
    made = Peer(store)
    yield made
    made.close()


def limit(monkeypatch: pytest.MonkeyPatch, store: Store, free: int) -> None:
    """Lets so many descriptors be had besides the reserve."""
    most = len(os.listdir("/proc/self/fd")) - 1 + free

    def limited(content: bytes) -> int:
        if len(os.listdir("/proc/self/fd")) > most:
            raise FULL
        return memfd(content)

    monkeypatch.setattr(module, "memfd", limited)


def test_the_reserve_is_for_one_transaction_after_the_other(
    monkeypatch: pytest.MonkeyPatch, store: Store, peer: Peer
) -> None:
    before = os.listdir("/proc/self/fd")
    limit(monkeypatch, store, 0)
    for _ in range(3):
        store.commit()
    assert (peer.sent(), peer.errors) == (3, [])
    assert os.listdir("/proc/self/fd") == before


def test_without_a_descriptor_it_is_the_end(
    monkeypatch: pytest.MonkeyPatch, store: Store, peer: Peer
) -> None:
    """Also where the answer is so long that it takes the reserve."""
    limit(monkeypatch, store, 0)
    owned: list[int] = []
    store.send(3, b"x" * 100_000, owned)
    with pytest.raises(OSError, match="Too many open files"):
        store.commit(owned=owned)
    for fd in owned:
        os.close(fd)
    assert (peer.sent(), peer.errors) == (0, [FULL])


def test_what_is_committed_later_goes_with_the_next_commit(store: Store, peer: Peer) -> None:
    async def play() -> None:
        for is_joined in (True, False):
            store.commit_later(Message(Type.CONSUME, (5, 7)))
            store.commit_later(Message(Type.DROP, (6, 0)))
            assert store.is_behind
            assert peer.sent() == 0
            if is_joined:
                store.commit(Message(Type.ALARM, (1, 0)))
                assert peer.types() == [Type.CONSUME, Type.DROP, Type.ALARM, Type.STATE]
            await asyncio.sleep(0)
            if not is_joined:
                assert peer.types() == [Type.CONSUME, Type.DROP, Type.STATE]
            assert peer.sent() == 0
            assert not store.is_behind

    asyncio.run(play())


def test_what_is_committed_later_fits_into_a_datagram(store: Store, peer: Peer) -> None:
    async def play() -> None:
        for number in range(module.MOST_LATER + 1):
            store.commit_later(Message(Type.FORGET, (number, 0)))
        assert len(peer.types()) == module.MOST_LATER + 1
        assert peer.sent() == 0
        await asyncio.sleep(0)
        assert peer.types() == [Type.FORGET, Type.STATE]

    asyncio.run(play())


def test_what_was_to_be_committed_later_goes_before_the_end(store: Store, peer: Peer) -> None:
    async def play() -> None:
        store.commit_later(Message(Type.CONSUME, (5, 7)))
        store.quit(Message(Type.DROP, (6, 0)))
        assert peer.types() == [Type.CONSUME, Type.DROP, Type.QUIT]
        await asyncio.sleep(0)
        assert peer.sent() == 0

    asyncio.run(play())
