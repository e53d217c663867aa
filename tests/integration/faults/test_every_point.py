"""The service dies at every point of its code, one after the other, and nothing is lost.

The points come from the source (``points``); which scenario comes to which is found out by playing
each once.  A point that no scenario comes to fails here, and asks for one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.faults.host import FaultyHost
from tests.integration.faults.points import AFTER, BEFORE, all_points
from tests.integration.faults.scenarios import SCENARIOS

# What only a service comes to that takes over from one that has died elsewhere first: where, and
# in which scenario.
AFTER_A_DEATH = {
    "service.activation:_take_over:send": (
        "service.activation:_relay_ended:send before",
        "a_slow_reader",
    ),
    "service.control:kill:answer": ("service.control:kill:kill#2 after", "execs"),
    "stdio.terminal:console:unlink": ("stdio.terminal:console:bind after", "terminals"),
}

ATTEMPTS = 3

# Only where there is nothing but cgroup v2 does the shim write to the parent groups, and only where
# there is v1 does it ask for an eventfd.
V2_ALONE = {
    "cgroups.locate:enable_controllers:open",
    "cgroups.locate:enable_controllers:write",
}
V1_ALONE = {"cgroups.oom:_watch_v1:write"}
NOT_HERE = V1_ALONE if Path("/sys/fs/cgroup/cgroup.controllers").exists() else V2_ALONE
# No scenario fills a disk to the byte; what this leaves behind is what ``an_absent_containerd``
# finds, and tests/unit/test_spool.py has the rest.
ELSEWHERE = {
    "events.spool:append:truncate#2",
    # Dozens of exits in one turn of the loop: tests/unit/test_store.py.
    "service.store:commit_later:commit",
    # Before Linux 5.8.
    "runtime.loopdevice:_configure:ioctl#2",
    "runtime.loopdevice:_configure:ioctl#3",
}

POINTS = [point for point in all_points() if point not in NOT_HERE | ELSEWHERE]
MOMENTS = [f"{point} {when}" for point in POINTS for when in (BEFORE, AFTER)]


@pytest.fixture(scope="module")
def module_host(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyHost]:
    """A host for this module's tests; nothing of it is left afterwards."""
    made = FaultyHost(tmp_path_factory.mktemp("h"), rootfs)
    try:
        made.start_zygote()
        yield made
    finally:
        made.end()


@pytest.fixture
def host(module_host: FaultyHost) -> Iterator[FaultyHost]:
    """A host on which there is nothing before the test and after it."""
    module_host.have_zygote()
    try:
        yield module_host
        module_host.nothing_left()
    finally:
        module_host.disarm()
        module_host.clear()


@pytest.fixture(scope="module")
def played(
    module_host: FaultyHost, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    """The scenarios that come to each moment when no service dies, the shortest first."""
    found: dict[str, list[str]] = {}
    took: dict[str, float] = {}
    for name, act in SCENARIOS.items():
        began = time.monotonic()
        act(module_host, tmp_path_factory.mktemp("played"))
        module_host.nothing_left()
        took[name] = time.monotonic() - began
        for moment in set(module_host.seen()):
            found.setdefault(moment, []).append(name)
    return {moment: sorted(names, key=took.__getitem__) for moment, names in found.items()}


@pytest.mark.parametrize("moment", MOMENTS)
def test_nothing_is_lost(
    host: FaultyHost, tmp_path: Path, played: dict[str, list[str]], moment: str
) -> None:
    first, name = AFTER_A_DEATH.get(moment.partition(" ")[0], ("", ""))
    names = [name] if name else played.get(moment, [])
    assert names, f"no scenario comes to {moment}: write one that does, in scenarios.py"
    # A scenario may have come to it by chance: then the next shows it, or the same once more.
    for number, name in enumerate(names * ATTEMPTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        host.arm(*filter(None, (first, moment)))
        SCENARIOS[name](host, folder)
        if host.disarm() == []:
            return
    pytest.fail(f"no service died {moment}, in none of {names}")
