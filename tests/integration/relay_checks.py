"""Faults of docker-proxy that users have reported: cost, lack of descriptors, datagrams.

A check takes the program and raises AssertionError or OSError when it has the fault.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator

from tests.integration.relays import (
    BOUND_S,
    Datagrams,
    Forwarded,
    eventually,
    settings,
)

# How long a check waits for what never comes.
PATIENCE_S = 1.0
LOW_FD_LIMIT = 64

Check = Callable[[str], None]
THERE_TOO: list[Check] = []


def there_too(check: Check) -> Check:
    """Marks a check that docker-proxy must fail."""
    THERE_TOO.append(check)
    return check


@contextlib.contextmanager
def forwarding(
    binary: str, host: str = "127.0.0.1", first: str = "", env: dict[str, str] | None = None
) -> Iterator[Forwarded]:
    """A relay for connections."""
    made = Forwarded(binary, host, first, env)
    try:
        yield made
    finally:
        made.end()


@contextlib.contextmanager
def datagrams(
    binary: str, host: str = "127.0.0.1", env: dict[str, str] | None = None
) -> Iterator[Datagrams]:
    """A relay for datagrams."""
    made = Datagrams(binary, host, env=env)
    try:
        yield made
    finally:
        made.end()


def works(made: Forwarded) -> None:
    """A new connection carries bytes both ways."""
    client, accepted = made.pair()
    client.sendall(b"ping")
    assert accepted.recv(4) == b"ping"
    accepted.sendall(b"pong")
    assert client.recv(4) == b"pong"
    client.close()
    accepted.close()


# --- Memory and tasks ---------------------------------------------------------------------------


@there_too
def check_memory_of_a_port(binary: str) -> None:
    with forwarding(binary) as made:
        works(made)
        assert made.relay.private_kb() <= 200


@there_too
def check_tasks_of_a_port(binary: str) -> None:
    with datagrams(binary) as made:
        made.exchange(made.client(), b"a", b"b")
        assert len(os.listdir(f"/proc/{made.relay.process.pid}/task")) == 1


@there_too
def check_memory_of_udp_clients(binary: str) -> None:
    with datagrams(binary) as made:
        made.exchange(made.client(), b"a", b"b")
        before_kb = made.relay.private_kb()
        for _ in range(200):
            made.exchange(made.client(), b"x" * 1200, b"y" * 1200)
        assert made.relay.private_kb() - before_kb <= 400


@there_too
def check_descriptors_of_a_connection(binary: str) -> None:
    with forwarding(binary) as made:
        works(made)
        before = made.relay.fds()
        for _ in range(20):
            client, accepted = made.pair()
            client.sendall(b"x")
            assert accepted.recv(1) == b"x"
        assert made.relay.fds() - before <= 2 * 20 + 1


# --- Descriptors run out ------------------------------------------------------------------------


@there_too
def check_too_many_open_files(binary: str) -> None:
    with forwarding(binary, first=f"ulimit -n {LOW_FD_LIMIT};") as made:
        clients = [made.client() for _ in range(LOW_FD_LIMIT)]
        eventually(
            lambda: made.relay.process.poll() is not None or made.relay.fds() >= LOW_FD_LIMIT - 2,
            "descriptors run out",
        )
        for client in clients:
            client.close()
        made.backend.settimeout(0.01)

        def given_back() -> bool:
            assert made.relay.process.poll() is None, "it has ended"
            with contextlib.suppress(TimeoutError):
                made.backend.accept()[0].close()
            return made.relay.fds() <= LOW_FD_LIMIT // 2

        eventually(given_back, "they come back")
        made.backend.settimeout(PATIENCE_S)
        with contextlib.suppress(TimeoutError):
            while True:
                made.backend.accept()[0].close()
        made.backend.settimeout(BOUND_S)
        works(made)


def check_raises_the_soft_limit(binary: str) -> None:
    with forwarding(binary, first="ulimit -Sn 64;") as made:
        pairs = [made.pair() for _ in range(100)]
        pairs[-1][0].sendall(b"x")
        assert pairs[-1][1].recv(1) == b"x"


def check_thousands_of_connections_one_after_another(binary: str) -> None:
    with forwarding(binary) as made:
        works(made)
        before = made.relay.fds()
        for _ in range(2000):
            with socket.create_connection(made.where, BOUND_S):
                made.backend.accept()[0].close()
        eventually(lambda: made.relay.fds() <= before, "all descriptors are given back")
        works(made)


# --- Datagrams ----------------------------------------------------------------------------------


@there_too
def check_zero_length_datagrams(binary: str) -> None:
    with datagrams(binary) as made:
        made.backend.settimeout(PATIENCE_S)
        client = made.client()
        client.settimeout(PATIENCE_S)
        made.exchange(client, b"", b"")


@there_too
def check_answer_comes_from_the_address_that_was_asked(binary: str) -> None:
    with datagrams(binary, "0.0.0.0") as made:
        client = made.client("127.0.0.2")
        client.settimeout(PATIENCE_S)
        made.exchange(client, b"question", b"answer")


@there_too
def check_one_client_may_ask_two_addresses(binary: str) -> None:
    with datagrams(binary, "0.0.0.0") as made:
        client = made.socket("127.0.0.1")
        client.bind(("127.0.0.1", 0))
        client.settimeout(PATIENCE_S)
        for to in ("127.0.0.2", "127.0.0.3"):
            client.sendto(b"question", (to, made.port))
            _, seen = made.backend.recvfrom(100)
            made.backend.sendto(b"answer", seen)
            assert client.recvfrom(100) == (b"answer", (to, made.port))


# docker-proxy has a reader that may take the error away in time: whether it fails is chance.
def check_datagram_after_a_stale_icmp_error(binary: str) -> None:
    with datagrams(binary) as made:
        client = made.client()
        made.exchange(client, b"a", b"b")
        where = made.backend.getsockname()
        made.backend.close()
        client.send(b"nobody is there")
        with contextlib.suppress(TimeoutError, ConnectionRefusedError):
            client.settimeout(0.2)
            client.recv(1)
        again = made.socket("127.0.0.1")
        again.bind(where)
        again.settimeout(PATIENCE_S)
        made.relay.process.send_signal(signal.SIGSTOP)
        client.send(b"first")
        made.relay.process.send_signal(signal.SIGCONT)
        assert again.recv(100) == b"first"
        made.backend = again


@there_too
def check_udp_timeout_can_be_chosen(binary: str) -> None:
    with datagrams(binary, env=settings(udp_timeout="100ms")) as made:
        client = made.client()
        made.exchange(client, b"a", b"b")
        held = made.relay.fds()
        deadline = time.monotonic() + PATIENCE_S
        while made.relay.fds() >= held:
            assert time.monotonic() < deadline, "the session is still there"
            select.select([], [], [], 0.01)


def check_one_way_stream_keeps_its_source(binary: str) -> None:
    with datagrams(binary, env=settings(udp_timeout="300ms")) as made:
        client = made.client()
        seen = set()
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            client.send(b"x")
            seen.add(made.backend.recvfrom(10)[1])
            select.select([], [], [], 0.02)
        assert len(seen) == 1


def check_one_question_holds_no_socket_for_long(binary: str) -> None:
    with datagrams(binary, env=settings(udp_oneshot_timeout="50ms")) as made:
        idle = made.relay.fds()
        for _ in range(20):
            made.exchange(made.client(), b"name?", b"address")
        eventually(lambda: made.relay.fds() == idle, "the sessions have ended")
