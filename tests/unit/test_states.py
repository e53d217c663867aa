"""The state machines, cell by cell."""

from __future__ import annotations

import pytest

from pyshim.api import state_pb2
from pyshim.service import states
from pyshim.service.states import Status
from pyshim.ttrpc.status import Code, StatusError


@pytest.mark.parametrize(("table", "exec_id"), [(states.INIT, ""), (states.EXEC, "e")])
def test_every_cell(table: dict[tuple[Status, str], states.Transition], exec_id: str) -> None:
    for (status, call), expected in table.items():
        process = state_pb2.Process(id=exec_id, status=status)
        if isinstance(expected, tuple):
            with pytest.raises(StatusError) as caught:
                states.advance(process, call)
            assert (caught.value.code, caught.value.message) == expected
            assert process.status == status
        else:
            states.advance(process, call)
            assert process.status == expected


def test_only_what_is_gone_is_not_found() -> None:
    """containerd takes NOT_FOUND for a container that needs no more care."""
    for table in (states.INIT, states.EXEC):
        for (status, call), expected in table.items():
            if isinstance(expected, tuple) and expected[0] is Code.NOT_FOUND:
                assert (status, call) == (Status.STOPPED, "kill")


@pytest.mark.parametrize(
    ("table", "missing"),
    [(states.INIT, set()), (states.EXEC, {Status.PAUSED, Status.RESTORABLE})],
)
def test_the_tables_are_whole(
    table: dict[tuple[Status, str], states.Transition], missing: set[Status]
) -> None:
    calls = {call for _, call in table}
    known = set(Status) - {Status.UNKNOWN, Status.PAUSING} - missing
    assert set(table) == {(status, call) for status in known for call in calls}


def test_clients_see_containerds_states_alone() -> None:
    init = state_pb2.Process(status=Status.RESTORABLE)
    assert states.on_the_wire(init, init) is Status.CREATED
    frozen = state_pb2.Process(status=Status.PAUSED)
    running = state_pb2.Process(id="e", status=Status.RUNNING)
    assert states.on_the_wire(running, frozen) is Status.PAUSED


def test_every_exec_is_as_frozen_as_its_container() -> None:
    """containerd's Go shim tells it of those that were not started, or have ended, too."""
    init = state_pb2.Process(status=Status.RUNNING)
    for status in (Status.CREATED, Status.RUNNING, Status.STOPPED):
        process = state_pb2.Process(id="e", status=status)
        assert states.on_the_wire(process, init) is status
        assert states.on_the_wire(process, init, pausing=True) is Status.PAUSING
        paused = state_pb2.Process(status=Status.PAUSED)
        assert states.on_the_wire(process, paused) is Status.PAUSED
