"""Hierarchies of cgroups in which a runtime makes no group, as OpenRC's and elogind's.

There a container is in the group of whoever started its shim, containerd's own.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyshim.api import task_pb2
from tests.integration.containerd import BOUND_S, eventually
from tests.integration.shim import Host, without_pid_namespace

PATIENCE_S = 2


def groups() -> str:
    """Ours in every hierarchy that there is."""
    return Path("/proc/self/cgroup").read_text()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Path]:
    """A group in a hierarchy of its own; its processes have gone when the test ends."""
    point = tmp_path / "hierarchy"
    point.mkdir()
    name = f"name=pyshim{os.getpid()}"
    mount = ["mount", "-t", "cgroup", "-o", f"none,{name}", "cgroup", str(point)]
    subprocess.run(mount, check=True, timeout=BOUND_S)
    group = point / "service"

    def gone() -> bool:
        """The kernel drops a hierarchy that is unmounted when its last group has gone, and late."""
        subprocess.run(["umount", str(point)], check=True, timeout=BOUND_S)
        with contextlib.suppress(AssertionError):
            eventually(lambda: f":{name}:" not in groups(), "it is no more", PATIENCE_S)
            return True
        subprocess.run(mount, check=True, timeout=BOUND_S)
        return False

    try:
        group.mkdir()
        yield group
        eventually(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            (point / "cgroup.procs").write_text(pid)
        group.rmdir()
        # A hierarchy that nobody has mounted would be in everybody's way, the Go shim's above all.
        eventually(gone, "the hierarchy has gone")


@pytest.fixture
def host(service: Path, rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host whose shims are started in the group ``service``."""
    enter = f'echo $$ >{service}/cgroup.procs; exec "$0" "$@"'
    made = Host(tmp_path_factory.mktemp("o"), rootfs, ("sh", "-c", enter))
    try:
        yield made
        made.nothing_left()
    finally:
        made.end()


def test_the_end_of_a_container_is_nobody_elses(host: Host, service: Path) -> None:
    """It shares the host's pids, so that what is left of it is killed; and only that."""
    enter = f"echo $$ >{service}/cgroup.procs; exec sleep 1000"
    with subprocess.Popen(["sh", "-c", enter]) as neighbour:
        try:
            eventually(
                lambda: str(neighbour.pid) in (service / "cgroup.procs").read_text().split(),
                "the neighbour is in the group",
            )
            script = "sleep 1000 & exit 3"
            container = host.started("/bin/sh", "-c", script, edit=without_pid_namespace)
            assert container.wait().exit_status == 3
            pids = container.call(
                "Pids", task_pb2.PidsRequest(id=container.name), task_pb2.PidsResponse
            )
            assert len(pids.processes) == 1
            assert len(host.monitors()) == 1
            assert neighbour.poll() is None
            container.finish()
            assert neighbour.poll() is None
        finally:
            neighbour.kill()
