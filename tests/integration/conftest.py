"""A private containerd with our shim on its PATH, and what its containers are made of."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

BOUND_S = 60
RUNTIME = "io.containerd.pyshim.v2"
LINKS = "sh cat echo head httpd kill ls printf ps seq sleep stty tr true tty wc wget yes".split()


def eventually(true: Callable[[], object], what: str, bound_s: float = BOUND_S) -> None:
    """Polls until ``true()``; fails the test with ``what`` at the bound."""
    deadline = time.monotonic() + bound_s
    while not true():
        assert time.monotonic() < deadline, f"not within {bound_s} s: {what}"
        time.sleep(0.02)


def processes_of(folder: Path) -> dict[int, str]:
    """Processes that were started with ``folder`` in their environment or command line."""
    found = {}
    mark = os.fsencode(folder)
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(entry.name) == os.getpid():
                continue
            line = (entry / "cmdline").read_bytes()
            if mark in line or mark in (entry / "environ").read_bytes():
                found[int(entry.name)] = line.replace(b"\0", b" ").decode(errors="replace")
    return found


def mounts_below(folder: Path) -> list[str]:
    """Mount points in ``folder``."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if line.split()[4].startswith(str(folder))]


class Containerd:
    """One containerd with folders of its own."""

    def __init__(self, home: Path, rootfs: Path) -> None:
        self.home = home
        self.rootfs = rootfs
        self.address = str(home / "c.sock")
        self.sockets = home / "s"
        self.runtime_dir = home / "run"
        scripts = os.environ.get("PYSHIM_BIN", str(Path(sys.executable).parent))
        self.env = {
            **os.environ,
            "PATH": scripts + os.pathsep + os.environ["PATH"],
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
            self.process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log)
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
        )

    def run(self, name: str, *command: str, flags: tuple[str, ...] = ("--rm",)) -> list[str]:
        """The arguments of ``ctr run`` for a container of ours."""
        return ["run", *flags, "--runtime", RUNTIME, "--rootfs", str(self.rootfs), name, *command]

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
        return [pid for pid in mine if _parent(pid) not in mine]

    def stop(self) -> None:
        """Ends everything that was started here, by pid."""
        for pid in processes_of(self.home):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid_file in (self.home / "state").rglob("init.pid"):
            with contextlib.suppress(ProcessLookupError, ValueError, OSError):
                os.kill(int(pid_file.read_text()), signal.SIGKILL)
        if self.process is not None:
            self.process.wait(BOUND_S)
        for point in reversed(mounts_below(self.home)):
            subprocess.run(["umount", "-l", point], check=False)


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root filesystem of busybox, its links and pyinit."""
    folder = tmp_path_factory.mktemp("rootfs")
    for name in ("bin", "sbin", "proc", "sys", "dev", "tmp", "etc", "www"):
        (folder / name).mkdir()
    busybox = shutil.which("busybox")
    assert busybox, "busybox-static is missing; `make test` installs it"
    shutil.copy(busybox, folder / "bin/busybox")
    for name in LINKS:
        (folder / "bin" / name).symlink_to("busybox")
    scripts = os.environ.get("PYSHIM_BIN", str(Path(sys.executable).parent))
    shutil.copy(Path(scripts) / "pyinit", folder / "sbin/pyinit")
    (folder / "www/index.html").write_text("a page\n")
    return folder


@pytest.fixture(scope="module")
def containerd(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    """A running containerd; nothing of it is left afterwards."""
    home = tmp_path_factory.mktemp("c")
    started = Containerd(home, rootfs)
    try:
        started.start()
        yield started
    finally:
        started.stop()
        eventually(lambda: not processes_of(home), "all processes have ended")
