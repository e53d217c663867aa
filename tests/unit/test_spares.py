"""The zygote's spares: how many, and to whom a connection goes."""

from __future__ import annotations

import os
import select
import socket
import threading

import pytest

from pyshim.monitor.fds import receive
from pyshim.zygote import children, server, spares
from pyshim.zygote.copies import Copy


@pytest.mark.parametrize(
    ("value", "count"),
    [("0", 0), ("3", 3), *((text, spares.DEFAULT_COUNT) for text in ("", "-1", "many", "1e9"))],
)
def test_how_many(monkeypatch: pytest.MonkeyPatch, value: str, count: int) -> None:
    monkeypatch.setenv("PYSHIM_ZYGOTE_SPARES", value)
    assert spares.wanted() == count


def test_the_last_that_lives_is_given_the_connection() -> None:
    ahead = spares.Spares(2, select.poll(), Copy())
    alive, dead = ahead.add(), ahead.add()
    assert not ahead.lacking
    dead.close()
    client, connection = socket.socketpair()
    with alive, client, connection:
        assert ahead.give(connection)
        assert ahead.lacking
        _, fds, _ = receive(alive, 1, 1, 0)
        with socket.socket(fileno=fds[0]) as given:
            given.send(b"x")
            assert client.recv(1) == b"x"
        assert not ahead.give(connection)
    ahead.close()


def heard(ahead: spares.Spares, poller: select.poll) -> int:
    """Tells ``ahead`` of all that the poller hears; of how many that is."""
    ready = poller.poll(0)
    for fd, _ in ready:
        ahead.heard(fd)
    return len(ready)


def test_who_comes_back_is_given_the_next_connection() -> None:
    poller = select.poll()
    ahead = spares.Spares(1, poller, Copy())
    client, connection = socket.socketpair()
    with ahead.add() as spare, client, connection:
        for _ in range(3):
            assert ahead.due_ms is None
            assert ahead.give(connection)
            assert ahead.due_ms == spares.AWAY_MS
            _, fds, _ = receive(spare, 1, 1, 0)
            os.close(fds[0])
            assert heard(ahead, poller) == 0
            spares.come_back(spare, "")
            assert heard(ahead, poller) == 1
        assert ahead.give(connection)
    assert heard(ahead, poller) == 1
    assert heard(ahead, poller) == 0
    assert ahead.due_ms == spares.REFILL_MS


def test_those_who_are_too_many_end() -> None:
    poller = select.poll()
    ahead = spares.Spares(1, poller, Copy())
    away = [ahead.add_away() for _ in range(spares.MAX_WAITING + 2)]
    assert not ahead.give(away[0])
    for end in away:
        spares.come_back(end, "")
    heard(ahead, poller)
    assert ahead.due_ms == spares.SURPLUS_MS
    ahead.trim()
    assert ahead.due_ms is None
    assert sum(end.recv(1) == b"" for end in away if select.select([end], [], [], 0)[0]) == 5
    ahead.close()
    assert all(end.recv(1) == b"" for end in away)
    for end in away:
        end.close()


def test_a_fork_that_failed_leaves_nothing() -> None:
    poller = select.poll()
    ahead = spares.Spares(1, poller, Copy())
    ahead.withdraw(ahead.add())
    assert ahead.due_ms == spares.REFILL_MS
    ahead.withdraw(ahead.add_away())
    assert ahead.due_ms == spares.REFILL_MS
    assert heard(ahead, poller) == 0


def test_all_ends_can_be_closed() -> None:
    ahead = spares.Spares(2, select.poll(), Copy())
    with ahead.add() as first, ahead.add_away() as second:
        ahead.close()
        assert first.recv(1) == b""
        assert second.recv(1) == b""
    assert ahead.lacking


