"""Reads what ``portproxy -p`` is given: which port is forwarded to where.

Pure: nothing here opens a socket or looks up a name.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace

ANY_ADDRESS = "0.0.0.0"
FORM = "[BIND:]PORT[-PORT]:HOST:PORT[-PORT][/tcp|udp|sctp|both]"
LAST_PORT = 65535
LONGEST_UNIX_PATH = 106
PROTOCOLS = ("tcp", "udp", "sctp", "both")
HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")
FIELD = re.compile(r"\[([^\[\]]*)\]|([^:\[\]]*)")
NAMESPACE = re.compile(r"(netns|pid|container):([A-Za-z0-9_./-]+)!")
UNIX = re.compile(r"unix:([/@][!-9;-~]*)")
INHERITED = re.compile(r"fd:([A-Za-z0-9_.-]+)")
SPECIAL_TARGET = re.compile(r":(?=(?:unix|netns|pid|container):)")
SPECIAL = re.compile(r"(?:^|:)(?:unix|netns|pid|container):")


class MappingError(ValueError):
    """A text is not a mapping; the message is one line that says what is wrong with it."""


@dataclass(frozen=True)
class Mapping:
    """A forwarded port, or ``ports`` of them in a row.  ``port`` 0 lets the kernel choose.

    ``spread``: each port of the range has its own port behind it.  ``listen_unix`` and ``unix`` are
    paths (or ``@`` and an abstract name) in place of an address and a port; ``listen_fd`` is an
    inherited socket's number or name; ``listen_netns`` and ``netns`` name a network namespace
    (``netns:NAME``, ``netns:/PATH``, ``pid:N``, ``container:ID``).
    """

    bind: str
    port: int
    host: str
    host_port: int
    protocol: str = "tcp"
    ports: int = 1
    spread: bool = False
    listen_unix: str = ""
    listen_fd: str = ""
    listen_netns: str = ""
    unix: str = ""
    netns: str = ""

    def __str__(self) -> str:
        """The text that ``parse`` reads back to the same mapping."""
        return f"{self.listener}:{self.target}/{self.protocol}"

    @property
    def listener(self) -> str:
        """Where clients come to, as ``parse`` reads it."""
        if self.listen_unix:
            return f"unix:{self.listen_unix}"
        if self.listen_fd:
            return f"fd:{self.listen_fd}"
        where = _range(endpoint(self.bind, self.port), self.port, self.ports)
        return f"{self.listen_netns}!{where}" if self.listen_netns else where

    @property
    def target(self) -> str:
        """Where they are forwarded to, as ``parse`` reads it."""
        before = f"{self.netns}!" if self.netns else ""
        if self.unix:
            return f"{before}unix:{self.unix}"
        where = endpoint(self.host, self.host_port)
        return before + (_range(where, self.host_port, self.ports) if self.spread else where)


def _range(text: str, first: int, ports: int) -> str:
    return f"{text}-{first + ports - 1}" if ports > 1 else text


def endpoint(address: str, port: int) -> str:
    """``address:port``, with brackets around an IPv6 address."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def parse_all(text: str) -> list[Mapping]:
    """Reads one text; ``/both`` makes a TCP and a UDP mapping of it.  Raises MappingError."""
    mapping = parse(text)
    if mapping.protocol != "both":
        return [mapping]
    return [replace(mapping, protocol="tcp"), replace(mapping, protocol="udp")]


def parse(text: str) -> Mapping:
    """Reads ``LISTENER:TARGET[/PROTOCOL]``; IPv6 addresses are in brackets.

    LISTENER is ``[NAMESPACE!][BIND:]PORT[-PORT]``, ``unix:PATH`` or ``fd:NUMBER-OR-NAME``; TARGET
    is ``[NAMESPACE!]HOST:PORT[-PORT]`` or ``unix:PATH``.  Without BIND it is every IPv4 address of
    this machine.  Raises MappingError.
    """
    body, protocol = _protocol(text)
    listener, target = _halves(text, body)
    made = _target(text, target, _listener(text, listener))
    made = replace(made, protocol=protocol)
    if protocol != "tcp" and (made.unix or made.listen_unix):
        raise MappingError(f"{text!r}: only tcp goes through a Unix socket, not {protocol}")
    return made


def _protocol(text: str) -> tuple[str, str]:
    """The text without its protocol, and the protocol."""
    body, slash, protocol = text.rpartition("/")
    if slash and protocol in PROTOCOLS:
        return body, protocol
    if not slash or SPECIAL.search(text):
        return text, "tcp"
    raise MappingError(
        f"{text!r}: {protocol!r} is no protocol; there are tcp, udp, sctp and both (tcp and udp)"
    )


