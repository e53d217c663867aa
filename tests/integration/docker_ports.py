"""What the tests of published ports look at: dockerd's API, a container's namespace, the rules."""

from __future__ import annotations

import ctypes
import http.client
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tests.compat import peers
from tests.compat.docker_host import PeerDockerd
from tests.integration.containerd import BOUND_S, Containerd
from tests.integration.dockerd import CLONE_NEWNET

T = TypeVar("T")
LISTENS = "0A"  # in /proc/net/tcp
NO_CONTENT = 204


class Api(http.client.HTTPConnection):
    """A connection to dockerd's API: a client for each call would be most of a cycle's cost."""

    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=BOUND_S)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(BOUND_S)
        self.sock.connect(self.path)

    def post(self, path: str) -> None:
        """Asks for something that has no answer but that it was done."""
        self.request("POST", path)
        answer = self.getresponse()
        said = answer.read()
        assert answer.status == NO_CONTENT, (path, answer.status, said)


def dockerd_of(suite: str, containerd: Containerd) -> PeerDockerd:
    """A dockerd of this machine ("installed") or of a suite.  Raises ``peers.Unreachable``."""
    folders = {} if suite == "installed" else peers.fetch(peers.SID)
    ours, _, rest = containerd.env["PATH"].partition(os.pathsep)
    containerd.env["PATH"] = os.pathsep.join([ours, *peers.programs(folders), rest])
    said = subprocess.run(
        ["dockerd", "--version"],
        env=containerd.env,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=True,
    ).stdout
    version = re.search(r"version (\d+)", said)
    assert version, said
    client = shutil.which("docker", path=os.pathsep.join(peers.programs(folders)))
    return PeerDockerd(containerd, int(version[1]), client)


def within(namespace: str, make: Callable[[], T]) -> T:
    """Calls ``make`` on a thread in the network namespace of that path; sockets stay in there."""

    def enter() -> T:
        with open(namespace) as space:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(space.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns", namespace)
        return make()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(enter).result(BOUND_S)


def open_ports(namespace: str) -> set[tuple[str, str]]:
    """The protocols and addresses that somebody listens on, or has bound for datagrams."""

    def read() -> set[tuple[str, str]]:
        found = set()
        for proto in ("tcp", "tcp6", "udp", "udp6"):
            for line in Path(f"/proc/thread-self/net/{proto}").read_text().splitlines()[1:]:
                words = line.split()
                if proto.startswith("udp") or words[3] == LISTENS:
                    found.add((proto, words[1]))
        return found

    return within(namespace, read)


def rules(namespace: str) -> list[str]:
    """All packet filter rules of a namespace, both families, without their counters."""
    found = []
    for program in ("iptables-save", "ip6tables-save"):
        done = subprocess.run(
            ["nsenter", f"--net={namespace}", program],
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=True,
        )
        found += [line for line in done.stdout.splitlines() if line.startswith("-A")]
    return sorted(found)
