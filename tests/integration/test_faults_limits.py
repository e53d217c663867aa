"""No descriptors, processes or memory are left: what cannot be done says so; nothing is lost."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from pyshim.api import task_pb2
from pyshim.ttrpc.status import StatusError
from tests.integration.containerd import BOUND_S, eventually, scripts
from tests.integration.fake_runtime import Gate, fake_runtime
from tests.integration.fifos import Reader, fifo
from tests.integration.goshim import GoHost, go, module_go
from tests.integration.groups import Group, allow, group
from tests.integration.shim import KILLED, Container, Host, host, module_host
from tests.integration.test_catalogue_cleanup import end_zygotes
from tests.integration.test_catalogue_races import update_request, zombies_of
from tests.integration.test_faults_zygote import path_of_zygote

__all__ = ["go", "host", "module_go", "module_host"]

SLEEP = ("/bin/sleep", "1000")
MIB = 1 << 20
LIMIT, SPARE = 1200, 128  # of descriptors; what a monitor keeps for other things


def limited(soft: int, hard: int | None = None) -> tuple[str, ...]:
    """The command that executes its arguments with so many descriptors."""
    both = f"ulimit -Sn {soft} && ulimit -Hn {hard}" if hard else f"ulimit -Sn {soft}"
    return ("sh", "-c", f'{both} && exec "$@"', "sh")


# --- Descriptors ---------------------------------------------------------------------------------


def test_a_launcher_with_few_descriptors(host: Host) -> None:
    """It answers, or says in one line why not."""
    container = host.container(*SLEEP)
    container.client.close()
    program = str(scripts() / "containerd-shim-pyshim-v2")
    arguments = ["-namespace", host.namespace, "-address", str(host.home / "grpc")]
    arguments += ["-publish-binary", "/bin/true", "-id", container.name, "start"]
    outcomes = set()
    for few in (3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 24, 48):
        done = subprocess.run(
            [*limited(few), program, *arguments],
            cwd=container.bundle,
            env=host.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
        )
        outcomes.add(done.returncode)
        if done.returncode == 0:
            assert (done.stdout, done.stderr) == (container.address, "")
        else:
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.startswith("containerd-shim-pyshim-v2: ")
            assert done.stderr.count("\n") == 1
    assert outcomes == {0, 1}
    container.client = container.connect()
    container.create()
    container.start()
    container.end()


def test_a_service_with_few_descriptors(host: Host) -> None:
    """Each exec is done or refused, and no descriptor is lost on the way."""
    container = host.started(*SLEEP)
    before = host.holdings()
    for more in (0, 1, 2, 3, 4, 6, 9):
        container.exec(f"e{more}", "/bin/sh", "-c", f"exit {more}")
        for pid in host.services()[:1]:
            with contextlib.suppress(OSError):
                allow(pid, more)
        try:
            container.start(f"e{more}")
        except StatusError as error:
            assert "Too many open files" in error.message
        else:
            assert container.wait(f"e{more}").exit_status == more
        container.delete(f"e{more}")
    assert host.holdings() == before
    container.end()


def test_the_go_shim_with_few_descriptors(go: GoHost) -> None:
    """The same: what cannot be done says so, and it goes on."""
    container = go.started(*SLEEP)
    (shim,) = go.monitors()
    container.exec("e", "/bin/sh", "-c", "exit 3")
    limits = allow(shim, 0)
    with pytest.raises(StatusError, match="too many open files"):
        container.start("e")
    resource.prlimit(shim, resource.RLIMIT_NOFILE, limits)
    container.delete("e")
    assert container.run("f", "/bin/sh", "-c", "exit 4") == 4


def test_a_monitor_without_descriptors(host: Host) -> None:
    """What a service sends then is lost; another does it, once there are some."""
    container = host.started(*SLEEP)
    (monitor,) = host.monitors()
    container.exec("e", "/bin/sh", "-c", "exit 3")
    limits = allow(monitor, 0)
    stream = container.send("Start", task_pb2.StartRequest(id=container.name, exec_id="e"))
    eventually(lambda: not host.services(), "there is no service")
    resource.prlimit(monitor, resource.RLIMIT_NOFILE, limits)
    assert container.receive(stream, task_pb2.StartResponse).pid > 0
    assert container.wait("e").exit_status == 3
    container.delete("e")
    container.end()


class Talk:
    """What a process that repeats what it hears, and then counts on stderr, is connected to."""

    COMMAND = ("/bin/sh", "-c", "cat; seq 1 2000 >&2; exit 5")

    def __init__(self, folder: Path) -> None:
        self.stdin = fifo(folder / "in")
        self.stdout, self.stderr = Reader(folder / "out"), Reader(folder / "err")

    def hold(self, container: Container, exec_id: str = "") -> None:
        """Talks with what runs, to its end; all must come."""
        with self.stdin.open("wb") as writer:
            writer.write(b"a word\n")
        request = task_pb2.CloseIORequest(id=container.name, exec_id=exec_id, stdin=True)
        container.call("CloseIO", request, Empty)
        assert container.wait(exec_id).exit_status == 5
        container.delete(exec_id)
        assert self.stdout.all() == b"a word\n"
        assert self.stderr.all() == b"".join(b"%d\n" % number for number in range(1, 2001))


def answered(container: Container, stream: int, gate: Gate, few: int) -> None:
    """Lets a runtime end while its monitor can open but a ``few``; the call must go well."""
    eventually(gate.reached, "the runtime is at work")
    (monitor,) = container.host.monitors()
    limits = allow(monitor, few)
    try:
        gate.open()
        with contextlib.suppress(TimeoutError):  # they do not suffice
            container.client.receive(stream, 1)
            return
    finally:
        resource.prlimit(monitor, resource.RLIMIT_NOFILE, limits)
    container.client.receive(stream, BOUND_S)


@pytest.mark.parametrize("few", range(10))
def test_no_stream_is_lost_for_want_of_a_descriptor(host: Host, tmp_path: Path, few: int) -> None:
    """However few are left when a runtime has done its work, its process has its streams."""
    folders = [tmp_path / name for name in ("c", "e")]
    for folder in folders:
        folder.mkdir()
    creating, starting = (Gate(folder) for folder in folders)
    first, second = (Talk(folder) for folder in folders)
    container = host.container(*Talk.COMMAND)
    request = container.create_request(
        stdin=first.stdin,
        stdout=first.stdout.path,
        stderr=first.stderr.path,
        runtime=fake_runtime(tmp_path, after_create=creating.text, after_exec=starting.text),
    )
    answered(container, container.send("Create", request), creating, few)
    container.start()
    container.exec(
        "e",
        *Talk.COMMAND,
        stdin=second.stdin,
        stdout=second.stdout.path,
        stderr=second.stderr.path,
    )
    start = task_pb2.StartRequest(id=container.name, exec_id="e")
    answered(container, container.send("Start", start), starting, few)
    second.hold(container, "e")
    first.hold(container)
    container.leave()


def test_a_monitor_with_too_many_connections(host: Host) -> None:
    """It keeps some descriptors for what those ask for that it has accepted."""
    host.prefix = limited(LIMIT, LIMIT)
    try:
        container = host.container(*SLEEP)
    finally:
        host.prefix = ()
    (monitor,) = host.monitors()
    with contextlib.ExitStack() as kept:

        def crowded() -> bool:
            with contextlib.suppress(BlockingIOError):  # the queue is full
                for _ in range(SPARE):
                    kept.enter_context(container.connect())
            return len(os.listdir(f"/proc/{monitor}/fd")) >= LIMIT - SPARE

        eventually(crowded, "the monitor takes no more connections")
        container.create()
        container.start()
        assert container.run("e", "/bin/sh", "-c", "exit 3") == 3
    container.end()


# --- Processes -----------------------------------------------------------------------------------


def tried(call: Callable[[], object]) -> str:
    """The message of a call's error; "" when there is none."""
    try:
        call()
    except StatusError as error:
        return error.message
    except OSError as error:
        return type(error).__name__
    return ""


