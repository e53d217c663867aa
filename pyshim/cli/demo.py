"""The main job on real input: containerd, our shim, our init, a forwarded port.

Everything is private to one run (containerd, zygote, network namespace, folder) and is removed
at its end, whatever that is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from pyroute2 import IPRoute, NetNS, netns

PAGE = "served from a container by pyinit's child\n"
STEP_TIMEOUT_S = 30
EXIT_STATUS = 7
# 198.18.0.0/15 is set aside for tests (RFC 2544): no host of anybody's has it.
HOST_ADDRESS, CONTAINER_ADDRESS, PREFIX = "198.18.77.1", "198.18.77.2", 30
SERVE = "trap 'exit 7' TERM; httpd -p 80 -h /www; while :; do sleep 1000 & wait $!; done"


class Failed(Exception):
    """A step did not show what it should."""


def run() -> None:
    """Runs all steps; raises Failed at the first that fails.  Leaves nothing behind."""
    if os.geteuid():
        raise Failed("containers need root; run `sudo make demo`")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        demo = Demo(stack)
        demo.build_rootfs()
        demo.start_containerd("a private containerd")
        demo.make_network()
        demo.start_container()
        demo.forward()
        demo.execute()
        demo.kill_containerd()
        demo.exit_status()
    print(f"done in {time.monotonic() - started:.0f} s; everything has been removed")


def say(text: str) -> None:
    """One readable line for a step that has shown what it should."""
    print(f"  ok  {text}", flush=True)


def wait_for(true: Callable[[], bool], what: str) -> None:
    """Polls until ``true()``; raises Failed with ``what`` at the bound."""
    deadline = time.monotonic() + STEP_TIMEOUT_S
    while not true():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {STEP_TIMEOUT_S} s")
        time.sleep(0.02)


class Demo:
    """One run; everything that it makes is undone by ``stack``, last first."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.home = Path(tempfile.mkdtemp(prefix="pyshim-demo-"))
        stack.callback(shutil.rmtree, self.home, ignore_errors=True)
        self.rootfs = self.home / "rootfs"
        self.address = str(self.home / "c.sock")
        self.name = f"pyshim-demo-{os.getpid()}"
        scripts = str(Path(sys.executable).parent)
        self.env = {
            **os.environ,
            "PATH": scripts + os.pathsep + os.environ.get("PATH", os.defpath),
            "PYSHIM_RUNTIME_DIR": str(self.home / "run"),
        }
        self.port = 0
        self.containerd: subprocess.Popen[bytes] | None = None
        stack.callback(self._end_zygotes)
        stack.callback(self._end_container)

    def build_rootfs(self) -> None:
        """A root filesystem: busybox, its links, a page, and pyinit."""
        busybox = shutil.which("busybox")
        pyinit = shutil.which("pyinit", path=self.env["PATH"])
        if busybox is None or pyinit is None:
            raise Failed("busybox or pyinit is not on PATH; run `make demo` for its set-up")
        for folder in ("bin", "sbin", "www", "proc", "sys", "dev", "tmp", "etc"):
            (self.rootfs / folder).mkdir(parents=True)
        shutil.copy(busybox, self.rootfs / "bin/busybox")
        shutil.copy(pyinit, self.rootfs / "sbin/pyinit")
        for name in ("sh", "httpd", "sleep", "true", "cat"):
            (self.rootfs / "bin" / name).symlink_to("busybox")
        (self.rootfs / "www/index.html").write_text(PAGE)

    def start_containerd(self, what: str) -> None:
        """Starts containerd and waits until it answers."""
        config = self.home / "config.toml"
        config.write_text(
            'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[plugins."io.containerd.internal.v1.opt"]\n  path = "{self.home}/opt"\n'
        )
        command = ["containerd", "--config", str(config), "--address", self.address]
        command += ["--root", str(self.home / "root"), "--state", str(self.home / "state")]
        log = self.stack.enter_context((self.home / "containerd.log").open("ab"))
        process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log)
        self.containerd = process
        self.stack.callback(end, process)
        wait_for(lambda: self.ctr("version", check=False).returncode == 0, "containerd's start")
        say(f"{what} answers (pid {process.pid})")

    def ctr(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs ctr against our containerd; raises Failed when it fails and ``check``."""
        command = ["ctr", "--address", self.address, *arguments]
        done = subprocess.run(
            command,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=STEP_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if check and done.returncode:
            raise Failed(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
        return done

    def make_network(self) -> None:
        """A network namespace and a veth pair into it."""
        netns.create(self.name)
        self.stack.callback(netns.remove, self.name)
        outside, inside = f"pd{os.getpid()}", "eth0"
        with IPRoute() as host, NetNS(self.name) as container:
            peer = {"ifname": inside, "net_ns_fd": self.name}
            host.link("add", ifname=outside, kind="veth", peer=peer)
            index = host.link_lookup(ifname=outside)[0]
            host.addr("add", index=index, address=HOST_ADDRESS, prefixlen=PREFIX)
            host.link("set", index=index, state="up")
            index = container.link_lookup(ifname=inside)[0]
            container.addr("add", index=index, address=CONTAINER_ADDRESS, prefixlen=PREFIX)
            container.link("set", index=index, state="up")
        say(f"a network namespace with the address {CONTAINER_ADDRESS}")

    def start_container(self) -> None:
        """Runs the container, with pyinit as its PID 1."""
        self.ctr(
            *("run", "--detach", "--runtime", "io.containerd.pyshim.v2", "--rootfs"),
            *("--with-ns", f"network:/run/netns/{self.name}", str(self.rootfs), "demo"),
            *("/sbin/pyinit", "--", "/bin/sh", "-c", SERVE),
        )
        pid = self._task()[1]
        if Path(f"/proc/{pid}/exe").readlink().name != "pyinit":
            raise Failed(f"process {pid} is not pyinit")
        say(f"a container with pyinit as its PID 1 (pid {pid} on the host)")

    def _task(self) -> tuple[str, str]:
        """State and pid of the container, by `ctr task ls`."""
        for line in self.ctr("task", "ls").stdout.splitlines():
            fields = line.split()
            if fields[0] == "demo":
                return fields[2], fields[1]
        raise Failed("`ctr task ls` does not list the container")

    def forward(self) -> None:
        """portproxy forwards a free host port to the container's own address."""
        command = [shutil.which("portproxy", path=self.env["PATH"]) or "portproxy"]
        command += ["-p", f"127.0.0.1:0:{CONTAINER_ADDRESS}:80"]
        proxy = subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE, text=True)
        self.stack.callback(end, proxy)
        assert proxy.stdout is not None
        line = proxy.stdout.readline()
        try:
            self.port = int(line.split(" -> ")[0].rpartition(":")[2])
        except ValueError:
            raise Failed(f"portproxy did not say where it listens: {line!r}") from None
        wait_for(self._page, "the page through portproxy")
        say(f"the page, fetched from 127.0.0.1:{self.port} through portproxy")

    def _page(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5) as reply:
                return bool(reply.read().decode() == PAGE)
        except OSError:
            return False

    def execute(self) -> None:
        """An exec, and its exit code."""
        done = self.ctr(
            *("task", "exec", "--exec-id", "one", "demo", "/bin/sh", "-c", "exit 3"), check=False
        )
        if done.returncode != 3:
            raise Failed(f"exec gave {done.returncode} instead of 3: {done.stderr.strip()}")
        say("an exec, and its exit code 3")

    def kill_containerd(self) -> None:
        """SIGKILL to containerd: the container serves on."""
        assert self.containerd is not None
        self.containerd.kill()
        self.containerd.wait(STEP_TIMEOUT_S)
        if not self._page():
            raise Failed("the container stopped serving when containerd was killed")
        say("containerd killed with SIGKILL: the page is still served")
        self.start_containerd("containerd, started again,")
        if self._task()[0] != "RUNNING":
            raise Failed("containerd does not know the running container any more")

    def exit_status(self) -> None:
        """The container's exit status, read through the new containerd."""
        self.ctr("task", "kill", "--signal", "SIGTERM", "demo")
        wait_for(lambda: self._task()[0] == "STOPPED", "the container's end")
        status = self.ctr("task", "delete", "demo", check=False).returncode
        if status != EXIT_STATUS:
            raise Failed(f"the container's exit status was {status} instead of {EXIT_STATUS}")
        self.ctr("container", "delete", "demo")
        say(f"the container's exit status {status}, read through the new containerd")

    def _end_container(self) -> None:
        """For a run that failed or was interrupted."""
        state = self.home / "state"
        if not state.exists():
            return
        for pid_file in state.rglob("init.pid"):
            kill(int(pid_file.read_text()))
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (process / "cmdline").read_bytes().split(b"\0")
                if str(self.home / "run").encode() in b" ".join(command):
                    kill(int(process.name))

    def _end_zygotes(self) -> None:
        for process in _children_of_run(self.home / "run"):
            kill(process)


def _children_of_run(folder: Path) -> Iterator[int]:
    """The pids of processes whose command line names a file in ``folder``."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(folder) in (process / "cmdline").read_bytes():
                yield int(process.name)


def kill(pid: int) -> None:
    """SIGKILL; a process that has gone is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def end(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """Ends a child within a bound."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
