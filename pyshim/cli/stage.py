"""Where the demo plays: a folder, processes, a network and a container, all private to one run.

An interrupt is only noted when it comes, and acted upon where a step waits.  So nothing is ever
made without being known to `Stage.remove`, and nothing stops that.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

STEP_TIMEOUT_S = 30
END_TIMEOUT_S = 10
POLL_S = 0.02
READ_BYTES = 4096
CLONE_NEWNET = 0x40000000
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
RUNC_ROOT = Path("/run/containerd/runc/default")
# Set aside for tests (RFC 2544): no host of anybody's is in it.  Each run takes four addresses.
NETWORK = ipaddress.ip_network("198.18.0.0/15")
PREFIX = 30


class Failed(Exception):
    """A step did not show what it should."""


class Interrupted(Exception):
    """The signal that asked us to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Stage:
    """One run's private place; whoever makes it calls ``remove`` at the end, whatever that is."""

    def __init__(self) -> None:
        self.interrupt = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._note)
        # The runtime keeps the containers of all containerds in one folder.
        self.name = f"pyshim-demo-{os.getpid()}"
        # Not $TMPDIR: a socket's path must be short.
        self.home = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir="/tmp"))
        self.link = f"pyd{os.getpid()}"
        self.address, self.container_address = addresses(os.getpid())
        self.namespace = -1
        self.children: list[subprocess.Popen[bytes]] = []
        self.env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "PYSHIM_RUNTIME_DIR": str(self.home / "run"),
            "PYSHIM_SOCKET_DIR": str(self.home / "s"),
        }

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.interrupt = number

    # -- waiting -------------------------------------------------------------------------------

    def go_on(self) -> None:
        """Raises Interrupted when a signal has asked us to end."""
        if self.interrupt:
            raise Interrupted(self.interrupt)

    def wait_for(self, true: Callable[[], object], what: str) -> None:
        """Polls until ``true()``; raises Failed with ``what`` at the bound, or Interrupted."""
        deadline = time.monotonic() + STEP_TIMEOUT_S
        while not true():
            self.go_on()
            if time.monotonic() > deadline:
                raise Failed(f"{what}: not within {STEP_TIMEOUT_S} s")
            time.sleep(POLL_S)

    # -- programs ------------------------------------------------------------------------------

    def find(self, program: str) -> str:
        """The path of ``program``; raises Failed when it is not there."""
        found = shutil.which(program, path=self.env["PATH"])
        if found is None:
            raise Failed(f"{program} is not on PATH; `make demo` installs it")
        return found

    def start(self, *command: str, output: int) -> subprocess.Popen[bytes]:
        """Starts a program that ``remove`` ends; its output, errors too, goes to ``output``."""
        process = subprocess.Popen(
            [self.find(command[0]), *command[1:]],
            env=self.env,
            stdin=subprocess.PIPE,  # stays open: ctr 1.6 hangs when it ends
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us
        )
        self.children.append(process)
        return process

    def run(self, *command: str) -> tuple[int, str]:
        """Runs a program to its end: exit code and output, errors too.

        Raises Failed when it does not end within the bound.
        """
        process = self.start(*command, output=subprocess.PIPE)
        try:
            what = f"the end of {' '.join(command[:4])}"
            text = self.read(process, lambda _: False, what)
            self.wait_for(lambda: process.poll() is not None, what)
            return process.returncode, text
        finally:
            end(process)
            self.children.remove(process)

    def read(
        self, process: subprocess.Popen[bytes], enough: Callable[[bytes], bool], what: str
    ) -> str:
        """What ``process`` prints until it is ``enough``, or its output ends."""
        assert process.stdout is not None
        fd = process.stdout.fileno()
        os.set_blocking(fd, False)
        text = bytearray()

        def has_all() -> bool:
            with contextlib.suppress(BlockingIOError):
                while part := os.read(fd, READ_BYTES):
                    text.extend(part)
                return True
            return enough(bytes(text))

        self.wait_for(has_all, what)
        return text.decode(errors="replace")

    # -- the network ---------------------------------------------------------------------------

    def make_network(self) -> str:
        """A network namespace with a veth pair into it; its path.

        It has no name, so it ends with the last process that is in it.
        """
        libc = ctypes.CDLL(None, use_errno=True)

        def make_inside() -> int:
            if libc.unshare(CLONE_NEWNET):  # of the calling thread alone
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            peer = {"ifname": self.link, "net_ns_pid": os.getpid()}
            with IPRoute() as route:
                route.link("add", ifname="eth0", kind="veth", peer=peer)
            raise_link("eth0", self.container_address)
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        try:
            with ThreadPoolExecutor(1) as pool:
                self.namespace = pool.submit(make_inside).result()
            raise_link(self.link, self.address)
        except (OSError, NetlinkError) as error:
            raise Failed(f"cannot make a network namespace with a veth pair: {error}") from error
        return f"/proc/{os.getpid()}/fd/{self.namespace}"

    # -- the end -------------------------------------------------------------------------------

    def remove(self) -> None:
        """Removes everything; raises Failed when something resists.  Not to be interrupted."""
        for process in reversed(self.children):
            end(process)
        ended = until(self._killed_all)
        remove_container(self.name, self.home)
        libc = ctypes.CDLL(None)
        for point in reversed(mounts_below(self.home)):
            libc.umount2(os.fsencode(point), MNT_DETACH | UMOUNT_NOFOLLOW)
        with contextlib.suppress(OSError, NetlinkError), IPRoute() as route:
            route.link("del", ifname=self.link)
        if self.namespace >= 0:
            os.close(self.namespace)
        if not ended or mounts_below(self.home):
            raise Failed(f"not everything could be removed; see {self.home}")
        shutil.rmtree(self.home, ignore_errors=True)

    def _killed_all(self) -> bool:
        """Kills those that are there; true when there was none: who is killed may have forked."""
        found = self.processes()
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not found

    def processes(self) -> list[int]:
        """Every process of this run: it has our environment, or is in the container's cgroup."""
        ours = f"PYSHIM_RUNTIME_DIR={self.home}/run\0".encode()
        group = re.compile(rb"/%s(/|$)" % self.name.encode(), re.MULTILINE)
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                alive = b"\nState:\tZ" not in (entry / "status").read_bytes()
                inside = alive and group.search((entry / "cgroup").read_bytes())
                if inside or ours in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found


