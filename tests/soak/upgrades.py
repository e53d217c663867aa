"""Live upgrades as faults: to a version that works or back, and to one that does not.

The clients' requests go on meanwhile as if nothing were: an upgrade excuses nothing.  One that
another fault prevents has to say why, and the monitor goes on as it was.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

from .world import World

# How long a version that does not work is waited for before the monitor goes back.
PATIENCE_MS = (500, 2000)


@contextlib.contextmanager
def upgraded(world: World, dice: random.Random) -> Iterator[str]:
    """Everything becomes the other version and ours again, or ours and then the other."""
    said = []
    for version in dice.sample([world.versions.ours, world.versions.other], 2):
        said.append(f"to {version.home}:")
        for record in world.versions.take_over(version):
            world.upgrades[record["outcome"]] += 1
            said.append(f"{record['pid']} {record['outcome']} {record['reason']};")
    yield " ".join(said)


@contextlib.contextmanager
def undone(world: World, dice: random.Random) -> Iterator[str]:
    """A monitor becomes a version whose services die at once, and goes back."""
    found = world.versions.monitors()
    if not found:
        yield "nobody"
        return
    monitor, patience_ms = dice.choice(found), dice.randrange(*PATIENCE_MS)
    said = world.versions.fail_to_take_over(monitor, patience_ms)
    world.upgrades["undone"] += 1
    yield f"process {monitor.pid} after {patience_ms} ms: {said}"
