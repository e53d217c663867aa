"""A shim that is started and spoken to as containerd does it, but without one in between.

So a task can stay between create and start, and every call can be made in every state.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.compat import specs
from tests.compat.rpc import Rpc
from tests.integration.containerd import BOUND_S, eventually

if TYPE_CHECKING:
    from tests.compat.host import Host

SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
END = b"\0the end\0"
RESOURCES_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"


class RawShim:
    """One shim of one container (or, by ``add``, of several)."""

    def __init__(self, host: Host, binary: str, name: str) -> None:
        self.host = host
        self.binary = binary
        self.name = name
        self.bundle = host.home / "raw" / name
        self.bundle.mkdir(parents=True)
        self.cgroup = f"/{host.namespace}/{name}"
        self.address = ""
        self._rpcs: list[Rpc] = []
        self._readers: list[threading.Thread] = []
        self._fds: list[int] = []
        self._outputs: list[tuple[int, bytearray]] = []

    # -- the binary ----------------------------------------------------------------------------

    def write_spec(self, program: dict[str, Any] | None = None, **changes: Any) -> None:
        """config.json; without ``program`` one that sleeps."""
        program = program or specs.process("/bin/sleep", "1000")
        rootfs = changes.pop("rootfs", self.host.rootfs)
        made = specs.spec(rootfs, program, self.cgroup, **changes)
        (self.bundle / "config.json").write_text(json.dumps(made))
        log = self.bundle / "log"
        if not log.exists():
            os.mkfifo(log)
            self._fds.append(os.open(log, os.O_RDWR | os.O_NONBLOCK))

    def execute(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Executes the binary in the bundle, with containerd's environment."""
        env = {
            **self.host.env,
            "TTRPC_ADDRESS": f"{self.host.view.address}.ttrpc",
            "GRPC_ADDRESS": self.host.view.address,
            "NAMESPACE": self.host.namespace,
            "MAX_SHIM_VERSION": "2",
            "GOMAXPROCS": "2",
        }
        if self.host.series == "1.6":
            for unknown in ("GRPC_ADDRESS", "NAMESPACE", "MAX_SHIM_VERSION"):
                del env[unknown]
        return subprocess.run(
            [self.binary, *arguments],
            cwd=self.bundle,
            env=env,
            input=stdin,
            capture_output=True,
            timeout=BOUND_S,
            check=False,
        )

    def flags(self, *more: str) -> list[str]:
        """The flags that containerd gives to ``start`` and ``delete``."""
        shared = ["-namespace", self.host.namespace, "-address", self.host.view.address]
        return [*shared, "-publish-binary", "containerd", "-id", self.name, *more]

    def launch(self, stdin: bytes = b"") -> Rpc:
        """``start``, and a connection to what it says."""
        done = self.execute(*self.flags("start"), stdin=stdin)
        assert done.returncode == 0, (done.stdout, done.stderr)
        self.address = address_in(done.stdout.decode())
        self.host.remember_socket(self.address)
        return self.connect()

    def connect(self) -> Rpc:
        """Another connection."""
        rpc = Rpc(self.address, self.host.task_service, self.host.normal)
        self._rpcs.append(rpc)
        return rpc

    # -- a container ---------------------------------------------------------------------------

    def created(self, *command: str, stdio: Any = None, **changes: Any) -> Rpc:
        """A container in the state "created", of a program that sleeps or of ``command``."""
        program = specs.process(*(command or ("/bin/sleep", "1000")))
        self.write_spec(changes.pop("program", program), **changes)
        rpc = self.launch()
        rpc.ask("Create", id=self.name, bundle=str(self.bundle), **whole(stdio or {}))
        return rpc

    def running(self, *command: str, stdio: Any = None, **changes: Any) -> Rpc:
        """A running container."""
        rpc = self.created(*command, stdio=stdio, **changes)
        rpc.ask("Start", id=self.name)
        return rpc

    def ended(self, *command: str, stdio: Any = None, **changes: Any) -> Rpc:
        """A container that has exited by itself."""
        rpc = self.running(*(command or ("/bin/sh", "-c", "exit 7")), stdio=stdio, **changes)
        rpc.wait(self.name)
        return rpc

    def pid_of_program(self, rpc: Rpc) -> int:
        """The init's pid, when it executes the program that sleeps, and no longer the runtime."""
        pid = int(rpc.ask("State", id=self.name).pid)
        line = Path(f"/proc/{pid}/cmdline")
        eventually(lambda: line.read_bytes().startswith(b"/bin/sleep"), "the program")
        return pid

    def add_exec(self, rpc: Rpc, exec_id: str, *command: str, **more: Any) -> str:
        """``Exec``; its outcome."""
        return rpc.tried("Exec", **self.exec_fields(exec_id, *command, **more))

    def exec_fields(self, exec_id: str, *command: str, **more: Any) -> dict[str, Any]:
        """The fields of an ExecProcessRequest."""
        changes = more.pop("changes", {})
        value = more.pop("value", None)
        program = specs.process(*(command or ("/bin/sh", "-c", "exit 9")), **changes)
        encoded = json.dumps(program).encode() if value is None else value
        spec = {"type_url": SPEC_URL, "value": encoded}
        return {"id": self.name, "exec_id": exec_id, "spec": spec, **whole(more)}

    def fifo(self, name: str) -> str:
        """A fifo."""
        path = self.bundle / name
        os.mkfifo(path)
        return str(path)

    def output(self, name: str) -> tuple[str, bytearray]:
        """A fifo and what is read from it meanwhile."""
        path = self.fifo(name)
        seen = bytearray()
        # As a reader that opens for both: so it never waits for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(fd, True)
        keeper = os.open(path, os.O_WRONLY)

        def read() -> None:
            with os.fdopen(fd, "rb", buffering=0) as stream:
                while data := stream.read(65536):
                    seen.extend(data)

        reader = threading.Thread(target=read)
        reader.start()
        self._readers.append(reader)
        self._fds.append(keeper)
        self._outputs.append((keeper, seen))
        return path, seen

    def drain(self) -> None:
        """Waits until all that has been written to ``output``s is read."""
        for keeper, seen in self._outputs:
            os.write(keeper, END)
            eventually(lambda seen=seen: seen.endswith(END), "the rest of the output")
            del seen[-len(END) :]

    def input(self, name: str) -> tuple[str, int]:
        """A fifo and the end of it that is written to."""
        path = self.fifo(name)
        # Kept to the end: the Go shim opens its own end some time after it has answered Start,
        # and a fifo without a reader breaks the pipe of whoever writes to it.
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        writer = os.open(path, os.O_WRONLY)
        self._fds += [reader, writer]
        return path, writer

    def close(self, fd: int) -> None:
        """Closes one that ``input`` gave."""
        self._fds.remove(fd)
        os.close(fd)

    def end(self) -> None:
        """Closes all that is open, and ends what still runs."""
        for rpc in self._rpcs:
            with contextlib.suppress(OSError, ValueError):
                self._end_task(rpc)
            rpc.close()
        self._rpcs.clear()
        self.execute(*self.flags("-bundle", str(self.bundle), "delete"))
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        for reader in self._readers:
            reader.join(BOUND_S)
        subprocess.run(["rm", "-rf", "--one-file-system", str(self.bundle)], check=True)

    def _end_task(self, rpc: Rpc) -> None:
        rpc.code("Resume", id=self.name)
        rpc.code("Kill", id=self.name, signal=signal.SIGKILL, all=True)
        rpc.code("Wait", timeout_s=10, id=self.name)
        rpc.code("Delete", id=self.name)
        rpc.code("Shutdown", id=self.name)


def whole(stdio: dict[str, Any]) -> dict[str, Any]:
    """``stdio`` with stderr where stdout goes: most Go shims refuse a stream without the others."""
    if "stdout" in stdio and "stderr" not in stdio and not stdio.get("terminal"):
        return {**stdio, "stderr": stdio["stdout"]}
    return stdio


def address_in(said: str) -> str:
    """The address in what ``start`` prints."""
    said = said.strip()
    return str(json.loads(said)["address"]) if said.startswith("{") else said


def pid_files(raw: RawShim) -> list[str]:
    """Those in the bundle."""
    return [name for name in files_in(raw.bundle) if name.endswith(".pid")]


def files_in(folder: Path) -> list[str]:
    """The names in a folder."""
    return sorted(p.name for p in folder.iterdir())
