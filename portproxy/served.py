"""What the workers serve: which mapping is where.  Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from portproxy.namespaces import Identity
from portproxy.spec import Spec
from portproxy.spreading import Place, Record

LABEL = re.compile(r" label=(\S+)$")
SHARED = re.compile(r" shared=[0-9]+ ")


@dataclass
class Active:
    """A mapping that is served; ``spec`` is None if a former control plane asked for it.

    ``places`` are its serial numbers, by worker; ``line`` is that of the worker that has opened
    its ports; ``group`` tells it from all others that there are or have been.  ``inside`` is the
    namespace of its backends, if they are in one and it is known which.
    """

    places: dict[int, int]
    line: str
    port: int
    group: int
    spec: Spec | None = None
    inside: Identity | None = None


@dataclass
class Served:
    """All of them, by the key of their listener; ``groups`` says whose a place is, or was."""

    active: dict[str, Active] = field(default_factory=dict)
    groups: dict[Place, int] = field(default_factory=dict)
    last_group: int = 0

    def new(
        self, line: str, port: int, spec: Spec | None = None, inside: Identity | None = None
    ) -> Active:
        """A mapping that nobody serves yet."""
        self.last_group += 1
        return Active({}, line, port, self.last_group, spec, inside)

    def place(self, active: Active, worker: int, serial: int) -> None:
        """Notes that a worker serves a mapping."""
        active.places[worker] = serial
        self.groups[worker, serial] = active.group

    def learn(self, listed: Mapping[int, list[Record]]) -> None:
        """Takes note of what workers serve that somebody else has told what to do.

        What has the same listener in several workers is one mapping.
        """
        leaving: dict[tuple[str, int], Active] = {}
        for worker, (*mappings, _) in listed.items():
            for record in reversed(mappings):
                label = LABEL.search(record["line"])
                if label is None:
                    continue
                key, port = unquote(label.group(1)), record["port"]
                if record["state"] == "draining":
                    gone = leaving.setdefault((key, port), self.new(record["line"], port))
                    self.groups[worker, record["serial"]] = gone.group
                else:
                    self._recognise(key, worker, record)

    def _recognise(self, key: str, worker: int, record: Record) -> None:
        """Notes a worker's mapping: one that others have been seen to serve, or one more."""
        name, again = key, 1
        while (active := self.active.get(name)) is not None and (
            worker in active.places or active.port != record["port"]
        ):
            again += 1
            name = f"{key}#{again}"
        if active is None:
            active = self.active[name] = self.new(record["line"], record["port"])
        elif SHARED.search(active.line):
            active.line = record["line"]
        self.place(active, worker, record["serial"])

    def keep(self, workers: Collection[int]) -> list[Active]:
        """Forgets what all others than these workers have served; what is theirs alone now."""
        left: list[Active] = []
        for key, active in list(self.active.items()):
            gone = active.places.keys() - set(workers)
            for worker in gone:
                del active.places[worker]
            if not active.places:
                del self.active[key]
            elif gone:
                left.append(active)
        for place in [place for place in self.groups if place[0] not in workers]:
            del self.groups[place]
        return left

    def prune(self, listed: Mapping[int, list[Record]]) -> None:
        """Forgets whose places were that have gone, according to what all workers have listed.

        What has come since they were asked is newer than all that they have listed.
        """
        here = {(worker, each["serial"]) for worker, some in listed.items() for each in some[:-1]}
        newest = {worker: max((n for w, n in here if w == worker), default=0) for worker in listed}
        for place in self.groups.keys() - here:
            if place[1] < newest.get(place[0], 0):
                del self.groups[place]
