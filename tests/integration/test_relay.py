"""Drives the built portproxy-relay as docker-proxy's successor: how it starts, ends and copies."""

from __future__ import annotations

import fcntl
import os
import random
import resource
import signal
import socket
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import plain_only
from tests.integration.relays import (
    BOUND_S,
    MIB,
    Forwarded,
    Launched,
    digest,
    eventually,
    free_port,
    options,
    read_all,
    reset,
    send_and_finish,
)

LOW_FD_LIMIT = 24
NOTHING_LISTENS = 1  # tcpmux


@pytest.fixture
def forwarded(binary: str) -> Iterator[Forwarded]:
    """A relay with IPv4 on both sides."""
    made = Forwarded(binary)
    yield made
    made.end()


@pytest.fixture
def propagating(binary: str) -> Iterator[Forwarded]:
    """The same, but a reset stays one."""
    made = Forwarded(binary, env={**os.environ, "PORTPROXY_RESET": "propagate"})
    yield made
    made.end()


# --- How it starts and ends ---------------------------------------------------------------------


def test_status_pipe_names_a_busy_port(binary: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        relay = Launched([binary, *options(port, 80)])
        try:
            where = f"127.0.0.1:{port}"
            text = f"1\nfailed to listen on {where}: listen tcp4 {where}: bind: "
            assert relay.answer().decode() == text + "address already in use"
            assert relay.process.wait(BOUND_S) == 1
            assert relay.process.stderr is not None
            assert relay.process.stderr.read() == b""
        finally:
            relay.end()


def test_success_is_one_write_of_two_bytes(forwarded: Forwarded) -> None:
    client, accepted = forwarded.pair()
    client.sendall(b"question")
    assert accepted.recv(100) == b"question"
    accepted.sendall(b"answer")
    assert client.recv(100) == b"answer"


def test_listener_from_the_engine(binary: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as backend, socket.socket() as listener:
        backend.settimeout(BOUND_S)
        listener.bind(("127.0.0.1", 0))  # not listening yet
        command = [binary, *options(9, backend.getsockname()[1]), "-use-listen-fd"]
        relay = Launched(command, listener.fileno())
        try:
            assert relay.answer() == b"0\n"
            with socket.create_connection(listener.getsockname(), BOUND_S) as client:
                accepted, _ = backend.accept()
                with accepted:
                    client.sendall(b"x")
                    assert accepted.recv(1) == b"x"
        finally:
            relay.end()


def test_listener_of_the_wrong_kind(binary: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wrong:
        relay = Launched([binary, *options(9, 80), "-use-listen-fd"], wrong.fileno())
        try:
            assert relay.answer().startswith(b"1\nunexpected socket type for listener fd: ")
            assert relay.process.wait(BOUND_S) == 1
        finally:
            relay.end()


def test_an_unknown_protocol_fails_clearly(binary: str) -> None:
    relay = Launched([binary, *options(9, 80), "--proto=xyz"])
    try:
        assert relay.answer() == b"1\nunsupported protocol xyz"
        assert relay.process.wait(BOUND_S) == 1
    finally:
        relay.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_with_0(forwarded: Forwarded, number: int) -> None:
    forwarded.pair()
    forwarded.relay.process.send_signal(number)
    assert forwarded.relay.process.wait(BOUND_S) == 0


def test_starts_without_standard_descriptors(binary: str) -> None:
    made = Forwarded(binary, first="exec 0<&- 1>&- 2>&-;")
    try:
        client, accepted = made.pair()
        client.sendall(b"x")
        assert accepted.recv(1) == b"x"
    finally:
        made.end()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-nope"], "-nope"),
        (["-host-port"], "-host-port"),
        (["-host-port", "x"], '"x"'),
        (["-host-port=65536"], '"65536"'),
        (["--host-ip=web"], '"web"'),
        (["-use-listen-fd=maybe"], '"maybe"'),
        ([], "-container-ip"),
        (["-container-ip", "1.2.3.4", "-container-port", "80"], "-host-port"),
    ],
)
def test_usage_errors_are_one_line(binary: str, arguments: list[str], named: str) -> None:
    done = subprocess.run(
        [binary, *arguments], capture_output=True, text=True, timeout=BOUND_S, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert named in done.stderr
    assert done.stderr.count("\n") == 1


def test_version_has_dockers_shape(binary: str) -> None:
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith("docker-proxy (commit ")
    assert said.count("\n") == 1


# --- What it does with bytes --------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_both_directions_and_their_half_closes(forwarded: Forwarded, seed: int) -> None:
    chance = random.Random(seed)
    client, accepted = forwarded.pair()
    up, down = (chance.randbytes(chance.randrange(6 * MIB)) for _ in range(2))
    threads = [send_and_finish(client, up)]
    assert digest(read_all(accepted)) == digest(up)
    # The other direction is still open, and starts only now.
    threads.append(send_and_finish(accepted, down))
    assert digest(read_all(client)) == digest(down)
    for thread in threads:
        thread.join(BOUND_S)


def test_the_container_may_finish_first(forwarded: Forwarded) -> None:
    client, accepted = forwarded.pair()
    down, up = random.Random(1).randbytes(5 * MIB + 1), random.Random(2).randbytes(3 * MIB + 7)
    threads = [send_and_finish(accepted, down)]
    assert digest(read_all(client)) == digest(down)
    threads.append(send_and_finish(client, up))
    assert digest(read_all(accepted)) == digest(up)
    for thread in threads:
        thread.join(BOUND_S)


def test_many_at_once_in_uneven_pieces(forwarded: Forwarded) -> None:
    chance = random.Random(5)
    idle = forwarded.relay.fds()
    pairs = [forwarded.pair() for _ in range(20)]
    sent = [chance.randbytes(chance.randrange(MIB)) for _ in pairs]
    threads = [send_and_finish(a, data) for (a, _), data in zip(pairs, sent, strict=True)]
    for (_, accepted), data in zip(pairs, sent, strict=True):
        got = b""
        while part := accepted.recv(chance.randrange(1, 100_000)):
            got += part
        assert digest(got) == digest(data)
    for thread in threads:
        thread.join(BOUND_S)
    for each in [x for pair in pairs for x in pair]:
        each.close()
    spare_pipes = 2 * 16
    eventually(lambda: forwarded.relay.fds() <= idle + spare_pipes, "descriptors are given back")


@pytest.mark.parametrize("sender", ["client", "container"])
def test_a_reset_stays_a_reset_on_request(propagating: Forwarded, sender: str) -> None:
    client, accepted = propagating.pair()
    broken, other = (client, accepted) if sender == "client" else (accepted, client)
    broken.sendall(b"truncated")
    assert other.recv(9) == b"truncated"
    reset(broken)
    with pytest.raises(ConnectionResetError):
        other.recv(1)


def test_a_reset_after_a_half_close(forwarded: Forwarded) -> None:
    client, accepted = forwarded.pair()
    client.shutdown(socket.SHUT_WR)
    assert accepted.recv(1) == b""
    reset(client)

    def is_reset() -> bool:
        try:
            accepted.send(b"x")
        except (ConnectionResetError, BrokenPipeError):
            return True
        return False

    eventually(is_reset, "the container learns that the client is gone")


@pytest.mark.parametrize("sender", ["client", "container"])
def test_resets_become_fins_as_with_docker(forwarded: Forwarded, sender: str) -> None:
    client, accepted = forwarded.pair()
    broken, other = (client, accepted) if sender == "client" else (accepted, client)
    broken.sendall(b"truncated")
    assert other.recv(9) == b"truncated"
    reset(broken)
    assert other.recv(1) == b""


@plain_only
@pytest.mark.parametrize("reader", ["client", "container"])
def test_a_slow_reader_holds_the_writer_back(forwarded: Forwarded, reader: str) -> None:
    client, accepted = forwarded.pair(receive_bytes=8192)
    slow, writer = (client, accepted) if reader == "client" else (accepted, client)
    data = random.Random(3).randbytes(64 * MIB)
    before_kb = forwarded.relay.memory_kb()
    thread = send_and_finish(writer, data)
    # The writer has stalled when several polls in a row find no change.
    seen: list[str] = []

    def stalled() -> bool:
        seen.append(queued(writer))
        return len(seen) > 50 and len(set(seen[-50:])) == 1

    eventually(stalled, "the writer stalls")
    assert thread.is_alive()
    stalled_at = cpu_ticks(forwarded.relay.process.pid)
    eventually(stalled, "the writer stays stalled")
    assert cpu_ticks(forwarded.relay.process.pid) - stalled_at <= 1  # it does not spin
    assert forwarded.relay.memory_kb() - before_kb < 1024
    assert digest(read_all(slow)) == digest(data)
    thread.join(BOUND_S)


def queued(sender: socket.socket) -> str:
    """How much of what was sent has not been acknowledged, as the kernel says (SIOCOUTQ)."""
    return fcntl.ioctl(sender, termios.TIOCOUTQ, b"\0" * 4).hex()


def cpu_ticks(pid: int) -> int:
    """The processor time that ``pid`` has used, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_dead_container_closes_the_client(binary: str) -> None:
    port = free_port()
    relay = Launched([binary, *options(port, NOTHING_LISTENS)])
    try:
        assert relay.answer() == b"0\n"
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port), BOUND_S) as client:
                assert client.recv(1) == b""
        relay.process.send_signal(signal.SIGTERM)
        assert relay.process.stderr is not None
        said = relay.process.stderr.read().decode()
        assert said.startswith(
            f"portproxy-relay: cannot connect to 127.0.0.1:{NOTHING_LISTENS}: connection refused"
        )
    finally:
        relay.end()


def test_ipv6_in_front_of_ipv4(binary: str) -> None:
    made = Forwarded(binary, host="::1")
    try:
        client, accepted = made.pair()
        data = random.Random(4).randbytes(2 * MIB)
        thread = send_and_finish(client, data)
        assert digest(read_all(accepted)) == digest(data)
        thread.join(BOUND_S)
    finally:
        made.end()


def test_survives_a_lack_of_descriptors(binary: str) -> None:
    made = Forwarded(binary, first=f"ulimit -n {LOW_FD_LIMIT};")
    try:
        hard = resource.prlimit(made.relay.process.pid, resource.RLIMIT_NOFILE)[1]
        assert hard == LOW_FD_LIMIT
        clients = [made.client() for _ in range(LOW_FD_LIMIT)]
        eventually(lambda: made.relay.fds() == LOW_FD_LIMIT, "all descriptors are taken")
        data = random.Random(6).randbytes(MIB)
        # Served one after the other, also without a descriptor for a pipe.
        for client in clients:
            accepted, _ = made.backend.accept()
            accepted.settimeout(BOUND_S)
            with accepted:
                thread = send_and_finish(client, data)
                assert digest(read_all(accepted)) == digest(data)
                thread.join(BOUND_S)
            client.close()
        assert made.relay.process.poll() is None
    finally:
        made.end()
