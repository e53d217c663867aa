"""What `pyshim upgrade` makes of a monitor that does not answer."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyshim.cli.monitors import Identity, Monitor
from pyshim.cli.upgrade import Outcome, Target, upgrade

BOUND_S = 30


@pytest.fixture
def pid() -> Iterator[int]:
    """A process that runs, and is waited for only in the end."""
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.kill()
        process.communicate(timeout=BOUND_S)


def outcome(monitor: Monitor) -> Outcome:
    """How it goes with ``monitor``, which is of another version."""
    target = Target.__new__(Target)  # no installation is at hand, and none is needed
    target.python, target.program = "/nowhere/python3", Path("/nowhere/pyshim-monitor")
    target.content, target.identity = b"another", Identity("1", "1" * 16)
    return upgrade(target, monitor, BOUND_S, dry_run=False).outcome


def hang_up(listener: socket.socket) -> None:
    """Accepts a connection, and closes it without an answer."""
    listener.accept()[0].close()


def test_one_that_hangs_up_and_ends_has_ended_meanwhile(pid: int, tmp_path: Path) -> None:
    """Though its parent has not waited for it."""
    address = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        threading.Thread(target=hang_up, args=(listener,), daemon=True).start()
        os.kill(pid, 9)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert outcome(Monitor(pid, "/b/n/c", "/z", address)) is Outcome.ENDED


def test_one_that_hangs_up_and_goes_on_has_failed(pid: int, tmp_path: Path) -> None:
    monitor = Monitor(pid, "/b/n/c", "/z", str(tmp_path / "nobody"))
    assert outcome(monitor) is Outcome.FAILED
