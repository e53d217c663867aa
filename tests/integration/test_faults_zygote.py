"""A zygote that is killed, hangs, has been replaced or cannot fork: nobody needs it.

Containers do not notice, and every request is answered within ten seconds: by the monitor that
executes Python itself, and by the launcher that becomes it.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from pyshim.api import task_pb2
from tests.integration import impostor as standing
from tests.integration.containerd import BOUND_S, eventually, parent_of, processes_of
from tests.integration.groups import allow, group
from tests.integration.impostor import HungChildren, impostor
from tests.integration.shim import KILLED, Container, Host, host
from tests.integration.test_catalogue_cleanup import end_zygotes
from tests.integration.test_killed_services import life

__all__ = ["host"]

SLEEP = ("/bin/sleep", "1000")
PROMISE_S = 10
TRIES = 5
RUNNING = task_pb2.RUNNING
Result = TypeVar("Result")


def in_time(act: Callable[[], Result]) -> Result:
    """What ``act`` returns within ten seconds; a loaded machine may need more than one try."""
    for _ in range(TRIES):
        begun = time.monotonic()
        result = act()
        if time.monotonic() - begun < PROMISE_S:
            return result
    raise AssertionError(f"not once in {TRIES} tries within {PROMISE_S} s")


def first_zygotes(host: Host) -> list[int]:
    """The zygotes, without what they have forked."""
    found = host.zygotes()
    return [pid for pid in found if parent_of(pid) not in found]


def path_of_zygote(host: Host) -> Path:
    """Where the zygote listens, which is made to exist."""
    if not list(host.runtime.glob("*.sock")):
        host.started(*SLEEP).end()
    (path,) = host.runtime.glob("*.sock")
    return path


@pytest.fixture(scope="module")
def module_host(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host on which services park soon."""
    made = quick_host(tmp_path_factory, rootfs)
    try:
        yield made
    finally:
        made.end()


def quick_host(homes: pytest.TempPathFactory, rootfs: Path) -> Host:
    """A host on which services park soon."""
    made = Host(homes.mktemp("h"), rootfs)
    made.env["PYSHIM_PARK_DELAY_S"] = "0.05"
    return made


def parked_on(host: Host) -> Container:
    """A running container without a service."""
    container = host.started(*SLEEP)
    eventually(lambda: not host.services(), "the service has parked")
    return container


@pytest.fixture
def parked(host: Host) -> Iterator[Container]:
    """A running container without a service."""
    container = parked_on(host)
    yield container
    container.end()


@contextlib.contextmanager
def answered(parked: Container) -> Iterator[None]:
    """During a fault: by the parked container's monitor, by `start` and by `delete`, all at once.

    What was started is used when the fault is over.
    """
    host = parked.host
    gone = host.bundles / "gone"
    gone.mkdir(exist_ok=True)
    with ThreadPoolExecutor(3) as pool:
        state = pool.submit(in_time, lambda: parked.state(timeout_s=BOUND_S).status)
        started = pool.submit(in_time, lambda: host.container(*SLEEP))
        deleted = pool.submit(in_time, lambda: host.act("delete", "gone", "-bundle", str(gone)))
        assert state.result() == RUNNING
        other, done = started.result(), deleted.result()
    assert (done.returncode, done.stderr) == (0, b"")
    assert task_pb2.DeleteResponse.FromString(done.stdout).exit_status == KILLED
    gone.rmdir()
    yield
    other.create()
    other.start()
    other.end()


# --- It is not there -----------------------------------------------------------------------------


def test_killed_at_any_moment(host: Host, tmp_path: Path) -> None:
    chance = random.Random(1)
    done = threading.Event()
    killed: set[int] = set()

    def kill() -> None:
        while not done.wait(chance.uniform(0.02, 0.3)):
            for pid in first_zygotes(host):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)

    thread = threading.Thread(target=kill)
    main = host.started(*SLEEP, pod="killed")
    thread.start()
    names: list[str] = []
    try:
        with ThreadPoolExecutor(4) as pool:
            # On a busy machine it takes long until there is another to kill.
            while len(names) < 8 or len(killed) < 3:
                numbers = range(len(names), len(names) + 8)
                names += pool.map(lambda number: life(host, tmp_path, number), numbers)
    finally:
        done.set()
        thread.join(BOUND_S)
    for name in names:
        assert host.events.whole(name) == [
            *("create", "start", *("exec-added", "exec-started", "exit") * 3, "exit", "delete")
        ]
        assert host.events.exits(name)[-1] == (name, 3)
    main.end()


def test_its_directory_is_deleted(parked: Container) -> None:
    host = parked.host
    old = first_zygotes(host)
    shutil.rmtree(host.runtime)
    with answered(parked):
        pass
    for pid in old:  # nobody finds it any more; else it would end when it is idle
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(list(host.runtime.glob("*.sock"))) == 1, "there is a new one")


# --- It hangs ------------------------------------------------------------------------------------


def stopped(parked: Container) -> None:
    """The zygote is stopped, and goes on later."""
    (zygote,) = first_zygotes(parked.host)
    os.kill(zygote, signal.SIGSTOP)
    try:
        with answered(parked):
            os.kill(zygote, signal.SIGCONT)
    finally:
        os.kill(zygote, signal.SIGCONT)
    eventually(lambda: first_zygotes(parked.host) == [zygote], "it goes on")
    assert parked.state().status == RUNNING


