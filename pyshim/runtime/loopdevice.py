"""Loop devices: a file as a block device (loop(4)), for mounts with the option ``loop``."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator

CONTROL = "/dev/loop-control"
LOOP_SET_FD, LOOP_SET_STATUS64, LOOP_CONFIGURE, LOOP_CTL_GET_FREE = 0x4C00, 0x4C04, 0x4C0A, 0x4C82
LO_FLAGS_READ_ONLY, LO_FLAGS_AUTOCLEAR = 1, 4
# struct loop_info64: five u64, four u32, two names of 64 bytes, a key of 32, two u64
INFO = struct.Struct("=5Q4I64s64s32s2Q")
CONFIGURATION = struct.Struct(f"=II{INFO.size}s64s")  # struct loop_config, since Linux 5.8
ATTEMPTS = 16


@contextlib.contextmanager
def attached(path: str, *, read_only: bool) -> Iterator[str]:
    """A loop device for the file ``path``; the kernel frees it with its last mount.

    Raises OSError.
    """
    mode = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
    flags = LO_FLAGS_AUTOCLEAR | (LO_FLAGS_READ_ONLY if read_only else 0)
    label = os.fsencode(path)[:63]
    info = INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, label, b"", b"", 0, 0)
    file = os.open(path, mode)
    try:
        device, name = _claim(file, mode, info)
    finally:
        os.close(file)
    try:
        yield name
    finally:
        os.close(device)  # after the mount, which holds it as well


def _claim(file: int, mode: int, info: bytes) -> tuple[int, str]:
    """A free device with ``file`` in it: its descriptor and path.  Another may be quicker."""
    for _ in range(ATTEMPTS):
        control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
        try:
            name = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
        finally:
            os.close(control)
        device = os.open(name, mode)
        try:
            _configure(device, file, info)
        except OSError as error:
            os.close(device)
            if error.errno != errno.EBUSY:
                raise
        else:
            return device, name
    raise OSError(errno.EBUSY, "no loop device is free", CONTROL)


def _configure(device: int, file: int, info: bytes) -> None:
    """Puts ``file`` into ``device``, and says that the kernel shall free it.  Raises OSError.

    At once, so that nothing stays when we are killed; before Linux 5.8 it takes two steps.
    """
    try:
        fcntl.ioctl(device, LOOP_CONFIGURE, CONFIGURATION.pack(file, 0, info, b""))
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTTY}:
            raise
        fcntl.ioctl(device, LOOP_SET_FD, file)
        fcntl.ioctl(device, LOOP_SET_STATUS64, info)