def without_processes(container: Container, full: Group) -> dict[str, str]:
    """What calls say while nothing can be forked."""
    container.exec("e", *SLEEP)
    full.limit(full.present())
    found = {
        "start": tried(lambda: container.start("e")),
        "state": tried(container.state),
        "kill": tried(container.kill),
    }
    if not found["kill"]:
        container.wait()
        found["delete"] = tried(container.delete)
    full.limit(None)
    return found


def test_no_process_for_the_runtime(host: Host) -> None:
    container = host.started(*SLEEP)
    (monitor,) = host.monitors()
    with group("pids") as full:
        full.add(monitor)
        found = without_processes(container, full)
        text = "cannot run the OCI runtime runc: Resource temporarily unavailable; "
        text += "the shim's cgroup or user has no processes left; try again"
        assert found == {"start": text, "state": "", "kill": "", "delete": text}
        container.finish()
    assert host.events.exits(container.name) == [(container.name, KILLED)]


def test_the_go_shim_kills_nothing_without_a_process(go: GoHost) -> None:
    """It needs a runtime's command for it, or even dies for want of a thread."""
    container = go.started(*SLEEP)
    pid = container.state().pid
    (shim,) = go.monitors()
    with group("pids") as full:
        full.add(shim)
        assert without_processes(container, full)["kill"]
        assert os.path.exists(f"/proc/{pid}")


