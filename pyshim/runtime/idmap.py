"""Mounts whose owners are shifted into a user namespace (mount_setattr(2)).

containerd 2.0 and later give the mapping with the mount: ``uidmap=CONTAINER:HOST:SIZE`` and
``gidmap=…``, several ranges with commas.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
from collections.abc import Iterator, Mapping, Sequence

OPTIONS = ("uidmap", "gidmap")
CLONE_NEWUSER = 0x10000000
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442  # the same on all architectures
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_IDMAP = 1, 0x100000
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
MOUNT_ATTR = struct.Struct("=4Q")  # set, clear, propagation, userns_fd
LOWER = "lowerdir="
LAYERS = ".layers"  # in a bundle

_libc = ctypes.CDLL(None, use_errno=True)


def mapping(text: str) -> str:
    """A map as proc(5)'s uid_map wants it.  Pure.  Raises OSError EINVAL for one that is none."""
    lines = []
    for part in text.split(","):
        numbers = part.split(":")
        if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
            raise OSError(errno.EINVAL, f"{text!r} is no id mapping; it is CONTAINER:HOST:SIZE")
        lines.append(" ".join(numbers))
    return "".join(f"{line}\n" for line in lines)


@contextlib.contextmanager
def user_namespace(maps: Mapping[str, str], where: str) -> Iterator[int]:
    """A descriptor of a user namespace with ``maps`` (by option), for a mount on ``where``.

    Raises OSError, also when one of the two maps is missing.
    """
    missing = [name for name in OPTIONS if name not in maps]
    if missing:
        raise OSError(errno.EINVAL, f"the mount has no {missing[0]}=; give both or none", where)
    texts = {name: mapping(maps[name]) for name in OPTIONS}
    child, release = _spawn_unshared(where)
    try:
        for name in OPTIONS:
            with open(f"/proc/{child}/{name[:3]}_map", "w", encoding="ascii") as file:
                file.write(texts[name])
        space = os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(release)
        os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # where the kernel reaps
            os.waitpid(child, 0)
    try:
        yield space
    finally:
        os.close(space)


def _spawn_unshared(where: str) -> tuple[int, int]:
    """A child that waits in a user namespace of its own; its pid, and what lets it go."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    report, reported = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            os.close(writer)
            failed = _libc.unshare(CLONE_NEWUSER)
            os.write(reported, bytes([ctypes.get_errno() if failed else 0]))
            os.read(reader, 1)
        finally:
            os._exit(0)
    os.close(reader)
    os.close(reported)
    answer = os.read(report, 1)
    os.close(report)
    error = answer[0] if answer else errno.EIO
    if error:
        os.close(writer)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)
        raise OSError(error, f"a user namespace: {os.strerror(error)}", where)
    return child, writer


def bind(
    source: str, target: str, space: int, *, read_only: bool = False, recursive: bool = False
) -> None:
    """Binds ``source`` on ``target`` with the owners of the user namespace ``space``.

    Raises OSError.
    """
    attributes = MOUNT_ATTR_IDMAP | (MOUNT_ATTR_RDONLY if read_only else 0)
    tree = AT_RECURSIVE if recursive else 0
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | tree
    fd = _call(source, SYS_OPEN_TREE, AT_FDCWD, os.fsencode(source), flags)
    try:
        wanted = MOUNT_ATTR.pack(attributes, 0, 0, space)
        flags = AT_EMPTY_PATH | tree
        _call(source, SYS_MOUNT_SETATTR, fd, b"", flags, wanted, MOUNT_ATTR.size)
        moving = (fd, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH)
        _call(target, SYS_MOVE_MOUNT, *moving)
    finally:
        os.close(fd)


@contextlib.contextmanager
def shifted_layers(options: Sequence[str], space: int, folder: str) -> Iterator[list[str]]:
    """An overlay's ``options`` with its lower folders shifted into ``space``.

    The shifted ones are mounted in a folder of their own in ``folder`` and taken away afterwards:
    the overlay keeps them.  Raises OSError.
    """
    clear(folder)
    base = os.path.join(folder, LAYERS)
    os.mkdir(base, mode=0o700)
    made: list[str] = []
    try:
        changed = []
        for option in options:
            if not option.startswith(LOWER):
                changed.append(option)
                continue
            for layer in option.removeprefix(LOWER).split(":"):
                made.append(os.path.join(base, str(len(made))))
                os.mkdir(made[-1])
                bind(layer, made[-1], space)
            changed.append(LOWER + ":".join(made))
        yield changed
    finally:
        clear(folder)


def clear(folder: str) -> None:
    """Takes down what ``shifted_layers`` has in ``folder``, or has left when it was killed.

    What is not there is no error.  Whoever removed the bundle would go into the layers otherwise.
    """
    base = os.path.join(folder, LAYERS)
    if os.path.islink(base) or not os.path.isdir(base):
        return
    for name in os.listdir(base):
        path = os.path.join(base, name)
        _libc.umount2(os.fsencode(path), MNT_DETACH | UMOUNT_NOFOLLOW)
        os.rmdir(path)
    os.rmdir(base)


def _call(where: str, number: int, *arguments: int | bytes) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *wide))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), where)
    return result
