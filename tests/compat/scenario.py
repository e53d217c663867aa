"""What a scenario is, what it gives, and how two of those are compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Observation = dict[str, Any]
SERIES = ("1.6", "1.7", "2")
CONTAINERD, DOCKER = "containerd", "dockerd"


@dataclass(frozen=True)
class Scenario:
    """Something that a user does, under the name by which the table lists it.

    ``expected`` is what is known of the observation beforehand.  One that is ``alone`` restarts
    the daemon, and so must not run beside another.
    """

    name: str
    daemon: str
    act: Callable[[Any], Observation]
    expected: Mapping[str, Any] = field(default_factory=dict)
    smoke: bool = False
    alone: bool = False


ALL: dict[str, Scenario] = {}


def scenario(
    daemon: str = CONTAINERD, *, smoke: bool = False, alone: bool = False, **expected: Any
) -> Callable[[Callable[[Any], Observation]], Callable[[Any], Observation]]:
    """Lists a function as the scenario that has its name."""

    def listed(act: Callable[[Any], Observation]) -> Callable[[Any], Observation]:
        name = act.__name__.replace("_", "-")
        assert name not in ALL, name
        ALL[name] = Scenario(name, daemon, act, expected, smoke, alone)
        return act

    return listed


@dataclass(frozen=True)
class Difference:
    """Where the two shims may differ, and must: ``docs/compatibility.md`` says why under ``key``.

    ``fields`` are the observation's; ``series`` the generations, as "1.6", "1.7", "2", or the
    major version of a dockerd.  One that is not there ``always`` depends on who is quicker.
    """

    key: str
    scenario: str
    fields: tuple[str, ...]
    series: tuple[str, ...] = SERIES
    always: bool = True


@dataclass(frozen=True)
class Wording:
    """A text of ours and the Go shim's text in its place, as regular expressions.

    Both are read as ``same``; where that is empty, as what stands there alone.
    """

    key: str
    ours: str
    theirs: str
    same: str = "<the same>"


def differing(ours: Observation, theirs: Observation) -> dict[str, tuple[Any, Any]]:
    """The fields that are not equal, with both values."""
    absent = "(absent)"
    pairs = {
        name: (ours.get(name, absent), theirs.get(name, absent))
        for name in dict.fromkeys([*ours, *theirs])
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def normal(text: str, names: Mapping[str, str]) -> str:
    """``text`` without what no two runs share: paths, ids, times, process ids."""
    for found, name in sorted(names.items(), key=lambda pair: -len(pair[0])):
        text = text.replace(found, name)
    text = re.sub(r"time=\"[^\"]*\" ", "", text)
    text = re.sub(r"\b[0-9a-f]{64}\b", "<id>", text)
    text = re.sub(r"\b[0-9a-f]{12}\b", "<id>", text)
    text = re.sub(r"/proc/\d+", "/proc/<pid>", text)
    text = re.sub(r"runc-process\d+", "<process file>", text)
    text = re.sub(r"usage: \d+", "usage: <bytes>", text)
    return re.sub(r"\bpid[ =]\d+", "pid <pid>", text).strip()
