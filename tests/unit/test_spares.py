"""The zygote's spares: how many, and to whom a connection goes."""

from __future__ import annotations

import os
import socket

import pytest

from pyshim.monitor.fds import receive
from pyshim.zygote import spares


@pytest.mark.parametrize(
    ("value", "count"),
    [("0", 0), ("3", 3), *((text, spares.DEFAULT_COUNT) for text in ("", "-1", "many", "1e9"))],
)
def test_how_many(monkeypatch: pytest.MonkeyPatch, value: str, count: int) -> None:
    monkeypatch.setenv("PYSHIM_ZYGOTE_SPARES", value)
    assert spares.wanted() == count


def test_the_first_that_lives_is_given_the_connection() -> None:
    ahead = spares.Spares(2)
    dead, alive = ahead.add(), ahead.add()
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


def test_all_ends_can_be_closed() -> None:
    ahead = spares.Spares(2)
    with ahead.add() as first, ahead.add() as second:
        ahead.withdraw()
        assert second.recv(1) == b""
        ahead.close()
        assert first.recv(1) == b""
    assert ahead.lacking


def test_a_process_shows_its_name() -> None:
    child = os.fork()
    if child == 0:
        spares.rename(spares.NAME)
        with open("/proc/self/comm", encoding="ascii") as file:
            os._exit(file.read() != f"{spares.NAME}\n")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
