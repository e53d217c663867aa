"""What clients do while services die: short lives that together come to every point.

Each holds whether or not a service dies in it: every answer, every byte, each event once and in
order, each of the runtime's commands once.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import BytesValue

from pyshim.api import options_pb2, task_pb2, upgrade_pb2
from pyshim.service.upgrade import CONTROL
from pyshim.ttrpc import codec
from pyshim.ttrpc.status import Code, StatusError
from tests.integration.containerd import BOUND_S, eventually, mounts_below, scripts
from tests.integration.fake_runtime import fake_runtime
from tests.integration.faults.host import FaultyHost, Patient
from tests.integration.fifos import Reader, fifo
from tests.integration.shim import KILLED, SERVICE, packed, without_pid_namespace

Scenario = Callable[[FaultyHost, Path], None]
SCENARIOS: dict[str, Scenario] = {}

PROGRAM_ERROR = "pyshim.monitor.channel:ProgramError"
SHELL = ("/bin/sh", "-c")
SLEEP = ("/bin/sleep", "1000")
PIPE_BYTES = 64 * 1024
IMAGE_BYTES = 1024 * 1024
TEXT = b"a line that goes in and comes out\n" * 2000


def scenario(function: Scenario) -> Scenario:
    """Adds one."""
    SCENARIOS[function.__name__] = function
    return function


class Ledger:
    """A runtime that is runc and notes what it is asked for, after the hooks of a scenario."""

    def __init__(self, folder: Path, **hooks: str) -> None:
        self._path = folder / "ledger"
        self._path.touch()
        self.binary = fake_runtime(folder, **hooks)
        text = self.binary.read_text()
        note = f'echo "$action" >>{self._path}\n'
        first, rest = text.split("done\n", 1)
        self.binary.write_text(f"{first}done\n{note}{rest}")

    def commands(self) -> list[str]:
        """The sub-commands that it was asked for, in order."""
        return self._path.read_text().split()


def refused(code: Code, call: Callable[[], object]) -> str:
    """The message with which ``call`` fails."""
    with pytest.raises(StatusError) as caught:
        call()
    assert caught.value.code == code, caught.value
    return str(caught.value.message)


def topics(container: Patient) -> list[str]:
    """The events of a container, once it has been deleted."""
    events = container.host.events
    eventually(lambda: "delete" in events.topics(container.name), "the last event")
    return events.topics(container.name)


def in_the_bundle(spec: dict[str, Any]) -> None:
    """A root that is mounted for the container."""
    spec["root"]["path"] = "rootfs"


@scenario
def life(host: FaultyHost, folder: Path) -> None:
    """Mounts, all three streams, and an init that ends by itself."""
    ledger = Ledger(folder)
    output, errors, stdin = Reader(folder / "out"), Reader(folder / "err"), fifo(folder / "in")

    command = (*SHELL, "cat; echo told >&2; exit 3")
    container = host.container(*command, edit=in_the_bundle)
    request = container.create_request(
        stdin=stdin, stdout=output.path, stderr=errors.path, runtime=ledger.binary
    )
    request.rootfs.add(type="bind", source=str(host.rootfs), options=["rbind"])
    pid = container.call("Create", request, task_pb2.CreateTaskResponse).pid
    container.agrees(task_pb2.CREATED)
    waiting = container.send_wait()
    assert container.start() == pid
    container.agrees(task_pb2.RUNNING)
    with stdin.open("wb") as writer:
        writer.write(TEXT)
    close = task_pb2.CloseIORequest(id=container.name, stdin=True)
    container.call("CloseIO", close, Empty)
    assert container.receive(waiting, task_pb2.WaitResponse).exit_status == 3
    container.agrees(task_pb2.STOPPED)
    assert container.wait().exit_status == 3
    reply = container.finish()
    assert (reply.exit_status, reply.pid) == (3, pid)
    assert (output.all(), errors.all()) == (TEXT, b"told\n")
    assert topics(container) == ["create", "start", "exit", "delete"]
    assert ledger.commands() == ["create", "start", "delete"]


@scenario
def mounts_of_all_kinds(host: FaultyHost, folder: Path) -> None:
    """An overlay and a bind with shifted owners, a file as a device, and one that fails first."""
    maps = ["uidmap=0:100000:65536", "gidmap=0:200000:65536"]
    layer, image = folder / "layer", folder / "image"
    for name in ("upper", "work", "layer/bound", "layer/looped"):
        (folder / name).mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", image], check=True, timeout=BOUND_S)
    container = host.container(*SLEEP, edit=in_the_bundle)
    request = container.create_request()
    lower = f"lowerdir={layer}:{host.rootfs}"
    options = [lower, f"upperdir={folder}/upper", f"workdir={folder}/work", *maps]
    request.rootfs.add(type="overlay", source="overlay", options=options)
    request.rootfs.add(
        type="bind", source=str(folder), target="bound", options=["rbind", "ro", *maps]
    )
    request.rootfs.add(type="ext4", source=str(image), target="looped", options=["loop"])
    request.rootfs.add(type="bind", source=f"{folder}/late", target="bound", options=["rbind"])

    def create() -> object:
        return container.call("Create", request, task_pb2.CreateTaskResponse)

    assert "o such file" in refused(Code.UNKNOWN, create)
    assert mounts_below(container.bundle) == []
    (folder / "late").mkdir()
    create()
    assert len(mounts_below(container.bundle)) == len(request.rootfs)
    container.start()
    assert container.run("e", "/bin/ls", "/looped/lost+found") == 0
    container.end()
    assert mounts_below(container.bundle) == []

    def is_attached() -> bool:
        used = []
        for path in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):  # another's goes at this moment
                used.append(path.read_text())
        return f"{image}\n" in used

    # The kernel frees it after the umount, and somebody may look at the device.
    eventually(lambda: not is_attached(), "the loop device is free")


@scenario
def execs(host: FaultyHost, folder: Path) -> None:
    """One that ends, one that is killed, one that cannot be, one that is never started."""
    ledger = Ledger(folder)
    container = host.started(*SLEEP, runtime=ledger.binary)
    output, stdin = Reader(folder / "out"), fifo(folder / "in")
    container.exec("a", *SHELL, "cat; exit 4", stdin=stdin, stdout=output.path)
    waiting = container.send_wait("a")
    container.start("a")
    with stdin.open("wb") as writer:
        writer.write(TEXT)
    close = task_pb2.CloseIORequest(id=container.name, exec_id="a", stdin=True)
    container.call("CloseIO", close, Empty)
    assert container.receive(waiting, task_pb2.WaitResponse).exit_status == 4
    assert container.delete("a").exit_status == 4
    assert output.all() == TEXT
    container.exec("b", *SLEEP)
    container.start("b")
    container.agrees(task_pb2.RUNNING, "b")
    container.kill(exec_id="b")
    assert container.wait("b").exit_status == KILLED
    assert container.delete("b").exit_status == KILLED
    container.exec("c", "/no/such/program")
    assert "no such file" in refused(Code.UNKNOWN, lambda: container.start("c"))
    container.delete("c")
    container.exec("d", *SLEEP)
    container.delete("d")
    container.delete("d")  # by a client that did not hear the first answer
    # The init goes, and with it an exec that still runs.
    container.exec("e", *SLEEP)
    container.start("e")
    container.kill()
    assert container.wait("e").exit_status == KILLED
    assert container.wait().exit_status == KILLED
    container.finish()
    life_of_one = ["exec-added", "exec-started", "exit"]
    made = [*life_of_one * 2, "exec-added", "exec-added", *life_of_one]
    assert topics(container) == ["create", "start", *made, "exit", "delete"]
    assert ledger.commands() == ["create", "start", *["exec"] * 4, "delete"]


@scenario
def terminals(host: FaultyHost, folder: Path) -> None:
    """Of an init and of an exec: typed text, its echo, the size."""
    screen, keys = Reader(folder / "screen"), fifo(folder / "keys")
    container = host.container(*SHELL, "read a; stty size; exit 5", edit=with_terminal)
    container.create(stdin=keys, stdout=screen.path, terminal=True)
    container.start()
    resize = task_pb2.ResizePtyRequest(id=container.name, width=100, height=40)
    container.call("ResizePty", resize, Empty)
    output = Reader(folder / "out")
    command = (*SHELL, "seq 1 500; exit 6")
    assert container.run("t", *command, stdout=output.path, terminal=True) == 6
    assert output.all().decode() == "".join(f"{n}\r\n" for n in range(1, 501))
    with keys.open("wb", buffering=0) as writer:
        writer.write(b"x\n")
        assert container.wait().exit_status == 5
    container.finish()
    assert screen.all() == b"x\r\n40 100\r\n"
    middle = ["exec-added", "exec-started", "exit"]
    assert topics(container) == ["create", "start", *middle, "exit", "delete"]


def with_terminal(spec: dict[str, Any]) -> None:
    """A process that has one."""
    spec["process"]["terminal"] = True


@scenario
def controls(host: FaultyHost, folder: Path) -> None:
    """The calls that change a running container, and those that ask about it."""
    ledger = Ledger(folder)
    container = host.started(*SLEEP, runtime=ledger.binary)
    pid = container.state().pid
    connect = task_pb2.ConnectRequest(id=container.name)
    reply = container.call("Connect", connect, task_pb2.ConnectResponse)
    assert (reply.task_pid, [reply.shim_pid]) == (pid, host.monitors())
    container.call("Pause", task_pb2.PauseRequest(id=container.name), Empty)
    container.agrees(task_pb2.PAUSED)
    container.call("Resume", task_pb2.ResumeRequest(id=container.name), Empty)
    container.agrees(task_pb2.RUNNING)
    pids = container.call("Pids", task_pb2.PidsRequest(id=container.name), task_pb2.PidsResponse)
    assert [process.pid for process in pids.processes] == [pid]
    update = task_pb2.UpdateTaskRequest(id=container.name)
    update.resources.value = b'{"cpu": {"shares": 512}}'
    container.call("Update", update, Empty)
    stats = task_pb2.StatsRequest(id=container.name)
    assert container.call("Stats", stats, task_pb2.StatsResponse).stats.value
    container.call("Shutdown", task_pb2.ShutdownRequest(id=container.name), Empty)
    assert "cannot delete a running" in refused(Code.UNKNOWN, container.delete)
    eventually(lambda: not host.services(), "the service has parked")
    container.kill(everyone=True)
    assert container.wait().exit_status == KILLED
    container.finish()
    changes = ["paused", "resumed"]
    assert topics(container) == ["create", "start", *changes, "exit", "delete"]
    changed = ["pause", "resume", "update", "kill"]
    assert ledger.commands() == ["create", "start", *changed, "delete"]


@scenario
def failures(host: FaultyHost, folder: Path) -> None:
    """The runtime fails at each command once; what a client repeats then succeeds."""
    says = 'echo \'{"level":"error","msg":"it is not well"}\' >>log.json'
    first = f'test -e {folder}/$action || {{ : >"{folder}/$action"; {says}; exit 1; }}'
    once = {f"before_{action}": first for action in ("create", "start", "exec", "pause", "delete")}
    ledger = Ledger(folder, **once)
    container = host.container(*SLEEP)
    request = container.create_request(runtime=ledger.binary)
    request.rootfs.add(type="bind", source=str(host.rootfs), options=["rbind"])

    def create() -> object:
        return container.call("Create", request, task_pb2.CreateTaskResponse)

    def pause() -> object:
        return container.call("Pause", task_pb2.PauseRequest(id=container.name), Empty)

    assert "it is not well" in refused(Code.UNKNOWN, create)
    request.stdout = str(folder / "not" / "there")
    assert "o such file" in refused(Code.UNKNOWN, create)
    request.stdout = ""
    create()
    assert "it is not well" in refused(Code.UNKNOWN, container.start)
    container.agrees(task_pb2.CREATED)
    container.start()
    container.exec("e", *SLEEP)
    waiting = container.send_wait("e")
    assert "it is not well" in refused(Code.UNKNOWN, lambda: container.start("e"))
    container.receive(waiting, task_pb2.WaitResponse)
    container.delete("e")
    assert "it is not well" in refused(Code.UNKNOWN, pause)
    container.agrees(task_pb2.RUNNING)
    container.kill()
    assert container.wait().exit_status == KILLED
    assert "it is not well" in refused(Code.UNKNOWN, container.delete)
    container.finish()
    assert topics(container) == ["create", "start", "exec-added", "exit", "delete"]
    twice = ["create", "create", "start", "start", "exec", "pause", "delete", "delete"]
    assert ledger.commands() == twice


@scenario
def a_runtime_that_says_why(host: FaultyHost, folder: Path) -> None:
    """On the stderr that is to be the container's; a service that dies may take it along."""
    output = Reader(folder / "err")
    ledger = Ledger(folder, before_exec="echo it is not well >&2; exit 1")
    container = host.started(*SLEEP, runtime=ledger.binary)
    container.exec("e", *SLEEP, stderr=output.path)
    assert "runtime exec failed" in refused(Code.UNKNOWN, lambda: container.start("e"))
    container.delete("e")
    container.end()
    output.give_up()


