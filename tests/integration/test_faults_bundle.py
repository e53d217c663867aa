"""No room in the bundle, or a bundle that has become read-only: nothing breaks that needs no file.

What does need one fails with a line that names it, and may be done again when there is room.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from pyshim.api import task_pb2
from pyshim.ttrpc.status import StatusError
from tests.integration.containerd import BOUND_S, eventually
from tests.integration.fake_runtime import fake_runtime
from tests.integration.goshim import GoHost, go, module_go
from tests.integration.shim import KILLED, Container, Host, host, module_host

__all__ = ["go", "host", "module_go", "module_host"]

SLEEP = ("/bin/sleep", "1000")
FILLER = "filler"
FULL = os.strerror(errno.ENOSPC)
READ_ONLY = os.strerror(errno.EROFS)


@contextlib.contextmanager
def small(host: Host) -> Iterator[None]:
    """The bundles of ``host`` lie on a file system of 256 KiB."""
    usual = host.bundles
    host.bundles = usual.parent / "small"
    host.bundles.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=64", "tmpfs", str(host.bundles)]
    subprocess.run(mount, check=True, timeout=BOUND_S)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(host.bundles)], check=True, timeout=BOUND_S)
        host.bundles.rmdir()
        host.bundles = usual


@contextlib.contextmanager
def full(host: Host) -> Iterator[None]:
    """Neither a byte nor a file fits into the bundles."""
    fillers = [host.bundles / f"{FILLER}{number}" for number in range(64)]
    with contextlib.suppress(OSError):
        for path in fillers:
            with path.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
    with contextlib.suppress(OSError):
        for path in fillers:
            path.touch()
    try:
        yield
    finally:
        for path in fillers:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def read_only(host: Host) -> Iterator[None]:
    """The bundles cannot be written to."""
    remount(host, "ro")
    try:
        yield
    finally:
        remount(host, "rw")


def remount(host: Host, how: str) -> None:
    """Makes the bundles ``ro`` or ``rw``."""
    command = ["mount", "-o", f"remount,{how}", str(host.bundles)]
    subprocess.run(command, check=True, timeout=BOUND_S)


FAULTS = {"full": (full, FULL), "read-only": (read_only, READ_ONLY)}


def refused(container: Container, *calls: str) -> dict[str, str]:
    """The messages of calls that must fail."""
    found = {}
    for call in calls:
        with pytest.raises(StatusError) as caught:
            getattr(container, call)(*(["e"] if call == "start" else []))
        found[call] = caught.value.message
    return found


def needs_no_file(container: Container) -> None:
    """All that a running container can be asked for without a new file."""
    assert container.state().status == task_pb2.RUNNING
    pids = container.call("Pids", task_pb2.PidsRequest(id=container.name), task_pb2.PidsResponse)
    assert [found.pid for found in pids.processes] == [container.state().pid]
    stats = container.call(
        "Stats", task_pb2.StatsRequest(id=container.name), task_pb2.StatsResponse
    )
    assert stats.stats.value
    for method, kind in (("Pause", task_pb2.PauseRequest), ("Resume", task_pb2.ResumeRequest)):
        container.call(method, kind(id=container.name), Empty)
    asked = task_pb2.UpdateTaskRequest(id=container.name)
    asked.resources.value = b'{"pids": {"limit": 100}}'
    container.call("Update", asked, Empty)
    container.kill(0)


def start_in(host: Host, fault: str) -> str:
    """What `start` says in a bundle with ``fault``; its exit code comes first."""
    name = "refused"
    bundle = host.bundles / name
    bundle.mkdir()
    (bundle / "config.json").write_text("{}")
    with FAULTS[fault][0](host):
        done = host.act("start", name)
    left = sorted(path.name for path in bundle.iterdir())
    for path in bundle.iterdir():
        path.unlink()
    bundle.rmdir()
    assert left == ["config.json"], left
    return f"{done.returncode} {done.stdout.decode()}{done.stderr.decode()}"


@pytest.mark.parametrize("fault", FAULTS)
def test_start(host: Host, fault: str) -> None:
    with small(host):
        said = start_in(host, fault)
        path = host.bundles / "refused/address"
        assert said == f"1 containerd-shim-pyshim-v2: cannot write {path}: {FAULTS[fault][1]}\n"
        assert not list(host.sockets.iterdir())
        assert not host.monitors()
        host.started(*SLEEP).end()


@pytest.mark.parametrize("fault", FAULTS)
def test_create(host: Host, fault: str) -> None:
    with small(host):
        container = host.container(*SLEEP)
        with FAULTS[fault][0](host):
            said = refused(container, "create")["create"]
        assert said == f"cannot write {container.bundle}/runtime: {FAULTS[fault][1]}"
        container.create()
        container.start()
        container.end()
        assert host.events.whole(container.name) == ["create", "start", "exit", "delete"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_running_container(host: Host, fault: str) -> None:
    with small(host):
        container = host.started(*SLEEP)
        container.exec("e", "/bin/sh", "-c", "exit 3")
        with FAULTS[fault][0](host):
            said = refused(container, "start")["start"]
            assert said == f"cannot write {container.bundle}/e.spec.json: {FAULTS[fault][1]}"
            needs_no_file(container)
        container.start("e")
        assert container.wait("e").exit_status == 3
        assert container.delete("e").exit_status == 3
        container.end()


@pytest.mark.parametrize("fault", FAULTS)
def test_the_end(host: Host, fault: str) -> None:
    """With an exec that still runs, one that has ended, and one that never began."""
    with small(host):
        container = host.started(*SLEEP)
        for name, command in (("runs", SLEEP), ("ended", ("/bin/true",)), ("never", SLEEP)):
            container.exec(name, *command)
            if name != "never":
                container.start(name)
        container.wait("ended")
        with FAULTS[fault][0](host):
            assert container.delete("ended").exit_status == 0
            container.delete("never")
            container.kill()
            assert container.wait().exit_status == KILLED
            assert container.delete().exit_status == KILLED
            host.events.await_topic(container.name, "delete")
        container.leave()
        assert host.events.topics(container.name)[-1] == "delete"


@pytest.mark.parametrize("action", ["create", "exec"])
def test_the_runtimes_file_does_not_fit(host: Host, tmp_path: Path, action: str) -> None:
    """There is room for our files but none for the runtime's: what is left of it is removed."""
    with small(host):
        filler = host.bundles / FILLER
        fill = f"test -e {tmp_path}/once || dd if=/dev/zero of={filler} 2>/dev/null"
        hooks = {f"before_{action}": f"{fill}; : >{tmp_path}/once"}
        container = host.container(*SLEEP)
        container.runtime = fake_runtime(tmp_path, **hooks)
        if action == "create":
            said = refused(container, "create")["create"]
        else:
            container.create()
            container.start()
            container.exec("e", *SLEEP)
            said = refused(container, "start")["start"]
        assert f"no space is left in {container.bundle}" in said
        filler.unlink()
        if action == "create":
            container.create()
            container.start()
        else:
            container.delete("e")
            assert container.run("e", "/bin/sh", "-c", "exit 3") == 3
        container.end()


# --- The Go shim ---------------------------------------------------------------------------------


def test_the_go_shim_dies_of_an_exec_that_found_no_room(go: GoHost) -> None:
    """One that could not be started and then could: when it ends, so does the shim."""
    with small(go):
        container = go.started(*SLEEP)
        container.exec("e", "/bin/sh", "-c", "exit 3")
        with full(go):
            said = refused(container, "start")["start"]
            assert said.endswith("runc did not terminate successfully: exit status 255")
        with contextlib.suppress(ConnectionError):  # it may not live to answer
            container.start("e")
        eventually(lambda: not go.monitors(), "the shim has ended")


def test_the_go_shim_kills_nothing_in_a_read_only_bundle(go: GoHost) -> None:
    with small(go):
        container = go.started(*SLEEP)
        with read_only(go):
            assert "log.json: read-only file system" in refused(container, "kill")["kill"]
            assert container.state().status == task_pb2.RUNNING
