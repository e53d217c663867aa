"""Which mappings all workers serve, who serves the others, and what all of them say together.

Pure.  A *place* is a worker's number and the serial number that a mapping, or a connection, has
there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from portproxy.channel import MOST_FDS
from portproxy.metrics import COUNTERS
from portproxy.spec import Spec

# What is counted over all connections of a mapping: a worker knows of its own only.
COUNTED = ("max_connections", "max_per_client", "connections_per_second", "bytes_per_second")
# Ways to choose a backend that depend on the choices before.
REMEMBERING = ("least", "round-robin")
ID = re.compile(r"([0-9]{1,2})\.([0-9]{1,15})")
# How a mapping's record is put together from those of its places; what is not here is the first's.
SUMS = (*COUNTERS, "connections", "sessions", "dial_ms")
SUMS_OF_EACH = ("dials", "backends")
OF_PROCESS = ("links", "sessions", "pipes", "spare_pipes", "events_lost")
STATES = ("serving", "opened", "draining")
Record = dict[str, Any]
Place = tuple[int, int]


def is_spread(spec: Spec) -> bool:
    """Whether all workers serve a mapping: nothing about it is counted over its connections.

    Its listeners, and the namespace of its backends, go to a worker in one datagram.
    """
    mapping = spec.mapping
    settings = dict(spec.settings)
    remembers = "backends" in settings and settings.get("balance") in REMEMBERING
    return (
        mapping.protocol == "tcp"
        and mapping.ports + bool(mapping.netns) <= MOST_FDS
        and not (spec.partial and mapping.ports > 1)
        and not remembers
        and not any(settings.get(name, "0").strip("0kKMG") for name in COUNTED)
    )


def least_loaded(numbers: Iterable[int], places: Iterable[Collection[int]]) -> int:
    """The worker that serves the fewest mappings which nobody else serves.

    ``places`` are the workers of each mapping; of those that are equal the first one is taken.
    """
    alone = Counter(number for some in places if len(some) == 1 for number in some)
    return min(numbers, key=lambda number: (alone[number], number))


def shown(worker: int, serial: int) -> str:
    """A connection's ID where there are several workers."""
    return f"{worker}.{serial}"


def place_of(shown_id: object) -> Place | None:
    """The worker and the serial number of such an ID; None if it is none."""
    match = ID.fullmatch(shown_id) if isinstance(shown_id, str) else None
    return (int(match[1]), int(match[2])) if match is not None else None


def merged(
    listed: Mapping[int, list[Record]], groups: Mapping[Place, int], several: bool
) -> tuple[list[tuple[int, Record]], Record]:
    """One record for each mapping, newest first, with its group, and one for the data plane.

    ``listed`` is what each worker has answered to ``list``, the record of its process last;
    ``groups`` says which mapping a place is of.  A mapping that is not in it is shown for itself,
    in a group below 0.  Unless there are ``several`` workers the records are as they were.
    """
    if not several:
        ((worker, (*own, process)),) = listed.items()
        return [(groups.get((worker, each["serial"]), -1), each) for each in own], process
    found: dict[int, list[tuple[int, Record]]] = {}
    for worker, (*mappings, _) in listed.items():
        for record in mappings:
            group = groups.get((worker, record["serial"]), -1 - len(found))
            found.setdefault(group, []).append((worker, record))
    newest_first = sorted(found, key=lambda group: (group >= 0, -group))
    return [(each, _one_mapping(each, found[each])) for each in newest_first], process_of(listed)


def _one_mapping(group: int, parts: list[tuple[int, Record]]) -> Record:
    """A mapping's record; what is served counts for more than what is only left of it."""
    parts = sorted(parts, key=lambda part: STATES.index(part[1]["state"]))
    made = dict(parts[0][1])
    records = [record for _, record in parts]
    for name in SUMS:
        # One that an older program has left does not count all of it.
        made[name] = sum(record.get(name, 0) for record in records)
    for name in SUMS_OF_EACH:
        if len({len(record[name]) for record in records}) == 1:
            counts = (record[name] for record in records)
            made[name] = [sum(each) for each in zip(*counts, strict=True)]
    if len({len(record["up_backends"]) for record in records}) == 1:
        # One that a worker leaves out is not up.
        views = (record["up_backends"] for record in records)
        made["up_backends"] = [all(view) for view in zip(*views, strict=True)]
    made["serial"] = group
    state = made["state"]
    made["workers"] = sorted(worker for worker, record in parts if record["state"] == state)
    return made


def process_of(listed: Mapping[int, list[Record]]) -> Record:
    """What all processes have together; the pid is that of the first."""
    processes = [records[-1] for _, records in sorted(listed.items())]
    made = dict(processes[0])
    for name in OF_PROCESS:
        made[name] = sum(process[name] for process in processes)
    return made


def connections(
    listed: Mapping[int, list[Record]], groups: Mapping[Place, int], several: bool
) -> list[Record]:
    """The connections of all workers, with the IDs that people are shown."""
    if not several:
        return [record for *found, _ in listed.values() for record in found]
    return [
        {
            **record,
            "serial": shown(worker, record["serial"]),
            "mapping": groups.get((worker, record["mapping"]), -1),
            "worker": worker,
        }
        for worker, (*found, _) in listed.items()
        for record in found
    ]