@scenario
def unmade(host: FaultyHost, folder: Path) -> None:
    """The runtime makes what its note of the pid then does not lead to."""
    create = f"test -e {folder}/created || {{ : >{folder}/created; echo none >init.pid; }}"
    file = 'for word; do [ "$before" = --pid-file ] && file=$word; before=$word; done'
    ledger = Ledger(folder, after_create=create, after_exec=f'{file}; echo none >"$file"')
    container = host.container(*SLEEP)
    message = refused(Code.UNKNOWN, lambda: container.create(runtime=ledger.binary))
    assert "OCI runtime create failed" in message
    container.create(runtime=ledger.binary)
    container.start()
    container.exec("e", *SLEEP)
    refused(Code.UNKNOWN, lambda: container.start("e"))
    container.delete("e")
    container.end()
    assert topics(container) == ["create", "start", "exec-added", "exit", "delete"]
    assert ledger.commands() == ["create", "delete", "create", "start", "exec", "delete"]


@scenario
def ended_execs(host: FaultyHost, folder: Path) -> None:
    """An exec that runs but whose terminal never comes is ended."""
    takes = 'for word; do shift; case "$last $word" in *--console-socket*|*--tty) ;; '
    takes += '*--process) sed -i "s/\\(.terminal.: \\)true/\\1false/" "$1"; set -- "$@" "$word";; '
    takes += '*) set -- "$@" "$word";; esac; last=$word; done'
    ledger = Ledger(folder, before_exec=takes)
    container = host.started(*SLEEP, runtime=ledger.binary)
    container.exec("e", *SLEEP, terminal=True)
    assert "sent no terminal" in refused(Code.UNKNOWN, lambda: container.start("e"))
    container.delete("e")
    container.end()
    assert topics(container) == ["create", "start", "exec-added", "exit", "delete"]


