"""The account of events finds what is wrong, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .order import Event, Told, complaints, expected

TOLD = Told(
    created=True,
    started=True,
    deleted=True,
    oom=True,
    pauses=1,
    resumes=1,
    execs={"e": True, "never": False, "failed": None},
    statuses={"": 137, "e": 3},
)
GOOD: list[Event] = [
    ("create", "", 0),
    ("start", "", 0),
    ("exec-added", "e", 0),
    ("exec-added", "never", 0),
    ("exec-started", "e", 0),
    ("exec-added", "failed", 0),
    ("paused", "", 0),
    ("resumed", "", 0),
    ("exit", "e", 3),
    ("oom", "", 0),
    ("exit", "", 137),
    ("delete", "", 0),
]


def test_what_is_right_is_not_complained_about() -> None:
    assert complaints(TOLD, GOOD) == []
    assert expected(TOLD) == len(GOOD) - 1  # an OOM is owed once, and may be told again


def test_an_oom_may_be_told_twice() -> None:
    assert complaints(TOLD, [*GOOD[:10], ("oom", "", 0), *GOOD[10:]]) == []


def test_nobody_knows_whether_a_start_that_failed_half_way_has_started() -> None:
    unsure = Told(created=True, started=None, deleted=True, statuses={"": 137})
    ends: list[Event] = [("exit", "", 137), ("delete", "", 0)]
    assert complaints(unsure, [("create", "", 0), *ends]) == []
    assert complaints(unsure, [("create", "", 0), ("start", "", 0), *ends]) == []


@pytest.mark.parametrize("missing", GOOD)
def test_each_that_is_missing(missing: Event) -> None:
    assert complaints(TOLD, [event for event in GOOD if event != missing]) != []


@given(st.sampled_from([event for event in GOOD if event[0] != "oom"]), st.integers(0, len(GOOD)))
def test_each_that_comes_twice(twice: Event, at: int) -> None:
    assert complaints(TOLD, [*GOOD[:at], twice, *GOOD[at:]]) != []


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("create", "start"),
        ("start", "exit"),
        ("exec-added", "exec-started"),
        ("exec-started", "exit"),
        ("oom", "exit"),
        ("exit", "delete"),
    ],
)
def test_each_that_comes_too_late(earlier: str, later: str) -> None:
    late = next(event for event in GOOD if event[0] == earlier)
    name = late[1] if earlier.startswith("exec") else ""
    before = next(e for e in GOOD if e[0] == later and e[1] == name)
    events = [event for event in GOOD if event != late]
    events.insert(events.index(before) + 1, late)
    assert complaints(TOLD, events) != []


def test_a_wrong_status() -> None:
    wrong = [("exit", "", 1) if event == ("exit", "", 137) else event for event in GOOD]
    assert complaints(TOLD, wrong) == ["exit  with 1, not 137"]


def test_what_was_never_created_has_no_events() -> None:
    assert complaints(Told(), []) == []
    assert complaints(Told(), [("create", "", 0)]) != []
