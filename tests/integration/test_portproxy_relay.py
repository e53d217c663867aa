"""The control channel of the relay itself: every command, any datagram, and sanitizers."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portproxy import channel
from portproxy.channel import Done, Event, Refused
from tests.integration.relays import BOUND_S, eventually
from tests.integration.tool import Echo, echo, says


class Controlled:
    """A relay that is spoken to without a tool."""

    def __init__(self, binary: str) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # The filter would keep a sanitizer from reporting.
            command = [binary, "-control", str(theirs.fileno()), "-no-seccomp"]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        self.socket.settimeout(BOUND_S)
        self.events: list[Event] = []

    def ask(self, data: bytes, fds: tuple[int, ...] = ()) -> Done | Refused:
        """One command and its answer; events in between are kept."""
        socket.send_fds(self.socket, [data], list(fds))
        while True:
            answer = channel.parse(self.socket.recv(channel.MOST_BYTES))
            if not isinstance(answer, Event):
                return answer
            self.events.append(answer)

    def done(self, data: bytes, fds: tuple[int, ...] = ()) -> Done:
        """A command that must be carried out."""
        answer = self.ask(data, fds)
        assert isinstance(answer, Done), answer
        return answer

    def serve(self, line: str, fds: tuple[int, ...] = ()) -> Done:
        """Adds a mapping and lets clients in."""
        added = self.done(channel.add(line), fds)
        self.done(channel.start(added.number))
        return added

    def event(self) -> Event:
        """The next event."""
        while not self.events:
            answer = channel.parse(self.socket.recv(channel.MOST_BYTES))
            assert isinstance(answer, Event)
            self.events.append(answer)
        return self.events.pop(0)

    def end(self) -> None:
        """It ends with its channel; leaves nothing behind if it does not."""
        self.socket.close()
        try:
            assert self.process.wait(BOUND_S) == 0
        finally:
            self.process.kill()
            self.process.wait(BOUND_S)


@pytest.fixture
def relay(binary: str) -> Iterator[Controlled]:
    """A relay without mappings."""
    made = Controlled(binary)
    yield made
    made.end()


@pytest.fixture
def backend() -> Iterator[Echo]:
    """Something to forward to."""
    with echo("it") as made:
        yield made


def test_the_life_of_a_mapping(relay: Controlled, backend: Echo) -> None:
    assert relay.done(channel.simple("hello", channel.VERSION)).other == relay.process.pid
    added = relay.done(channel.add(f"tcp 127.0.0.1 0 127.0.0.1 {backend.port}"))
    with socket.create_connection(("127.0.0.1", added.other), BOUND_S) as early:
        relay.done(channel.start(added.number))
        assert early.recv(2) == b"it"  # who came before the start has waited
        (connection, process) = relay.done(channel.simple("connections", 0)).records()
        assert connection["client_port"] == early.getsockname()[1]
        assert process["links"] == 1
        with echo("other") as other:
            line = f"tcp 127.0.0.1 0 127.0.0.1 {other.port} backends=127.0.0.1:{backend.port}"
            relay.done(channel.update(added.number, line))
            assert says(("127.0.0.1", added.other)) == "other"
            relay.done(channel.mark(added.number, 0, up=False))
            assert says(("127.0.0.1", added.other)) == "it"
            relay.done(channel.mark(added.number, 0, up=True))
            assert says(("127.0.0.1", added.other)) == "other"
        early.sendall(b"x")
        assert early.recv(1) == b"x"  # its backend has been taken out, not away
        relay.done(channel.simple("closes", 1))
        relay.done(channel.remove(added.number, 1))
        assert early.recv(1) == b""
        assert relay.event().record["reason"] == "drain"
    assert relay.done(channel.simple("list", 0)).records()[0]["event"] == "process"


def test_killed_and_removed_at_once(relay: Controlled, backend: Echo) -> None:
    added = relay.serve(f"tcp 127.0.0.1 0 127.0.0.1 {backend.port}")
    clients = [socket.create_connection(("127.0.0.1", added.other), BOUND_S) for _ in range(3)]
    with contextlib.ExitStack() as stack:
        for client in clients:
            stack.enter_context(client)
            assert client.recv(2) == b"it"
        serials = [r["serial"] for r in relay.done(channel.simple("connections", 0)).records()[:-1]]
        relay.done(channel.simple("kill", serials[0]))
        with pytest.raises(ConnectionResetError):
            clients[-1].recv(1)
        assert isinstance(relay.ask(channel.simple("kill", serials[0])), Refused)
        relay.done(channel.remove(added.number, 0))
        assert [client.recv(1) for client in clients[:-1]] == [b"", b""]


def test_datagrams_go_to_the_new_backend_at_once(relay: Controlled) -> None:
    with contextlib.ExitStack() as stack:
        one, two, client = (
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(3)
        )
        for each in (one, two):
            each.bind(("127.0.0.1", 0))
        for each in (one, two, client):
            each.settimeout(BOUND_S)
        added = relay.serve(f"udp 127.0.0.1 0 127.0.0.1 {one.getsockname()[1]}")
        client.connect(("127.0.0.1", added.other))
        client.send(b"first")
        assert one.recv(100) == b"first"
        line = f"udp 127.0.0.1 0 127.0.0.1 {two.getsockname()[1]}"
        relay.done(channel.update(added.number, line))
        client.send(b"second")
        data, seen = two.recvfrom(100)
        assert data == b"second"
        two.sendto(b"answer", seen)
        assert client.recv(100) == b"answer"
        relay.done(channel.remove(added.number, channel.FOREVER_MS))
        assert relay.done(channel.simple("list", 0)).records()[-1]["sessions"] == 0


def counted(relay: Controlled) -> dict[str, int]:
    """The counters of its one mapping."""
    record: dict[str, int] = relay.done(channel.simple("list", 0)).records()[0]
    return record


@pytest.mark.parametrize(("host", "ports", "addresses"), [("127.0.0.1", 1, 0), ("::1", 0, 1)])
def test_it_is_counted_when_a_client_cannot_be_imitated(
    relay: Controlled, backend: Echo, host: str, ports: int, addresses: int
) -> None:
    """Its port is its own on this host, and of another family there is nothing to keep."""
    added = relay.serve(f"tcp {host} 0 127.0.0.1 {backend.port} transparent=true")
    for times in (1, 2):
        with socket.create_connection((host, added.other), BOUND_S) as client:
            assert client.recv(2) == b"it"
        found = counted(relay)
        expected = (times * ports, times * addresses)
        assert (found["other_ports"], found["other_addresses"]) == expected


def test_it_is_counted_when_nobody_takes_a_datagram(relay: Controlled) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    added = relay.serve(f"udp 127.0.0.1 0 127.0.0.1 {port}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", added.other))
        client.send(b"x")
        eventually(lambda: counted(relay)["pending_errors"] == 1, "it has been seen")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as somebody:
            somebody.bind(("127.0.0.1", port))
            somebody.settimeout(BOUND_S)
            client.send(b"y")
            assert somebody.recv(9) == b"y"
    assert counted(relay)["datagrams_lost"] == 0


def test_lists_longer_than_a_datagram(relay: Controlled) -> None:
    """Whatever the lines' lengths: the last one of each part has room, too."""
    for count in range(1, 201):
        label = "x" * (300 + count * 37 % 400)
        relay.done(channel.add(f"tcp 127.0.0.1 0 127.0.0.1 9 label={label}{count}"))
        if count > 50:
            found = listed(relay)
            assert len(found) == len(set(found)) == count


def listed(relay: Controlled) -> list[str]:
    """The lines of all mappings."""
    found: list[str] = []
    cursor = 0
    while True:
        *some, last = relay.done(channel.simple("list", cursor)).records()
        found += [record["line"] for record in some]
        cursor = last["next"]
        if cursor == 0:
            return found


def test_what_is_refused_leaves_nothing(relay: Controlled, backend: Echo) -> None:
    relay.done(channel.simple("hello", channel.VERSION))
    before = sorted(os.listdir(f"/proc/{relay.process.pid}/fd"))
    with open("/dev/null", "rb") as null:
        for line in (
            f"tcp 127.0.0.1 {backend.port} 127.0.0.1 1",
            "tcp 127.0.0.1 0 127.0.0.1 1 fd=0",
            "tcp 127.0.0.1 0 127.0.0.1 1 fd=7",
            "tcp 127.0.0.1 0 127.0.0.1 1 listen_netns=0",
            "udp 127.0.0.1 0 /run/x 0",
            "tcp 127.0.0.1 0 127.0.0.1 1 log=file:/tmp/x",
            "tcp 127.0.0.1 0 127.0.0.1 1 drain=5s",
            'tcp 127.0.0.1 0 127.0.0.1 1 label="',
            "tcp 127.0.0.1 0 127.0.0.1 1 label=\x7f",
            "tcp 127.0.0.1 0 127.0.0.1 1 label=" + "x" * 7000,
        ):
            assert isinstance(relay.ask(channel.add(line), (null.fileno(),)), Refused), line
    with open("/proc/self/ns/net", "rb") as network, socket.socket() as given:
        for word, fd in (("fd", given), ("listen_netns", network), ("backend_netns", network)):
            line = f"tcp 127.0.0.1 0 127.0.0.1 1 {word}=0 {word}=1"
            assert isinstance(relay.ask(channel.add(line), (fd.fileno(),) * 2), Refused), line
    assert sorted(os.listdir(f"/proc/{relay.process.pid}/fd")) == before


WORDS = st.sampled_from(
    "hello add start share update remove backend list connections kill closes drain tcp udp 0 1 2 "
    "-1 99999999999 127.0.0.1 :: /run/x @y 9-3 0-2 fd=0 shared=0 partial=true listen_netns=0 "
    "backend_netns=1 access=all,!10.0.0.0/8 backends=127.0.0.1:1,@z up down label=x "
    "transparent=true".split()
)


@given(data=st.lists(WORDS, max_size=9).map(" ".join).map(str.encode) | st.binary(max_size=300))
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_datagram_ends_it(relay: Controlled, data: bytes) -> None:
    if data[:5] == b"drain" or not data:
        return  # they do
    with open("/proc/self/ns/net", "rb") as fd:
        relay.ask(data, (fd.fileno(),) * 2)
    assert relay.done(channel.simple("hello", channel.VERSION)).number == channel.VERSION


def test_it_ends_when_it_was_told_to(relay: Controlled, backend: Echo) -> None:
    added = relay.serve(f"tcp 127.0.0.1 0 127.0.0.1 {backend.port}")
    with socket.create_connection(("127.0.0.1", added.other), BOUND_S) as client:
        assert client.recv(2) == b"it"
        assert relay.done(channel.drain(channel.FOREVER_MS)).number == 1
        assert relay.process.poll() is None
    assert relay.process.wait(BOUND_S) == 0
