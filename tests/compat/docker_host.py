"""A dockerd as a scenario sees it, with one of the two shims."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

from tests.compat.host import GO
from tests.compat.scenario import Observation, normal
from tests.integration.containerd import RUNTIME, Containerd, eventually, mounts_below
from tests.integration.dockerd import IMAGE, Dockerd

PREFIX = "compat"
TOLD = ("sh", "-c", "trap 'exit 23' TERM; echo ready; while :; do sleep 1000 & wait $!; done")


class PeerDockerd(Dockerd):
    """A dockerd whose programs are those on its containerd's PATH."""

    def __init__(self, containerd: Containerd, version: int, client: str | None) -> None:
        self._known = version
        self._client = client
        super().__init__(containerd)

    def _major_version(self) -> int:
        return self._known

    def _command(self, *arguments: str) -> list[str]:
        command = super()._command(*arguments)
        return [self._client or command[0], *command[1:]]

    def import_image(self, rootfs: Path) -> None:
        """The image of all containers."""
        archive = self.home / "image.tar"
        with tarfile.open(archive, "w") as file:
            file.add(rootfs, ".")
        done = self.docker("import", str(archive), IMAGE)
        assert done.returncode == 0, done.stderr


class StockDockerd(PeerDockerd):
    """One with the shim that its containerd came with."""

    def _take_the_name_of_runc(self) -> None:
        return


class DockerHost:
    """What scenarios use."""

    def __init__(self, daemon: Dockerd, shim: str, series: str) -> None:
        self.daemon = daemon
        self.shim = shim
        self.series = series
        # Both shims' containers can be in one dockerd: by their names one knows them.
        self.prefix = f"{PREFIX}-{shim}"
        self.flags = () if shim == GO else daemon.flags

    def name(self, name: str = "box") -> str:
        """A container's name in this dockerd."""
        return f"{self.prefix}-{name}"

    def docker(self, *arguments: str, stdin: str = "") -> Observation:
        """What docker says, without what no two runs share."""
        done = self.daemon.docker(*arguments, stdin=stdin)
        out, error = self.normal(done.stdout), self.normal(done.stderr)
        return {"code": done.returncode, "out": out, "err": error}

    def run(
        self, *command: str, flags: tuple[str, ...] = ("--rm",), stdin: str = ""
    ) -> Observation:
        """``docker run``; ``flags`` come before the image."""
        arguments = self.run_arguments(*command, flags=flags)
        return self.docker(*arguments, stdin=stdin)

    def run_arguments(
        self, *command: str, flags: tuple[str, ...] = ("--rm",), name: str = "box"
    ) -> list[str]:
        """The arguments of ``docker run``."""
        named = ["--name", self.name(name), "--network", "none"]
        return ["run", *self.flags, *named, *flags, IMAGE, *command]

    def started(self, *command: str, flags: tuple[str, ...] = (), name: str = "box") -> str:
        """``docker run --detach`` of what ends when it is told to; the container's name."""
        command = command or TOLD
        said = self.docker(*self.run_arguments(*command, flags=("--detach", *flags), name=name))
        assert said["code"] == 0, said
        if command == TOLD:
            logged = self.daemon.docker
            eventually(lambda: logged("logs", self.name(name)).stdout, "the program is ready")
        return self.name(name)

    def field(self, path: str, name: str = "box") -> str:
        """A field of ``docker inspect``."""
        return self.normal(self.daemon.inspect(self.name(name), path))

    def ended(self, name: str = "box") -> str:
        """Waits for the container's end; how it ended."""
        said = self.docker("wait", self.name(name))
        assert said["code"] == 0, said
        return self.state(name)

    def state(self, name: str = "box") -> str:
        """Status, exit code, OOM and error."""
        return " ".join(
            self.field(f".State.{part}", name)
            for part in ("Status", "ExitCode", "OOMKilled", "Error")
        ).strip()

    def normal(self, text: str) -> str:
        """``text`` without what no two runs share."""
        names = {
            str(self.daemon.containerd.home): "<home>",
            self.prefix: "<prefix>",
            RUNTIME: "<runtime>",
            "io.containerd.runc.v2": "<runtime>",
        }
        # The client's advice comes with some versions and goes with others.
        text = re.sub(r"\n\nRun 'docker [a-z ]*--help' for more information\s*", "\n", text)
        # Said by a client that is slower than the daemon's refusal.
        text = re.sub(
            r'time="[^"]*" level=error msg="error waiting for container: [^"]*"\n?', "", text
        )
        return normal(text, names)

    def clean(self) -> None:
        """Removes the scenario's containers."""
        for identity in self._containers():
            self.daemon.docker("rm", "--force", "--volumes", identity)

    def left(self) -> dict[str, list[str]]:
        """What stays behind."""
        eventually(lambda: not self._containers(), "docker has no container of the scenario")
        if self.shim == GO:
            return {}
        containerd = self.daemon.containerd
        eventually(lambda: not containerd.monitors(), "the monitors have ended", 10)
        found = {
            "sockets": [p.name for p in containerd.sockets.glob("*") if p.is_socket()],
            "mounts": [] if self.flags else mounts_below(containerd.home / "state"),
        }
        return {kind: names for kind, names in found.items() if names}

    def _containers(self) -> list[str]:
        done = self.daemon.docker("ps", "--all", "--quiet", "--filter", f"name={self.prefix}-")
        return done.stdout.split()
