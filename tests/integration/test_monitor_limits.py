"""The monitor where something is full, wrong, used again or not there yet."""

from __future__ import annotations

import array
import errno
import os
import resource
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyshim.monitor.channel import SPAWN_DIE_WITH_MONITOR, Message, Type, encode_program
from tests.integration.test_monitor import Monitor, Service, close_all, eventually, memfd

EBADMSG, EFBIG, ENOSPC, ESRCH = errno.EBADMSG, errno.EFBIG, errno.ENOSPC, errno.ESRCH
PROCESSES, HELDS = 8192, 4096  # the sizes of the monitor's tables


@pytest.fixture
def monitor(programs: Path, tmp_path: Path) -> Iterator[Monitor]:
    yield from driven(programs / "pyshim-monitor", tmp_path)


@pytest.fixture
def unshared(programs: Path, tmp_path: Path) -> Iterator[Monitor]:
    """A monitor that is process 1 of a pid namespace: there the next pid can be chosen."""
    wrapper = tmp_path / "unshared"
    program = shlex.quote(str(programs / "pyshim-monitor"))
    wrapper.write_text(f'#!/bin/sh\nexec unshare --pid --fork --kill-child {program} "$@"\n')
    wrapper.chmod(0o755)
    yield from driven(wrapper, tmp_path)


def driven(program: Path, home: Path) -> Iterator[Monitor]:
    """A monitor that must still be there when the test is over, and is gone afterwards."""
    started = Monitor(program, home)
    yield started
    end = started.process.poll()
    started.end()
    assert end is None, "the monitor must not die by itself"


def orphan(service: Service, status: int, first: str = ":") -> tuple[int, int]:
    """The pid of an orphan, which ends with ``status`` when the descriptor is closed."""
    theirs, mine = os.pipe()
    reader, writer = os.pipe()
    script = f"exec 3<&0; {first}; sh -c 'read line; exit {status}' <&3 >&- & echo $!"
    error, shell = service.spawn("sh", "-c", script, fds=(theirs, writer))
    assert error == 0
    with os.fdopen(reader) as output:
        pid = int(output.read())
    service.exit_of(shell)
    return pid, mine


def as_next_pid(pid: int) -> str:
    """A shell command after which the next process of this pid namespace is ``pid``."""
    return f"echo {pid - 1} > /proc/sys/kernel/ns_last_pid"


def children_of(pid: int) -> list[int]:
    """The children of ``pid`` that have not been reaped."""
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def watched(pid: int) -> str:
    """What the monitor's epoll watches."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        if "eventpoll" in os.readlink(fd):
            return Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text()
    return ""


# --- Activation ----------------------------------------------------------------------------------


def test_an_activation_that_fails_is_tried_again(monitor: Monitor) -> None:
    """Nothing else happens meanwhile: the monitor must come back to it by itself."""
    service = monitor.service()
    reader, writer = os.pipe()
    service.send(Message(Type.HOLD, (5, 1), (reader,)))
    service.park_in_the_end()
    pid = monitor.process.pid
    eventually(lambda: watched(pid).count("tfd:") == 4, "the pipe is watched")
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))  # there is none for a channel
    os.write(writer, b"x")
    eventually(lambda: watched(pid).count("tfd:") == 2, "it has tried")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    close_all(monitor.activated().hello())
    os.close(writer)
