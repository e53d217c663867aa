"""Other runtimes than runc, by their path, and what each flag of the options makes of them."""

from __future__ import annotations

import os
import select
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyshim import inotify
from pyshim.api import options_pb2, task_pb2
from pyshim.ttrpc.status import StatusError
from tests.integration.containerd import eventually
from tests.integration.fake_runtime import fake_runtime
from tests.integration.shim import Container, Host, host, module_host, packed

__all__ = ["host", "module_host"]

IN_OPEN = 0x20
HYBRID = Path("/sys/fs/cgroup/unified")
# crun refuses a host with both versions of cgroups; what it starts sees but the first.
FIRST_ONLY = f'umount {HYBRID} && exec "$0" "$@"'


@pytest.fixture
def crun_host(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host whose shims see cgroups as crun wants them."""
    prefix = ("unshare", "--mount", "sh", "-c", FIRST_ONLY) if HYBRID.is_mount() else ()
    made = Host(tmp_path_factory.mktemp("crun"), rootfs, prefix)
    try:
        yield made
        made.nothing_left()
    finally:
        made.end()


def test_crun(crun_host: Host, tmp_path: Path) -> None:
    crun = shutil.which("crun")
    assert crun, "crun is missing; `make test` installs it"
    out = tmp_path / "out"
    script = "echo hello; trap 'exit 6' TERM; while :; do sleep 0.1; done"
    container = crun_host.container("/bin/sh", "-c", script)
    container.create(stdout=f"file://{out}", runtime=Path(crun))
    container.start()
    assert (container.bundle / "runtime").read_text() == crun
    assert container.run("e", "/bin/sh", "-c", "exit 5") == 5
    for method, request in (
        ("Pause", task_pb2.PauseRequest(id=container.name)),
        ("Resume", task_pb2.ResumeRequest(id=container.name)),
    ):
        container.call(method, request, task_pb2.PauseRequest)
    container.kill(15)
    assert container.wait().exit_status == 6
    container.finish()
    assert out.read_text() == "hello\n"


def test_the_error_of_crun_reaches_the_client(crun_host: Host) -> None:
    crun = shutil.which("crun")
    assert crun
    container = crun_host.container("/no/such/program")
    with pytest.raises(StatusError, match=r"OCI runtime create failed: .*/no/such/program"):
        container.create(runtime=Path(crun))
    container.leave()


def created_with(host: Host, folder: Path, chosen: options_pb2.Options) -> tuple[Container, str]:
    """A container with ``chosen`` options; it, and the arguments of the runtime's `create`."""
    runtime = fake_runtime(folder, before_create=f'echo "$*" >{folder}/arguments')
    container = host.container("/bin/sleep", "1000")
    chosen.binary_name = str(runtime)
    request = container.create_request()
    request.options.CopyFrom(packed(chosen))
    container.call("Create", request, task_pb2.CreateTaskResponse)
    return container, (folder / "arguments").read_text()


def test_the_flags_of_the_options(host: Host, tmp_path: Path) -> None:
    chosen = options_pb2.Options(no_pivot_root=True, no_new_keyring=True, root=f"{tmp_path}/root")
    container, arguments = created_with(host, tmp_path, chosen)
    assert f"--root {tmp_path}/root/{host.namespace} " in arguments
    assert "--no-pivot" in arguments
    assert "--no-new-keyring" in arguments
    assert "--systemd-cgroup" not in arguments
    assert (tmp_path / "root" / host.namespace / container.name).is_dir()
    container.leave()
    assert not (tmp_path / "root" / host.namespace / container.name).exists()


def test_criu_of_an_older_daemon(host: Host, tmp_path: Path) -> None:
    """containerd 1.6 and 1.7 may name criu; runc from 1.2 on takes the flag and ignores it."""
    container, arguments = created_with(host, tmp_path, options_pb2.Options(criu_path="/opt/criu"))
    assert "--criu /opt/criu" in arguments
    container.leave()


def test_the_task_api_of_a_sandbox_is_the_daemons_business(host: Host, tmp_path: Path) -> None:
    """containerd 2.x connects to it instead of starting a shim; whom it starts ignores it."""
    chosen = options_pb2.Options(task_api_address="unix:///run/other", task_api_version=3)
    container, _ = created_with(host, tmp_path, chosen)
    container.start()
    container.end()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("echo first >&2; echo second >&2; exit 3", "exit status 3: first second"),
        ("exit 3", "exit status 3"),
        ("kill -9 $$", "exit status 137"),
    ],
)
def test_a_runtime_that_logs_nothing(host: Host, tmp_path: Path, body: str, reason: str) -> None:
    runtime = fake_runtime(tmp_path, before_create=body, before_start=body, before_pause=body)
    container = host.container("/bin/true")
    out = f"file://{tmp_path}/out"
    with pytest.raises(StatusError) as caught:
        container.create(runtime=runtime, stdout=out, stderr=out)
    assert caught.value.message == f"OCI runtime create failed: {reason}"
    text = runtime.read_text().replace("create)", "unused)", 1)
    runtime.write_text(text)
    container.create(runtime=runtime)
    with pytest.raises(StatusError) as caught:
        container.start()
    assert caught.value.message == f"OCI runtime start failed: {reason}"
    container.leave()