def children_that_have_begun(parked: Container) -> None:
    """They are killed, since one might go on in the middle of what is then done without it."""
    path = path_of_zygote(parked.host)
    end_zygotes(parked.host)
    children = HungChildren()
    try:
        with impostor(path, children) as found, answered(parked):
            found.close()
    finally:
        ends = children.end()
    # Monitors have asked too; they end no child, since a service shows itself by its HELLO.
    assert ends.count(-signal.SIGKILL) >= 2


def a_child_that_cannot_be_ended(parked: Container) -> None:
    """It may go on: then nothing can be done without it, and that is said."""
    end_zygotes(parked.host)
    bundle = parked.host.bundles / "refused"
    bundle.mkdir()
    (bundle / "config.json").write_text("{}")
    path = path_of_zygote(parked.host)
    with impostor(path, standing.no_descriptor):
        done = in_time(lambda: parked.host.act("start", "refused"))
    said = "a child of the zygote neither answers nor ends when killed; end the zygote"
    text = f"containerd-shim-pyshim-v2: {said} ({path}) and try again\n"
    assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", text)
    shutil.rmtree(bundle)


def a_silent_impostor(parked: Container) -> None:
    """Somebody listens, and keeps all that he is sent."""
    end_zygotes(parked.host)
    with impostor(path_of_zygote(parked.host), standing.silent) as found, answered(parked):
        found.close()
    assert len(found.heard) >= 3


def out_of_descriptors(parked: Container) -> None:
    """Those who wait in its queue give up; it does not spin meanwhile."""
    (zygote,) = first_zygotes(parked.host)
    limits = allow(zygote, 0)
    try:
        with answered(parked):
            naps = sleeps_of(zygote)
            eventually(lambda: sleeps_of(zygote) > naps + 3, "it sleeps between its tries")
            resource.prlimit(zygote, resource.RLIMIT_NOFILE, limits)
    finally:
        resource.prlimit(zygote, resource.RLIMIT_NOFILE, limits)
    eventually(lambda: served_by(parked, zygote), "it forks again")


def sleeps_of(pid: int) -> int:
    """How often a process has given up the processor by itself (proc(5))."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches:"):
            return int(line.split()[1])
    return 0


HANGING = (
    stopped,
    children_that_have_begun,
    a_child_that_cannot_be_ended,
    a_silent_impostor,
    out_of_descriptors,
)


def test_whatever_hangs(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """All at once, on hosts of their own: each takes as long as a monitor's patience, 5 s."""

    def suffer(fault: Callable[[Container], None]) -> None:
        made = quick_host(tmp_path_factory, rootfs)
        try:
            parked = parked_on(made)
            fault(parked)
            parked.end()
            made.nothing_left()
        finally:
            made.end()

    with ThreadPoolExecutor(len(HANGING)) as pool:
        list(pool.map(suffer, HANGING))


# --- It is somebody else -------------------------------------------------------------------------

IMPOSTORS = {
    "garbage": standing.garbage,
    "hangs up": standing.hangs_up,
    "wrong descriptors": standing.wrong_descriptors,
}


@pytest.mark.parametrize("kind", IMPOSTORS)
def test_an_impostor(parked: Container, kind: str) -> None:
    end_zygotes(parked.host)
    path = path_of_zygote(parked.host)
    with impostor(path, IMPOSTORS[kind], keeps=False) as found, answered(parked):
        found.close()
    assert len(found.heard) >= 3


def test_an_impostor_of_another_user(parked: Container) -> None:
    """It is told nothing: what a zygote hears are environments and all that a monitor holds."""
    end_zygotes(parked.host)
    path = path_of_zygote(parked.host)
    with impostor(path, standing.silent, standing.NOBODY) as found, answered(parked):
        assert found.connected.is_set()
    assert found.heard == []


@pytest.mark.parametrize("kind", ["file", "folder", "stream", "nobody listens"])
def test_no_zygote_at_its_socket(parked: Container, kind: str) -> None:
    host = parked.host
    end_zygotes(host)
    path = path_of_zygote(host)
    path.unlink()
    with contextlib.ExitStack() as kept:
        if kind == "file":
            path.write_text("no socket\n")
        elif kind == "folder":
            path.mkdir()
        else:
            stream = kept.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            stream.bind(str(path))
            if kind == "stream":
                stream.listen()
        with answered(parked):
            if kind == "folder":
                path.rmdir()
    eventually(lambda: path.is_socket() and first_zygotes(host), "there is a zygote again")


# --- It cannot fork ------------------------------------------------------------------------------


def test_out_of_processes(parked: Container) -> None:
    (zygote,) = first_zygotes(parked.host)
    with group("pids") as full:
        full.add(zygote)
        full.limit(1)
        with answered(parked):
            assert first_zygotes(parked.host) == [zygote]
            full.limit(None)
        eventually(lambda: served_by(parked, zygote), "it forks again")


def served_by(parked: Container, zygote: int) -> bool:
    """Whether a service for ``parked`` is a child of ``zygote`` now."""
    parked.state()
    return any(parent_of(pid) == zygote for pid in processes_of(parked.host.home))
