"""Where a soak happens: a shim's host without a containerd, a containerd, and what is in them."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pyshim.zygote import spares
from tests.integration.containerd import (
    BOUND_S,
    RUNC_ROOT,
    Containerd,
    eventually,
    make_rootfs,
    mounts_below,
    parent_of,
    processes_of,
    spares_of,
)
from tests.integration.shim import Container, Host, descriptors

from .versions import Versions

DISK_BYTES = 32 * 1024 * 1024
DATA_BYTES = 1024 * 1024
UNUSED_S = 5
POD = "long-lived"
NO_END = float("inf")

Holdings = dict[str, Counter[str]]


@dataclass
class Processes:
    """Ours, by what they are."""

    monitors: list[int] = field(default_factory=list)
    zygotes: list[int] = field(default_factory=list)
    services: list[int] = field(default_factory=list)
    runtimes: list[int] = field(default_factory=list)


class Excuses:
    """When faults were in force for which a request may be refused; times in seconds."""

    def __init__(self) -> None:
        self._spans: list[list[float]] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def during(self, now: Callable[[], float]) -> Iterator[None]:
        """A fault is in force; ``now`` tells the time."""
        span = [now(), NO_END]
        with self._lock:
            self._spans.append(span)
        try:
            yield
        finally:
            span[1] = now()

    def since(self, when: float) -> bool:
        """Whether there was one at ``when`` or later."""
        with self._lock:
            return any(end >= when for _, end in self._spans)


class World:
    """Everything that is soaked; ``close`` leaves nothing of it."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.rootfs = root / "rootfs"
        make_rootfs(self.rootfs)
        self.data = random.Random(seed).randbytes(DATA_BYTES)
        (self.rootfs / "www/data").write_bytes(self.data)
        # Faults that a client may see: of all, and of containerd, which takes its clients along.
        self.excuses, self.absences = Excuses(), Excuses()
        self.fifos = root / "f"
        self.fifos.mkdir()
        homes = [root / name for name in ("h", "c")]
        for home in homes:
            home.mkdir()
        self.host = Host(homes[0], self.rootfs)
        self.containerd = Containerd(homes[1], self.rootfs)
        self.containerd.env |= {"TMPDIR": str(root / "t"), "PYSHIM_UNUSED_S": str(UNUSED_S)}
        (root / "t").mkdir()
        self.disk = self.host.bundles
        self.versions = Versions(root, self.host.env)
        self.upgrades: Counter[str] = Counter()  # how many monitors have, or have not
        self.pod: Container

    def open(self) -> None:
        """Mounts the bundles' disk; starts containerd and a pod that is there until the end."""
        size = f"size={DISK_BYTES}"
        command = ["mount", "-t", "tmpfs", "-o", size, "soak", str(self.disk)]
        subprocess.run(command, check=True, timeout=BOUND_S)
        self.containerd.start()
        self.pod = self.host.started("/bin/sleep", "1000000", pod=POD)

    def close(self) -> None:
        """Ends everything, by force what is still there."""
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, self.root, ignore_errors=True)
            stack.callback(self._unmount)
            stack.callback(self.host.end)
            stack.callback(self._remove_groups)
            stack.callback(self.containerd.stop)

    def _remove_groups(self) -> None:
        """Those of containers that have leaked: who ends the namespaces' expects none."""
        eventually(self.host.killed_all, "all processes have ended")
        for path in self._groups():
            with contextlib.suppress(OSError):
                path.rmdir()

    def _groups(self) -> list[Path]:
        """The control groups of containers."""
        found = []
        for space in (self.host.namespace, self.containerd.namespace):
            for pattern in (f"{space}/*", f"*/{space}/*"):
                found += [p for p in Path("/sys/fs/cgroup").glob(pattern) if p.is_dir()]
        return found

    def _unmount(self) -> None:
        for point in reversed(mounts_below(self.root)):
            subprocess.run(["umount", "-l", point], check=False)

    def processes(self) -> Processes:
        """What runs now."""
        found = Processes()
        forked = []
        for pid, line in processes_of(self.root).items():
            first = os.path.basename(line.split(" ")[0])
            if first == "pyshim-monitor":
                found.monitors.append(pid)
            elif "pyshim.zygote" in line:
                forked.append(pid)
            elif "pyshim.service" in line:
                found.services.append(pid)
            elif line.startswith("runc ") and not line.startswith("runc init"):
                found.runtimes.append(pid)
        for pid in forked:
            (found.services if parent_of(pid) in forked else found.zygotes).append(pid)
        return found

    # -- what there is ---------------------------------------------------------------------------

    def settle(self) -> None:
        """Waits until no service is active, and the zygotes are as they were."""
        eventually(lambda: not self.processes().services, "the services have parked")
        eventually(self._spares_are_back, "the zygotes have their spares again")

    def _spares_are_back(self) -> bool:
        return len(spares_of(self.root)) == spares.wanted() * len(self.processes().zygotes)

    def holdings(self) -> Holdings:
        """All that may leak."""
        ours = self.processes()
        lines = processes_of(self.root)
        files = [*self.host.bundles.rglob("*")]
        # Not what containerd itself names so before it removes it: one that is killed in between
        # leaves it for good, whatever the shim (loadShims passes over it).
        for bundle in self.containerd.bundle("*").parent.glob("[!.]*"):
            files += [bundle, *bundle.rglob("*")]
        # Not the fifos of `ctr`: it leaves them when it is cut off.
        stray = [self.host.temporary, self.root / "t", self.fifos]
        spaces = self.host.namespace, self.containerd.namespace
        open_files: Counter[str] = Counter()
        for pid in [*ours.monitors, *ours.zygotes]:
            kind = "monitor" if pid in ours.monitors else "zygote"
            open_files.update(f"{kind}: {name}" for name in descriptors(pid))
        return {
            "processes": Counter(map(named, lines.values())),
            "zombies": Counter(zombies({*lines, os.getpid()})),
            "descriptors": open_files,
            "sockets": Counter(
                path.name
                for folder in (self.host.sockets, self.containerd.sockets)
                for path in folder.glob("*")
            ),
            "mounts": Counter(mounts_below(self.root)),
            "cgroups": Counter(map(str, self._groups())),
            "bundle files": Counter(map(str, files)),
            "runtime states": Counter(
                str(path) for space in spaces for path in (RUNC_ROOT / space).glob("*")
            ),
            "temporary files": Counter(
                str(path) for folder in stray if folder.exists() for path in folder.rglob("*")
            ),
        }


def named(line: str) -> str:
    """A command line; of what is started in several ways, what is the same."""
    return line.strip().removesuffix(" --foreground").partition(" --resume ")[0]


def zombies(parents: set[int]) -> list[str]:
    """Children of ``parents`` that nobody has reaped."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, rest = (entry / "stat").read_text().rpartition(")")
            state, parent = rest.split()[:2]
            if state == "Z" and int(parent) in parents:
                found.append(name.partition("(")[2])
    return found


def left_over(before: Holdings, after: Holdings) -> Holdings:
    """What there is ``after`` that was not there ``before``."""
    return {name: after[name] - before[name] for name in before}
