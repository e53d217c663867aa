"""Speaks nftables' netlink protocol through pyroute2: a table with everything in one transaction.

pyroute2's own commands are a transaction each, and it cannot encode ``fib``; its messages and its
batch can do what is needed (see nft(8) for what the expressions mean, which ``portproxy.nft`` has
as text).
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, nlmsg_atoms
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg
from pyroute2.netlink.nfnetlink import nftsocket as nfts
from pyroute2.nftables.main import NFTables

from portproxy.nft import Forward

BATCH_BEGIN, BATCH_END = 0x10, 0x11
# Hooks of nf_inet_hooks, and nft's priority ``dstnat``.
PREROUTING, OUTPUT, DSTNAT = 0, 3, -100
# nft(8)'s data types; one behind another is six bits further.
IPV4_ADDR, IPV6_ADDR, INET_PROTO, INET_SERVICE = 7, 8, 12, 13
# Registers of four bytes; a value takes as many as it needs.
FIRST = 8
RTN_LOCAL = 2
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
L4PROTO = 16  # NFT_META_L4PROTO
FIB_ADDRESS_TYPE, FIB_OF_DESTINATION = 3, 2
# Attributes of a list of elements (linux/netfilter/nf_tables.h).
LIST_ELEMENT, ELEMENT_KEY, ELEMENT_DATA, VALUE, NESTED = 1, 1, 2, 1, 0x8000
MOST_ELEMENTS = 500  # in one message, whose attributes have at most 64 KiB
SEND_BYTES = 64 << 20
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
# Where the destination address is in the header, and its size.
DESTINATION = {4: (16, 4), 6: (24, 16)}
Message = Any
Attributes = list[tuple[str, Any]]


class RuleMessage(nfts.nft_rule_msg):  # type: ignore[misc]
    """A rule, with a ``fib`` that is encoded as the kernel has it: two plain numbers."""

    class nft_expr(nfts.nft_rule_msg.nft_expr):  # type: ignore[misc]
        class nft_fib(nfts.nft_rule_msg.nft_expr.nft_fib):  # type: ignore[misc]
            class fib_result(nlmsg_atoms.be32):  # type: ignore[misc]
                pass

            class fib_flags(nlmsg_atoms.be32):  # type: ignore[misc]
                pass


class ElementsMessage(nfts.nft_set_elem_list_msg):  # type: ignore[misc]
    """Elements of a map, encoded by us: pyroute2 takes half a millisecond over each."""

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


def replacement(name: str, wanted: Sequence[Forward]) -> list[Message]:
    """Puts tables for ``wanted`` in the place of those that are there, or none."""
    made = []
    for version, family in FAMILIES.items():
        made += removal(family, name)
        some = [each for each in wanted if each.version == version]
        if some:
            made += table(version, name, some)
    return made


def removal(family: int, name: str) -> list[Message]:
    """Removes a table, whether it is there or not: that is why it is added first."""
    named: Attributes = [("NFTA_TABLE_NAME", name)]
    return [
        _message(nfts.nft_table_msg, nfts.NFT_MSG_NEWTABLE, family, named),
        _message(nfts.nft_table_msg, nfts.NFT_MSG_DELTABLE, family, named),
    ]


def table(version: int, name: str, wanted: Sequence[Forward]) -> Iterator[Message]:
    """One family's table with its maps, chains and rules."""
    family = FAMILIES[version]
    of_table: Attributes = [("NFTA_TABLE_NAME", name)]
    yield _message(nfts.nft_table_msg, nfts.NFT_MSG_NEWTABLE, family, of_table)
    address = IPV4_ADDR if version == 4 else IPV6_ADDR
    _, size = DESTINATION[version]
    port = INET_PROTO << 6 | INET_SERVICE
    for number, (map_name, key_type, key_size) in enumerate(
        (("exact", address << 12 | port, size + 8), ("any", port, 8)), 1
    ):
        yield _message(
            nfts.nft_set_msg,
            nfts.NFT_MSG_NEWSET,
            family,
            [
                ("NFTA_SET_TABLE", name),
                ("NFTA_SET_NAME", map_name),
                ("NFTA_SET_FLAGS", {"NFT_SET_MAP"}),
                ("NFTA_SET_KEY_TYPE", key_type),
                ("NFTA_SET_KEY_LEN", key_size),
                ("NFTA_SET_DATA_TYPE", address << 6 | INET_SERVICE),
                ("NFTA_SET_DATA_LEN", size + 4),
                ("NFTA_SET_ID", number),
            ],
        )
        some = [_element(each) for each in wanted if (each.bind != "") == (map_name == "exact")]
        for at in range(0, len(some), MOST_ELEMENTS):
            yield _message(
                ElementsMessage,
                nfts.NFT_MSG_NEWSETELEM,
                family,
                [
                    ("NFTA_SET_ELEM_LIST_TABLE", name),
                    ("NFTA_SET_ELEM_LIST_SET", map_name),
                    ("NFTA_SET_ELEM_LIST_SET_ID", number),
                    ("NFTA_SET_ELEM_LIST_ELEMENTS", b"".join(some[at : at + MOST_ELEMENTS])),
                ],
            )
    for chain, hook in (("prerouting", PREROUTING), ("output", OUTPUT)):
        place = [("NFTA_HOOK_HOOKNUM", hook), ("NFTA_HOOK_PRIORITY", DSTNAT)]
        yield _message(
            nfts.nft_chain_msg,
            nfts.NFT_MSG_NEWCHAIN,
            family,
            [
                ("NFTA_CHAIN_TABLE", name),
                ("NFTA_CHAIN_NAME", chain),
                ("NFTA_CHAIN_HOOK", {"attrs": place}),
                ("NFTA_CHAIN_TYPE", "nat"),
            ],
        )
        rules = [_exact(version), _any(version)]
        if hook == OUTPUT:
            rules.insert(0, _loopback(version))
        for rule in rules:
            yield _message(
                RuleMessage,
                nfts.NFT_MSG_NEWRULE,
                family,
                [
                    ("NFTA_RULE_TABLE", name),
                    ("NFTA_RULE_CHAIN", chain),
                    ("NFTA_RULE_EXPRESSIONS", rule),
                ],
            )


