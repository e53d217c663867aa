"""Kernel mode: destination NAT in tables of our own, put and removed in one transaction.

The rules never change: what they look up is in maps.  An instance has one table for each family,
named for its pid; a table whose process has gone is removed by the next start.  What is here as
text, for people to read, ``portproxy.nftlink`` has as messages to the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path

from portproxy.spec import Spec

TABLE = re.compile(r"portproxy_([0-9]+)")
FAMILIES = {4: "ip", 6: "ip6"}
DSTNAT = -100  # nft 1.0 knows no name for it at the output hook
# What only the data plane can do.
NEEDS_USER = {
    "proxy_out": "off",
    "proxy_in": "",
    "access": "",
    "backends": "",
    "transparent": "false",
    "max_connections": "0",
    "max_per_client": "0",
    "connections_per_second": "0",
    "bytes_per_second": "0",
    "bytes_per_second_each": "0",
}


class NftError(Exception):
    """The kernel does not forward; the message is one line."""


@dataclass(frozen=True)
class Forward:
    """One port in the kernel; ``bind`` is empty for every address of the host."""

    protocol: str
    bind: str
    port: int
    address: str
    host_port: int

    @property
    def version(self) -> int:
        """4 or 6."""
        return ipaddress.ip_address(self.address).version


def obstacle(spec: Spec) -> str:  # noqa: PLR0911
    """Why the kernel cannot forward this mapping; empty if it can."""
    mapping = spec.mapping
    if mapping.unix or mapping.listen_unix or mapping.listen_fd:
        return "a Unix or inherited socket has no place in it"
    if mapping.netns or mapping.listen_netns:
        return "the rules hold in this network namespace only"
    if mapping.port == 0:
        return "the port must be known"
    if mapping.protocol == "sctp":
        return "sctp is left to the data plane"
    address = ipaddress.ip_address(spec.address)
    bind = ipaddress.ip_address(mapping.bind)
    if address.version != bind.version:
        return "the kernel does not translate between IPv4 and IPv6"
    if address.is_loopback or bind.is_loopback:
        return "loopback addresses are not routed"
    for name, value in spec.settings:
        if name in NEEDS_USER and value != NEEDS_USER[name]:
            return f"{name} needs the data plane"
    return ""


def forwards(spec: Spec) -> list[Forward]:
    """The ports of a spec for which there is no obstacle."""
    mapping = spec.mapping
    bind = "" if ipaddress.ip_address(mapping.bind).is_unspecified else mapping.bind
    return [
        Forward(
            mapping.protocol,
            bind,
            mapping.port + at,
            spec.address,
            mapping.host_port + (at if mapping.spread else 0),
        )
        for at in range(mapping.ports)
    ]


def ruleset(table: str, wanted: list[Forward]) -> str:
    """The commands, in nft's language, that put the table in place of one of its name."""
    text = ""
    for version, family in FAMILIES.items():
        # It is added first so that it can be deleted whether it was there or not.
        text += f"table {family} {table} {{ }}\ndelete table {family} {table}\n"
        some = [each for each in wanted if each.version == version]
        if some:
            text += _table(family, table, some)
    return text


def _table(family: str, table: str, wanted: list[Forward]) -> str:
    """One family's table with its maps, chains and rules."""
    address = "ipv4_addr" if family == "ip" else "ipv6_addr"
    port = "inet_proto . inet_service"
    exact = [f"{e.bind} . {_port(e)}" for e in wanted if e.bind]
    anywhere = [_port(e) for e in wanted if not e.bind]
    rules = f"""
        dnat to {family} daddr . meta l4proto . th dport map @exact
        fib daddr type local dnat to meta l4proto . th dport map @any
    """
    # The loopback addresses are the data plane's: what leaves them cannot come back.
    loopback = "ip daddr 127.0.0.0/8" if family == "ip" else "ip6 daddr ::1"
    return f"""
table {family} {table} {{
    map exact {{
        type {address} . {port} : {address} . inet_service
        {_elements(exact)}
    }}
    map any {{
        type {port} : {address} . inet_service
        {_elements(anywhere)}
    }}
    chain prerouting {{
        type nat hook prerouting priority {DSTNAT}; policy accept;{rules}
    }}
    chain output {{
        type nat hook output priority {DSTNAT}; policy accept;
        {loopback} accept{rules}
    }}
}}
"""


def _port(each: Forward) -> str:
    return f"{each.protocol} . {each.port} : {each.address} . {each.host_port}"


def _elements(some: list[str]) -> str:
    return f"elements = {{ {', '.join(some)} }}" if some else ""


@dataclass
class Kernel:
    """The tables of this process.  Nothing of it is for an event loop's thread."""

    table: str = ""
    placed: bool = False

    def __post_init__(self) -> None:
        self.table = self.table or f"portproxy_{os.getpid()}"

    def put(self, wanted: list[Forward]) -> None:
        """Has the kernel forward exactly these.  Raises NftError; then nothing has changed."""
        if wanted or self.placed:
            from portproxy import nftlink  # with pyroute2, which most instances do without

            try:
                nftlink.carry_out(nftlink.replacement(self.table, wanted))
            except OSError as error:
                raise NftError(_told(error)) from error
        self.placed = bool(wanted)

    def remove(self) -> None:
        """Takes everything out again."""
        with contextlib.suppress(NftError):
            self.put([])


def _told(error: OSError) -> str:
    if error.errno in {errno.EPERM, errno.EACCES}:
        return "the kernel's forwarding needs CAP_NET_ADMIN"
    if error.errno in {errno.EPROTONOSUPPORT, errno.ENOENT, errno.EOPNOTSUPP}:
        return f"this kernel lacks a part of nftables' NAT ({error.strerror})"
    return f"the kernel refuses the nft table: {error.strerror}"


def _is_portproxy(pid: str) -> bool:
    with contextlib.suppress(OSError):
        return b"portproxy" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def remove_stale() -> list[str]:
    """Removes the tables whose portproxy has gone, in one transaction; their names."""
    from portproxy import nftlink

    stale: set[str] = set()
    with contextlib.suppress(OSError):
        for _, name in nftlink.tables():
            match = TABLE.fullmatch(name)
            if match and not _is_portproxy(match.group(1)):
                stale.add(name)
        nftlink.carry_out([m for name in sorted(stale) for m in nftlink.replacement(name, [])])
    return sorted(stale)
