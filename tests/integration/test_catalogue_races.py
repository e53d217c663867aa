"""The known bugs of shims that are races between start and exit: shim.md 3.1, by their numbers.

All of 1 to 20 apply.  Where the catalogue measures time, a test here shows instead that what must
not wait does not: it happens while that which it might wait for cannot go on.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from pyshim.api import task_pb2
from pyshim.ttrpc.status import Code, StatusError

from .conftest import BOUND_S, eventually, processes_of, scripts
from .fake_runtime import Gate, fake_runtime
from .shim import (
    KILLED,
    SERVICE,
    Container,
    Host,
    host,
    module_host,
    without_pid_namespace,
)

__all__ = ["host", "module_host"]

Reply = TypeVar("Reply", bound=Message)
TRUE = "/bin/true"
SLEEP = ("/bin/sleep", "1000")
TASK_STATE_TIMEOUT_S = 2  # containerd's
MIB = 1024 * 1024


def send_start(container: Container, exec_id: str) -> int:
    """Begins a Start."""
    return container.send("Start", task_pb2.StartRequest(id=container.name, exec_id=exec_id))


def start_all(container: Container, exec_ids: Sequence[str]) -> dict[str, StatusError | None]:
    """Starts execs at once; what became of each."""
    streams = {exec_id: send_start(container, exec_id) for exec_id in exec_ids}
    found: dict[str, StatusError | None] = {}
    for exec_id, stream in streams.items():
        found[exec_id] = None
        try:
            container.receive(stream, task_pb2.StartResponse)
        except StatusError as error:
            found[exec_id] = error
    return found


def statuses(container: Container, exec_ids: Sequence[str]) -> list[int]:
    """The exit statuses of execs that run, waited for at once."""
    streams = [container.send_wait(exec_id) for exec_id in exec_ids]
    return [container.receive(stream, task_pb2.WaitResponse).exit_status for stream in streams]


def is_gone(pid: int) -> bool:
    """Whether a process has been reaped."""
    return not Path(f"/proc/{pid}").exists()


def in_order(topics: list[str]) -> bool:
    """Whether these are all the events of a container without execs."""
    return topics == ["create", "start", "exit", "delete"]


def test_01_exits_of_execs_come_before_the_inits(host: Host) -> None:
    for _ in range(20):
        container = host.started("/bin/busybox", "usleep", "45000")
        names = []
        with contextlib.suppress(StatusError):  # the init may have gone by now
            for number in range(8):
                container.exec(f"e{number}", TRUE)
                names.append(f"e{number}")
        started = [name for name, error in start_all(container, names).items() if error is None]
        assert set(statuses(container, started)) <= {0, KILLED}
        assert container.wait().exit_status == 0
        container.finish()
        exits = [name for name, _ in host.events.exits(container.name)]
        assert sorted(exits[:-1]) == sorted(started)
        assert exits[-1] == container.name


@pytest.mark.parametrize("when", ["before", "after"])
def test_02_an_exec_that_starts_while_the_init_dies(host: Host, tmp_path: Path, when: str) -> None:
    gate = Gate(tmp_path)
    runtime = fake_runtime(tmp_path, **{f"{when}_exec": gate.text})
    container = host.started(*SLEEP, runtime=runtime)
    container.exec("e", *SLEEP)
    start = send_start(container, "e")
    eventually(gate.reached, "the runtime is at the gate")
    pid = container.state().pid
    container.kill()
    eventually(lambda: is_gone(pid), "the init has gone")
    gate.open()
    if when == "before":
        with pytest.raises(StatusError):
            container.receive(start, task_pb2.StartResponse)
        assert container.wait("e").exit_status == 0  # as the Go shim: it never ran
    else:
        assert container.receive(start, task_pb2.StartResponse).pid > 0
        assert container.wait("e").exit_status == KILLED
    assert container.wait().exit_status == KILLED
    with pytest.raises(StatusError):
        container.exec("late", TRUE)
    container.finish()
    expected = [(container.name, KILLED)] if when == "before" else [("e", KILLED)]
    assert host.events.exits(container.name)[0] == expected[0]
    assert host.events.exits(container.name)[-1] == (container.name, KILLED)
    assert ("exec-started" in host.events.topics(container.name)) == (when == "after")


def test_02_an_exec_is_not_started_after_the_inits_exit(host: Host) -> None:
    container = host.started(*SLEEP)
    container.exec("e", TRUE)
    container.kill()
    container.wait()
    with pytest.raises(StatusError) as caught:
        container.start("e")
    assert caught.value.code == Code.FAILED_PRECONDITION
    container.finish()


@pytest.mark.parametrize("wait", ["", "while test -d /proc/$(cat init.pid); do :; done"])
def test_03_an_init_that_dies_while_it_is_created(host: Host, tmp_path: Path, wait: str) -> None:
    hook = f"kill -9 $(cat init.pid)\n{wait}"
    container = host.container(*SLEEP)
    container.create(runtime=fake_runtime(tmp_path, after_create=hook))
    assert container.wait().exit_status == KILLED
    state = container.state()
    assert (state.status, state.exit_status) == (task_pb2.STOPPED, KILLED)
    with pytest.raises(StatusError):
        container.start()
    assert container.finish().exit_status == KILLED
    assert host.events.whole(container.name) == ["create", "exit", "delete"]


def test_04_no_exit_comes_before_its_start(host: Host) -> None:
    def one(_number: int) -> str:
        container = host.started(TRUE)
        container.wait()
        container.finish()
        return container.name

    with ThreadPoolExecutor(4) as pool:
        names = list(pool.map(one, range(200)))
    assert all(in_order(host.events.whole(name)) for name in names)


def test_05_execs_do_not_wait_for_each_other(host: Host, tmp_path: Path) -> None:
    """Each is let through when all have come: one that waited for another would wait for ever."""
    gate = Gate(tmp_path)
    container = host.started(*SLEEP, runtime=fake_runtime(tmp_path, before_exec=gate.text))
    names = [f"e{number}" for number in range(50)]
    for name in names:
        container.exec(name, TRUE)
    streams = [send_start(container, name) for name in names]
    eventually(lambda: gate.reached() == len(names), "all execs are at the gate")
    gate.open()
    assert len({container.receive(s, task_pb2.StartResponse).pid for s in streams}) == len(names)
    assert statuses(container, names) == [0] * len(names)
    container.end()


def test_06_other_containers_are_served_while_one_is_created(host: Host, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    first = host.started(*SLEEP, pod="six")
    second = host.container(*SLEEP, pod="six")
    runtime = fake_runtime(tmp_path, before_create=gate.text)
    create = second.send("Create", second.create_request(runtime=runtime))
    eventually(gate.reached, "the runtime is at the gate")
    assert first.state(timeout_s=TASK_STATE_TIMEOUT_S).status == task_pb2.RUNNING
    assert first.run("e", TRUE) == 0
    request = task_pb2.StateRequest(id=second.name)
    with pytest.raises(StatusError) as caught:
        first.call("State", request, task_pb2.StateResponse, TASK_STATE_TIMEOUT_S)
    assert caught.value.code == Code.NOT_FOUND
    gate.open()
    assert second.receive(create, task_pb2.CreateTaskResponse).pid > 0
    second.start()
    second.end()
    first.end()


def test_07_one_of_many_execs_with_the_same_id_wins(host: Host) -> None:
    container = host.started(*SLEEP)
    clients = [container.connect() for _ in range(20)]
    request = container.exec_request("same", TRUE)
    sent = [(client, client.send(SERVICE, "Exec", request)) for client in clients]
    codes = []
    for client, stream in sent:
        try:
            client.receive(stream, BOUND_S)
            codes.append(0)
        except StatusError as error:
            codes.append(error.code)
        client.close()
    assert sorted(codes) == [0] + [Code.ALREADY_EXISTS] * (len(clients) - 1)
    container.start("same")
    assert container.wait("same").exit_status == 0
    container.end()


def test_08_a_terminal_that_ends_at_once(host: Host) -> None:
    keeper = host.started(*SLEEP, pod="eight")
    before = host.holdings()
    for _ in range(20):
        container = host.started(TRUE, pod="eight", terminal=True, edit=with_terminal)
        assert container.wait().exit_status == 0
        container.finish()
    assert host.holdings() == before
    keeper.end()


def with_terminal(spec: dict[str, Any]) -> None:
    """A container whose init has a terminal."""
    spec["process"]["terminal"] = True


def test_09_what_has_exited_is_not_running(host: Host) -> None:
    for number in range(1, 31):
        container = host.started("/bin/sh", "-c", f"exit {number}")
        assert container.wait().exit_status == number
        state = container.state()
        assert (state.status, state.exit_status) == (task_pb2.STOPPED, number)
        assert state.exited_at.seconds > 0
        assert container.finish().exit_status == number


@pytest.mark.parametrize("action", ["kill", "update"])
def test_10_an_exit_is_seen_while_a_command_hangs(host: Host, tmp_path: Path, action: str) -> None:
    gate = Gate(tmp_path)
    runtime = fake_runtime(tmp_path, **{f"before_{action}": gate.text})
    container = host.started(*SLEEP, runtime=runtime)
    pid = container.state().pid
    if action == "kill":
        stream = container.send("Kill", task_pb2.KillRequest(id=container.name, signal=9, all=True))
    else:
        stream = container.send("Update", update_request(container))
    eventually(gate.reached, "the runtime is at the gate")
    os.kill(pid, signal.SIGKILL)
    assert container.wait().exit_status == KILLED
    assert container.state(timeout_s=TASK_STATE_TIMEOUT_S).status == task_pb2.STOPPED
    gate.open()
    with contextlib.suppress(StatusError):  # what the runtime makes of it is the runtime's affair
        container.receive(stream, Empty)
    with pytest.raises(StatusError):
        container.call("Update", update_request(container), Empty)
    container.finish()
    assert host.events.exits(container.name) == [(container.name, KILLED)]


def update_request(container: Container) -> task_pb2.UpdateTaskRequest:
    """An Update that allows more processes."""
    request = task_pb2.UpdateTaskRequest(id=container.name)
    request.resources.value = json.dumps({"pids": {"limit": 1000}}).encode()
    return request


def test_10_a_storm_of_kills_updates_and_exits(host: Host) -> None:
    for _ in range(5):
        container = host.started(*SLEEP)
        names = [f"e{number}" for number in range(10)]
        for name in names:
            container.exec(name, *SLEEP)
        assert set(start_all(container, names).values()) == {None}
        kills = [
            container.send("Kill", task_pb2.KillRequest(id=container.name, exec_id=name, signal=9))
            for name in [*names, "", *names]
        ]
        updates = [container.send("Update", update_request(container)) for _ in range(5)]
        assert statuses(container, [*names, ""]) == [KILLED] * (len(names) + 1)
        for stream in [*kills, *updates]:
            with contextlib.suppress(StatusError):
                container.receive(stream, Empty)
        container.finish()
        exits = host.events.exits(container.name)
        assert sorted(exits) == sorted((name, KILLED) for name in [*names, container.name])
        assert exits[-1][0] == container.name


def test_11_a_kill_and_a_delete_give_one_exit(host: Host) -> None:
    """The monitor has ended only when everything has been published."""
    for started in (True, False):
        container = host.container(*SLEEP)
        container.create()
        if started:
            container.start()
            container.kill()
            container.wait()
        container.finish()
        eventually(lambda: not host.monitors(), "the monitor has ended")
        assert host.events.exits(container.name) == [(container.name, KILLED)]
        assert host.events.whole(container.name)[-2:] == ["exit", "delete"]


def test_12_what_never_ran_has_no_exit(host: Host) -> None:
    container = host.container("/no/such/program")
    with pytest.raises(StatusError, match="/no/such/program"):
        container.create()
    container.leave()
    other = host.started(*SLEEP)
    other.exec("e", "/no/such/program")
    waiting = other.send_wait("e")
    with pytest.raises(StatusError, match="/no/such/program"):
        other.start("e")
    assert other.receive(waiting, task_pb2.WaitResponse).exit_status == 0
    other.delete("e")
    other.end()
    eventually(lambda: not host.monitors(), "the monitors have ended")
    assert host.events.of(container.name) == []
    assert host.events.exits(other.name) == [(other.name, KILLED)]


@pytest.fixture
def small_host(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with pids of its own, which ``reuse_pids`` lets come round again."""
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with subprocess.Popen([*command, scripts() / "pyinit", "--", *SLEEP]) as first:
        try:
            children = Path(f"/proc/{first.pid}/task/{first.pid}/children")
            eventually(children.read_text, "the first process is there")
            pid = children.read_text().strip()
            eventually(lambda: b"pyinit" in Path(f"/proc/{pid}/cmdline").read_bytes(), "pyinit")
            enter = ("nsenter", "--target", pid, "--pid", "--mount")
            found = Host(tmp_path_factory.mktemp("h"), rootfs, enter)
            try:
                yield found
                found.nothing_left()
            finally:
                found.end()
        finally:
            first.kill()


