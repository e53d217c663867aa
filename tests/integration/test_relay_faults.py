"""Peers that vanish, addresses that are taken away, ten thousand connections."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys

import pytest

from tests.integration.conftest import plain_only
from tests.integration.networks import CONTAINER, HOST_TO_CLIENT, Network, ip, network
from tests.integration.relays import (
    BOUND_S,
    Forwarded,
    Launched,
    eventually,
    options,
    settings,
)

__all__ = ["network"]

PORT, BEHIND = 8080, 80
SECOND = "10.77.1.9"  # another address of the host
CONNECTIONS = 10_000
SPARE_FDS = 40
# A server in a process of its own, which has half of the descriptors.
ECHO = """
import resource, select, socket, sys
limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
server = socket.socket(fileno=int(sys.argv[1]))
server.setblocking(True)
poller, held = select.epoll(), {}
poller.register(server, select.EPOLLIN)
while True:
    for fd, _ in poller.poll():
        if fd == server.fileno():
            made, _ = server.accept()
            held[made.fileno()] = made
            poller.register(made, select.EPOLLIN)
        elif data := held[fd].recv(100):
            held[fd].sendall(data)
        else:
            held.pop(fd).close()
"""
# What each may cost in memory of its own (KiB), besides what the kernel has.
EACH_KB = 1


class Between:
    """A relay in the host's namespace, in front of a server in the container's."""

    def __init__(self, binary: str, network: Network, **wanted: str | int) -> None:
        self.network = network
        self.sockets: list[socket.socket] = []
        self.backend = network.within(
            network.container, lambda: socket.create_server((CONTAINER, BEHIND))
        )
        self.backend.settimeout(BOUND_S)
        enter = ["nsenter", f"--net=/run/netns/{network.host}"]
        command = options(PORT, BEHIND, "0.0.0.0", container=CONTAINER)
        self.relay = Launched([*enter, binary, *command], env=settings(**wanted))
        assert self.relay.answer() == b"0\n"

    def client(self, to: str = HOST_TO_CLIENT) -> socket.socket:
        """A connection from the client's namespace."""
        made = self.network.within(
            self.network.client, lambda: socket.create_connection((to, PORT), BOUND_S)
        )
        self.sockets.append(made)
        return made

    def pair(self, to: str = HOST_TO_CLIENT) -> tuple[socket.socket, socket.socket]:
        """The two ends of a connection that carries bytes both ways."""
        client = self.client(to)
        accepted, _ = self.backend.accept()
        accepted.settimeout(BOUND_S)
        self.sockets.append(accepted)
        carries(client, accepted)
        return client, accepted

    def end(self) -> None:
        """Leaves nothing behind."""
        self.relay.end()
        for each in (self.backend, *self.sockets):
            each.close()


def carries(client: socket.socket, accepted: socket.socket) -> None:
    """A byte goes through in each direction."""
    for source, target in ((client, accepted), (accepted, client)):
        source.sendall(b"x")
        assert target.recv(1) == b"x"


def has_ended(end: socket.socket) -> bool:
    """Whether it learns that the connection is over, by a FIN or a reset."""
    try:
        return end.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("says_something", [False, True])
@pytest.mark.parametrize("who", ["client", "container"])
def test_who_vanishes_is_given_up(
    binary: str, network: Network, who: str, says_something: bool
) -> None:
    made = Between(binary, network, keepalive=1, user_timeout="1s")
    try:
        client, accepted = made.pair()
        ip("-n", getattr(network, who), "link", "set", "eth0", "down")
        left = accepted if who == "client" else client
        if says_something:
            left.sendall(b"is anybody there?")
        assert has_ended(left)
    finally:
        made.end()


def restore(network: Network) -> None:
    """The default routes, which went with their links."""
    for name, via in ((network.client, HOST_TO_CLIENT), (network.container, "10.77.2.1")):
        ip("-n", name, "route", "replace", "default", "via", via)


def test_an_address_of_the_host_goes_and_comes_back(binary: str, network: Network) -> None:
    ip("-n", network.host, "addr", "add", f"{SECOND}/24", "dev", "c0")
    made = Between(binary, network)
    try:
        stays, goes = made.pair(), made.pair(SECOND)
        ip("-n", network.host, "addr", "del", f"{SECOND}/24", "dev", "c0")
        carries(*stays)
        made.pair()
        goes[0].sendall(b"later")
        ip("-n", network.host, "addr", "add", f"{SECOND}/24", "dev", "c0")
        assert goes[1].recv(5) == b"later"
        carries(*goes)
    finally:
        made.end()


def test_the_containers_address_goes_and_comes_back(binary: str, network: Network) -> None:
    made = Between(binary, network, connect_timeout="500ms")
    try:
        before = made.pair()
        ip("-n", network.container, "addr", "del", f"{CONTAINER}/24", "dev", "eth0")
        assert has_ended(made.client())
        before[0].sendall(b"later")
        ip("-n", network.container, "addr", "add", f"{CONTAINER}/24", "dev", "eth0")
        restore(network)
        assert before[1].recv(5) == b"later"
        carries(*before)
        made.pair()
    finally:
        made.end()


@plain_only
def test_ten_thousand_connections(binary: str) -> None:
    """As many of them as the limit of descriptors admits: each has two in the relay."""
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (usual[1], usual[1]))
    count = min(CONNECTIONS, (usual[1] - SPARE_FDS) // 2)
    assert count > CONNECTIONS // 2, "the hard limit of descriptors is too low for this test"
    made = Forwarded(binary)
    command = [sys.executable, "-c", ECHO, str(made.backend.fileno())]
    echo = subprocess.Popen(command, pass_fds=[made.backend.fileno()])
    try:
        works(made.client())
        before_kb = made.relay.private_kb()
        clients = [made.client() for _ in range(count)]
        for client in clients:
            works(client)
        held = made.relay.fds()
        assert 2 * count < held <= 2 * count + SPARE_FDS
        assert made.relay.private_kb() - before_kb <= EACH_KB * count
        for client in clients:
            client.close()
        eventually(lambda: made.relay.fds() <= SPARE_FDS, "all descriptors are given back")
        works(made.client())
    finally:
        echo.kill()
        echo.wait(BOUND_S)
        made.end()
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)


def works(client: socket.socket) -> None:
    """What is sent comes back."""
    client.sendall(b"there and back")
    assert client.recv(14) == b"there and back"
