"""A private containerd with our shim on its PATH, and what its containers are made of."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pyshim.zygote import spares

BOUND_S = 60
RUNTIME = "io.containerd.pyshim.v2"
RUNC_ROOT = Path("/run/containerd/runc")
LINKS = (
    "sh cat echo head httpd kill ls printf ps seq sleep stty tail tr true tty wc wget yes"
).split()


def eventually(true: Callable[[], object], what: str, bound_s: float = BOUND_S) -> None:
    """Polls until ``true()``; fails the test with ``what`` at the bound."""
    deadline = time.monotonic() + bound_s
    while not true():
        assert time.monotonic() < deadline, f"not within {bound_s} s: {what}"
        time.sleep(0.02)


def processes_of(folder: Path) -> dict[int, str]:
    """Processes that were started with ``folder`` in their environment or command line.

    Without a zygote's spares, which have nothing to do yet and end with it.
    """
    found, spare = _processes_of(folder)
    return {pid: line for pid, line in found.items() if pid not in spare}


def spares_of(folder: Path) -> set[int]:
    """The spares among such processes."""
    return _processes_of(folder)[1]


def _processes_of(folder: Path) -> tuple[dict[int, str], set[int]]:
    found, spare = {}, set()
    mark = os.fsencode(folder)
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(entry.name) == os.getpid():
                continue
            line = (entry / "cmdline").read_bytes()
            if mark in line or mark in (entry / "environ").read_bytes():
                found[int(entry.name)] = line.replace(b"\0", b" ").decode(errors="replace")
                if (entry / "comm").read_text() == f"{spares.NAME}\n":
                    spare.add(int(entry.name))
    return found, spare


def mounts_below(folder: Path) -> list[str]:
    """Mount points in ``folder``."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if line.split()[4].startswith(str(folder))]


