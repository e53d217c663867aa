"""Our shim without a containerd: started, spoken to and cleaned up after as containerd would.

Much faster than ctr and as precise as a race wants it.  ``Host`` has the folders and the programs,
``Container`` is one container with a connection of its own, ``Events`` takes what is published.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from pyshim.api import options_pb2, task_pb2
from pyshim.ttrpc.client import Client
from pyshim.zygote import spares
from tests.integration.containerd import (
    BOUND_S,
    RUNC_ROOT,
    eventually,
    mounts_below,
    parent_of,
    processes_of,
    scripts,
    spares_of,
)
from tests.integration.published import Events

Reply = TypeVar("Reply", bound=Message)
Given = Path | str | bool | None
Edit = Callable[[dict[str, Any]], None]
SERVICE = "containerd.task.v2.Task"
POD = "io.kubernetes.cri.sandbox-id"
PROGRAM = "containerd-shim-pyshim-v2"
KILLED = 128 + signal.SIGKILL
END_BOUND_S = 20
STRAYS = ("pyshim-pty*",)
COPY = "/memfd:runc (deleted)"  # a zygote's, of the runtime


def unedited(_spec: dict[str, Any]) -> None:
    """Leaves a config.json as it is."""


def without_pid_namespace(spec: dict[str, Any]) -> None:
    """A container that shares the host's pids."""
    spaces = spec["linux"]["namespaces"]
    spec["linux"]["namespaces"] = [space for space in spaces if space["type"] != "pid"]