@scenario
def logs(host: FaultyHost, folder: Path) -> None:
    """A file below folders that are missing, and a program."""
    logger = folder / "logger"
    logger.write_text("#!/bin/sh\nexec 5>&-\ncat <&3 >$1\necho end >>$1\n")
    logger.chmod(0o755)
    path, kept = folder / "not" / "there" / "log", folder / "kept"
    container = host.container(*SHELL, "seq 1 2000; exec sleep 1000")
    container.create(stdout=f"binary://{logger}?{kept}")
    container.start()
    assert container.run("f", *SHELL, "seq 1 2000", stdout=f"file://{path}") == 0
    eventually(lambda: kept.exists() and kept.stat().st_size > 0, "the program has begun")
    container.end()
    numbers = "".join(f"{n}\n" for n in range(1, 2001))
    assert path.read_text() == numbers
    assert kept.read_text() == f"{numbers}end\n"


@scenario
def loggers_that_fail(host: FaultyHost, folder: Path) -> None:
    """One that is missing, and one that never ends."""
    logger = folder / "logger"
    logger.write_text("#!/bin/sh\nexec 5>&-\nexec sleep 1000\n")
    logger.chmod(0o755)
    container = host.started(*SLEEP)
    container.exec("a", "/bin/true", stdout=f"binary://{folder}/none")
    assert "cannot start the logging binary" in refused(Code.UNKNOWN, lambda: container.start("a"))
    container.delete("a")
    assert container.run("b", "/bin/true", stdout=f"binary://{logger}") == 0
    container.end()
    middle = ["exec-added", "exec-added", "exec-started", "exit"]
    assert topics(container) == ["create", "start", *middle, "exit", "delete"]


