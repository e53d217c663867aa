"""Each scenario with our shim and with the Go shim of the same daemon: what a user sees is equal.

Where it is not, ``differences.py`` lists it and ``docs/compatibility.md`` says why.  By default all
scenarios run on the installed containerd and a few on each other daemon; with PYSHIM_COMPAT=all
(`make compat`) all run on all.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tests.compat.scenarios  # noqa: F401  they list themselves
from tests.compat.differences import DIFFERENCES, WORDINGS, fields, keys, wordings
from tests.compat.generations import INSTALLED, SUITES, Generation, make
from tests.compat.host import GO, OURS
from tests.compat.peers import Unreachable
from tests.compat.scenario import ALL, CONTAINERD, DOCKER, Observation, Scenario, differing
from tests.compat.table import Table

# What a scenario calls that which programs have printed.
OUTPUTS = {"out", "results", "screen", "words"}

EVERYTHING = os.environ.get("PYSHIM_COMPAT") == "all"
DOCUMENT = Path(__file__).resolve().parents[2] / "docs/compatibility.md"
GENERATIONS = [(daemon, suite) for daemon, suites in SUITES.items() for suite in suites]
CASES = [
    pytest.param(pair, one, id=f"{pair[0]}-{pair[1]}-{one.name}")
    for pair in GENERATIONS
    for one in ALL.values()
    if one.daemon == pair[0] and (EVERYTHING or one.smoke or pair == (CONTAINERD, INSTALLED))
]


class Running:
    """The generation that runs now; the cases come generation by generation."""

    def __init__(self, rootfs: Path, table: Table, homes: pytest.TempPathFactory) -> None:
        self._rootfs = rootfs
        self._table = table
        self._homes = homes
        self._pair = ("", "")
        self._made: Generation | None = None

    def of(self, pair: tuple[str, str]) -> Generation:
        """The generation ``pair``, started; another is stopped before."""
        if pair != self._pair or self._made is None:
            self.stop()
            self._pair = pair
            self._start(*pair)
        assert self._made is not None
        return self._made

    def _start(self, daemon: str, suite: str) -> None:
        try:
            made = make(daemon, suite)
        except Unreachable as error:
            self._table.missing(daemon, suite, str(error))
            pytest.skip(f"NOT TESTED: {daemon} of {suite}: {error}")
        try:
            made.start(self._homes.mktemp("k"), self._rootfs)
        except BaseException:
            made.stop()
            raise
        self._made = made

    def stop(self) -> None:
        """Ends what runs; fails if anything of it stays."""
        made, self._made = self._made, None
        if made is not None:
            made.stop()


@pytest.fixture(scope="module")
def running(
    rootfs: Path, table: Table, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """The daemons, one generation after the other."""
    made = Running(rootfs, table, tmp_path_factory)
    yield made
    made.stop()


def observed(host: Any, scenario: Scenario) -> Observation:
    """What a scenario gives, and what it leaves."""
    try:
        found = dict(scenario.act(host))
    except AssertionError as error:
        found = {"failed": host.normal(str(error))}
    finally:
        host.clean()
    found["left"] = host.left()
    return found


def both(generation: Generation, scenario: Scenario) -> tuple[Observation, Observation]:
    """Our shim's observation and the Go shim's; side by side unless the scenario is alone."""
    hosts = [generation.host(shim) for shim in (OURS, GO)]
    with ThreadPoolExecutor(1 if scenario.alone else 2) as pool:
        ours, theirs = pool.map(lambda host: observed(host, scenario), hosts)
    return ours, theirs


def told(unexplained: dict[str, tuple[Any, Any]]) -> str:
    """What differs, to be read."""
    pairs = unexplained.items()
    return "".join(f"\n{name}\n  ours: {ours}\n  Go's: {go}" for name, (ours, go) in pairs)


def is_lost(ours: object, theirs: object, scenario: Scenario, name: str) -> bool:
    """Whether the Go shim has lost the output of what was quick, where ours has it."""
    is_known = name in scenario.expected and ours == scenario.expected[name]
    return is_known or (bool(ours) and not theirs)


@pytest.mark.parametrize(("pair", "scenario"), CASES)
def test_same(running: Running, pair: tuple[str, str], scenario: Scenario, table: Table) -> None:
    generation = running.of(pair)
    assert shutil.which("runc"), "runc is missing; `make test` installs it"
    column = f"{scenario.daemon} {generation.version}"
    with table.cell(scenario.name, column) as cell:
        ours, theirs = both(generation, scenario)
        explained = fields(scenario.name, generation.series)
        differs = differing(ours, theirs)
        unexplained: dict[str, tuple[Any, Any]] = {}
        for name, pair in differs.items():
            keys = {explained[name].key} if name in explained else wordings(*pair)
            if name in OUTPUTS and is_lost(ours.get(name), theirs.get(name), scenario, name):
                keys = {"fast-output"}
            cell.keys |= keys or set()
            if not keys:
                unexplained[name] = pair
        table.wordings |= cell.keys
        assert not unexplained, told(unexplained)
        lasting = {name for name, difference in explained.items() if difference.always}
        assert lasting <= set(differs), "explained, but no longer a difference"
        assert "failed" not in ours, ours
        assert {name: ours.get(name) for name in scenario.expected} == dict(scenario.expected)
        assert "left" in explained or not any(ours["left"].values()), ours["left"]


def test_enough_scenarios() -> None:
    by_daemon = [one.daemon for one in ALL.values()]
    assert by_daemon.count(CONTAINERD) >= 60
    assert by_daemon.count(DOCKER) >= 20
    assert {one.daemon for one in ALL.values() if one.smoke} == {CONTAINERD, DOCKER}


def test_each_difference_is_explained() -> None:
    """In the document's table, whose rows begin with the key in backquotes."""
    documented = re.findall(r"^\| `([a-z-]+)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(documented) == sorted(keys())
    for difference in DIFFERENCES:
        assert difference.scenario in ALL, difference


def test_each_wording_is_still_met(table: Table) -> None:
    """By a run of all scenarios; others meet some of them."""
    found = table.wordings & {wording.key for wording in WORDINGS}
    assert found <= keys()
    if EVERYTHING and not table.not_tested:
        assert found == {wording.key for wording in WORDINGS}
