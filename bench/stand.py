"""Two shims side by side, each with folders, an event service and containers of its own.

They are driven as containerd drives them, but without one in between, so that only they are timed.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.rows import OURS, THEIRS
from bench.usage import KIB, Account, pss
from tests.integration.containerd import (
    BOUND_S,
    Containerd,
    eventually,
    processes_of,
    scripts,
    spares_of,
)
from tests.integration.shim import Container, Host

PROGRAMS = {OURS: "containerd-shim-pyshim-v2", THEIRS: "containerd-shim-runc-v2"}
RUNTIMES = {OURS: "io.containerd.pyshim.v2", THEIRS: "io.containerd.runc.v2"}
WORKERS = 4
# Longer than a service stays.
LEFT_ALONE_S = 1.2
STEADY_S = 1.5  # longer than it takes until the next spare ends that a burst has left
STEADY_SHARE = 0.01
DESCRIPTORS = 8192


class Stand(Host):
    """One side.  ``took`` has the seconds of each `start` and `delete`, by action and container."""

    def __init__(self, home: Path, rootfs: Path, side: str) -> None:
        home.mkdir()
        self.side = side
        found = shutil.which(PROGRAMS[side], path=f"{scripts()}:{os.environ['PATH']}")
        if found is None:
            raise FileNotFoundError(f"{PROGRAMS[side]} is not installed")
        self.took: dict[tuple[str, str], float] = {}
        self._logs: list[int] = []
        super().__init__(home, rootfs)
        self.program = found
        self.account = Account(f"{self.namespace}-shims")

    def act(self, action: str, name: str, *flags: str) -> subprocess.CompletedProcess[bytes]:
        """As containerd, which also makes a fifo for the shim's log and reads it."""
        log = self.bundles / name / "log"
        if not log.exists():
            os.mkfifo(log)
            self._logs.append(os.open(log, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        started = time.perf_counter()
        done = super().act(action, name, *flags)
        self.took[action, name] = time.perf_counter() - started
        # What the Go shim says there of a runtime that has nothing to delete is no failure.
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout, b"")

    def populate(self, count: int) -> list[Container]:
        """So many more containers that sleep, accounted for in ``account``."""
        self.account.enter()
        try:
            with ThreadPoolExecutor(WORKERS) as pool:
                return list(pool.map(lambda _: self.started("/bin/sleep", "1000000"), range(count)))
        finally:
            self.account.leave()

    @staticmethod
    def depopulate(containers: list[Container]) -> None:
        """Ends them in order, and empties the list."""
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(Container.end, containers))
        containers.clear()

    def shims(self) -> list[int]:
        """The pids of all that is there for the containers and is not in them."""
        found = [*spares_of(self.home)]
        for pid, line in processes_of(self.home).items():
            name = Path(line.split(" ")[0]).name
            if name in {PROGRAMS[THEIRS], "pyshim-monitor"} or "-m pyshim." in line:
                found.append(pid)
        return found

    def pss(self) -> int:
        """Bytes of all of them."""
        return sum(pss(pid) for pid in self.shims())

    def rest(self) -> None:
        """Waits until no service is active."""
        eventually(lambda: not self.services(), "the services have parked")

    def leave_alone(self) -> None:
        """As long for both sides: a processor that has slept is slow at first, whoever wakes it."""
        time.sleep(LEFT_ALONE_S)
        self.rest()

    def steady_pss(self) -> int:
        """Bytes, at rest, once two sums that are a while apart agree."""
        self.rest()
        seen = [self.pss()]

        def is_steady() -> bool:
            time.sleep(STEADY_S)
            seen.append(self.pss())
            return abs(seen[-1] - seen[-2]) <= STEADY_SHARE * seen[-1]

        eventually(is_steady, "memory has settled")
        return seen[-1]

    def end(self) -> None:
        """Ends and removes everything, also after a failure."""
        super().end()
        for fd in self._logs:
            os.close(fd)
        self._logs.clear()
        eventually(self._account_closed, "the shims' group is empty", BOUND_S)

    def _account_closed(self) -> bool:
        with contextlib.suppress(OSError):
            self.account.close()
            return True
        return False


@dataclass
class Bench:
    """What the measurements work with."""

    home: Path
    rootfs: Path
    stands: dict[str, Stand]
    containerd: Containerd
    repetitions: int

    def alternately(
        self, measure: Callable[[Stand], Mapping[str, float]], times: int = 1
    ) -> dict[str, dict[str, list[float]]]:
        """``times`` × ``repetitions`` samples of each side, in turn, for each figure's key."""
        samples: dict[str, dict[str, list[float]]] = {}
        for number in range(self.repetitions * times):
            # Who is first changes, so that neither always meets a warm or a tired host.
            for side in sorted(self.stands, reverse=bool(number % 2)):
                for key, value in measure(self.stands[side]).items():
                    samples.setdefault(key, {OURS: [], THEIRS: []})[side].append(value)
        return samples


@contextlib.contextmanager
def stands(home: Path, rootfs: Path) -> Iterator[dict[str, Stand]]:
    """Both sides; nothing of them is left afterwards."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, hard), hard))
    with contextlib.ExitStack() as stack:
        made = {}
        for side in (OURS, THEIRS):
            made[side] = Stand(home / side, rootfs, side)
            stack.callback(made[side].end)
        yield made


def kib(size: float) -> float:
    """Bytes in KiB."""
    return size / KIB
