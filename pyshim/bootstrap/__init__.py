"""What containerd executes a shim for: `start`, `delete` and `-info`.

`main` runs in a child of the zygote, or in an interpreter of its own when there is no zygote.
stdout carries the answer and nothing else; a failure is one line on stderr.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from pyshim.bootstrap import flags as command_line
from pyshim.ttrpc.status import text_of

NAME = "containerd-shim-pyshim-v2"
MAX_LINE_CHARS = 4096


def main(argv: Sequence[str]) -> int:
    """Obeys ``argv`` (without the program's name), prints the answer, returns the exit code."""
    os.umask(0o022)  # as in a child of the zygote, whatever our starter's is
    code, text = answer(argv, None, "")
    write(2 if code else 1, text)
    return code


def answer(argv: Sequence[str], launcher: socket.socket | None, zygote: str) -> tuple[int, bytes]:
    """The exit code for ``argv``, and what goes to stdout when it is 0, else to stderr.

    ``launcher`` is the connection to the program that containerd executed; it starts the monitor.
    ``zygote`` is the socket that the monitor is to use, when it is not the usual one.
    """
    try:
        return 0, act(command_line.parse(argv), launcher, zygote)
    except Exception as error:  # one line, whatever it is: it is shown to people
        line = f"{NAME}: {text_of(error)}"[:MAX_LINE_CHARS]
        return 1, f"{line}\n".encode("utf-8", "replace")


def act(flags: command_line.Flags, launcher: socket.socket | None, zygote: str) -> bytes:
    """Does what is asked; the bytes for stdout."""
    if flags.help:
        return command_line.USAGE.encode()
    if flags.version:
        from pyshim.bootstrap import info

        return info.version_text(NAME).encode()
    if flags.info:
        from pyshim.bootstrap import dialect, info

        return info.runtime_info(dialect.read_stdin())
    if flags.action == "start":
        from pyshim.bootstrap import start

        return start.start(flags, launcher, zygote)
    from pyshim.bootstrap import delete

    return delete.delete(flags)


def write(fd: int, data: bytes) -> None:
    """Writes all of ``data``."""
    while data:
        data = data[os.write(fd, data) :]
