"""Checkpoint and restore: what the runtime is told, and what becomes of its answer.

criu itself depends on the kernel; where it cannot work its reason must reach the client.  A runtime
that only plays the two sub-commands shows the rest on every host.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from pyshim.api import linuxrunc_pb2, options_pb2, task_pb2
from pyshim.ttrpc.status import Code, StatusError
from tests.integration.containerd import BOUND_S, eventually
from tests.integration.fake_runtime import fake_runtime
from tests.integration.shim import Container, Host, host, module_host, packed

__all__ = ["host", "module_host"]

SLEEP = ("/bin/sleep", "1000")


def checkpoint(container: Container, path: Path | str, options: Message | None = None) -> None:
    """The call Checkpoint."""
    request = task_pb2.CheckpointTaskRequest(id=container.name, path=str(path))
    if options is not None:
        request.options.CopyFrom(packed(options))
    container.call("Checkpoint", request, Empty)


def player(folder: Path) -> Path:
    """A runtime whose `checkpoint` and `restore` do what criu would have them do, without criu.

    Their arguments are kept in `checkpoint.arguments` and `restore.arguments`.
    """
    kept = f'echo "$*" >{folder}/$action.arguments; cp "$0" {folder}/copy'
    root = 'while [ "$1" != --root ]; do shift; done; root=$2'
    last = "for id; do :; done"
    ends = f'{kept}; case "$*" in *--leave-running*) exit 0;; esac'
    kills = f'{ends}; {last}; {root}; runc --root "$root" kill "$id" KILL; exit 0'
    # A restored container is a new one of the same bundle that runs already.
    file = 'for word; do [ "$before" = --pid-file ] && file=$word; before=$word; done'
    made = 'runc --root "$root" create --bundle . --pid-file "$file" "$id"'
    restores = f'{kept}; {last}; {file}; {root}; {made} && exec runc --root "$root" start "$id"'
    return fake_runtime(folder, before_checkpoint=kills, before_restore=restores)


def test_a_container_goes_on_after_its_checkpoint(host: Host, tmp_path: Path) -> None:
    container = host.started(*SLEEP, runtime=player(tmp_path))
    checkpoint(container, tmp_path / "images")
    words = (tmp_path / "checkpoint.arguments").read_text().split()
    assert "--leave-running" in words
    assert words[words.index("--image-path") + 1] == str(tmp_path / "images")
    work = Path(words[words.index("--work-path") + 1])
    assert container.bundle in work.parents
    assert not work.exists()
    assert container.state().status == task_pb2.RUNNING
    container.end()


EVERYTHING = {
    "exit": True,
    "open_tcp": True,
    "external_unix_sockets": True,
    "terminal": True,
    "file_locks": True,
    "empty_namespaces": ["network", "ipc"],
    "cgroups_mode": "soft",
    "work_path": "/tmp/pyshim-criu-work",
}


@pytest.mark.parametrize("kind", [options_pb2, linuxrunc_pb2])
def test_every_option_and_the_end(host: Host, tmp_path: Path, kind: object) -> None:
    container = host.started(*SLEEP, runtime=player(tmp_path))
    options: Message = kind.CheckpointOptions(**EVERYTHING)  # type: ignore[attr-defined]
    checkpoint(container, tmp_path / "images", options)
    words = (tmp_path / "checkpoint.arguments").read_text()
    for flags in (
        "--tcp-established",
        "--ext-unix-sk",
        "--shell-job",
        "--file-locks",
        "--empty-ns network --empty-ns ipc",
        "--manage-cgroups-mode soft",
        "--work-path /tmp/pyshim-criu-work",
    ):
        assert flags in words
    assert "--leave-running" not in words
    assert container.wait().exit_status == 137
    container.finish()


def test_the_runtimes_reason_reaches_the_client(host: Host, tmp_path: Path) -> None:
    """And criu's log is kept; the container goes on."""
    log = 'echo \'{"level":"error","msg":"criu is not well"}\' >>log.json'
    work = 'for word; do [ "$before" = --work-path ] && work=$word; before=$word; done'
    fails = f'{log}; {work}; mkdir -p "$work"; echo "why it failed" >"$work/dump.log"; exit 1'
    container = host.started(*SLEEP, runtime=fake_runtime(tmp_path, before_checkpoint=fails))
    with pytest.raises(StatusError) as caught:
        checkpoint(container, tmp_path / "images")
    kept = container.bundle / "criu-dump.log"
    expected = f"OCI runtime checkpoint failed: criu is not well path= {kept}"
    assert (caught.value.code, caught.value.message) == (Code.UNKNOWN, expected)
    assert kept.read_text() == "why it failed\n"
    assert container.state().status == task_pb2.RUNNING
    container.end()


