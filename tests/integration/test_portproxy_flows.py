"""Streams of datagrams follow what the rules and ports are now, not what they were at first."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.integration.containerd import scripts
from tests.integration.networks import (
    HOST_TO_CLIENT,
    HOST_TO_CLIENT6,
    Network,
    network,
)
from tests.integration.relays import BOUND_S, Launched, eventually, options, settings
from tests.integration.tool import Tool

__all__ = ["network"]

PORT, PAST, BEHIND = 8053, 9053, 9153
SHORT_S = 0.3


class Stream:
    """A client that never falls silent, and where its datagrams come out in the host.

    A rule of the host leads its port to another one, ``PAST``; ``BEHIND`` is where a relay would
    lead it.
    """

    def __init__(self, network: Network, host: str) -> None:
        self.network = network
        self.host = host
        self.family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.local = "::1" if ":" in host else "127.0.0.1"
        self.past = self._receiver(host, PAST)
        self.behind = self._receiver(self.local, BEHIND)
        self.source = network.within(network.client, self._socket)
        self.source.connect((host, PORT))

    def _socket(self) -> socket.socket:
        return socket.socket(self.family, socket.SOCK_DGRAM)

    def _receiver(self, address: str, port: int) -> socket.socket:
        made = self.network.within(self.network.host, self._socket)
        made.bind((address, port))
        made.setblocking(False)
        return made

    def lead_past(self) -> None:
        """Puts the rule in."""
        self._rule(PORT)

    def lead_nowhere(self) -> None:
        """Has another rule in its place: without one the kernel would translate nothing at all."""
        self._rule(PORT - 1)

    def _rule(self, port: int) -> None:
        kind = "ip6" if self.family == socket.AF_INET6 else "ip"
        hook = "type nat hook prerouting priority dstnat"
        lines = (
            *(f"table {kind} past {{", "chain at {", hook, "}", "}"),
            f"flush chain {kind} past at",
            f"add rule {kind} past at udp dport {port} redirect to :{PAST}",
            "",
        )
        command = ["nsenter", f"--net=/run/netns/{self.network.host}", "nft", "-f", "-"]
        subprocess.run(command, input="\n".join(lines), text=True, check=True, timeout=BOUND_S)

    def comes_out(self) -> int:
        """The port at which a datagram comes out that is sent now; 0 if nobody takes it."""
        for each in (self.past, self.behind):
            with contextlib.suppress(BlockingIOError):
                while True:
                    each.recv(100)
        with contextlib.suppress(ConnectionRefusedError):  # what the one before has met with
            self.source.send(b"on and on")
        got, _, _ = select.select([self.past, self.behind], [], [], SHORT_S)
        return int(got[0].getsockname()[1]) if got else 0

    def end(self) -> None:
        """Closes its sockets."""
        for each in (self.past, self.behind, self.source):
            each.close()


@pytest.fixture(params=[HOST_TO_CLIENT, HOST_TO_CLIENT6])
def stream(network: Network, request: pytest.FixtureRequest) -> Iterator[Stream]:
    """One that the kernel leads past the port, where there is no rule any more that says so."""
    made = Stream(network, request.param)
    try:
        made.lead_past()
        assert made.comes_out() == PAST
        made.lead_nowhere()
        assert made.comes_out() == PAST, "the kernel remembers"
        yield made
    finally:
        made.end()


def relay(stream: Stream, *binary: str, **wanted: str) -> Launched:
    """A relay of the host that an engine has started."""
    command = options(PORT, BEHIND, stream.host, "udp", stream.local)
    enter = ["nsenter", f"--net=/run/netns/{stream.network.host}"]
    made = Launched([*enter, *binary, *command], env=settings(**wanted))
    assert made.answer() == b"0\n"
    return made


def test_the_drop_in_forgets_if_it_is_asked_to(stream: Stream, binary: str) -> None:
    made = relay(stream, binary, flush_conntrack="true")
    try:
        eventually(lambda: stream.comes_out() == BEHIND, "the stream comes to the relay")
        stream.lead_past()
        assert stream.comes_out() == BEHIND, "it stays where it is"
        made.process.terminate()
        assert made.process.wait(BOUND_S) == 0
        assert stream.comes_out() == PAST
    finally:
        made.end()


def test_the_drop_in_leaves_flows_alone(stream: Stream, binary: str) -> None:
    made = relay(stream, binary)
    try:
        assert {stream.comes_out() for _ in range(5)} == {PAST}
    finally:
        made.end()


def test_without_the_capability_nothing_happens(stream: Stream, binary: str) -> None:
    without = ("setpriv", "--bounding-set=-net_admin")
    made = relay(stream, *without, binary, flush_conntrack="true")
    try:
        assert {stream.comes_out() for _ in range(5)} == {PAST}
        made.process.terminate()
        assert made.process.wait(BOUND_S) == 0
    finally:
        made.end()


def test_flows_to_other_ports_stay(stream: Stream, binary: str) -> None:
    """They are another mapping's affair, be it on the same address or the same port."""
    enter = ["nsenter", f"--net=/run/netns/{stream.network.host}", binary]
    elsewhere = "127.0.0.1" if stream.family == socket.AF_INET else "::1"
    for port, host in ((PORT + 1, stream.host), (PORT, elsewhere)):
        command = options(port, BEHIND, host, "udp", stream.local)
        made = Launched([*enter, *command], env=settings(flush_conntrack="true"))
        try:
            assert made.answer() == b"0\n"
            assert {stream.comes_out() for _ in range(5)} == {PAST}
        finally:
            made.end()


def test_the_tool_forgets(stream: Stream) -> None:
    bind = f"[{stream.host}]" if ":" in stream.host else stream.host
    to = f"[{stream.local}]" if ":" in stream.local else stream.local
    tool = Tool(
        scripts().absolute(), "-p", f"{bind}:{PORT}:{to}:{BEHIND}/udp", netns=stream.network.host
    )
    try:
        tool.line()
        assert stream.comes_out() == BEHIND
        stream.lead_past()
        assert stream.comes_out() == BEHIND
        assert tool.stop() == (0, "")
        assert stream.comes_out() == PAST
    finally:
        tool.end()
