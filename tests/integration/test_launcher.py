"""containerd-shim-pyshim-v2 as containerd executes it, without a containerd."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from google.protobuf import any_pb2

from pyshim.api import info_pb2, options_pb2, task_pb2
from pyshim.ttrpc.client import Client
from pyshim.ttrpc.status import StatusError
from pyshim.zygote import address
from tests.integration.conftest import eventually, interpreter, processes_of

PROGRAM = "containerd-shim-pyshim-v2"
MONITOR = "pyshim-monitor"
BOUND_S = 60


def only(found: Callable[[], Collection[int]], what: str) -> int:
    """What ``found`` returns, once it is a single one; others come and go."""
    last: Collection[int] = ()

    def single() -> bool:
        nonlocal last
        last = found()
        return len(last) == 1

    eventually(single, what)
    return next(iter(last))


class Host:
    """Private folders for bundles, sockets and the zygote; every process that has them in mind."""

    def __init__(self, programs: Path, home: Path) -> None:
        self.home = home
        self.python = interpreter(programs)
        self.runtime = home / "run"
        self.sockets = home / "s"
        self.bin = home / "bin"
        self.bin.mkdir()
        (self.bin / MONITOR).symlink_to(programs / MONITOR)
        self.launcher = programs / PROGRAM
        self.env = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "PYSHIM_RUNTIME_DIR": str(self.runtime),
            "PYSHIM_SOCKET_DIR": str(self.sockets),
            "PYSHIM_PYTHON": self.python,
        }

    def bundle(self, name: str, config: str = "{}") -> Path:
        """A bundle with ``config`` as its config.json."""
        folder = self.home / name
        folder.mkdir()
        (folder / "config.json").write_text(config)
        return folder

    def run(
        self, *arguments: str, cwd: Path | None = None, stdin: bytes = b"", **env: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs the launcher to the end of its output; stdout and stderr apart."""
        return subprocess.run(
            [self.launcher, *arguments],
            cwd=cwd or self.home,
            env={**self.env, **env},
            input=stdin,
            capture_output=True,
            timeout=BOUND_S,
            check=False,
        )

    def act(
        self, action: str, bundle: Path, name: str = "c", stdin: bytes = b"", **env: str
    ) -> subprocess.CompletedProcess[bytes]:
        """`start` or `delete` for the container ``name``."""
        arguments = ["-namespace", "test", "-address", str(self.home / "grpc"), "-id", name]
        arguments += ["-publish-binary", "/bin/true", action]
        return self.run(*arguments, cwd=bundle, stdin=stdin, **env)

    def start(self, bundle: Path, name: str = "c", **env: str) -> Path:
        """The socket of a shim that was started for ``name``."""
        done = self.act("start", bundle, name, **env)
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(b"unix:///")
        assert not done.stdout.endswith(b"\n")
        return Path(done.stdout.decode().removeprefix("unix://"))

    def zygotes(self) -> set[int]:
        """Zygotes, and while they do something their children."""
        return {pid for pid, line in processes_of(self.home).items() if "pyshim.zygote" in line}

    def one_zygote(self) -> int:
        """The zygote, when it has become the only one."""
        return only(self.zygotes, "one zygote is left")

    def monitors(self) -> dict[int, str]:
        """What was started as a monitor."""
        found = processes_of(self.home)
        return {pid: line for pid, line in found.items() if "pyshim.zygote" not in line}

    def named(self, program: str) -> list[int]:
        """The processes that execute ``program``."""
        found = self.monitors()
        return [pid for pid, line in found.items() if line.split(" ")[0].endswith(program)]

    def one_monitor(self) -> int:
        """The monitor, when it is the only one: what it executes looks like it for a moment."""
        return only(lambda: self.named(MONITOR), "there is one monitor")

    def end(self) -> None:
        """Ends everything, by pid, until nothing is left."""

        def gone() -> bool:
            for pid in (left := processes_of(self.home)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        eventually(gone, "every process of this test has ended")


@pytest.fixture
def host(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    home = tmp_path_factory.mktemp("l")
    found = Host(programs, home)
    try:
        yield found
    finally:
        found.end()


def refused(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one line of a failure."""
    text = done.stderr.decode()
    assert done.returncode == 1
    assert done.stdout == b""
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert text.startswith(f"{PROGRAM}: ")
    return text


# --- What it says --------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["-v", "--v", "-version", "--version"])
def test_version_needs_no_python(host: Host, flag: str) -> None:
    done = host.run(flag, PYSHIM_PYTHON="/nonexistent")
    lines = done.stdout.decode().splitlines()
    assert (done.returncode, done.stderr) == (0, b"")
    assert lines[0] == f"{PROGRAM}:"
    assert [line.split(":")[0] for line in lines[1:]] == ["  Version", "  Revision"]
    assert not host.zygotes()


def test_info(host: Host) -> None:
    done = host.run("-info")
    assert (done.returncode, done.stderr) == (0, b"")
    info = info_pb2.RuntimeInfo.FromString(done.stdout)
    assert info.name == "io.containerd.pyshim.v2"
    assert "linux" in json.loads(info.features.value)


def test_an_unknown_flag(host: Host) -> None:
    assert "-foo" in refused(host.run("-foo", "start"))


def test_a_missing_flag(host: Host) -> None:
    assert "-id" in refused(host.run("-namespace", "n", "start"))


def test_a_bundle_without_configuration(host: Host) -> None:
    """Some callers of containerd 2.x have none; a Create without one is refused."""
    empty = host.home / "empty"
    empty.mkdir()
    path = host.start(empty)
    request = task_pb2.CreateTaskRequest(id="c", bundle=str(empty))
    with Client(str(path), BOUND_S) as client, pytest.raises(StatusError, match=r"config\.json"):
        client.call("containerd.task.v2.Task", "Create", request, task_pb2.CreateTaskResponse)


def test_a_bundle_that_is_not_there(host: Host) -> None:
    arguments = ["-namespace", "n", "-id", "i", "-bundle", "/nonexistent", "start"]
    assert "/nonexistent" in refused(host.run(*arguments))
    assert not list(host.home.glob("s/*"))


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_configuration_that_is_not_json(host: Host, text: str) -> None:
    bundle = host.bundle("b")
    (bundle / "config.json").write_bytes(text.encode("latin-1"))
    assert str(bundle / "config.json") in refused(host.act("start", bundle))


def test_a_socket_path_that_is_too_long(host: Host) -> None:
    folder = host.home / ("f" * 60)
    done = host.act("start", host.bundle("b"), PYSHIM_SOCKET_DIR=str(folder))
    assert "106" in refused(done)
    assert not folder.exists()


def test_no_interpreter(host: Host) -> None:
    note = Path("/etc/pyshim/interpreter")
    assert not note.exists(), f"{note} gives every launcher an interpreter; move it away to test"
    host.launcher = shutil.copy(host.launcher, host.home / "copied")
    text = refused(host.run("-info", PYSHIM_PYTHON=""))
    for place in ("PYSHIM_PYTHON", "/etc/pyshim/interpreter", f"{host.runtime}/interpreter"):
        assert place in text


def test_an_interpreter_that_cannot_be_executed(host: Host) -> None:
    assert "/nonexistent" in refused(host.run("-info", PYSHIM_PYTHON="/nonexistent"))


# --- Where it finds Python -----------------------------------------------------------------------


def test_the_interpreter_beside_the_program(host: Host) -> None:
    host.launcher = shutil.copy(host.launcher, host.bin / PROGRAM)
    (host.bin / "python3").write_text(f'#!/bin/sh\nexec "{host.python}" "$@"\n')
    (host.bin / "python3").chmod(0o755)
    assert host.run("-info", PYSHIM_PYTHON="").returncode == 0


def test_the_interpreter_of_the_last_zygote(host: Host) -> None:
    host.run("-info")
    assert (host.runtime / "interpreter").read_text() == f"{host.python}\n"
    host.launcher = shutil.copy(host.launcher, host.home / "copied")
    assert host.run("-info", PYSHIM_PYTHON="").returncode == 0


def test_without_a_zygote(host: Host) -> None:
    """Its folder cannot be made, so that the launcher becomes an interpreter."""
    nowhere = "/proc/nowhere"
    assert host.run("-info", PYSHIM_RUNTIME_DIR=nowhere).returncode == 0
    path = host.start(host.bundle("b"), PYSHIM_RUNTIME_DIR=nowhere)
    host.one_monitor()
    connect(path)
    eventually(lambda: not host.zygotes(), "what the service has started as one has failed")


# --- start ---------------------------------------------------------------------------------------


def children_of(parent: int) -> list[int]:
    """The pids of the children of ``parent`` (proc(5))."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
        return [int(pid) for pid in text.split()]
    return []


def connect(path: Path) -> None:
    """Connects once."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(BOUND_S)
        client.connect(str(path))


def test_start(host: Host) -> None:
    bundle = host.bundle("b")
    path = host.start(bundle)
    about = path.stat()
    assert stat.S_IMODE(about.st_mode) == 0o600
    assert about.st_uid == os.geteuid()
    assert (bundle / "address").read_text() == f"unix://{path}"
    connect(path)
    (monitor,) = host.monitors()
    assert os.readlink(f"/proc/{monitor}/cwd") == str(bundle)
    assert os.getsid(monitor) == monitor
    assert {os.readlink(f"/proc/{monitor}/fd/{fd}") for fd in range(3)} == {"/dev/null"}


def test_no_descendant_keeps_a_file_of_the_caller(host: Host) -> None:
    """containerd reads the answer until everybody has closed the pipe."""
    bundle = host.bundle("b")
    extra, given = os.pipe()
    try:
        identity = os.readlink(f"/proc/self/fd/{given}")
        arguments = ["-namespace", "n", "-id", "i", "-address", "/a", "start"]
        process = subprocess.Popen(
            [host.launcher, *arguments],
            cwd=bundle,
            env=host.env,
            stdout=given,
            stderr=given,
            pass_fds=[given],
        )
        assert process.wait(BOUND_S) == 0
        for pid in processes_of(host.home):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    assert os.readlink(link) != identity
        os.close(given)
        given = -1
        assert os.read(extra, 200).startswith(b"unix://")
        assert os.read(extra, 1) == b""
    finally:
        os.close(extra)
        if given >= 0:
            os.close(given)


def test_containers_of_a_group_share_a_monitor(host: Host) -> None:
    config = json.dumps({"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}})
    names = [f"c{number}" for number in range(5)]
    bundles = [host.bundle(name, config) for name in names]
    with ThreadPoolExecutor(len(names)) as pool:
        paths = set(pool.map(host.start, bundles, names))
    assert len(paths) == 1
    assert len(host.monitors()) == 1
    assert {(bundle / "address").read_text() for bundle in bundles} == {f"unix://{paths.pop()}"}


def test_a_dead_socket_is_replaced(host: Host) -> None:
    bundle = host.bundle("b")
    path = host.start(bundle)
    (monitor,) = host.monitors()
    os.kill(monitor, signal.SIGKILL)
    eventually(lambda: not host.monitors(), "the monitor has ended")
    assert host.start(bundle) == path
    connect(path)


def environment_with(python: str, monitor: str, folder: Path) -> Path:
    """The interpreter of an environment like that of ``python``, whose monitor is ``monitor``."""
    ours = Path(python).parent
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text((ours.parent / "pyvenv.cfg").read_text())
    (folder / "lib").symlink_to(ours.parent / "lib")
    (folder / "bin/python3").symlink_to(Path(python).resolve())
    (folder / "bin" / MONITOR).write_text(monitor)
    (folder / "bin" / MONITOR).chmod(0o755)
    return folder / "bin/python3"


def test_a_monitor_that_cannot_be_executed_leaves_nothing(host: Host) -> None:
    python = environment_with(host.python, "no program\n", host.home / "environment")
    text = refused(host.act("start", host.bundle("b"), PYSHIM_PYTHON=str(python)))
    assert str(python.parent / MONITOR) in text
    assert not list(host.sockets.iterdir())


def test_the_oom_score_is_one_above_the_callers(host: Host) -> None:
    host.start(host.bundle("b"))
    (monitor,) = host.monitors()
    ours = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(Path(f"/proc/{monitor}/oom_score_adj").read_text()) == min(ours + 1, 1000)


def given(**fields: str) -> bytes:
    """What containerd writes to `start` for runc options."""
    chosen = options_pb2.Options(**fields)  # type: ignore[arg-type]
    packed = any_pb2.Any(type_url=chosen.DESCRIPTOR.full_name, value=chosen.SerializeToString())
    return packed.SerializeToString()


def test_the_monitor_enters_the_shims_cgroup(host: Host) -> None:
    name = f"pyshim-test-{os.getpid()}"
    folders = [Path("/sys/fs/cgroup") / kind / name for kind in ("memory", "pids")]
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        folders = [Path("/sys/fs/cgroup") / name]
    try:
        for folder in folders:
            folder.mkdir()
        done = host.act("start", host.bundle("b"), stdin=given(shim_cgroup=f"/{name}"))
        assert (done.returncode, done.stderr) == (0, b"")
        monitor = host.one_monitor()
        for folder in folders:
            assert str(monitor) in (folder / "cgroup.procs").read_text().split()
    finally:
        host.end()
        for folder in folders:
            eventually(
                lambda folder=folder: not (folder / "cgroup.procs").read_text(), "it is empty"
            )
            folder.rmdir()


def test_a_shims_cgroup_that_is_not_there(host: Host) -> None:
    text = refused(host.act("start", host.bundle("b"), stdin=given(shim_cgroup="/no/such")))
    assert "/no/such" in text
    assert not list(host.sockets.iterdir())
    assert not host.named(MONITOR)


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x0a\x03a.B"])
def test_options_that_are_none(host: Host, data: bytes) -> None:
    refused(host.act("start", host.bundle("b"), stdin=data))
    assert not host.named(MONITOR)


# --- delete --------------------------------------------------------------------------------------


def test_delete_may_be_repeated(host: Host) -> None:
    bundle = host.bundle("b")
    path = host.start(bundle)
    (bundle / "init.pid").write_text("4711")
    for monitor in host.monitors():
        os.kill(monitor, signal.SIGKILL)
    eventually(lambda: not host.monitors(), "the monitor has ended")
    for _ in range(2):
        done = host.act("delete", bundle)
        assert (done.returncode, done.stderr) == (0, b"")
        response = task_pb2.DeleteResponse.FromString(done.stdout)
        assert (response.pid, response.exit_status) == (4711, 137)
        assert response.exited_at.seconds > 0
        assert not path.exists()


def test_delete_of_what_never_was(host: Host) -> None:
    done = host.act("delete", host.home)
    assert (done.returncode, done.stderr) == (0, b"")


# --- The zygote ----------------------------------------------------------------------------------


def test_ten_launches_at_once_start_one_zygote(host: Host) -> None:
    with ThreadPoolExecutor(10) as pool:
        done = list(pool.map(lambda _: host.run("-info"), range(10)))
    assert {(d.returncode, d.stderr) for d in done} == {(0, b"")}
    assert len({d.stdout for d in done}) == 1
    zygote = host.one_zygote()
    host.run("-info")
    assert host.one_zygote() == zygote


def test_a_killed_zygote_is_replaced(host: Host) -> None:
    host.run("-info")
    first = host.one_zygote()
    os.kill(first, signal.SIGKILL)
    eventually(lambda: first not in host.zygotes(), "the first zygote has ended")
    host.start(host.bundle("b"))
    assert host.one_zygote() != first


def test_a_zygote_that_is_told_to_end_takes_its_socket_along(host: Host) -> None:
    host.run("-info")
    os.kill(host.one_zygote(), signal.SIGTERM)
    eventually(lambda: not host.zygotes(), "the zygote has ended")
    assert not list(host.runtime.glob("*.sock"))


@pytest.mark.parametrize("end", ["removed", "moved", "with its folder"])
def test_a_zygote_whose_socket_has_gone_makes_room_for_another(host: Host, end: str) -> None:
    """It has the lock: while it lived, everybody would do without a zygote."""
    host.run("-info")
    first = host.one_zygote()
    (path,) = host.runtime.glob("*.sock")
    eventually(lambda: address.answers(str(path)), "the zygote answers")
    if end == "removed":
        path.unlink()
    elif end == "moved":
        path.rename(path.with_name("moved"))
    else:
        shutil.rmtree(host.runtime)
    eventually(lambda: first not in host.zygotes(), "the zygote has ended")
    host.run("-info")
    assert host.one_zygote() != first


def test_an_idle_zygote_ends(host: Host) -> None:
    host.run("-info", PYSHIM_ZYGOTE_IDLE_S="0.1")
    eventually(lambda: not host.zygotes(), "the idle zygote has ended")
    assert not list(host.runtime.glob("*.sock"))


def test_a_zygote_is_started_from_python_too(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSHIM_RUNTIME_DIR", str(host.runtime))
    path = address.socket_path(host.python)
    for fd in (ends := os.pipe()):
        os.set_inheritable(fd, True)
    address.ensure(host.python)
    eventually(lambda: address.answers(path), "the zygote answers")
    zygote = host.one_zygote()
    address.ensure(host.python)
    assert host.one_zygote() == zygote
    # It answers before it has imported all; libuv has a pipe of its own.
    own = {"/dev/null", f"{path}.lock"}
    eventually(lambda: files_of(zygote) == own, "it has no file but its own")
    assert files_of(zygote, "pipe:") & files_of(os.getpid(), "pipe:") == set()
    for fd in ends:
        os.close(fd)


def test_a_zygote_has_as_many_descriptors_as_we(host: Host) -> None:
    """Also where root may not raise a limit, so that none may be lowered for a while."""
    host.run("-info")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    eventually(
        lambda: resource.prlimit(host.one_zygote(), resource.RLIMIT_NOFILE) == limits,
        "its limit is ours",
    )


def files_of(pid: int, prefix: str = "/") -> set[str]:
    """What ``pid`` has open of a kind: files, unless ``prefix`` says otherwise."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(link))
    return {name for name in found if name.startswith(prefix)}


def test_killed_children_of_the_zygote_cost_nothing(host: Host) -> None:
    """Whatever is killed while it answers a launcher is done again, and only once in effect."""
    host.run("-info")
    zygote = host.one_zygote()
    done = threading.Event()
    killed = 0

    def killer() -> None:
        nonlocal killed
        pause_s = 0.001
        while not done.wait(pause_s):
            pause_s = 0.001 + (pause_s * 7919) % 0.017
            for pid in children_of(zygote):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        for number in range(40):
            bundle = host.bundle(f"b{number}")
            name = f"c{number}"
            path = host.start(bundle, name)
            connect(path)
            monitor = host.one_monitor()
            answer = host.act("delete", bundle, name)
            assert (answer.returncode, answer.stderr) == (0, b"")
            assert task_pb2.DeleteResponse.FromString(answer.stdout).exit_status == 137
            with contextlib.suppress(ProcessLookupError):  # `delete` may have ended it
                os.kill(monitor, signal.SIGKILL)
            eventually(lambda: not host.monitors(), "the monitor has ended")
    finally:
        done.set()
        thread.join(BOUND_S)
    assert killed >= 10


def test_a_stopped_zygote_is_done_without(host: Host) -> None:
    host.run("-info")
    zygote = host.one_zygote()
    os.kill(zygote, signal.SIGSTOP)
    try:
        bundle = host.bundle("b")
        path = host.start(bundle)
        monitor = host.one_monitor()
        connect(path)
    finally:
        os.kill(zygote, signal.SIGCONT)
    eventually(lambda: host.one_zygote() == zygote, "what it was asked has ended")
    assert host.one_monitor() == monitor
    assert path.is_socket()
    connect(path)


def test_nobody_else_may_reach_the_zygote(host: Host) -> None:
    host.run("-info")
    (path,) = host.runtime.glob("*.sock")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(host.runtime.stat().st_mode) == 0o700


def test_a_zygote_survives_whatever_it_is_sent(host: Host) -> None:
    host.run("-info")
    zygote = host.one_zygote()
    (path,) = host.runtime.glob("*.sock")
    for data in (b"x", b"\0" * 8, b"\x5a\x59\x53\x50\x02\0\0\0", b"y" * 1000):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(BOUND_S)
            client.connect(str(path))
            client.send(data)
            assert client.recv(16) == b""
    assert host.run("-info").returncode == 0
    assert host.one_zygote() == zygote