def _halves(text: str, body: str) -> tuple[str, str]:
    """The listener and the target, as texts."""
    start = NAMESPACE.match(body)
    at = start.end() if start else 0
    special = UNIX.match(body, at) or INHERITED.match(body, at)
    if special is not None:
        if special.end() < len(body) and body[special.end()] == ":":
            return body[: special.end()], body[special.end() + 1 :]
        raise MappingError(f"{text!r}: behind {special.group()!r} comes : and where to forward to")
    found = SPECIAL_TARGET.search(body, at)
    if found is not None:
        return body[: found.start()], body[found.end() :]
    fields = _fields(text, body[at:])
    if len(fields) not in {3, 4}:
        raise MappingError(
            f"{text!r} has {len(fields)} parts, not the 3 or 4 of {FORM}{_hint(body)}"
        )
    return body[:at] + ":".join(fields[:-2]), ":".join(fields[-2:])


def _listener(text: str, listener: str) -> Mapping:
    """A mapping of which only the listener is known."""
    made = Mapping(ANY_ADDRESS, 0, "", 0)
    match = NAMESPACE.match(listener)
    if match is not None:
        made = replace(made, listen_netns=match.group()[:-1])
        listener = listener[match.end() :]
    special = UNIX.fullmatch(listener)
    inherited = INHERITED.fullmatch(listener)
    if special is not None or inherited is not None:
        if made.listen_netns:
            raise MappingError(f"{text!r}: only an address and a port are in a namespace")
        if special is not None:
            return replace(made, listen_unix=_path(text, special.group(1)))
        return replace(made, listen_fd=listener[3:])
    fields = _fields(text, listener)
    if len(fields) not in {1, 2}:
        raise MappingError(f"{text!r}: {listener!r} is not [BIND:]PORT[-PORT]{_hint(listener)}")
    if len(fields) == 2:
        made = replace(made, bind=_bind(text, fields[0]))
    first, last = _ports(text, fields[-1], 0, "to listen on")
    return replace(made, port=first, ports=last - first + 1)


def _target(text: str, target: str, made: Mapping) -> Mapping:
    """The mapping with its target."""
    match = NAMESPACE.match(target)
    if match is not None:
        made = replace(made, netns=match.group()[:-1])
        target = target[match.end() :]
    special = UNIX.fullmatch(target)
    if special is not None:
        if made.netns:
            raise MappingError(f"{text!r}: a Unix socket is found by its path, not in a namespace")
        return replace(made, unix=_path(text, special.group(1)))
    fields = _fields(text, target)
    if len(fields) != 2:
        raise MappingError(f"{text!r}: {target!r} is not HOST:PORT[-PORT]{_hint(target)}")
    first, last = _ports(text, fields[1], 1, "to forward to")
    if last != first and last - first + 1 != made.ports:
        raise MappingError(
            f"{text!r}: {made.ports} ports cannot lead to {last - first + 1}; "
            "give as many, or one that all lead to"
        )
    made = replace(made, host=_host(text, fields[0]), host_port=first, spread=last != first)
    if made.netns and HOST_NAME.fullmatch(made.host) and not re.fullmatch(r"[0-9.]+", made.host):
        raise MappingError(f"{text!r}: in a namespace the host must be an address")
    return made


def _path(text: str, path: str) -> str:
    """The path of a Unix socket."""
    if len(path) > LONGEST_UNIX_PATH or len(path) < 2:
        raise MappingError(f"{text!r}: {path!r} has no length that a Unix socket's path can have")
    if '"' in path or "\\" in path:
        raise MappingError(f'{text!r}: a path with " or \\ is not supported')
    return path


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


def _ports(text: str, field: str, least: int, what: str) -> tuple[int, int]:
    """The first and the last port of ``PORT`` or ``PORT-PORT``."""
    low, dash, high = field.partition("-")
    if not dash or not low:
        port = _port(text, field, least, what)
        return port, port
    first, last = _port(text, low, 1, what), _port(text, high, 1, what)
    if last < first:
        raise MappingError(f"{text!r}: {field!r} ends before it begins")
    return first, last


def _port(text: str, field: str, least: int, what: str) -> int:
    """The port number in ``field``."""
    known = field.isascii() and field.isdecimal() and len(field) <= 5
    if not known or not least <= int(field) <= LAST_PORT:
        raise MappingError(
            f"{text!r}: {field!r} is not a port {what}; give a number from {least} to {LAST_PORT}"
        )
    return int(field)
