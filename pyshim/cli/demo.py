"""The main job on real input: containerd, our shim, our init, a forwarded port.

Everything is private to one run (see ``stage``) and is removed at its end, whatever that is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path

from pyshim.cli.stage import Failed, Stage

PAGE = "served from a container by pyinit's child\n"
FETCH_TIMEOUT_S = 2
EXIT_STATUS = 7
SERVE = "trap 'exit 7' TERM; httpd -p 80 -h /www; while :; do sleep 1000 & wait $!; done"
RUNTIME = "io.containerd.pyshim.v2"
PROGRAMS = ("containerd", "ctr", "runc", "containerd-shim-pyshim-v2", "portproxy")
# Of containerd 1.6 to 2.x; NRI would take a socket that is not ours alone.
DISABLED = ("io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri")


def run() -> None:
    """Runs all steps and leaves nothing behind.

    Raises Failed at the first step that fails, and Interrupted.
    """
    if os.geteuid():
        raise Failed("containers need root; run `sudo make demo`")
    started = time.monotonic()
    stage = Stage()
    try:
        demo = Demo(stage)
        demo.build_rootfs()
        demo.start_containerd("a private containerd")
        demo.make_network()
        demo.start_container()
        demo.forward()
        demo.execute()
        demo.kill_containerd()
        demo.exit_status()
    except Failed:
        stage.go_on()  # Ctrl-C also ends a child that has not yet got a session of its own
        raise
    finally:
        stage.remove()
    stage.go_on()
    print(f"done in {time.monotonic() - started:.0f} s; everything has been removed")


def say(text: str) -> None:
    """One readable line for a step that has shown what it should."""
    print(f"  ok  {text}", flush=True)


def last_line(text: str) -> str:
    """Where a program that fails says why."""
    return (text.strip().splitlines() or [""])[-1]


class Demo:
    """The steps."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.rootfs = stage.home / "rootfs"
        self.log = stage.home / "containerd.log"
        self.address = str(stage.home / "c.sock")
        self.network = ""
        self.pid = ""
        self.port = 0
        self.containerd: subprocess.Popen[bytes] | None = None

    def build_rootfs(self) -> None:
        """A root filesystem: busybox, its links, a page, and pyinit."""
        for program in PROGRAMS:
            self.stage.find(program)
        for folder in ("bin", "sbin", "www", "proc", "sys", "dev", "tmp", "etc"):
            (self.rootfs / folder).mkdir(parents=True)
        shutil.copy(self.stage.find("busybox"), self.rootfs / "bin/busybox")
        shutil.copy(self.stage.find("pyinit"), self.rootfs / "sbin/pyinit")
        for name in ("sh", "httpd", "sleep"):
            (self.rootfs / "bin" / name).symlink_to("busybox")
        (self.rootfs / "www/index.html").write_text(PAGE)

    def start_containerd(self, what: str) -> None:
        """Starts containerd and waits until it answers."""
        home = self.stage.home
        config = home / "config.toml"
        disabled = ", ".join(f'"{name}"' for name in DISABLED)
        config.write_text(
            f"version = 2\ndisabled_plugins = [{disabled}]\n"
            f'[plugins."io.containerd.internal.v1.opt"]\n  path = "{home}/opt"\n'
        )
        command = ["containerd", "--config", str(config), "--address", self.address]
        command += ["--root", str(home / "root"), "--state", str(home / "state")]
        with self.log.open("ab") as log:
            process = self.stage.start(*command, output=log.fileno())
        self.containerd = process
        self.stage.wait_for(self._answers, "containerd's start")
        say(f"{what} answers (pid {process.pid})")

    def _answers(self) -> bool:
        assert self.containerd is not None
        if self.containerd.poll() is not None:
            said = last_line(self.log.read_text(errors="replace"))
            raise Failed(f"containerd ended ({self.containerd.returncode}): {said}")
        return self._try_ctr("version")[0] == 0

    def _try_ctr(self, *arguments: str) -> tuple[int, str]:
        """Exit code and output of ctr against our containerd."""
        return self.stage.run("ctr", "--address", self.address, *arguments)

    def ctr(self, *arguments: str) -> str:
        """The output of ctr; raises Failed when it fails."""
        code, text = self._try_ctr(*arguments)
        if code:
            raise Failed(f"ctr {' '.join(arguments[:2])}: {last_line(text) or f'exit code {code}'}")
        return text

    def make_network(self) -> None:
        """A network namespace and a veth pair into it."""
        self.network = self.stage.make_network()
        say(f"a network namespace with the address {self.stage.container_address}")

    def start_container(self) -> None:
        """Runs the container, with pyinit as its PID 1."""
        name = self.stage.name
        self.ctr(
            *("run", "--detach", "--runtime", RUNTIME, "--fifo-dir", f"{self.stage.home}/fifo"),
            *("--cgroup", f"/{name}", "--with-ns", f"network:{self.network}", "--rootfs"),
            *(str(self.rootfs), name, "/sbin/pyinit", "--", "/bin/sh", "-c", SERVE),
        )
        self.pid = self._task()[1]
        program = self._program()
        if program != "pyinit":
            raise Failed(f"process {self.pid} is {program} instead of pyinit")
        say(f"a container with pyinit as its PID 1 (pid {self.pid} on the host)")

    def _program(self) -> str:
        """What the container's first process executes; raises Failed when it has ended."""
        try:
            return Path(f"/proc/{self.pid}/exe").readlink().name
        except OSError:
            raise Failed("the container ended instead of serving") from None

    def _task(self) -> tuple[str, str]:
        """State and pid of the container, by `ctr task ls`."""
        for line in self.ctr("task", "ls").splitlines():
            fields = line.split()
            if fields[0] == self.stage.name:
                return fields[2], fields[1]
        raise Failed("`ctr task ls` does not list the container")

    def forward(self) -> None:
        """portproxy forwards a free host port to the container's own address."""
        mapping = f"127.0.0.1:0:{self.stage.container_address}:80"
        proxy = self.stage.start("portproxy", "-p", mapping, output=subprocess.PIPE)
        said = self.stage.read(proxy, lambda text: b"\n" in text, "portproxy's start")
        listening = re.match(r"listening on 127\.0\.0\.1:(\d+) -> ", said)
        if listening is None:
            raise Failed(f"portproxy did not say where it listens, but: {last_line(said)}")
        self.port = int(listening[1])
        self.stage.wait_for(lambda: self._program() and self._page(), "the page through portproxy")
        say(f"the page, fetched from 127.0.0.1:{self.port} through portproxy")

    def _page(self) -> bool:
        # Not urlopen: a proxy in the environment is for other hosts.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self.port}/", timeout=FETCH_TIMEOUT_S) as reply:
                return bool(reply.read().decode() == PAGE)
        except (OSError, HTTPException):
            return False

    def execute(self) -> None:
        """An exec, and its exit code."""
        code, text = self._try_ctr(
            *("task", "exec", "--fifo-dir", f"{self.stage.home}/fifo", "--exec-id", "one"),
            *(self.stage.name, "/bin/sh", "-c", "exit 3"),
        )
        if code != 3:
            raise Failed(f"exec gave {code} instead of 3: {last_line(text)}")
        say("an exec, and its exit code 3")

    def kill_containerd(self) -> None:
        """SIGKILL to containerd: the container serves on."""
        assert self.containerd is not None
        self.containerd.kill()
        self.containerd.wait()
        if not self._page():
            raise Failed("the container stopped serving when containerd was killed")
        say("containerd killed with SIGKILL: the page is still served")
        self.start_containerd("containerd, started again,")
        if self._task()[0] != "RUNNING":
            raise Failed("containerd does not know the running container any more")

    def exit_status(self) -> None:
        """The container's exit status, read through the new containerd."""
        self.ctr("task", "kill", "--signal", "SIGTERM", self.stage.name)
        self.stage.wait_for(lambda: self._task()[0] == "STOPPED", "the container's end")
        code, text = self._try_ctr("task", "delete", self.stage.name)
        told = re.search(r"exit code (\d+)", text)  # ctr warns of it, and succeeds
        status = int(told[1]) if told else code
        if status != EXIT_STATUS:
            raise Failed(f"the container's exit status was {status} instead of {EXIT_STATUS}")
        self.ctr("container", "delete", self.stage.name)
        say(f"the container's exit status {status}, read through the new containerd")
