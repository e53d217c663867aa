"""What a soak has come to: what was lost, and what is left over."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence

from tests.integration.containerd import eventually

from .ledger import THINGS, Ledger
from .order import Event, Told, complaints, expected
from .world import Holdings, World, left_over

# What is told late, and what goes late.
EVENTS_BOUND_S = 120
LEFT_BOUND_S = 60
COMPLAINTS_PRINTED = 40


class Account:
    """The account of what ``ledger`` has noted and of what there is in ``world``.

    ``begin`` before the lives, ``close`` after them, when no service is active.
    """

    def __init__(
        self,
        world: World,
        ledger: Ledger,
        events_bound_s: float = EVENTS_BOUND_S,
        left_bound_s: float = LEFT_BOUND_S,
    ) -> None:
        self._world, self._ledger = world, ledger
        self._events_bound_s, self._left_bound_s = events_bound_s, left_bound_s
        self._before: Holdings = {}
        self.left: Holdings = {}

    def begin(self) -> None:
        """Notes what there is."""
        self._before = self._world.holdings()

    def close(self, seen: Mapping[str, Sequence[Event]]) -> None:
        """Counts events, of which containerd has told those that were ``seen``, and what is left.

        What is late is waited for.
        """
        for name, told in self._ledger.tracked:
            self._compare(name, told, lambda name=name: self._published(name))  # type: ignore[misc]
        for name, told in self._ledger.watched:
            self._compare(name, told, lambda name=name: seen.get(name, ()))  # type: ignore[misc]
        with contextlib.suppress(AssertionError):
            eventually(self._nothing_left, "nothing is left", self._left_bound_s)

    @property
    def is_even(self) -> bool:
        """Whether nothing was lost and nothing is left."""
        lost = any(self._ledger.lost(thing) for thing in THINGS)
        return not lost and not self._ledger.complaints and not any(self.left.values())

    def _nothing_left(self) -> bool:
        self.left = left_over(self._before, self._world.holdings())
        return not any(self.left.values())

    # -- events ----------------------------------------------------------------------------------

    def _published(self, name: str) -> list[Event]:
        found = []
        for topic, event in self._world.host.events.of(name):
            exec_id = getattr(event, "exec_id", "")
            if topic == "exit" and event.id != name:
                exec_id = event.id
            found.append((topic, exec_id, event.exit_status if topic == "exit" else 0))
        return found

    def _compare(self, name: str, told: Told, source: Callable[[], Sequence[Event]]) -> None:
        last = "delete" if told.deleted else "exit"
        if told.created:
            with contextlib.suppress(AssertionError):
                eventually(
                    lambda: any(event[0] == last for event in source()), last, self._events_bound_s
                )
        events = source()
        wrong = complaints(told, events)
        owed = max(expected(told), len(events))
        self._ledger.begin("events", owed)
        self._ledger.finish("events", max(0, owed - len(wrong)))
        for text in wrong:
            self._ledger.complain(f"events of {name}", f"{text}: {events}")

    # -- for people ------------------------------------------------------------------------------

    def print(self) -> None:
        """Everything, as a table."""
        ledger = self._ledger
        say("\nfaults: " + listed(ledger.faults))
        say("lives: " + listed(ledger.kinds))
        say("upgrades of monitors: " + listed(self._world.upgrades))
        say(f"\n{'':16}{'begun':>12}{'finished':>12}{'refused':>12}{'lost':>12}")
        for thing in THINGS:
            row = (ledger.begun[thing], ledger.finished[thing], ledger.refused[thing])
            say(f"{thing:16}" + "".join(f"{n:12,}" for n in (*row, ledger.lost(thing))))
        say(f"\n{'left over':16}")
        for name, found in self.left.items():
            say(f"{name:16}{found.total():12,}")
        for name, found in self.left.items():
            for text, count in found.items():
                say(f"left over: {name}: {count} × {text}")
        for text in ledger.complaints[:COMPLAINTS_PRINTED]:
            say(f"LOST at {text}")
        if len(ledger.complaints) > COMPLAINTS_PRINTED:
            say(f"… {len(ledger.complaints)} in all; see {ledger.path}")


def listed(counts: Mapping[str, int]) -> str:
    """Counts of things, in a line."""
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def say(text: str) -> None:
    """A line for whoever watches."""
    print(text, file=sys.stdout, flush=True)
