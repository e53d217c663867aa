"""Fixtures that several modules share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import sanitized
from tests.integration.containerd import (
    BOUND_S,
    RUNTIME,
    Containerd,
    eventually,
    make_rootfs,
    mounts_below,
    processes_of,
    scripts,
)

__all__ = ["BOUND_S", "RUNTIME", "Containerd", "eventually", "mounts_below", "processes_of"]


# For what a sanitizer's runtime changes by design: memory and time that a program takes.
plain_only = pytest.mark.parametrize("programs", ["plain"], indirect=True)


def run_folder(factory: pytest.TempPathFactory) -> Path:
    """The folder that all processes of this run of pytest share."""
    folder = factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", params=["plain", "sanitized"])
def programs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The folder of the native programs: as they are installed, and built with sanitizers."""
    if request.param == "plain":
        yield scripts().absolute()
        return
    folder = sanitized.shared(run_folder(tmp_path_factory) / "sanitized")
    yield folder
    assert sanitized.reports(folder) == ""


@pytest.fixture
def binary(programs: Path) -> str:
    """The relay."""
    return str(programs / "portproxy-relay")


@pytest.fixture(autouse=True)
def no_report(request: pytest.FixtureRequest) -> Iterator[None]:
    """A sanitizer's report fails the test, whatever the test makes of the program's end."""
    folder = request.getfixturevalue("programs") if "programs" in request.fixturenames else None
    yield
    if folder is not None:
        assert sanitized.reports(folder) == ""


def interpreter(programs: Path) -> str:
    """The Python that has the native programs of the folder ``programs`` beside it."""
    beside = programs / "python3"
    return str(beside) if beside.exists() else sys.executable


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
