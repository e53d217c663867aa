"""Tells systemd how the service is (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket
import time

MICROSECONDS = 1_000_000


def notify(*lines: str) -> None:
    """Sends a state such as ``READY=1``; nothing happens without systemd."""
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where:
        return
    address = "\0" + where[1:] if where.startswith("@") else where
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender,
    ):
        sender.sendto("\n".join(lines).encode(), address)


def reloading() -> None:
    """Says that a reload begins; ``READY=1`` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={int(time.monotonic() * MICROSECONDS)}")


def watchdog_s() -> float:
    """How often systemd wants to hear that we live: half its limit; 0 if it does not."""
    limit = os.environ.get("WATCHDOG_USEC", "")
    ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(limit) / MICROSECONDS / 2 if ours and limit.isdecimal() else 0.0
