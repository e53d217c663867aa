"""The zygote's copy of the runtime: of what, when it is made, and when it goes."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyshim.runtime import program
from pyshim.zygote import copies
from pyshim.zygote.copies import Copy

TRUE = "/bin/true"


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A program that is named as a runtime."""
    return Path(shutil.copy(TRUE, tmp_path / "runc"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in the first element."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def copy() -> Iterator[Copy]:
    made = Copy()
    yield made
    made.close()


def use(copy: Copy, clock: list[float], path: Path, after_s: float) -> bool:
    """Uses the program, and settles when that is due at once; whether there is a copy then."""
    clock[0] += after_s
    copy.settle()
    copy.used(str(path))
    clock[0] += copies.MAKE_S
    copy.settle()
    return copy.fd >= 0


def test_a_copy_is_the_program_and_sealed(runtime: Path) -> None:
    fd, identity = copies.make(str(runtime))
    try:
        assert Path(f"/proc/self/fd/{fd}").read_bytes() == runtime.read_bytes()
        assert identity == copies.identity(str(runtime))
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == copies.ALL_SEALS
        assert not os.get_inheritable(fd)
        pid = os.posix_spawn(f"/proc/{os.getpid()}/fd/{fd}", ["true"], {})
        assert os.waitpid(pid, 0)[1] == 0
        with pytest.raises(PermissionError):
            os.write(fd, b"x")
    finally:
        os.close(fd)


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fEL"])
def test_what_is_no_program_is_not_copied(runtime: Path, content: bytes) -> None:
    before = len(os.listdir("/proc/self/fd"))
    runtime.write_bytes(content)
    with pytest.raises(ValueError, match="runc"):
        copies.make(str(runtime))
    with pytest.raises((OSError, ValueError)):
        copies.make(str(runtime.parent))
    os.truncate(runtime, copies.MOST_BYTES + 1)
    with pytest.raises(ValueError, match="runc"):
        copies.make(str(runtime))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "runc")
    assert stat.S_ISFIFO(os.stat(tmp_path / "runc").st_mode)
    with pytest.raises(ValueError, match="runc"):
        copies.make(str(tmp_path / "runc"))


def test_used_twice_soon_it_is_copied_until_it_is_not_used(
    copy: Copy, clock: list[float], runtime: Path
) -> None:
    assert copy.due_ms is None
    assert not use(copy, clock, runtime, 0)
    assert copy.due_ms is None
    assert not use(copy, clock, runtime, copies.KEPT_S + 1)
    assert use(copy, clock, runtime, copies.KEPT_S - 1)
    assert use(copy, clock, runtime, copies.KEPT_S - 1)
    assert copy.due_ms is not None
    assert 0 < copy.due_ms <= copies.KEPT_S * 1000
    clock[0] += copies.KEPT_S
    assert copy.due_ms == 0
    copy.settle()
    assert (copy.fd, copy.identity, copy.due_ms) == (-1, b"", None)


def test_one_that_is_replaced_is_copied_anew(copy: Copy, clock: list[float], runtime: Path) -> None:
    use(copy, clock, runtime, 0)
    assert use(copy, clock, runtime, 1)
    runtime.unlink()
    assert use(copy, clock, runtime, 1)  # nobody could start it
    shutil.copy("/bin/false", runtime)
    assert use(copy, clock, runtime, 1)
    assert copy.identity == copies.identity(str(runtime))
    assert Path(f"/proc/self/fd/{copy.fd}").read_bytes() == runtime.read_bytes()


def test_one_that_cannot_be_copied_is_not_tried_until_it_is_used(
    copy: Copy, clock: list[float], runtime: Path
) -> None:
    runtime.write_text("#!/bin/sh\n")
    use(copy, clock, runtime, 0)
    assert not use(copy, clock, runtime, 1)
    assert copy.due_ms is None


def test_a_life_uses_the_copy_of_what_it_starts(runtime: Path) -> None:
    search = f"/nowhere:{runtime.parent}"
    assert program.copy_of("runc", search) == -1
    assert program.end() == str(runtime)
    fd, identity = copies.make(str(runtime))
    program.begin(fd, identity)
    assert not program.is_runc("runc", search)
    assert program.copy_of("runc", search) == fd
    assert program.copy_of(str(runtime), "") == fd
    assert program.copy_of("runc", "/nowhere") == -1
    assert program.copy_of("true", "/bin") == -1
    shutil.copy("/bin/false", runtime)
    assert program.copy_of("runc", search) == -1
    assert program.end() == str(runtime)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert program.end() == ""


def test_runc_is_told_from_what_wraps_it(copy: Copy, clock: list[float], runtime: Path) -> None:
    found = shutil.which("runc")
    assert found
    use(copy, clock, runtime, 0)
    assert use(copy, clock, runtime, 1)
    assert copy.runc == b""
    shutil.copy(found, runtime)
    assert use(copy, clock, runtime, 1)
    clock[0] += copies.KEPT_S
    copy.settle()
    assert (copy.fd, copy.runc) == (-1, copies.identity(str(runtime)))  # it is remembered
    program.begin(-1, copy.about)
    search = f"/nowhere:{runtime.parent}"
    assert program.is_runc("runc", search)
    assert program.copy_of("runc", search) == -1
    assert not program.is_runc("crun", search)
    shutil.copy("/bin/true", runtime)
    assert not program.is_runc("runc", search)
    assert program.end() == str(runtime)
    assert not program.is_runc("runc", search)
    program.end()
