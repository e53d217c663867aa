"""The runtime's program, in the life of a service: where it lies, and whether there is a copy.

The zygote gives each life the copy that it has just then (``pyshim.zygote.copies``), and learns
from it what was used.
"""

from __future__ import annotations

import os
import shutil

from pyshim.zygote import copies

# Those that make a copy of themselves where they are not started from one.
NAMES = frozenset({"runc", "crun"})


class _Life:
    """What this life has been given, and what it has used."""

    copy = -1
    identity = b""
    runc = b""
    used = ""


def begin(copy: int, about: bytes) -> None:
    """A life begins; ``copy`` (-1: none) is ours, and ``about`` is what the zygote says of it."""
    _Life.copy, _Life.used = copy, ""
    _Life.identity, _Life.runc = about[: copies.IDENTITY.size], about[copies.IDENTITY.size :]


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
    identity = _identity(name, search)
    return _Life.copy if _Life.copy >= 0 and identity == _Life.identity else -1


def is_runc(name: str, search: str) -> bool:
    """Whether the program that ``name`` means is runc itself; false as well where nobody knows."""
    identity = _identity(name, search)
    return identity != b"" and identity == _Life.runc


def _identity(name: str, search: str) -> bytes:
    """What tells the program from others; it is used.  b"" of one that is none of ours."""
    if os.path.basename(name) not in NAMES:
        return b""
    path = shutil.which(name, path=search)
    if path is None or not path.startswith("/"):
        return b""
    _Life.used = path
    try:
        return copies.identity(path)
    except OSError:
        return b""
