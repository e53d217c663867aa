"""Half a minute of it, with a fixed seed.  `make soak` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from .faults import FAULTS
from .ledger import THINGS
from .soak import Soak

# With this seed every fault strikes in so short a time.
SECONDS = 25
SEED = 357


@pytest.mark.timeout(900)
def test_half_a_minute_loses_and_leaves_nothing(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path_factory.mktemp("s")  # short: sockets are in it
    soak = Soak(root, tmp_path, SEED, SECONDS)
    well = soak.run(lanes=2)
    assert well, capsys.readouterr().out
    assert not root.exists()
    assert all(soak.ledger.finished[thing] for thing in THINGS)
    assert set(soak.ledger.faults) == set(FAULTS)
    # Where nothing strikes, before and after, all that there is has been upgraded, and back again.
    assert soak.world.upgrades["upgraded"] >= 4
