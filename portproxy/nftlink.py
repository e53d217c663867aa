"""Speaks nftables' netlink protocol through pyroute2: a table with everything in one transaction.

pyroute2's own commands are a transaction each, and it cannot encode ``fib``; its messages and its
batch can do what is needed (see nft(8) for what the expressions mean, which ``portproxy.nft`` has
as text).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from pyroute2.netlink import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_REQUEST,
    nlmsg_atoms,
)
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg
from pyroute2.netlink.nfnetlink import nftsocket as nfts
from pyroute2.nftables.main import NFTables

from portproxy import nftrules
from portproxy.localnet import Links
from portproxy.nft import NO_LINKS, Forward, with_loopback
from portproxy.nftrules import DESTINATION, FAMILIES, NAME_SIZE, Attributes, Expression, name_of

BATCH_BEGIN, BATCH_END = 0x10, 0x11
# Hooks of nf_inet_hooks, and nft's priorities ``dstnat``, ``srcnat`` and ``raw``.
PREROUTING, OUTPUT, POSTROUTING = 0, 3, 4
DSTNAT, SRCNAT, RAW = -100, 100, -300
# nft(8)'s data types; one behind another is six bits further.
IPV4_ADDR, IPV6_ADDR, INET_PROTO, INET_SERVICE, IFACE_INDEX, IFNAME = 7, 8, 12, 13, 20, 41
# Attributes of a list of elements (linux/netfilter/nf_tables.h).
LIST_ELEMENT, ELEMENT_KEY, ELEMENT_DATA, VALUE, NESTED = 1, 1, 2, 1, 0x8000
MOST_ELEMENTS = 500  # in one message, whose attributes have at most 64 KiB
SEND_BYTES = 64 << 20
PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
Message = Any


class RuleMessage(nfts.nft_rule_msg):  # type: ignore[misc]
    """A rule, with a ``fib`` that is encoded as the kernel has it: two plain numbers."""

    class nft_expr(nfts.nft_rule_msg.nft_expr):  # type: ignore[misc]
        class nft_fib(nfts.nft_rule_msg.nft_expr.nft_fib):  # type: ignore[misc]
            class fib_result(nlmsg_atoms.be32):  # type: ignore[misc]
                pass

            class fib_flags(nlmsg_atoms.be32):  # type: ignore[misc]
                pass


class ElementsMessage(nfgen_msg):  # type: ignore[misc]
    """Elements of a map, encoded by us: pyroute2 takes half a millisecond over each.

    Not a subclass of pyroute2's message, whose ``nla_map`` would count here, too, once one of
    them has been read.
    """

    nla_map = tuple(
        (name, "cdata" if name == "NFTA_SET_ELEM_LIST_ELEMENTS" else kind)
        for name, kind in nfts.nft_set_elem_list_msg.nla_map
    )


def carry_out(messages: Sequence[Message]) -> None:
    """Has the kernel do all of it or nothing.  Raises OSError, with the first reason."""
    with nfts.NFTSocket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        try:
            link.nlm_request_batch([_border(BATCH_BEGIN), *messages, _border(BATCH_END)])
        except NetlinkError as error:
            raise OSError(error.code, os.strerror(error.code)) from error


def tables() -> list[tuple[int, str]]:
    """(family, name) of each table of IPv4 and IPv6.  Raises OSError."""
    found = []
    for family in FAMILIES.values():
        with NFTables(nfgen_family=family) as link:
            for each in link.get_tables():
                found.append((int(family), str(each.get_attr("NFTA_TABLE_NAME"))))
    return found


def opened(name: str) -> set[str]:
    """The interfaces that a table notes as opened for loopback connections.  Raises OSError."""
    asked = nfts.nft_set_elem_list_msg()
    asked["attrs"] = [("NFTA_SET_ELEM_LIST_TABLE", name), ("NFTA_SET_ELEM_LIST_SET", "opened")]
    found: set[str] = set()
    try:
        with NFTables(nfgen_family=socket.AF_INET) as link:
            for part in link.request_get(asked, nfts.NFT_MSG_GETSETELEM):
                for each in part.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS") or ():
                    key = each.get_attr("NFTA_SET_ELEM_KEY").get_attr("NFTA_DATA_VALUE")
                    with contextlib.suppress(OSError):  # it may have gone
                        found.add(socket.if_indextoname(*struct.unpack("=I", key)))
    except NetlinkError as error:
        if error.code != errno.ENOENT:  # as without loopback connections
            raise OSError(error.code, os.strerror(error.code)) from error
    return found


def replacement(name: str, wanted: Sequence[Forward], links: Links = NO_LINKS) -> list[Message]:
    """Puts tables for ``wanted`` in the place of those that are there, or none."""
    made = []
    for version, family in FAMILIES.items():
        made += removal(family, name)
        some = [each for each in wanted if each.version == version]
        if some or (links and version == 4):
            made += table(version, name, some, links)
    return made


def removal(family: int, name: str) -> list[Message]:
    """Removes a table, whether it is there or not: that is why it is added first."""
    named: Attributes = [("NFTA_TABLE_NAME", name)]
    return [
        _message(nfts.nft_table_msg, nfts.NFT_MSG_NEWTABLE, family, named),
        _message(nfts.nft_table_msg, nfts.NFT_MSG_DELTABLE, family, named),
    ]


def table(
    version: int, name: str, wanted: Sequence[Forward], links: Links = NO_LINKS
) -> Iterator[Message]:
    """One family's table with its maps, chains and rules."""
    family = FAMILIES[version]
    of_table: Attributes = [("NFTA_TABLE_NAME", name)]
    yield _message(nfts.nft_table_msg, nfts.NFT_MSG_NEWTABLE, family, of_table)
    exact = [_element(each) for each in wanted if each.bind]
    anywhere = [_element(each) for each in wanted if not each.bind]
    yield from _map(version, name, "exact", exact)
    yield from _map(version, name, "any", anywhere)
    to_exact, to_any = nftrules.exact(version), nftrules.anywhere(version)
    to_data_plane = nftrules.to_data_plane(version)
    outgoing = [to_data_plane, to_exact, to_any]
    if with_loopback("ip" if version == 4 else "ip6", wanted, links):
        yield from _loopback(name, wanted, links)
        outgoing = [to_exact, nftrules.from_loopback(), to_data_plane, to_any]
    incoming = [to_exact, to_any]
    yield from _chain(version, name, "prerouting", (PREROUTING, DSTNAT), incoming)
    yield from _chain(version, name, "output", (OUTPUT, DSTNAT), outgoing)