@scenario
def a_slow_reader(host: FaultyHost, folder: Path) -> None:
    """It has everything, though Delete was answered before it read."""
    path = fifo(folder / "out")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    # A size of its own, which no relay changes; what does not fit goes with the first read.
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 2 * PIPE_BYTES)
    try:
        container = host.started(*SLEEP)
        printed = "".join(f"{n}\n" for n in range(30_000)).encode()
        command = (*SHELL, "seq 0 29999")
        assert 2 * PIPE_BYTES < len(printed) < 3 * PIPE_BYTES
        assert container.run("e", *command, stdout=path) == 0
        read = b""
        while len(read) < len(printed):
            container.agrees(task_pb2.RUNNING)  # so that the service stays for the relay's end
            with contextlib.suppress(BlockingIOError):
                read += os.read(reader, PIPE_BYTES)
        assert read == printed
        container.agrees(task_pb2.RUNNING)
    finally:
        os.close(reader)
    container.end()
    middle = ["exec-added", "exec-started", "exit"]
    assert topics(container) == ["create", "start", *middle, "exit", "delete"]


@scenario
def owned_streams(host: FaultyHost, folder: Path) -> None:
    """Pipes that are given to the container's root before the runtime has them."""
    output = Reader(folder / "out")
    container = host.container(*SHELL, "echo told >/dev/stdout")
    request = container.create_request(stdout=output.path)
    request.options.CopyFrom(packed(options_pb2.Options(io_uid=1000, io_gid=1001)))
    container.call("Create", request, task_pb2.CreateTaskResponse)
    container.start()
    assert container.wait().exit_status == 0
    container.finish()
    assert output.all() == b"told\n"


