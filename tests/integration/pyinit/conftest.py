"""The personas, as links to the one binary."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def inits(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pyinit and a link to it for each name that it goes by."""
    folder = tmp_path_factory.mktemp("inits")
    for name in ("pyinit", "tini", "docker-init", "dumb-init", "catatonit", "pause", "init"):
        (folder / name).symlink_to(programs / "pyinit")
    return folder


@pytest.fixture
def pyinit(programs: Path) -> str:
    """The binary."""
    return str(programs / "pyinit")
