"""Which mappings all workers serve, who serves the others, and how their records become one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portproxy.metrics import COUNTERS
from portproxy.served import Served
from portproxy.spec import make
from portproxy.spreading import (
    connections,
    is_spread,
    least_loaded,
    merged,
    place_of,
    shown,
)

Record = dict[str, Any]
SPREAD: list[tuple[str, dict[str, object]]] = [
    ("80:10.0.0.2:80", {}),
    ("[::1]:0:10.0.0.2:80", {}),
    ("80-95:10.0.0.2:80", {}),
    ("unix:/run/a:10.0.0.2:80", {}),
    ("fd:web:unix:/run/b", {}),
    ("80:netns:x!127.0.0.1:80", {}),
    ("80-94:netns:x!127.0.0.1:80", {}),
    ("80:10.0.0.2:80", {"partial": True}),
    ("80:10.0.0.2:80", {"max_connections": 0, "bytes_per_second": "0k"}),
    ("80:10.0.0.2:80", {"bytes_per_second_each": "1M", "idle_timeout": "1h", "access": "all"}),
    ("80:10.0.0.2:80", {"balance": "least"}),  # there is nothing to choose from
    ("80:10.0.0.2:80", {"backends": "10.0.0.3:80", "balance": "source"}),
    ("80:10.0.0.2:80", {"backends": "10.0.0.3:80"}),
    ("80:10.0.0.2:80", {"mode": "auto"}),
]
ALONE: list[tuple[str, dict[str, object]]] = [
    ("53:10.0.0.2:53/udp", {}),
    ("53:10.0.0.2:53/sctp", {}),
    ("80-96:10.0.0.2:80", {}),
    ("80-95:netns:x!127.0.0.1:80", {}),
    ("80-81:10.0.0.2:80", {"partial": True}),
    ("80:10.0.0.2:80", {"max_connections": 10}),
    ("80:10.0.0.2:80", {"max_per_client": 1}),
    ("80:10.0.0.2:80", {"connections_per_second": "1k"}),
    ("80:10.0.0.2:80", {"bytes_per_second": "10M"}),
    ("80:10.0.0.2:80", {"backends": "10.0.0.3:80", "balance": "least"}),
    ("80:10.0.0.2:80", {"backends": "10.0.0.3:80", "balance": "round-robin"}),
]


@pytest.mark.parametrize(("publish", "options"), SPREAD)
def test_what_nothing_is_counted_of_is_spread(publish: str, options: dict[str, object]) -> None:
    (spec,) = make(publish, options, "-p")
    assert is_spread(spec)


@pytest.mark.parametrize(("publish", "options"), ALONE)
def test_what_is_counted_over_connections_has_one_worker(
    publish: str, options: dict[str, object]
) -> None:
    (spec,) = make(publish, options, "-p")
    assert not is_spread(spec)


def test_who_serves_the_fewest_alone_takes_the_next() -> None:
    spread, first, second = {1: 9, 2: 9, 3: 9}, {1: 4}, {2: 4}
    assert least_loaded([1, 2, 3], []) == 1
    assert least_loaded([1, 2, 3], [spread, spread]) == 1
    assert least_loaded([1, 2, 3], [spread, first]) == 2
    assert least_loaded([1, 2, 3], [first, second, spread]) == 3
    assert least_loaded([1, 2], [first, first, second]) == 2


@given(worker=st.integers(1, 64), serial=st.integers(0, 2**40))
def test_an_id_leads_back_to_its_connection(worker: int, serial: int) -> None:
    assert place_of(shown(worker, serial)) == (worker, serial)


@pytest.mark.parametrize("text", [17, "17", "", "1.", ".1", "1.2.3", "-1.2", "1.2 ", None, 1.5])
def test_what_is_no_id(text: object) -> None:
    assert place_of(text) is None


def record(serial: int, state: str = "serving", line: str = "", **more: object) -> Record:
    """A mapping's, as a worker lists it."""
    made: Record = dict.fromkeys((*COUNTERS, "connections", "sessions", "dial_ms", "port"), 0)
    made |= {"serial": serial, "state": state, "ports": 1, "open": 1, "line": line}
    return made | {"dials": [0, 0], "backends": [0], "up_backends": [True], **more}


def process(pid: int, links: int = 0) -> Record:
    """A worker's own."""
    return {
        "pid": pid,
        "links": links,
        "sessions": 0,
        "pipes": 1,
        "spare_pipes": 0,
        "events_lost": 0,
        "next": 0,
    }


def test_one_worker_says_what_it_always_said() -> None:
    listed = {1: [record(4), record(2), process(77, 3)]}
    mappings, whole = merged(listed, {(1, 4): 9}, several=False)
    assert mappings == [(9, record(4)), (-1, record(2))]
    assert whole == process(77, 3)
    links = [{"serial": 5, "mapping": 4}]
    assert connections({1: [*links, process(77)]}, {(1, 4): 9}, several=False) == links


