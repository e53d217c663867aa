"""Changes of files: shown, or made all or none.

A file is replaced at once, by one with its mode and owner that was complete before it got the name.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pyshim.cli.errors import Problem

KEPT = ".before-pyshim"
MODE_OF_FILE, MODE_OF_PROGRAM = 0o644, 0o755
KIB = 1024


class Change(NamedTuple):
    """What a file holds before and after; None: it is not there.

    ``like`` is the file whose mode and owner a new one gets; without it, it gets ``mode``.
    """

    path: Path
    before: bytes | None
    after: bytes | None
    mode: int = MODE_OF_FILE
    like: Path | None = None


def content(path: Path) -> bytes | None:
    """What a file holds; None when it is not there.  Raises Problem when it cannot be read."""
    try:
        # Of a fifo one would wait for a writer.
        if path.exists() and not path.is_file() and not path.is_dir():
            raise Problem(f"{path} is no regular file; move it away, or name another")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}; {hint(error)}") from None


def kept(path: Path) -> Path:
    """Where what a file held before the installation is kept."""
    return path.with_name(path.name + KEPT)


def replaced(path: Path, before: bytes | None, after: bytes | None) -> list[Change]:
    """The changes that give a file another content, and keep the first that it ever had."""
    if before == after:
        return []
    copy = kept(path)
    keeping = [Change(copy, None, before, like=path)] if before and not copy.exists() else []
    return [*keeping, Change(path, before, after)]


def restored(path: Path, before: bytes | None, after: bytes | None) -> list[Change]:
    """The changes that undo ``replaced``; what was kept stays as long as it differs."""
    changes = [Change(path, before, after)] if before != after else []
    copy = kept(path)
    if after is not None and content(copy) == after:
        changes.append(Change(copy, after, None))
    return changes


def shown(change: Change) -> str:
    """A change for people: a unified diff, or a line where there is no text."""
    path = str(change.path)
    before, after = (_text(data) for data in (change.before, change.after))
    if change.after is None and before is not None and change.path.name.endswith(KEPT):
        return f"remove {path}\n"
    if before is None or after is None:
        verb = "remove" if change.after is None else "write"
        size = len(change.after or change.before or b"") // KIB
        return f"{verb} {path} ({size} KiB)\n"
    if change.path.name.endswith(KEPT):
        return f"keep what there is as {path}\n"
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        after.splitlines(keepends=True),
        "/dev/null" if change.before is None else path,
        "/dev/null" if change.after is None else path,
    )
    return "".join(f"{line}\n" if line[-1] != "\n" else line for line in lines)


def make(changes: Iterable[Change]) -> None:
    """Makes all changes in order, or none: raises Problem at the first that cannot be made."""
    made: list[Change] = []
    for change in changes:
        try:
            _make(change)
        except OSError as error:
            for done in reversed(made):
                with contextlib.suppress(OSError):
                    _make(done._replace(before=done.after, after=done.before))
            what = "remove" if change.after is None else "write"
            text = f"cannot {what} {change.path}: {error.strerror}; {hint(error)}"
            raise Problem(f"{text}; nothing has been changed") from None
        made.append(change)


def _make(change: Change) -> None:
    if change.after is None:
        change.path.unlink()
        return
    folder = change.path.parent
    folder.mkdir(parents=True, exist_ok=True)
    fd, draft = tempfile.mkstemp(prefix=f".{change.path.name}.", dir=folder)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(change.after)
            _take_mode(fd, change)
            file.flush()
            os.fsync(fd)
        os.replace(draft, change.path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        raise


def _take_mode(fd: int, change: Change) -> None:
    for model in (change.path, change.like):
        if model is not None and model.exists():
            about = model.stat()
            os.fchown(fd, about.st_uid, about.st_gid)
            os.fchmod(fd, stat.S_IMODE(about.st_mode))
            return
    os.fchmod(fd, change.mode)


def _text(data: bytes | None) -> str | None:
    """``data`` as text ("" for no file); None when it is none."""
    try:
        text = (data or b"").decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def hint(error: OSError) -> str:
    """What to try."""
    if os.geteuid():
        return "try again as root"
    if isinstance(error, PermissionError):
        return "see whether it is immutable (lsattr), or guarded by a security module"
    return "see what is there"
