"""Mounts a container's root filesystem and takes it down again (mount(2), umount2(2))."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Protocol

MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
MAX_STACKED_MOUNTS = 64
MS_BIND, MS_REC, MS_REMOUNT, MS_RDONLY = 0x1000, 0x4000, 0x20, 1
FLAGS = {
    "ro": MS_RDONLY,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "noatime": 0x400,
    "nodiratime": 0x800,
    "bind": MS_BIND,
    "rbind": MS_BIND | MS_REC,
    "relatime": 0x200000,
    "strictatime": 0x1000000,
}
CLEARS = {"rw", "suid", "dev", "exec", "async", "atime", "diratime", "defaults"}

_libc = ctypes.CDLL(None, use_errno=True)


class Mount(Protocol):
    """What containerd.types.Mount says of one mount."""

    type: str
    source: str
    target: str

    @property
    def options(self) -> Sequence[str]: ...


def mount_all(mounts: Sequence[Mount], rootfs: str) -> None:
    """Performs ``mounts`` in order on ``rootfs``, or none of them.

    Mount.target is relative to ``rootfs`` as in containerd 1.7.  Raises OSError, after it has
    undone what it did.
    """
    os.makedirs(rootfs, mode=0o711, exist_ok=True)
    try:
        for mount in mounts:
            mount_one(mount, os.path.join(rootfs, mount.target.lstrip("/")))
    except OSError:
        unmount_all(rootfs)
        raise


def mount_one(mount: Mount, target: str) -> None:
    """Performs one mount on the existing directory ``target``.  Raises OSError."""
    flags = 0
    data = []
    for option in mount.options:
        if option in FLAGS:
            flags |= FLAGS[option]
        elif option not in CLEARS:
            data.append(option)
    _mount(mount.source, target, mount.type, flags, ",".join(data))
    if flags & MS_BIND and flags & MS_RDONLY:
        # The kernel ignores MS_RDONLY when it binds; it takes a second call (mount(2)).
        _mount(mount.source, target, mount.type, flags | MS_REMOUNT, "")


def unmount_all(rootfs: str) -> None:
    """Takes down every mount stacked on ``rootfs``; what is not mounted is no error."""
    for _ in range(MAX_STACKED_MOUNTS):
        if _libc.umount2(os.fsencode(rootfs), MNT_DETACH | UMOUNT_NOFOLLOW):
            return


def _mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    arguments = (os.fsencode(source), os.fsencode(target), os.fsencode(kind))
    if _libc.mount(*arguments, ctypes.c_ulong(flags), os.fsencode(data)):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {kind} {source}: {os.strerror(error)}", target)
