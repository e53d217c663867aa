"""The words of the control channel to ``portproxy-relay`` (docs/portproxy-control.md), sans-IO.

A command is one datagram of text and is answered by one: ``ok NUMBER NUMBER`` or ``error PORT ERRNO
TEXT``, and lines of JSON behind an ``ok``.  A datagram that begins with ``{`` is an event, which
nobody asked for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

VERSION = 1
MOST_BYTES = 65535
MOST_FDS = 16
FOREVER_MS = -1


class ChannelError(ValueError):
    """A datagram is not what the protocol has."""


@dataclass(frozen=True)
class Done:
    """The command was carried out; ``lines`` are what came with it."""

    number: int
    other: int
    lines: tuple[str, ...] = ()

    def records(self) -> list[dict[str, Any]]:
        """The lines that are JSON objects.  Raises ChannelError."""
        return [_record(line) for line in self.lines if line.startswith("{")]

    def failed_ports(self) -> list[tuple[int, int]]:
        """(port, errno) of each port that was left out.  Raises ChannelError."""
        return [_numbers(line) for line in self.lines if line and not line.startswith("{")]


@dataclass(frozen=True)
class Refused:
    """It was not: ``port`` and ``number`` (errno) are 0 if they are not to blame."""

    port: int
    number: int
    text: str


@dataclass(frozen=True)
class Event:
    """Something has happened."""

    record: dict[str, Any] = field(default_factory=dict)


def add(line: str) -> bytes:
    """Opens the ports of a new mapping."""
    return _command("add", line)


def start(serial: int) -> bytes:
    """Lets clients in."""
    return _command("start", str(serial))


def update(serial: int, line: str) -> bytes:
    """Changes settings and targets, not the ports."""
    return _command("update", str(serial), line)


def remove(serial: int, ms: int) -> bytes:
    """Closes the ports; connections have ``ms`` milliseconds, or FOREVER_MS."""
    return _command("remove", str(serial), *([str(ms)] if ms >= 0 else []))


def mark(serial: int, index: int, up: bool) -> bytes:
    """Says whether a backend is up."""
    return _command("backend", str(serial), str(index), "up" if up else "down")


def drain(ms: int) -> bytes:
    """Closes all ports, and ends the relay when the connections have ended or ``ms`` later."""
    return _command("drain", *([str(ms)] if ms >= 0 else []))


def simple(word: str, number: int) -> bytes:
    """``hello``, ``list``, ``connections``, ``kill``, ``closes``: each has one number."""
    return _command(word, str(number))


def _command(*words: str) -> bytes:
    data = " ".join(words).encode("ascii")
    if len(data) >= MOST_BYTES or b"\0" in data:
        raise ChannelError("the command is too long or has a NUL")
    return data


def parse(data: bytes) -> Done | Refused | Event:
    """Reads one datagram.  Raises ChannelError."""
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise ChannelError("not ASCII") from None
    if text.startswith("{"):
        return Event(_record(text))
    lines = text.split("\n")
    # What could not be opened comes before the ``ok``, since it is found out first.
    at = next((i for i, line in enumerate(lines) if line.startswith(("ok ", "error "))), None)
    if at is None:
        raise ChannelError(f"neither ok nor error: {text[:80]!r}")
    words = lines[at].split(" ", 3)
    rest = (*lines[:at], *(line for line in lines[at + 1 :] if line))
    if words[0] == "ok":
        return Done(*_numbers(" ".join(words[1:3])), rest)
    if len(words) < 4:
        raise ChannelError(f"an error without its parts: {lines[at]!r}")
    return Refused(*_numbers(" ".join(words[1:3])), words[3])


def _numbers(text: str) -> tuple[int, int]:
    words = text.split()
    if len(words) != 2 or not all(word.isdecimal() for word in words):
        raise ChannelError(f"not two numbers: {text!r}")
    return int(words[0]), int(words[1])


def _record(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError:
        raise ChannelError(f"not JSON: {text[:80]!r}") from None
    if not isinstance(record, dict):
        raise ChannelError("not an object")
    return record
