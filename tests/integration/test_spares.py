"""Children that a zygote has forked ahead: used, replaced, and never missed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest

from pyshim.zygote import spares
from tests.integration.containerd import BOUND_S, eventually, parent_of, spares_of
from tests.integration.shim import KILLED, Host, descriptors, host, module_host

__all__ = ["host", "module_host"]


def await_spares(host: Host) -> set[int]:
    """The spares, once there are as many as there are to be."""
    eventually(lambda: len(spares_of(host.home)) == spares.DEFAULT_COUNT, "all spares are there")
    return spares_of(host.home)


def live(host: Host) -> None:
    """A container's life."""
    host.started("/bin/sleep", "1000").end()


def test_spares_are_used_and_come_back(host: Host) -> None:
    container = host.started("/bin/sleep", "1000")
    eventually(lambda: not host.services(), "the service has parked")
    first = await_spares(host)
    for _ in range(3):
        container.state()
        assert first <= set(host.services())
        eventually(lambda: not host.services(), "the service has parked")
        assert await_spares(host) == first
    assert {parent_of(pid) for pid in first} <= set(host.zygotes())
    container.end()


def test_a_spare_that_is_killed_at_work_is_replaced(host: Host) -> None:
    container = host.started("/bin/sleep", "1000")
    eventually(lambda: not host.services(), "the service has parked")
    first = await_spares(host)
    container.state()
    host.kill_services()
    container.state()
    eventually(lambda: not host.services(), "the service has parked")
    assert not first & await_spares(host)
    container.end()


def test_a_spare_has_kept_nothing_of_what_it_was_given(host: Host) -> None:
    """After a service's life, and after a launcher's: files and folder."""
    container = host.started("/bin/sleep", "1000")
    eventually(lambda: not host.services(), "the service has parked")
    (spare,) = await_spares(host)
    container.state()
    eventually(lambda: not host.services(), "the service has parked")
    before = descriptors(spare)  # one that has not lived yet may not be ready
    container.end()

    def is_clean(pid: int) -> bool:
        with contextlib.suppress(OSError):
            return descriptors(pid) == before and os.readlink(f"/proc/{pid}/cwd") == "/"
        return False

    await_spares(host)
    eventually(lambda: all(map(is_clean, spares_of(host.home))), "they are as they were")


def test_killed_spares_are_not_missed(host: Host) -> None:
    live(host)
    for _ in range(5):
        for pid in await_spares(host):
            os.kill(pid, signal.SIGKILL)
        live(host)


def test_spares_may_be_killed_at_any_time(host: Host) -> None:
    live(host)
    done = threading.Event()

    def kill() -> None:
        pause_s = 0.001
        while not done.wait(pause_s):
            pause_s = 0.001 + (pause_s * 7919) % 0.017
            for pid in spares_of(host.home):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        for _ in range(5):
            live(host)
    finally:
        done.set()
        killer.join(BOUND_S)


def test_more_at_once_than_there_are_spares(host: Host) -> None:
    live(host)
    await_spares(host)
    containers = [host.started("/bin/sleep", "1000") for _ in range(6)]
    for container in containers:
        os.kill(container.state().pid, signal.SIGKILL)
    for container in containers:
        assert container.wait().exit_status == KILLED
        container.finish()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_spares_end_with_their_zygote(host: Host, number: int) -> None:
    live(host)
    known = await_spares(host)
    (zygote,) = {parent_of(pid) for pid in known}
    os.kill(zygote, number)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in known), "all have ended")
    live(host)


def test_a_spare_has_nothing_of_the_zygote_but_its_own_end(host: Host) -> None:
    """An end of another's, or the zygote's lock or listener, would outlive the zygote with it."""
    live(host)
    known = await_spares(host)
    (zygote,) = {parent_of(pid) for pid in known}
    theirs = {os.readlink(link) for link in Path(f"/proc/{zygote}/fd").iterdir()}
    for pid in known:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(link)
            assert target not in theirs or target == os.devnull, (link, target)
