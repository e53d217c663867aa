"""The daemons that scenarios run on: this machine's, and the newer ones of ``peers``."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from tests.compat import peers
from tests.compat.docker_host import DockerHost, PeerDockerd, StockDockerd
from tests.compat.host import GO, OURS, Host
from tests.compat.scenario import CONTAINERD, DOCKER
from tests.integration.containerd import BOUND_S, Containerd, mounts_below, processes_of
from tests.integration.dockerd import FIRST_WITH_FOREIGN_SHIMS, Dockerd

INSTALLED = "installed"
PEERS = {"trixie": peers.TRIXIE, "sid": peers.SID}
# By daemon, the suites that scenarios are run on.
SUITES = {CONTAINERD: (INSTALLED, "trixie", "sid"), DOCKER: (INSTALLED, "sid")}


class Generation(ABC):
    """A daemon, or one for each shim, that is started for as long as scenarios use it."""

    def __init__(self, suite: str) -> None:
        self.suite = suite
        self.folders = {} if suite == INSTALLED else peers.fetch(PEERS[suite])
        self.version = ""
        self.series = ""

    @abstractmethod
    def start(self, home: Path, rootfs: Path) -> None:
        """Starts it below ``home``."""

    @abstractmethod
    def host(self, shim: str) -> Any:
        """What scenarios use with this shim."""

    @abstractmethod
    def stop(self) -> None:
        """Ends it; fails if anything stays."""

    def containerd(self, home: Path, rootfs: Path) -> Containerd:
        """A containerd of this generation, not started."""
        made = Containerd(home, rootfs)
        ours, _, rest = made.env["PATH"].partition(os.pathsep)
        made.env["PATH"] = os.pathsep.join([ours, *peers.programs(self.folders), rest])
        return made

    def says(self, containerd: Containerd, program: str, pattern: str) -> str:
        """The version that a program of this generation prints."""
        done = subprocess.run(
            [program, "--version"],
            env=containerd.env,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=True,
        )
        found = re.search(pattern, done.stdout)
        assert found, done.stdout
        return found[1]


class Containerds(Generation):
    """One containerd; both shims run side by side in it, in two namespaces."""

    def start(self, home: Path, rootfs: Path) -> None:
        self.daemon = self.containerd(home, rootfs)
        self.version = self.says(self.daemon, "containerd", r" v?(\d+\.\d+\.\d+)")
        major, minor, _ = self.version.split(".")
        self.series = f"1.{minor}" if major == "1" else major
        self.daemon.start()
        self.hosts = {shim: Host(self.daemon, shim, self.series) for shim in (OURS, GO)}

    def host(self, shim: str) -> Host:
        return self.hosts[shim]

    def stop(self) -> None:
        for host in getattr(self, "hosts", {}).values():
            host.end()
        self.daemon.stop()
        assert processes_of(self.daemon.home) == {}
        assert mounts_below(self.daemon.home) == []


class Dockerds(Generation):
    """One dockerd; or two, where dockerd can know one shim only."""

    def start(self, home: Path, rootfs: Path) -> None:
        self.daemons: list[Dockerd] = []
        self.hosts: dict[str, DockerHost] = {}
        first = self._start_one(home / "a", rootfs, OURS)
        if first.version >= FIRST_WITH_FOREIGN_SHIMS:
            self.hosts[GO] = DockerHost(first, GO, self.series)
        else:
            self._start_one(home / "b", rootfs, GO)

    def _start_one(self, home: Path, rootfs: Path, shim: str) -> Dockerd:
        home.mkdir()
        containerd = self.containerd(home, rootfs)
        self.version = self.says(containerd, "dockerd", r"version (\d+\.\d+\.\d+)")
        self.series = self.version.partition(".")[0]
        kind = StockDockerd if shim == GO else PeerDockerd
        client = shutil.which("docker", path=os.pathsep.join(peers.programs(self.folders)))
        daemon = kind(containerd, int(self.series), client)
        self.daemons.append(daemon)
        daemon.space += f"-{shim}"
        daemon.make_namespace()
        containerd.start()
        daemon.start()
        daemon.import_image(rootfs)
        self.hosts[shim] = DockerHost(daemon, shim, self.series)
        return daemon

    def host(self, shim: str) -> DockerHost:
        return self.hosts[shim]

    def stop(self) -> None:
        with contextlib.ExitStack() as stack:
            for daemon in getattr(self, "daemons", []):
                stack.callback(daemon.remove)
        for daemon in self.daemons:
            assert processes_of(daemon.containerd.home) == {}
            assert mounts_below(daemon.containerd.home) == []
            assert daemon.cgroups() == []


def make(daemon: str, suite: str) -> Generation:
    """A generation, not started.  Raises ``peers.Unreachable``."""
    return Containerds(suite) if daemon == CONTAINERD else Dockerds(suite)
