"""Whatever is lost or left on purpose, the account notices: each thing, and nothing else."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.integration.containerd import BOUND_S, RUNC_ROOT, eventually

from .account import Account
from .kinds import SLEEP, numbers, shell
from .ledger import THINGS, Ledger
from .life import Life
from .order import Told
from .plan import chance
from .world import World

SEED = 1
LOOK_S = 0.1
NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Where nothing strikes."""
    made = World(tmp_path_factory.mktemp("a"), SEED)
    try:
        made.open()
        yield made
    finally:
        made.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty one."""
    with Ledger(tmp_path / "log") as made:
        yield made


# --- What is left --------------------------------------------------------------------------------

Leak = Callable[[World], AbstractContextManager[object]]


@contextlib.contextmanager
def process(world: World) -> Iterator[None]:
    """One that is left running."""
    left = subprocess.Popen(SLEEP, env={"PYSHIM_TEST": str(world.root)})
    try:
        yield
    finally:
        left.kill()
        left.wait(BOUND_S)


@contextlib.contextmanager
def zombie(_world: World) -> Iterator[None]:
    """One that nobody waits for."""
    left = subprocess.Popen("true")
    try:
        yield
    finally:
        left.wait(BOUND_S)


@contextlib.contextmanager
def descriptor(world: World) -> Iterator[None]:
    """A connection that is never closed, of which the monitor has the other end."""
    with world.pod.connect():
        yield


@contextlib.contextmanager
def mount(world: World) -> Iterator[None]:
    """One that is never undone."""
    point = world.root / "leak"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "leak", str(point)], check=True, timeout=BOUND_S)
    try:
        yield
    finally:
        subprocess.run(["umount", str(point)], check=True, timeout=BOUND_S)
        point.rmdir()


@contextlib.contextmanager
def group(world: World) -> Iterator[None]:
    """A control group beside the pod's."""
    folder = Path(min(world.holdings()["cgroups"])).with_name("leak")
    folder.mkdir()
    try:
        yield
    finally:
        folder.rmdir()


def file_in(folder: Callable[[World], Path]) -> Leak:
    """A file in a folder that is empty at the end."""

    @contextlib.contextmanager
    def leak(world: World) -> Iterator[None]:
        path = folder(world) / "leak"
        path.touch()
        try:
            yield
        finally:
            path.unlink()

    return leak


LEAKS: dict[str, Leak] = {
    "processes": process,
    "zombies": zombie,
    "descriptors": descriptor,
    "sockets": file_in(lambda world: world.host.sockets),
    "mounts": mount,
    "cgroups": group,
    "bundle files": file_in(lambda world: world.host.bundles),
    "runtime states": file_in(lambda world: RUNC_ROOT / world.host.namespace),
    "temporary files": file_in(lambda world: world.host.temporary),
}


def test_there_is_a_leak_of_each_kind(world: World) -> None:
    assert set(LEAKS) == set(world.holdings())


@pytest.mark.parametrize("kind", LEAKS)
def test_what_is_left_is_noticed(world: World, ledger: Ledger, kind: str) -> None:
    world.settle()
    account = Account(world, ledger, left_bound_s=LOOK_S)
    account.begin()

    def found() -> set[str]:
        account.close({})
        return {name for name, things in account.left.items() if things}

    with LEAKS[kind](world):
        eventually(lambda: found() == {kind}, f"what is left is of {kind} alone")
        assert not account.is_even
    eventually(lambda: found() == set(), "nothing is left")
    assert account.is_even


# --- What is lost --------------------------------------------------------------------------------


def lived(world: World, ledger: Ledger, kind: Callable[[Life], None]) -> Account:
    """The account of one life of ``kind``."""
    account = Account(world, ledger, events_bound_s=LOOK_S, left_bound_s=LOOK_S)
    Life(world, ledger, "a", next(NUMBERS), kind.__name__, chance(SEED)).run(kind)
    account.close({})
    return account


def lost(ledger: Ledger) -> dict[str, int]:
    """What the account says of it, without what is 0."""
    return {thing: ledger.lost(thing) for thing in THINGS if ledger.lost(thing)}


def whole(life: Life) -> None:
    """Of which nothing is lost."""
    output = life.reader("out")
    container = life.container(*shell("seq 1 10; exit 3"))
    container.create(stdout=output.path)
    container.start()
    container.wait({3})
    container.finish()
    life.bytes("stdout", output.all(), numbers(10))


def test_of_a_whole_life_nothing_is_lost(world: World, ledger: Ledger) -> None:
    account = lived(world, ledger, whole)
    assert (account.is_even, lost(ledger), ledger.complaints) == (True, {}, [])


def test_a_container_and_all_of_it(world: World, ledger: Ledger) -> None:
    """Its monitor is killed."""

    def cut_short(life: Life) -> None:
        container = life.container(*SLEEP)
        container.create()
        container.start()
        container.exec("e", *SLEEP)
        container.start_all("e")
        for pid in world.processes().monitors:
            if os.readlink(f"/proc/{pid}/cwd") == str(container.bundle):
                os.kill(pid, signal.SIGKILL)
        container.wait({137})

    account = lived(world, ledger, cut_short)
    assert not account.is_even
    wanted = {"containers": 1, "execs": 1, "exit statuses": 2}
    assert {thing: count for thing, count in lost(ledger).items() if thing != "events"} == wanted


def test_bytes(world: World, ledger: Ledger) -> None:
    def too_short(life: Life) -> None:
        output = life.reader("out")
        container = life.container(*shell("seq 1 10"))
        container.create(stdout=output.path)
        container.start()
        container.wait({0})
        container.finish()
        life.bytes("stdout", output.all(), numbers(11))

    account = lived(world, ledger, too_short)
    assert (account.is_even, lost(ledger)) == (False, {"bytes of stdio": len("11\n")})


def test_an_event(world: World, ledger: Ledger) -> None:
    """Of a pause that the client was told to be done, though nobody has heard of it."""

    def paused(life: Life) -> None:
        whole(life)
        life.containers[0].told.pauses += 1

    account = lived(world, ledger, paused)
    assert (account.is_even, lost(ledger)) == (False, {"events": 1})


def test_the_events_that_containerd_passes_on(world: World, ledger: Ledger) -> None:
    told = Told(created=True, started=True, deleted=True)
    ledger.watched.append(("a container", told))
    account = Account(world, ledger, events_bound_s=LOOK_S, left_bound_s=LOOK_S)
    account.close({"a container": [("create", "", 0), ("start", "", 0), ("delete", "", 0)]})
    assert (account.is_even, lost(ledger)) == (False, {"events": 1})
    assert len(ledger.complaints) == 1


def test_a_wrong_status(world: World, ledger: Ledger) -> None:
    def other(life: Life) -> None:
        container = life.container(*shell("exit 3"))
        container.create()
        container.start()
        container.wait({4})
        container.finish()

    account = lived(world, ledger, other)
    assert not account.is_even
    assert ["status 3 of the init, not {4}" in text for text in ledger.complaints] == [True]
