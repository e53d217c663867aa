"""The Python end of the monitor's channel: messages to datagrams and back, without I/O.

The format is described in ``protocol.md``.  Nothing here touches a socket or a descriptor; a
descriptor is a number that belongs to a message.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum, IntFlag
from typing import NamedTuple

VERSION = 1
ZYGOTE_MAGIC = 0x5053595A
MAX_DATAGRAM_BYTES = 128 * 1024
MAX_DATAGRAM_FDS = 64
INLINE_SEND_BYTES = 16 * 1024

HEADER = struct.Struct("<IHHQ")


class Type(IntEnum):
    """Message types; those below 100 go to the monitor."""

    HELLO = 1
    STATE = 2
    SPAWN = 3
    TRACK = 4
    FORGET = 5
    KILL = 6
    HOLD = 7
    DROP = 8
    RELAY = 9
    RELAY_STOP = 10
    SEND = 11
    CONSUME = 12
    ALARM = 13
    PARK = 14
    QUIT = 15
    UPGRADE = 16
    CONFIRM = 17
    HOME = 18
    WELCOME = 101
    HELD = 102
    RECORD = 103
    RELAY_STATUS = 104
    READY = 105
    REPLY = 106
    RANG = 107


class WelcomeFlag(IntFlag):
    """What a WELCOME says of the monitor."""

    DIED = 1
    PROBATION = 2
    UPGRADES = 4
    EXECUTABLES = 8


class HoldFlag(IntFlag):
    """How the monitor treats a descriptor that it holds."""

    WATCH = 1
    ACCEPT = 2
    OPEN = 4


class RecordFlag(IntFlag):
    """What a RECORD says of a process."""

    EXITED = 1
    SPAWNED = 2
    TRACKED = 4


class StopMode(IntEnum):
    """How RELAY_STOP ends a relay."""

    NOW = 0
    DRAIN = 1
    FORGET = 2


class RelayFlag(IntFlag):
    """How the monitor treats a relay."""

    STDIN = 1
    OPEN_SOURCE = 2
    OPEN_DESTINATION = 4


SPAWN_DIE_WITH_MONITOR = 1
SPAWN_EXECUTABLE = 2
RELAY_ENDED = 1
RELAY_NOBODY_READS = 2

_BODIES: dict[Type, struct.Struct] = {
    Type.HELLO: struct.Struct("<Ii"),
    Type.STATE: struct.Struct("<"),
    Type.SPAWN: struct.Struct("<QII"),
    Type.TRACK: struct.Struct("<iI"),
    Type.FORGET: struct.Struct("<iI"),
    Type.KILL: struct.Struct("<ii"),
    Type.HOLD: struct.Struct("<II"),
    Type.DROP: struct.Struct("<II"),
    Type.RELAY: struct.Struct("<II"),
    Type.RELAY_STOP: struct.Struct("<II"),
    Type.SEND: struct.Struct("<II"),
    Type.CONSUME: struct.Struct("<II"),
    Type.ALARM: struct.Struct("<II"),
    Type.PARK: struct.Struct("<Q"),
    Type.QUIT: struct.Struct("<"),
    Type.UPGRADE: struct.Struct("<II"),
    Type.CONFIRM: struct.Struct("<iI"),
    Type.HOME: struct.Struct("<"),
    Type.WELCOME: struct.Struct("<IiII"),
    Type.HELD: struct.Struct("<IIII"),
    Type.RECORD: struct.Struct("<iIQiIqq"),
    Type.RELAY_STATUS: struct.Struct("<IIiIQ"),
    Type.READY: struct.Struct("<"),
    Type.REPLY: struct.Struct("<iIq"),
    Type.RANG: struct.Struct("<"),
}


_TYPES = {int(type_): type_ for type_ in Type}


class ChannelError(Exception):
    """A datagram that does not follow protocol.md."""


class ProgramError(ChannelError):
    """A program that cannot be described to the kernel."""


class Message(NamedTuple):
    """One message: its body's integers in the order of protocol.md, and what follows it.

    ``fields`` leaves out nothing, reserved integers included; ``fds`` are the descriptors that
    travel with it; ``tail`` is SEND's payload.
    """

    type: Type
    fields: tuple[int, ...] = ()
    fds: tuple[int, ...] = ()
    sequence: int = 0
    tail: bytes = b""


def encode(messages: Iterable[Message]) -> tuple[bytes, list[int]]:
    """One datagram of ``messages``, and the descriptors to send with it.

    Raises ChannelError when it would exceed the limits, or a field does not fit its width.
    """
    data = bytearray()
    fds: list[int] = []
    for message in messages:
        data += bytes(-len(data) % 8)
        try:
            body = _BODIES[message.type].pack(*message.fields)
            size = HEADER.size + len(body) + len(message.tail)
            data += HEADER.pack(size, message.type, len(message.fds), message.sequence)
        except struct.error as error:
            raise ChannelError(f"{message.type.name}{message.fields}: {error}") from error
        data += body
        data += message.tail
        fds += message.fds
    if len(data) > MAX_DATAGRAM_BYTES or len(fds) > MAX_DATAGRAM_FDS:
        raise ChannelError(f"datagram of {len(data)} bytes and {len(fds)} descriptors is too large")
    return bytes(data), fds


def decode(data: bytes, fds: Sequence[int]) -> list[Message]:
    """The messages of one datagram.

    Raises ChannelError at the first thing that protocol.md does not allow; the caller then owns
    all of ``fds``.
    """
    messages = []
    at = used = 0
    while at < len(data):
        if len(data) - at < HEADER.size:
            raise ChannelError(f"{len(data) - at} bytes at {at} are no header")
        size, kind, count, sequence = HEADER.unpack_from(data, at)
        type_ = _TYPES.get(kind)
        if type_ is None:
            raise ChannelError(f"unknown message type {kind}")
        body = _BODIES[type_]
        start = at + HEADER.size
        end = at + size
        tail = end - start - body.size
        if end > len(data) or tail < 0 or (tail and type_ is not Type.SEND):
            raise ChannelError(f"{type_.name} of {size} bytes at {at} of {len(data)}")
        if used + count > len(fds):
            raise ChannelError(f"{type_.name} wants {count} descriptors of {len(fds) - used}")
        fields = body.unpack_from(data, start)
        own = tuple(fds[used : used + count])
        messages.append(Message(type_, fields, own, sequence, data[start + body.size : end]))
        used += count
        at = end + -end % 8
    if used != len(fds):
        raise ChannelError(f"{len(fds) - used} descriptors belong to no message")
    return messages


def encode_program(cwd: str, argv: Sequence[str], env: dict[str, str]) -> bytes:
    """The content of the memfd that describes a program to SPAWN.

    Raises ProgramError for an embedded NUL, which tells of a variable no more than its name.
    """
    encoded = [os_encode(text, text) for text in (cwd, *argv)]
    encoded += [os_encode(f"{name}={value}", name) for name, value in env.items()]
    return struct.pack("<II", len(argv), len(env)) + b"".join(s + b"\0" for s in encoded)


def decode_program(data: bytes) -> tuple[str, list[str], dict[str, str]]:
    """The working directory, arguments and environment in ``data``; raises ChannelError."""
    if len(data) < 8:
        raise ChannelError("a program's description is at least 8 bytes")
    argc, envc = struct.unpack_from("<II", data)
    strings = [part.decode("utf-8", "surrogateescape") for part in data[8:].split(b"\0")]
    if len(strings) != argc + envc + 2 or strings[-1]:
        raise ChannelError(f"{argc} arguments and {envc} variables are not {len(strings)} strings")
    pairs = (text.partition("=") for text in strings[1 + argc : -1])
    return strings[0], strings[1 : 1 + argc], {name: value for name, _, value in pairs}


def encode_names(*names: str) -> bytes:
    """The content of the memfd of UPGRADE (socket, interpreter, program) or HOME (the first two).

    Raises ProgramError for a NUL, ChannelError for an empty name.
    """
    if not all(names):
        raise ChannelError(f"{names} has an empty name")
    return b"".join(os_encode(name, name) + b"\0" for name in names)


def os_encode(text: str, shown: str) -> bytes:
    """``text`` as the bytes that a system call takes.

    Raises ProgramError on an embedded NUL, with ``shown`` for what it is about.
    """
    encoded = text.encode("utf-8", "surrogateescape")
    if b"\0" in encoded:
        raise ProgramError(f"{shown[:80]!r} holds a NUL byte")
    return encoded
