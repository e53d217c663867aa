"""Fixtures that several modules share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.containerd import (
    BOUND_S,
    RUNTIME,
    Containerd,
    eventually,
    make_rootfs,
    mounts_below,
    processes_of,
)

__all__ = ["BOUND_S", "RUNTIME", "Containerd", "eventually", "mounts_below", "processes_of"]


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root filesystem of busybox, its links and pyinit."""
    folder = tmp_path_factory.mktemp("rootfs")
    make_rootfs(folder)
    return folder


@pytest.fixture(scope="module")
def containerd(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    """A running containerd; nothing of it is left afterwards."""
    home = tmp_path_factory.mktemp("c")
    started = Containerd(home, rootfs)
    try:
        started.start()
        yield started
    finally:
        started.stop()