@scenario
def shared_pids(host: FaultyHost, folder: Path) -> None:
    """What is left when an init ends that has the host's pids, the shim kills."""
    container = host.started(*SHELL, "sleep 999 & sleep 1000", edit=without_pid_namespace)
    container.exec("e", *SLEEP)
    container.start("e")
    container.kill()
    assert container.wait("e").exit_status == KILLED
    assert container.wait().exit_status == KILLED
    container.finish()
    middle = ["exec-added", "exec-started", "exit"]
    assert topics(container) == ["create", "start", *middle, "exit", "delete"]


@scenario
def out_of_memory(host: FaultyHost, folder: Path) -> None:
    """Told at least once, before the exit."""

    def limited(spec: dict[str, Any]) -> None:
        spec["linux"].setdefault("resources", {})["memory"] = {"limit": 16 << 20}

    container = host.started("/bin/tail", "/dev/zero", edit=limited)
    assert container.wait().exit_status == KILLED
    container.finish()
    told = topics(container)
    assert told[:2] == ["create", "start"]
    assert set(told[2:-2]) == {"oom"}
    assert told[-2:] == ["exit", "delete"]


@scenario
def checkpoints(host: FaultyHost, folder: Path) -> None:
    """Failing and succeeding, there and back; the runtime plays criu."""
    once = f"test -e {folder}/tried || {{ : >{folder}/tried; "
    work = 'for word; do [ "$before" = --work-path ] && work=$word; before=$word; done'
    fails = f'{once}{work}; mkdir -p "$work"; echo why >"$work/dump.log"; exit 1; }}'
    last = "for id; do :; done"
    root = 'while [ "$1" != --root ]; do shift; done; root=$2'
    file = 'for word; do [ "$last" = --pid-file ] && file=$word; last=$word; done'
    made = 'runc --root "$root" create --bundle . --pid-file "$file" "$id"'
    restores = f'{last}; {file}; {root}; {made} && exec runc --root "$root" start "$id"'
    failing = restores.replace("exec runc", f"{{ {once}exit 1; }}; exec runc", 1)
    ledger = Ledger(folder, before_checkpoint=f"{fails}; exit 0", before_restore=restores)
    assert failing != restores
    container = host.started(*SLEEP, runtime=ledger.binary)
    request = task_pb2.CheckpointTaskRequest(id=container.name, path=str(folder / "images"))

    def checkpoint() -> object:
        return container.call("Checkpoint", request, Empty)

    assert "criu-dump.log" in refused(Code.UNKNOWN, checkpoint)
    assert (container.bundle / "criu-dump.log").read_text() == "why\n"
    checkpoint()
    container.end()
    assert topics(container) == ["create", "start", "exit", "delete"]
    restored = host.container(*SLEEP)
    create = restored.create_request(runtime=ledger.binary)
    create.checkpoint = str(folder / "images")
    assert restored.call("Create", create, task_pb2.CreateTaskResponse).pid == 0
    restored.start()
    restored.agrees(task_pb2.RUNNING)
    restored.end()
    assert topics(restored) == ["create", "start", "exit", "delete"]
    played = ["create", "start", "checkpoint", "checkpoint", "delete"]
    # What plays `restore` asks runc itself.
    assert ledger.commands() == [*played, "restore", "delete"]


