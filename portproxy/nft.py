"""Kernel mode: destination NAT in tables of our own, put and removed in one transaction.

The rules never change: what they look up is in maps.  An instance has one table for each family,
named for its pid; a table whose process has gone is removed by the next start.  What is here as
text, for people to read, ``portproxy.nftlink`` has as messages to the kernel.

With loopback connections a table has a fence, too, and a set of the interfaces that were opened
for them (``portproxy.localnet``): it is there before the first is opened and until the last is
closed, so that a successor always knows what to close.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from portproxy import localnet
from portproxy.localnet import Links
from portproxy.spec import Spec

TABLE = re.compile(r"portproxy_([0-9]+)")
FAMILIES = {4: "ip", 6: "ip6"}
DSTNAT = -100  # nft 1.0 knows no name for it at the output hook
SRCNAT, RAW = 100, -300
NO_LINKS = Links()
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
    """One port in the kernel; ``bind`` is empty for every address of the host.

    ``loopback``: for connections to 127.0.0.0/8, too.
    """

    protocol: str
    bind: str
    port: int
    address: str
    host_port: int
    loopback: bool = False

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
    if address.is_loopback or (bind.is_loopback and bind.version == 6):
        return "loopback addresses are not routed"
    if bind.is_loopback and not spec.loopback:
        return "loopback addresses are not routed without loopback=true"
    for name, value in spec.settings:
        if name in NEEDS_USER and value != NEEDS_USER[name]:
            return f"{name} needs the data plane"
    return ""


def forwards(spec: Spec) -> list[Forward]:
    """The ports of a spec for which there is no obstacle."""
    mapping = spec.mapping
    address = ipaddress.ip_address(mapping.bind)
    bind = "" if address.is_unspecified else mapping.bind
    loopback = spec.loopback and address.version == 4 and (not bind or address.is_loopback)
    return [
        Forward(
            mapping.protocol,
            bind,
            mapping.port + at,
            spec.address,
            mapping.host_port + (at if mapping.spread else 0),
            loopback,
        )
        for at in range(mapping.ports)
    ]


def ruleset(table: str, wanted: list[Forward], links: Links = NO_LINKS) -> str:
    """The commands, in nft's language, that put the table in place of one of its name."""
    text = ""
    for version, family in FAMILIES.items():
        # It is added first so that it can be deleted whether it was there or not.
        text += f"table {family} {table} {{ }}\ndelete table {family} {table}\n"
        some = [each for each in wanted if each.version == version]
        if some or (links and version == 4):
            text += _table(family, table, some, links)
    return text


def _table(family: str, table: str, wanted: list[Forward], links: Links) -> str:
    """One family's table with its maps, chains and rules."""
    address = "ipv4_addr" if family == "ip" else "ipv6_addr"
    port = "inet_proto . inet_service"
    exact = [f"{e.bind} . {_port(e)}" for e in wanted if e.bind]
    anywhere = [_port(e) for e in wanted if not e.bind]
    to_exact = f"dnat to {family} daddr . meta l4proto . th dport map @exact"
    to_any = "fib daddr type local dnat to meta l4proto . th dport map @any"
    # The loopback addresses are the data plane's: what leaves them cannot come back.
    output = "ip daddr 127.0.0.0/8 accept" if family == "ip" else "ip6 daddr ::1 accept"
    output += f"\n        {to_exact}"
    more = ""
    if with_loopback(family, wanted, links):
        # But for those that can.
        output = f"""{to_exact}
        ip daddr 127.0.0.0/8 dnat to meta l4proto . th dport map @loopback
        ip daddr 127.0.0.0/8 accept"""
        more = _loopback(wanted, links)
    return f"""
table {family} {table} {{
    map exact {{
        type {address} . {port} : {address} . inet_service
        {_elements(exact)}
    }}
    map any {{
        type {port} : {address} . inet_service
        {_elements(anywhere)}
    }}{more}
    chain prerouting {{
        type nat hook prerouting priority {DSTNAT}; policy accept;
        {to_exact}
        {to_any}
    }}
    chain output {{
        type nat hook output priority {DSTNAT}; policy accept;
        {output}
        {to_any}
    }}
}}
"""


def with_loopback(family: str, wanted: Sequence[Forward], links: Links) -> bool:
    """Whether a table has the part that loopback connections need."""
    return family == "ip" and (bool(links) or any(each.loopback for each in wanted))


def _loopback(wanted: list[Forward], links: Links) -> str:
    """What is only there for loopback connections.

    Only they are masqueraded, so that the host's own addresses stay visible.  The fence keeps what
    comes in by an interface that was opened from what listens on loopback addresses only, and what
    claims to come from there.
    """
    return f"""
    map loopback {{
        type inet_proto . inet_service : ipv4_addr . inet_service
        {_elements([_port(e) for e in wanted if e.loopback and not e.bind])}
    }}
    set through {{
        type ifname
        {_elements([f'"{name}"' for name in links.through])}
    }}
    set opened {{
        type iface_index
        {_elements([f'"{name}"' for name in links.opened])}
    }}
    chain postrouting {{
        type nat hook postrouting priority {SRCNAT}; policy accept;
        ip saddr 127.0.0.0/8 oifname @through masquerade
    }}
    chain fence {{
        type filter hook prerouting priority {RAW}; policy accept;
        iifname != "lo" ip daddr 127.0.0.0/8 drop
        iifname != "lo" ip saddr 127.0.0.0/8 drop
    }}"""


