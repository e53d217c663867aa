"""The Task service: which call is handled where, and the calls that need no module of their own.

A handler that runs a runtime command has two transactions: one spawns the command and notes its
token in the call, the other records the outcome and answers.  Run again by the next service, it
finds the token and goes on waiting; so no command runs twice.  What is done before the first is
done again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Awaitable, Callable
from functools import partial

from pyshim.api import events_pb2, options_pb2, state_pb2, task_pb2
from pyshim.cgroups import locate
from pyshim.events.publisher import Publisher
from pyshim.monitor.channel import Message
from pyshim.names import MAX_SHOWN_CHARS, is_name
from pyshim.service import control, exits, requests, states
from pyshim.service.checkpoint import checkpoint
from pyshim.service.create import create
from pyshim.service.delete import delete
from pyshim.service.server import Server
from pyshim.service.start import start
from pyshim.service.states import Status
from pyshim.service.store import Store
from pyshim.service.upgrade import CONTROL, upgrade
from pyshim.stdio import terminal
from pyshim.ttrpc.status import Code, StatusError

SERVICES = {"containerd.task.v2.Task", "containerd.task.v3.Task"}
EVENTS_TIMEOUT_S = 2


class Task:
    """Handles the calls of one group of containers.

    ``beginning`` names what this service is preparing a command for, and has not noted yet.
    """

    def __init__(self, store: Store, publisher: Publisher) -> None:
        self.store = store
        self.publisher = publisher
        self.server: Server
        self.beginning: set[str] = set()
        self._handlers: dict[str, Callable[[state_pb2.Call], Awaitable[None]]] = {
            "Create": partial(create, self),
            "Start": partial(start, self),
            "State": self.state,
            "Wait": self.wait,
            "Kill": partial(control.kill, self),
            "Pause": partial(control.pause, self),
            "Resume": partial(control.resume, self),
            "Checkpoint": partial(checkpoint, self),
            "Update": partial(control.update, self),
            "Stats": partial(control.stats, self),
            "Delete": partial(delete, self),
            "Exec": self.exec,
            "Pids": self.pids,
            "Connect": self.connect,
            "CloseIO": self.close_io,
            "Shutdown": self.shutdown,
            "ResizePty": self.resize,
        }

    async def handle(self, call: state_pb2.Call) -> None:
        """Runs ``call``; raises StatusError for the server to answer with."""
        if (call.service, call.method) == (CONTROL, "Upgrade"):
            await upgrade(self, call)
            return
        if call.service not in SERVICES:
            raise StatusError(Code.UNIMPLEMENTED, f"service {call.service}")
        handler = self._handlers.get(call.method)
        if handler is None:
            raise StatusError(Code.UNIMPLEMENTED, f"method {call.method}")
        await handler(call)

    # -- finding things ------------------------------------------------------------------------

    def container(self, name: str) -> state_pb2.Container:
        """The container ``name``; raises StatusError NOT_FOUND."""
        found = self.store.state.containers.get(name)
        if found is None or not found.created:
            raise StatusError(Code.NOT_FOUND, f"container {name!r}: container not created")
        return found

    def process(self, name: str, exec_id: str) -> state_pb2.Process:
        """The init, or the exec ``exec_id``, of a container; raises StatusError NOT_FOUND."""
        container = self.container(name)
        if not exec_id:
            return container.init
        found = container.execs.get(exec_id)
        if found is None:
            raise StatusError(Code.NOT_FOUND, f"process {exec_id!r} of {name!r} does not exist")
        return found

    # -- the calls that run nothing ------------------------------------------------------------

    async def exec(self, call: state_pb2.Call) -> None:
        """Registers an exec; Start runs it."""
        request = requests.decode(task_pb2.ExecProcessRequest, call)
        container = self.container(request.id)
        states.check(container.init, "exec")
        if request.exec_id in container.execs:
            raise StatusError(Code.ALREADY_EXISTS, f"id {request.exec_id}: already exists")
        if not is_name(request.exec_id):
            text = f"{request.exec_id[:MAX_SHOWN_CHARS]!r} cannot be an exec id"
            raise StatusError(Code.INVALID_ARGUMENT, text)
        try:
            spec = json.loads(request.spec.value)
            spec["terminal"] = request.terminal
            requests.check_environment(spec)
        except (ValueError, TypeError, RecursionError) as error:
            text = f"exec {request.exec_id}: the process spec is not JSON: {error}"
            raise StatusError(Code.INVALID_ARGUMENT, text) from error
        self.store.forget_deleted(request.id, request.exec_id)
        process = container.execs[request.exec_id]
        process.id = request.exec_id
        process.spec = json.dumps(spec).encode()
        process.terminal = request.terminal
        process.stdin, process.stdout = request.stdin, request.stdout
        process.stderr = request.stderr
        states.register(process)
        event = events_pb2.TaskExecAdded(container_id=request.id, exec_id=request.exec_id)
        self.publisher.queue("/tasks/exec-added", event)
        self.server.answer(call, b"")

    async def state(self, call: state_pb2.Call) -> None:
        """What is known of a process."""
        request = requests.decode(task_pb2.StateRequest, call)
        process = self.process(request.id, request.exec_id)
        container = self.container(request.id)
        pausing = control.is_pausing(self, request.id)
        status = states.on_the_wire(process, container.init, pausing=pausing)
        reply = task_pb2.StateResponse(
            id=process.id or request.id,
            bundle=container.bundle,
            pid=process.pid,
            status=task_pb2.Status.Name(task_pb2.Status.ValueType(status)),
            stdin=process.stdin,
            stdout=process.stdout,
            stderr=process.stderr,
            terminal=process.terminal,
            exit_status=process.exit_status,
        )
        if process.exited_seconds:
            reply.exited_at.seconds = process.exited_seconds
            reply.exited_at.nanos = process.exited_nanos
        self.server.answer(call, reply.SerializeToString())

    async def wait(self, call: state_pb2.Call) -> None:
        """Answers now if the process has exited; else whoever serves when it does."""
        request = requests.decode(task_pb2.WaitRequest, call)
        process = self.process(request.id, request.exec_id)
        if process.status == Status.STOPPED or process.failed:
            exits.answer_waits(self, request.id, process)

    async def pids(self, call: state_pb2.Call) -> None:
        """Every process in the container's cgroup; the former init's pid once it has exited.

        containerd 1.7 and later take a container without pids for leaked (spec trap 12).
        """
        request = requests.decode(task_pb2.PidsRequest, call)
        container = self.container(request.id)
        found = locate.pids(dict(container.cgroups)) or [container.init.pid]
        execs = {process.pid: process.id for process in container.execs.values()}
        reply = task_pb2.PidsResponse()
        for pid in found:
            info = reply.processes.add(pid=pid)
            if pid in execs:
                details = options_pb2.ProcessDetails(exec_id=execs[pid])
                info.info.type_url = details.DESCRIPTOR.full_name
                info.info.value = details.SerializeToString()
        self.server.answer(call, reply.SerializeToString())

    async def connect(self, call: state_pb2.Call) -> None:
        """Who we are; asked for when containerd comes back."""
        request = requests.decode(task_pb2.ConnectRequest, call)
        known = self.store.state.containers.get(request.id)
        pid = known.init.pid if known is not None else 0
        reply = task_pb2.ConnectResponse(shim_pid=self.store.monitor_pid, task_pid=pid)
        self.server.answer(call, reply.SerializeToString())

    async def close_io(self, call: state_pb2.Call) -> None:
        """Lets stdin end once the client has closed it too."""
        request = requests.decode(task_pb2.CloseIORequest, call)
        process = self.process(request.id, request.exec_id)
        messages: list[Message] = []
        if request.stdin and process.keeper_tag:
            messages = self.store.drop(process.keeper_tag)
            process.keeper_tag = 0
        self.server.answer(call, b"", *messages)

    async def resize(self, call: state_pb2.Call) -> None:
        """Sets the terminal's size; without a terminal there is nothing to do."""
        request = requests.decode(task_pb2.ResizePtyRequest, call)
        process = self.process(request.id, request.exec_id)
        if process.id:
            states.check(process, "resize")
        if max(request.width, request.height) > terminal.MAX_SIZE:
            text = f"{request.width} × {request.height} characters; at most {terminal.MAX_SIZE}"
            raise StatusError(Code.INVALID_ARGUMENT, text)
        master = self.store.held.get(process.master_tag)
        if master is not None:
            terminal.set_size(master, request.width, request.height)
        self.server.answer(call, b"")

    async def shutdown(self, call: state_pb2.Call) -> None:
        """Ends the monitor when no container is left; else does nothing, as the Go shim.

        containerd gives us three seconds.  An event that it has not taken by then, as those of the
        last Delete, keeps the monitor until it has, and ``activation`` ends it.
        """
        if self.store.state.containers or not await self._all_told():
            self.server.answer(call, b"")
            return
        self.unlink_socket()
        self.server.answer_and_quit(call)

    async def _all_told(self) -> bool:
        return await self.store.until(lambda: not self.store.state.outbox, EVENTS_TIMEOUT_S)

    def unlink_socket(self) -> None:
        """Before the monitor ends: nothing may be left where it listened.

        A socket that has another inode is that of the next monitor for the same id.
        """
        state = self.store.state
        with contextlib.suppress(FileNotFoundError):
            if state.socket_inode in {0, os.stat(state.socket).st_ino}:
                os.unlink(state.socket)
