"""Writes a line for each connection that has ended, as text or JSON."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime, timezone
from typing import Any

from portproxy.mapping import endpoint

STDOUT = "-"


def line_of(record: dict[str, Any], form: str, now: datetime) -> str:
    """The line for a relay's ``close`` record, at the time ``now``."""
    begun = now.timestamp() - record["ms"] / 1000
    fields = {
        "time": now.isoformat(timespec="milliseconds"),
        "begun": datetime.fromtimestamp(begun, timezone.utc).isoformat(timespec="milliseconds"),
        "proto": record["proto"],
        "client": _where(record["client"], record["client_port"]),
        "sender": record["sender"],
        "local": _where(record["local"], record["local_port"]),
        "backend": record.get("backend", ""),
        "up": record["up"],
        "down": record["down"],
        "ms": record["ms"],
        "dial_ms": record.get("dial_ms", -1),
        "first_byte_ms": record.get("first_byte_ms", -1),
        "reason": record["reason"],
    }
    if form == "json":
        return json.dumps(fields)
    return " ".join(
        f"{name}={value}" if value != "" else f"{name}=-" for name, value in fields.items()
    )


def _where(address: str, port: int) -> str:
    return address if address == "unix" else endpoint(address, port)


class AccessLog:
    """A file that lines are appended to; ``-`` is stdout.  Lines that it does not take are counted.

    Raises OSError if the file cannot be opened.
    """

    def __init__(self, path: str, form: str) -> None:
        self.path = path
        self.form = form
        self.lost = 0
        self.fd = -1
        self.reopen()

    def reopen(self) -> None:
        """Opens the file anew, so that the old one can be moved away."""
        if self.path == STDOUT:
            self.fd = sys.stdout.fileno()
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        opened = os.open(self.path, flags, 0o640)
        self.close()
        self.fd = opened

    def write(self, record: dict[str, Any]) -> None:
        """Appends the line of one record."""
        line = line_of(record, self.form, datetime.now(timezone.utc)) + "\n"
        try:
            os.write(self.fd, line.encode())
        except OSError:
            self.lost += 1

    def close(self) -> None:
        """Closes the file."""
        if self.fd >= 0 and self.path != STDOUT:
            os.close(self.fd)
        self.fd = -1
