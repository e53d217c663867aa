"""The rules of a table as nftables' expressions, for ``portproxy.nftlink`` to send.

Pure.  Each function says in nft's language (nft(8)) what it is.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Any

from portproxy.localnet import LOOPBACK

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
# Where the destination address is in the header, and its size.
DESTINATION = {4: (16, 4), 6: (24, 16)}
SOURCE_IPV4, DESTINATION_IPV4 = 12, 16
NAME_SIZE = 16  # of an interface's, padded with zeros
# Registers of four bytes; a value takes as many as it needs.
FIRST = 8
RTN_LOCAL = 2
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
INPUT_NAME, OUTPUT_NAME, L4PROTO = 6, 7, 16  # NFT_META_…
EQUAL, NOT_EQUAL = 0, 1  # NFT_CMP_…
DROP, ACCEPT = 0, 1  # NF_…
FIB_ADDRESS_TYPE, FIB_OF_DESTINATION = 3, 2
Attributes = list[tuple[str, Any]]
Expression = dict[str, Attributes]


def name_of(interface: str) -> bytes:
    """An interface's name as a value."""
    return interface.encode().ljust(NAME_SIZE, b"\0")


def exact(version: int) -> list[Expression]:
    """``dnat to ip daddr . meta l4proto . th dport map @exact``."""
    at, size = DESTINATION[version]
    behind = FIRST + size // 4
    return [
        _payload(NETWORK_HEADER, at, size, FIRST),
        *_protocol_and_port(behind),
        *_mapped("exact", version),
    ]


def anywhere(version: int) -> list[Expression]:
    """``fib daddr type local dnat to meta l4proto . th dport map @any``."""
    look: Attributes = [
        ("NFTA_FIB_DREG", FIRST),
        ("NFTA_FIB_RESULT", FIB_ADDRESS_TYPE),
        ("NFTA_FIB_FLAGS", FIB_OF_DESTINATION),
    ]
    return [
        _expression("fib", look),
        _compare(struct.pack("=I", RTN_LOCAL)),
        *_protocol_and_port(FIRST),
        *_mapped("any", version),
    ]


def to_data_plane(version: int) -> list[Expression]:
    """``ip daddr 127.0.0.0/8 accept``: what leaves it cannot come back; it is the data plane's."""
    if version == 4:
        return [*_of_loopback(DESTINATION_IPV4), _verdict(ACCEPT)]
    at, size = DESTINATION[version]
    loopback = ipaddress.IPv6Address("::1").packed
    return [_payload(NETWORK_HEADER, at, size, FIRST), _compare(loopback), _verdict(ACCEPT)]


def from_loopback() -> list[Expression]:
    """``ip daddr 127.0.0.0/8 dnat to meta l4proto . th dport map @loopback``."""
    return [
        *_of_loopback(DESTINATION_IPV4),
        *_protocol_and_port(FIRST),
        *_mapped("loopback", 4),
    ]


def masquerade() -> list[Expression]:
    """``ip saddr 127.0.0.0/8 oifname @through masquerade``."""
    found: Attributes = [("NFTA_LOOKUP_SET", "through"), ("NFTA_LOOKUP_SREG", FIRST)]
    return [
        *_of_loopback(SOURCE_IPV4),
        _meta(OUTPUT_NAME, FIRST),
        _expression("lookup", found),
        _expression("masq", []),
    ]


def fence() -> list[list[Expression]]:
    """``iifname != "lo" ip daddr 127.0.0.0/8 drop``, and the same with ``saddr``."""
    outside = [_meta(INPUT_NAME, FIRST), _compare(name_of(LOOPBACK), NOT_EQUAL)]
    places = (DESTINATION_IPV4, SOURCE_IPV4)
    return [[*outside, *_of_loopback(at), _verdict(DROP)] for at in places]


def _of_loopback(at: int) -> list[Expression]:
    """``ip saddr 127.0.0.0/8`` or ``ip daddr …``: the first byte of what is ``at`` there."""
    return [_payload(NETWORK_HEADER, at, 1, FIRST), _compare(b"\x7f")]


def _verdict(code: int) -> Expression:
    verdict = {"attrs": [("NFTA_VERDICT_CODE", code)]}
    what: Attributes = [
        ("NFTA_IMMEDIATE_DREG", 0),
        ("NFTA_IMMEDIATE_DATA", {"attrs": [("NFTA_DATA_VERDICT", verdict)]}),
    ]
    return _expression("immediate", what)


def _protocol_and_port(register: int) -> list[Expression]:
    """``meta l4proto . th dport``."""
    return [_meta(L4PROTO, register), _payload(TRANSPORT_HEADER, 2, 2, register + 1)]


def _meta(key: int, register: int) -> Expression:
    return _expression("meta", [("NFTA_META_KEY", key), ("NFTA_META_DREG", register)])


def _mapped(map_name: str, version: int) -> list[Expression]:
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


def _payload(base: int, at: int, size: int, register: int) -> Expression:
    what: Attributes = [
        ("NFTA_PAYLOAD_DREG", register),
        ("NFTA_PAYLOAD_BASE", base),
        ("NFTA_PAYLOAD_OFFSET", at),
        ("NFTA_PAYLOAD_LEN", size),
    ]
    return _expression("payload", what)


def _compare(value: bytes, how: int = EQUAL) -> Expression:
    what: Attributes = [
        ("NFTA_CMP_SREG", FIRST),
        ("NFTA_CMP_OP", how),
        ("NFTA_CMP_DATA", {"attrs": [("NFTA_DATA_VALUE", value)]}),
    ]
    return _expression("cmp", what)


def _expression(name: str, attributes: Attributes) -> Expression:
    return {"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", {"attrs": attributes})]}
