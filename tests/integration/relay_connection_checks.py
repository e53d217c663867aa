"""Faults of docker-proxy that users have reported: connections, starting and ending.

A check takes the program and raises AssertionError or OSError when it has the fault.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.integration.relay_checks import PATIENCE_S, forwarding, there_too
from tests.integration.relays import (
    BOUND_S,
    Launched,
    eventually,
    free_port,
    options,
    reset,
    settings,
)

PR_SET_PDEATHSIG = 1


# --- Connections --------------------------------------------------------------------------------


def check_half_close_is_kept(binary: str) -> None:
    with forwarding(binary) as made:
        client, accepted = made.pair()
        client.sendall(b"request")
        client.shutdown(socket.SHUT_WR)
        assert accepted.recv(100) == b"request"
        assert accepted.recv(100) == b""
        accepted.sendall(b"late answer")
        assert client.recv(100) == b"late answer"


@there_too
def check_half_closed_connections_can_be_ended(binary: str) -> None:
    with forwarding(binary, env=settings(half_close_timeout="100ms")) as made:
        client, accepted = made.pair()
        client.shutdown(socket.SHUT_WR)
        assert accepted.recv(1) == b""
        client.settimeout(PATIENCE_S)
        assert client.recv(1) == b""  # the container has neither written nor closed


@there_too
def check_a_container_that_listens_a_little_later(binary: str) -> None:
    port, behind = free_port(), free_port()
    relay = Launched([binary, *options(port, behind)], env=settings(connect_retry="20s"))
    try:
        assert relay.answer() == b"0\n"
        with socket.create_connection(("127.0.0.1", port), BOUND_S) as client:
            client.sendall(b"early")
            client.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                assert client.recv(1), "the connection was ended"
            with socket.create_server(("127.0.0.1", behind)) as server:
                server.settimeout(PATIENCE_S)
                accepted, _ = server.accept()
                with accepted:
                    assert accepted.recv(5) == b"early"
    finally:
        relay.end()


@there_too
def check_refusal_can_be_a_reset(binary: str) -> None:
    port = free_port()
    relay = Launched([binary, *options(port, free_port())], env=settings(refuse="rst"))
    try:
        assert relay.answer() == b"0\n"
        # The reset may arrive before connect has returned.
        with (
            pytest.raises(ConnectionResetError),
            socket.create_connection(("127.0.0.1", port), BOUND_S) as client,
        ):
            client.recv(1)
    finally:
        relay.end()


@there_too
def check_a_reset_can_stay_one(binary: str) -> None:
    with forwarding(binary, env=settings(reset="propagate")) as made:
        client, accepted = made.pair()
        accepted.sendall(b"half an ans")
        assert client.recv(11) == b"half an ans"
        reset(accepted)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


@there_too
def check_the_container_can_learn_the_client(binary: str) -> None:
    with forwarding(binary, env=settings(proxy_out="v1")) as made:
        client, accepted = made.pair()
        client.sendall(b"hello")
        wanted = f"PROXY TCP4 127.0.0.1 127.0.0.1 {client.getsockname()[1]} {made.where[1]}\r\n"
        got = b""
        while len(got) < len(wanted) + 5:
            part = accepted.recv(1000)
            assert part
            got += part
            assert got[:5] == b"PROXY"
        assert got == wanted.encode() + b"hello"


# --- Starting and ending ------------------------------------------------------------------------


@there_too
def check_runs_without_a_status_pipe(binary: str) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as backend:
        command = [binary, *options(port, backend.getsockname()[1])]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:

            def connects() -> bool:
                assert process.poll() is None
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), BOUND_S).close()
                    return True
                return False

            eventually(connects, "the port is open")
            backend.settimeout(PATIENCE_S)
            backend.accept()[0].close()
            assert process.poll() is None
        finally:
            process.kill()
            process.wait(BOUND_S)


def check_port_is_free_at_once_after_the_end(binary: str) -> None:
    with forwarding(binary) as made:
        client, accepted = made.pair()
        made.relay.process.send_signal(signal.SIGINT)
        assert made.relay.process.wait(BOUND_S) == 0
        # The connections of the first are in TIME_WAIT or still half open.
        behind = made.backend.getsockname()[1]
        second = Launched([binary, *options(made.where[1], behind)])
        try:
            assert second.answer() == b"0\n"
        finally:
            second.end()
        assert client.fileno() != accepted.fileno()


def check_sigint_ends_it_whatever_is_open(binary: str) -> None:
    with forwarding(binary) as made:
        client, _ = made.pair()
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(b"x" * 65536)  # nobody reads
        made.relay.process.send_signal(signal.SIGINT)
        assert made.relay.process.wait(5) == 0


def check_dies_with_its_parent(binary: str) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        command = [binary, *options(free_port(), 1)]

        def bind_to_parent() -> None:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)

        subprocess.Popen(command, pass_fds=[writer], preexec_fn=bind_to_parent)
        os._exit(0)
    os.close(writer)
    try:
        assert os.waitpid(pid, 0)[1] == 0
        # The pipe ends when the last process that has it does.
        assert select.select([reader], [], [], BOUND_S)[0]
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


def check_ipv4_and_ipv6_may_have_one_port(binary: str) -> None:
    with forwarding(binary, "0.0.0.0") as made:
        behind = made.backend.getsockname()[1]
        other = Launched([binary, *options(made.where[1], behind, "::")])
        try:
            assert other.answer() == b"0\n"
            with socket.create_connection(("::1", made.where[1]), BOUND_S) as client:
                accepted, _ = made.backend.accept()
                with accepted:
                    client.sendall(b"x")
                    assert accepted.recv(1) == b"x"
        finally:
            other.end()


@there_too
def check_takes_a_listener_from_a_newer_engine(binary: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as backend,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        backend.settimeout(BOUND_S)
        where = listener.getsockname()
        command = [binary, *options(where[1], backend.getsockname()[1]), "-use-listen-fd"]
        relay = Launched(command, listener.fileno())
        try:
            assert relay.answer() == b"0\n"
        finally:
            relay.end()


def check_serves_on_without_its_starter(binary: str) -> None:
    """Not as dockerd's proxy, which ends with dockerd, but by itself (``-mappings``)."""
    port = free_port()
    with (
        tempfile.TemporaryDirectory(prefix="pyshim-mappings-") as folder,
        socket.create_server(("127.0.0.1", 0)) as backend,
    ):
        backend.settimeout(BOUND_S)
        file = Path(folder) / "mappings"
        file.write_text(f"tcp 127.0.0.1 {port} 127.0.0.1 {backend.getsockname()[1]}\n")
        # The shell that has started it ends at once.
        started = subprocess.run(
            ["sh", "-c", '"$0" -mappings "$1" </dev/null >/dev/null 2>&1 & echo $!', binary, file],
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=True,
        )
        try:

            def connects() -> bool:
                with contextlib.suppress(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port), BOUND_S).close()
                    return True
                return False

            eventually(connects, "the port is open")
            backend.accept()[0].close()
        finally:
            os.kill(int(started.stdout), signal.SIGKILL)


def check_sctp_keeps_nobody_waiting(binary: str) -> None:
    """Beside TCP on the same port; where the kernel has no SCTP, its words are the error."""
    with forwarding(binary) as made:
        behind = made.backend.getsockname()[1]
        sctp = Launched([binary, *options(made.where[1], behind, proto="sctp")])
        try:
            assert sctp.answer() in {b"0\n", b"1\nprotocol not supported"}
        finally:
            sctp.end()
        client, accepted = made.pair()
        client.sendall(b"tcp")
        assert accepted.recv(3) == b"tcp"
