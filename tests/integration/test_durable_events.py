"""Events that containerd was not there to take: kept on disk, told once and in order later."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from pyshim.api import task_pb2
from pyshim.events import spool

from .conftest import eventually
from .goshim import GoHost, go, module_go
from .shim import Container, Host, host, module_host

__all__ = ["go", "host", "module_go", "module_host"]

SLEEP = ("/bin/sleep", "1000")
ALL = ["create", "start", *["exec-added", "exec-started", "exit"] * 3, "exit"]


def waiting(container: Container) -> int:
    """How many events of a container are on disk."""
    return len(spool.read(str(container.bundle)))


def live(container: Container) -> None:
    """Three execs, and the end of the init."""
    for number in range(3):
        name = f"e{number}"
        container.exec(name, "/bin/sh", "-c", f"exit {number}")
        container.start(name)
        assert container.wait(name).exit_status == number
        container.delete(name)
    container.kill(signal.SIGKILL)
    assert container.wait().exit_status == 137


def kill_zygotes(host: Host) -> None:
    for pid in host.zygotes():
        os.kill(pid, signal.SIGKILL)


def test_events_wait_for_containerd(host: Host) -> None:
    """With nothing left alive meanwhile but the monitor."""
    with host.events.away():
        container = host.started(*SLEEP)
        live(container)
        eventually(lambda: waiting(container) == len(ALL), "all events are on disk")
        assert (container.bundle / spool.NAME).stat().st_mode & 0o777 == 0o600
        container.client.close()
        kill_zygotes(host)
        eventually(lambda: not host.services(), "no service is left")
    host.events.await_topic(container.name, "exit")
    eventually(lambda: host.events.topics(container.name) == ALL, "all events")
    eventually(lambda: not (container.bundle / spool.NAME).exists(), "nothing waits any more")
    container.client = container.connect()
    container.finish()
    assert host.events.whole(container.name) == [*ALL, "delete"]
    exits = [(name, status) for name, status in host.events.exits(container.name)]
    assert exits == [("e0", 0), ("e1", 1), ("e2", 2), (container.name, 137)]


def test_events_of_a_pod_wait_each_in_its_bundle(host: Host) -> None:
    with host.events.away():
        first = host.started(*SLEEP, pod="p")
        second = host.started(*SLEEP, pod="p")
        second.kill()
        assert second.wait().exit_status == 137
        eventually(lambda: (waiting(first), waiting(second)) == (2, 3), "all events are on disk")
    host.events.await_topic(second.name, "exit")
    assert host.events.topics(second.name) == ["create", "start", "exit"]
    assert host.events.topics(first.name) == ["create", "start"]
    second.finish()
    first.end()


def test_a_status_survives_the_monitor(host: Host) -> None:
    """`delete` answers with it; containerd tells that to the world."""
    with host.events.away():
        container = host.started("/bin/sh", "-c", "exit 7")
        told = container.wait()
        eventually(lambda: waiting(container) == 3, "all events are on disk")
        for pid in host.monitors():
            os.kill(pid, signal.SIGKILL)
        container.client.close()
        eventually(lambda: not host.monitors(), "the monitor has gone")
        done = host.act("delete", container.name, "-bundle", str(container.bundle))
    assert (done.returncode, done.stderr) == (0, b"")
    answer = task_pb2.DeleteResponse.FromString(done.stdout)
    assert (answer.exit_status, answer.exited_at) == (7, told.exited_at)
    host.clear()


def test_a_disk_that_takes_nothing_costs_no_event(host: Host, tmp_path: Path) -> None:
    """What cannot be kept on disk is still in the monitor."""
    container = host.started(*SLEEP)
    host.events.await_topic(container.name, "start")
    (container.bundle / spool.NAME).mkdir()
    with host.events.away():
        container.kill()
        assert container.wait().exit_status == 137
        eventually(lambda: not host.services(), "the service has parked")
    host.events.await_topic(container.name, "exit")
    (container.bundle / spool.NAME).rmdir()
    container.finish()
    assert host.events.whole(container.name) == ["create", "start", "exit", "delete"]


# The Go shim offers an event five times, with pauses of one to five seconds, and then forgets it
# (containerd 1.6, RemoteEventsPublisher).
FORGOTTEN_AFTER_S = 20


def test_a_long_absence(host: Host, go: GoHost) -> None:
    """Both shims have the same absence; ours alone still tells what happened in it."""
    made = [at.started("/bin/sh", "-c", "sleep 0.5; exit 7") for at in (host, go)]
    for at, container in zip((host, go), made, strict=True):
        at.events.await_topic(container.name, "start")
    with host.events.away(), go.events.away():
        assert [container.wait().exit_status for container in made] == [7, 7]
        time.sleep(FORGOTTEN_AFTER_S)
    ours, theirs = made
    host.events.await_topic(ours.name, "exit")
    assert host.events.exits(ours.name) == [(ours.name, 7)]
    ours.finish()
    theirs.delete()
    go.events.await_topic(theirs.name, "delete")
    assert go.events.topics(theirs.name) == ["create", "start", "delete"]


def test_a_supervisor_that_is_killed(host: Host, go: GoHost) -> None:
    """What knows the protocol dies: with ours nothing else does, with the Go shim all is lost."""
    ours, theirs = (at.started(*SLEEP) for at in (host, go))
    host.kill_services()
    for pid in go.monitors():
        os.kill(pid, signal.SIGKILL)
    ours.kill()
    assert ours.wait().exit_status == 137
    ours.finish()
    eventually(lambda: not go.monitors(), "the Go shim has gone")
    theirs.client.close()
    done = go.act("delete", theirs.name, "-bundle", str(theirs.bundle))
    answer = task_pb2.DeleteResponse.FromString(done.stdout)
    assert answer.exit_status == 137  # whatever became of it: this is all that containerd hears
    assert host.events.exits(ours.name) == [(ours.name, 137)]
    assert go.events.exits(theirs.name) == []
