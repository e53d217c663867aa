"""The known bugs of shims that leave something behind: shim.md 3.3, by their numbers.

All of 38 to 60 apply, some to the shim's side alone:

* 41, 42: our answer is the same plain address for every daemon, so there is no version to mix up;
  the tests are of that.
* 43: likewise; an address has nothing that a daemon could trim off.
* 48: we read the control group and never run `ps`.
* 49: a stopped shim that blocks the daemon is the daemon's bug; ours is not to wait for a runtime.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from pyshim.api import bootstrap_pb2, options_pb2, task_pb2
from pyshim.ttrpc.status import Code, StatusError

from .conftest import BOUND_S, Containerd, eventually, mounts_below, processes_of, scripts
from .containerd import RUNC_ROOT, nothing_left
from .fake_runtime import Gate, fake_runtime
from .goshim import GoHost, go, module_go
from .published import Events
from .shim import KILLED, Container, Host, host, module_host, packed, without_pid_namespace

__all__ = ["go", "host", "module_go", "module_host"]

TRUE = "/bin/true"
SLEEP = ("/bin/sleep", "1000")
PROGRAM = "containerd-shim-pyshim-v2"
CONNECT_TIMEOUT_S = 5  # containerd's, for all of a shim's load


def kill_monitors(host: Host) -> None:
    """SIGKILL to all of them."""
    for pid in host.monitors():
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not host.monitors(), "the monitors have ended")


def end_zygotes(host: Host) -> None:
    """SIGKILL to the zygote."""

    def ended() -> bool:
        for pid in (left := host.zygotes()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    eventually(ended, "the zygotes have ended")


def told_to_delete(container: Container) -> task_pb2.DeleteResponse:
    """What the shim's `delete` answers; the bundle stays."""
    container.client.close()
    host = container.host
    done = host.act("delete", container.name, "-bundle", str(container.bundle))
    assert (done.returncode, done.stderr) == (0, b"")
    return task_pb2.DeleteResponse.FromString(done.stdout)


def deleted(container: Container) -> task_pb2.DeleteResponse:
    """The same; the bundle is removed as by containerd."""
    reply = told_to_delete(container)
    shutil.rmtree(container.bundle)
    return reply


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def inside(host: Host) -> list[int]:
    """The processes of all containers of ``host``."""
    mark = f"PYSHIM_TEST={host.home}".encode()
    found = []
    for pid in processes_of(host.home):
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
    return found


@pytest.fixture
def lone_daemon(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    """A containerd that is not running yet."""
    made = Containerd(tmp_path_factory.mktemp("k"), rootfs)
    try:
        yield made
    finally:
        made.stop()


def test_38_a_shim_that_nobody_speaks_to_goes_away(host: Host) -> None:
    """As when the daemon dies and is never started again."""
    end_zygotes(host)
    host.env["PYSHIM_UNUSED_S"] = "2"
    try:
        container = host.container(*SLEEP)
    finally:
        del host.env["PYSHIM_UNUSED_S"]
    container.client.close()
    eventually(lambda: not host.monitors(), "the monitor has ended")
    assert list(host.sockets.iterdir()) == []
    deleted(container)
    end_zygotes(host)


def test_38_a_shim_whose_create_failed_goes_away(host: Host, go: GoHost) -> None:
    """As when the daemon dies meanwhile: one that is started again stays connected for ever.

    The Go shim stays.
    """
    theirs = go.container(*SLEEP)
    with pytest.raises(StatusError):
        theirs.create(stdout="/no/such/fifo")
    theirs.client.close()
    (shim,) = go.monitors()
    end_zygotes(host)
    host.env["PYSHIM_UNUSED_S"] = "2"
    try:
        container = host.container(*SLEEP)
        with pytest.raises(StatusError):
            container.create(stdout="/no/such/fifo")
        eventually(lambda: not host.monitors(), "the monitor has ended")
        assert go.monitors() == [shim]
    finally:
        del host.env["PYSHIM_UNUSED_S"]
    container.client.close()
    assert list(host.sockets.iterdir()) == []
    deleted(container)
    end_zygotes(host)


@pytest.mark.parametrize("when", ["before", "after"])
def test_38_a_shim_whose_daemon_dies_before_create_goes_away(
    lone_daemon: Containerd, when: str
) -> None:
    """A launcher that kills containerd before its answer, or as soon as it is connected to."""
    folder = lone_daemon.home / "path"
    folder.mkdir()
    launcher = folder / PROGRAM
    kill = f"kill -9 $PPID; : >{lone_daemon.home}/killed"
    launcher.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *start) ;; *) exec {scripts()}/{PROGRAM} "$@";; esac\n'
        f'answer=$({scripts()}/{PROGRAM} "$@") || exit 1\n'
        + (f"{kill}\n" if when == "before" else f"(sleep 0.05; {kill}) >/dev/null 2>&1 &\n")
        + 'printf %s "$answer"\n'
    )
    launcher.chmod(0o755)
    path = lone_daemon.env["PATH"]
    lone_daemon.env["PATH"] = f"{folder}:{path}"
    lone_daemon.env["PYSHIM_UNUSED_S"] = "2"
    lone_daemon.start()
    lone_daemon.ctr(*lone_daemon.run("c", *SLEEP, flags=("-d",)))
    eventually(lambda: (lone_daemon.home / "killed").exists(), "containerd has been killed")
    assert lone_daemon.process is not None
    lone_daemon.process.wait(BOUND_S)
    lone_daemon.env["PATH"] = path
    lone_daemon.start()
    lone_daemon.ctr("task", "delete", "-f", "c")
    lone_daemon.ctr("container", "delete", "c")
    nothing_left(lone_daemon)


