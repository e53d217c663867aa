"""Peers of another user, also where the modes of files and folders do not keep them out."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from tests.integration.containerd import eventually, scripts
from tests.integration.hostile.strangers import NOBODY, as_somebody_else, asks, impostor
from tests.integration.shim import Host, host, module_host
from tests.integration.test_monitor import Monitor

__all__ = ["host", "module_host"]

SLEEP = ("/bin/sleep", "1000")
HELLO = bytes(200)
MAGIC = 0x5053595A


@pytest.mark.parametrize(("uid", "gid"), [(NOBODY, 0), (0, NOBODY), (NOBODY, NOBODY)])
def test_the_shim_hangs_up_on_them(host: Host, uid: int, gid: int) -> None:
    container = host.started(*SLEEP)
    eventually(lambda: not host.services(), "the service has parked")
    (path,) = host.sockets.iterdir()
    path.chmod(0o777)
    host.sockets.chmod(0o777)
    try:
        act = asks(path.name, socket.SOCK_STREAM, HELLO)
        assert as_somebody_else(act, host.sockets, uid, gid) == 0
    finally:
        host.sockets.chmod(0o700)
    assert not host.services()  # nobody was woken for it
    container.end()


def test_as_ourselves_the_same_is_answered(host: Host) -> None:
    """That it is not the request which is refused above."""
    container = host.started(*SLEEP)
    (path,) = host.sockets.iterdir()
    # A frame with an even stream id: refused, but with an answer.
    act = asks(path.name, socket.SOCK_STREAM, struct.pack(">IIBB", 0, 2, 1, 0))
    assert as_somebody_else(act, host.sockets, 0, 0) != 0
    container.end()


@pytest.mark.parametrize("kind", [1, 2])
def test_the_zygote_hangs_up_on_them(host: Host, kind: int) -> None:
    container = host.started(*SLEEP)
    (path,) = host.runtime.glob("*.sock")
    path.chmod(0o777)
    host.runtime.chmod(0o777)
    try:
        act = asks(path.name, socket.SOCK_SEQPACKET, struct.pack("<II", MAGIC, kind))
        assert as_somebody_else(act, host.runtime, NOBODY, NOBODY) == 0
    finally:
        path.chmod(0o600)
        host.runtime.chmod(0o700)
    container.end()


def test_nobody_reads_what_the_monitor_holds(host: Host) -> None:
    """The state with its environment is in a memfd, which has no mode of its own to rely on."""
    container = host.started(*SLEEP)
    (monitor,) = host.monitors()
    for name in ("environ", "fd", "mem", "maps"):

        def look(name: str = name) -> int:
            path = Path(f"/proc/{monitor}/{name}")
            try:
                list(path.iterdir()) if name == "fd" else path.read_bytes()
            except PermissionError:
                return 0
            return 1

        assert as_somebody_else(look, Path("/"), NOBODY, NOBODY) == 0, name
    container.end()


def test_the_monitor_gives_nothing_to_somebody_elses_zygote(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho run >> "$PYSHIM_TEST_HOME/ran"\n')
    python.chmod(0o755)
    with impostor(tmp_path / "zygote.sock") as heard:
        monitor = Monitor(scripts() / "pyshim-monitor", tmp_path, str(python), zygote=False)
        try:
            monitor.connect()
            eventually((tmp_path / "ran").exists, "Python is executed instead")
            eventually(heard.exists, "the other one has heard the end")
            assert set(heard.read_text().splitlines()) == {"nothing"}
        finally:
            monitor.end()


def test_the_launcher_does_without_somebody_elses_zygote(host: Host) -> None:
    host.started(*SLEEP).end()
    (path,) = host.runtime.glob("*.sock")
    for pid in host.zygotes():
        with contextlib.suppress(ProcessLookupError):  # a spare ends with its zygote
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: not host.zygotes(), "the zygote has gone")
    path.unlink()
    with impostor(path) as heard:
        container = host.container(*SLEEP)
        container.create()
        container.start()
        container.end()
        assert set(heard.read_text().splitlines()) == {"nothing"}
    assert not host.zygotes()


@pytest.mark.parametrize(("owner", "mode"), [(NOBODY, 0o700), (0, 0o777)])
def test_no_zygote_in_a_folder_of_others(host: Host, owner: int, mode: int) -> None:
    """Containers go on without one, more slowly."""
    for left in host.runtime.iterdir() if host.runtime.exists() else ():
        left.unlink()
    host.runtime.mkdir(exist_ok=True)
    host.runtime.chmod(mode)
    os.chown(host.runtime, owner, 0)
    try:
        container = host.started(*SLEEP)
        container.end()
        assert list(host.runtime.iterdir()) == []
    finally:
        host.runtime.chmod(0o700)
        os.chown(host.runtime, 0, 0)


@pytest.mark.parametrize(("owner", "mode"), [(NOBODY, 0o600), (0, 0o666), (0, 0o600)])
def test_an_interpreter_that_others_may_name(tmp_path: Path, owner: int, mode: int) -> None:
    """A launcher that lies elsewhere reads a file for it: not one that anybody else can write."""
    alone = tmp_path / "alone"
    alone.write_bytes((scripts() / "containerd-shim-pyshim-v2").read_bytes())
    alone.chmod(0o755)
    named = tmp_path / "named"
    named.write_text("#!/bin/sh\necho executed\n")
    named.chmod(0o755)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    note = folder / "interpreter"
    note.write_text(f"{named}\n")
    note.chmod(mode)
    os.chown(note, owner, 0)
    done = subprocess.run(
        [alone, "-info"],
        env={"PATH": "/usr/bin:/bin", "PYSHIM_RUNTIME_DIR": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )
    if Path("/etc/pyshim/interpreter").exists():  # an installation of this machine comes first
        assert b"executed" not in done.stdout
    elif (owner, mode) == (0, 0o600):
        assert done.stdout == b"executed\n"
    else:
        assert done.returncode == 1
        assert b"others may write" in done.stderr
