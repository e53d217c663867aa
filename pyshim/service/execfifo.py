"""Start without the runtime: lets an init out of the fifo in which runc's `create` left it.

There it waits in open(2) until somebody reads.  All that `runc start` does is to see whether it
still waits, to read until the user's program has been executed (which closes the init's end), to
remove the fifo, and, since runc 1.3, to run the hooks of "poststart".  A program of many megabytes
that starts and ends for this alone is an eighth of the time of a short container.

The reader is a relay of the monitor to /dev/null: with a reader of ours the init would die with us.
"""

from __future__ import annotations

import contextlib
import os

from pyshim.api import state_pb2
from pyshim.monitor.channel import Message, RelayFlag, Type
from pyshim.runtime import program
from pyshim.service import commands
from pyshim.service.store import Store
from pyshim.stdio import streams
from pyshim.ttrpc.status import Code, StatusError

NAME = "exec.fifo"  # below the runtime's --root, in the container's folder


def is_enough(store: Store, container: state_pb2.Container) -> bool:
    """Whether the runtime's `start` would do nothing else, as far as that can be known."""
    env = store.state.env
    return (
        container.plain_start
        and not env.get("NOTIFY_SOCKET")  # sd_notify(3): runc passes on what the container says
        and program.is_runc(container.runtime, env.get("PATH", ""))
    )


async def release(store: Store, call: state_pb2.Call, container: state_pb2.Container) -> bool:
    """Lets the init go on, unless an earlier service has; whether it has gone on.

    One that has not has ended, or never waited there: the runtime has the words for that.
    ``call`` has the number of the relay, by which others see that the init is being started.
    Raises StatusError when it does neither within the bound of a command.
    """
    path = os.path.join(container.root, container.id, NAME)
    if not call.timed_out and not await _read(store, call, container, path):
        return False
    if call.timed_out:
        text = f"the container's init has not gone on within {commands.COMMAND_TIMEOUT_S:g} s"
        raise StatusError(Code.DEADLINE_EXCEEDED, text)
    if not store.moved.get(call.relay):
        return False
    with contextlib.suppress(OSError):
        os.unlink(path)
    return True


async def _read(
    store: Store, call: state_pb2.Call, container: state_pb2.Container, path: str
) -> bool:
    """Has the monitor read until the init has gone on or ended; false when there is no fifo."""
    sequence, refused = store.link.expect()

    def over() -> bool:
        return call.relay in store.ended_relays

    def settled() -> bool:
        record = store.records.get(container.init.pid)
        return over() or refused.done() or (record is not None and record.exited)

    try:
        # One that an earlier service has begun is in the dump, whatever has become of it.
        if call.relay not in store.relays and not _begin(store, call.relay, sequence, path):
            return False
        is_settled = await store.until(settled, commands.COMMAND_TIMEOUT_S)
        if not over() and not refused.done():
            # What an init has written that has ended meanwhile is there already.
            call.timed_out = not is_settled
            store.commit(*store.stop_relay(call.relay))
            await store.until(over, commands.KILL_TIMEOUT_S)
    finally:
        store.link.forget(sequence)
    return True


def _begin(store: Store, relay: int, sequence: int, path: str) -> bool:
    """Has the monitor read from the fifo; false when there is none."""
    with contextlib.ExitStack() as kept:
        try:
            fifo = streams.handle(path)
            kept.callback(os.close, fifo)
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            return False
        kept.callback(os.close, null)
        if not streams.is_fifo(fifo):
            return False
        fields = (relay, int(RelayFlag.OPEN_SOURCE))
        store.commit(Message(Type.RELAY, fields, (fifo, null), sequence))
    return True