class Host:
    """Folders of its own, a zygote of its own, and every container that is started in them."""

    def __init__(self, home: Path, rootfs: Path, prefix: tuple[str, ...] = ()) -> None:
        self.home = home
        self.rootfs = rootfs
        self.namespace = f"pyshim-{os.getpid()}-{home.name}"
        self.runtime, self.sockets, self.bundles = home / "run", home / "s", home / "b"
        self.temporary = home / "t"
        for folder in (self.bundles, self.sockets, self.temporary):
            folder.mkdir()
        self.events = Events(home / "events")
        self._numbers = itertools.count(1)
        self.prefix = prefix
        self.programs = scripts()
        self.program: str | None = None  # another than ours
        self.env = {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "TTRPC_ADDRESS": self.events.address,
            "PYSHIM_RUNTIME_DIR": str(self.runtime),
            "PYSHIM_SOCKET_DIR": str(self.sockets),
            "TMPDIR": str(self.temporary),
        }
        self.spec = self._spec()

    def _spec(self) -> dict[str, Any]:
        """What `runc spec` makes, for our root and without a terminal."""
        command = ["runc", "spec", "--bundle", str(self.home)]
        subprocess.run(command, check=True, timeout=BOUND_S)
        path = self.home / "config.json"
        spec: dict[str, Any] = json.loads(path.read_text())
        path.unlink()
        spec["root"]["path"] = str(self.rootfs)
        spec["process"]["terminal"] = False
        # By this a process of a container is found among all others.
        spec["process"]["env"].append(f"PYSHIM_TEST={self.home}")
        return spec

    # -- containers ------------------------------------------------------------------------------

    def container(
        self, *command: str, pod: str = "", edit: Edit = unedited, flags: tuple[str, ...] = ()
    ) -> Container:
        """A bundle for ``command``, and a connection to the shim that was started for it."""
        name = f"c{next(self._numbers)}"
        bundle = self.bundles / name
        bundle.mkdir()
        spec = json.loads(json.dumps(self.spec))
        spec["process"]["args"] = list(command)
        spec["linux"]["cgroupsPath"] = f"/{self.namespace}/{name}"
        if pod:
            spec["annotations"] = {POD: pod}
        edit(spec)
        (bundle / "config.json").write_text(json.dumps(spec))
        done = self.act("start", name, *flags)
        assert (done.returncode, done.stderr) == (0, b""), done.stderr
        return Container(self, name, done.stdout.decode())

    def started(
        self, *command: str, pod: str = "", edit: Edit = unedited, **given: Given
    ) -> Container:
        """A container that has been created, as ``create_request`` has it, and started."""
        container = self.container(*command, pod=pod, edit=edit)
        container.create(**given)
        container.start()
        return container

    def act(self, action: str, name: str, *flags: str) -> subprocess.CompletedProcess[bytes]:
        """Executes the shim for `start` or `delete`."""
        arguments = ["-namespace", self.namespace, "-address", str(self.home / "grpc")]
        arguments += ["-publish-binary", "/bin/true", "-id", name, *flags, action]
        # Another mount namespace has another working directory.
        place = [*self.prefix, "env", f"--chdir={self.bundles / name}"] if self.prefix else []
        return subprocess.run(
            [*place, self.program or str(self.programs / PROGRAM), *arguments],
            cwd=self.bundles / name,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=BOUND_S,
            check=False,
        )

    # -- what there is -----------------------------------------------------------------------------

    def monitors(self) -> list[int]:
        """The pids of the monitors."""
        found = processes_of(self.runtime)
        return [pid for pid, line in found.items() if "pyshim-monitor" in line.split(" ")[0]]

    def zygotes(self) -> list[int]:
        """The pids of the zygote and of what it forked."""
        return [pid for pid, line in processes_of(self.home).items() if "pyshim.zygote" in line]

    def has_copy(self) -> bool:
        """Whether a zygote has a copy of runc, and so has looked at it."""
        return any(COPY in opened(pid) for pid in self.zygotes())

    def services(self) -> list[int]:
        """The pids of active services: what a zygote forked."""
        zygotes = self.zygotes()
        return [pid for pid in zygotes if parent_of(pid) in zygotes]

    def kill_services(self) -> None:
        """SIGKILL to every active service."""
        for pid in self.services():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def holdings(self) -> dict[str, object]:
        """Everything that may leak, once no service is active."""
        eventually(lambda: not self.services(), "the services have parked")
        eventually(self._spares_are_back, "the zygotes have their spares again")
        return {
            "processes": sorted(processes_of(self.home)),
            "descriptors": {pid: descriptors(pid) for pid in [*self.monitors(), *self.zygotes()]},
            "sockets": sorted(path.name for path in self.sockets.iterdir()),
            "mounts": mounts_below(self.home),
            "cgroups": sorted(str(path) for path in self._groups("*") if path.is_dir()),
            "files": sorted(str(path) for path in self.bundles.rglob("*")),
            "temporary": sorted(path.name for path in self.temporary.iterdir()),
            "states": sorted(path.name for path in (RUNC_ROOT / self.namespace).glob("*")),
            "tmp": [path for name in STRAYS for path in Path("/tmp").glob(name)],
        }

    def _spares_are_back(self) -> bool:
        count = int(self.env.get("PYSHIM_ZYGOTE_SPARES", spares.DEFAULT_COUNT))
        return len(spares_of(self.home)) == count * len(self.zygotes())

    def _groups(self, name: str = "") -> Iterator[Path]:
        for pattern in (f"{self.namespace}/{name}", f"*/{self.namespace}/{name}"):
            yield from Path("/sys/fs/cgroup").glob(pattern.rstrip("/"))

    def nothing_left(self) -> None:
        """Nothing but a zygote."""
        eventually(lambda: not self.monitors(), "the monitors have ended", END_BOUND_S)
        eventually(lambda: len(processes_of(self.home)) <= 1, "but the zygote no process is left")
        found = self.holdings()
        del found["processes"], found["descriptors"]
        assert not any(found.values()), found

    def clear(self) -> None:
        """Ends, by force, what a test left that has failed."""
        if any(self.bundles.iterdir()) or self.monitors():
            self._end_all()

    def end(self) -> None:
        """Ends everything that was started here, by pid, and removes what lies elsewhere."""
        self._end_all()
        self.events.close()
        eventually(self._removed, "the folders that are named after us have gone", END_BOUND_S)

    def _removed(self) -> bool:
        """A group may be busy for a moment after its last process."""
        folders = [p for p in (RUNC_ROOT / self.namespace, *self._groups()) if p.exists()]
        for folder in folders:
            with contextlib.suppress(OSError):
                folder.rmdir()
        return not folders

    def _end_all(self) -> None:
        eventually(self.killed_all, "all processes have ended")
        root = RUNC_ROOT / self.namespace
        for state in root.glob("*"):
            command = ["runc", "--root", str(root), "delete", "--force", state.name]
            subprocess.run(command, check=False, timeout=BOUND_S, capture_output=True)
        for point in reversed(mounts_below(self.home)):
            subprocess.run(["umount", "-l", point], check=False)
        for path in [*self.bundles.iterdir(), *self.sockets.glob("*")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def killed_all(self) -> bool:
        """Kills all that there is; whether there was nothing: who is killed may have forked."""
        for folder in self._groups("*"):  # what is frozen does not die
            for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                with contextlib.suppress(OSError):
                    if (folder / name).exists():
                        (folder / name).write_text(value)
        found = processes_of(self.home)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not found


class Container:
    """A container that has a shim; all calls go over one connection, in order unless ``send``."""

    def __init__(self, host: Host, name: str, address: str) -> None:
        self.host = host
        self.name = name
        self.address = address
        self.bundle = host.bundles / name
        self.runtime: Path | None = None
        self.bound_s: float = BOUND_S
        self.deadlines = True  # whether the shim is told of ``bound_s``
        self.client = self.connect()

    def connect(self, timeout_s: float = BOUND_S) -> Client:
        """Another connection."""
        return Client(self.address, timeout_s)

    def reconnect(self) -> None:
        """As a containerd that was started again."""
        self.client.close()
        self.client = self.connect()

    def call(
        self, method: str, request: Message, reply: type[Reply], timeout_s: float = 0
    ) -> Reply:
        """A call of the Task service, within ``bound_s`` or ``timeout_s``; raises StatusError."""
        bound_s = timeout_s or self.bound_s
        if self.deadlines:
            return self.client.call(SERVICE, method, request, reply, bound_s)
        return reply.FromString(self.client.receive(self.send(method, request), bound_s))

    def send(self, method: str, request: Message) -> int:
        """Begins a call; its stream is for ``receive``."""
        return self.client.send(SERVICE, method, request)

    def receive(self, stream: int, reply: type[Reply]) -> Reply:
        """Waits for the answer to ``send``; raises StatusError."""
        return reply.FromString(self.client.receive(stream, BOUND_S))

    def create_request(
        self,
        stdin: Path | str = "",
        stdout: Path | str = "",
        stderr: Path | str = "",
        terminal: bool = False,
        runtime: Path | None = None,
    ) -> task_pb2.CreateTaskRequest:
        """What containerd sends for Create; ``runtime`` is a runtime's binary."""
        request = task_pb2.CreateTaskRequest(
            id=self.name,
            bundle=str(self.bundle),
            terminal=terminal,
            stdin=str(stdin),
            stdout=str(stdout),
            stderr=str(stderr),
        )
        runtime = runtime or self.runtime
        if runtime is not None:
            request.options.CopyFrom(packed(options_pb2.Options(binary_name=str(runtime))))
        return request

    def create(self, **given: Given) -> int:
        """Create, as ``create_request``; the pid of the init."""
        return self.call("Create", self.create_request(**given), task_pb2.CreateTaskResponse).pid

    def start(self, exec_id: str = "") -> int:
        """Start; the pid."""
        request = task_pb2.StartRequest(id=self.name, exec_id=exec_id)
        return self.call("Start", request, task_pb2.StartResponse).pid

    def exec_request(
        self,
        exec_id: str,
        *command: str,
        stdin: Path | str = "",
        stdout: Path | str = "",
        stderr: Path | str = "",
        terminal: bool = False,
    ) -> task_pb2.ExecProcessRequest:
        """What containerd sends for Exec."""
        process = {**self.host.spec["process"], "args": list(command), "terminal": terminal}
        request = task_pb2.ExecProcessRequest(
            id=self.name,
            exec_id=exec_id,
            terminal=terminal,
            stdin=str(stdin),
            stdout=str(stdout),
            stderr=str(stderr),
        )
        request.spec.value = json.dumps(process).encode()
        return request

    def exec(self, exec_id: str, *command: str, **given: Given) -> None:
        """Exec: registers one."""
        self.call("Exec", self.exec_request(exec_id, *command, **given), Empty)

    def run(self, exec_id: str, *command: str, **given: Given) -> int:
        """An exec from its beginning to its removal; the exit status."""
        self.exec(exec_id, *command, **given)
        self.start(exec_id)
        status = self.wait(exec_id).exit_status
        assert self.delete(exec_id).exit_status == status
        return status

    def state(self, exec_id: str = "", timeout_s: float = 0) -> task_pb2.StateResponse:
        """State."""
        request = task_pb2.StateRequest(id=self.name, exec_id=exec_id)
        return self.call("State", request, task_pb2.StateResponse, timeout_s)

    def send_wait(self, exec_id: str = "") -> int:
        """Begins a Wait."""
        return self.send("Wait", task_pb2.WaitRequest(id=self.name, exec_id=exec_id))

    def wait(self, exec_id: str = "") -> task_pb2.WaitResponse:
        """Wait."""
        return self.receive(self.send_wait(exec_id), task_pb2.WaitResponse)

    def kill(self, number: int = signal.SIGKILL, exec_id: str = "", everyone: bool = False) -> None:
        """Kill."""
        request = task_pb2.KillRequest(id=self.name, exec_id=exec_id, signal=number, all=everyone)
        self.call("Kill", request, Empty)

    def update(self, resources: bytes = b"{}") -> None:
        """Update, by the JSON of LinuxResources; nothing is changed by an empty one."""
        request = task_pb2.UpdateTaskRequest(id=self.name)
        request.resources.value = resources
        self.call("Update", request, Empty)

    def delete(self, exec_id: str = "", timeout_s: float = 0) -> task_pb2.DeleteResponse:
        """Delete."""
        request = task_pb2.DeleteRequest(id=self.name, exec_id=exec_id)
        return self.call("Delete", request, task_pb2.DeleteResponse, timeout_s)

    def finish(self) -> task_pb2.DeleteResponse:
        """Delete and all that containerd does after it."""
        reply = self.delete()
        self.leave()
        return reply

    def leave(self) -> None:
        """What containerd does after Delete: Shutdown, `delete`, and the bundle's end."""
        with contextlib.suppress(ConnectionError):  # another container's may have ended the shim
            self.call("Shutdown", task_pb2.ShutdownRequest(id=self.name), Empty)
        self.client.close()
        done = self.host.act("delete", self.name, "-bundle", str(self.bundle))
        assert (done.returncode, done.stderr) == (0, b"")
        shutil.rmtree(self.bundle)

    def end(self) -> None:
        """SIGKILL to a running one, and ``finish``."""
        self.kill()
        assert self.wait().exit_status == KILLED
        self.finish()


def packed(message: Message) -> AnyMessage:
    """An Any as containerd makes it: the bare name."""
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def descriptors(pid: int) -> list[str]:
    """What ``pid`` has open, kind by kind: the numbers of pipes and sockets are left out.

    So is a zygote's copy of the runtime, which comes and goes with use.
    """
    return sorted(name.partition(":[")[0] for name in opened(pid) if name != COPY)


def opened(pid: int) -> list[str]:
    """What the descriptors of ``pid`` stand for; without one that is closed at this moment."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(link))
    return found


@pytest.fixture(scope="module")
def module_host(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host for a module's tests; nothing of it is left afterwards."""
    made = Host(tmp_path_factory.mktemp("h"), rootfs)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def host(module_host: Host) -> Iterator[Host]:
    """A host on which there is nothing before the test and after it."""
    try:
        yield module_host
        module_host.nothing_left()
    finally:
        module_host.clear()
