"""Anonymous files, in which states, programs and large answers travel to the monitor."""

from __future__ import annotations

import os


def memfd(content: bytes) -> int:
    """A new memfd that holds ``content``, at its start; the caller owns it.  Raises OSError."""
    fd = os.memfd_create("pyshim", os.MFD_CLOEXEC)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd
