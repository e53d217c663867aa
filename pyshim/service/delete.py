"""Delete: an exec's record, or the container with the runtime's ``delete``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pyshim.api import events_pb2, state_pb2, task_pb2
from pyshim.monitor.channel import Message
from pyshim.runtime import command, mounts
from pyshim.service import commands, exits, oom, requests, start, states
from pyshim.service.states import Status
from pyshim.stdio import logger
from pyshim.ttrpc.status import Code, StatusError

if TYPE_CHECKING:
    from pyshim.service.task import Task

# The runtime has killed it; the kernel may take a moment to tear its namespaces down.
EXIT_TIMEOUT_S = 10


async def delete(task: Task, call: state_pb2.Call) -> None:
    """The call Delete.

    It may be repeated: after a failure it goes on, after a success it has the same answer, where
    the Go shim says NOT_FOUND to a client that did not hear the first.
    """
    request = requests.decode(task_pb2.DeleteRequest, call)
    if _answered_before(task, call, request):
        return
    container = task.container(request.id)
    await start.settled(task, container, request.exec_id)
    process = task.process(request.id, request.exec_id)
    if not call.token and not process.failed:
        states.check(process, "delete")
    if not process.id:
        argv = command.delete(container)
        status, printed = await commands.run(task.store, call, argv, container.bundle)
        if status:
            text = command.failure(container, "delete", status, call.log_size, printed)
            raise StatusError(Code.UNKNOWN, text)
        await _ended(task, container)
    await exits.drained(task, process)
    await logger.ended(task.store, process)
    # Another Delete may have been here while this one waited.
    if _answered_before(task, call, request):
        return
    task.process(request.id, request.exec_id)
    task.store.remember_deleted(request.id, process)
    reply = _reply(process)
    if process.id:
        messages = _remove_exec(task, container, process)
    else:
        messages = _remove_container(task, container)
        event = events_pb2.TaskDelete(
            container_id=request.id, pid=reply.pid, exit_status=reply.exit_status
        )
        event.exited_at.CopyFrom(reply.exited_at)
        task.publisher.queue("/tasks/delete", event)
    task.server.answer(call, reply.SerializeToString(), *messages)


def _answered_before(task: Task, call: state_pb2.Call, request: task_pb2.DeleteRequest) -> bool:
    """Answers for a process that has been deleted already; whether it has."""
    known = task.store.deleted(request.id, request.exec_id)
    if known is None:
        return False
    task.server.answer(call, _reply(known).SerializeToString())
    return True


def _reply(process: state_pb2.Process | state_pb2.Deleted) -> task_pb2.DeleteResponse:
    reply = task_pb2.DeleteResponse(pid=process.pid, exit_status=process.exit_status)
    reply.exited_at.seconds = process.exited_seconds
    reply.exited_at.nanos = process.exited_nanos
    return reply


async def _ended(task: Task, container: state_pb2.Container) -> None:
    """Waits for the exit of an init that was never started: it is published before TaskDelete."""
    init = container.init
    if init.status == Status.RESTORABLE:
        return  # it never ran
    await task.store.until(lambda: init.status == Status.STOPPED, EXIT_TIMEOUT_S)


def _remove_exec(
    task: Task, container: state_pb2.Container, process: state_pb2.Process
) -> list[Message]:
    messages = exits.release(task.store, process)
    exits.answer_waits(task, container.id, process)
    start.remove_files(container, process)
    del container.execs[process.id]
    return messages


def _remove_container(task: Task, container: state_pb2.Container) -> list[Message]:
    messages: list[Message] = []
    for process in list(container.execs.values()):
        messages += _remove_exec(task, container, process)
    exits.answer_waits(task, container.id, container.init)  # of one that never ran
    messages += exits.release(task.store, container.init) + oom.ignore(task, container)
    if container.mounted:
        mounts.unmount_all(os.path.join(container.bundle, "rootfs"))
    task.store.remove(container.id)
    return messages
