"""The runtime's program, in the life of a service: where it lies, and whether there is a copy.

The zygote gives each life the copy that it has just then (``pyshim.zygote.copies``), and learns
from it what was used.
"""

from __future__ import annotations

import contextlib
import os
import shutil

from pyshim.zygote import copies

# Those that make a copy of themselves where they are not started from one.
NAMES = frozenset({"runc", "crun"})


class _Life:
    """What this life has been given, and what it has used."""

    copy = -1
    identity = b""
    used = ""


def begin(copy: int, identity: bytes) -> None:
    """A life begins; ``copy`` (-1: none) is ours, and of the program with ``identity``."""
    _Life.copy, _Life.identity, _Life.used = copy, identity, ""


def end() -> str:
    """It has ended: the program of which a copy would have been of use, or ""."""
    used = _Life.used
    if _Life.copy >= 0:
        os.close(_Life.copy)
    begin(-1, b"")
    return used


def copy_of(name: str, search: str) -> int:
    """The copy of the program that ``name`` means, with ``search`` for its PATH; -1: there is none.

    It stays ours.  A file that has been replaced since is another program.
    """
    if os.path.basename(name) not in NAMES:
        return -1
    path = shutil.which(name, path=search)
    if path is None or not path.startswith("/"):
        return -1
    _Life.used = path
    if _Life.copy >= 0:
        with contextlib.suppress(OSError):
            if copies.identity(path) == _Life.identity:
                return _Life.copy
    return -1
