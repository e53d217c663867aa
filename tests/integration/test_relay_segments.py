"""What leaves together and how it is paced: acknowledgements, a FIN with the last bytes, BBR."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.relays import (
    BOUND_S,
    Forwarded,
    Launched,
    digest,
    free_port,
    read_all,
    send_and_finish,
    settings,
)

DEFAULT = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()


@pytest.fixture
def forwarded(binary: str) -> Iterator[Forwarded]:
    """A relay with IPv4 on both sides."""
    made = Forwarded(binary)
    yield made
    made.end()


# --- Congestion control -------------------------------------------------------------------------


def control(*which: str) -> str:
    """The congestion control of the one connection that ss(8) selects."""
    said = subprocess.run(
        ["ss", "-H", "-n", "-t", "-i", "-O", *which],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=True,
    ).stdout.splitlines()
    assert len(said) == 1, said
    return next(word for word in said[0].split() if word.isalpha() and word != "ESTAB")


def test_what_stays_within_the_host_is_not_paced(forwarded: Forwarded) -> None:
    client, accepted = forwarded.pair()
    wanted = "reno" if DEFAULT.startswith("bbr") else DEFAULT
    assert control("dst", f"127.0.0.1:{accepted.getsockname()[1]}") == wanted
    assert control("dst", f"127.0.0.1:{client.getsockname()[1]}") == wanted


def test_a_listener_for_everybody_keeps_the_kernels(binary: str) -> None:
    made = Forwarded(binary, "0.0.0.0")
    try:
        client, accepted = made.pair()
        wanted = "reno" if DEFAULT.startswith("bbr") else DEFAULT
        assert control("dst", f"127.0.0.1:{accepted.getsockname()[1]}") == wanted
        assert control("dst", f"127.0.0.1:{client.getsockname()[1]}") == DEFAULT
    finally:
        made.end()


@pytest.mark.parametrize("asked", ["", "congestion=reno"])
def test_elsewhere_it_is_what_was_asked_for(binary: str, tmp_path: Path, asked: str) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as backend:
        backend.settimeout(BOUND_S)
        behind = backend.getsockname()[1]
        (tmp_path / "mappings").write_text(f"tcp 127.0.0.1 {port} 127.0.0.1 {behind} {asked}\n")
        relay = Launched([binary, "-mappings", str(tmp_path / "mappings")])
        try:
            assert relay.answer() == b"0\n"
            with socket.create_connection(("127.0.0.1", port), BOUND_S):
                accepted, _ = backend.accept()
                with accepted:
                    wanted = "reno" if asked else DEFAULT
                    assert control("dst", f"127.0.0.1:{behind}") == wanted
        finally:
            relay.end()


def test_an_unknown_one_changes_nothing(binary: str) -> None:
    made = Forwarded(binary, env=settings(congestion="nosuch"))
    try:
        _, accepted = made.pair()
        assert control("dst", f"127.0.0.1:{accepted.getsockname()[1]}") == DEFAULT
    finally:
        made.end()


# --- Acknowledgements and FINs ------------------------------------------------------------------


def test_a_container_that_speaks_first(forwarded: Forwarded) -> None:
    for _ in range(5):
        client, accepted = forwarded.pair()
        accepted.sendall(b"220 ready")
        assert client.recv(9) == b"220 ready"
        client.sendall(b"QUIT")
        assert accepted.recv(4) == b"QUIT"


@pytest.mark.parametrize("receive_bytes", [0, 4096])
@pytest.mark.parametrize("sender", ["client", "container"])
def test_last_bytes_and_fin_that_come_together(
    forwarded: Forwarded, sender: str, receive_bytes: int
) -> None:
    data = random.Random(1).randbytes(30_000)
    for number in range(10):
        client, accepted = forwarded.pair(receive_bytes)
        ends, other = (client, accepted) if sender == "client" else (accepted, client)
        forwarded.relay.process.send_signal(signal.SIGSTOP)
        ends.sendall(data)
        ends.shutdown(socket.SHUT_WR)
        forwarded.relay.process.send_signal(signal.SIGCONT)
        assert digest(read_all(other)) == digest(data)
        # The other direction has not ended with it.
        thread = send_and_finish(other, data[number:])
        assert digest(read_all(ends)) == digest(data[number:])
        thread.join(BOUND_S)
