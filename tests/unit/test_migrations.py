"""States of older versions are read, those of newer ones refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyshim.api import state_pb2
from pyshim.service.migrations import STATE_VERSION, StateError, bring_up

# Written by the pyshim of that version: a pod of two containers with execs, one of them deleted, a
# Wait that is to be answered, and half of a request.
RECORDED = {int(p.stem.rpartition("-")[2]): p for p in Path(__file__).parent.glob("states/*.bin")}


def recorded(version: int) -> state_pb2.State:
    """The state that was recorded of ``version``."""
    return state_pb2.State.FromString(RECORDED[version].read_bytes())


def test_there_is_a_recorded_state_of_every_older_version() -> None:
    assert sorted(RECORDED) == list(range(1, STATE_VERSION))


@pytest.mark.parametrize("version", sorted(RECORDED))
def test_an_older_state_is_brought_up(version: int) -> None:
    state = recorded(version)
    assert state.version == version
    bring_up(state)
    assert state.version == STATE_VERSION
    assert (state.id, state.next_tag, state.next_number) == ("pod", 9, 16)
    assert [(call.method, call.stream, call.handed) for call in state.calls] == [("Wait", 5, False)]
    assert state.connections[0].pending == b"\0\0\0\x10\0\0"
    assert state.containers["c1"].execs["registered"].status == 1
    assert state.containers["c2"].execs["e"].pid == 19592
    assert [(d.id, d.exec_id) for d in state.deleted] == [("c2", "gone")]


def test_nothing_but_the_version_and_what_is_new_changes() -> None:
    state, before = recorded(1), recorded(1)
    bring_up(state)
    before.version = state.version
    for call in before.calls:
        call.handed = False
    assert state == before


def test_the_current_one_stays() -> None:
    state = state_pb2.State(version=STATE_VERSION, id="one")
    before = state_pb2.State(version=STATE_VERSION, id="one")
    bring_up(state)
    assert state == before


@pytest.mark.parametrize(
    ("version", "said"),
    [(STATE_VERSION + 1, "newer version"), (2**32 - 1, "newer version"), (0, "not written by")],
)
def test_what_is_not_known_is_refused_and_left(version: int, said: str) -> None:
    state = recorded(1)
    state.version = version
    before = state.SerializeToString(deterministic=True)
    with pytest.raises(StateError, match=said):
        bring_up(state)
    assert state.SerializeToString(deterministic=True) == before
