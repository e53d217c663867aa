"""Runs the runtime commands of calls, through the monitor.

A command is spawned by the transaction that notes its token in the call; whoever serves when it
ends finds it by that token.  So none is lost with a service, and none runs twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pyshim.api import state_pb2
from pyshim.monitor import channel
from pyshim.monitor.channel import Message, Type, WelcomeFlag
from pyshim.monitor.fds import memfd
from pyshim.runtime import command, descendants, program
from pyshim.service.store import Record, Store
from pyshim.settings import seconds
from pyshim.stdio.streams import Streams
from pyshim.ttrpc.status import Code, StatusError, text_of

# A runtime command that has not ended by then is taken for hung.
COMMAND_TIMEOUT_S = seconds("PYSHIM_COMMAND_TIMEOUT_S", 120)
REPLY_TIMEOUT_S = 30
KILL_TIMEOUT_S = 2
GLANCE_S = 0.25

MAX_PRINTED_BYTES = 4096
# Of what a command prints so much is kept in memory; what it writes then fails, and that alone.
MAX_KEPT_BYTES = 16 << 20

Spawned = asyncio.Future[tuple[int, int]]


HINTS = {
    errno.ENOENT: "is it on PATH, and the bundle still there?",
    errno.EACCES: "is it executable?",
    errno.EAGAIN: "the shim's cgroup or user has no processes left; try again",
    errno.ENOMEM: "the host has no memory left; try again",
}


class Killed(StatusError):
    """A runtime command had to be killed at its bound: nobody knows how far it came."""


class Outcome(NamedTuple):
    """How a command has ended: its exit status, 128 + a signal, and what it printed."""

    status: int
    printed: str


def spawn(
    store: Store,
    call: state_pb2.Call,
    argv: Sequence[str],
    cwd: str,
    streams: Streams | None = None,
) -> Spawned:
    """Begins the command of ``call``, which takes over everything in ``streams``.

    Commits the state.  The future is for ``outcome``.  Raises OSError.
    """
    streams = streams or Streams()
    env = dict(store.state.env)
    # First what may fail: nothing is to wait for what was never sent.
    fds = [streams.own(memfd(channel.encode_program(cwd, argv, env))), *streams.child]
    call.token = store.new_number()
    call.log_size = command.log_size(cwd)
    sequence, reply = store.link.expect()
    flags = channel.SPAWN_DIE_WITH_MONITOR
    copy = program.copy_of(argv[0], env.get("PATH", ""))
    if copy >= 0 and store.monitor_flags & WelcomeFlag.EXECUTABLES:
        flags |= channel.SPAWN_EXECUTABLE
        fds.append(copy)
    message = Message(Type.SPAWN, (call.token, flags, 0), tuple(fds), sequence)
    store.commit(*streams.messages, message, owned=streams.sent(store))
    return reply


async def run(
    store: Store,
    call: state_pb2.Call,
    argv: Sequence[str],
    cwd: str,
    streams: Streams | None = None,
    timeout_s: float = COMMAND_TIMEOUT_S,
    *,
    undoing: bool = False,
) -> Outcome:
    """Runs the command of ``call``, unless an earlier service has begun it.

    What a command of an earlier service has printed is lost.

    Raises as ``spawn`` and ``outcome``.
    """
    spawned = None
    printed = -1
    try:
        if not call.token:
            streams = streams or Streams()
            printed = _keep_what_it_prints(streams)
            spawned = spawn(store, call, argv, cwd, streams)
        status = await outcome(store, call, spawned, argv[0], timeout_s, undoing=undoing)
        text = os.pread(printed, MAX_PRINTED_BYTES, 0).rstrip(b"\0") if printed >= 0 else b""
    finally:
        if printed >= 0:
            os.close(printed)
    return Outcome(status, text.decode(errors="replace"))


def _keep_what_it_prints(streams: Streams) -> int:
    """Directs stdout and stderr of a command into memory; that, which the caller owns."""
    if not streams.child:
        streams.child = [streams.own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))]
    printed = os.memfd_create("pyshim-printed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    kept = streams.own(os.dup(printed))
    # A hole of the final size that cannot grow: memory is used for what is written to it alone.
    os.ftruncate(printed, MAX_KEPT_BYTES)
    fcntl.fcntl(printed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    streams.child[1:] = [kept, kept]
    return printed


async def outcome(
    store: Store,
    call: state_pb2.Call,
    spawned: Spawned | None,
    runtime: str,
    timeout_s: float = COMMAND_TIMEOUT_S,
    *,
    meanwhile: Callable[[], None] | None = None,
    undoing: bool = False,
) -> int:
    """The exit status of the command of ``call``; ``spawned`` is None after a change of service.

    ``meanwhile`` is called again and again while a command takes long.  ``undoing`` is for one that
    follows on another of the same call, which may have been hung.  Raises StatusError when it
    never ran, Killed when it has not ended within the bound: with all that it had started.
    """
    if spawned is not None:
        error, pid = await _reply(spawned)
        if error:
            text = f"cannot run the OCI runtime {runtime}: {os.strerror(error)}"
            hint = HINTS.get(error, "")
            raise StatusError(Code.UNKNOWN, f"{text}{hint and f'; {hint}'}")
        store.commands[call.token] = pid
    elif call.token not in store.commands:
        raise StatusError(Code.UNAVAILABLE, "the OCI runtime did not start; try again")
    pid = store.commands[call.token]
    # What an earlier service has found hung it may not have lived to end.
    is_hung = call.timed_out and not undoing
    record = None if is_hung else await exited(store, pid, timeout_s, meanwhile)
    if record is None:
        call.timed_out = True
        store.commit()
        descendants.end(pid, store.monitor_pid)
        store.commit(Message(Type.KILL, (pid, signal.SIGKILL), sequence=store.link.expect()[0]))
        await exited(store, pid, KILL_TIMEOUT_S)
        text = f"the OCI runtime {runtime} did not end within {timeout_s:g} s and was killed"
        store.log.warning(text, method=call.method)
        raise Killed(Code.DEADLINE_EXCEEDED, text)
    return record.exit_status


async def exited(
    store: Store, pid: int, timeout_s: float, meanwhile: Callable[[], None] | None = None
) -> Record | None:
    """The record of ``pid`` once it has exited; None at the bound."""

    def ended() -> bool:
        return pid in store.records and store.records[pid].exited

    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while meanwhile is not None and loop.time() + GLANCE_S < deadline:
        if await store.until(ended, GLANCE_S):
            return store.records[pid]
        meanwhile()
    left_s = max(0, deadline - loop.time())
    return store.records[pid] if await store.until(ended, left_s) else None


async def track(store: Store, pid: int) -> None:
    """Claims ``pid``, so that its exit is reported even if it is over already.

    Raises StatusError when the monitor knows nothing of it: then there is nobody to supervise.
    """
    error = await ask(store, Type.TRACK, pid, 0)
    if error:
        text = f"process {pid}, which the OCI runtime started, has gone without a trace"
        raise StatusError(Code.UNKNOWN, f"{text}: {os.strerror(error)}")


async def unmake(
    store: Store, call: state_pb2.Call, container: state_pb2.Container, error: StatusError
) -> None:
    """Has the runtime kill and forget a container that it has made, for a call that then failed.

    The call notes ``error``: by it the next service knows what the command is for.
    """
    if not call.failure:
        call.failure, call.failure_code = error.message, error.code
        call.token = 0
    with contextlib.suppress(StatusError, OSError):
        await run(store, call, command.delete(container), container.bundle, undoing=True)


def raise_if_unmade(call: state_pb2.Call) -> None:
    """Raises the StatusError for which an earlier service began to unmake a container."""
    if call.failure:
        raise StatusError(Code(call.failure_code), call.failure)


def as_status(error: Exception, action: str) -> StatusError:
    """``error`` as the client is told of it, with the Go shim's text for the runtime's failures."""
    if isinstance(error, StatusError):
        return error
    return StatusError(Code.UNKNOWN, f"OCI runtime {action} failed: {text_of(error)}")


async def end(store: Store, pid_path: str) -> None:
    """Kills and forgets the process that a runtime has noted in the file ``pid_path``."""
    with contextlib.suppress(StatusError, OSError, ValueError):
        pid = command.read_pid(pid_path)
        await track(store, pid)
        await kill(store, pid, signal.SIGKILL)
        await exited(store, pid, REPLY_TIMEOUT_S)
        store.link.send(store.forget(pid))


async def kill(store: Store, pid: int, number: int) -> None:
    """Signals a tracked process; raises StatusError NOT_FOUND when it has ended.

    The monitor is its parent and sends nothing to what it has reaped, so no other process that got
    the same pid can be hit.
    """
    error = await ask(store, Type.KILL, pid, number)
    if error == errno.ESRCH:
        raise StatusError(Code.NOT_FOUND, "process already finished")
    if error:
        raise StatusError(Code.UNKNOWN, f"signal {number}: {os.strerror(error)}")


async def ask(store: Store, kind: Type, *fields: int) -> int:
    """Commits the state with a request to the monitor; the errno of its reply."""
    sequence, reply = store.link.expect()
    store.commit(Message(kind, fields, sequence=sequence))
    return (await _reply(reply))[0]


async def _reply(future: Spawned) -> tuple[int, int]:
    try:
        return await asyncio.wait_for(future, REPLY_TIMEOUT_S)
    except asyncio.TimeoutError:
        text = f"the monitor has not answered within {REPLY_TIMEOUT_S} s"
        raise StatusError(Code.UNAVAILABLE, text) from None
