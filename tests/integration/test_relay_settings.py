"""What the relay does on request: by environment, by file, for many mappings, with limits."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.relays import (
    BOUND_S,
    Forwarded,
    Launched,
    digest,
    eventually,
    free_datagram_port,
    free_port,
    options,
    read_all,
    reset,
    send_and_finish,
    settings,
)

LOW_FD_LIMIT = 24
Start = Callable[..., Forwarded]


@pytest.fixture
def start(binary: str) -> Iterator[Start]:
    """Starts relays with settings; they are gone afterwards."""
    made: list[Forwarded] = []

    def forwarded(first: str = "", **wanted: str | int) -> Forwarded:
        made.append(Forwarded(binary, first=first, env=settings(**wanted)))
        return made[-1]

    yield forwarded
    for each in made:
        each.end()


def is_reset(client: socket.socket) -> bool:
    """Whether the next thing that comes is a reset."""
    try:
        return client.recv(1) == b"never"
    except ConnectionResetError:
        return True


def turned_away(made: Forwarded) -> bool:
    """Whether a new client is reset, be it while it still connects."""
    try:
        return is_reset(made.client())
    except ConnectionResetError:
        return True


# --- The file -----------------------------------------------------------------------------------

FILE = """
[defaults]
proxy_out = "off"   # nobody wants it
[[mapping]]
proto = "udp"
proxy_out = "v2"
[[mapping]]
host_port = {port}
container-ip = "127.0.0.1"
proxy-out = "v1"
"""


def file_of(tmp_path: Path, text: str) -> dict[str, str]:
    """An environment that names a file of settings."""
    (tmp_path / "docker.toml").write_text(text)
    return {**os.environ, "PORTPROXY_CONFIG": str(tmp_path / "docker.toml")}


def first_bytes(binary: str, env: dict[str, str], port: int) -> bytes:
    """What a container gets when a client that says ``hello`` connects."""
    with socket.create_server(("127.0.0.1", 0)) as backend:
        backend.settimeout(BOUND_S)
        relay = Launched([binary, *options(port, backend.getsockname()[1])], env=env)
        try:
            assert relay.answer() == b"0\n"
            with socket.create_connection(("127.0.0.1", port), BOUND_S) as client:
                client.sendall(b"hello")
                client.shutdown(socket.SHUT_WR)
                accepted, _ = backend.accept()
                accepted.settimeout(BOUND_S)
                with accepted:
                    return read_all(accepted)
        finally:
            relay.end()


def test_a_file_sets_what_its_table_fits(binary: str, tmp_path: Path) -> None:
    port = free_port()
    env = file_of(tmp_path, FILE.format(port=port))
    assert first_bytes(binary, env, port).startswith(b"PROXY TCP4 ")
    assert first_bytes(binary, env, free_port()) == b"hello"


def test_the_environment_takes_the_place_of_the_file(binary: str, tmp_path: Path) -> None:
    port = free_port()
    env = file_of(tmp_path, FILE.format(port=port))
    assert first_bytes(binary, {**env, "PORTPROXY_IDLE_TIMEOUT": "1h"}, port) == b"hello"


@pytest.mark.parametrize(
    "bad", ["[table]", "no value", "idle_timeout = soon", "colour = 1", "mark=1\nproto='tcp'"]
)
def test_a_bad_file_changes_nothing(binary: str, tmp_path: Path, bad: str) -> None:
    env = file_of(tmp_path, f"[defaults]\nproxy_out = 'v1'\n{bad}\n")
    assert first_bytes(binary, env, free_port()) == b"hello"


def test_a_bad_setting_is_named(binary: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    env = settings(log=f"file:{log}", connect_timeout="soon")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = free_port()
        relay = Launched([binary, *options(port, nobody.getsockname()[1])], env=env)
        try:
            assert relay.answer() == b"0\n"
            with socket.create_connection(("127.0.0.1", port), BOUND_S) as client:
                assert client.recv(1) == b""
            assert "cannot connect to 127.0.0.1:" in log.read_text()
            relay.process.terminate()
            assert relay.process.stderr is not None
            said = relay.process.stderr.read().decode()
            assert said.startswith("portproxy-relay: PORTPROXY_CONNECT_TIMEOUT is ignored: ")
        finally:
            relay.end()


# --- Many mappings ------------------------------------------------------------------------------


def test_one_process_serves_many_mappings(binary: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        backends = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        datagrams.bind(("127.0.0.1", 0))
        ports = [free_port() for _ in backends]
        udp_port = free_datagram_port()
        lines = ["# comment", ""]
        for port, backend in zip(ports, backends, strict=True):
            backend.settimeout(BOUND_S)
            lines.append(f"tcp 127.0.0.1 {port}  127.0.0.1 {backend.getsockname()[1]} proxy_out=v1")
        lines.append(f"udp 127.0.0.1 {udp_port} 127.0.0.1 {datagrams.getsockname()[1]}")
        (tmp_path / "mappings").write_text("\n".join(lines))
        relay = Launched([binary, "-mappings", str(tmp_path / "mappings")])
        try:
            assert relay.answer() == b"0\n"
            for port, backend in zip(ports, backends, strict=True):
                with socket.create_connection(("127.0.0.1", port), BOUND_S):
                    accepted, _ = backend.accept()
                    with accepted:
                        assert accepted.recv(6) == b"PROXY "
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"x", ("127.0.0.1", udp_port))
                datagrams.settimeout(BOUND_S)
                assert datagrams.recv(10) == b"x"
        finally:
            relay.end()


def test_a_range_leads_to_a_range(binary: str, tmp_path: Path) -> None:
    # Other addresses of loopback have no neighbours that could be in the way.
    first, behind = 20000, 30000
    with contextlib.ExitStack() as stack:
        backends = [
            stack.enter_context(socket.create_server(("127.9.8.7", behind + at))) for at in range(5)
        ]
        (tmp_path / "mappings").write_text(
            f"tcp 127.9.8.6 {first}-{first + 4} 127.9.8.7 {behind}-{behind + 4}\n"
        )
        relay = Launched([binary, "-mappings", str(tmp_path / "mappings")])
        try:
            assert relay.answer() == b"0\n"
            for at, backend in enumerate(backends):
                with socket.create_connection(("127.9.8.6", first + at), BOUND_S) as client:
                    backend.settimeout(BOUND_S)
                    accepted, _ = backend.accept()
                    with accepted:
                        client.sendall(b"x")
                        assert accepted.recv(1) == b"x"
        finally:
            relay.end()


@pytest.mark.parametrize(
    "line",
    [
        "tcp 127.0.0.1 80",
        "icmp 127.0.0.1 1 127.0.0.1 1",
        "tcp web 80 127.0.0.1 80",
        "tcp 127.0.0.1 1-3 127.0.0.1 1-2",
        "tcp 127.0.0.1 1 127.0.0.1 1 colour=red",
    ],
)
def test_a_wrong_mapping_is_named_by_file_and_line(binary: str, tmp_path: Path, line: str) -> None:
    path = tmp_path / "mappings"
    path.write_text(f"# nothing\n{line}\n")
    relay = Launched([binary, "-mappings", str(path)])
    try:
        assert relay.answer().decode().startswith(f"1\n{path}:2: ")
        assert relay.process.wait(BOUND_S) == 1
    finally:
        relay.end()


# --- Who may come, and how often ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "admitted"),
    [("127.0.0.0/8", True), ("!127.0.0.1,all", False), ("!10.0.0.0/8", True), ("::1", False)],
)
def test_the_first_rule_that_fits_decides(start: Start, rules: str, admitted: bool) -> None:
    made = start(access=rules)
    if admitted:
        client, accepted = made.pair()
        with accepted:
            client.sendall(b"x")
            assert accepted.recv(1) == b"x"
    else:
        assert turned_away(made)


@pytest.mark.parametrize("limit", ["max_connections", "max_per_client"])
def test_a_limit_of_connections(start: Start, limit: str) -> None:
    made = start(**{limit: 2})
    pairs = [made.pair() for _ in range(2)]
    assert turned_away(made)
    for each in pairs[0]:
        each.close()

    def there_is_room() -> bool:
        with made.client() as client:
            try:
                client.sendall(b"x")
                accepted, _ = made.backend.accept()
            except (OSError, TimeoutError):
                return False
            with accepted:
                return accepted.recv(1) == b"x"

    made.backend.settimeout(0.1)
    eventually(there_is_room, "one may come again")


def test_a_limit_of_connections_in_a_second(start: Start) -> None:
    made = start(connections_per_second=3)
    made.backend.settimeout(0.01)
    assert any(turned_away_or_served(made) for _ in range(30))


def turned_away_or_served(made: Forwarded) -> bool:
    """Whether a client is reset; one that is not is served."""
    try:
        with made.client() as client:
            made.backend.accept()[0].close()
            return client.recv(1) != b""
    except (ConnectionResetError, TimeoutError):
        return True


def test_a_limit_of_bytes_in_a_second(start: Start) -> None:
    made = start(bytes_per_second_each=5000)
    client, accepted = made.pair()
    data = os.urandom(6000)
    thread = send_and_finish(client, data)
    assert len(accepted.recv(6000)) <= 5000
    thread.join(BOUND_S)
    assert len(read_all(accepted)) >= 1000


# --- Ends ---------------------------------------------------------------------------------------


def test_silence_ends_a_connection(start: Start) -> None:
    made = start(idle_timeout="100ms")
    client, accepted = made.pair()
    assert client.recv(1) == b""
    assert accepted.recv(1) == b""


def test_a_container_that_does_not_answer(start: Start) -> None:
    made = start(connect_timeout="100ms")
    made.backend.listen(0)
    full: list[socket.socket] = []
    for _ in range(3):  # more than wait in the backlog
        other = socket.socket()
        other.setblocking(False)
        other.connect_ex(made.backend.getsockname())
        full.append(other)
    try:
        assert made.client().recv(1) == b""
    finally:
        for other in full:
            other.close()


def test_connections_end_before_the_relay_if_it_drains(start: Start) -> None:
    made = start(drain="5s")
    client, accepted = made.pair()
    made.relay.process.send_signal(signal.SIGTERM)

    def closed() -> bool:
        with contextlib.suppress(OSError):
            reset(socket.create_connection(made.where, BOUND_S))  # which leaves nothing to drain
            return False
        return True

    eventually(closed, "the port is closed")
    data = os.urandom(3_000_000)
    thread = send_and_finish(client, data)
    assert digest(read_all(accepted)) == digest(data)
    accepted.close()
    client.close()
    thread.join(BOUND_S)
    assert made.relay.process.wait(BOUND_S) == 0


def test_who_waits_in_vain_for_a_descriptor_is_reset(start: Start) -> None:
    made = start(f"ulimit -n {LOW_FD_LIMIT};")
    clients = [made.client() for _ in range(LOW_FD_LIMIT)]
    assert is_reset(clients[-1])
    clients[0].sendall(b"x")
    accepted, _ = made.backend.accept()
    with accepted:
        assert accepted.recv(1) == b"x"


# --- What it tells ------------------------------------------------------------------------------


def test_a_collector_learns_of_every_end(start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as collector:
        collector.bind(str(tmp_path / "stats"))
        collector.settimeout(BOUND_S)
        made = start(stats=str(tmp_path / "stats"))
        client, accepted = made.pair()
        client.sendall(b"12345")
        assert accepted.recv(5) == b"12345"
        accepted.close()
        client.close()
        said = json.loads(collector.recv(2000))
        assert (said["event"], said["proto"], said["reason"]) == ("close", "tcp", "fin")
        assert (said["client"], said["up"], said["down"]) == ("127.0.0.1", 5, 0)
        assert said["port"] == made.where[1]
