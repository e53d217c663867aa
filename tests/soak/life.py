"""One life: a container or a few, their readers and fifos, and the check of what came.

``Life`` is what a kind of life (``kinds``) is given; ``Tracked`` is one container of it.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tests.integration.containerd import eventually
from tests.integration.fifos import Reader, fifo
from tests.integration.shim import Edit, unedited

from .ledger import Ledger
from .tracked import ANSWER_BOUND_S, SHIM_LOG, Refused, Tracked
from .world import World


class Life:
    """One numbered life of a lane; everything in it is decided by ``dice``."""

    def __init__(
        self, world: World, ledger: Ledger, who: str, number: int, kind: str, dice: random.Random
    ) -> None:
        self.world, self.ledger, self.dice = world, ledger, dice
        self.name = f"{who}n{number}"
        self.who = f"{self.name} {kind}"
        self.folder = world.fifos / self.name
        self.folder.mkdir()
        self.containers: list[Tracked] = []
        self._readers: list[Reader] = []
        self.status = dice.randrange(100)

    # -- what a life is made of ------------------------------------------------------------------

    def container(self, *command: str, pod: str = "", edit: Edit = unedited) -> Tracked:
        """A bundle, and a shim for it."""
        name = f"{self.name}c{len(self.containers)}"
        made = Tracked(self.world, self.ledger, self.who, name, command, pod, edit)
        self.containers.append(made)
        made.connect()
        return made

    def reader(self, name: str, slow: bool = False) -> Reader:
        """A reader of a new fifo; a slow one takes a page at a time from somewhere on."""
        after = self.dice.randrange(1 << 20) if slow else 1 << 62
        made = Reader(self.folder / name, slow_after=after, pause_s=0.002)
        self._readers.append(made)
        return made

    def fifo(self, name: str) -> Path:
        """A new fifo for stdin."""
        return fifo(self.folder / name)

    def bytes(self, what: str, got: bytes, expected: bytes) -> None:
        """What came is what was to come."""
        self.ledger.begin("bytes of stdio", len(expected))
        good = common(got, expected)
        self.ledger.finish("bytes of stdio", good if got == expected else min(good, len(expected)))
        if got != expected:
            text = f"{what}: {len(got)} bytes of {len(expected)}, wrong from {good} on"
            self.ledger.complain(self.who, f"{text}: {got[good : good + 40]!r}")

    def until(self, true: Callable[[], object], what: str) -> None:
        """Waits for something that has to become so."""
        eventually(true, what, ANSWER_BOUND_S)

    def check(self, true: bool, what: str) -> None:
        """Something that has to be so."""
        if not true:
            self.ledger.complain(self.who, what)

    def pause(self, most_s: float) -> None:
        """A while by chance."""
        time.sleep(self.dice.uniform(0, most_s))

    # -- its end ---------------------------------------------------------------------------------

    def run(self, kind: Callable[[Life], None]) -> None:
        """Lives; whatever happens, nothing of it runs afterwards."""
        try:
            kind(self)
        except Refused as refused:
            self.ledger.note(self.who, f"refused: {refused}")
        except Exception as error:
            self.ledger.complain(self.who, f"{type(error).__name__}: {error}")
            self._keep_logs()
        try:
            self.close()
        except Exception as error:
            self.ledger.complain(self.who, f"its end: {type(error).__name__}: {error}")
            self._keep_logs()

    def close(self) -> None:
        """Ends what is left of it."""
        for container in reversed(self.containers):
            container.end()
        for reader in self._readers:
            reader.give_up()
        shutil.rmtree(self.folder)

    def _keep_logs(self) -> None:
        for container in self.containers:
            with contextlib.suppress(OSError):
                kept = self.ledger.path.with_name(f"{container.name}.log")
                shutil.copy(container.bundle / SHIM_LOG, kept)


def common(one: bytes, other: bytes) -> int:
    """How many bytes are the same from the beginning."""
    if one == other:
        return len(one)
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
