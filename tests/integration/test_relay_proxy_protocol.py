"""The PROXY protocol out and in, backends, and source addresses."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.integration.relays import BOUND_S, Forwarded, eventually, free_port, settings

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
Start = Callable[..., Forwarded]


@pytest.fixture
def start(binary: str) -> Iterator[Start]:
    """Starts relays with settings; they are gone afterwards."""
    made: list[Forwarded] = []

    def forwarded(host: str = "127.0.0.1", **wanted: str | int) -> Forwarded:
        made.append(Forwarded(binary, host, env=settings(**wanted)))
        return made[-1]

    yield forwarded
    for each in made:
        each.end()


def binary_header(source: str, target: str, ports: tuple[int, int], more: bytes = b"") -> bytes:
    """A header of version 2."""
    ends = [ipaddress.ip_address(text) for text in (source, target)]
    kind = 0x11 if ends[0].version == 4 else 0x21
    body = b"".join(end.packed for end in ends) + struct.pack("!HH", *ports) + more
    return SIGNATURE + struct.pack("!BBH", 0x21, kind, len(body)) + body


def exactly(source: socket.socket, n: int) -> bytes:
    """That many bytes."""
    got = b""
    while len(got) < n:
        part = source.recv(n - len(got))
        assert part
        got += part
    return got


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_header_comes_first(start: Start, host: str, version: str) -> None:
    made = start(host, proxy_out=version)
    client, accepted = made.pair()
    client.sendall(b"data")
    ports = client.getsockname()[1], made.where[1]
    if version == "v2":
        wanted = binary_header(host, host, ports)
    else:
        family = "TCP6" if ":" in host else "TCP4"
        wanted = f"PROXY {family} {host} {host} {ports[0]} {ports[1]}\r\n".encode()
    assert exactly(accepted, len(wanted) + 4) == wanted + b"data"


def test_the_header_comes_although_the_client_says_nothing(start: Start) -> None:
    made = start(proxy_out="v2")
    _, accepted = made.pair()
    assert exactly(accepted, 28)[:12] == SIGNATURE


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 5 6\r\n",
        binary_header("192.0.2.1", "192.0.2.2", (5, 6)),
        binary_header("192.0.2.1", "192.0.2.2", (5, 6), b"\x05\x00\x04name"),
    ],
)
def test_what_comes_in_goes_out_however_it_is_cut(start: Start, header: bytes) -> None:
    made = start(proxy_in="127.0.0.0/8", proxy_out="v1")
    client = made.client()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for at in range(len(header)):
        client.sendall(header[at : at + 1])
    client.sendall(b"data")
    accepted, _ = made.backend.accept()
    with accepted:
        wanted = b"PROXY TCP4 192.0.2.1 192.0.2.2 5 6\r\ndata"
        assert exactly(accepted, len(wanted)) == wanted


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", SIGNATURE + b"\x20\x00\x00\x00"])
def test_a_header_without_addresses_leaves_them(start: Start, header: bytes) -> None:
    made = start(proxy_in="127.0.0.1", proxy_out="v1")
    client = made.client()
    client.sendall(header + b"data")
    accepted, _ = made.backend.accept()
    with accepted:
        port = client.getsockname()[1]
        wanted = f"PROXY TCP4 127.0.0.1 127.0.0.1 {port} {made.where[1]}\r\ndata".encode()
        assert exactly(accepted, len(wanted)) == wanted


@pytest.mark.parametrize(
    "header",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 5\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 5 6 7\r\n",
        b"PROXY TCP4 ::1 ::2 5 6\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 5 65536\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 5 6" + b" " * 100,
        b"PROXY TCP6 192.0.2.1 192.0.2.2 5 6\r\n",
        SIGNATURE + b"\x31\x11\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x11\x00\x04" + bytes(4),
        SIGNATURE + b"\x21\x21\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x11\xff\xff",
    ],
)
def test_a_bad_header_is_answered_with_a_reset(start: Start, header: bytes) -> None:
    made = start(proxy_in="127.0.0.1")
    client = made.client()
    client.sendall(header)
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_only_trusted_clients_are_believed(start: Start) -> None:
    made = start(proxy_in="10.0.0.0/8")
    client, accepted = made.pair()
    client.sendall(b"PROXY is data")
    assert exactly(accepted, 13) == b"PROXY is data"


def test_rules_are_for_the_client_behind_the_header(start: Start) -> None:
    made = start(proxy_in="127.0.0.1", access="!192.0.2.0/24")
    client = made.client()
    client.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 5 6\r\n")
    with pytest.raises(ConnectionResetError):
        client.recv(1)


# --- Where it goes, and from where --------------------------------------------------------------


def test_another_backend_takes_over(start: Start) -> None:
    made = start(backends=f"127.0.0.1:{free_port()}")
    second = start(backends=f"127.0.0.1:{made.backend.getsockname()[1]}")
    second.backend.close()
    for _ in range(5):
        client = second.client()
        accepted, _ = made.backend.accept()
        with accepted:
            client.sendall(b"x")
            assert accepted.recv(1) == b"x"


def test_backends_take_turns(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(BOUND_S)
        made = start(backends=f"127.0.0.1:{other.getsockname()[1]}", balance="round-robin")
        for _ in range(3):
            for backend in (made.backend, other):
                client = made.client()
                accepted, _ = backend.accept()
                with accepted:
                    client.sendall(b"x")
                    assert accepted.recv(1) == b"x"


def test_a_source_address_can_be_chosen(start: Start) -> None:
    made = start(source="127.0.0.77")
    _, accepted = made.pair()
    assert accepted.getpeername()[0] == "127.0.0.77"


def test_the_container_can_see_the_client(start: Start) -> None:
    made = start(transparent="true")
    with socket.socket() as client:
        client.bind(("127.0.0.78", 0))
        client.connect(made.where)
        accepted, _ = made.backend.accept()
        with accepted:
            assert accepted.getpeername()[0] == "127.0.0.78"


def test_a_class_of_service(start: Start) -> None:
    made = start(tos=0x10, mark=5, fast_open="true", user_timeout="20s", nodelay="false")
    client, accepted = made.pair()
    accepted.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    client.sendall(b"x")
    assert accepted.recv(1) == b"x"
    accepted.sendall(b"y")
    eventually(lambda: client.recv(1) == b"y", "it works both ways")
