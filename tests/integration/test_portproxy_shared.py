"""Listeners that several relays accept from: the control channel's part, and sanitizers."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from portproxy import channel
from portproxy.channel import Done, Refused
from tests.integration.relays import BOUND_S, eventually
from tests.integration.test_portproxy_relay import Controlled
from tests.integration.tool import Echo, echo, says


class Sharing(Controlled):
    """A relay whose answers may have descriptors with them."""

    def share(self, serial: int) -> tuple[Done | Refused, list[int]]:
        """What it answers, and the listeners, which the caller closes."""
        self.socket.send(channel.simple("share", serial))
        data, fds, _, _ = socket.recv_fds(self.socket, channel.MOST_BYTES, channel.MOST_FDS)
        answer = channel.parse(data)
        assert isinstance(answer, Done | Refused)
        return answer, fds

    def accepted(self) -> int:
        """How many clients all its mappings have had."""
        *mappings, _ = self.done(channel.simple("list", 0)).records()
        return sum(record["accepted"] for record in mappings)

    def fds(self) -> list[str]:
        """Its descriptors."""
        return sorted(os.listdir(f"/proc/{self.process.pid}/fd"))


@pytest.fixture
def relays(binary: str) -> Iterator[tuple[Sharing, Sharing]]:
    """Two relays without mappings."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(2):
            made.append(Sharing(binary))
            stack.callback(made[-1].end)
        yield made[0], made[1]


@pytest.fixture
def backend() -> Iterator[Echo]:
    """Something to forward to."""
    with echo("it") as made:
        yield made


def join(one: Sharing, other: Sharing, serial: int, line: str) -> int:
    """Has the other serve a mapping, too; its number there."""
    answer, fds = one.share(serial)
    try:
        assert isinstance(answer, Done), answer
        added = other.serve(line, tuple(fds))
    finally:
        for fd in fds:
            os.close(fd)
    return added.number


def both_accept(one: Sharing, other: Sharing, port: int) -> None:
    """Clients come until each of the two has had one more."""
    before = one.accepted(), other.accepted()

    def had() -> bool:
        assert says(("127.0.0.1", port)) == "it"
        return one.accepted() > before[0] and other.accepted() > before[1]

    eventually(had, "both have had a client")


@pytest.mark.parametrize("serving", [False, True])
def test_a_port_of_two(relays: tuple[Sharing, Sharing], backend: Echo, serving: bool) -> None:
    one, other = relays
    line = f"tcp 127.0.0.1 0 127.0.0.1 {backend.port}"
    added = one.serve(line) if serving else one.done(channel.add(line))
    there = join(one, other, added.number, f"{line} shared=0")
    if not serving:
        one.done(channel.start(added.number))
    both_accept(one, other, added.other)
    # The kernel has chosen the port, and both know it.
    (record, _) = other.done(channel.simple("list", 0)).records()
    assert (record["port"], record["open"]) == (added.other, 1)
    # What one gives up the other still has; the first must not hear of its clients.
    one.done(channel.remove(added.number, 0))
    for _ in range(20):
        assert says(("127.0.0.1", added.other)) == "it"
    again = join(other, one, there, f"{line} shared=0")
    both_accept(one, other, added.other)
    other.done(channel.remove(there, 0))
    assert says(("127.0.0.1", added.other)) == "it"
    one.done(channel.remove(again, 0))
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", added.other)) != 0


def test_an_update_leaves_the_listener(relays: tuple[Sharing, Sharing], backend: Echo) -> None:
    one, other = relays
    line = f"tcp 127.0.0.1 0 127.0.0.1 {backend.port}"
    added = one.serve(line)
    there = join(one, other, added.number, f"{line} shared=0")
    with echo("other") as new:
        line = f"tcp 127.0.0.1 0 127.0.0.1 {new.port}"
        one.done(channel.update(added.number, line))
        other.done(channel.update(there, line))
        for _ in range(20):
            assert says(("127.0.0.1", added.other)) == "other"
    line = f"tcp 127.0.0.1 0 127.0.0.1 {backend.port}"
    one.done(channel.update(added.number, line))
    other.done(channel.update(there, f"{line} shared=0"))
    both_accept(one, other, added.other)


def test_a_range_of_two(relays: tuple[Sharing, Sharing], backend: Echo) -> None:
    one, other = relays
    for first in range(21000, 30000, channel.MOST_FDS):
        line = f"tcp 127.0.0.1 {first}-{first + channel.MOST_FDS - 1} 127.0.0.1 {backend.port}"
        added = one.ask(channel.add(line))
        if isinstance(added, Done):
            break
    assert isinstance(added, Done)
    one.done(channel.start(added.number))
    join(one, other, added.number, f"{line} shared=0")
    both_accept(one, other, added.other)
    both_accept(one, other, added.other + channel.MOST_FDS - 1)