def reuse_pids(host: Host, next_pid: int) -> None:
    """The next process gets ``next_pid``, or the first number after it that is free."""
    script = f"echo {next_pid - 1} >/proc/sys/kernel/ns_last_pid"
    subprocess.run([*host.prefix, "sh", "-c", script], check=True, timeout=BOUND_S)


def test_13_exits_belong_to_their_processes_when_pids_are_used_again(small_host: Host) -> None:
    container = small_host.started(*SLEEP)
    pids = set()
    for number in range(40):
        names = [f"e{number}.{part}" for part in range(3)]
        for part, name in enumerate(names):
            container.exec(name, "/bin/sh", "-c", f"exit {3 * number + part}")
        reuse_pids(small_host, 1000)
        assert set(start_all(container, names).values()) == {None}
        assert statuses(container, names) == [3 * number + part for part in range(3)]
        pids |= {container.delete(name).pid for name in names}
    assert len(pids) < 120, "no pid was used twice"
    container.end()


def test_14_every_wait_has_the_same_answer(host: Host) -> None:
    container = host.started("/bin/sh", "-c", "trap 'exit 4' TERM; sleep 1000 & wait")
    container.exec("e", "/bin/sh", "-c", "trap 'exit 3' TERM; sleep 1000 & wait")
    container.start("e")
    for exec_id, status in (("e", 3), ("", 4)):
        waiting = [container.send_wait(exec_id) for _ in range(2)]
        eventually(lambda: not host.services(), "the service has parked")
        container.kill(signal.SIGTERM, exec_id)
        answers = [container.receive(stream, task_pb2.WaitResponse) for stream in waiting]
        answers += [container.wait(exec_id) for _ in range(2)]
        assert {answer.exit_status for answer in answers} == {status}
        assert len({answer.SerializeToString() for answer in answers}) == 1
    container.finish()


