"""Sends and receives datagrams fast enough to measure a proxy: many with each system call.

``python -m bench.datagrams echo|sink ADDRESS PORT`` is a backend.  ``sink`` prints how many it has
received once a second has passed without any.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
import time

BATCH = 32
SIZE = 64
QUIET_S = 1.0
MSG_WAITFORONE = 0x10000
BUFFER_BYTES = 4 << 20


class Part(ctypes.Structure):
    """struct iovec"""

    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class Message(ctypes.Structure):
    """struct mmsghdr"""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_size", ctypes.c_uint),
        ("parts", ctypes.POINTER(Part)),
        ("part_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_size", ctypes.c_size_t),
        ("flags", ctypes.c_long),  # an int, and what aligns the next
        ("got", ctypes.c_uint),
    )


class Batch:
    """Up to BATCH datagrams of SIZE bytes on one socket."""

    def __init__(self, end: socket.socket) -> None:
        self.fd = end.fileno()
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.data = [ctypes.create_string_buffer(SIZE) for _ in range(BATCH)]
        self.names = [ctypes.create_string_buffer(28) for _ in range(BATCH)]
        self.parts = [Part(ctypes.cast(each, ctypes.c_void_p), SIZE) for each in self.data]
        self.messages = (Message * BATCH)()
        for message, part in zip(self.messages, self.parts, strict=True):
            message.parts = ctypes.pointer(part)
            message.part_count = 1

    def named(self) -> None:
        """Keeps the senders' addresses, so that ``send`` answers them."""
        for message, name in zip(self.messages, self.names, strict=True):
            message.name = ctypes.cast(name, ctypes.c_void_p)
            message.name_size = 16

    def receive(self, most: int = BATCH) -> int:
        """How many have come: at least one, or 0 after the socket's time limit."""
        got: int = self.libc.recvmmsg(self.fd, self.messages, most, MSG_WAITFORONE, None)
        return max(0, got)

    def send(self, count: int = BATCH) -> int:
        """How many could be sent."""
        sent: int = self.libc.sendmmsg(self.fd, self.messages, count, 0)
        return max(0, sent)


def limit(end: socket.socket, seconds: float) -> None:
    """Receiving takes no longer; blocking otherwise, unlike with ``settimeout``."""
    whole = int(seconds)
    value = struct.pack("ll", whole, int((seconds - whole) * 1e6))
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)


def open_socket() -> socket.socket:
    """A socket whose buffer holds many."""
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    return end


def flood(port: int, seconds: float) -> None:
    """Sends as much as can be sent."""
    with open_socket() as end:
        end.connect(("127.0.0.1", port))
        batch = Batch(end)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            batch.send()


def exchange(port: int, window: int, seconds: float) -> float:
    """Answered requests in a second, with ``window`` of them on the way."""
    with open_socket() as end:
        end.connect(("127.0.0.1", port))
        limit(end, 0.2)
        batch = Batch(end)
        answered = 0
        started = time.monotonic()
        deadline = started + seconds
        batch.send(window)
        while time.monotonic() < deadline:
            # What is lost is sent anew, after a while in which nothing has come.
            got = batch.receive()
            answered += got
            batch.send(got or window)
        return answered / (time.monotonic() - started)


def main() -> int:
    """A backend."""
    mode, address, port = sys.argv[1:]
    with open_socket() as end:
        end.bind((address, int(port)))
        batch = Batch(end)
        if mode == "echo":
            batch.named()
            while True:
                batch.send(batch.receive())
        limit(end, QUIET_S)
        print("ready", flush=True)
        while True:
            total = 0
            first = last = time.monotonic()
            while got := batch.receive():
                last = time.monotonic()
                if total == 0:
                    first = last
                total += got
            if total:
                print(f"{total / max(last - first, 1e-9)}", flush=True)
            if os.getppid() == 1:
                return 0


if __name__ == "__main__":
    sys.exit(main())