def test_with_criu_or_its_reason(host: Host, tmp_path: Path) -> None:
    """The real runtime: there and back again, or the container goes on and the client hears why."""
    images = tmp_path / "images"
    container = host.started(*SLEEP)
    works = subprocess.run(["sh", "-c", "criu check"], capture_output=True, timeout=BOUND_S)
    if works.returncode == 0:
        checkpoint(container, images, options_pb2.CheckpointOptions(exit=True))
        assert any(images.iterdir())
        assert container.wait().exit_status == 137
        container.finish()
        again = restorable(host, images)
        pid = again.start()
        assert Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"/bin/sleep")
        again.end()
        return
    with pytest.raises(StatusError, match=r"OCI runtime checkpoint failed: .*criu"):
        checkpoint(container, images)
    assert container.state().status == task_pb2.RUNNING
    container.end()


def test_a_checkpoint_path_is_absolute(host: Host) -> None:
    container = host.started(*SLEEP)
    with pytest.raises(StatusError) as caught:
        checkpoint(container, "images")
    assert caught.value.code == Code.INVALID_ARGUMENT
    container.end()


def restorable(host: Host, images: Path, runtime: Path | None = None) -> Container:
    """A container that Start will restore from ``images``."""
    container = host.container(*SLEEP)
    request = container.create_request(runtime=runtime)
    request.checkpoint = str(images)
    reply = container.call("Create", request, task_pb2.CreateTaskResponse)
    assert reply.pid == 0
    return container


def test_restore_when_started(host: Host, tmp_path: Path) -> None:
    container = restorable(host, tmp_path / "images", player(tmp_path))
    assert container.state().status == task_pb2.CREATED
    assert container.state().pid == 0
    pid = container.start()
    command = Path(f"/proc/{pid}/cmdline")  # which the player has forked a moment ago
    eventually(lambda: command.read_bytes().startswith(b"/bin/sleep"), "it sleeps again")
    words = (tmp_path / "restore.arguments").read_text()
    assert "--detach --no-subreaper" in words
    assert f"--image-path {tmp_path}/images" in words
    assert f"--bundle {container.bundle} {container.name}" in words
    assert container.state().status == task_pb2.RUNNING
    assert [p.pid for p in pids(container).processes] == [pid]
    stats = task_pb2.StatsRequest(id=container.name)
    assert container.call("Stats", stats, task_pb2.StatsResponse).stats.value
    assert container.run("e", "/bin/sh", "-c", "exit 4") == 4
    container.kill()
    assert container.wait().exit_status == 137
    container.finish()
    topics = [topic for topic, _ in host.events.of(container.name)]
    expected = ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"]
    assert topics == expected


def pids(container: Container) -> task_pb2.PidsResponse:
    """Pids."""
    request = task_pb2.PidsRequest(id=container.name)
    return container.call("Pids", request, task_pb2.PidsResponse)


def test_a_restore_that_fails_may_be_tried_again(host: Host, tmp_path: Path) -> None:
    log = 'echo \'{"level":"error","msg":"no images"}\' >>log.json'
    once = f"if ! test -e {tmp_path}/tried; then touch {tmp_path}/tried; {log}; exit 1; fi"
    runtime = player(tmp_path)
    text = runtime.read_text().replace("restore) ", f"restore) {once}; ")
    runtime.write_text(text)
    container = restorable(host, tmp_path / "images", runtime)
    with pytest.raises(StatusError, match="OCI runtime restore failed: no images"):
        container.start()
    assert container.state().status == task_pb2.CREATED
    assert container.start() > 0
    container.end()


def test_deleted_before_it_was_restored(host: Host, tmp_path: Path) -> None:
    container = restorable(host, tmp_path / "images", player(tmp_path))
    with pytest.raises(StatusError, match="cannot exec in a created state"):
        container.exec("e", "/bin/true")
    reply = container.finish()
    assert (reply.pid, reply.exit_status) == (0, 0)


def test_services_killed_during_a_restore(host: Host, tmp_path: Path) -> None:
    slow = player(tmp_path)
    text = slow.read_text().replace("restore) ", f"restore) touch {tmp_path}/begun; sleep 0.5; ")
    slow.write_text(text)
    container = restorable(host, tmp_path / "images", slow)
    request = task_pb2.StartRequest(id=container.name)
    stream = container.send("Start", request)
    eventually((tmp_path / "begun").exists, "the restore has begun")
    host.kill_services()
    pid = container.receive(stream, task_pb2.StartResponse).pid
    assert container.state().pid == pid
    container.end()
