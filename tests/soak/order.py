"""Whether the events of a task came each once, and in containerd's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

# What may come any number of times: a repeated TaskOOM is the price of losing none.
REPEATABLE = {"oom"}


@dataclass
class Told:
    """What the shim has answered about a task, and so what it owes events for.

    ``started`` and an exec's None mean that nobody can know: the request failed half-way.
    """

    created: bool = False
    started: bool | None = False
    deleted: bool = False
    oom: bool = False
    pauses: int = 0
    resumes: int = 0
    unsure_pauses: int = 0
    execs: dict[str, bool | None] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)


Event = tuple[str, str, int]  # topic, exec id or "", exit status of an exit, else 0


def expected(told: Told) -> int:
    """How many events there have to be at least."""
    if not told.created:
        return 0
    ran = sum(1 for started in told.execs.values() if started)
    always = 2 + told.deleted  # create, exit
    return always + bool(told.started) + len(told.execs) + 2 * ran + told.pauses + told.resumes


def complaints(told: Told, events: Sequence[Event]) -> list[str]:
    """What is wrong with ``events``, which are all there will be; nothing when all is well."""
    if not told.created:
        # A Create that failed after the runtime had made the container may have been undone.
        return [f"{topic} of a container that was never created" for topic, _, _ in events]
    found = [
        f"{topic} {name} twice"
        for topic, name in sorted({event[:2] for event in events})
        if topic not in REPEATABLE | {"paused", "resumed"}
        and sum(event[:2] == (topic, name) for event in events) > 1
    ]
    place = {event[:2]: at for at, event in enumerate(events)}
    found += _missing(told, place) + _misplaced(place, len(events))
    for topic, wanted in (("paused", told.pauses), ("resumed", told.resumes)):
        count = sum(event[0] == topic for event in events)
        if not wanted <= count <= wanted + told.unsure_pauses:
            found.append(f"{count} {topic} of {wanted}")
    for topic, name, status in events:
        if topic == "exit" and name in told.statuses and told.statuses[name] != status:
            found.append(f"exit {name} with {status}, not {told.statuses[name]}")
    return found


def _missing(told: Told, place: dict[tuple[str, str], int]) -> list[str]:
    owed = [("create", ""), ("exit", "")]
    unowed: list[tuple[str, str]] = []
    (owed if told.deleted else unowed).append(("delete", ""))
    if told.started is not None:
        (owed if told.started else unowed).append(("start", ""))
    if told.oom:
        owed.append(("oom", ""))
    for name, started in told.execs.items():
        owed.append(("exec-added", name))
        if started is not None:
            (owed if started else unowed).extend([("exec-started", name), ("exit", name)])
    lacking = [f"no {topic} {name}" for topic, name in owed if (topic, name) not in place]
    return lacking + [f"a false {topic} {name}" for topic, name in unowed if (topic, name) in place]


def _misplaced(place: dict[tuple[str, str], int], count: int) -> list[str]:
    last = place.get(("delete", ""), count)
    end = place.get(("exit", ""), count)
    begin = place.get(("start", ""), -1)
    rules = {"create": 0}
    found = []
    for (topic, name), at in place.items():
        if topic in rules and at != rules[topic]:
            found.append(f"{topic} is not the first")
        if topic != "delete" and at > last:
            found.append(f"{topic} {name} after delete")
        if name and topic == "exit" and not place.get(("exec-started", name), count) < at < end:
            found.append(f"exit {name} not between its start and the init's exit")
        if topic == "exec-started" and not place.get(("exec-added", name), count) < at:
            found.append(f"{topic} {name} before it was added")
        if topic == "oom" and at > end:
            found.append("oom after the exit")
    if begin > end:
        found.append("start after the exit")
    return found