def test_a_process_shows_its_name() -> None:
    child = os.fork()
    if child == 0:
        spares.rename(spares.NAME)
        with open("/proc/self/comm", encoding="ascii") as file:
            os._exit(file.read() != f"{spares.NAME}\n")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_of_many_that_are_away_some_do_not_come_back() -> None:
    """Whatever happens at once, the zygote keeps descriptors for whoever asks."""
    poller = select.poll()
    ahead = spares.Spares(1, poller, Copy())
    away = [ahead.add_away() for _ in range(spares.MAX_AWAY + 1)]
    assert not ahead.lacking
    away[0].close()
    assert heard(ahead, poller) == 1
    assert ahead.lacking
    child = os.fork()
    if child == 0:
        spares.come_back(away[-1], "")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert heard(ahead, poller) == 0
    ahead.close()
    for end in away:
        end.close()


def test_a_thread_that_goes_on_is_seen() -> None:
    """Of a mount that hangs: it must not come about in the midst of another container's life."""
    before = children.place()
    over = threading.Event()
    hanging = threading.Thread(target=over.wait)
    hanging.start()
    assert children.place() != before
    over.set()
    hanging.join()
    assert children.place() == before


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in the first element."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def lend(ahead: spares.Spares, poller: select.poll, spare: socket.socket) -> None:
    """Has the spare take a connection."""
    client, connection = socket.socketpair()
    with client, connection:
        assert ahead.give(connection)
    _, fds, _ = receive(spare, 1, 1, 0)
    os.close(fds[0])


def test_who_was_brief_is_expected_back(clock: list[float]) -> None:
    poller = select.poll()
    ahead = spares.Spares(1, poller, Copy())
    with ahead.add() as spare:
        for took_s, is_brief in ((2.0, False), (spares.BRIEF_S / 2, True), (2.0, False)):
            lend(ahead, poller, spare)
            clock[0] += took_s
            spares.come_back(spare, "")
            heard(ahead, poller)
            lend(ahead, poller, spare)
            assert ahead.expected(0) == is_brief
            assert not ahead.expected(1)
            clock[0] += spares.BRIEF_S
            assert not ahead.expected(0)
            spares.come_back(spare, "")
            heard(ahead, poller)
    ahead.close()


class Family(server.Family):
    """One whose forks only note what they were for."""

    def __init__(self, poller: select.poll) -> None:
        super().__init__("", [], poller)
        self.forked: list[int] = []

    def fork(self, connection: socket.socket) -> None:
        self.forked.append(connection.fileno())


def ask_one_that_is_brief(
    family: Family, poller: select.poll, spare: socket.socket
) -> socket.socket:
    """Has the spare be away again, briefly as before, and somebody ask; his end."""
    lend(family.spares, poller, spare)
    spares.come_back(spare, "")
    heard(family.spares, poller)
    lend(family.spares, poller, spare)
    client, connection = socket.socketpair()
    family.serve(connection)
    return client


def test_the_next_waits_for_a_spare_that_is_expected(clock: list[float]) -> None:
    poller = select.poll()
    family = Family(poller)
    assert family.queue_ms is None
    with family.spares.add() as spare:
        client = ask_one_that_is_brief(family, poller, spare)
        family.serve_queue()
        assert (family.forked, family.queue_ms) == ([], spares.BRIEF_S * 1000)
        other, second = socket.socketpair()  # there is one spare, and one waits for it
        family.serve(second)
        assert len(family.forked) == 1
        spares.come_back(spare, "")
        heard(family.spares, poller)
        family.serve_queue()
        assert family.queue_ms is None
        _, fds, _ = receive(spare, 1, 1, 0)
        with client, other, socket.socket(fileno=fds[0]) as given:
            given.send(b"x")
            assert client.recv(1) == b"x"
            assert other.recv(1) == b""  # the zygote has closed its end
    family.spares.close()


def test_it_does_not_wait_for_long(clock: list[float]) -> None:
    poller = select.poll()
    family = Family(poller)
    with family.spares.add() as spare:
        client = ask_one_that_is_brief(family, poller, spare)
        clock[0] += spares.BRIEF_S
        assert family.queue_ms == 0
        family.serve_queue()
        assert len(family.forked) == 1
        with client:
            assert client.recv(1) == b""
    family.spares.close()
