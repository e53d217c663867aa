"""containerd's own shim, driven as ours is: what a fault does to it is observed beside ours."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.containerd import processes_of
from tests.integration.shim import Host

NAME = "containerd-shim-runc-v2"


class GoHost(Host):
    """A host whose containers are supervised by the Go shim; it need not leave it tidy."""

    def __init__(self, home: Path, rootfs: Path) -> None:
        super().__init__(home, rootfs)
        found = shutil.which(NAME)
        assert found, f"{NAME} is missing; `make test` installs it with containerd"
        self.program = found
        self.env["GOMAXPROCS"] = "2"
        self._logs: list[int] = []
        self._sockets: set[Path] = set()

    def act(self, action: str, name: str, *flags: str) -> subprocess.CompletedProcess[bytes]:
        """As ours, with the log that the Go shim cannot do without."""
        log = self.bundles / name / "log"
        if action == "start" and not log.exists():
            os.mkfifo(log)
            self._logs.append(os.open(log, os.O_RDWR | os.O_NONBLOCK))
        try:
            return super().act(action, name, *flags)
        finally:
            with contextlib.suppress(OSError):
                text = (self.bundles / name / "address").read_text()
                self._sockets.add(Path(text.removeprefix("unix://")))

    def monitors(self) -> list[int]:
        """The pids of the shims."""
        found = processes_of(self.home)
        return [pid for pid, line in found.items() if NAME in line.split(" ")[0]]

    def end(self) -> None:
        """As ours; its sockets lie elsewhere."""
        super().end()
        for fd in self._logs:
            os.close(fd)
        for path in self._sockets:
            path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def module_go(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GoHost]:
    """A host for a module's tests; nothing of it is left afterwards."""
    made = GoHost(tmp_path_factory.mktemp("g"), rootfs)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def go(module_go: GoHost) -> Iterator[GoHost]:
    """A host on which there is nothing before the test; what the test leaves is ended by force."""
    try:
        yield module_go
    finally:
        module_go.clear()
