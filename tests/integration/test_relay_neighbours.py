"""What is published on 127.0.0.1 is not there for neighbours, whoever forwards it.

The kernel drops what comes from elsewhere for a loopback address, unless ``route_localnet`` says
otherwise, which dockerd sets for its rules (moby#41872).  We have no rule that needs it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.containerd import scripts
from tests.integration.networks import CONTAINER, HOST_TO_CLIENT, Network, network
from tests.integration.tool import Echo, Tool, says

__all__ = ["network"]

PORT, BEHIND = 8080, 80
INTERFACES = {"all", "default", "lo", "c0", "b0"}


def admitting(network: Network) -> set[str]:
    """The interfaces of the host that let in what is for loopback addresses."""
    folder = Path("/proc/sys/net/ipv4/conf")

    def read() -> set[str]:
        values = {f.parent.name: f.read_text() for f in folder.glob("*/route_localnet")}
        assert set(values) >= INTERFACES
        return {name for name, value in values.items() if value != "0\n"}

    return network.within(network.host, read)


@pytest.mark.parametrize(
    ("mode", "address"),
    [("user", "127.0.0.1"), ("auto", "127.0.0.1"), ("auto", HOST_TO_CLIENT), ("nft", "0.0.0.0")],
)
def test_no_interface_lets_in_what_is_for_127_0_0_1(
    network: Network, tmp_path: Path, mode: str, address: str
) -> None:
    backend = network.within(network.container, lambda: Echo("it", at=(CONTAINER, BEHIND)))
    words = ("--mode", mode, "-p", f"{address}:{PORT}:{CONTAINER}:{BEHIND}")
    tool = Tool(scripts().absolute(), *words, control=tmp_path / "control", netns=network.host)
    try:
        tool.line()
        if address != HOST_TO_CLIENT:
            assert network.within(network.host, lambda: says(("127.0.0.1", PORT))) == "it"
        assert admitting(network) == set()
    finally:
        tool.end()
        backend.end()


def test_the_kernel_is_not_given_a_port_of_127_0_0_1(network: Network) -> None:
    words = ("--mode", "nft", "-p", f"127.0.0.1:{PORT}:{CONTAINER}:{BEHIND}")
    code, error = Tool(scripts().absolute(), *words, netns=network.host).finish()
    assert code == 1
    assert "loopback addresses are not routed" in error
    assert admitting(network) == set()
