"""Fixtures of the compatibility tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compat.table import KEY, Table
from tests.integration.containerd import make_rootfs


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Table:
    """The table of this run."""
    return request.config.stash.setdefault(KEY, Table())


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root filesystem of busybox, its links and pyinit."""
    folder = tmp_path_factory.mktemp("rootfs")
    make_rootfs(folder)
    folder.chmod(0o755)  # for those who are not root in a container
    return folder
