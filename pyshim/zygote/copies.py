"""The zygote's copy of the runtime's program, in memory and sealed, while it is used often.

runc and crun execute what they are started from once more, among the container's processes, which
could write to it; so each `create` and each `exec` first makes a copy of its own program.  One that
has been started from a sealed copy (memfd_create(2), F_ADD_SEALS) sees that, and does not.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
import stat
import struct
import time

# Twice within so long is often; so long without use, and the memory is given back.
KEPT_S = 10.0
MAKE_S = 0.02  # after what it was wanted for, which may be going on
MOST_BYTES = 64 << 20
MFD_EXEC = 0x10  # Linux 6.3
ALL_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
IDENTITY = struct.Struct("<QQQqq")
# What Go writes into a program: the path of its main package (runtime/debug, BuildInfo).
RUNC_MARK = b"path\tgithub.com/opencontainers/runc\n"


def identity(path: str) -> bytes:
    """What tells the file at ``path`` from any other, and from itself before a change.

    Raises OSError.
    """
    return _identity(os.stat(path))


def _identity(about: os.stat_result) -> bytes:
    return IDENTITY.pack(
        about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
    )


def make(path: str) -> tuple[int, bytes]:
    """A sealed copy of the program at ``path``, the caller's; the identity of what was copied.

    Raises OSError, ValueError for what is no program of a sensible size or has changed meanwhile.
    """
    with open(path, "rb", opener=_open) as file:
        about = os.fstat(file.fileno())
        # A script would need its name.
        if (
            not stat.S_ISREG(about.st_mode)
            or about.st_size > MOST_BYTES
            or file.read(4) != b"\x7fELF"
        ):
            raise ValueError(path)
        fd = _memory(os.path.basename(path))
        try:
            done = 0
            while sent := os.sendfile(fd, file.fileno(), done, MOST_BYTES):
                done += sent
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, ALL_SEALS)
            if _identity(os.fstat(file.fileno())) != _identity(about) or done != about.st_size:
                raise ValueError(path)
        except BaseException:
            os.close(fd)
            raise
    return fd, _identity(about)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # it may be a fifo


def _memory(name: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | MFD_EXEC)
    except OSError:
        return os.memfd_create(name, flags)


def is_runc(fd: int) -> bool:
    """Whether the program in ``fd`` is runc, under whatever name, and not one that wraps it.

    Raises OSError.
    """
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as content:
        return content.find(RUNC_MARK) >= 0


class Copy:
    """The copy, when there is one: ``fd`` (else -1) and the ``identity`` of what it is of.

    ``runc`` is the identity of the program that was last found to be runc itself; b"": none was.
    """

    def __init__(self) -> None:
        self.fd = -1
        self.identity = b""
        self.runc = b""
        self._path = ""
        self._used_at = self._make_at = self._drop_at = math.inf

    def used(self, path: str) -> None:
        """Notes that the program at ``path`` has been started."""
        now = time.monotonic()
        is_often = path == self._path and now - self._used_at < KEPT_S
        self._path, self._used_at = path, now
        if self.fd >= 0:
            self._drop_at = now + KEPT_S
        if is_often and not self._is_of(path):
            self._make_at = now + MAKE_S

    @property
    def about(self) -> bytes:
        """What a spare is told: both identities."""
        return self.identity.ljust(IDENTITY.size, b"\0") + self.runc

    @property
    def due_ms(self) -> int | None:
        """When ``settle`` has something to do; None: never, as things are."""
        due_s = min(self._make_at, self._drop_at)
        if due_s == math.inf:
            return None
        return max(0, math.ceil((due_s - time.monotonic()) * 1000))

    def settle(self) -> None:
        """Makes the copy when it is time to, or lets go of it."""
        now = time.monotonic()
        if now >= min(self._make_at, self._drop_at):
            is_wanted = now >= self._make_at
            self.close()
            if is_wanted:
                with contextlib.suppress(OSError, ValueError):
                    self.fd, self.identity = make(self._path)
                    self._drop_at = now + KEPT_S
                    if is_runc(self.fd):
                        self.runc = self.identity

    def close(self) -> None:
        """Lets go of it."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self.identity = -1, b""
        self._make_at = self._drop_at = math.inf

    def _is_of(self, path: str) -> bool:
        """Whether it is a copy of that program as it is now; one that has gone needs none."""
        try:
            return identity(path) == self.identity
        except OSError:
            return True