def test_39_a_delete_whose_answer_came_too_late_succeeds_again(host: Host, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    container = host.started(*SLEEP, runtime=fake_runtime(tmp_path, before_delete=gate.text))
    container.kill()
    assert container.wait().exit_status == KILLED
    with pytest.raises(TimeoutError):
        container.delete(timeout_s=0.5)
    eventually(gate.reached, "the runtime is at the gate")
    second = container.send("Delete", task_pb2.DeleteRequest(id=container.name))
    gate.open()
    reply = container.receive(second, task_pb2.DeleteResponse)
    assert reply.exit_status == KILLED
    assert container.delete() == reply
    with pytest.raises(StatusError) as caught:
        container.state()
    assert caught.value.code == Code.NOT_FOUND
    container.leave()
    assert host.events.whole(container.name).count("delete") == 1


def test_39_a_delete_that_failed_succeeds_again(host: Host, tmp_path: Path) -> None:
    once = f"test -e {tmp_path}/failed || {{ : >{tmp_path}/failed; exit 1; }}"
    container = host.started(*SLEEP, runtime=fake_runtime(tmp_path, before_delete=once))
    container.kill()
    container.wait()
    with pytest.raises(StatusError):
        container.delete()
    assert container.state().status == task_pb2.STOPPED
    assert container.finish().exit_status == KILLED


def test_39_a_create_that_was_killed_leaves_no_control_group(
    host: Host, go: GoHost, tmp_path: Path
) -> None:
    """Killed after it has made the groups, and before it has noted that there is a container.

    The Go shim leaves them.
    """
    container = host.container(*SLEEP)
    group = killed_in_create(container, tmp_path / "ours")
    container.leave()
    assert not list(Path("/sys/fs/cgroup").glob(f"*/{group}"))
    theirs = go.container(*SLEEP)
    group = killed_in_create(theirs, tmp_path / "theirs")
    theirs.client.close()
    go.act("delete", theirs.name, "-bundle", str(theirs.bundle))
    left = list(Path("/sys/fs/cgroup").glob(f"*/{group}"))
    for folder in left:
        folder.rmdir()
    assert left


def killed_in_create(container: Container, folder: Path) -> str:
    """Has the runtime killed so; where the groups lie."""
    folder.mkdir()
    group = f"{container.host.namespace}/{container.name}"
    killed = f"mkdir -p {RUNC_ROOT}/{group}"
    for hierarchy in ("memory", "freezer", "unified"):
        killed += f"; mkdir -p /sys/fs/cgroup/{hierarchy}/{group}"
    runtime = fake_runtime(folder, before_create=f"{killed}; kill -9 $$")
    with pytest.raises(StatusError, match="exit status 137"):
        container.create(runtime=runtime)
    assert Path(f"/sys/fs/cgroup/memory/{group}").is_dir()
    return group


def no_stage(_container: Container) -> None:
    """Only `start` was executed."""


def created(container: Container) -> None:
    container.create()


def running(container: Container) -> None:
    container.create()
    container.start()


def stopped(container: Container) -> None:
    running(container)
    container.kill()
    container.wait()


def removed(container: Container) -> None:
    stopped(container)
    container.delete()


STAGES = [no_stage, created, running, stopped, removed]


@pytest.mark.parametrize("stage", STAGES)
def test_40_no_socket_stays_of_a_shim_that_was_killed(
    host: Host, stage: Callable[[Container], None]
) -> None:
    container = host.container(*SLEEP)
    stage(container)
    kill_monitors(host)
    assert deleted(container).exit_status == KILLED
    assert list(host.sockets.iterdir()) == []
    assert inside(host) == []


@pytest.mark.parametrize("stage", STAGES)
def test_40_no_socket_stays_of_a_shim_that_lives(
    host: Host, stage: Callable[[Container], None]
) -> None:
    """What containerd does when it has lost the connection and not the shim."""
    container = host.container(*SLEEP)
    stage(container)
    deleted(container)
    eventually(lambda: not host.monitors(), "the monitor has ended")
    assert list(host.sockets.iterdir()) == []


def test_41_containers_of_one_pod_from_before_and_after_an_upgrade(host: Host) -> None:
    """The new installation has a zygote of its own, and that of the old one has gone."""
    first = host.started(*SLEEP, pod="p41")
    old = dict(host.env)
    host.env["PYSHIM_RUNTIME_DIR"] = str(host.home / "new")
    try:
        end_zygotes(host)
        second = host.started(*SLEEP, pod="p41")
        assert second.address == first.address
        assert second.run("e", TRUE) == 0
        second.end()
        first.reconnect()
        first.end()
    finally:
        host.env.update(old)
    end_zygotes(host)


@pytest.mark.parametrize("ceiling", [None, "2", "3"])
def test_42_the_answer_suits_each_daemon(host: Host, ceiling: str | None) -> None:
    """1.6 sets no ceiling, later ones do, and 1.7 refuses version 3."""
    host.env.pop("MAX_SHIM_VERSION", None)
    if ceiling is not None:
        host.env["MAX_SHIM_VERSION"] = ceiling
    try:
        container = host.container(*SLEEP)
    finally:
        host.env.pop("MAX_SHIM_VERSION", None)
    assert container.address.startswith("unix:///")
    assert container.address == container.address.strip()
    assert (container.bundle / "address").read_text() == container.address
    container.create()
    container.start()
    container.end()


@pytest.mark.parametrize("end", ["", " ", "\n", "\n \n"])
@pytest.mark.parametrize("generation", ["2.2", "2.3"])
def test_43_both_dialects_of_stdin(host: Host, generation: str, end: str) -> None:
    """Neither what we read nor what we answer is changed when white space is cut off its end."""
    bundle = host.bundles / "c43"
    bundle.mkdir()
    (bundle / "config.json").write_text("{}")
    options = packed(options_pb2.Options(criu_image_path=f"/images{end}"))
    given = options.SerializeToString()
    if generation == "2.3":
        params = bootstrap_pb2.BootstrapParams(instance_id="c43", namespace=host.namespace)
        params.extensions.add(value=options)
        given = params.SerializeToString()
    assert given.endswith(f"/images{end}".encode())
    arguments = ["-namespace", host.namespace, "-address", str(host.home / "grpc")]
    done = subprocess.run(
        [scripts() / PROGRAM, *arguments, "-id", "c43", "start"],
        cwd=bundle,
        env=host.env,
        input=given,
        capture_output=True,
        timeout=BOUND_S,
        check=True,
    )
    assert done.stdout == done.stdout.strip()
    address = done.stdout.decode()
    if generation == "2.3":
        address = bootstrap_pb2.BootstrapResult.FromString(done.stdout).address
    deleted(Container(host, "c43", address))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_44_a_pod_may_be_deleted_in_any_order(host: Host, order: tuple[int, ...]) -> None:
    """containerd 2.0 to 2.3 executes and calls nothing after Delete for what shares a shim."""
    pod = [host.started(*SLEEP, pod="p44") for _ in range(3)]
    assert len(host.monitors()) == 1
    for number in order:
        pod[number].kill()
        pod[number].wait()
        pod[number].delete()
    for container in pod:
        container.client.close()
        shutil.rmtree(container.bundle)
    host.nothing_left()


def test_45_pods_with_random_kills_leave_nothing(host: Host) -> None:
    chance = random.Random(45)
    for number in range(25):
        pod = [host.container(*SLEEP, pod=f"p{number}") for _ in range(chance.randint(1, 3))]
        for container in pod:
            with contextlib.suppress(StatusError, OSError):
                chance.choice(STAGES)(container)
        victims = [host.monitors, host.services, host.zygotes, list]
        for pid in chance.choice(victims)():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for container in pod:
            deleted(container)
        assert inside(host) == []
    eventually(lambda: not host.monitors(), "the monitors have ended")
    assert mounts_below(host.home) == []
    assert list((RUNC_ROOT / host.namespace).glob("*")) == []


BUNDLE_FILES = ("runtime", "options.json", "address", "init.pid", "config.json", "log.json")


@pytest.mark.parametrize("missing", [(name,) for name in BUNDLE_FILES] + [BUNDLE_FILES])
def test_46_delete_does_without_any_file_of_the_bundle(
    host: Host, missing: tuple[str, ...]
) -> None:
    container = host.started(*SLEEP)
    pid = container.state().pid
    path = Path(container.address.removeprefix("unix://"))
    kill_monitors(host)
    for name in missing:
        (container.bundle / name).unlink(missing_ok=True)
    reply = deleted(container)
    assert reply.exit_status == KILLED
    assert reply.exited_at.seconds > 0
    assert reply.pid == (0 if "init.pid" in missing else pid)
    assert not alive(pid)
    if "address" in missing:  # only that file says where the socket is
        path.unlink()
    assert not path.exists()


def test_47_no_statistics_of_what_died_before_its_group_was_found(
    host: Host, tmp_path: Path
) -> None:
    hook = "kill -9 $(cat init.pid); while test -d /proc/$(cat init.pid); do :; done"
    container = host.container(*SLEEP)
    container.create(runtime=fake_runtime(tmp_path, after_create=hook))
    with pytest.raises(StatusError) as caught:
        container.call("Stats", task_pb2.StatsRequest(id=container.name), task_pb2.StatsResponse)
    assert caught.value.code == Code.NOT_FOUND
    assert container.wait().exit_status == KILLED
    container.finish()


def pids(container: Container) -> list[int]:
    """Pids."""
    request = task_pb2.PidsRequest(id=container.name)
    reply = container.call("Pids", request, task_pb2.PidsResponse, CONNECT_TIMEOUT_S)
    return [process.pid for process in reply.processes]


def connected(container: Container) -> task_pb2.ConnectResponse:
    """Connect."""
    request = task_pb2.ConnectRequest(id=container.name)
    return container.call("Connect", request, task_pb2.ConnectResponse, CONNECT_TIMEOUT_S)


def test_48_pids_need_no_runtime(host: Host, tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    runtime.write_text(
        f'#!/bin/sh\nfor word; do test "$word" != ps || {{ : >{tmp_path}/asked; exit 1; }}; done\n'
        'exec runc "$@"\n'
    )
    runtime.chmod(0o755)
    container = host.started(*SLEEP, runtime=runtime)
    container.reconnect()
    assert pids(container) == [connected(container).task_pid]
    runtime.unlink()
    assert pids(container) == [container.state().pid]
    assert not (tmp_path / "asked").exists()
    runtime.symlink_to(shutil.which("runc") or "runc")
    container.end()


@pytest.mark.parametrize("action", ["create", "start", "exec", "delete"])
def test_49_connect_waits_for_no_runtime(host: Host, tmp_path: Path, action: str) -> None:
    gate = Gate(tmp_path)
    runtime = fake_runtime(tmp_path, **{f"before_{action}": gate.text})
    other = host.started(*SLEEP, pod="p49")
    container = host.container(*SLEEP, pod="p49")
    requests = {
        "create": ("Create", container.create_request(runtime=runtime)),
        "start": ("Start", task_pb2.StartRequest(id=container.name)),
        "exec": ("Start", task_pb2.StartRequest(id=container.name, exec_id="e")),
        "delete": ("Delete", task_pb2.DeleteRequest(id=container.name)),
    }
    if action != "create":
        container.create(runtime=runtime)
    if action in {"exec", "delete"}:
        container.start()
    if action == "exec":
        container.exec("e", TRUE)
    if action == "delete":
        container.kill()
        container.wait()
    stream = container.send(*requests[action])
    eventually(gate.reached, "the runtime is at the gate")
    for each in (other, container):
        each.client, before = each.connect(), each.client
        assert connected(each).shim_pid in host.monitors()
        before, each.client = each.client, before
        before.close()
    assert pids(other) == [connected(other).task_pid]
    gate.open()
    container.client.receive(stream, BOUND_S)
    if action == "delete":
        container.leave()
    else:
        container.end()
    other.end()


def ended_by_shutdown(container: Container) -> None:
    removed(container)
    container.call("Shutdown", task_pb2.ShutdownRequest(id=container.name), Empty)


def ended_by_signal(container: Container) -> None:
    for pid in container.host.monitors():
        os.kill(pid, signal.SIGTERM)


def ended_alone(container: Container) -> None:
    removed(container)
    container.client.close()


@pytest.mark.parametrize("end", [ended_by_shutdown, ended_by_signal, ended_alone])
def test_50_nobody_finds_a_dead_socket(host: Host, end: Callable[[Container], None]) -> None:
    container = host.container(*SLEEP)
    end(container)
    eventually(lambda: not host.monitors(), "the monitor has ended")
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(FileNotFoundError):
        client.connect(container.address.removeprefix("unix://"))
    deleted(container)


def restarted(events: Events) -> Events:
    """The events' service of a containerd that has been started again."""
    path = Path(events.address)
    path.unlink()
    return Events(path)


def test_51_an_exit_while_the_daemon_is_away(host: Host, tmp_path: Path) -> None:
    """1.7 and later take a task without pids for leaked; its former pid is listed until Delete."""
    flag = tmp_path / "flag"
    os.mkfifo(flag)
    edit = bound_at(tmp_path)
    container = host.started("/bin/sh", "-c", "cat /tmp/flag; exit 42", edit=edit)
    pid = container.state().pid
    container.client.close()
    host.events.close()
    flag.write_text("go")
    eventually(lambda: not alive(pid), "the container has ended")
    eventually(lambda: not host.services(), "the service has parked")
    host.events = restarted(host.events)
    container.reconnect()
    assert connected(container).task_pid == pid
    assert pids(container) == [pid]
    state = container.state()
    assert (state.status, state.exit_status) == (task_pb2.STOPPED, 42)
    assert container.wait().exit_status == 42
    host.events.await_topic(container.name, "exit")
    assert container.finish().exit_status == 42
    assert host.events.exits(container.name) == [(container.name, 42)]


def bound_at(folder: Path) -> Callable[[dict[str, object]], None]:
    """What gives a container ``folder`` as its /tmp."""

    def edit(spec: dict[str, object]) -> None:
        mounts = spec["mounts"]
        assert isinstance(mounts, list)
        mounts.append(
            {"destination": "/tmp", "type": "bind", "source": str(folder), "options": ["rbind"]}
        )

    return edit


@pytest.mark.parametrize("how", ["away", "silent"])
def test_52_an_exit_is_told_when_the_daemon_listens_again(host: Host, how: str) -> None:
    """The Go shim gives up after 15 s: so here its publisher's bound is passed by a new service."""
    container = host.started(*SLEEP)
    host.events.await_topic(container.name, "start")
    if how == "away":
        host.events.close()
    else:
        host.events.block()
    container.kill()
    assert container.wait().exit_status == KILLED
    for _ in range(3):  # a killed one must not take the event along
        host.kill_services()
        container.state()
    if how == "away":
        host.events = restarted(host.events)
    else:
        host.events.unblock()
    host.events.await_topic(container.name, "exit")
    container.finish()
    assert set(host.events.exits(container.name)) == {(container.name, KILLED)}
    host.events.await_topic(container.name, "delete")


def test_53_a_daemon_that_restarts_while_it_stops_a_container(host: Host) -> None:
    """SIGTERM, which the container ignores; another daemon goes on with SIGKILL."""
    container = host.started("/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    request = task_pb2.KillRequest(id=container.name, signal=signal.SIGTERM)
    for _ in range(5):
        container.send_wait()
        container.send("Kill", request)
        container.reconnect()
        assert connected(container).task_pid in pids(container)
    container.send("Kill", task_pb2.KillRequest(id=container.name, signal=signal.SIGKILL))
    container.reconnect()
    assert container.wait().exit_status == KILLED
    assert container.finish().exit_status == KILLED
    assert host.events.exits(container.name) == [(container.name, KILLED)]


@pytest.mark.parametrize("shared", [False, True])
def test_54_delete_kills_what_a_killed_shim_leaves(host: Host, shared: bool) -> None:
    edit = {"edit": without_pid_namespace} if shared else {}
    script = "sleep 1000 & exec sleep 1000"
    container = host.container("/bin/sh", "-c", script, **edit)
    container.create()
    container.start()
    container.exec("e", *SLEEP)
    container.start("e")
    eventually(lambda: len(inside(host)) == 3, "three processes run")
    kill_monitors(host)
    assert len(inside(host)) == 3
    assert told_to_delete(container).exit_status == KILLED
    eventually(lambda: inside(host) == [], "no process is left")
    state = RUNC_ROOT / host.namespace / container.name

    def forgotten() -> bool:
        """A runtime that was still waiting for somebody to reap is done with by the next one."""
        if state.exists():
            told_to_delete(container)
        return not state.exists()

    eventually(forgotten, "no state is left")
    shutil.rmtree(container.bundle)


def test_54_delete_does_not_depend_on_who_reaps(host: Host, tmp_path: Path) -> None:
    """With --force runc waits until what it has killed is reaped, by somebody else."""
    hang = 'case "$*" in *--force*) exec sleep 1000;; esac'
    container = host.started(*SLEEP, runtime=fake_runtime(tmp_path, before_delete=hang))
    pid = container.state().pid
    kill_monitors(host)
    os.kill(pid, signal.SIGKILL)
    assert deleted(container).exit_status == KILLED
    assert not (RUNC_ROOT / host.namespace / container.name).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("busy", [False, True])
def test_55_a_signal_ends_the_shim(
    host: Host, tmp_path: Path, busy: bool, number: signal.Signals
) -> None:
    gate = Gate(tmp_path)
    container = host.started(*SLEEP, runtime=fake_runtime(tmp_path, before_exec=gate.text))
    if busy:
        container.exec("e", TRUE)
        container.send("Start", task_pb2.StartRequest(id=container.name, exec_id="e"))
        eventually(gate.reached, "the runtime is at the gate")
    else:
        eventually(lambda: not host.services(), "the service has parked")
    for pid in host.monitors():
        os.kill(pid, number)
    eventually(lambda: not host.monitors(), "the monitor has ended", 20)
    gate.open()
    deleted(container)
    eventually(lambda: inside(host) == [], "no process is left")


def test_55_a_signal_ends_the_go_shim_alone(go: GoHost) -> None:
    """Its container goes on without it, until the daemon has executed `delete`."""
    container = go.started(*SLEEP)
    pid = container.state().pid
    (shim,) = go.monitors()
    os.kill(shim, signal.SIGTERM)
    eventually(lambda: not go.monitors(), "the Go shim has ended", 20)
    assert Path(f"/proc/{pid}").exists()
    container.client.close()


ORPHANS_PARENT = """
import ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=True)
print("started", flush=True)
sys.stdin.read()
"""


def children(parent: int) -> dict[int, str]:
    """The states of the children of ``parent``, one letter each (proc(5))."""
    found = {}
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text()
            found[int(pid)] = stat.rpartition(")")[2].split()[0]
    return found


@pytest.mark.parametrize("zygote", [False, True])
def test_56_a_daemon_that_is_process_1_gets_no_zombies(host: Host, zygote: bool) -> None:
    """It inherits what has lost its parent: our monitor and our zygote, which live."""
    end_zygotes(host)
    if zygote:
        deleted(host.container(*SLEEP))
        eventually(lambda: not host.monitors(), "the monitor has ended")
    bundle = host.bundles / "c56"
    bundle.mkdir()
    (bundle / "config.json").write_text("{}")
    arguments = ["-namespace", host.namespace, "-address", str(host.home / "grpc")]
    launcher = [str(scripts() / PROGRAM), *arguments, "-id", "c56", "start"]
    with subprocess.Popen(
        [sys.executable, "-c", ORPHANS_PARENT, *launcher],
        cwd=bundle,
        env=host.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == b"started\n"

            def inherited() -> bool:
                """The monitor, a new zygote, and neither anything else nor a zombie."""
                wanted = {*host.monitors(), *([] if zygote else host.zygotes())}
                found = children(parent.pid)
                return set(found) == wanted and "Z" not in found.values()

            eventually(inherited, "it has inherited them alone")
            address = (bundle / "address").read_text()
            deleted(Container(host, "c56", address))
        finally:
            parent.communicate(timeout=BOUND_S)
    end_zygotes(host)


@pytest.mark.parametrize("zygote", [False, True])
def test_57_folders_are_made_in_spite_of_the_umask(host: Host, zygote: bool) -> None:
    old = dict(host.env)
    fresh = host.home / "f"
    host.env["PYSHIM_SOCKET_DIR"] = str(fresh / "d/s")
    if not zygote:
        host.env["PYSHIM_RUNTIME_DIR"] = str(fresh / "run")
    before = os.umask(0o777)
    try:
        container = host.container(*SLEEP)
    finally:
        os.umask(before)
        host.env.update(old)
    folder = fresh / "d/s"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.stat().st_mode) & 0o100
    if not zygote:
        assert stat.S_IMODE((fresh / "run").stat().st_mode) == 0o700
    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    container.create()
    container.start()
    container.end()
    end_zygotes(host)
    shutil.rmtree(fresh)


def test_58_no_file_of_an_exec_accumulates(host: Host) -> None:
    """Those that ran, that timed out, that never started, and that could not."""
    container = host.started(*SLEEP)
    container.run("first", TRUE)
    before = sorted(path.name for path in container.bundle.rglob("*"))
    for number in range(40):
        container.exec(f"slow{number}", *SLEEP)
        container.start(f"slow{number}")
        container.kill(exec_id=f"slow{number}")
        container.wait(f"slow{number}")
        container.delete(f"slow{number}")
        container.run(f"quick{number}", TRUE)
        container.exec(f"never{number}", TRUE)
        container.delete(f"never{number}")
        container.exec(f"cannot{number}", "/no/such/program")
        with pytest.raises(StatusError):
            container.start(f"cannot{number}")
        container.delete(f"cannot{number}")
    assert sorted(path.name for path in container.bundle.rglob("*")) == before
    container.exec("left", *SLEEP)
    container.start("left")
    container.end()


def test_59_each_exec_exit_is_published_though_services_die(host: Host) -> None:
    container = host.started(*SLEEP)
    names = [f"e{number}" for number in range(30)]
    for number, name in enumerate(names):
        container.exec(name, "/bin/sh", "-c", f"exit {number}")
        container.start(name)
        if number % 3 == 0:
            host.kill_services()
    assert [container.wait(name).exit_status for name in names] == list(range(30))
    for name in names:
        container.delete(name)
    container.end()
    host.events.await_topic(container.name, "delete")
    exits = dict(host.events.exits(container.name))
    assert exits == {**dict(zip(names, range(30), strict=True)), container.name: KILLED}


def test_60_a_crash_of_the_service_costs_the_container_nothing(host: Host) -> None:
    container = host.started(*SLEEP)
    pid = container.state().pid
    for _ in range(10):
        host.kill_services()
        state = container.state()
        assert (state.status, state.pid) == (task_pb2.RUNNING, pid)
    assert alive(pid)
    container.end()


def test_60_a_crash_of_the_monitor_ends_the_container_in_order(host: Host) -> None:
    container = host.started(*SLEEP)
    pid = container.state().pid
    kill_monitors(host)
    assert alive(pid)
    for _ in range(2):
        done = host.act("delete", container.name)
        assert task_pb2.DeleteResponse.FromString(done.stdout).exit_status == KILLED
        assert not alive(pid)
    shutil.rmtree(container.bundle)
