"""No byte is lost, doubled or moved, whoever closes when; a slow reader costs no memory."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.integration.conftest import plain_only
from tests.integration.relays import BOUND_S, MIB, Forwarded, digest, eventually

# Per example, and so at most about 60 MiB for each build and family.
MOST_BYTES = MIB
EXAMPLES = 30
STALL_BOUND_KB = 1024
# What one connection carries of the gibibyte, both ways together.
GIBIBYTE, SHARE = 1 << 30, 64 * MIB


@dataclass(frozen=True)
class Flow:
    """What one end does: its bytes, its pieces, and after how much of the other's it begins."""

    size: int
    piece: int
    waits_for: float  # the share of the other's bytes that it has read before it writes
    closes: bool  # a FIN as soon as all is written; else only when the other's has come


sizes = st.one_of(
    st.integers(0, 3), st.integers(1, 70_000), st.sampled_from([32768, 65536, MOST_BYTES])
)
shares = st.one_of(st.sampled_from([0, 1, SHARE]), st.integers(0, SHARE))
flows = st.builds(
    Flow,
    size=sizes,
    piece=st.sampled_from([1000, 8191, 65536, 300_000]),
    waits_for=st.sampled_from([0.0, 0.5, 1.0]),
    closes=st.booleans(),
)


@pytest.fixture(scope="module", params=["127.0.0.1", "::1"])
def crossing(request: pytest.FixtureRequest, programs: object) -> Iterator[Forwarded]:
    """A relay between addresses of one family."""
    host = str(request.param)
    made = Forwarded(f"{programs}/portproxy-relay", host, container=host)
    yield made
    made.end()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(up=flows, down=flows, seed=st.integers(0, 2**32))
def test_both_directions_whoever_closes_when(
    crossing: Forwarded, up: Flow, down: Flow, seed: int
) -> None:
    chance = random.Random(seed)
    exchange(crossing, up, down, (chance.randbytes(up.size), chance.randbytes(down.size)))


@plain_only
def test_a_gibibyte_whoever_closes_when(binary: str) -> None:
    made = Forwarded(binary)
    data = random.Random(11).randbytes(SHARE)
    carried = 0

    @settings(max_examples=GIBIBYTE // SHARE, deadline=None, database=None, phases=[Phase.generate])
    @given(size=shares, up=flows, down=flows)
    def carry(size: int, up: Flow, down: Flow) -> None:
        nonlocal carried
        up, down = replace(up, size=size), replace(down, size=SHARE - size)
        exchange(made, up, down, (data[:size], data[size:]))
        carried += SHARE

    try:
        carry()
        assert carried == GIBIBYTE
    finally:
        made.end()


def exchange(made: Forwarded, up: Flow, down: Flow, sent: tuple[bytes, bytes]) -> None:
    """One connection on which the client sends the first of ``sent``, the container the second."""
    if up.waits_for and down.waits_for:
        up = replace(up, waits_for=0.0)  # else both would wait for ever
    if not up.closes and not down.closes:
        down = replace(down, closes=True)
    client, accepted = made.pair()
    with client, accepted:
        ends = [End(client, up, sent[0], down.size), End(accepted, down, sent[1], up.size)]
        for end in ends:
            end.start()
        for end in ends:
            end.join()
        assert digest(bytes(ends[1].got)) == digest(sent[0])
        assert digest(bytes(ends[0].got)) == digest(sent[1])


class End:
    """One end of a connection, with a thread to read and one to write."""

    def __init__(self, socket_: socket.socket, flow: Flow, data: bytes, expects: int) -> None:
        self.socket, self.flow, self.data = socket_, flow, data
        self.got = bytearray()
        self.enough = threading.Event()
        self.ended = threading.Event()
        self.wanted = int(flow.waits_for * expects)
        self.threads = [threading.Thread(target=work) for work in (self.read, self.write)]

    def start(self) -> None:
        """Begins both."""
        for thread in self.threads:
            thread.start()

    def join(self) -> None:
        """Waits for the FIN of the other end and for the own one."""
        for thread in self.threads:
            thread.join(BOUND_S)
            assert not thread.is_alive()

    def read(self) -> None:
        """Reads to the end."""
        with contextlib.suppress(OSError):
            while True:
                if len(self.got) >= self.wanted:
                    self.enough.set()
                part = self.socket.recv(200_000)
                if not part:
                    break
                self.got += part
        self.enough.set()
        self.ended.set()

    def write(self) -> None:
        """Writes in pieces, then closes this direction."""
        self.enough.wait(BOUND_S)
        with contextlib.suppress(OSError):
            for at in range(0, len(self.data), self.flow.piece):
                self.socket.sendall(self.data[at : at + self.flow.piece])
            if not self.flow.closes:
                self.ended.wait(BOUND_S)
            self.socket.shutdown(socket.SHUT_WR)


@plain_only
def test_many_stalled_readers_cost_no_memory(binary: str) -> None:
    made = Forwarded(binary)
    try:
        pairs = [made.pair(receive_bytes=8192) for _ in range(8)]
        before_kb = made.relay.memory_kb()
        for _, writer in pairs:
            writer.setblocking(False)
            fill(writer)
        # What each holds is in the kernel: two sockets and one pipe.
        assert made.relay.memory_kb() - before_kb < STALL_BOUND_KB
        for reader, _ in pairs:
            assert len(reader.recv(100)) == 100
    finally:
        made.end()


def fill(writer: socket.socket) -> None:
    """Writes until nothing more is taken for a while."""
    refused = 0

    def is_full() -> bool:
        nonlocal refused
        try:
            while True:
                writer.send(b"x" * 65536)
                refused = 0
        except BlockingIOError:
            refused += 1
        return refused > 20

    eventually(is_full, "the writer stalls")
    assert not select.select([], [writer], [], 0)[1]
