"""Our files in a container's bundle."""

from __future__ import annotations

import os

from pyshim.ttrpc.status import Code, StatusError

FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def write_file(path: str, data: bytes) -> None:
    """Writes a file that its owner alone may read.  Raises StatusError, which names the file."""
    try:
        with open(os.open(path, FLAGS, 0o600), "wb") as file:
            file.write(data)
    except OSError as error:
        raise StatusError(Code.UNKNOWN, f"cannot write {path}: {error.strerror}") from error
