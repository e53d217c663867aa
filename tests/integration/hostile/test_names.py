"""Ids and paths that try to lead elsewhere: refused with a clear word, and nothing is written."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyshim.api import options_pb2, task_pb2
from pyshim.ttrpc.status import Code, StatusError
from tests.integration.containerd import BOUND_S, mounts_below, scripts
from tests.integration.fake_runtime import fake_runtime
from tests.integration.fifos import Reader
from tests.integration.shim import SERVICE, Container, Host, host, module_host, packed

__all__ = ["host", "module_host"]

SLEEP = ("/bin/sleep", "1000")
LONG = "x" * 4096
BAD_IDS = ("", ".", "..", "../x", "a/../../x", "/etc", "a/b", "a\nb", "a\x7fb", LONG)
WITH_NUL = ("a\0b", "\0", "../x\0")
BAD_PATHS = ("relative", "../up", LONG)


def files_below(folder: Path) -> set[str]:
    """Everything in a folder but what any container leaves there."""
    return {str(path) for path in folder.rglob("*")}


@pytest.fixture
def running(host: Host) -> Iterator[Container]:
    """A container for requests that must do nothing to it."""
    container = host.started(*SLEEP)
    yield container
    assert container.state().status == task_pb2.RUNNING
    container.end()


@contextlib.contextmanager
def refused(*codes: Code) -> Iterator[None]:
    """A request fails with one of ``codes``, and with no text of our insides."""
    with pytest.raises(StatusError) as caught:
        yield
    assert caught.value.code in codes, caught.value
    assert "Traceback" not in caught.value.message
    assert "internal error" not in caught.value.message


# --- The command line ----------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["start", "delete"])
def test_ids_on_the_command_line(host: Host, where: Path, action: str) -> None:
    host.act("delete", "b")  # a zygote has its files by now
    before = files_below(host.home)
    for name in BAD_IDS:
        done = launcher(host, where, "-namespace", host.namespace, "-id", name, action)
        assert (done.returncode, done.stdout) == (1, b""), name
        assert done.stderr.count(b"\n") == 1, name
        assert len(done.stderr) < 200, name
        assert b"-id" in done.stderr, name
    assert files_below(host.home) == before


def test_namespaces_on_the_command_line(host: Host, where: Path) -> None:
    for name in (*BAD_IDS[1:], "\udcff/x"):
        done = launcher(host, where, "-namespace", name, "-id", "c", "start")
        assert (done.returncode, done.stdout) == (1, b""), name
        assert b"-namespace" in done.stderr, name
    assert list(host.sockets.iterdir()) == []


def test_bundles_on_the_command_line(host: Host, where: Path) -> None:
    for bundle in ("/no/such/folder", "../b/nothing", LONG, "/dev/null"):
        arguments = ("-namespace", host.namespace, "-id", "c", "-bundle", bundle, "start")
        done = launcher(host, where, *arguments)
        assert (done.returncode, done.stdout) == (1, b""), bundle
        assert done.stderr.count(b"\n") == 1, bundle
    assert list(host.sockets.iterdir()) == []
    assert list(where.iterdir()) == []


@pytest.fixture
def where(host: Host) -> Iterator[Path]:
    """An empty bundle."""
    folder = host.bundles / "b"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def launcher(host: Host, where: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """The launcher with these arguments, in the folder ``where``."""
    return subprocess.run(
        [str(scripts() / "containerd-shim-pyshim-v2"), *arguments],
        cwd=where,
        env=host.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=BOUND_S,
        check=False,
    )


# --- Requests ------------------------------------------------------------------------------------


def test_ids_of_containers(host: Host, running: Container) -> None:
    before = files_below(host.home)
    for name in (*BAD_IDS, *WITH_NUL):
        request = running.create_request()
        request.id = name
        with refused(Code.INVALID_ARGUMENT):
            running.call("Create", request, task_pb2.CreateTaskResponse)
        for method, kind in (
            ("State", task_pb2.StateRequest),
            ("Start", task_pb2.StartRequest),
            ("Delete", task_pb2.DeleteRequest),
            ("Pids", task_pb2.PidsRequest),
            ("Checkpoint", task_pb2.CheckpointTaskRequest),
        ):
            with refused(Code.INVALID_ARGUMENT if "\0" in name else Code.NOT_FOUND):
                running.call(method, kind(id=name), task_pb2.CreateTaskResponse)
    assert files_below(host.home) == before


def test_ids_of_execs(host: Host, running: Container) -> None:
    before = files_below(host.home)
    for name in (*BAD_IDS, *WITH_NUL):
        with refused(Code.INVALID_ARGUMENT):
            running.exec(name, "/bin/true")
        if name:
            with refused(Code.INVALID_ARGUMENT if "\0" in name else Code.NOT_FOUND):
                running.start(name)
    with refused(Code.INVALID_ARGUMENT):
        running.exec("e" * 201, "/bin/true")
    assert running.run("e" * 200, "/bin/true") == 0
    assert files_below(host.home) == before


def test_bundles_of_containers(host: Host) -> None:
    container = host.container(*SLEEP)
    (host.bundles / "other").mkdir()
    before = files_below(host.home)
    # The host's root is a folder; there is no configuration in it.
    for bundle in ("", "/", "b", "../b", f"{container.bundle}/../other", "/dev/null", "a\0b", LONG):
        request = container.create_request()
        request.bundle = bundle
        with refused(Code.INVALID_ARGUMENT):
            container.call("Create", request, task_pb2.CreateTaskResponse)
    assert files_below(host.home) == before
    assert not Path("/options.json").exists()
    (host.bundles / "other").rmdir()
    container.leave()


def test_streams_of_containers(host: Host) -> None:
    container = host.container(*SLEEP)
    before = files_below(host.home)
    for path, code in (
        *((path, Code.INVALID_ARGUMENT) for path in BAD_PATHS),
        ("a\0b", Code.INVALID_ARGUMENT),
        ("/a\0b", Code.INVALID_ARGUMENT),
        ("file://relative", Code.INVALID_ARGUMENT),
        ("what://x", Code.UNKNOWN),
        ("what:///x", Code.UNKNOWN),
        (f"/{LONG}", Code.UNKNOWN),
        (f"file:///{LONG}", Code.UNKNOWN),
        ("/no/such/fifo", Code.UNKNOWN),
    ):
        for stream in ("stdin", "stdout", "stderr"):
            if (stream, path[:5]) == ("stdin", "file:"):
                continue
            with refused(code):
                container.create(**{stream: path})
    for uri in ("/", "binary:///no/such", "binary://x", "binary:///bin/%00x", "file:///"):
        with refused(Code.INVALID_ARGUMENT, Code.UNKNOWN):
            container.create(stdout=uri)
    left = files_below(host.home) - before
    assert left <= {str(container.bundle / name) for name in ("runtime", "options.json")}
    container.leave()


def test_paths_of_checkpoints(running: Container) -> None:
    for path in ("", *BAD_PATHS, "a\0b", "/a\0b"):
        request = task_pb2.CheckpointTaskRequest(id=running.name, path=path)
        with refused(Code.INVALID_ARGUMENT):
            running.call("Checkpoint", request, task_pb2.CreateTaskResponse)


def test_options_that_hold_a_nul(host: Host) -> None:
    container = host.container(*SLEEP)
    for field in ("binary_name", "root", "criu_path"):
        request = container.create_request()
        request.options.CopyFrom(packed(options_pb2.Options(**{field: "/a\0b"})))
        with refused(Code.INVALID_ARGUMENT):
            container.call("Create", request, task_pb2.CreateTaskResponse)
    container.leave()


# --- Symlinks ------------------------------------------------------------------------------------


def with_symlink(path: Path, target: Path) -> Path:
    """Puts a symlink to ``target`` in the place of what is at ``path``."""
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    return path


def test_a_symlink_in_a_fifos_place(host: Host, tmp_path: Path) -> None:
    secret = tmp_path / "passwd"
    secret.write_text("as it was\n")
    link = with_symlink(tmp_path / "fifo", secret)
    container = host.container("/bin/echo", "written")
    for stream in ("stdin", "stdout", "stderr"):
        for scheme in ("", "fifo://"):
            with refused(Code.UNKNOWN):
                container.create(**{stream: f"{scheme}{link}"})
    assert secret.read_text() == "as it was\n"
    container.leave()


def test_a_symlink_in_the_place_of_an_execs_fifo(running: Container, tmp_path: Path) -> None:
    secret = tmp_path / "passwd"
    secret.write_text("as it was\n")
    link = with_symlink(tmp_path / "fifo", secret)
    running.exec("e", "/bin/echo", "written", stdout=link)
    with refused(Code.UNKNOWN):
        running.start("e")
    running.delete("e")
    assert secret.read_text() == "as it was\n"


def test_a_fifo_that_is_swapped_while_the_runtime_works(host: Host, tmp_path: Path) -> None:
    """It was looked at when it had a reader; what is opened later is looked at again."""
    secret = tmp_path / "passwd"
    secret.write_text("as it was\n")
    reader = Reader(tmp_path / "fifo")
    runtime = fake_runtime(tmp_path, before_create=f"ln -sf {secret} {tmp_path}/fifo")
    container = host.container("/bin/echo", "written")
    with refused(Code.UNKNOWN):
        container.create(stdout=tmp_path / "fifo", runtime=runtime)
    assert reader.all() == b""
    assert secret.read_text() == "as it was\n"
    container.leave()


def test_a_log_that_is_a_fifo_stops_nobody(host: Host, tmp_path: Path) -> None:
    """file:// names a file; one that waits for a reader when it is opened would stop everybody."""
    os.mkfifo(tmp_path / "log")
    container = host.container("/bin/true")
    stream = container.send("Create", container.create_request(stdout=f"file://{tmp_path}/log"))
    other = container.connect()
    with pytest.raises(StatusError) as caught:
        other.call(
            SERVICE,
            "State",
            task_pb2.StateRequest(id=container.name),
            task_pb2.StateResponse,
        )
    assert caught.value.code == Code.NOT_FOUND
    other.close()
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    assert container.receive(stream, task_pb2.CreateTaskResponse).pid
    container.start()
    container.wait()
    container.finish()
    os.close(reader)