def test_an_earlier_error_is_not_taken_for_the_reason(host: Host, tmp_path: Path) -> None:
    old = 'echo \'{"level":"error","msg":"an old one"}\' >>log.json'
    pause = f"{old}; exit 1"
    runtime = fake_runtime(tmp_path, before_pause=pause, before_resume="exit 4", before_update=old)
    container = host.started("/bin/sleep", "1000", runtime=runtime)
    request = task_pb2.PauseRequest(id=container.name)
    with pytest.raises(StatusError, match="OCI runtime pause failed: an old one"):
        container.call("Pause", request, task_pb2.PauseRequest)
    runtime.write_text(runtime.read_text().replace(pause, "exit 4"))
    with pytest.raises(StatusError, match=r"OCI runtime pause failed: exit status 4$"):
        container.call("Pause", request, task_pb2.PauseRequest)
    container.end()


def test_a_runtime_that_is_not_there(host: Host) -> None:
    container = host.container("/bin/true")
    with pytest.raises(
        StatusError, match=r"cannot run the OCI runtime /no/such/runtime: .*is it on PATH"
    ):
        container.create(runtime=Path("/no/such/runtime"))
    container.leave()


def is_opened(path: Path, act: Callable[[], object]) -> bool:
    """Whether somebody opens the file, as to execute it, while ``act`` runs."""
    fd = inotify.watch(str(path), IN_OPEN)
    try:
        act()
        return bool(select.select([fd], [], [], 0)[0])
    finally:
        os.close(fd)


def test_a_runtime_that_is_used_often_is_executed_from_memory(host: Host, tmp_path: Path) -> None:
    """Until its file is replaced; the copy goes when nobody uses it any more."""

    def run() -> None:
        assert container.run("e", "/bin/sh", "-c", "exit 3") == 3

    found = shutil.which("runc")
    assert found
    runtime = Path(shutil.copy(found, tmp_path / "runc"))
    container = host.started("/bin/sleep", "1000", runtime=runtime)
    assert not host.has_copy()
    assert is_opened(runtime, run)
    eventually(lambda: not host.services(), "the service has parked")
    run()
    eventually(host.has_copy, "there is a copy")
    eventually(lambda: not host.services(), "the service has parked")
    assert not is_opened(runtime, run)
    eventually(lambda: not host.services(), "the service has parked")
    draft = Path(shutil.copy(found, tmp_path / "draft"))
    draft.replace(runtime)
    assert is_opened(runtime, run)
    eventually(lambda: not host.has_copy(), "the copy has gone")
    container.end()
