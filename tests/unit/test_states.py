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
