"""Events that containerd has not taken, on disk: a file in the bundle of each container.

The monitor's state has them too, and is what they are sent from.  The files are for the day on
which the monitor is killed as well: then `delete`, which containerd runs for what a shim has left,
finds the exit status that nobody has heard.

A file is the number of the last event that was taken (u64), and records of a length and a CRC-32
(u32 each) before a serialized ``Event``; integers are little-endian.  What a crash has torn off is
no record, and ends the reading.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping

from pyshim.api import state_pb2

NAME = "events"
HEADER = struct.Struct("<Q")
RECORD = struct.Struct("<II")
MODE = 0o600
MAX_KEPT = 8192  # twice what an outbox holds
FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW


def encode(event: state_pb2.Event) -> bytes:
    """The record of ``event``."""
    payload = event.SerializeToString()
    return RECORD.pack(len(payload), zlib.crc32(payload)) + payload


def decode(data: bytes) -> list[state_pb2.Event]:
    """The events in a file's bytes that have not been taken, in order, each number once."""
    if len(data) < HEADER.size:
        return []
    (taken,) = HEADER.unpack_from(data)
    found: dict[int, state_pb2.Event] = {}
    for _, payload in _records(data):
        event = state_pb2.Event.FromString(payload)
        if event.number > taken:
            found[event.number] = event
    return [found[number] for number in sorted(found)]


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Where each whole record ends, and its payload."""
    at = HEADER.size
    while at + RECORD.size <= len(data):
        size, checksum = RECORD.unpack_from(data, at)
        at += RECORD.size + size
        payload = data[at - size : at]
        if len(payload) < size or zlib.crc32(payload) != checksum:
            return
        yield at, payload


def _whole(data: bytes) -> int:
    """How much of a file's bytes is the header and whole records."""
    if len(data) < HEADER.size:
        return 0
    return max((end for end, _ in _records(data)), default=HEADER.size)


def read(bundle: str) -> list[state_pb2.Event]:
    """The events that wait in ``bundle``; none when there is no such file, or no such bundle."""
    try:
        with open(os.open(_path(bundle), os.O_RDONLY | FLAGS), "rb") as file:
            return decode(file.read())
    except OSError:
        return []


def append(bundle: str, events: Iterable[state_pb2.Event]) -> None:
    """Adds all ``events`` and waits until the disk has them.  Raises OSError, and adds none then.

    What an earlier crash has torn off goes, since nothing behind it would be read.
    """
    fd = os.open(_path(bundle), os.O_RDWR | os.O_CREAT | FLAGS, MODE)
    with open(fd, "r+b", buffering=0) as file:
        data = file.read()
        end = _whole(data)
        new = end == 0
        if end < len(data):
            file.truncate(end)
        file.seek(end)
        added = (HEADER.pack(0) if new else b"") + b"".join(map(encode, events))
        # A disk that is almost full takes a part, and says so by the count alone.
        if file.write(added) != len(added):
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), _path(bundle))
        os.fsync(fd)
    if new:
        _sync_folder(bundle)


def mark_taken(bundle: str, number: int) -> None:
    """Notes that ``number`` and what is before it have been taken.  Raises OSError."""
    with open(os.open(_path(bundle), os.O_WRONLY | FLAGS), "r+b", buffering=0) as file:
        file.write(HEADER.pack(number))


def remove(bundle: str) -> None:
    """Removes the file, if there is one."""
    with contextlib.suppress(OSError):
        os.unlink(_path(bundle))


class Spool:
    """What of an outbox is on disk; ``bundles`` are the folders of the group's containers by id."""

    def __init__(self) -> None:
        self._kept: dict[int, str] = {}
        self._read: set[str] = set()

    def keep(self, outbox: Iterable[state_pb2.Event], bundles: Mapping[str, str]) -> None:
        """Puts on disk what is not there; an event whose container has gone has no bundle.

        Raises OSError when a disk takes no more: then the state alone has the rest.
        """
        if len(self._kept) > MAX_KEPT:
            # Most have been dropped from the outbox; the monitor has the rest while they are anew.
            self.clear(bundles.values())
        new: dict[str, list[state_pb2.Event]] = {}
        for event in outbox:
            bundle = bundles.get(event.container)
            if bundle and not self._has(bundle, event.number):
                new.setdefault(bundle, []).append(event)
        for bundle, events in new.items():
            append(bundle, events)
            self._kept.update({event.number: bundle for event in events})

    def _has(self, bundle: str, number: int) -> bool:
        if bundle not in self._read:  # an earlier service may have kept some
            self._read.add(bundle)
            self._kept.update({event.number: bundle for event in read(bundle)})
        return number in self._kept

    def taken(self, number: int) -> None:
        """Notes that containerd has the event ``number``."""
        bundle = self._kept.pop(number, "")
        with contextlib.suppress(OSError):
            if bundle:
                mark_taken(bundle, number)

    def clear(self, bundles: Iterable[str]) -> None:
        """Removes the files: nothing waits any more."""
        self._kept.clear()
        self._read.clear()
        for bundle in bundles:
            remove(bundle)


def _path(bundle: str) -> str:
    return os.path.join(bundle, NAME)


def _sync_folder(bundle: str) -> None:
    fd = os.open(bundle, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
