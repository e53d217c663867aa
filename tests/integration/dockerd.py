"""A private dockerd in a network namespace of its own, with our shim, our init and our relay.

It uses the private containerd of ``conftest``, lies in a folder of that containerd's home, and so
ends with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from .conftest import BOUND_S, RUNTIME, Containerd, eventually, mounts_below, processes_of

T = TypeVar("T")
IMAGE = "busybox-and-a-page"
CGROUPS = Path("/sys/fs/cgroup")
CLONE_NEWNET = 0x40000000
# dockerd makes this one wherever its other folders are.
PLUGINS = Path("/run/docker/plugins")
FIRST_WITH_FOREIGN_SHIMS, FIRST_WITHOUT_KEY = 23, 25
# Debian's own client where there is one: another may stand earlier on PATH.
CLIENTS = os.pathsep.join(("/usr/bin", os.environ["PATH"]))


class Dockerd:
    """One dockerd; ``remove`` ends and takes away everything that it or its containers made."""

    def __init__(self, containerd: Containerd) -> None:
        self.containerd = containerd
        self.home = containerd.home / "docker"
        self.host = f"unix://{self.home}/d.sock"
        self.space = f"pyshim-docker-{os.getpid()}"
        self.scripts = Path(containerd.env["PATH"].split(os.pathsep)[0])
        self.process: subprocess.Popen[bytes] | None = None
        self._new_folders = [f for f in (PLUGINS, PLUGINS.parent) if not f.exists()]
        self.home.mkdir()
        self.version = self._major_version()
        self.flags: tuple[str, ...] = ("--runtime", RUNTIME)
        if self.version < FIRST_WITH_FOREIGN_SHIMS:
            self.flags = ()
            self._take_the_name_of_runc()

    def _major_version(self) -> int:
        command = ["dockerd", "--version"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S, check=True)
        found = re.search(r"version (\d+)", said.stdout)
        assert found, said.stdout
        return int(found[1])

    def _take_the_name_of_runc(self) -> None:
        """dockerd 20.10 knows no other shim than containerd-shim-runc-v2: ours gets that name."""
        folder = self.home / "path"
        folder.mkdir()
        (folder / "containerd-shim-runc-v2").symlink_to(self.scripts / "containerd-shim-pyshim-v2")
        self.containerd.env["PATH"] = f"{folder}{os.pathsep}{self.containerd.env['PATH']}"

    # -- the daemon ----------------------------------------------------------------------------

    def make_namespace(self) -> None:
        """The network namespace, with its loopback up."""
        subprocess.run(["ip", "netns", "add", self.space], timeout=BOUND_S, check=True)
        link = ["ip", "-n", self.space, "link", "set", "lo", "up"]
        subprocess.run(link, timeout=BOUND_S, check=True)

    def start(self) -> None:
        """Starts it and waits until it answers."""
        config = self.home / "daemon.json"
        # Else it would be written to /etc/docker.
        key = {"deprecated-key-path": str(self.home / "key.json")}
        config.write_text(json.dumps(key if self.version < FIRST_WITHOUT_KEY else {}))
        # `ip netns exec` would hide the mounts of the cgroups.
        command = ["nsenter", f"--net=/run/netns/{self.space}", "dockerd", "--live-restore"]
        command += ["--containerd", self.containerd.address, "--host", self.host]
        command += ["--config-file", str(config), "--pidfile", str(self.home / "pid")]
        command += ["--data-root", str(self.home / "data"), "--exec-root", str(self.home / "exec")]
        # A relative parent would be below the group, another for each controller, that we are in.
        command += ["--cgroup-parent", f"/{self.space}"]
        command += ["--exec-opt", "native.cgroupdriver=cgroupfs"]
        command += ["--init-path", str(self.scripts / "pyinit")]
        command += ["--userland-proxy-path", str(self.scripts / "portproxy-relay")]
        with (self.home / "dockerd.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self.containerd.env, stdout=log, stderr=log
            )
        eventually(lambda: self.docker("version").returncode == 0, "dockerd answers")

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(BOUND_S)

    def remove(self) -> None:
        """Ends everything by pid; fails if anything stays."""
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):  # it may be dead
            for name in self.containers():
                self.docker("rm", "--force", name)
        self.containerd.stop()
        if self.process is not None:
            self.process.wait(BOUND_S)
        eventually(self._ended, "all processes have ended")
        for point in reversed(mounts_below(self.containerd.home)):
            subprocess.run(["umount", "--lazy", point], timeout=BOUND_S, check=False)
        for folder in self.cgroups():
            folder.rmdir()
        for folder in self._new_folders:
            with contextlib.suppress(OSError):  # another dockerd may use it by now
                folder.rmdir()
        self._remove_namespace()

    def _ended(self) -> bool:
        """Whether no process is left; kills those that there are."""
        left = [*processes_of(self.containerd.home), *self.pids_in_cgroups()]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    def _remove_namespace(self) -> None:
        """Deletes it and makes sure that nothing keeps it, for its bridge lives as long."""
        path = Path("/run/netns") / self.space
        if not path.exists():
            return
        inode = path.stat().st_ino
        subprocess.run(["ip", "netns", "delete", self.space], timeout=BOUND_S, check=True)
        eventually(lambda: not users_of_namespace(inode), "nobody is in the network namespace")

    # -- the client ----------------------------------------------------------------------------

    def docker(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Runs docker with ``stdin``."""
        with self.spawn(*arguments) as process:
            try:
                out, error = process.communicate(stdin, timeout=BOUND_S)
            finally:
                process.kill()
        return subprocess.CompletedProcess(arguments, process.returncode, out, error)

    def spawn(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts docker with pipes."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self._command(*arguments), stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )

    def _command(self, *arguments: str) -> list[str]:
        client = shutil.which("docker", path=CLIENTS)
        assert client, "docker is missing; `make test` installs it"
        return [client, "--config", str(self.home / "client"), "--host", self.host, *arguments]

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """``docker run`` under our shim."""
        return self.docker("run", *self.flags, *arguments, stdin=stdin)

    def started(self, *arguments: str) -> str:
        """``docker run --detach``; the id of the container."""
        done = self.run("--detach", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def on_terminal(self, typed: str, *arguments: str) -> tuple[int, str]:
        """Runs docker on a terminal of 33 × 97; types at the prompt; exit code and screen."""
        master, slave = pty.openpty()
        os.set_inheritable(slave, True)
        subprocess.run(["stty", "rows", "33", "cols", "97"], stdin=slave, check=True)
        process = subprocess.Popen(
            self._command(*arguments),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        seen = bytearray()
        reader = threading.Thread(target=_read_all, args=(master, seen))
        reader.start()
        try:
            if typed:
                eventually(lambda: b"# " in seen or process.poll() is not None, "a prompt")
                os.write(master, typed.encode())
            code = process.wait(BOUND_S)
        finally:
            process.kill()
            reader.join(BOUND_S)
            os.close(master)
        return code, seen.decode(errors="replace")

    def inspect(self, name: str, path: str) -> str:
        """A field of ``docker inspect``, by its Go template."""
        done = self.docker("inspect", "--format", f"{{{{{path}}}}}", name)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def pid(self, name: str) -> int:
        """The pid of a container's PID 1, on the host."""
        return int(self.inspect(name, ".State.Pid"))

    def port(self, name: str) -> int:
        """The host port that leads to a container's port 80."""
        done = self.docker("port", name, "80/tcp")
        assert done.returncode == 0, done.stderr
        return int(done.stdout.strip().rpartition(":")[2])

    def containers(self) -> list[str]:
        """The ids of all containers, also of those that have stopped."""
        done = self.docker("ps", "--all", "--quiet", "--no-trunc")
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def tasks(self) -> dict[str, str]:
        """What containerd knows of dockerd's containers: id → status."""
        done = self.containerd.ctr("--namespace", "moby", "task", "ls")
        assert done.returncode == 0, done.stderr
        rows = [line.split() for line in done.stdout.splitlines()[1:]]
        return {row[0]: row[2] for row in rows}

    # -- what is there -------------------------------------------------------------------------

    def inside(self, make: Callable[[], T]) -> T:
        """Calls ``make`` on a thread in the network namespace; its sockets stay in there."""

        def enter() -> T:
            with open(f"/run/netns/{self.space}") as space:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(space.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns", space.name)
            return make()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(enter).result(BOUND_S)

    def connect(self, port: int) -> socket.socket:
        """A connection to the namespace's 127.0.0.1."""
        return self.inside(lambda: socket.create_connection(("127.0.0.1", port), BOUND_S))

    def page(self, port: int) -> str:
        """What a web server answers there; "" when there is none (yet)."""
        try:
            with self.connect(port) as connection:
                return get(connection)
        except OSError:
            return ""

    def relays(self) -> list[int]:
        """The pids of the processes that run our portproxy-relay for this dockerd."""
        return [pid for pid in processes_of(self.home) if self.runs(pid, "portproxy-relay")]

    def runs(self, pid: int, program: str) -> bool:
        """Whether a process executes the very file that we have installed as ``program``."""
        with contextlib.suppress(OSError):
            return os.path.samefile(f"/proc/{pid}/exe", self.scripts / program)
        return False

    def interfaces(self) -> set[str]:
        """The network interfaces in the namespace."""
        command = ["ip", "-n", self.space, "-json", "link"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S, check=True)
        return {link["ifname"] for link in json.loads(said.stdout)}

    def cgroups(self) -> list[Path]:
        """All cgroups below our parent, and that: children first, under every controller."""
        names = [CGROUPS / self.space, *CGROUPS.glob(f"*/{self.space}")]
        parents = {name.resolve() for name in names}
        return [Path(f) for parent in parents for f, _, _ in os.walk(parent, topdown=False)]

    def pids_in_cgroups(self) -> list[int]:
        """The processes of all our containers."""
        found: list[int] = []
        for folder in self.cgroups():
            with contextlib.suppress(OSError):
                found += map(int, (folder / "cgroup.procs").read_text().split())
        return found


def get(connection: socket.socket) -> str:
    """Asks for ``/`` on a connection; the body of the answer."""
    connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
    with connection.makefile("rb") as answer:
        return answer.read().decode().partition("\r\n\r\n")[2]


def users_of_namespace(inode: int) -> list[str]:
    """The processes in a namespace, and the mounts that keep it."""
    mark = f"net:[{inode}]"
    found = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if mark in line]
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(entry / "ns/net") == mark:
                found.append(entry.name)
    return found


def _read_all(terminal: int, seen: bytearray) -> None:
    """Reads until the other end of ``terminal`` has been closed (then it is EIO)."""
    with contextlib.suppress(OSError):
        while data := os.read(terminal, 4096):
            seen.extend(data)