# --- Elements and rules -------------------------------------------------------------------------


def _element(each: Forward) -> bytes:
    """A map's element: where clients come to, and where that leads.  Fields are padded to four."""
    key = ipaddress.ip_address(each.bind).packed if each.bind else b""
    key += struct.pack(">B3xH2x", PROTOCOLS[each.protocol], each.port)
    data = ipaddress.ip_address(each.address).packed + struct.pack(">H2x", each.host_port)
    inside = _nested(ELEMENT_KEY, _attribute(VALUE, key))
    inside += _nested(ELEMENT_DATA, _attribute(VALUE, data))
    return _nested(LIST_ELEMENT, inside)


def _nested(kind: int, data: bytes) -> bytes:
    return _attribute(NESTED | kind, data)


def _attribute(kind: int, data: bytes) -> bytes:
    """A netlink attribute, whose size is a multiple of four like all that is put into one here."""
    return struct.pack("=HH", len(data) + 4, kind) + data


def _exact(version: int) -> list[dict[str, Attributes]]:
    """``dnat to ip daddr . meta l4proto . th dport map @exact``."""
    at, size = DESTINATION[version]
    behind = FIRST + size // 4
    return [
        _payload(NETWORK_HEADER, at, size, FIRST),
        *_protocol_and_port(behind),
        *_translate(version, "exact"),
    ]


def _any(version: int) -> list[dict[str, Attributes]]:
    """``fib daddr type local dnat to meta l4proto . th dport map @any``."""
    look: Attributes = [
        ("NFTA_FIB_DREG", FIRST),
        ("NFTA_FIB_RESULT", FIB_ADDRESS_TYPE),
        ("NFTA_FIB_FLAGS", FIB_OF_DESTINATION),
    ]
    return [
        _expression("fib", look),
        _equals(struct.pack("=I", RTN_LOCAL)),
        *_protocol_and_port(FIRST),
        *_translate(version, "any"),
    ]


def _loopback(version: int) -> list[dict[str, Attributes]]:
    """``ip daddr 127.0.0.0/8 accept``: what leaves it cannot come back; it is the data plane's."""
    at, size = DESTINATION[version]
    wanted = b"\x7f" if version == 4 else ipaddress.IPv6Address("::1").packed
    verdict = {"attrs": [("NFTA_VERDICT_CODE", 1)]}  # NF_ACCEPT
    accept: Attributes = [
        ("NFTA_IMMEDIATE_DREG", 0),
        ("NFTA_IMMEDIATE_DATA", {"attrs": [("NFTA_DATA_VERDICT", verdict)]}),
    ]
    size = len(wanted) if version == 4 else size
    return [
        _payload(NETWORK_HEADER, at, size, FIRST),
        _equals(wanted),
        _expression("immediate", accept),
    ]


def _protocol_and_port(register: int) -> list[dict[str, Attributes]]:
    """``meta l4proto . th dport``."""
    protocol: Attributes = [("NFTA_META_KEY", L4PROTO), ("NFTA_META_DREG", register)]
    return [
        _expression("meta", protocol),
        _payload(TRANSPORT_HEADER, 2, 2, register + 1),
    ]


def _translate(version: int, map_name: str) -> list[dict[str, Attributes]]:
    """Looks the key up that begins in the first register, and translates to what is found."""
    _, size = DESTINATION[version]
    found: Attributes = [
        ("NFTA_LOOKUP_SET", map_name),
        ("NFTA_LOOKUP_SREG", FIRST),
        ("NFTA_LOOKUP_DREG", FIRST),
    ]
    nat: Attributes = [
        ("NFTA_NAT_TYPE", 1),  # NFT_NAT_DNAT
        ("NFTA_NAT_FAMILY", int(FAMILIES[version])),
        ("NFTA_NAT_REG_ADDR_MIN", FIRST),
        ("NFTA_NAT_REG_PROTO_MIN", FIRST + size // 4),
    ]
    return [_expression("lookup", found), _expression("nat", nat)]


def _payload(base: int, at: int, size: int, register: int) -> dict[str, Attributes]:
    what: Attributes = [
        ("NFTA_PAYLOAD_DREG", register),
        ("NFTA_PAYLOAD_BASE", base),
        ("NFTA_PAYLOAD_OFFSET", at),
        ("NFTA_PAYLOAD_LEN", size),
    ]
    return _expression("payload", what)


def _equals(value: bytes) -> dict[str, Attributes]:
    what: Attributes = [
        ("NFTA_CMP_SREG", FIRST),
        ("NFTA_CMP_OP", 0),  # NFT_CMP_EQ
        ("NFTA_CMP_DATA", {"attrs": [("NFTA_DATA_VALUE", value)]}),
    ]
    return _expression("cmp", what)


def _expression(name: str, attributes: Attributes) -> dict[str, Attributes]:
    return {"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", {"attrs": attributes})]}


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
