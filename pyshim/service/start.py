"""Start: the runtime's ``start`` for a container's init, ``exec`` for an exec, or ``restore``."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from typing import TYPE_CHECKING

from pyshim.api import events_pb2, state_pb2, task_pb2
from pyshim.cgroups import locate
from pyshim.runtime import command
from pyshim.service import commands, execfifo, exits, oom, requests, states
from pyshim.service.bundle import write_file
from pyshim.service.states import Status
from pyshim.stdio import streams, terminal
from pyshim.ttrpc.status import Code, StatusError

if TYPE_CHECKING:
    from pyshim.service.task import Task

# Longer than a runtime command may take.
SETTLED_TIMEOUT_S = commands.COMMAND_TIMEOUT_S + 10


async def start(task: Task, call: state_pb2.Call) -> None:
    """The call Start.  A failure has the text of the Go shim."""
    request = requests.decode(task_pb2.StartRequest, call)
    container = task.container(request.id)
    process = task.process(request.id, request.exec_id)
    if request.exec_id or process.status == Status.RESTORABLE:
        await _launch(task, call, container, process)
    else:
        await _start_init(task, call, container)


async def _start_init(task: Task, call: state_pb2.Call, container: state_pb2.Container) -> None:
    process = container.init
    if not call.token and not call.relay:
        states.check(process, "start")
        if exits.is_starting(task.store, container):
            raise StatusError(Code.FAILED_PRECONDITION, "the container is being started")
        if execfifo.is_enough(task.store, container):
            call.relay = task.store.new_relay()
    try:
        outcome = await _let_go_on(task, call, container)
    except StatusError as error:
        process.starting = False
        task.server.fail(call, error, *task.store.stop_relay(call.relay))
        exits.settle(task, container)  # it may have ended meanwhile
        return
    finally:
        process.starting = False
    over = task.store.stop_relay(call.relay)
    if outcome.status:
        text = command.failure(container, "start", outcome.status, call.log_size, outcome.printed)
        task.server.fail(call, StatusError(Code.UNKNOWN, text), *over)
    else:
        states.advance(process, "start")
        event = events_pb2.TaskStart(container_id=container.id, pid=process.pid)
        task.publisher.queue("/tasks/start", event)
        reply = task_pb2.StartResponse(pid=process.pid).SerializeToString()
        task.server.answer(call, reply, *over)
    exits.settle(task, container)


async def _let_go_on(
    task: Task, call: state_pb2.Call, container: state_pb2.Container
) -> commands.Outcome:
    """Has the init execute the user's program, by the runtime where it is not enough to read."""
    store = task.store
    if call.relay and not call.token and await execfifo.release(store, call, container):
        return commands.Outcome(0, "")
    container.init.starting = True
    return await commands.run(store, call, command.start(container), container.bundle)


async def _launch(
    task: Task, call: state_pb2.Call, container: state_pb2.Container, process: state_pb2.Process
) -> None:
    """Has the runtime make a process: an exec, or the init of a checkpoint that is restored."""
    store = task.store
    spawned = None
    if not call.token:
        spawned = await _begin(task, call, container, process)
    made = bool(call.failure)
    try:
        commands.raise_if_unmade(call)
        full = partial(streams.relieve, store, call, process)
        status = await commands.outcome(store, call, spawned, container.runtime, meanwhile=full)
        if status:
            printed = streams.printed(store, process)
            text = command.failure(container, _action(process), status, call.log_size, printed)
            raise StatusError(Code.UNKNOWN, text)
        made = True
        streams.connect(store, call, process)
        await terminal.connect(store, call, container.id, process)
        pid = command.read_pid(command.pid_path(container, process))
        await commands.track(store, pid)
    except (StatusError, OSError, ValueError) as raised:
        error = commands.as_status(raised, _action(process))
        made = made or isinstance(raised, commands.Killed)
        if made and process.id:
            await commands.end(store, command.pid_path(container, process))
        elif made:
            await commands.unmake(store, call, container, error)
        _fail(task, call, container, process, error)
        return
    process.pid = pid
    process.starting = False
    states.advance(process, "start")
    messages = terminal.forget_console(store, process)
    if process.id:
        event = events_pb2.TaskExecStarted(container_id=container.id, exec_id=process.id, pid=pid)
        task.publisher.queue("/tasks/exec-started", event)
    else:
        container.cgroups.update(locate.apart(pid, store.monitor_pid))
        messages += oom.watch(task, container)
        task.publisher.queue(
            "/tasks/start", events_pb2.TaskStart(container_id=container.id, pid=pid)
        )
    task.server.answer(call, task_pb2.StartResponse(pid=pid).SerializeToString(), *messages)
    if process.id:
        # Not before the answer: a service that takes the call over reads the pid again.
        remove_files(container, process)
    exits.settle(task, container)


async def settled(task: Task, container: state_pb2.Container, exec_id: str) -> None:
    """Waits for a Start that is under way: what becomes of the process is not known before.

    As in the Go shim, whose Start holds the process.  Raises StatusError UNAVAILABLE at the bound.
    """

    def over() -> bool:
        if not exec_id and exits.is_starting(task.store, container):
            return False
        process = container.execs.get(exec_id) if exec_id else container.init
        key = f"{container.id}/{exec_id}"
        return key not in task.beginning and (process is None or not process.starting)

    if not await task.store.until(over, SETTLED_TIMEOUT_S):
        raise StatusError(Code.UNAVAILABLE, "the process is still being started; try again")


def _action(process: state_pb2.Process) -> str:
    return "exec" if process.id else "restore"


def _fail(
    task: Task,
    call: state_pb2.Call,
    container: state_pb2.Container,
    process: state_pb2.Process,
    error: StatusError,
) -> None:
    """Nothing has ever run; those who wait for an exec learn it, a restore may be tried again."""
    process.starting = False
    process.failed = bool(process.id)
    task.server.fail(call, error, *exits.release(task.store, process))
    if process.id:
        remove_files(container, process)
        exits.answer_waits(task, container.id, process)
    exits.settle(task, container)


async def _begin(
    task: Task, call: state_pb2.Call, container: state_pb2.Container, process: state_pb2.Process
) -> commands.Spawned:
    store = task.store
    states.check(process, "start")
    if process.id and exits.over(store, container):
        raise StatusError(Code.FAILED_PRECONDITION, "the container's init has exited")
    key = f"{container.id}/{process.id}"
    if process.starting or process.failed or key in task.beginning:
        name = process.id or container.id
        raise StatusError(Code.FAILED_PRECONDITION, f"process {name!r} was started once")
    task.beginning.add(key)
    try:
        if process.id:
            write_file(command.exec_spec_path(container, process), process.spec)
        if process.terminal:
            opened = terminal.console(store, container.bundle, process)
        else:
            opened = await streams.pipes(store, call, container, process)
        process.starting = True
        argv = command.execute(container, process) if process.id else command.restore(container)
        return commands.spawn(store, call, argv, container.bundle, opened)
    except BaseException:
        process.starting = False
        if process.id:
            remove_files(container, process)
        raise
    finally:
        task.beginning.discard(key)


def remove_files(container: state_pb2.Container, process: state_pb2.Process) -> None:
    """Removes what an exec left in the bundle for the runtime, and the runtime for us."""
    for path in (
        command.exec_spec_path(container, process),
        *command.pid_drafts(command.exec_pid_path(container, process)),
    ):
        # In a bundle that has become read-only they stay; the exec has its answer all the same.
        with contextlib.suppress(OSError):
            os.unlink(path)
