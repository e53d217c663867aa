"""A runtime's command that hangs: it is ended with all that it has started, and nothing else is.

Afterwards the container can be killed and deleted as any other.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from google.protobuf.empty_pb2 import Empty

from pyshim.api import task_pb2
from pyshim.ttrpc.status import Code, StatusError
from tests.integration.containerd import eventually
from tests.integration.fake_runtime import fake_runtime
from tests.integration.goshim import GoHost, go, module_go
from tests.integration.shim import KILLED, Container, Host

__all__ = ["go", "module_go"]

SLEEP = ("/bin/sleep", "1000")
BOUND_S = 12  # of a command; ten times what one takes on a loaded machine
GO_PATIENCE_S = 3


class Case(NamedTuple):
    """Where the runtime hangs, and the call that notices."""

    hook: str
    call: Callable[[Container], object]
    ready: str  # what the container is before the call: "", "created", "running" or "paused"


def request(method: str, kind: type, **fields: object) -> Callable[[Container], object]:
    """A call for the container itself."""
    return lambda c: c.call(method, kind(id=c.name, **fields), Empty)


def execute(container: Container) -> object:
    """An exec that is started."""
    container.exec("e", *SLEEP)
    return container.start("e")


def update(container: Container) -> object:
    """An Update that changes nothing."""
    asked = task_pb2.UpdateTaskRequest(id=container.name)
    asked.resources.value = b"{}"
    return container.call("Update", asked, Empty)


PAUSE = request("Pause", task_pb2.PauseRequest)
RESUME = request("Resume", task_pb2.ResumeRequest)
KILL_ALL = request("Kill", task_pb2.KillRequest, signal=9, all=True)
CASES = (
    Case("before_create", lambda c: c.create(), ""),
    Case("after_create", lambda c: c.create(), ""),
    Case("before_start", lambda c: c.start(), "created"),
    Case("after_start", lambda c: c.start(), "created"),
    Case("before_exec", execute, "running"),
    Case("after_exec", execute, "running"),
    Case("before_kill", KILL_ALL, "running"),
    Case("before_pause", PAUSE, "running"),
    Case("after_pause", PAUSE, "running"),
    Case("before_resume", RESUME, "paused"),
    Case("before_update", update, "running"),
    Case("before_delete", lambda c: c.delete(), "created"),
    Case("after_delete", lambda c: c.delete(), "created"),
)


@pytest.fixture(scope="module")
def hung_host(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host whose runtime commands have a short bound."""
    made = Host(tmp_path_factory.mktemp("h"), rootfs)
    made.env["PYSHIM_COMMAND_TIMEOUT_S"] = str(BOUND_S)
    try:
        yield made
    finally:
        made.end()


def hang(folder: Path, hook: str) -> Path:
    """A runtime that hangs at ``hook``, once, with a process that it has started."""
    text = (
        f"test -e {folder}/hung || {{ : >{folder}/hung; "
        f"sh -c 'echo $$ >{folder}/pid; exec sleep 1000' & wait; }}"
    )
    folder.mkdir()
    return fake_runtime(folder, **{hook: text})


def prepared(host: Host, folder: Path, case: Case) -> tuple[Container, Path]:
    """A container in the state that a case is about, and its runtime."""
    runtime = hang(folder / case.hook, case.hook)
    container = host.container(*SLEEP)
    container.runtime = runtime
    if case.ready:
        container.create()
    if case.ready in {"running", "paused"}:
        container.start()
    if case.ready == "paused":
        PAUSE(container)
    return container, folder / case.hook


def ours(host: Host, folder: Path, case: Case) -> str:
    """What became of the call; the container is ended as any other."""
    container, place = prepared(host, folder, case)
    try:
        case.call(container)
    except StatusError as error:
        said = f"{Code(error.code).name}: {error.message}"
    else:
        said = "ok"
    started = int((place / "pid").read_text())
    eventually(lambda: not os.path.exists(f"/proc/{started}"), "what hung has gone")
    if not case.ready:
        container.create()
    if case.ready == "paused":
        RESUME(container)
    with contextlib.suppress(StatusError):  # the command that hung may have done it
        container.kill()
    assert container.wait().exit_status == KILLED
    container.finish()
    assert container.host.events.exits(container.name)[-1] == (container.name, KILLED)
    return said.replace(str(container.runtime), "RUNTIME")


def theirs(go: GoHost, folder: Path, case: Case) -> None:
    """The Go shim waits for ever, and what it started is not ended.

    Meanwhile it answers nothing else about that container, not even State or Kill; but while it
    makes the container, which then is not there yet, or an exec.
    """
    container, place = prepared(go, folder, case)
    container.deadlines = False  # a client's deadline would end an exec's command, that alone
    is_held = case.hook.partition("_")[2] not in {"create", "exec"}
    for call in (case.call, Container.state, Container.kill):
        with container.connect() as container.client:
            if call is case.call or is_held:
                container.bound_s = GO_PATIENCE_S
                with pytest.raises(TimeoutError):
                    call(container)
            else:
                container.bound_s = BOUND_S * 4
                with contextlib.suppress(StatusError):
                    call(container)
    assert os.path.exists(f"/proc/{int((place / 'pid').read_text())}")


def test_a_command_that_hangs(hung_host: Host, go: GoHost, tmp_path: Path) -> None:
    """All at once, since each takes as long as its bound; beside them those of the Go shim."""
    for shim in ("ours", "go"):
        (tmp_path / shim).mkdir()
    with ThreadPoolExecutor(2 * len(CASES)) as pool:
        found = [pool.submit(ours, hung_host, tmp_path / "ours", case) for case in CASES]
        beside = [pool.submit(theirs, go, tmp_path / "go", case) for case in CASES]
        said = {case.hook: future.result() for case, future in zip(CASES, found, strict=True)}
        for future in beside:
            future.result()
    text = f"RUNTIME did not end within {BOUND_S} s and was killed"
    assert said == {case.hook: f"DEADLINE_EXCEEDED: the OCI runtime {text}" for case in CASES}
    hung_host.nothing_left()
