"""A soak from its beginning to its account."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from tests.integration.containerd import eventually

from .daemon import DaemonLife, Feed
from .faults import FAULTS, Weather
from .kinds import KINDS
from .ledger import THINGS, Ledger
from .life import Life
from .order import Event, Told, complaints, expected
from .plan import chance, schedule
from .world import Holdings, World, left_over

PROGRESS_S = 10
# What a life may still take that is under way at the end, and what is told late.
LANE_BOUND_S = 400
EVENTS_BOUND_S = 120
LEFT_BOUND_S = 60
COMPLAINTS_PRINTED = 40
DAEMON = "d"


class Soak:
    """One run: ``seed`` and ``seconds`` decide what happens; the log goes to ``out``.

    The faults ``without`` which it is to be do not strike.
    """

    def __init__(
        self, root: Path, out: Path, seed: int, seconds: float, without: Collection[str] = ()
    ) -> None:
        self.seed, self.seconds = seed, seconds
        self._rates = {name: f.rate for name, f in FAULTS.items() if name not in without}
        self.world = World(root, seed)
        self.ledger = Ledger(out / f"soak-{seed}.log")
        self.left: Holdings = {}
        self._over = threading.Event()
        self._lanes: list[threading.Thread] = []
        self._doing: dict[str, str] = {}

    def run(self, lanes: int) -> bool:
        """Soaks, prints the account; whether nothing was lost and nothing is left."""
        plan = schedule(self.seed, self.seconds, self._rates)
        say(f"seed {self.seed}, {self.seconds:.0f} s, {lanes} + 1 lanes; log: {self.ledger.path}")
        say("\n".join(str(strike) for strike in plan))
        with self.ledger, contextlib.ExitStack() as stack:
            stack.callback(self.world.close)
            stack.callback(self._print)
            stack.callback(self._over.set)
            self.world.open()
            with Feed(self.world.containerd) as feed:
                self._calm(feed, "before")  # what the first has made is no leak
                before = self.world.holdings()
                with Weather(self.world, self.ledger, self.seed, plan):
                    self._begin(lanes, feed)
                    self._watch()
                    self._over.set()
                self._join()
                self._calm(feed, "after")
                self._account_events(feed)
                self._account_left(before)
            self.world.pod.end()
        return not self.ledger.complaints and not any(self.left.values()) and not self._lost()

    def _calm(self, feed: Feed, who: str) -> None:
        """One life of each sort without a fault; afterwards there are zygotes and no services."""
        self._direct(who, 1)
        self._daemon(feed, who, 2)
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

    # -- the account -----------------------------------------------------------------------------

    def _account_events(self, feed: Feed) -> None:
        for name, told in self.ledger.tracked:
            self._await(told, lambda name=name: self._events(name))  # type: ignore[misc]
            self._compare(name, told, self._events(name))
        for name, told in self.ledger.watched:
            self._await(told, lambda name=name: feed.seen.get(name, []))  # type: ignore[misc]
            self._compare(name, told, feed.seen.get(name, []))

    @staticmethod
    def _await(told: Told, events: Callable[[], list[Event]]) -> None:
        last = "delete" if told.deleted else "exit"
        if told.created:
            with contextlib.suppress(AssertionError):
                eventually(lambda: any(e[0] == last for e in events()), last, EVENTS_BOUND_S)

    def _events(self, name: str) -> list[Event]:
        found = []
        for topic, event in self.world.host.events.of(name):
            exec_id = getattr(event, "exec_id", "")
            if topic == "exit" and event.id != name:
                exec_id = event.id
            found.append((topic, exec_id, event.exit_status if topic == "exit" else 0))
        return found

    def _compare(self, name: str, told: Told, events: list[Event]) -> None:
        wrong = complaints(told, events)
        owed = max(expected(told), len(events))
        self.ledger.begin("events", owed)
        self.ledger.finish("events", max(0, owed - len(wrong)))
        for text in wrong:
            self.ledger.complain(f"events of {name}", f"{text}: {events}")

    def _account_left(self, before: Holdings) -> None:
        def gone() -> bool:
            self.left = left_over(before, self.world.holdings())
            return not any(self.left.values())

        with contextlib.suppress(AssertionError):
            eventually(gone, "nothing is left", LEFT_BOUND_S)

    def _lost(self) -> int:
        return sum(self.ledger.lost(thing) for thing in THINGS)

    def _print(self) -> None:
        ledger = self.ledger
        say("\nfaults: " + ", ".join(f"{n} {name}" for name, n in ledger.faults.items()))
        say("lives: " + ", ".join(f"{n} {name}" for name, n in ledger.kinds.items()))
        say(f"\n{'':16}{'begun':>12}{'finished':>12}{'refused':>12}{'lost':>12}")
        for thing in THINGS:
            row = (ledger.begun[thing], ledger.finished[thing], ledger.refused[thing])
            say(f"{thing:16}" + "".join(f"{n:12,}" for n in (*row, ledger.lost(thing))))
        say(f"\n{'left over':16}")
        for name, found in self.left.items():
            say(f"{name:16}{found.total():12,}")
        for name, found in self.left.items():
            for text, count in found.items():
                ledger_text = f"left over: {name}: {count} × {text}"
                say(ledger_text)
        for text in ledger.complaints[:COMPLAINTS_PRINTED]:
            say(f"LOST at {text}")
        if len(ledger.complaints) > COMPLAINTS_PRINTED:
            say(f"… {len(ledger.complaints)} in all; see {ledger.path}")


def say(text: str) -> None:
    """A line for whoever watches."""
    print(text, file=sys.stdout, flush=True)
