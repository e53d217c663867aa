"""A client that behaves as CRI-O with ``runtime_type = "vm"`` (spec/crio-vm.md).

One `start` and one connection a container, no address, no events, no metadata, fifos that exist
already and have readers, and of the Task service (v2) only what CRI-O calls.  The namespace is not
CRI-O's `default`, so that no two runs of the tests meet.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from pyshim.api import runtimeoptions_pb2, task_pb2
from pyshim.ttrpc.client import Client
from tests.integration.containerd import BOUND_S, scripts
from tests.integration.shim import SERVICE, Host, packed

Reply = TypeVar("Reply", bound=Message)
SANDBOX = "io.kubernetes.cri-o.SandboxID"
KIND = "io.kubernetes.cri-o.ContainerType"


class Reader:
    """Reads a fifo to its end, from before it is written to; as CRI-O does for output and log."""

    def __init__(self, path: Path, *, kept: bool = False) -> None:
        self.data = bytearray()
        # CRI-O holds the log open for writing too, so that it does not end between two lines.
        self._fd = os.open(path, (os.O_RDWR if kept else os.O_RDONLY) | os.O_NONBLOCK)
        os.set_blocking(self._fd, True)
        self._thread = threading.Thread(target=self._read, daemon=True)

    def begin(self) -> None:
        """Begins; a fifo that nobody has opened yet is no end."""
        self._thread.start()

    def _read(self) -> None:
        while data := os.read(self._fd, 4096):
            self.data += data

    def text(self) -> str:
        """All of it, once it has ended."""
        self._thread.join(BOUND_S)
        assert not self._thread.is_alive(), bytes(self.data)
        os.close(self._fd)
        return self.data.decode()


class CrioContainer:
    """A container of the pod ``pod``; ``memory`` is its limit in bytes."""

    def __init__(self, host: Host, name: str, pod: str, *command: str, memory: int = 0) -> None:
        self.name = name
        self.bundle = host.bundles / name
        self.bundle.mkdir()
        self.fifos = {end: self.bundle / f"{name}-std{end}" for end in ("in", "out", "err")}
        for path in [*self.fifos.values(), self.bundle / "log"]:
            os.mkfifo(path)
        self.log = Reader(self.bundle / "log", kept=True)
        self.log.begin()
        self.out, self.err = Reader(self.fifos["out"]), Reader(self.fifos["err"])
        self._write_config(host, pod, command, memory)
        address = self._start(host)
        assert address.startswith("unix:///")
        self.client = Client(address, BOUND_S)

    def _write_config(self, host: Host, pod: str, command: tuple[str, ...], memory: int) -> None:
        spec = json.loads(json.dumps(host.spec))
        spec["process"]["args"] = list(command)
        spec["linux"]["cgroupsPath"] = f"/{host.namespace}/{self.name}"
        kind = "sandbox" if self.name == pod else "container"
        spec["annotations"] = {SANDBOX: pod, KIND: kind}
        if memory:
            spec["linux"]["resources"]["memory"] = {"limit": memory}
        (self.bundle / "config.json").write_text(json.dumps(spec))

    def _start(self, host: Host) -> str:
        command = [str(scripts() / "containerd-shim-pyshim-v2"), "-namespace", host.namespace]
        command += ["-address", "", "-publish-binary", "/usr/bin/crio", "-id", self.name, "-debug"]
        nowhere = {"TTRPC_ADDRESS": "", "GRPC_ADDRESS": "", "NAMESPACE": host.namespace}
        done = subprocess.run(
            [*command, "start"],
            cwd=self.bundle,
            env={**host.env, **nowhere, "MAX_SHIM_VERSION": "2", "GOMAXPROCS": "2"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=BOUND_S,
            check=False,
            process_group=0,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode()

    def restart(self) -> None:
        """CRI-O was restarted: it finds the shim by the bundle's file `address`."""
        self.client.close()
        self.client = Client((self.bundle / "address").read_text(), BOUND_S)

    def call(self, method: str, request: Message, reply: type[Reply]) -> Reply:
        """A call without metadata; raises StatusError."""
        return self.client.call(SERVICE, method, request, reply)

    def create(self, config_path: Path | None = None) -> int:
        """Create, with nothing of runc's options; ``config_path`` is runtime_config_path."""
        request = task_pb2.CreateTaskRequest(id=self.name, bundle=str(self.bundle))
        request.stdin, request.stdout = str(self.fifos["in"]), str(self.fifos["out"])
        request.stderr = str(self.fifos["err"])
        if config_path is not None:
            options = runtimeoptions_pb2.Options(config_path=str(config_path))
            request.options.CopyFrom(packed(options))
        pid = self.call("Create", request, task_pb2.CreateTaskResponse).pid
        for reader in (self.out, self.err):
            reader.begin()
        return pid

    def start(self) -> None:
        """Start."""
        self.call("Start", task_pb2.StartRequest(id=self.name), task_pb2.StartResponse)

    def state(self) -> task_pb2.StateResponse:
        """State."""
        return self.call("State", task_pb2.StateRequest(id=self.name), task_pb2.StateResponse)

    def kill(self, number: int) -> None:
        """Kill; signal 0 asks whether it lives."""
        self.call("Kill", task_pb2.KillRequest(id=self.name, signal=number), Empty)

    def wait(self) -> int:
        """Wait; the exit status."""
        reply = self.call("Wait", task_pb2.WaitRequest(id=self.name), task_pb2.WaitResponse)
        return reply.exit_status

    def stats(self) -> task_pb2.StatsResponse:
        """Stats."""
        return self.call("Stats", task_pb2.StatsRequest(id=self.name), task_pb2.StatsResponse)

    def delete(self) -> None:
        """Delete and, whatever else is in the pod, Shutdown."""
        self.call("Delete", task_pb2.DeleteRequest(id=self.name), task_pb2.DeleteResponse)
        self.call("Shutdown", task_pb2.ShutdownRequest(id=self.name), Empty)
        self.client.close()