def test_15_orphans_do_not_disturb_the_runtimes_commands(host: Host) -> None:
    """Without a pid namespace all that is orphaned becomes the monitor's child."""
    container = host.started(*SLEEP, edit=without_pid_namespace)
    orphans = "for i in 1 2 3 4 5 6 7 8 9; do (true & true &) & done"
    names = [f"e{number}" for number in range(1, 41)]
    for number, name in enumerate(names, 1):
        container.exec(name, "/bin/sh", "-c", f"{orphans}; exit {number}")
    updates = [container.send("Update", update_request(container)) for _ in range(10)]
    assert set(start_all(container, names).values()) == {None}
    assert statuses(container, names) == list(range(1, 41))
    assert [container.receive(stream, Empty) for stream in updates] == [Empty()] * 10
    for name in names:
        container.delete(name)
    (monitor,) = host.monitors()
    eventually(lambda: zombies_of(monitor) == [], "all orphans have been reaped")
    container.end()


def zombies_of(parent: int) -> list[int]:
    """The children of ``parent`` that nobody has waited for."""
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    found = []
    for pid in map(int, text.split()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                found.append(pid)
    return found


def test_16_rounds_of_many_execs(host: Host) -> None:
    container = host.started(*SLEEP)
    for round_number in range(10):
        names = [f"e{round_number}.{number}" for number in range(20)]
        for number, name in enumerate(names):
            container.exec(name, "/bin/sh", "-c", f"exit {number}")
        assert set(start_all(container, names).values()) == {None}
        assert statuses(container, names) == list(range(20))
        for name in names:
            container.delete(name)
    container.end()
    assert len(host.events.exits(container.name)) == 201


@pytest.mark.parametrize("slow", [False, True])
def test_17_a_pod_that_is_killed_at_once(host: Host, slow: bool) -> None:
    """Also while nobody takes the events: who asks learns of the exits all the same."""
    with ThreadPoolExecutor(4) as pool:
        pod = list(pool.map(lambda _: host.started(*SLEEP, pod=f"17{slow}"), range(50)))
    if slow:
        host.events.block()
    try:
        waits = [container.send_wait() for container in pod]
        for container in pod:
            os.kill(container.state().pid, signal.SIGKILL)
        for container, stream in zip(pod, waits, strict=True):
            assert container.receive(stream, task_pb2.WaitResponse).exit_status == KILLED
            assert container.state().status == task_pb2.STOPPED
    finally:
        host.events.unblock()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Container.finish, pod))
    for container in pod:
        assert in_order(host.events.whole(container.name))


