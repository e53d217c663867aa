"""What happens when a process ends: its status, its event, those who wait for it, its streams.

Order is the contract: an exit is published after the start of the same process, and the init's
after those of its execs when it owned the pid namespace.  ``settle`` is safe to call at any time;
it does what has become due.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from pyshim.api import events_pb2, state_pb2, task_pb2
from pyshim.cgroups import locate
from pyshim.monitor.channel import Message, Type
from pyshim.service import oom, states
from pyshim.service.states import Status
from pyshim.service.store import Store
from pyshim.stdio import logger, streams, terminal

if TYPE_CHECKING:
    from pyshim.service.task import Task

# A grandchild may hold a stream open for ever; after this long Delete takes what is there.
OPEN_TIMEOUT_S = 2
# Then it takes that as long as the reader goes on; together less than the ten seconds that CRI
# has for all of a container's end.
DRAIN_TIMEOUT_S = 6


def over(store: Store, container: state_pb2.Container) -> bool:
    """Whether the container's init has exited, published or not."""
    if container.init.status == Status.STOPPED:
        return True
    record = store.records.get(container.init.pid)
    return record is not None and record.exited


def is_starting(store: Store, container: state_pb2.Container) -> bool:
    """Whether the init is being started, by the runtime or out of its fifo.

    That of the fifo is told by its call alone: a service of an earlier version, which does not know
    of it, takes the container for created, and still sees it end.
    """
    if container.init.starting:
        return True
    calls = (call.payload for call in store.state.calls if call.relay)
    return any(task_pb2.StartRequest.FromString(payload).id == container.id for payload in calls)


def settle(task: Task, container: state_pb2.Container) -> None:
    """Publishes every exit of ``container`` that is due."""
    for process in list(container.execs.values()):
        if process.status == Status.RUNNING:
            _exit(task, container, process)
    init = container.init
    if init.status not in {Status.CREATED, Status.RUNNING, Status.PAUSED}:
        return
    if not over(task.store, container) or is_starting(task.store, container):
        return
    if not container.private_pids:
        _kill_rest(task, container)
    execs = container.execs.values()
    if any(process.starting or process.status == Status.RUNNING for process in execs):
        return  # they are being killed; their exits come first
    oom.check(task, container.id)
    _exit(task, container, init)


def _kill_rest(task: Task, container: state_pb2.Container) -> None:
    """What the kernel does where the init had a pid namespace of its own, the shim does here."""
    execs = [process for process in container.execs.values() if process.status == Status.RUNNING]
    kills = [(process.pid, int(signal.SIGKILL)) for process in execs]
    # Replies are not waited for: the exits are.
    task.store.link.send(
        [Message(Type.KILL, fields, sequence=task.store.link.expect()[0]) for fields in kills]
    )
    for pid in locate.pids(dict(container.cgroups)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _exit(task: Task, container: state_pb2.Container, process: state_pb2.Process) -> None:
    record = task.store.records.get(process.pid) if process.pid else None
    if record is None or not record.exited:
        return
    states.advance(process, "exit")
    process.exit_status = record.exit_status
    process.exited_seconds, process.exited_nanos = record.seconds, record.nanos
    event = events_pb2.TaskExit(
        container_id=container.id,
        id=process.id or container.id,
        pid=process.pid,
        exit_status=process.exit_status,
    )
    event.exited_at.seconds, event.exited_at.nanos = record.seconds, record.nanos
    task.publisher.queue("/tasks/exit", event)
    messages = task.store.drop(process.keeper_tag)
    process.keeper_tag = 0
    # With the answers to those who wait for it, if anybody does.
    task.store.commit_later(*messages, *task.store.forget(process.pid))
    answer_waits(task, container.id, process)


def answer_waits(task: Task, container: str, process: state_pb2.Process) -> None:
    """Answers every Wait for ``process``."""
    reply = task_pb2.WaitResponse(exit_status=process.exit_status)
    if process.exited_seconds:
        reply.exited_at.seconds = process.exited_seconds
        reply.exited_at.nanos = process.exited_nanos
    for call in [call for call in task.store.state.calls if call.method == "Wait"]:
        try:
            request = task_pb2.WaitRequest.FromString(call.payload)
        except DecodeError:
            continue  # it will be told; nobody else may suffer from it
        if (request.id, request.exec_id) == (container, process.id):
            task.server.answer(call, reply.SerializeToString())


async def drained(task: Task, process: state_pb2.Process) -> None:
    """Waits, within a bound, until the process's output has been passed on.

    What a slow reader has not taken by then the monitor still passes on, while it takes something.
    For a reader that has gone nobody waits.
    """
    if process.failed:
        return
    store = task.store
    relays = set(process.relays)

    def over() -> bool:
        return relays <= store.ended_relays | store.unread_relays

    if await store.until(over, OPEN_TIMEOUT_S):
        return
    store.link.send([m for r in relays - store.ended_relays for m in store.stop_relay(r)])
    await store.until(over, DRAIN_TIMEOUT_S)


def release(store: Store, process: state_pb2.Process) -> list[Message]:
    """The messages that give back everything that a process held; clears it in the state."""
    messages: list[Message] = []
    for relay in [*process.relays, process.stdin_relay]:
        messages += store.stop_relay(relay)
    messages += logger.release(store, process)
    messages += store.drop(*(output.source_tag for output in process.outputs))
    messages += store.drop(process.keeper_tag, process.master_tag)
    messages += terminal.forget_console(store, process)
    if process.pid:
        messages += store.forget(process.pid)
    streams.clear(process)
    return messages
