"""`pyshim upgrade`: another version takes over containers that run, and they do not notice."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from pyshim.api import task_pb2, upgrade_pb2
from pyshim.ttrpc.status import Code, StatusError
from pyshim.zygote import address
from tests.integration.conftest import BOUND_S, eventually, plain_only
from tests.integration.containerd import Containerd, nothing_left, processes_of
from tests.integration.fake_runtime import Gate, fake_runtime
from tests.integration.fifos import Reader, fifo
from tests.integration.installations import Installation, install, with_broken_service
from tests.integration.shim import KILLED, Container, Host

ONE, TWO, BROKEN = "1" * 16, "2" * 16, "b" * 16
ROUNDS = 10
SLEEP = ("/bin/sleep", "1000")
COUNT = "trap 'echo end $i; exit 7' TERM; i=0; while :; do i=$((i+1)); echo $i; done"
CONTROL = "pyshim.control.v1.Control"
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def one(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The version that the containers are started with."""
    return install(tmp_path_factory.mktemp("one"), ONE, programs)


@pytest.fixture(scope="module")
def two(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The other one."""
    return install(tmp_path_factory.mktemp("two"), TWO, programs)


@pytest.fixture(scope="module")
def module_host(
    one: Installation, rootfs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    """A host whose launcher is that of ``one``."""
    made = Host(tmp_path_factory.mktemp("u"), rootfs)
    made.programs = one.bin
    made.env["PATH"] = f"{one.bin}:{os.environ['PATH']}"
    made.env["PYSHIM_PARK_DELAY_S"] = "0.2"  # much is awaited here that follows it
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def host(module_host: Host) -> Iterator[Host]:
    """A host on which there is nothing before the test and after it."""
    try:
        yield module_host
        end_zygotes(module_host)
        module_host.nothing_left()
    finally:
        module_host.clear()


def end_zygotes(host: Host) -> None:
    """SIGTERM to each zygote, so that the next test finds none; one may be starting just now."""
    told: set[int] = set()

    def ended() -> bool:
        left = set(host.zygotes())
        for pid in left - told:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        told.update(left)
        return not left

    eventually(lambda: not host.services(), "the services have parked")
    eventually(ended, "the zygotes have ended")


def everywhere(host: Host) -> str:
    """The pattern for all containers of ``host`` and nobody else's."""
    return f"{host.bundles}/*"


def take_over(installation: Installation, host: Host) -> list[dict[str, Any]]:
    """Upgrades all containers of ``host``; the records."""
    records = installation.upgraded(everywhere(host), env=host.env)
    for record in records:
        assert record["outcome"] == "upgraded", record
        assert record["to"]["build"] == installation.build
        exe = os.readlink(f"/proc/{record['pid']}/exe")
        assert exe == str(installation.bin / "pyshim-monitor")
    return records


def assert_counted(reader: Reader) -> None:
    """What COUNT has written came, all of it and once."""
    *numbers, end, nothing = reader.all().decode().split("\n")
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    # The signal may come between a number and its line.
    assert end in {f"end {len(numbers)}", f"end {len(numbers) + 1}"}
    assert nothing == ""


def age(pid: int) -> str:
    """When a process began: with its pid what no other ever has."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


class Held:
    """A TCP connection that a process in a container holds, and echoes what comes by it."""

    def __init__(self, container: Container) -> None:
        self.container = container
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            listener.settimeout(BOUND_S)
            port = str(listener.getsockname()[1])
            container.exec("held", "/bin/busybox", "nc", "127.0.0.1", port, "-e", "/bin/cat")
            self.pid = container.start("held")
            self.connection, _ = listener.accept()
        self.connection.settimeout(BOUND_S)

    def echoes(self, data: bytes) -> bool:
        """Whether ``data`` comes back."""
        self.connection.sendall(data)
        got = b""
        while len(got) < len(data):
            part = self.connection.recv(65536)
            if not part:
                return False
            got += part
        return got == data

    def end(self) -> None:
        """Ends it, and the process by that."""
        self.connection.close()
        assert self.container.wait("held").exit_status == 0
        self.container.delete("held")


def on_the_hosts_network(spec: dict[str, Any]) -> None:
    """A container that can reach us."""
    spaces = spec["linux"]["namespaces"]
    spec["linux"]["namespaces"] = [space for space in spaces if space["type"] != "network"]


def in_a_terminal(spec: dict[str, Any]) -> None:
    """A container whose init has one."""
    spec["process"]["terminal"] = True


def test_ten_upgrades_of_a_container_that_counts_and_holds_a_connection(
    host: Host, one: Installation, two: Installation, tmp_path: Path
) -> None:
    reader = Reader(tmp_path / "out", slow_after=0, pause_s=0.002)
    container = host.started("/bin/sh", "-c", COUNT, edit=on_the_hosts_network, stdout=reader.path)
    held = Held(container)
    (monitor,) = host.monitors()
    init = container.state().pid
    pids = {pid: age(pid) for pid in (monitor, init, held.pid)}
    waiting = container.send_wait()
    chance = random.Random(4)
    for number in range(ROUNDS):
        after = one if number % 2 else two
        if number < 2:
            (record,) = take_over(after, host)
            assert record["pid"] == monitor
            assert record["from"]["build"] == (two if number % 2 else one).build
        else:  # what the command does, without the time that its start takes
            assert ask(container, after).build == after.build
        assert os.readlink(f"/proc/{monitor}/exe") == str(after.bin / "pyshim-monitor")
        assert {pid: age(pid) for pid in pids} == pids
        assert held.echoes(chance.randbytes(100_000))
        assert container.state().pid == init
    assert container.run("e", "/bin/sh", "-c", "exit 5") == 5
    held.end()
    container.kill(signal.SIGTERM)
    assert container.receive(waiting, task_pb2.WaitResponse).exit_status == 7
    assert container.finish().exit_status == 7
    assert_counted(reader)
    topics = host.events.whole(container.name)
    assert topics == [
        *("create", "start", *("exec-added", "exec-started") * 2, "exit", "exit", "exit", "delete")
    ]


@plain_only
def test_services_and_zygotes_are_the_new_ones(
    host: Host, one: Installation, two: Installation
) -> None:
    container = host.started(*SLEEP)
    assert container.state().status == task_pb2.RUNNING
    (record,) = take_over(two, host)
    assert (record["from"]["build"], record["to"]["build"]) == (ONE, TWO)
    eventually(lambda: not of(host, one), "the old zygote has ended, and what it had forked")
    assert container.run("e", "/bin/true") == 0
    assert of(host, two)
    assert two.upgraded(everywhere(host), env=host.env)[0]["outcome"] == "current"
    container.end()


def of(host: Host, installation: Installation) -> list[int]:
    """Zygotes and services of an installation."""
    mark = str(installation.bin)
    return [pid for pid, line in processes_of(host.home).items() if line.startswith(f"{mark}/py")]


@plain_only
def test_what_the_command_says(host: Host, one: Installation, two: Installation) -> None:
    done = two.upgrade(everywhere(host), env=host.env)
    assert (done.returncode, done.stdout) == (0, "no such container runs under pyshim\n")
    first, second = host.started(*SLEEP), host.started(*SLEEP)
    old, new = f"0.1.0 ({ONE[:8]})", f"0.1.0 ({TWO[:8]})"
    done = two.upgrade("--dry-run", everywhere(host), env=host.env)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == sorted(
        f"b/{c.name}  {old} -> {new}  pid {monitor_of(host, c)}  would be upgraded"
        for c in (first, second)
    )
    done = two.upgrade(f"{host.bundles}/{first.name}", env=host.env)
    assert (done.returncode, done.stderr) == (0, "")
    pid = monitor_of(host, first)
    assert done.stdout == f"b/{first.name}  {old} -> {new}  pid {pid}  ok\n"
    done = two.upgrade("--jobs", "1", everywhere(host), env=host.env)
    assert f"b/{first.name}  {new}  pid {pid}  current\n" in done.stdout
    assert f"b/{second.name}  {old} -> {new}" in done.stdout
    for container in (first, second):
        container.end()


def monitor_of(host: Host, container: Container) -> int:
    """The pid of a container's monitor, by its working directory."""
    found = [p for p in host.monitors() if os.readlink(f"/proc/{p}/cwd") == str(container.bundle)]
    return found[0]


def test_a_pod_in_the_middle_of_everything(
    host: Host, one: Installation, two: Installation, tmp_path: Path
) -> None:
    """Waits, an exec and a Create that are under way, a terminal, half of a stdin, a logger."""
    logged = tmp_path / "logged"
    logger = tmp_path / "logger"
    logger.write_text(f"#!/bin/sh\nexec 5>&-\nexec cat <&3 >{logged}\n")
    logger.chmod(0o755)
    talk = "echo before; read line; echo after; exec sleep 1000"
    pause = host.started(
        "/bin/sh", "-c", talk, pod="pod", stdin=fifo(tmp_path / "talk"), stdout=f"binary://{logger}"
    )
    stdin, output = fifo(tmp_path / "in"), Reader(tmp_path / "out")
    cat = host.started("/bin/cat", pod="pod", stdin=stdin, stdout=output.path)
    screen, keys = Reader(tmp_path / "screen"), fifo(tmp_path / "keys")
    shell = host.started(
        "/bin/sh", pod="pod", stdin=keys, stdout=screen.path, terminal=True, edit=in_a_terminal
    )
    creating, starting = tmp_path / "creating", tmp_path / "starting"
    creating.mkdir()
    starting.mkdir()
    at_create, at_exec = Gate(creating), Gate(starting)
    slow = host.container(*SLEEP, pod="pod")
    runtime = fake_runtime(tmp_path, before_create=at_create.text, before_exec=at_exec.text)
    created = slow.send("Create", slow.create_request(runtime=runtime))
    eventually(at_create.reached, "the runtime is creating")
    waits = {c.name: c.send_wait() for c in (pause, cat, shell)}
    with stdin.open("wb", buffering=0) as half, keys.open("wb", buffering=0) as typed:
        half.write(b"first half, ")
        (record,) = take_over(two, host)
        half.write(b"second half")
        (tmp_path / "talk").write_bytes(b"a line\n")
        typed.write(b"echo typed; exit 3\n")
        at_create.open()
        pid = slow.receive(created, task_pb2.CreateTaskResponse).pid
        assert slow.start() == pid
        slow.exec("e", "/bin/sh", "-c", "exit 9")
        started = slow.send("Start", task_pb2.StartRequest(id=slow.name, exec_id="e"))
        eventually(at_exec.reached, "the runtime is executing")
        assert take_over(one, host)[0]["pid"] == record["pid"]
        at_exec.open()
        assert slow.receive(started, task_pb2.StartResponse).pid > 0
        assert slow.wait("e").exit_status == 9
        assert slow.delete("e").exit_status == 9
        assert shell.receive(waits[shell.name], task_pb2.WaitResponse).exit_status == 3
    assert shell.finish().exit_status == 3
    assert b"typed\r\n" in screen.all()
    cat.call("CloseIO", task_pb2.CloseIORequest(id=cat.name, stdin=True), Empty)
    assert cat.receive(waits[cat.name], task_pb2.WaitResponse).exit_status == 0
    assert cat.finish().exit_status == 0
    assert output.all() == b"first half, second half"
    slow.end()
    pause.kill()
    assert pause.receive(waits[pause.name], task_pb2.WaitResponse).exit_status == KILLED
    pause.finish()
    eventually(lambda: logged.read_text() == "before\nafter\n", "the logger has had it all")


def ask(
    container: Container, installation: Installation, **given: str
) -> upgrade_pb2.UpgradeResponse:
    """Upgrade, as the command sends it."""
    return container.client.call(
        CONTROL,
        "Upgrade",
        request_for(container.host, installation, **given),
        upgrade_pb2.UpgradeResponse,
        BOUND_S,
    )


def request_for(host: Host, installation: Installation, **given: str) -> upgrade_pb2.UpgradeRequest:
    """What the command sends."""
    usual = address.socket_path(str(installation.bin / "python3"), installation.build)
    fields = {
        "monitor": str(installation.bin / "pyshim-monitor"),
        "python": str(installation.bin / "python3"),
        "zygote": str(host.runtime / Path(usual).name),
    }
    return upgrade_pb2.UpgradeRequest(**{**fields, **given})


@plain_only
def test_services_that_are_killed_while_it_goes_on(
    host: Host, one: Installation, two: Installation, tmp_path: Path
) -> None:
    """The upgrade comes to its end, or to none, and says so; the container goes on."""
    reader = Reader(tmp_path / "out", slow_after=0, pause_s=0.002)
    container = host.started("/bin/sh", "-c", COUNT, stdout=reader.path)
    monitor, init = host.monitors()[0], container.state().pid
    done = threading.Event()
    chance = random.Random(7)

    def kill() -> None:
        while not done.wait(chance.uniform(0.02, 0.2)):
            host.kill_services()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        for number in range(6):
            after = one if number % 2 else two
            with container.connect() as client, contextlib.suppress(StatusError):
                client.call(
                    CONTROL,
                    "Upgrade",
                    request_for(host, after),
                    upgrade_pb2.UpgradeResponse,
                    2 * BOUND_S,
                )
    finally:
        done.set()
        thread.join(BOUND_S)
    # Which of them it was, the kills have decided; now it is this one.
    (record,) = one.upgraded(everywhere(host), env=host.env)
    assert record["outcome"] in {"upgraded", "current"}
    assert os.readlink(f"/proc/{monitor}/exe") == str(one.bin / "pyshim-monitor")
    assert host.monitors() == [monitor]
    assert container.state().pid == init
    container.kill(signal.SIGTERM)
    assert container.wait().exit_status == 7
    container.finish()
    assert_counted(reader)


@plain_only
def test_a_second_upgrade_during_one(host: Host, one: Installation, two: Installation) -> None:
    container = host.started(*SLEEP)
    with container.connect() as other:
        request = request_for(host, two)
        streams = [
            (c, c.send(CONTROL, "Upgrade", request, BOUND_S)) for c in (container.client, other)
        ]
        builds = []
        for client, stream in streams:
            try:
                reply = upgrade_pb2.UpgradeResponse.FromString(client.receive(stream, BOUND_S))
                builds.append(reply.build)
            except StatusError as error:
                assert error.code == Code.FAILED_PRECONDITION
                assert "being upgraded already" in error.message
        assert builds and set(builds) == {TWO}
    container.end()


def without(path: str) -> Damage:
    """A version from which a file is missing."""
    return lambda home: (home / path).unlink()


def with_newer_state(home: Path) -> None:
    """A version that does not know the state as it is."""
    (path,) = home.glob("lib/*/site-packages/pyshim/service/migrations.py")
    text = path.read_text()
    assert "STATE_VERSION = 2" in text
    path.write_text(text.replace("STATE_VERSION = 2", "STATE_VERSION = 1"))


def with_broken_monitor(home: Path) -> None:
    """A version whose monitor does not understand what there is."""
    (home / "bin/pyshim-monitor").unlink()
    shutil.copy("/bin/true", home / "bin/pyshim-monitor")


@pytest.mark.parametrize(
    ("damage", "patience_ms", "said"),
    [
        (without("bin/pyshim-monitor"), 0, "is pyshim installed there?"),
        (without("bin/python3"), 0, "is no program, as seen by the shim"),
        (with_newer_state, 0, "cannot go on from what this one holds"),
        (with_broken_service, 2000, "did not answer in time"),
        (with_broken_monitor, 0, "cannot go on from what this one holds"),
    ],
)
@plain_only
def test_a_version_that_cannot_take_over_does_not(
    host: Host,
    one: Installation,
    programs: Path,
    tmp_path: Path,
    damage: Damage,
    patience_ms: int,
    said: str,
) -> None:
    broken = install(tmp_path / "broken", BROKEN, programs)
    damage(broken.home)
    reader = Reader(tmp_path / "out", slow_after=0, pause_s=0.002)
    container = host.started("/bin/sh", "-c", COUNT, stdout=reader.path)
    monitor, init = host.monitors()[0], container.state().pid
    request = request_for(host, broken)
    request.patience_ms = patience_ms
    with pytest.raises(StatusError) as refused:
        container.client.call(CONTROL, "Upgrade", request, upgrade_pb2.UpgradeResponse, 2 * BOUND_S)
    assert refused.value.code == Code.FAILED_PRECONDITION
    assert said in refused.value.message
    assert host.monitors() == [monitor]
    assert os.readlink(f"/proc/{monitor}/exe") == str(one.bin / "pyshim-monitor")
    assert container.state().pid == init
    assert container.run("e", "/bin/sh", "-c", "exit 5") == 5
    container.kill(signal.SIGTERM)
    assert container.wait().exit_status == 7
    container.finish()
    assert_counted(reader)


@plain_only
def test_the_command_fails_when_one_container_cannot_be_upgraded(
    host: Host, one: Installation, two: Installation
) -> None:
    """Its monitor is stopped; the others are upgraded all the same."""
    stuck, good = host.started(*SLEEP), host.started(*SLEEP)
    pid = monitor_of(host, stuck)
    os.kill(pid, signal.SIGSTOP)
    try:
        done = two.upgrade("--timeout", "5", everywhere(host), env=host.env)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert done.returncode == 1
    assert f"pid {pid}  failed: no answer within 5 s\n" in done.stdout
    assert f"pid {monitor_of(host, good)}  ok\n" in done.stdout
    # What it was asked for it does when it can.
    eventually(
        lambda: os.readlink(f"/proc/{pid}/exe") == str(two.bin / "pyshim-monitor"),
        "the request is carried out",
    )
    for container in (stuck, good):
        container.end()


# --- Without the command --------------------------------------------------------------------------


@plain_only
@pytest.mark.parametrize("is_idle", [False, True])
def test_pip_puts_a_new_version_in_the_old_ones_place(
    host: Host, programs: Path, tmp_path: Path, is_idle: bool
) -> None:
    """Services are new at the next activation, whether the old zygote has ended or not."""
    there = install(tmp_path / "there", ONE, programs)
    host.programs, usual = there.bin, host.programs
    try:
        container = host.started(*SLEEP)
        (monitor,) = host.monitors()
        assert container.state().pid
        if is_idle:
            end_zygotes(host)
        else:
            eventually(lambda: not host.services(), "the services have parked")
        old = host.zygotes()
        there = there.become(TWO, programs)
        assert container.run("e", "/bin/sh", "-c", "exit 5") == 5
        eventually(lambda: not set(old) & set(host.zygotes()), "the old zygote has ended")
        await_parked(host)
        assert container.run("e", "/bin/sh", "-c", "exit 6") == 6
        eventually(lambda: zygotes_at(host) == [f"zygote-{TWO}-"], "the new zygote listens")
        await_parked(host)
        assert container.run("e", "/bin/sh", "-c", "exit 7") == 7
        assert not direct_services(host)
        # And the monitor, in the same place.
        (record,) = take_over(there, host)
        assert (record["pid"], record["from"]["build"]) == (monitor, ONE)
        container.end()
    finally:
        host.programs = usual


def zygotes_at(host: Host) -> list[str]:
    """Where zygotes listen, without the number of the interpreter."""
    return sorted(path.name[:24] for path in host.runtime.glob("zygote-*.sock"))


def direct_services(host: Host) -> list[int]:
    """Services that a monitor has executed."""
    return [pid for pid, line in processes_of(host.home).items() if "pyshim.service" in line]


def await_parked(host: Host) -> None:
    """Waits until no service is active, wherever it came from."""
    eventually(lambda: not host.services() + direct_services(host), "the services have parked")


# --- containerd -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def containerd(
    one: Installation, rootfs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Containerd]:
    """A containerd that finds the shim of ``one``; nothing of it is left afterwards."""
    started = Containerd(tmp_path_factory.mktemp("c"), rootfs)
    started.env["PATH"] = f"{one.bin}:{os.environ['PATH']}"
    try:
        started.start()
        yield started
    finally:
        started.stop()


