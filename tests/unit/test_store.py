"""The store's transactions where there are no descriptors: sent, or the end of the service."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence

import pytest

from pyshim.monitor.channel import Message
from pyshim.monitor.fds import memfd
from pyshim.service import store as module
from pyshim.service.store import Store

FULL = OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class FakeLink:
    """Notes what is sent, and how it was cut off."""

    def __init__(self) -> None:
        self.sent = 0
        self.errors: list[OSError] = []

    def send(self, messages: Iterable[Message], owned: Sequence[int] = ()) -> None:
        assert list(messages)
        self.sent += 1
        for fd in owned:
            os.close(fd)

    def cut_off(self, error: OSError) -> None:
        self.errors.append(error)


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    made.link = FakeLink()  # type: ignore[assignment]
    made.keep_reserve()
    yield made
    made.close_reserve()


def limit(monkeypatch: pytest.MonkeyPatch, store: Store, free: int) -> None:
    """Lets so many descriptors be had besides the reserve."""
    most = len(os.listdir("/proc/self/fd")) - 1 + free

    def limited(content: bytes) -> int:
        if len(os.listdir("/proc/self/fd")) > most:
            raise FULL
        return memfd(content)

    monkeypatch.setattr(module, "memfd", limited)


def test_the_reserve_is_for_one_transaction_after_the_other(
    monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    before = os.listdir("/proc/self/fd")
    limit(monkeypatch, store, 0)
    for _ in range(3):
        store.commit()
    assert isinstance(store.link, FakeLink)
    assert (store.link.sent, store.link.errors) == (3, [])
    assert os.listdir("/proc/self/fd") == before


def test_without_a_descriptor_it_is_the_end(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    """Also where the answer is so long that it takes the reserve."""
    limit(monkeypatch, store, 0)
    owned: list[int] = []
    store.send(3, b"x" * 100_000, owned)
    with pytest.raises(OSError, match="Too many open files"):
        store.commit(owned=owned)
    for fd in owned:
        os.close(fd)
    assert isinstance(store.link, FakeLink)
    assert (store.link.sent, store.link.errors) == (0, [FULL])