def addresses(number: int) -> tuple[str, str]:
    """The host's and the container's address for a run with this ``number``."""
    first = NETWORK[number * 4 % NETWORK.num_addresses]
    return str(first + 1), str(first + 2)


def raise_link(name: str, address: str) -> None:
    """Gives a link of the calling thread's network namespace its address and sets it up."""
    with IPRoute() as route:
        index = route.link_lookup(ifname=name)[0]
        route.addr("add", index=index, address=address, prefixlen=PREFIX)
        route.link("set", index=index, state="up")


def remove_container(name: str, home: Path) -> None:
    """Has the runtime forget a container whose shim was killed, with its cgroup."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if str(home) in (RUNC_ROOT / name / "state.json").read_text():
            subprocess.run(
                ["runc", "--root", str(RUNC_ROOT), "delete", "--force", name],
                check=False,
                capture_output=True,
                timeout=END_TIMEOUT_S,
            )


def mounts_below(folder: Path) -> list[str]:
    """Mount points in ``folder``."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if line.split()[4].startswith(f"{folder}/")]


def until(true: Callable[[], bool]) -> bool:
    """Polls ``true()`` within a bound; whether it came."""
    deadline = time.monotonic() + END_TIMEOUT_S
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a child within a bound, and closes its pipes."""
    for ask in (process.terminate, process.kill):
        if process.poll() is None:
            ask()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_TIMEOUT_S)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