def _loopback(name: str, wanted: Sequence[Forward], links: Links) -> Iterator[Message]:
    """What is only there for loopback connections."""
    places = [_element(each) for each in wanted if each.loopback and not each.bind]
    yield from _map(4, name, "loopback", places)
    names = [_value(name_of(each)) for each in links.through]
    yield from _set(4, name, ("through", 4), _interfaces(IFNAME, NAME_SIZE), _keys(names))
    # An interface that gets another name keeps its sysctl, and is still to be found.
    indexes = [_value(struct.pack("=I", _index(each))) for each in links.opened]
    yield from _set(4, name, ("opened", 5), _interfaces(IFACE_INDEX, 4), _keys(indexes))
    yield from _chain(4, name, "postrouting", (POSTROUTING, SRCNAT), [nftrules.masquerade()])
    yield from _chain(4, name, "fence", (PREROUTING, RAW), nftrules.fence(), "filter")


def _interfaces(kind: int, size: int) -> Attributes:
    """What kind of set it is.  Without the byte order nft shows no names."""
    order = [("NFTNL_UDATA_SET_KEYBYTEORDER", struct.pack("=I", 1))]  # the host's
    return [
        ("NFTA_SET_KEY_TYPE", kind),
        ("NFTA_SET_KEY_LEN", size),
        ("NFTA_SET_USERDATA", order),
    ]


def _keys(values: list[bytes]) -> list[bytes]:
    return [_nested(LIST_ELEMENT, _nested(ELEMENT_KEY, value)) for value in values]