def sharing_pids_of(pid: int, limit: int = 0) -> Callable[[dict[str, Any]], None]:
    """A container in the pid namespace of ``pid``, with a limit of memory."""

    def edit(spec: dict[str, Any]) -> None:
        for space in spec["linux"]["namespaces"]:
            if space["type"] == "pid":
                space["path"] = f"/proc/{pid}/ns/pid"
        if limit:
            spec["linux"]["resources"]["memory"] = {"limit": limit}

    return edit


def test_18_memory_runs_out_in_a_pod_that_shares_its_pids(host: Host) -> None:
    first = host.started(*SLEEP, pod="eighteen")
    names = [f"e{number}" for number in range(10)]
    edit = sharing_pids_of(first.state().pid, 16 * MIB)
    eaters = [host.container("/bin/tail", "/dev/zero", pod="eighteen", edit=edit) for _ in range(5)]
    for container in eaters:
        container.create()
    for name in names:
        first.exec(name, TRUE)
    execs = [send_start(first, name) for name in names]
    starts = [(container, send_start(container, "")) for container in eaters]
    for container, stream in starts:
        container.receive(stream, task_pb2.StartResponse)
        assert container.wait().exit_status == KILLED
    for stream in execs:
        first.receive(stream, task_pb2.StartResponse)
    assert statuses(first, names) == [0] * len(names)
    for container in eaters:
        container.finish()
        topics = host.events.whole(container.name)
        # The kernel may look for a victim once more while the first one dies.
        assert list(dict.fromkeys(topics)) == ["create", "start", "oom", "exit", "delete"]
        assert len(topics) == 4 + topics.count("oom")
    first.end()