def test_a_runtime_that_cannot_fork(host: Host) -> None:
    """It is started and then fails: that is an error as any other."""
    container = host.started(*SLEEP)
    (monitor,) = host.monitors()
    with group("pids") as full:
        full.add(monitor)
        container.exec("e", "/bin/sh", "-c", "exit 3")
        full.limit(full.present() + 2)
        assert "OCI runtime exec failed" in tried(lambda: container.start("e"))
        full.limit(None)
        container.delete("e")
        assert container.run("e", "/bin/sh", "-c", "exit 3") == 3
        container.end()


def test_no_process_for_a_service(host: Host) -> None:
    """There is no zygote either: who asks is answered as soon as one can be had."""
    container = host.started(*SLEEP)
    eventually(lambda: not host.services(), "the service has parked")
    (monitor,) = host.monitors()
    path = path_of_zygote(host)
    end_zygotes(host)
    path.unlink()
    with group("pids") as full:
        full.add(monitor)
        full.limit(1)
        stream = container.send("State", task_pb2.StateRequest(id=container.name))
        with pytest.raises(TimeoutError):
            container.client.receive(stream, 1)
        full.limit(None)
        assert container.receive(stream, task_pb2.StateResponse).status == task_pb2.RUNNING
        container.end()
        eventually(path.is_socket, "there is a zygote again")


# --- Memory --------------------------------------------------------------------------------------


def test_no_memory_for_a_service(host: Host) -> None:
    """The kernel ends what is big, which is the service; not the monitor and its container."""
    container = host.started(*SLEEP)
    eventually(lambda: not host.services(), "the service has parked")
    (monitor,) = host.monitors()
    path = path_of_zygote(host)
    end_zygotes(host)
    path.unlink()
    with group("memory") as small:
        small.add(monitor)
        small.limit(4 * MIB)
        stream = container.send("State", task_pb2.StateRequest(id=container.name))
        eventually(lambda: small.kills() > 0, "the kernel has ended a service")
        small.limit(None)
        state = container.receive(stream, task_pb2.StateResponse)
        assert state.status == task_pb2.RUNNING
        assert host.monitors() == [monitor]
        container.end()
        eventually(path.is_socket, "there is a zygote again")


# --- Zombies -------------------------------------------------------------------------------------

ZOMBIES = 10_000
# Its end gives all of them to the monitor; Python would need a millisecond for each.
FORK = """
#include <unistd.h>
int main(void) {
    for (int number = 0; number < ZOMBIES; number++)
        if (fork() == 0) _exit(number);
    return 0;
}
"""


def forker(folder: Path) -> Path:
    """A program that leaves 10,000 children behind, none of which it has waited for."""
    source = folder / "fork.c"
    source.write_text(FORK)
    command = ["gcc", "-static", f"-DZOMBIES={ZOMBIES}", "-o", str(folder / "fork"), str(source)]
    subprocess.run(command, check=True, timeout=BOUND_S)
    return folder / "fork"


def storm(host: Host, folder: Path) -> tuple[list[int], int]:
    """Exit statuses of execs that end while 10,000 zombies come, and how the monitor has grown."""
    container = host.container(*SLEEP)
    container.runtime = fake_runtime(folder, before_update=str(forker(folder)))
    container.create()
    container.start()
    (monitor,) = host.monitors()
    names = [f"e{number}" for number in range(1, 11)]
    for number, name in enumerate(names, 1):
        container.exec(name, "/bin/sh", "-c", f"exit {number}")
    size = memory_of(monitor)
    update = container.send("Update", update_request(container))
    found = []
    for name in names:
        container.start(name)
        found.append(container.wait(name).exit_status)
        container.delete(name)
    container.receive(update, Empty)
    eventually(lambda: zombies_of(monitor) == [], "all have been reaped")
    grown = memory_of(monitor) - size
    container.end()
    return found, grown


def memory_of(pid: int) -> int:
    """The resident set of a process, in bytes (proc(5))."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_ten_thousand_zombies_at_once(host: Host, tmp_path: Path) -> None:
    """Left by a runtime's command; the monitor's table of them is bounded."""
    found, grown = storm(host, tmp_path)
    assert found == list(range(1, 11))
    assert grown < MIB
