"""ttrpc frames: bytes in, frames out.  No I/O.

A frame is a header of ten bytes in network order (u32 length, u32 stream, u8 type, u8 flags)
and its payload, of at most 4 MiB (ttrpc PROTOCOL).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

HEADER = struct.Struct(">IIBB")
MAX_BYTES = 4 << 20
REQUEST, RESPONSE, DATA = 1, 2, 3


class FrameTooLarge(Exception):
    """A payload over MAX_BYTES."""


@dataclass(frozen=True)
class Frame:
    """One whole frame."""

    stream: int
    type: int
    flags: int
    payload: bytes


@dataclass(frozen=True)
class Oversized:
    """The header of a frame whose body, of ``length`` bytes, is being thrown away."""

    stream: int
    type: int
    length: int


def encode_frame(stream: int, kind: int, payload: bytes, flags: int = 0) -> bytes:
    """The bytes of one frame.  Raises FrameTooLarge."""
    if len(payload) > MAX_BYTES:
        raise FrameTooLarge(f"{len(payload)} bytes; the maximum is {MAX_BYTES}")
    return HEADER.pack(len(payload), stream, kind, flags) + payload


class FrameReader:
    """Cuts a byte stream into frames.

    ``pending`` and ``discarding`` are all that it remembers; a reader made with those of another
    goes on exactly where that one was.
    """

    def __init__(self, pending: bytes = b"", discarding: int = 0) -> None:
        self._buffer = bytearray(pending)
        self.discarding = discarding

    @property
    def pending(self) -> bytes:
        """The bytes of a frame that has not arrived whole."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> list[Frame | Oversized]:
        """Takes in ``data``; returns what it completes."""
        self._buffer += data
        found: list[Frame | Oversized] = []
        while True:
            skipped = min(self.discarding, len(self._buffer))
            del self._buffer[:skipped]
            self.discarding -= skipped
            if len(self._buffer) < HEADER.size:
                return found
            length, stream, kind, flags = HEADER.unpack_from(self._buffer)
            if length > MAX_BYTES:
                found.append(Oversized(stream, kind, length))
                self.discarding = length
                del self._buffer[: HEADER.size]
                continue
            end = HEADER.size + length
            if len(self._buffer) < end:
                return found
            found.append(Frame(stream, kind, flags, bytes(self._buffer[HEADER.size : end])))
            del self._buffer[:end]