@contextlib.contextmanager
def subreaper() -> Iterator[None]:
    """Whatever is orphaned meanwhile becomes our child, so that its exit code can be seen."""
    libc = ctypes.CDLL(None)
    pr_set_child_subreaper = 36
    assert libc.prctl(pr_set_child_subreaper, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        assert libc.prctl(pr_set_child_subreaper, 0, 0, 0, 0) == 0


def test_19_a_shutdown_among_exits(host: Host) -> None:
    first = host.started(TRUE)  # there is a zygote from now on, which is not to be our child
    first.wait()
    first.finish()
    for _ in range(20):
        with subreaper():
            pod = [host.started(TRUE, pod="nineteen") for _ in range(2)]
        (monitor,) = host.monitors()
        others = [pod[0].connect() for _ in range(4)]
        request = task_pb2.ShutdownRequest(id=pod[0].name)
        streams = [other.send(SERVICE, "Shutdown", request) for other in others]
        for other, stream in zip(others, streams, strict=True):
            assert other.receive(stream, BOUND_S) == b""
            other.close()
        for container in pod:
            assert container.wait().exit_status == 0
            container.finish()
        assert os.waitpid(monitor, 0) == (monitor, 0)
        assert all(in_order(host.events.whole(container.name)) for container in pod)


def sleepers(host: Host) -> list[int]:
    """The pids of all `sleep` in containers."""
    return [pid for pid, line in processes_of(host.home).items() if "sleep 1000" in line]


@pytest.mark.parametrize("who", ["init", "exec"])
def test_20_nothing_outlives_the_init_without_a_pid_namespace(host: Host, who: str) -> None:
    script = "sleep 1000 & (/bin/busybox setsid sleep 1000 &); exit 5"
    if who == "init":
        container = host.started("/bin/sh", "-c", script, edit=without_pid_namespace)
        assert container.wait().exit_status == 5
    else:
        container = host.started(*SLEEP, edit=without_pid_namespace)
        assert container.run("e", "/bin/sh", "-c", script) == 5
        eventually(lambda: len(sleepers(host)) == 3, "the exec's children outlive it")
        os.kill(container.state().pid, signal.SIGKILL)
        assert container.wait().exit_status == KILLED
    eventually(lambda: sleepers(host) == [], "nothing is left in the container")
    container.finish()
