"""What is connected when, without a monitor."""

from __future__ import annotations

from pyshim.api import state_pb2
from pyshim.service.store import Store
from pyshim.stdio import streams


def test_a_terminals_reader_is_kept_for_it() -> None:
    """A service was killed when the terminal's fifo was held and not yet relayed to."""
    store = Store()
    call = state_pb2.Call(holding=[5])
    streams.connect(store, call, state_pb2.Process(id="e", terminal=True))
    assert list(call.holding) == [5]
