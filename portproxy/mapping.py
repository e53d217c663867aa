"""Reads what ``portproxy -p`` is given: which port is forwarded to where.

Pure: nothing here opens a socket or looks up a name.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

ANY_ADDRESS = "0.0.0.0"
FORM = "[BIND:]PORT:HOST:PORT[/tcp]"
LAST_PORT = 65535
HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")
FIELD = re.compile(r"\[([^\[\]]*)\]|([^:\[\]]*)")


class MappingError(ValueError):
    """A text is not a mapping; the message is one line that says what is wrong with it."""


@dataclass(frozen=True)
class Mapping:
    """One forwarded TCP port.  ``port`` 0 lets the kernel choose."""

    bind: str
    port: int
    host: str
    host_port: int

    def __str__(self) -> str:
        """The text that ``parse`` reads back to the same mapping."""
        return f"{endpoint(self.bind, self.port)}:{endpoint(self.host, self.host_port)}"


def endpoint(address: str, port: int) -> str:
    """``address:port``, with brackets around an IPv6 address."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def parse(text: str) -> Mapping:
    """Reads ``[BIND:]PORT:HOST:PORT[/tcp]``; IPv6 addresses are in brackets.

    Without BIND it is every IPv4 address of this machine.  Raises MappingError.
    """
    body, slash, protocol = text.rpartition("/")
    if not slash:
        body, protocol = text, "tcp"
    if protocol in {"udp", "sctp"}:
        raise MappingError(f"{text!r}: {protocol} is not supported yet, only tcp is")
    if protocol != "tcp":
        raise MappingError(f"{text!r}: {protocol!r} is no protocol; it can only be tcp")
    fields = _fields(text, body)
    if len(fields) not in {3, 4}:
        raise MappingError(
            f"{text!r} has {len(fields)} parts, not the 3 or 4 of {FORM}{_hint(body)}"
        )
    bind = _bind(text, fields[0]) if len(fields) == 4 else ANY_ADDRESS
    port, host, host_port = fields[-3:]
    return Mapping(
        bind,
        _port(text, port, 0, "to listen on"),
        _host(text, host),
        _port(text, host_port, 1, "to forward to"),
    )


def _fields(text: str, body: str) -> list[str]:
    """The parts between colons; those in brackets keep their colons and brackets."""
    fields = []
    at = 0
    while True:
        match = FIELD.match(body, at)
        if match is None or (match.end() < len(body) and body[match.end()] != ":"):
            raise MappingError(f"{text!r}: brackets go around an IPv6 address, as in [::1]")
        fields.append(match.group())
        if match.end() == len(body):
            return fields
        at = match.end() + 1


def _hint(body: str) -> str:
    return "; write IPv6 addresses in brackets" if body.count(":") > 3 else ""


def _six(text: str, field: str) -> str:
    """The IPv6 address in a bracketed field."""
    inner = field[1:-1]
    try:
        address = ipaddress.IPv6Address(inner)
    except ValueError:
        raise MappingError(f"{text!r}: {inner!r} is not an IPv6 address") from None
    if "%" in inner:
        raise MappingError(f"{text!r}: addresses with a zone (%) are not supported")
    return str(address)


def _bind(text: str, field: str) -> str:
    """The address to listen on."""
    if field.startswith("["):
        return _six(text, field)
    try:
        return str(ipaddress.IPv4Address(field))
    except ValueError:
        raise MappingError(
            f"{text!r}: {field!r} is not an address to listen on; "
            "give an IPv4 address or an IPv6 address in brackets"
        ) from None


def _host(text: str, field: str) -> str:
    """The address or name to forward to."""
    if field.startswith("["):
        return _six(text, field)
    if re.fullmatch(r"[0-9.]+", field):
        try:
            return str(ipaddress.IPv4Address(field))
        except ValueError:
            raise MappingError(f"{text!r}: {field!r} is not an IPv4 address") from None
    if len(field) > 253 or not HOST_NAME.fullmatch(field):
        raise MappingError(f"{text!r}: {field!r} is not a host to forward to")
    return field


def _port(text: str, field: str, least: int, what: str) -> int:
    """The port number in ``field``."""
    known = field.isascii() and field.isdigit() and len(field) <= 5
    if not known or not least <= int(field) <= LAST_PORT:
        raise MappingError(
            f"{text!r}: {field!r} is not a port {what}; give a number from {least} to {LAST_PORT}"
        )
    return int(field)
