"""What the kernel is given over netlink: the rules that ``nft-dump`` prints, all or nothing."""

from __future__ import annotations

import errno
import subprocess

import pytest

from portproxy import nftlink
from portproxy.localnet import Links
from portproxy.nft import Forward, Kernel, NftError, ruleset
from tests.integration.networks import Network, network
from tests.integration.relays import BOUND_S

__all__ = ["network"]

TABLE = "portproxy_0"
WANTED = [
    Forward("tcp", "", 8080, "10.0.0.2", 80),
    Forward("udp", "", 53, "10.0.0.2", 5353),
    Forward("tcp", "10.77.1.1", 443, "10.0.0.3", 8443),
    Forward("tcp", "fd77:1::1", 80, "fd77:2::2", 8081),
    Forward("udp", "", 90, "fd77:2::2", 8082),
]

LOOPBACK = [
    Forward("tcp", "", 8081, "10.0.0.2", 80, loopback=True),
    Forward("udp", "127.0.0.5", 8081, "10.0.0.2", 80, loopback=True),
]


def nft(network: Network, *words: str, text: str = "") -> str:
    """What nft in the host's namespace says."""
    command = ["nsenter", f"--net=/run/netns/{network.host}", "nft", *words]
    done = subprocess.run(
        command, input=text, text=True, capture_output=True, check=True, timeout=BOUND_S
    )
    return done.stdout


@pytest.mark.parametrize(
    ("wanted", "links"),
    [
        *((some, Links()) for some in (WANTED, WANTED[:3], WANTED[3:], [])),
        ([*WANTED, *LOOPBACK], Links(("b0", "c0"), ("c0",))),
        (LOOPBACK[:1], Links()),
        (WANTED[3:], Links((), ("c0",))),
    ],
)
def test_the_kernel_gets_what_people_are_shown(
    network: Network, wanted: list[Forward], links: Links
) -> None:
    network.within(
        network.host, lambda: nftlink.carry_out(nftlink.replacement(TABLE, wanted, links))
    )
    ours = nft(network, "--numeric", "list", "ruleset")
    assert network.within(network.host, lambda: nftlink.opened(TABLE)) == set(links.opened)
    nft(network, "-f", "-", text="flush ruleset\n" + ruleset(TABLE, wanted, links))
    theirs = nft(network, "--numeric", "list", "ruleset")
    assert network.within(network.host, lambda: nftlink.opened(TABLE)) == set(links.opened)
    assert in_order(ours) == in_order(theirs)
    assert (in_order(ours) != []) == (wanted != [])
    # The elements of a map have no order.
    assert sorted(ours.replace(",", " ").split()) == sorted(theirs.replace(",", " ").split())


def in_order(text: str) -> list[str]:
    """The lines but for the elements of maps."""
    return [line for line in text.splitlines() if " : " not in line or "type" in line]


def test_many_ports_are_one_transaction(network: Network) -> None:
    many = [Forward("tcp", "", port, "10.0.0.2", port) for port in range(20000, 30000)]
    network.within(network.host, lambda: Kernel(TABLE).put(many))
    said = nft(network, "list", "map", "ip", TABLE, "any")
    assert said.count(" : 10.0.0.2 . ") == len(many)


def test_what_is_refused_leaves_what_was_there(network: Network) -> None:
    """The last of the messages, to a table that is not there, takes all others back."""

    def work() -> str:
        kernel = Kernel(TABLE)
        kernel.put(WANTED)
        before = nft(network, "list", "ruleset")
        bad = [*nftlink.replacement(TABLE, WANTED[:1]), nftlink.removal(2, "nowhere")[1]]
        with pytest.raises(OSError) as caught:
            nftlink.carry_out(bad)
        assert caught.value.errno == errno.ENOENT
        # Two places for one port cannot be.
        with pytest.raises(NftError, match="the kernel refuses the nft table: File exists"):
            kernel.put([WANTED[0], Forward("tcp", "", 8080, "10.0.0.9", 80)])
        return before

    before = network.within(network.host, work)
    assert nft(network, "list", "ruleset") == before


def test_tables_are_listed_and_removed(network: Network) -> None:
    def work() -> list[tuple[int, str]]:
        kernel = Kernel(TABLE)
        kernel.put(WANTED)
        found = nftlink.tables()
        kernel.remove()
        assert nftlink.tables() == []
        kernel.remove()
        return found

    assert network.within(network.host, work) == [(2, TABLE), (10, TABLE)]