def _port(each: Forward) -> str:
    return f"{each.protocol} . {each.port} : {each.address} . {each.host_port}"


def _elements(some: list[str]) -> str:
    return f"elements = {{ {', '.join(some)} }}" if some else ""


@dataclass
class Kernel:
    """The tables of this process.  Nothing of it is for an event loop's thread."""

    table: str = ""
    wanted: list[Forward] = field(default_factory=list)
    links: Links = NO_LINKS

    def __post_init__(self) -> None:
        self.table = self.table or f"portproxy_{os.getpid()}"

    @property
    def placed(self) -> bool:
        """Whether there is a table."""
        return bool(self.wanted or self.links)

    def put(self, wanted: list[Forward], through: Iterable[str] = ()) -> None:
        """Has the kernel forward exactly these, with loopback connections ``through`` interfaces.

        Raises NftError; then nothing has changed.
        """
        names = set(through)
        if wanted or names or self.placed:
            try:
                if names or self.links:
                    with localnet.alone():
                        self._put_and_open(wanted, names)
                else:
                    self._replace(wanted, NO_LINKS)
            except OSError as error:
                raise NftError(_told(error)) from error

    def remove(self) -> None:
        """Takes everything out again."""
        with contextlib.suppress(NftError):
            self.put([])

    def _put_and_open(self, wanted: list[Forward], through: set[str]) -> None:
        """Closes, notes, opens: wherever it is cut off, what is open is noted and fenced."""
        noted = _noted()
        held = noted.pop(self.table, set())
        others = {name for some in noted.values() for name in some}
        living = {name for table, some in noted.items() if _lives(table) for name in some}
        # What another has opened is noted here, too: the last one of all closes it.
        opened = {name for name in through if name in held | others or not localnet.is_open(name)}
        gone = held - opened - living
        before = self.wanted, self.links
        stuck = localnet.close(gone)
        try:
            self._replace(wanted, _links(through, opened | stuck))
        except OSError:
            localnet.open_up(gone - stuck)
            raise
        try:
            localnet.open_up(sorted(opened))
        except OSError as error:
            localnet.close(opened - held - living)
            self._replace(*before)
            localnet.open_up(gone - stuck)
            raise NftError(f"cannot set route_localnet: {error.strerror}") from error

    def _replace(self, wanted: list[Forward], links: Links) -> None:
        from portproxy import nftlink  # with pyroute2, which most instances do without

        nftlink.carry_out(nftlink.replacement(self.table, wanted, links))
        self.wanted, self.links = wanted, links


def _links(through: Iterable[str], opened: Iterable[str]) -> Links:
    return Links(tuple(sorted(through)), tuple(sorted(opened)))


def _noted() -> dict[str, set[str]]:
    """The interfaces that portproxies have opened, by the names of their tables."""
    from portproxy import nftlink

    names = {name for _, name in nftlink.tables() if TABLE.fullmatch(name)}
    return {name: nftlink.opened(name) for name in names}


def _told(error: OSError) -> str:
    if error.errno in {errno.EPERM, errno.EACCES}:
        return "the kernel's forwarding needs CAP_NET_ADMIN"
    if error.errno in {errno.EPROTONOSUPPORT, errno.ENOENT, errno.EOPNOTSUPP}:
        return f"this kernel lacks a part of nftables' NAT ({error.strerror})"
    return f"the kernel refuses the nft table: {error.strerror}"


def _lives(table: str) -> bool:
    """Whether the portproxy whose table it is has not gone."""
    match = TABLE.fullmatch(table)
    with contextlib.suppress(OSError):
        return match is not None and (
            b"portproxy" in Path(f"/proc/{match.group(1)}/cmdline").read_bytes()
        )
    return False


def remove_stale() -> list[str]:
    """Removes the tables whose portproxy has gone, in one transaction; their names.

    What they had opened is closed first.  A table of our own pid is a predecessor's.
    """
    from portproxy import nftlink

    stale: dict[str, set[str]] = {}
    living: set[str] = set()
    with contextlib.suppress(OSError), localnet.alone():
        for name, some in _noted().items():
            if _lives(name) and name != f"portproxy_{os.getpid()}":
                living |= some
            else:
                stale[name] = some
        made = []
        for name, some in sorted(stale.items()):
            # What cannot be closed keeps its fence and its note.
            made += nftlink.replacement(name, [], _links((), localnet.close(some - living)))
        nftlink.carry_out(made)
    return sorted(stale)
