"""The state machines of a container's init and of an exec: one table each.

Two rules: a call is allowed only where the table says so, and nothing outside this module
writes a process's ``status``.
"""

from __future__ import annotations

from enum import IntEnum

from pyshim.api import state_pb2
from pyshim.ttrpc.status import Code, StatusError


class Status(IntEnum):
    """containerd.v1.types.Status."""

    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4


Transition = Status | tuple[Code, str]
GONE = (Code.NOT_FOUND, "process already finished")

# (state, call) → the next state, or the error of a call that is wrong in this state.  Codes are
# those of containerd's Go shim; it says UNKNOWN for a plain error.
INIT: dict[tuple[Status, str], Transition] = {
    (Status.CREATED, "start"): Status.RUNNING,
    (Status.CREATED, "kill"): Status.CREATED,
    (Status.CREATED, "exec"): Status.CREATED,
    (Status.CREATED, "delete"): Status.STOPPED,
    (Status.CREATED, "exit"): Status.STOPPED,
    (Status.RUNNING, "start"): (Code.UNKNOWN, "cannot start a running process"),
    (Status.RUNNING, "kill"): Status.RUNNING,
    (Status.RUNNING, "exec"): Status.RUNNING,
    (Status.RUNNING, "delete"): (Code.UNKNOWN, "cannot delete a running process"),
    (Status.RUNNING, "exit"): Status.STOPPED,
    (Status.STOPPED, "start"): (Code.UNKNOWN, "cannot start a stopped process"),
    (Status.STOPPED, "kill"): GONE,
    (Status.STOPPED, "exec"): (Code.UNKNOWN, "cannot exec in a stopped state"),
    (Status.STOPPED, "delete"): Status.STOPPED,
    (Status.STOPPED, "exit"): Status.STOPPED,
}
EXEC: dict[tuple[Status, str], Transition] = {
    (Status.CREATED, "start"): Status.RUNNING,
    (Status.CREATED, "kill"): (Code.FAILED_PRECONDITION, "process not started"),
    (Status.CREATED, "delete"): Status.STOPPED,
    (Status.CREATED, "exit"): Status.STOPPED,
    (Status.RUNNING, "start"): (Code.UNKNOWN, "cannot start a running process"),
    (Status.RUNNING, "kill"): Status.RUNNING,
    (Status.RUNNING, "delete"): (Code.UNKNOWN, "cannot delete a running process"),
    (Status.RUNNING, "exit"): Status.STOPPED,
    (Status.STOPPED, "start"): (Code.UNKNOWN, "cannot start a stopped process"),
    (Status.STOPPED, "kill"): GONE,
    (Status.STOPPED, "delete"): Status.STOPPED,
    (Status.STOPPED, "exit"): Status.STOPPED,
}


def check(process: state_pb2.Process, call: str) -> Status:
    """The state that ``call`` would lead to; raises StatusError where it is not allowed."""
    table = EXEC if process.id else INIT
    found = table.get((Status(process.status), call), (Code.UNKNOWN, f"cannot {call}"))
    if isinstance(found, tuple):
        raise StatusError(*found)
    return found


def advance(process: state_pb2.Process, call: str) -> None:
    """Carries out the transition of ``call``; raises StatusError where it is not allowed."""
    process.status = check(process, call)


def register(process: state_pb2.Process) -> None:
    """Gives a new process its first state."""
    process.status = Status.CREATED
