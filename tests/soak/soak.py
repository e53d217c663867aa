"""A soak from its beginning to its account."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from .account import Account, say
from .daemon import DaemonLife, Feed
from .faults import FAULTS, Weather
from .kinds import KINDS
from .ledger import THINGS, Ledger
from .life import Life
from .plan import chance, schedule
from .world import World

PROGRESS_S = 10
# What a life may still take that is under way at the end.
LANE_BOUND_S = 400
DAEMON = "d"


class Soak:
    """One run: ``seed`` and ``seconds`` decide what happens; the log goes to ``out``."""

    def __init__(self, root: Path, out: Path, seed: int, seconds: float) -> None:
        self.seed, self.seconds = seed, seconds
        self.world = World(root, seed)
        self.ledger = Ledger(out / f"soak-{seed}.log")
        self.account = Account(self.world, self.ledger)
        self._over = threading.Event()
        self._lanes: list[threading.Thread] = []
        self._doing: dict[str, str] = {}

    def run(self, lanes: int) -> bool:
        """Soaks, prints the account; whether nothing was lost and nothing is left."""
        plan = schedule(self.seed, self.seconds, {name: f.rate for name, f in FAULTS.items()})
        say(f"seed {self.seed}, {self.seconds:.0f} s, {lanes} + 1 lanes; log: {self.ledger.path}")
        say("\n".join(str(strike) for strike in plan))
        with self.ledger, contextlib.ExitStack() as stack:
            stack.callback(self.world.close)
            stack.callback(self.account.print)
            stack.callback(self._over.set)
            self.world.open()
            with Feed(self.world.containerd) as feed:
                self._calm(feed, "before")  # what the first has made is no leak
                self.account.begin()
                with Weather(self.world, self.ledger, self.seed, plan):
                    self._begin(lanes, feed)
                    self._watch()
                    self._over.set()
                self._join()
                self._calm(feed, "after")
                self.account.close(feed.seen)
            self.world.pod.end()
        return self.account.is_even

    def _calm(self, feed: Feed, who: str) -> None:
        """One life of each sort without a fault, and upgrades, of which none may fail.

        Afterwards everything is of our version, and there are zygotes and no services.
        """
        self._direct(who, 1)
        self._daemon(feed, who, 2)
        self.world.upgrades += self.world.versions.there_and_back()
        self.world.settle()

    # -- lanes -----------------------------------------------------------------------------------

    def _begin(self, lanes: int, feed: Feed) -> None:
        for lane in range(lanes):
            self._lane(f"l{lane}", self._direct)
        self._lane(DAEMON, lambda who, number: self._daemon(feed, who, number))

    def _lane(self, who: str, life: Callable[[str, int], None]) -> None:
        def run() -> None:
            number = 0
            while not self._over.is_set():
                number += 1
                self._doing[who] = f"life {number}"
                life(who, number)
            del self._doing[who]

        thread = threading.Thread(target=run, name=who, daemon=True)
        self._lanes.append(thread)
        thread.start()

    def _direct(self, who: str, number: int) -> None:
        dice = chance(self.seed, who, number)
        (kind,) = dice.choices(list(KINDS), list(KINDS.values()))
        self.ledger.kinds[kind.__name__] += 1
        Life(self.world, self.ledger, who, number, kind.__name__, dice).run(kind)

    def _daemon(self, feed: Feed, who: str, number: int) -> None:
        dice = chance(self.seed, who, number)
        self.ledger.kinds["containerd"] += 1
        DaemonLife(self.world, self.ledger, feed, who, number, dice).run()

    def _watch(self) -> None:
        end = time.monotonic() + self.seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, PROGRESS_S))
            counts = ", ".join(f"{self.ledger.finished[thing]} {thing}" for thing in THINGS)
            struck = sum(self.ledger.faults.values())
            say(
                f"{self.ledger.age_s:7.0f} s: {counts.replace(', 0 events', '')}; "
                f"{struck} faults, {len(self.ledger.complaints)} complaints"
            )

    def _join(self) -> None:
        deadline = time.monotonic() + LANE_BOUND_S
        for thread in self._lanes:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self.ledger.complain(thread.name, f"does not end {self._doing.get(thread.name)}")
