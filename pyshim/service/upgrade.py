"""The call Upgrade: hands this group's monitor over to another version of it.

The monitor has the new program rehearse first, and the service that asked for it then goes away as
if it were killed: the state says all.  Whoever serves next, of the new version or after a way back
of the old one, finds the call in the state, and answers it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from typing import TYPE_CHECKING

from pyshim import __version__
from pyshim.api import state_pb2, upgrade_pb2
from pyshim.monitor import channel
from pyshim.monitor.channel import Message, Type, WelcomeFlag
from pyshim.monitor.fds import memfd
from pyshim.ttrpc.status import Code, StatusError
from pyshim.zygote import address

if TYPE_CHECKING:
    from pyshim.service.task import Task

CONTROL = "pyshim.control.v1.Control"
# Python with everything imported, on a loaded host.
ZYGOTE_TIMEOUT_S = 20.0
ZYGOTE_POLL_S = 0.05
# The monitor gives a rehearsal 5 s.
REHEARSAL_TIMEOUT_S = 15
REASONS = {
    errno.EPROTO: "the new version cannot go on from what this one holds",
    errno.ETIMEDOUT: "the new version did not answer in time",
    errno.ENOEXEC: "the new monitor is no program for this machine",
    errno.EALREADY: "it is being upgraded already",
    errno.ECANCELED: "the container ended meanwhile",
}


async def upgrade(task: Task, call: state_pb2.Call) -> None:
    """The call Upgrade.  Its answer is the new version's; a failure leaves everything as it was."""
    request = upgrade_pb2.UpgradeRequest.FromString(call.payload)
    if call.handed:
        _answer(task, call)
        return
    _check(task, request)
    await _await_zygote(request)
    program = _open(request.monitor)
    try:
        text = channel.encode_names(request.zygote, request.python, request.monitor)
        names = memfd(text)
    except BaseException:
        os.close(program)
        raise
    call.handed = True
    sequence, reply = task.store.link.expect()
    message = Message(Type.UPGRADE, (request.patience_ms, 0), (program, names), sequence)
    task.store.commit(message, owned=[program, names])
    error, _ = await asyncio.wait_for(reply, REHEARSAL_TIMEOUT_S)
    if error:
        call.handed = False
        raise _failure(error)
    # The monitor waits for our end, and what we have not sent has not happened.
    os._exit(0)


def _answer(task: Task, call: state_pb2.Call) -> None:
    """Tells how it went what an earlier service began."""
    if task.store.upgrade_error:
        call.handed = False
        raise _failure(task.store.upgrade_error)
    reply = upgrade_pb2.UpgradeResponse(
        version=__version__, build=address.build_id(), pid=task.store.monitor_pid
    )
    task.server.answer(call, reply.SerializeToString())


def _failure(error: int) -> StatusError:
    reason = REASONS.get(error) or os.strerror(error)
    return StatusError(Code.FAILED_PRECONDITION, f"not upgraded: {reason}; it goes on as it was")


def _check(task: Task, request: upgrade_pb2.UpgradeRequest) -> None:
    """Refuses what cannot be done.  Raises StatusError."""
    for path in (request.monitor, request.python, request.zygote):
        if not path.startswith("/"):
            raise StatusError(Code.INVALID_ARGUMENT, f"{path!r} is no absolute path")
    if len(os.fsencode(request.zygote)) > address.MAX_PATH_BYTES:
        text = f"{request.zygote} is too long for a socket's path"
        raise StatusError(Code.INVALID_ARGUMENT, text)
    if not os.access(request.python, os.X_OK):
        text = f"{request.python} is no program, as seen by the shim; install it there"
        raise StatusError(Code.FAILED_PRECONDITION, text)
    if not task.store.monitor_flags & WelcomeFlag.UPGRADES:
        text = "its monitor is of a version that cannot be replaced, only ended; services are new"
        raise StatusError(Code.FAILED_PRECONDITION, text)
    if any(other.handed for other in task.store.state.calls):
        raise _failure(errno.EALREADY)


def _open(path: str) -> int:
    """The new monitor.  Raises StatusError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        text = f"cannot open {path}: {error.strerror}; is pyshim installed there?"
        raise StatusError(Code.FAILED_PRECONDITION, text) from error


async def _await_zygote(request: upgrade_pb2.UpgradeRequest) -> None:
    """Starts the new version's zygote where there is none.  Raises StatusError."""
    address.ensure(request.python, request.zygote)
    deadline = time.monotonic() + ZYGOTE_TIMEOUT_S
    while not address.answers(request.zygote):
        if time.monotonic() > deadline:
            text = f"no zygote of {request.python} answers; does `-m pyshim.zygote` work there?"
            raise StatusError(Code.FAILED_PRECONDITION, text)
        await asyncio.sleep(ZYGOTE_POLL_S)
