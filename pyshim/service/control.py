"""The calls that act on a container's processes as a whole: Kill, Pause, Resume, Update, Stats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyshim.api import events_pb2, state_pb2, task_pb2
from pyshim.cgroups import files, locate, v1, v2
from pyshim.monitor.fds import memfd
from pyshim.runtime import command
from pyshim.service import commands, exits, requests, start, states
from pyshim.service.states import Status
from pyshim.stdio.streams import Streams
from pyshim.ttrpc.status import Code, StatusError

if TYPE_CHECKING:
    from pyshim.service.task import Task

LAST_SIGNAL = 64
GONE_TEXTS = (
    "process already finished",
    "container not running",
    "no such process",
    "does not exist",
)


async def kill(task: Task, call: state_pb2.Call) -> None:
    """The call Kill: one process, or with ``all`` every process of the container."""
    if call.signalled:
        # By a service that did not live to hear of it.  Once is enough, and who has died of it is
        # no error.
        task.server.answer(call, b"")
        return
    request = requests.decode(task_pb2.KillRequest, call)
    container = task.container(request.id)
    if request.exec_id:
        await start.settled(task, container, request.exec_id)
    process = task.process(request.id, request.exec_id)
    if not call.token:
        states.check(process, "kill")
    if request.signal > LAST_SIGNAL:
        raise StatusError(Code.UNKNOWN, f"signal {request.signal}: Invalid argument")
    everyone = request.all and not process.id
    if everyone or (not process.id and _is_frozen(container)) or call.token:
        argv = command.kill(container, request.signal, everyone=everyone)
        await _run(task, call, container, argv, "kill")
    else:
        call.signalled = True
        await commands.kill(task.store, process.pid, request.signal)
    task.server.answer(call, b"")


def _is_frozen(container: state_pb2.Container) -> bool:
    """What is frozen by cgroup v1 does not even die of SIGKILL; the runtime knows how to do it.

    It may be so without our having heard: its pause has hung, or somebody else did it.
    """
    if container.init.status == Status.PAUSED:
        return True
    folder = dict(container.cgroups).get("freezer", "")
    return bool(folder) and files.text(folder, "freezer.state") in {"FREEZING", "FROZEN"}


async def pause(task: Task, call: state_pb2.Call) -> None:
    """The call Pause."""
    container = task.container(requests.decode(task_pb2.PauseRequest, call).id)
    await _change(task, call, container, "pause", command.pause(container))
    event = events_pb2.TaskPaused(container_id=container.id)
    task.publisher.queue("/tasks/paused", event)
    task.server.answer(call, b"")


def is_pausing(task: Task, name: str) -> bool:
    """Whether the runtime is pausing the container ``name`` just now."""
    calls = (c for c in task.store.state.calls if c.method == "Pause" and c.token)
    return any(task_pb2.PauseRequest.FromString(call.payload).id == name for call in calls)


async def resume(task: Task, call: state_pb2.Call) -> None:
    """The call Resume."""
    container = task.container(requests.decode(task_pb2.ResumeRequest, call).id)
    await _change(task, call, container, "resume", command.resume(container))
    event = events_pb2.TaskResumed(container_id=container.id)
    task.publisher.queue("/tasks/resumed", event)
    task.server.answer(call, b"")


async def update(task: Task, call: state_pb2.Call) -> None:
    """The call Update: the resources are the runtime-spec's LinuxResources as JSON."""
    request = requests.decode(task_pb2.UpdateTaskRequest, call)
    container = task.container(request.id)
    streams = Streams()
    if not call.token:
        states.check(container.init, "update")
        streams.child = [streams.own(memfd(request.resources.value))]
    await _run(task, call, container, command.update(container), "update", streams)
    task.server.answer(call, b"")


async def stats(task: Task, call: state_pb2.Call) -> None:
    """The call Stats: the metrics of the container's control group."""
    container = task.container(requests.decode(task_pb2.StatsRequest, call).id)
    groups = dict(container.cgroups)
    if not groups or exits.over(task.store, container):
        raise StatusError(Code.NOT_FOUND, "cgroup does not exist")
    reply = task_pb2.StatsResponse()
    found = (
        v2.metrics(groups[locate.UNIFIED], container.init.pid)
        if locate.UNIFIED in groups
        else v1.metrics(groups, container.init.pid)
    )
    reply.stats.type_url = found.DESCRIPTOR.full_name
    reply.stats.value = found.SerializeToString()
    task.server.answer(call, reply.SerializeToString())


async def _run(
    task: Task,
    call: state_pb2.Call,
    container: state_pb2.Container,
    argv: Sequence[str],
    action: str,
    streams: Streams | None = None,
) -> None:
    """Runs the runtime's command of ``call`` to its end; raises StatusError when it fails."""
    status, printed = await commands.run(task.store, call, argv, container.bundle, streams)
    if status:
        why = (status, call.log_size, printed)
        if action in {"pause", "resume"}:
            raise StatusError(Code.UNKNOWN, command.failure(container, action, *why))
        # The Go shim passes these two on as they are.
        text = command.reason(container, *why)
        gone = any(phrase in text.lower() for phrase in GONE_TEXTS)
        code = Code.NOT_FOUND if gone and action == "kill" else Code.UNKNOWN
        raise StatusError(code, text)


async def _change(
    task: Task,
    call: state_pb2.Call,
    container: state_pb2.Container,
    action: str,
    argv: Sequence[str],
) -> None:
    """Runs ``argv`` where the init's state allows ``action``; advances it, unless it has exited."""
    if not call.token:
        states.check(container.init, action)
    await _run(task, call, container, argv, action)
    if not exits.over(task.store, container):
        states.advance(container.init, action)
