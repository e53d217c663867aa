"""Datagrams: sessions, batches, families, sockets from the engine."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator

import pytest

from tests.integration.conftest import plain_only
from tests.integration.relays import (
    BOUND_S,
    Datagrams,
    Launched,
    eventually,
    free_datagram_port,
    options,
    settings,
)

LARGEST = 65507
CLIENTS = 1000
CLIENTS_KB = 1024
LOW_FD_LIMIT = 24


@pytest.fixture
def datagrams(binary: str) -> Iterator[Datagrams]:
    """A relay with IPv4 on both sides."""
    made = Datagrams(binary)
    yield made
    made.end()


@pytest.mark.parametrize(
    ("host", "to", "container"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.9", "::1"),
        ("::", "::1", "127.0.0.1"),
        ("::1", "::1", "::1"),
    ],
)
def test_families_may_differ(binary: str, host: str, to: str, container: str) -> None:
    made = Datagrams(binary, host, container)
    try:
        client = made.client(to)
        for data in (b"question", b"", b"x" * 9000):
            seen = made.exchange(client, data, data[::-1])
            assert seen[0] == container
    finally:
        made.end()


def test_the_largest_datagram(datagrams: Datagrams) -> None:
    datagrams.exchange(datagrams.client(), b"a" * LARGEST, b"b" * LARGEST)


def test_each_client_has_a_source_of_its_own(datagrams: Datagrams) -> None:
    clients = [datagrams.client() for _ in range(20)]
    seen = [datagrams.exchange(client, b"hello", b"you") for client in clients]
    assert len(set(seen)) == 20
    again = [datagrams.exchange(client, b"hello", b"you") for client in clients]
    assert again == seen


def test_bursts_keep_their_order_and_their_borders(datagrams: Datagrams) -> None:
    clients = [datagrams.client() for _ in range(2)]
    sent: dict[bytes, list[bytes]] = {b"0": [], b"1": []}
    for number in range(200):
        name = b"1" if number % 7 in {2, 3} else b"0"
        data = name + b"%d" % number + b"." * (number % 50)
        sent[name].append(data)
        clients[int(name)].send(data)
    got: dict[bytes, list[bytes]] = {b"0": [], b"1": []}
    for _ in range(200):
        data, seen = datagrams.backend.recvfrom(100)
        got[data[:1]].append(data)
        datagrams.backend.sendto(data, seen)
    assert got == sent
    for name, client in zip((b"0", b"1"), clients, strict=True):
        assert [client.recv(100) for _ in sent[name]] == sent[name]


@pytest.mark.parametrize("size", [1, 500, 1400, 1401, 9000])
def test_equal_datagrams_stay_apart(datagrams: Datagrams, size: int) -> None:
    client = datagrams.client()
    sent = [b"%c" % number * size for number in range(8)] + [b"last"[: size - 1]]
    datagrams.relay.process.send_signal(signal.SIGSTOP)  # so that it finds all of them at once
    for data in sent:
        client.send(data)
    datagrams.relay.process.send_signal(signal.SIGCONT)
    for data in sent:
        assert datagrams.backend.recv(65536) == data
    client.send(b"who")
    _, source = datagrams.backend.recvfrom(10)
    datagrams.relay.process.send_signal(signal.SIGSTOP)
    for data in sent:
        datagrams.backend.sendto(data, source)
    datagrams.relay.process.send_signal(signal.SIGCONT)
    for data in sent:
        assert client.recv(65536) == data


def test_the_longest_silent_makes_room(binary: str) -> None:
    made = Datagrams(binary, env=settings(udp_sessions=3))
    try:
        idle = made.relay.fds()
        clients = [made.client() for _ in range(4)]
        first = [made.exchange(client, b"a", b"b") for client in clients[:3]]
        assert made.exchange(clients[0], b"a", b"b") == first[0]
        made.exchange(clients[3], b"a", b"b")  # in the place of the second
        assert made.relay.fds() == idle + 3
        assert made.exchange(clients[0], b"a", b"b") == first[0]
        assert made.exchange(clients[2], b"a", b"b") == first[2]
        assert made.exchange(clients[1], b"a", b"b") != first[1]
    finally:
        made.end()


def test_answers_come_although_descriptors_run_out(binary: str) -> None:
    port = free_datagram_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as backend:
        backend.bind(("127.0.0.1", 0))
        backend.settimeout(BOUND_S)
        command = [binary, *options(port, backend.getsockname()[1], proto="udp")]
        relay = Launched(command, first=f"ulimit -n {LOW_FD_LIMIT};")
        try:
            assert relay.answer() == b"0\n"
            for _ in range(3 * LOW_FD_LIMIT):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.settimeout(BOUND_S)
                    client.connect(("127.0.0.1", port))
                    client.send(b"question")
                    _, seen = backend.recvfrom(100)
                    backend.sendto(b"answer", seen)
                    assert client.recv(100) == b"answer"
        finally:
            relay.end()


def test_silent_sessions_end(binary: str) -> None:
    made = Datagrams(binary, env=settings(udp_timeout="100ms"))
    try:
        idle = made.relay.fds()
        for _ in range(10):
            made.exchange(made.client(), b"a", b"b")
        eventually(lambda: made.relay.fds() == idle, "the sessions have ended")
        made.exchange(made.client(), b"a", b"b")
    finally:
        made.end()


@plain_only
def test_a_thousand_clients(datagrams: Datagrams) -> None:
    datagrams.exchange(datagrams.client(), b"x" * 1200, b"y" * 1200)
    before_kb = datagrams.relay.private_kb()
    for _ in range(CLIENTS):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(BOUND_S)
            client.connect(("127.0.0.1", datagrams.port))
            datagrams.exchange(client, b"x" * 1200, b"y" * 1200)
    assert datagrams.relay.private_kb() - before_kb <= CLIENTS_KB


def test_a_socket_from_the_engine(binary: str) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as backend,
    ):
        bound.bind(("127.0.0.1", 0))
        backend.bind(("127.0.0.1", 0))
        backend.settimeout(BOUND_S)
        command = [binary, *options(9, backend.getsockname()[1], proto="udp"), "-use-listen-fd"]
        relay = Launched(command, bound.fileno())
        try:
            assert relay.answer() == b"0\n"
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"x", bound.getsockname())
                assert backend.recv(10) == b"x"
        finally:
            relay.end()


def test_a_busy_port_is_named(binary: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as busy:
        busy.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{busy.getsockname()[1]}"
        relay = Launched([binary, *options(busy.getsockname()[1], 80, proto="udp")])
        try:
            text = f"1\nfailed to listen on {where}: listen udp4 {where}: bind: "
            assert relay.answer().decode() == text + "address already in use"
            assert relay.process.wait(BOUND_S) == 1
        finally:
            relay.end()


def test_sctp_is_what_the_kernel_makes_of_it(binary: str) -> None:
    relay = Launched([binary, *options(free_datagram_port(), 80, proto="sctp")])
    try:
        try:
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
            wanted = b"0\n"
        except OSError:
            wanted = b"1\nprotocol not supported"
        assert relay.answer() == wanted
    finally:
        relay.end()