def make_rootfs(folder: Path) -> None:
    """Fills ``folder`` with busybox, its links and pyinit."""
    for name in ("bin", "sbin", "proc", "sys", "dev", "tmp", "etc", "www"):
        (folder / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox, "busybox-static is missing; `make test` installs it"
    shutil.copy(busybox, folder / "bin/busybox")
    for name in LINKS:
        (folder / "bin" / name).symlink_to("busybox")
    shutil.copy(scripts() / "pyinit", folder / "sbin/pyinit")
    (folder / "www/index.html").write_text("a page\n")


def scripts() -> Path:
    """The folder of the installed programs."""
    return Path(os.environ.get("PYSHIM_BIN", str(Path(sys.executable).parent)))


class Containerd:
    """One containerd with folders of its own."""

    def __init__(self, home: Path, rootfs: Path) -> None:
        self.home = home
        self.rootfs = rootfs
        self.address = str(home / "c.sock")
        self.sockets = home / "s"
        self.runtime_dir = home / "run"
        # Our own: the runtime's folder and the cgroups are named after it, whoever else runs tests.
        self.namespace = f"pyshim-{os.getpid()}-{home.name}"
        self.env = {
            **os.environ,
            "PATH": f"{scripts()}:{os.environ['PATH']}",
            "CONTAINERD_NAMESPACE": self.namespace,
            "PYSHIM_RUNTIME_DIR": str(self.runtime_dir),
            "PYSHIM_SOCKET_DIR": str(self.sockets),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.config = home / "config.toml"
        self.config.write_text(
            'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[plugins."io.containerd.internal.v1.opt"]\n  path = "{home}/opt"\n'
        )

    def start(self) -> None:
        """Starts it and waits until it answers."""
        command = ["containerd", "--config", str(self.config), "--address", self.address]
        command += ["--root", str(self.home / "root"), "--state", str(self.home / "state")]
        with (self.home / "containerd.log").open("ab") as log:
            # In a session of its own: Ctrl-C is for us, and we need it to end in order.
            self.process = subprocess.Popen(
                command, env=self.env, stdout=log, stderr=log, start_new_session=True
            )
        eventually(lambda: self.ctr("version").returncode == 0, "containerd answers")

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(BOUND_S)

    def ctr(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs ctr; its stdin stays open for as long as it runs, unless ``stdin`` is given."""
        reader, writer = os.pipe()
        try:
            process = self.spawn(*arguments, stdin=reader)
            os.close(reader)
            if stdin is not None:
                os.write(writer, stdin.encode())
                # ctr 1.6 hangs when its stdin ends before the task is there.
                eventually(lambda: process.poll() is not None or self._running(), "a task")
                os.close(writer)
            try:
                out, error = process.communicate(timeout=BOUND_S)
            finally:
                process.kill()
        finally:
            if stdin is None:
                os.close(writer)
        return subprocess.CompletedProcess(arguments, process.returncode, out, error)

    def _running(self) -> bool:
        return "RUNNING" in self.ctr("task", "ls").stdout

    def spawn(self, *arguments: str, stdin: int) -> subprocess.Popen[str]:
        """Starts ctr with ``stdin``, and pipes for the rest."""
        return subprocess.Popen(
            ["ctr", "--address", self.address, *arguments],
            env=self.env,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self, name: str, *command: str, flags: tuple[str, ...] = ("--rm",), runtime: str = RUNTIME
    ) -> list[str]:
        """The arguments of ``ctr run`` for a container of ours, or of another ``runtime``."""
        where = ["--runtime", runtime, "--fifo-dir", str(self.home / "fifo")]
        return ["run", *flags, *where, "--rootfs", str(self.rootfs), name, *command]

    def tasks(self) -> dict[str, tuple[int, str]]:
        """What `ctr task ls` lists: name → (pid, status)."""
        done = self.ctr("task", "ls")
        assert done.returncode == 0, done.stderr
        rows = [line.split() for line in done.stdout.splitlines()[1:]]
        return {row[0]: (int(row[1]), row[2]) for row in rows}

    def monitors(self) -> list[int]:
        """The pids of our monitors."""
        found = processes_of(self.runtime_dir)
        return [pid for pid, line in found.items() if "pyshim-monitor" in line.split(" ")[0]]

    def services(self) -> list[int]:
        """The pids of active services: children of the zygote, or executed by a monitor."""
        zygotes = set(self.zygotes())
        found = []
        for pid in processes_of(self.runtime_dir):
            with contextlib.suppress(OSError, IndexError):
                stat = Path(f"/proc/{pid}/stat").read_text()
                if int(stat.rpartition(")")[2].split()[1]) in zygotes:
                    found.append(pid)
        return found

    def zygotes(self) -> list[int]:
        """The pids of zygotes: those that are in a session of their own."""
        found = processes_of(self.runtime_dir)
        mine = [pid for pid, line in found.items() if "pyshim.zygote" in line]
        return [pid for pid in mine if parent_of(pid) not in mine]

    def stop(self) -> None:
        """Ends everything that was started here, by pid, and removes what lies elsewhere."""
        eventually(self._killed_all, "all processes have ended")
        if self.process is not None:
            self.process.wait(BOUND_S)
        self._forget_containers()
        for point in reversed(mounts_below(self.home)):
            subprocess.run(["umount", "-l", point], check=False)
        # What the runtime and ctr make for the namespace, nobody removes.
        for folder in [*Path("/sys/fs/cgroup").glob(f"*/{self.namespace}"), *self._folders()]:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _folders(self) -> list[Path]:
        return [Path("/sys/fs/cgroup") / self.namespace, RUNC_ROOT / self.namespace]

    def bundle(self, name: str) -> Path:
        """The bundle of the container ``name``."""
        return self.home / "state/io.containerd.runtime.v2.task" / self.namespace / name

    def _forget_containers(self) -> None:
        """Ends containers whose shims were killed; removes their states, cgroups and sockets."""
        for state in RUNC_ROOT.glob("*/*/state.json"):
            with contextlib.suppress(OSError):
                if str(self.home) in state.read_text():
                    command = ["runc", "--root", str(state.parents[1]), "delete", "--force"]
                    subprocess.run([*command, state.parent.name], check=False, timeout=BOUND_S)
        for address in (self.home / "state").glob("*/*/*/address"):
            with contextlib.suppress(OSError):
                Path(address.read_text().strip().removeprefix("unix://")).unlink()

    def _killed_all(self) -> bool:
        """Kills those that are there; true when there was none: who is killed may have forked."""
        found = processes_of(self.home)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not found


def parent_of(pid: int) -> int:
    """The parent of a process; 0 when it has gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def nothing_left(containerd: Containerd) -> None:
    """No monitor, socket, mount or bundle of ours is left."""
    eventually(lambda: not containerd.monitors(), "the monitors have ended")
    # containerd removes the bundle of a shim that has died after it has forgotten the task.
    bundles = containerd.bundle("*").parent
    eventually(lambda: not any(bundles.glob("*")), "the bundles have been removed")
    assert [p.name for p in containerd.sockets.glob("*") if p.is_socket()] == []
    assert mounts_below(containerd.home / "state") == []
    assert list(Path("/tmp").glob("pyshim-pty*")) == []
