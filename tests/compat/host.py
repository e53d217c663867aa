"""A containerd as a scenario sees it: one of the two shims, in a namespace of its own."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.compat.raw import RawShim
from tests.compat.rpc import Rpc
from tests.compat.scenario import Observation, normal
from tests.integration.containerd import (
    BOUND_S,
    RUNTIME,
    Containerd,
    eventually,
    mounts_below,
    processes_of,
)

OURS, GO = "pyshim", "runc"
RUNTIMES = {OURS: RUNTIME, GO: "io.containerd.runc.v2"}
SHIMS = {OURS: "containerd-shim-pyshim-v2", GO: "containerd-shim-runc-v2"}
PROCESSES = {OURS: "pyshim-monitor", GO: "containerd-shim-runc-v2"}
NAME = "box"
FOREVER = ("/bin/sleep", "1000")
# Ends when it is told to, which PID 1 does not do by default.
TOLD = ("/bin/sh", "-c", "trap 'exit 42' TERM; while :; do sleep 1000 & wait $!; done")


class Host:
    """What scenarios use.  ``name`` is the one container's; ``series`` the daemon's generation."""

    def __init__(self, daemon: Containerd, shim: str, series: str) -> None:
        self.daemon = daemon
        self.shim = shim
        self.series = series
        self.home = daemon.home / shim
        self.home.mkdir()
        self.rootfs = daemon.rootfs
        self.view = copy.copy(daemon)
        self.view.namespace = self.namespace = f"{daemon.namespace}-{shim}"
        self.view.env = self.env = {**daemon.env, "CONTAINERD_NAMESPACE": self.namespace}
        self._raws: list[RawShim] = []
        self._sockets: set[str] = set()

    # -- ctr -----------------------------------------------------------------------------------

    def ctr(self, *arguments: str, stdin: str | None = None) -> Observation:
        """What ctr says, without what no two runs share."""
        done = self.view.ctr(*arguments, stdin=stdin)
        return {
            "code": done.returncode,
            "out": self.normal(done.stdout),
            "err": self.normal(done.stderr),
        }

    def run(
        self,
        *command: str,
        flags: tuple[str, ...] = ("--rm",),
        name: str = NAME,
        stdin: str | None = None,
    ) -> Observation:
        """``ctr run`` of ``command`` with the shim."""
        arguments = self.view.run(name, *command, flags=flags, runtime=RUNTIMES[self.shim])
        return self.ctr(*arguments, stdin=stdin)

    def started(self, *command: str, flags: tuple[str, ...] = (), name: str = NAME) -> int:
        """``ctr run --detach``; the pid."""
        said = self.run(*(command or FOREVER), flags=("--detach", *flags), name=name)
        assert said["code"] == 0, said
        self._sockets.add(self.socket(name))
        return self.view.tasks()[name][0]

    def execute(self, *command: str, flags: tuple[str, ...] = (), name: str = NAME) -> Observation:
        """``ctr task exec``."""
        return self.ctr("task", "exec", "--exec-id", "x", *flags, name, *command)

    def status(self, name: str = NAME) -> str:
        """The task's status in ``ctr task ls``; "" when there is none."""
        return self.view.tasks().get(name, (0, ""))[1]

    def await_status(self, status: str, name: str = NAME) -> None:
        """Waits for the task's status."""
        eventually(lambda: self.status(name) == status, f"the status of {name} is {status!r}")

    def on_terminal(self, *arguments: str, typed: bytes = b"") -> tuple[int, str]:
        """Runs ctr on a terminal of 33 × 97; exit code and screen."""
        master, slave = os.openpty()
        subprocess.run(["stty", "rows", "33", "cols", "97"], stdin=slave, check=True)
        process = subprocess.Popen(
            ["ctr", "--address", self.view.address, *arguments],
            env=self.env,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        seen = bytearray()

        def read() -> None:
            with contextlib.suppress(OSError):
                while data := os.read(master, 4096):
                    seen.extend(data)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            if typed:
                eventually(lambda: b"ready" in seen or process.poll() is not None, "a prompt")
                os.write(master, typed)
            code = process.wait(BOUND_S)
        finally:
            process.kill()
            reader.join(BOUND_S)
            os.close(master)
        # Two terminals, ours and the container's, have made an end of line of each newline.
        return code, seen.decode(errors="replace").replace("\r", "")

    def run_arguments(self, *command: str, flags: tuple[str, ...] = ("--rm",)) -> list[str]:
        """The arguments of ``ctr run``."""
        return self.view.run(NAME, *command, flags=flags, runtime=RUNTIMES[self.shim])

    # -- the daemon ----------------------------------------------------------------------------

    def kill_daemon(self) -> None:
        """SIGKILL to containerd."""
        self.daemon.kill()

    def start_daemon(self) -> None:
        """Starts it again."""
        self.daemon.start()

    # -- the shim ------------------------------------------------------------------------------

    def socket(self, name: str = NAME) -> str:
        """The socket of a container's shim."""
        bundle = self.view.bundle(name)
        with contextlib.suppress(FileNotFoundError):
            return json.loads((bundle / "bootstrap.json").read_text())["address"]
        said = (bundle / "address").read_text().strip()
        return json.loads(said)["address"] if said.startswith("{") else said

    def rpc(self, name: str = NAME) -> Rpc:
        """A connection to the shim of a container."""
        return Rpc(self.socket(name), self.task_service, self.normal)

    @property
    def task_service(self) -> str:
        """The Task service that both shims of this generation have."""
        return f"containerd.task.v{3 if self.series == '2' else 2}.Task"

    def shims(self) -> list[int]:
        """The pids of the shim's long-lived processes."""
        found = processes_of(self.namespace)
        mine = PROCESSES[self.shim]
        if self.shim == OURS:
            return self.view.monitors()
        return [pid for pid, line in found.items() if Path(line.split(" ")[0]).name == mine]

    def raw(self, name: str = "raw") -> RawShim:
        """A shim of this kind that no containerd has started."""
        binary = shutil.which(SHIMS[self.shim], path=self.env["PATH"])
        assert binary, f"{SHIMS[self.shim]} is not on PATH"
        made = RawShim(self, binary, name)
        self._raws.append(made)
        return made

    # -- events --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def events(self) -> Iterator[list[tuple[str, dict[str, Any]]]]:
        """What `ctr events` prints of our tasks meanwhile: (topic, event), in order."""
        seen: list[tuple[str, dict[str, Any]]] = []
        subscribed = threading.Event()
        process = self.view.spawn("events", stdin=subprocess.DEVNULL)
        assert process.stdout is not None
        stream = process.stdout

        def read() -> None:
            for line in stream:
                subscribed.set()
                found = re.search(r" (\S+) /tasks/(\S+) (\{.*)$", line)
                if found and found[1] == self.namespace:
                    seen.append((found[2], json.loads(found[3])))

        reader = threading.Thread(target=read)
        reader.start()
        mark = f"{self.namespace}-events"
        try:
            self.view.ctr("namespaces", "create", mark)
            label = ("namespaces", "label", mark, "a=b")
            eventually(lambda: subscribed.is_set() or not self.view.ctr(*label), "events come")
            yield seen
        finally:
            process.terminate()
            process.wait(BOUND_S)
            reader.join(BOUND_S)
            stream.close()
            self.view.ctr("namespaces", "remove", mark)

    def await_delete(self, seen: list[tuple[str, dict[str, Any]]]) -> None:
        """Waits for the event of the task's deletion; the Go shim's does not always come."""

        def come() -> bool:
            return any(topic == "delete" for topic, _ in seen)

        if self.shim == OURS:
            eventually(come, "the last event")
            return
        with contextlib.suppress(AssertionError):
            eventually(come, "the last event", 5)

    def plain(self, seen: list[tuple[str, dict[str, Any]]]) -> list[str]:
        """Events as one line each."""
        return [f"{topic} {self._event(event)}" for topic, event in seen]

    def _event(self, event: dict[str, Any]) -> str:
        shown = []
        for name, value in sorted(event.items()):
            if name == "exited_at":
                shown.append("exited_at")
            elif name == "pid":
                shown.append("pid" if value else "pid=0")
            elif name == "io":
                shown.append("io=" + ",".join(sorted(key for key, set_ in value.items() if set_)))
            elif name == "rootfs":
                shown.append(f"rootfs={len(value)}")
            else:
                shown.append(f"{name}={value}")
        return self.normal(" ".join(shown))

    # -- around a scenario ---------------------------------------------------------------------

    def normal(self, text: str) -> str:
        """``text`` without what no two runs share."""
        names = {
            str(self.view.bundle("x").parent): "<bundles>",
            str(self.home / "raw"): "<bundles>",
            str(self.home): "<home>",
            str(self.rootfs): "<rootfs>",
            str(self.view.home): "<home>",
            self.namespace: "<namespace>",
            RUNTIMES[self.shim]: "<runtime>",
            SHIMS[self.shim]: "<shim>",
        }
        return normal(text, names)

    def clean(self) -> None:
        """Ends what a scenario has left."""
        for raw in self._raws:
            raw.end()
        self._raws.clear()
        for name in self.view.tasks():
            self.view.ctr("task", "delete", "--force", name)
        for name in self.view.ctr("container", "ls", "--quiet").stdout.split():
            self.view.ctr("container", "delete", name)

    def left(self) -> dict[str, list[str]]:
        """What stays behind, by kind; waits for what takes a moment."""
        with contextlib.suppress(AssertionError):
            bound_s = 10 if self.shim == OURS else 3
            eventually(lambda: not any(self._left().values()), "nothing is left", bound_s)
        found = {kind: names for kind, names in self._left().items() if names}
        self._remove_left()
        return found

    def _left(self) -> dict[str, list[str]]:
        bundles = self.view.bundle("x").parent
        states = Path("/run/containerd/runc") / self.namespace
        sockets = {s for s in self._sockets if os.path.exists(s.removeprefix("unix://"))}
        if self.shim == OURS:
            sockets |= {str(p) for p in self.view.sockets.glob("*") if p.is_socket()}
        return {
            "shims": [PROCESSES[self.shim]] * len(self.shims()),
            "bundles": sorted(p.name for p in bundles.glob("*")),
            "states": sorted(p.name for p in states.glob("*")),
            "sockets": ["socket"] * len(sockets),
            "mounts": [
                self.normal(p) for folder in (bundles, self.home) for p in mounts_below(folder)
            ],
            "cgroups": sorted({p.name for p in self._cgroups()}),
        }

    def _cgroups(self) -> list[Path]:
        roots = [Path("/sys/fs/cgroup") / self.namespace]
        roots += Path("/sys/fs/cgroup").glob(f"*/{self.namespace}")
        return [p for root in roots for p in root.glob("*") if p.is_dir()]

    def _remove_left(self) -> None:
        """Takes away what is left, so that the next scenario begins with nothing."""
        for pid in self.shims():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for state in (Path("/run/containerd/runc") / self.namespace).glob("*"):
            command = ["runc", "--root", str(state.parent), "delete", "--force", state.name]
            subprocess.run(command, check=False, timeout=BOUND_S, capture_output=True)
        for point in reversed(mounts_below(self.home)):
            subprocess.run(["umount", "--lazy", point], check=False)
        for socket in self._sockets:
            with contextlib.suppress(OSError):
                os.unlink(socket.removeprefix("unix://"))
        self._sockets.clear()

    def remember_socket(self, address: str) -> None:
        """Has ``left`` look whether this one has gone."""
        self._sockets.add(address)

    def end(self) -> None:
        """At the very end: what is the namespace's own."""
        self.view.stop()