def test_several_say_it_together() -> None:
    mine = {"dials": [1, 2], "backends": [3], "up_backends": [True]}
    theirs = {"dials": [4, 5], "backends": [1], "up_backends": [False]}
    listed = {
        1: [record(8), record(7, connections=3, accepted=5, up=10, **mine), process(77, 3)],
        2: [record(2, connections=1, accepted=1, up=5, **theirs), process(78, 1)],
    }
    groups = {(1, 7): 1, (2, 2): 1, (1, 8): 2}
    (newer, alone), (older, both) = merged(listed, groups, several=True)[0]
    assert (newer, alone["serial"], alone["workers"]) == (2, 2, [1])
    assert (older, both["serial"], both["workers"]) == (1, 1, [1, 2])
    assert (both["connections"], both["accepted"], both["up"]) == (4, 6, 15)
    assert (both["dials"], both["backends"], both["up_backends"]) == ([5, 7], [4], [False])
    assert (both["state"], both["ports"], both["open"]) == ("serving", 1, 1)
    whole = merged(listed, groups, several=True)[1]
    assert (whole["pid"], whole["links"], whole["pipes"]) == (77, 4, 2)


def test_what_is_served_counts_for_more_than_what_is_left_of_it() -> None:
    before = record(1, "draining", connections=2, backends=[1, 1], up_backends=[True, True])
    listed = {1: [before, process(1)], 2: [record(1, connections=1), process(2)]}
    ((_, made),), _ = merged(listed, {(1, 1): 1, (2, 1): 1}, several=True)
    assert (made["state"], made["connections"], made["backends"]) == ("serving", 3, [0])


def test_one_of_an_older_program_counts_less() -> None:
    older = record(1, accepted=2)
    del older["pending_errors"]
    listed = {1: [older, process(1)], 2: [record(1, pending_errors=3, accepted=1), process(2)]}
    ((_, made),), _ = merged(listed, {(1, 1): 1, (2, 1): 1}, several=True)
    assert (made["pending_errors"], made["accepted"]) == (3, 3)


def test_what_nobody_knows_of_is_shown_for_itself() -> None:
    listed = {1: [record(1), process(1)], 2: [record(1), process(2)]}
    mappings, _ = merged(listed, {}, several=True)
    assert [made["workers"] for _, made in mappings] == [[1], [2]]


def test_connections_are_told_apart() -> None:
    listed = {
        1: [{"serial": 5, "mapping": 7}, process(77)],
        2: [{"serial": 5, "mapping": 2}, process(78)],
    }
    found = connections(listed, {(1, 7): 1, (2, 2): 1}, several=True)
    assert [(each["serial"], each["mapping"]) for each in found] == [("1.5", 1), ("2.5", 1)]


# --- What a former control plane has left ------------------------------------------------------

WEB = "tcp 127.0.0.1 0 10.0.0.2 80 label=tcp/127.0.0.1:0"
SHARED = "tcp 127.0.0.1 0 10.0.0.2 80 shared=0 label=tcp/127.0.0.1:0"


def test_what_several_workers_have_is_recognised() -> None:
    served = Served()
    served.learn(
        {
            1: [record(2, line=SHARED, port=81), record(1, line=WEB, port=80), process(1)],
            2: [record(4, line=WEB, port=81), record(3, line=SHARED, port=80), process(2)],
            3: [record(9, "draining", WEB, port=80), process(3)],
            4: [record(5, "draining", SHARED, port=80), process(4)],
        }
    )
    one, two = served.active["tcp/127.0.0.1:0"], served.active["tcp/127.0.0.1:0#2"]
    assert (one.places, one.line, one.port) == ({1: 1, 2: 3}, WEB, 80)
    assert (two.places, two.line, two.port) == ({1: 2, 2: 4}, WEB, 81)
    assert one.group != two.group
    assert served.groups[3, 9] == served.groups[4, 5] not in {one.group, two.group}


def test_what_a_worker_had_that_has_ended_is_forgotten() -> None:
    served = Served()
    spread, alone = served.new(WEB, 80), served.new(WEB, 81)
    served.active.update(spread=spread, alone=alone)
    for worker in (1, 2):
        served.place(spread, worker, 1)
    served.place(alone, 2, 2)
    served.keep({1})
    assert served.active == {"spread": spread}
    assert spread.places == {1: 1}
    assert served.groups == {(1, 1): spread.group}


def test_what_has_gone_is_forgotten_and_what_has_come_is_not() -> None:
    served = Served()
    for serial in (1, 2, 3):
        served.place(served.new(WEB, 80), 1, serial)
    served.prune({1: [record(2), process(1)]})
    assert served.groups.keys() == {(1, 2), (1, 3)}
