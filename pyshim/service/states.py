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
    PAUSING = 5  # on the wire only, while the runtime is at it
    # Ours alone: created from a checkpoint, which Start restores; clients see CREATED.
    RESTORABLE = 64


Transition = Status | tuple[Code, str]
GONE = (Code.NOT_FOUND, "process already finished")

# (state, call) → the next state, or the error of a call that is wrong in this state.  Codes are
# those of containerd's Go shim; it says UNKNOWN for a plain error.
C, R, P, S = Status.CREATED, Status.RUNNING, Status.PAUSED, Status.STOPPED
K = Status.RESTORABLE
NO = Code.UNKNOWN
INIT: dict[tuple[Status, str], Transition] = {
    (C, "start"): R,
    (C, "kill"): C,
    (C, "exec"): C,
    (C, "update"): C,
    (C, "pause"): (NO, "cannot pause task in created state"),
    (C, "resume"): (NO, "cannot resume task in created state"),
    (C, "checkpoint"): (NO, "cannot checkpoint a task in created state"),
    (C, "delete"): S,
    (C, "exit"): S,
    (K, "start"): R,
    (K, "kill"): K,
    (K, "exec"): (NO, "cannot exec in a created state"),
    (K, "update"): K,
    (K, "pause"): (NO, "cannot pause task in created state"),
    (K, "resume"): (NO, "cannot resume task in created state"),
    (K, "checkpoint"): (NO, "cannot checkpoint a task in created state"),
    (K, "delete"): S,
    (K, "exit"): S,
    (R, "start"): (NO, "cannot start a running process"),
    (R, "kill"): R,
    (R, "exec"): R,
    (R, "update"): R,
    (R, "pause"): P,
    (R, "resume"): (NO, "cannot resume a running process"),
    (R, "checkpoint"): R,
    (R, "delete"): (NO, "cannot delete a running process"),
    (R, "exit"): S,
    (P, "start"): (NO, "cannot start a paused process"),
    (P, "kill"): P,
    (P, "exec"): (NO, "cannot exec in a paused state"),
    (P, "update"): P,
    (P, "pause"): (NO, "cannot pause a paused container"),
    (P, "resume"): R,
    (P, "checkpoint"): P,
    (P, "delete"): (NO, "cannot delete a paused process"),
    (P, "exit"): S,
    (S, "start"): (NO, "cannot start a stopped process"),
    (S, "kill"): GONE,
    (S, "exec"): (NO, "cannot exec in a stopped state"),
    (S, "update"): (NO, "cannot update a stopped container"),
    (S, "pause"): (NO, "cannot pause a stopped container"),
    (S, "resume"): (NO, "cannot resume a stopped container"),
    (S, "checkpoint"): (NO, "cannot checkpoint a stopped container"),
    (S, "delete"): S,
    (S, "exit"): S,
}
EXEC: dict[tuple[Status, str], Transition] = {
    (C, "start"): R,
    (C, "kill"): (Code.FAILED_PRECONDITION, "process not created"),
    (C, "resize"): C,
    (C, "delete"): S,
    (C, "exit"): S,
    (R, "start"): (NO, "cannot start a running process"),
    (R, "kill"): R,
    (R, "resize"): R,
    (R, "delete"): (NO, "cannot delete a running process"),
    (R, "exit"): S,
    (S, "start"): (NO, "cannot start a stopped process"),
    (S, "kill"): GONE,
    (S, "resize"): (NO, "cannot resize a stopped container"),
    (S, "delete"): S,
    (S, "exit"): S,
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


def register(process: state_pb2.Process, *, restorable: bool = False) -> None:
    """Gives a new process its first state; ``restorable`` where Start restores a checkpoint."""
    process.status = Status.RESTORABLE if restorable else Status.CREATED


def on_the_wire(
    process: state_pb2.Process, init: state_pb2.Process, *, pausing: bool = False
) -> Status:
    """What clients are told of ``process``, an exec or the ``init`` of its container itself.

    As in the Go shim an exec, in whatever state, is told to be as frozen as its container.
    """
    if init.status == Status.PAUSED:
        return Status.PAUSED
    if pausing and init.status == Status.RUNNING:
        return Status.PAUSING
    status = Status(process.status)
    return Status.CREATED if status is Status.RESTORABLE else status
