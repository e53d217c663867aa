"""The kernel's memory of flows of datagrams, which outlives the rules that it was made by.

A flow keeps the way that its first packet took.  One that never falls silent would go on to a
container that has long gone, or past the rules that are there by now (moby#8795, #44688).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from pathlib import Path

from portproxy.spec import Spec

COUNT = "/proc/sys/net/netfilter/nf_conntrack_count"


def datagram_ports(specs: Mapping[str, Spec]) -> set[int]:
    """The ports of this namespace on which ``specs`` take datagrams."""
    found: set[int] = set()
    for spec in specs.values():
        mapping = spec.mapping
        if mapping.protocol == "udp" and mapping.port and not mapping.listen_netns:
            found.update(range(mapping.port, mapping.port + mapping.ports))
    return found


def forget_flows(ports: set[int]) -> None:
    """Has the kernel forget the flows of datagrams to these ports.

    Best effort: without CAP_NET_ADMIN nothing happens.
    """
    if not ports or not _are_there():
        return
    with contextlib.suppress(Exception):
        from pyroute2 import Conntrack

        for family in (socket.AF_INET, socket.AF_INET6):
            with Conntrack(nfgen_family=family) as tracked:
                for entry in tracked.dump_entries():
                    flow = entry.tuple_orig
                    if flow.proto == socket.IPPROTO_UDP and flow.dport in ports:
                        with contextlib.suppress(Exception):  # it may be gone already
                            tracked.entry("del", tuple_orig=flow)


def _are_there() -> bool:
    """Whether the kernel tracks any flow: where it does not, pyroute2 need not be loaded."""
    try:
        return int(Path(COUNT).read_text()) > 0
    except OSError:
        return False