def test_a_unix_socket_of_two(
    relays: tuple[Sharing, Sharing], backend: Echo, tmp_path: Path
) -> None:
    one, other = relays
    line = f"tcp 0.0.0.0 0 127.0.0.1 {backend.port}"
    path = str(tmp_path / "front")
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(path)
        given.listen()
        added = one.serve(f"{line} fd=0", (given.fileno(),))
    join(one, other, added.number, f"{line} shared=0")

    def had() -> bool:
        assert says(path, socket.AF_UNIX) == "it"
        return one.accepted() > 0 and other.accepted() > 0

    eventually(had, "both have had a client")
    records = [each.done(channel.simple("list", 0)).records()[0] for each in relays]
    assert [record["port"] for record in records] == [0, 0]


def test_an_inherited_socket_that_is_given_up_is_not_heard_of(
    relays: tuple[Sharing, Sharing], backend: Echo
) -> None:
    """Its parent still has it, so that closing it alone would not end the kernel's reports."""
    one, _ = relays
    with socket.create_server(("127.0.0.1", 0)) as given:
        line = f"tcp 0.0.0.0 0 127.0.0.1 {backend.port} fd=0"
        added = one.serve(line, (given.fileno(),))
        assert says(given.getsockname()) == "it"
        one.done(channel.remove(added.number, 0))
        with socket.create_connection(given.getsockname(), BOUND_S) as client:
            # A relay that heard of it would look at a mapping that is not there any more.
            one.done(channel.simple("list", 0))
            accepted, _ = given.accept()
            with accepted:
                client.sendall(b"x")
                assert accepted.recv(1) == b"x"


def test_what_is_not_shared(relays: tuple[Sharing, Sharing], backend: Echo) -> None:
    one, other = relays
    for each in relays:
        each.done(channel.simple("hello", channel.VERSION))  # it has begun
    before = one.fds(), other.fds()
    datagrams = one.done(channel.add(f"udp 127.0.0.1 0 127.0.0.1 {backend.port}"))
    for first in range(21000, 30000, 17):
        line = f"tcp 127.0.0.1 {first}-{first + 16} 127.0.0.1 {backend.port}"
        many = one.ask(channel.add(line))
        if isinstance(many, Done):
            break
    assert isinstance(many, Done)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        line = f"tcp 127.0.0.1 {port - 1}-{port} 127.0.0.1 {backend.port} partial=true"
        partly = one.ask(channel.add(line))
    for serial in (datagrams.number, many.number, 999):
        answer, fds = one.share(serial)
        assert isinstance(answer, Refused)
        assert fds == []
    if isinstance(partly, Done):  # somebody else may have the port before it
        assert isinstance(one.share(partly.number)[0], Refused)
    *mappings, _ = one.done(channel.simple("list", 0)).records()
    for record in mappings:
        one.done(channel.remove(record["serial"], 0))
    with socket.socket() as plain, socket.socket(type=socket.SOCK_DGRAM) as wrong:
        for line, fd in (
            ("tcp 127.0.0.1 0 127.0.0.1 1 shared=0", wrong),
            ("tcp 127.0.0.1 0 127.0.0.1 1 shared=1", plain),
            ("tcp 127.0.0.1 0 127.0.0.1 1 shared=0 shared=0", plain),
            ("tcp 127.0.0.1 0 127.0.0.1 1 shared=0 fd=0", plain),
            ("tcp 127.0.0.1 0 127.0.0.1 1 fd=0 shared=0", plain),
            ("tcp 127.0.0.1 80-81 127.0.0.1 1 shared=0", plain),
            ("tcp 127.0.0.1 80-96 127.0.0.1 1 shared=0", plain),
            ("udp 127.0.0.1 0 127.0.0.1 1 shared=0", plain),
        ):
            assert isinstance(other.ask(channel.add(line), (fd.fileno(),)), Refused), line
    eventually(lambda: (one.fds(), other.fds()) == before, "no descriptor is left")


def test_whom_one_cannot_take_another_can(relays: tuple[Sharing, Sharing], backend: Echo) -> None:
    """The kernel has told only one of the two of this client."""
    one, other = relays
    line = f"tcp 127.0.0.1 0 127.0.0.1 {backend.port}"
    added = one.serve(line)
    there = join(one, other, added.number, f"{line} shared=0")
    both_accept(one, other, added.other)
    eventually(lambda: not one.done(channel.simple("list", 0)).records()[1]["links"], "it is idle")
    few = len(one.fds()) - 1
    resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE, (few, few))
    with contextlib.ExitStack() as stack:
        clients = []

        def has_left_one() -> bool:
            client = socket.create_connection(("127.0.0.1", added.other), BOUND_S)
            clients.append(stack.enter_context(client))
            one.done(channel.simple("list", 0))
            return one.events != []

        eventually(has_left_one, "it has no descriptor for one")
        record = one.event().record
        assert (record["event"], record["serial"]) == ("pause", added.number)
        other.done(channel.start(there))
        for client in clients:
            assert client.recv(2) == b"it"