def _index(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        raise OSError(errno.ENODEV, f"there is no interface {interface}") from None


def _map(version: int, name: str, map_name: str, elements: list[bytes]) -> Iterator[Message]:
    """A map to an address and a port; its key is a protocol and a port, or an address before."""
    address = IPV4_ADDR if version == 4 else IPV6_ADDR
    _, size = DESTINATION[version]
    key, key_size = INET_PROTO << 6 | INET_SERVICE, 8
    if map_name == "exact":
        key, key_size = address << 12 | key, size + 8
    kind: Attributes = [
        ("NFTA_SET_FLAGS", {"NFT_SET_MAP"}),
        ("NFTA_SET_KEY_TYPE", key),
        ("NFTA_SET_KEY_LEN", key_size),
        ("NFTA_SET_DATA_TYPE", address << 6 | INET_SERVICE),
        ("NFTA_SET_DATA_LEN", size + 4),
    ]
    number = ("exact", "any", "loopback").index(map_name) + 1
    yield from _set(version, name, (map_name, number), kind, elements)


def _set(
    version: int, name: str, named: tuple[str, int], kind: Attributes, elements: list[bytes]
) -> Iterator[Message]:
    """A set or map with its elements; ``named``: as what, and its number in the transaction."""
    set_name, number = named
    of_set: Attributes = [("NFTA_SET_TABLE", name), ("NFTA_SET_NAME", set_name)]
    of_set += [*kind, ("NFTA_SET_ID", number)]
    yield _message(nfts.nft_set_msg, nfts.NFT_MSG_NEWSET, FAMILIES[version], of_set)
    for at in range(0, len(elements), MOST_ELEMENTS):
        yield _message(
            ElementsMessage,
            nfts.NFT_MSG_NEWSETELEM,
            FAMILIES[version],
            [
                ("NFTA_SET_ELEM_LIST_TABLE", name),
                ("NFTA_SET_ELEM_LIST_SET", set_name),
                ("NFTA_SET_ELEM_LIST_SET_ID", number),
                ("NFTA_SET_ELEM_LIST_ELEMENTS", b"".join(elements[at : at + MOST_ELEMENTS])),
            ],
        )


def _chain(
    version: int,
    name: str,
    chain: str,
    at: tuple[int, int],
    rules: list[list[Expression]],
    kind: str = "nat",
) -> Iterator[Message]:
    """A chain ``at`` a hook with a priority, and its rules."""
    place = [("NFTA_HOOK_HOOKNUM", at[0]), ("NFTA_HOOK_PRIORITY", at[1])]
    yield _message(
        nfts.nft_chain_msg,
        nfts.NFT_MSG_NEWCHAIN,
        FAMILIES[version],
        [
            ("NFTA_CHAIN_TABLE", name),
            ("NFTA_CHAIN_NAME", chain),
            ("NFTA_CHAIN_HOOK", {"attrs": place}),
            ("NFTA_CHAIN_TYPE", kind),
        ],
    )
    for rule in rules:
        yield _message(
            RuleMessage,
            nfts.NFT_MSG_NEWRULE,
            FAMILIES[version],
            [
                ("NFTA_RULE_TABLE", name),
                ("NFTA_RULE_CHAIN", chain),
                ("NFTA_RULE_EXPRESSIONS", rule),
            ],
        )


# --- Elements and messages ----------------------------------------------------------------------


def _element(each: Forward) -> bytes:
    """A map's element: where clients come to, and where that leads.  Fields are padded to four."""
    key = ipaddress.ip_address(each.bind).packed if each.bind else b""
    key += struct.pack(">B3xH2x", PROTOCOLS[each.protocol], each.port)
    data = ipaddress.ip_address(each.address).packed + struct.pack(">H2x", each.host_port)
    inside = _nested(ELEMENT_KEY, _value(key)) + _nested(ELEMENT_DATA, _value(data))
    return _nested(LIST_ELEMENT, inside)


def _value(data: bytes) -> bytes:
    return _attribute(VALUE, data)


def _nested(kind: int, data: bytes) -> bytes:
    return _attribute(NESTED | kind, data)


def _attribute(kind: int, data: bytes) -> bytes:
    """A netlink attribute, whose size is a multiple of four like all that is put into one here."""
    return struct.pack("=HH", len(data) + 4, kind) + data


def _message(kind: type[Message], command: int, family: int, attributes: Attributes) -> Message:
    made = kind()
    made["nfgen_family"] = family
    made["attrs"] = attributes
    made["header"]["type"] = NFNL_SUBSYS_NFTABLES << 8 | command
    made["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND
    return made


def _border(kind: int) -> Message:
    made = nfgen_msg()
    made["res_id"] = NFNL_SUBSYS_NFTABLES
    made["header"]["type"] = kind
    made["header"]["flags"] = NLM_F_REQUEST
    return made