@scenario
def a_runtime_that_hangs(host: FaultyHost, folder: Path) -> None:
    """It is killed at the bound; then the container can still be ended."""
    first = f"test -e {folder}/started || {{ : >{folder}/started; exec sleep 1000; }}"
    ledger = Ledger(folder, before_pause="exec sleep 1000", before_start=first)
    container = host.container(*SLEEP)
    container.create(runtime=ledger.binary)
    assert "did not end within" in refused(Code.DEADLINE_EXCEEDED, container.start)
    container.agrees(task_pb2.CREATED)
    container.start()

    def pause() -> object:
        return container.call("Pause", task_pb2.PauseRequest(id=container.name), Empty)

    assert "did not end within" in refused(Code.DEADLINE_EXCEEDED, pause)
    container.agrees(task_pb2.RUNNING)
    container.end()
    assert topics(container) == ["create", "start", "exit", "delete"]


@scenario
def an_init_that_does_not_go_on(host: FaultyHost, folder: Path) -> None:
    """It is not waited for longer than for a runtime; then it can still be ended."""
    container = host.container(*SLEEP)
    pid = container.create()
    os.kill(pid, signal.SIGSTOP)
    assert "not gone on within" in refused(Code.DEADLINE_EXCEEDED, container.start)
    container.agrees(task_pb2.CREATED)
    container.end()
    assert topics(container) == ["create", "exit", "delete"]


@scenario
def an_absent_containerd(host: FaultyHost, folder: Path) -> None:
    """It is away, then it hangs, then it is back: each event once, in order."""
    container = host.started(*SLEEP)
    host.events.await_topic(container.name, "start")
    with host.events.away():
        container.exec("e", "/bin/true")
        container.start("e")
        assert container.wait("e").exit_status == 0
        # A crash has torn the file of waiting events in the middle of a record.
        file = container.bundle / "events"
        eventually(file.exists, "the events are kept")
        with file.open("ab") as torn:
            torn.write(b"torn")
        container.delete("e")
        container.exec("g", "/bin/true")
        container.delete("g")
    host.events.await_topic(container.name, "exit")
    # It has all been told by then, and what was kept is not needed any more.
    eventually(lambda: not host.services(), "the service has parked")
    host.events.block()
    try:
        container.exec("f", "/bin/true")
        container.start("f")
        assert container.wait("f").exit_status == 0
        container.delete("f")
    finally:
        host.events.unblock()
    container.end()
    one = ["exec-added", "exec-started", "exit"]
    expected = ["create", "start", *one, "exec-added", *one, "exit", "delete"]
    assert topics(container) == expected


