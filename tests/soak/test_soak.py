"""Half a minute of it, with a fixed seed.  `make soak` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from .ledger import THINGS
from .soak import Soak

# With this seed nearly every fault strikes in so short a time.
SECONDS = 20
SEED = 67
# In the long one alone: what a monitor without descriptors still loses is not yet understood.
WITHOUT = {"few descriptors"}


@pytest.mark.timeout(900)
def test_half_a_minute_loses_and_leaves_nothing(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path_factory.mktemp("s")  # short: sockets are in it
    soak = Soak(root, tmp_path, SEED, SECONDS, WITHOUT)
    well = soak.run(lanes=2)
    assert well, capsys.readouterr().out
    assert not root.exists()
    assert all(soak.ledger.finished[thing] for thing in THINGS)
    assert soak.ledger.faults.total() > 10
