"""What goes wrong, how often and for how long: a table, and a thread for each strike.

``excuses``: a request that fails meanwhile has been refused, not lost.  ``absent``: likewise for
clients of containerd alone.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from tests.integration.containerd import BOUND_S

from .ledger import Ledger
from .plan import Rate, Strike, chance
from .upgrades import undone, upgraded
from .world import World

# How long a strike looks for something that is there only now and then.
SEARCH_S = 3.0
POLL_S = 0.01

# In force until it is left; what it gives says whom it has struck.
Action = Callable[[World, random.Random], AbstractContextManager[str]]
Find = Callable[[World], Sequence[int]]


@dataclass(frozen=True)
class Fault:
    """One line of the table."""

    rate: Rate
    strike: Action
    excuses: bool = False
    absent: bool = False


def signalled(pid: int, number: int) -> bool:
    """Sends a signal to a process that may have gone; whether it was there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def search(world: World, dice: random.Random, find: Find) -> int:
    """One of what ``find`` finds, 0 when nothing turns up."""
    deadline = time.monotonic() + SEARCH_S
    while time.monotonic() < deadline:
        if found := find(world):
            return dice.choice(sorted(found))
        time.sleep(POLL_S)
    return 0


def services(world: World) -> Sequence[int]:
    return world.processes().services


def zygotes(world: World) -> Sequence[int]:
    return world.processes().zygotes


def monitors(world: World) -> Sequence[int]:
    return world.processes().monitors


def runtimes(world: World) -> Sequence[int]:
    return world.processes().runtimes


def killed(find: Find) -> Action:
    """SIGKILL to one of what is found."""

    @contextlib.contextmanager
    def strike(world: World, dice: random.Random) -> Iterator[str]:
        pid = search(world, dice, find)
        if pid:
            signalled(pid, signal.SIGKILL)
        yield f"process {pid}"

    return strike


def stopped(find: Find) -> Action:
    """SIGSTOP to one of what is found, and SIGCONT."""

    @contextlib.contextmanager
    def strike(world: World, dice: random.Random) -> Iterator[str]:
        pid = search(world, dice, find)
        if pid:
            signalled(pid, signal.SIGSTOP)
        try:
            yield f"process {pid}"
        finally:
            if pid:
                signalled(pid, signal.SIGCONT)

    return strike


@contextlib.contextmanager
def storm(world: World, dice: random.Random) -> Iterator[str]:
    """SIGKILL to one service after the other."""
    over = threading.Event()

    def kill() -> None:
        while not over.wait(dice.uniform(0.005, 0.1)):
            for pid in services(world)[:1]:
                signalled(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield ""
    finally:
        over.set()
        thread.join(BOUND_S)


@contextlib.contextmanager
def socket_deleted(world: World, dice: random.Random) -> Iterator[str]:
    """The zygote's socket goes; the zygote is there and cannot be found."""
    folder = dice.choice([world.host.runtime, world.containerd.runtime_dir])
    for path in folder.glob("zygote-*.sock"):
        path.unlink(missing_ok=True)
    yield str(folder)


@contextlib.contextmanager
def events_unanswered(world: World, _dice: random.Random) -> Iterator[str]:
    """The event service hangs."""
    world.host.events.block()
    try:
        yield ""
    finally:
        world.host.events.unblock()


@contextlib.contextmanager
def events_away(world: World, _dice: random.Random) -> Iterator[str]:
    """There is no event service."""
    with world.host.events.away():
        yield ""


@contextlib.contextmanager
def disk_full(world: World, _dice: random.Random) -> Iterator[str]:
    """No byte is left where the bundles are."""
    path = world.disk / "filler"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):
            while True:
                os.write(fd, bytes(1 << 16))
        yield ""
    finally:
        os.close(fd)
        path.unlink()


@contextlib.contextmanager
def few_descriptors(world: World, dice: random.Random) -> Iterator[str]:
    """A zygote or a monitor can open next to nothing more."""
    pid = search(world, dice, lambda world: [*monitors(world), *zygotes(world)])
    spare = dice.randrange(6)
    limits = (0, 0)
    with contextlib.suppress(OSError):
        count = len(os.listdir(f"/proc/{pid}/fd"))
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (count + spare, limits[1]))
    try:
        yield f"process {pid} can open {spare} more"
    finally:
        with contextlib.suppress(OSError):
            if any(limits):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def containerd_ends(number: int) -> Action:
    """containerd ends by a signal, and is started again after a while."""

    @contextlib.contextmanager
    def strike(world: World, _dice: random.Random) -> Iterator[str]:
        process = world.containerd.process
        assert process is not None
        process.send_signal(number)
        process.wait(BOUND_S)
        try:
            yield ""
        finally:
            world.containerd.start()

    return strike