@scenario
def requests_that_are_wrong(host: FaultyHost, folder: Path) -> None:
    """Each is refused, and costs nothing else."""
    container = host.started(*SLEEP)
    pids = task_pb2.PidsRequest(id=container.name)
    for error in ("builtins:RuntimeError", "builtins:OSError", PROGRAM_ERROR):
        host.raise_at("service.task:pids:answer before", error)
        with contextlib.suppress(StatusError):  # what is put in goes with a service that dies
            container.call("Pids", pids, task_pb2.PidsResponse)
        (host.faults / "raising").unlink(missing_ok=True)
    garbage = task_pb2.PauseRequest(id="\N{BELL}" * 9)
    refused(Code.NOT_FOUND, lambda: container.call("Pause", garbage, Empty))
    refused(Code.UNIMPLEMENTED, lambda: container.call("Nothing", garbage, Empty))
    wrong = task_pb2.ExecProcessRequest(exec_id="x" * 200)
    refused(Code.NOT_FOUND, lambda: container.call("Exec", wrong, Empty))
    no_text = BytesValue(value=b"\xff")  # where the id is
    refused(Code.INVALID_ARGUMENT, lambda: container.call("Exec", no_text, Empty))
    folder.joinpath("folder").mkdir()
    container.exec("e", "/bin/true", stdout=f"file://{folder}/folder")
    refused(Code.UNKNOWN, lambda: container.start("e"))
    container.delete("e")
    late = task_pb2.WaitRequest(id=container.name)
    stream = container.client.send(SERVICE, "Wait", late, 0.5)
    refused(Code.DEADLINE_EXCEEDED, lambda: container.receive(stream, task_pb2.WaitResponse))
    other = container.connect()
    # A client's streams are odd; this one is refused before anything is made of it.
    even = codec.encode_request(2, SERVICE, "Wait", late.SerializeToString())
    other._socket.sendall(even)
    refused(Code.INVALID_ARGUMENT, lambda: other.receive(2, BOUND_S))
    other.send(SERVICE, "Wait", late)
    other.close()
    container.end()
    assert topics(container) == ["create", "start", "exec-added", "exit", "delete"]


@scenario
def an_upgrade(host: FaultyHost, folder: Path) -> None:
    """The monitor becomes another file of its program, and its services go on as they are."""
    container = host.started(*SLEEP)
    (monitor,) = host.monitors()
    program = folder / "pyshim-monitor"
    shutil.copy(scripts() / "pyshim-monitor", program)
    words = Path(f"/proc/{monitor}/cmdline").read_text().split("\0")
    request = upgrade_pb2.UpgradeRequest(
        monitor=str(program),
        python=words[words.index("--python") + 1],
        zygote=words[words.index("--zygote") + 1],
    )
    client = container.client
    reply = client.call(CONTROL, "Upgrade", request, upgrade_pb2.UpgradeResponse, BOUND_S)
    assert reply.pid == monitor
    assert os.readlink(f"/proc/{monitor}/exe") == str(program)
    container.agrees(task_pb2.RUNNING)
    container.end()
    assert topics(container) == ["create", "start", "exit", "delete"]


@scenario
def an_orderly_end(host: FaultyHost, folder: Path) -> None:
    """SIGTERM to the monitor, as a host that shuts down sends it."""
    container = host.started(*SLEEP)
    (monitor,) = host.monitors()
    os.kill(monitor, signal.SIGTERM)
    eventually(lambda: not host.monitors(), "the monitor has ended")
    container.client.close()
    done = host.act("delete", container.name, "-bundle", str(container.bundle))
    assert (done.returncode, done.stderr) == (0, b"")
    shutil.rmtree(container.bundle)
