"""The personas, as links to the one binary."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

NAMES = ("pyinit", "tini", "tini-static", "docker-init", "podman-init", "init")
NAMES += ("dumb-init", "catatonit", "pause")
COMPILING_S = 60
Compiled = Callable[[str], str]


@pytest.fixture(scope="session")
def inits(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pyinit and a link to it for each name that it goes by."""
    folder = tmp_path_factory.mktemp("inits")
    for name in NAMES:
        (folder / name).symlink_to(programs / "pyinit")
    return folder


@pytest.fixture
def pyinit(programs: Path) -> str:
    """The binary."""
    return str(programs / "pyinit")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Makes a static program of C."""
    folder = tmp_path_factory.mktemp("compiled")

    def make(source: str) -> str:
        path = folder / hashlib.sha256(source.encode()).hexdigest()[:16]
        if not path.exists():
            command = ["gcc", "-O1", "-w", "-static", "-x", "c", "-", "-o", str(path)]
            subprocess.run(command, input=source, text=True, check=True, timeout=COMPILING_S)
        return str(path)

    return make