@contextlib.contextmanager
def containerd_stopped(world: World, _dice: random.Random) -> Iterator[str]:
    """containerd does nothing for a while."""
    process = world.containerd.process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        yield ""
    finally:
        process.send_signal(signal.SIGCONT)


FAULTS: dict[str, Fault] = {
    "service killed": Fault(Rate(1.5), killed(services)),
    "service storm": Fault(Rate(25, (1, 4), "service"), storm),
    "service stopped": Fault(Rate(30, (0.5, 4), "service"), stopped(services)),
    "zygote killed": Fault(Rate(15), killed(zygotes)),
    "zygote stopped": Fault(Rate(40, (1, 8), "zygote"), stopped(zygotes)),
    "zygote's socket deleted": Fault(Rate(40), socket_deleted),
    "runtime stopped": Fault(Rate(5, (0.2, 2)), stopped(runtimes)),
    "runtime killed": Fault(Rate(12), killed(runtimes), excuses=True),
    "events unanswered": Fault(Rate(30, (1, 6), "events"), events_unanswered),
    "events away": Fault(Rate(30, (1, 6), "events"), events_away),
    "disk full": Fault(Rate(40, (0.5, 3)), disk_full, excuses=True),
    "few descriptors": Fault(Rate(40, (0.5, 3)), few_descriptors, excuses=True),
    "containerd killed": Fault(
        Rate(30, (0, 4), "containerd"), containerd_ends(signal.SIGKILL), absent=True
    ),
    "containerd restarted": Fault(
        Rate(60, (0, 4), "containerd"), containerd_ends(signal.SIGTERM), absent=True
    ),
    "containerd stopped": Fault(Rate(40, (0.5, 4), "containerd"), containerd_stopped, absent=True),
    "upgrade": Fault(Rate(20, target="version"), upgraded),
    "upgrade undone": Fault(Rate(25, target="version"), undone),
}


class Weather:
    """Carries out a schedule, each strike in a thread of its own."""

    def __init__(self, world: World, ledger: Ledger, seed: int, schedule: list[Strike]) -> None:
        self._world, self._ledger, self._seed = world, ledger, seed
        self._schedule = schedule
        self._over = threading.Event()
        self._turns = {self._target(strike): threading.Lock() for strike in schedule}
        self._threads: list[threading.Thread] = []
        self._main = threading.Thread(target=self._run)

    def __enter__(self) -> Weather:
        self._main.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing strikes any more, and everything is as it was."""
        self._over.set()
        self._main.join(BOUND_S)
        for thread in self._threads:
            thread.join(2 * BOUND_S)
            if thread.is_alive():
                self._ledger.complain("faults", f"{thread.name} does not end")

    @staticmethod
    def _target(strike: Strike) -> str:
        return FAULTS[strike.fault].rate.target or strike.fault

    def _run(self) -> None:
        origin = time.monotonic()
        for strike in self._schedule:
            if self._over.wait(max(0.0, origin + strike.at_s - time.monotonic())):
                return
            name = f"{strike.fault} #{strike.number}"
            thread = threading.Thread(target=self._strike, args=(strike,), name=name)
            self._threads.append(thread)
            thread.start()

    def _strike(self, strike: Strike) -> None:
        fault = FAULTS[strike.fault]
        ledger, name = self._ledger, threading.current_thread().name
        dice = chance(self._seed, "strike", strike.fault, strike.number)
        with self._turns[self._target(strike)], contextlib.ExitStack() as stack:
            for wanted, excuses in (
                (fault.excuses, self._world.excuses),
                (fault.absent, self._world.absences),
            ):
                if wanted:
                    stack.enter_context(excuses.during(lambda: ledger.age_s))
            ledger.note("faults", f"{name} begins")
            ledger.faults[strike.fault] += 1
            try:
                with fault.strike(self._world, dice) as whom:
                    ledger.note("faults", f"{name}: {whom}")
                    self._over.wait(strike.lasts_s)
            except Exception as error:
                ledger.complain("faults", f"{name}: {type(error).__name__}: {error}")
            ledger.note("faults", f"{name} is over")
