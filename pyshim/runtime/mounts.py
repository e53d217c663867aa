"""Mounts a container's root filesystem and takes it down again (mount(2), umount2(2))."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import posixpath
import threading
from collections.abc import Sequence
from typing import Protocol

from pyshim.cgroups import locate
from pyshim.runtime import idmap, loopdevice

MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
MAX_STACKED_MOUNTS = 64
MOUNT_TIMEOUT_S = 30
MAX_LINKS = 40  # the kernel's (path_resolution(7))
MS_BIND, MS_REC, MS_REMOUNT, MS_RDONLY = 0x1000, 0x4000, 0x20, 1
CLONE_FS = 0x200
# Options by what they set and by what they clear; the last word counts (containerd's table).
SETS = {
    "bind": MS_BIND,
    "dirsync": 128,
    "mand": 64,
    "noatime": 0x400,
    "nodev": 4,
    "nodiratime": 0x800,
    "noexec": 8,
    "nosuid": 2,
    "rbind": MS_BIND | MS_REC,
    "relatime": 0x200000,
    "remount": MS_REMOUNT,
    "ro": MS_RDONLY,
    "strictatime": 0x1000000,
    "sync": 16,
}
CLEARS = {
    "async": SETS["sync"],
    "atime": SETS["noatime"],
    "defaults": 0,
    "dev": SETS["nodev"],
    "diratime": SETS["nodiratime"],
    "exec": SETS["noexec"],
    "nomand": SETS["mand"],
    "norelatime": SETS["relatime"],
    "nostrictatime": SETS["strictatime"],
    "rw": MS_RDONLY,
    "suid": SETS["nosuid"],
}
# The kernel copies a page of options, the terminating zero included (mount(2)).
MAX_DATA_BYTES = os.sysconf("SC_PAGE_SIZE") - 1
LOWER = "lowerdir="

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
    if os.path.islink(rootfs):
        raise OSError(errno.ELOOP, "is a symlink, and must be a folder of the bundle", rootfs)
    try:
        for mount in mounts:
            mount_one(mount, inside(rootfs, mount.target), os.path.dirname(rootfs))
    except OSError:
        unmount_all(rootfs)
        raise


def inside(rootfs: str, target: str) -> str:
    """The path of ``target`` below ``rootfs``, as a process would find it that has its root there.

    Neither ``..`` nor an image's symlinks lead out.  Raises OSError for too many of these.
    """
    path = ""
    links = 0
    parts = target.split("/")
    while parts:
        part = parts.pop(0)
        if part == "..":
            path = posixpath.dirname(path)
        if part in {"", ".", ".."}:
            continue
        try:
            link = os.readlink(f"{rootfs}{path}/{part}")
        except OSError:  # no link, or not there, which mount(2) will say
            path = f"{path}/{part}"
            continue
        links += 1
        if links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), target)
        path = "" if link.startswith("/") else path
        parts[:0] = link.split("/")
    return f"{rootfs}{path.rstrip('/')}"


def mount_one(mount: Mount, target: str, bundle: str) -> None:
    """Performs one mount on the existing directory ``target`` in ``bundle``.  Raises OSError.

    ``loop`` puts a file's loop device in its place; ``uidmap=`` and ``gidmap=`` (containerd 2.0 on)
    shift the owners of a bind mount, or of an overlay's lower folders.
    """
    flags = 0
    data = []
    maps: dict[str, str] = {}
    loop = False
    for option in mount.options:
        name, _, value = option.partition("=")
        if option in SETS:
            flags |= SETS[option]
        elif option in CLEARS:
            flags &= ~CLEARS[option]
        elif option == "loop":
            loop = True
        elif name in idmap.OPTIONS:
            maps[name] = value
        else:
            data.append(option)
    if maps:
        with idmap.user_namespace(maps, target) as space:
            if flags & MS_BIND:
                read_only, recursive = bool(flags & MS_RDONLY), flags & MS_REC == MS_REC
                idmap.bind(mount.source, target, space, read_only=read_only, recursive=recursive)
            else:
                with idmap.shifted_layers(data, space, bundle) as shifted:
                    _mount(mount.source, target, mount.type, flags, shifted)
        return
    if loop:
        with loopdevice.attached(mount.source, read_only=bool(flags & MS_RDONLY)) as device:
            _mount(device, target, mount.type, flags, data)
        return
    _mount(mount.source, target, mount.type, flags, data)
    if flags & MS_BIND and flags & MS_RDONLY:
        # The kernel ignores MS_RDONLY when it binds; it takes a second call (mount(2)).
        _mount(mount.source, target, mount.type, flags | MS_REMOUNT, [])


def unmount_all(rootfs: str) -> None:
    """Takes down every mount stacked on ``rootfs`` or inside; what is not mounted is no error.

    And what is beside it of a mount that was not completed.
    """
    with contextlib.suppress(OSError):  # then it is busy, or not ours
        idmap.clear(posixpath.dirname(rootfs))
    for _ in range(MAX_STACKED_MOUNTS):
        if not _detach(rootfs):
            break
    # The kernel's names of them have no symlink and no "..".
    real = posixpath.join(os.path.realpath(posixpath.dirname(rootfs)), posixpath.basename(rootfs))
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for point in reversed(points_inside(file.read(), real)):
            _detach(point)


def points_inside(mountinfo: str, rootfs: str) -> list[str]:
    """The mount points below ``rootfs``, in the order in which they were made.  Pure."""
    points = (locate.unescape(line.split(" ")[4]) for line in mountinfo.splitlines())
    return [point for point in points if point.startswith(f"{rootfs}/")]


def _detach(point: str) -> bool:
    return not _libc.umount2(os.fsencode(point), MNT_DETACH | UMOUNT_NOFOLLOW)


def shortened(options: Sequence[str]) -> tuple[str, list[str]]:
    """The options of an overlay of many layers, relative to the folder that these share.

    Returns that folder, "" when there is nothing to gain, and the options.  Pure.
    """
    for at, option in enumerate(options):
        layers = option.removeprefix(LOWER).split(":")
        if not option.startswith(LOWER) or not all(layer.startswith("/") for layer in layers):
            continue
        common = posixpath.commonpath(layers)
        if len(layers) < 2 or common == "/":
            return "", list(options)
        names = [posixpath.relpath(layer, common) for layer in layers]
        return common, [*options[:at], LOWER + ":".join(names), *options[at + 1 :]]
    return "", list(options)


def _mount(source: str, target: str, kind: str, flags: int, options: Sequence[str]) -> None:
    """mount(2); goes to the layers' folder where the options do not fit into a page otherwise."""
    folder, data = "", ",".join(options)
    if len(os.fsencode(data)) > MAX_DATA_BYTES:
        folder, short = shortened(options)
        data = ",".join(short)
    if len(os.fsencode(data)) > MAX_DATA_BYTES:
        size = len(os.fsencode(data))
        text = f"mount {kind}: {size} bytes of options, the kernel takes {MAX_DATA_BYTES}"
        raise OSError(errno.E2BIG, f"{text}; use fewer layers", target)
    error = _mount_in(folder, (source, target, kind, flags, data))
    if error:
        raise OSError(error, f"mount {kind} {source}: {os.strerror(error)}", target)


def _mount_in(folder: str, arguments: tuple[str, str, str, int, str]) -> int:
    """The errno of mount(2) in ``folder``, "" for wherever we are.

    In a thread: it can have a working directory of its own, so that nobody else moves; and a mount
    that hangs, as of a server that does not answer, is left to itself at the bound and taken down
    should it come about after all.
    """
    source, target, kind, flags, data = arguments
    texts = (os.fsencode(source), os.fsencode(target), os.fsencode(kind))
    result = errno.ETIMEDOUT
    lock = threading.Lock()
    is_over = False

    def mount() -> int:
        if folder:
            if _libc.unshare(CLONE_FS):
                return ctypes.get_errno()
            try:
                os.chdir(folder)
            except OSError as error:
                return error.errno or 1
        failed = _libc.mount(*texts, ctypes.c_ulong(flags), os.fsencode(data))
        return ctypes.get_errno() if failed else 0

    def act() -> None:
        nonlocal result, is_over
        error = mount()
        with lock:
            if not is_over:
                result, is_over = error, True
            elif not error:
                _detach(target)

    thread = threading.Thread(target=act, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no process is left for it
        return errno.EAGAIN
    thread.join(MOUNT_TIMEOUT_S)
    with lock:
        is_over = True
    return result