@plain_only
def test_under_containerd_which_is_restarted_right_after(
    containerd: Containerd, one: Installation, two: Installation, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    flags = ("-d", "--log-uri", f"file://{output}")
    count = COUNT.replace("echo $i;", "echo $i; sleep 0.01;")
    done = containerd.ctr(*containerd.run("count", "/bin/sh", "-c", count, flags=flags))
    assert (done.returncode, done.stderr) == (0, "")
    pid, _ = containerd.tasks()["count"]
    (monitor,) = containerd.monitors()
    pids = {number: age(number) for number in (pid, monitor)}
    pattern = f"{containerd.namespace}/*"
    for after in (two, one):
        (record,) = after.upgraded(pattern, env=containerd.env)
        assert record["name"] == f"{containerd.namespace}/count"
        assert (record["outcome"], record["pid"]) == ("upgraded", monitor)
        containerd.kill()
        containerd.start()
        assert containerd.tasks() == {"count": (pid, "RUNNING")}
        assert {number: age(number) for number in pids} == pids
        done = containerd.ctr("task", "exec", "--exec-id", "e", "count", "/bin/echo", "hello")
        assert (done.returncode, done.stdout) == (0, "hello\n")
    assert containerd.ctr("task", "kill", "count").returncode == 0
    eventually(lambda: containerd.tasks()["count"][1] == "STOPPED", "the exit is known")
    assert "non-zero exit code 7" in containerd.ctr("task", "delete", "count").stderr
    assert containerd.ctr("container", "delete", "count").returncode == 0
    nothing_left(containerd)
    *numbers, _end = output.read_text().splitlines()
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
