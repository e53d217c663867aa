"""The versions of the state, and the way from each to the next.

A state is written by one version of pyshim and read by another after an upgrade, or after a way
back.  An older one is brought up here, step by step; a newer one is refused, because what is not
understood could not be kept.  A change of ``state.proto`` that only adds what may be missing is no
new version; one that an older service must not overlook is.
"""

from __future__ import annotations

from collections.abc import Callable

from pyshim.api import state_pb2

STATE_VERSION = 2


class StateError(Exception):
    """A state that this version cannot go on from; the message says why and what to do."""


def bring_up(state: state_pb2.State) -> None:
    """Makes ``state`` one of STATE_VERSION.  Raises StateError, and then it is as it was."""
    if state.version > STATE_VERSION:
        raise StateError(
            f"the state of {state.id} has version {state.version}, and this pyshim knows"
            f" {STATE_VERSION} at most; run the newer version's `pyshim upgrade`"
        )
    if state.version < 1:
        raise StateError(f"the state has version {state.version}; it was not written by pyshim")
    while state.version < STATE_VERSION:
        _STEPS[state.version](state)
        state.version += 1


def _from_1(state: state_pb2.State) -> None:
    """Version 2 has calls that are handed over to another version of the monitor (``handed``).

    No service of version 1 has taken such a call for more than an unknown one.
    """
    for call in state.calls:
        call.handed = False


_STEPS: dict[int, Callable[[state_pb2.State], None]] = {1: _from_1}