def test_a_rootfs_that_is_a_symlink(host: Host, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    container = host.container(*SLEEP)
    (container.bundle / "rootfs").symlink_to(outside)
    request = container.create_request()
    request.rootfs.add(type="tmpfs", source="tmpfs")
    with refused(Code.UNKNOWN):
        container.call("Create", request, task_pb2.CreateTaskResponse)
    assert mounts_below(tmp_path) == []
    container.leave()


@pytest.mark.parametrize("by", ["Delete", "delete"])
def test_a_rootfs_that_is_swapped_for_a_symlink(host: Host, tmp_path: Path, by: str) -> None:
    """What is mounted where it leads stays mounted, and what is there stays."""
    outside = tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    (outside / "file").write_text("kept")
    mount(outside, outside)
    mount(host.rootfs, outside / "inner")
    try:
        container = created_on(host, edit_root)
        rootfs = container.bundle / "rootfs"
        subprocess.run(["umount", "-l", str(rootfs)], check=True, timeout=60)
        rootfs.rmdir()
        rootfs.symlink_to(outside)
        container.start()
        container.kill()
        container.wait()
        if by == "Delete":
            container.delete()
        else:
            done = host.act("delete", container.name, "-bundle", str(container.bundle))
            assert done.returncode == 0
        assert {str(outside), str(outside / "inner")} <= set(mounts_below(tmp_path))
        assert (outside / "file").read_text() == "kept"
        assert rootfs.is_symlink()
        rootfs.unlink()
        container.leave()
    finally:
        for point in (outside / "inner", outside):
            subprocess.run(["umount", "-l", str(point)], check=False, timeout=60)


def mount(source: Path, point: Path) -> None:
    subprocess.run(["mount", "--bind", str(source), str(point)], check=True, timeout=60)


def edit_root(spec: dict[str, dict[str, object]]) -> None:
    """The root is the bundle's own."""
    spec["root"]["path"] = "rootfs"


def created_on(host: Host, edit: Callable[[dict[str, dict[str, object]]], None]) -> Container:
    """A container whose root Create mounts."""
    container = host.container(*SLEEP, edit=edit)
    request = container.create_request()
    request.rootfs.add(type="bind", source=str(host.rootfs), options=["rbind", "ro"])
    container.call("Create", request, task_pb2.CreateTaskResponse)
    return container
