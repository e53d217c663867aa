"""The Task service: what each call does, step by step.

A handler that runs a runtime command has two transactions: one spawns the command and notes its
token in the call, the other records the outcome and answers.  Run again by the next service, it
finds the token and goes on waiting; so no command runs twice.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Sequence

from pyshim.api import events_pb2, options_pb2, state_pb2, task_pb2
from pyshim.events.publisher import Publisher
from pyshim.monitor import channel
from pyshim.monitor.channel import Message, Type
from pyshim.runtime import command, mounts
from pyshim.service import exits, states
from pyshim.service.link import memfd
from pyshim.service.server import Server
from pyshim.service.store import Record, Store
from pyshim.stdio import streams as stdio
from pyshim.ttrpc.status import Code, StatusError

SERVICES = {"containerd.task.v2.Task", "containerd.task.v3.Task"}
# A runtime command that has not ended by then is taken for hung.
COMMAND_TIMEOUT_S = 120
TERMINAL_TIMEOUT_S = 10
EVENTS_TIMEOUT_S = 2
DEFAULT_ROOT = "/run/containerd/runc"


class Task:
    """Handles the calls of one group of containers."""

    def __init__(self, store: Store, publisher: Publisher) -> None:
        self.store = store
        self.publisher = publisher
        self.server: Server
        self.quitting = False
        self._handlers: dict[str, Callable[[state_pb2.Call], Awaitable[None]]] = {
            "Create": self.create,
            "Start": self.start,
            "State": self.state,
            "Wait": self.wait,
            "Kill": self.kill,
            "Delete": self.delete,
            "Exec": self.exec,
            "Pids": self.pids,
            "Connect": self.connect,
            "CloseIO": self.close_io,
            "Shutdown": self.shutdown,
            "ResizePty": self.resize,
        }

    async def handle(self, call: state_pb2.Call) -> None:
        """Runs ``call``; raises StatusError for the server to answer with."""
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

    # -- runtime commands ----------------------------------------------------------------------

    def spawn(
        self,
        call: state_pb2.Call,
        argv: Sequence[str],
        cwd: str,
        streams: stdio.Streams | None = None,
    ) -> asyncio.Future[tuple[int, int]]:
        """Begins the runtime command of ``call``, with everything in ``streams``."""
        streams = streams or stdio.Streams()
        program = channel.encode_program(cwd, argv, dict(self.store.state.env))
        fd = streams.own(memfd(program))
        call.token = self.store.new_number()
        sequence, reply = self.store.link.expect()
        fields = (call.token, channel.SPAWN_DIE_WITH_MONITOR, 0)
        message = Message(Type.SPAWN, fields, (fd, *streams.child), sequence)
        owned, streams.owned = streams.owned, []
        self.store.commit(*streams.messages, message, owned=owned)
        return reply

    async def outcome(
        self, call: state_pb2.Call, spawned: asyncio.Future[tuple[int, int]] | None
    ) -> int:
        """The exit status of the command of ``call``; raises StatusError when it never ran."""
        if spawned is not None:
            error, pid = await asyncio.wait_for(spawned, COMMAND_TIMEOUT_S)
            if error:
                text = f"cannot run the OCI runtime: {os.strerror(error)}; is it on PATH?"
                raise StatusError(Code.UNKNOWN, text)
            self.store.commands[call.token] = pid
        elif call.token not in self.store.commands:
            raise StatusError(Code.UNAVAILABLE, "the OCI runtime did not start; try again")
        pid = self.store.commands[call.token]
        record = await self.exited(pid, COMMAND_TIMEOUT_S)
        if record is None:
            kill = Message(Type.KILL, (pid, 9), sequence=self.store.link.expect()[0])
            self.store.commit(kill)
            text = f"the OCI runtime did not end within {COMMAND_TIMEOUT_S} s and was killed"
            raise StatusError(Code.DEADLINE_EXCEEDED, text)
        return record.exit_status

    async def exited(self, pid: int, timeout_s: float) -> Record | None:
        """The record of ``pid`` once it has exited; None at the bound."""

        def ended() -> bool:
            return pid in self.store.records and self.store.records[pid].exited

        return self.store.records[pid] if await self.until(ended, timeout_s) else None

    async def until(self, true: Callable[[], bool], timeout_s: float) -> bool:
        """Waits until ``true()``; says whether it became so within ``timeout_s``."""
        async with self.store.changed:
            try:
                await asyncio.wait_for(self.store.changed.wait_for(true), timeout_s)
            except asyncio.TimeoutError:
                return False
        return True

    async def track(self, pid: int) -> None:
        """Claims ``pid``, so that its exit is reported even if it is over already."""
        sequence, reply = self.store.link.expect()
        self.store.commit(Message(Type.TRACK, (pid, 0), sequence=sequence))
        await asyncio.wait_for(reply, COMMAND_TIMEOUT_S)

    # -- Create --------------------------------------------------------------------------------

    async def create(self, call: state_pb2.Call) -> None:
        """runc create; containerd's Go shim: service.Create."""
        request = task_pb2.CreateTaskRequest.FromString(call.payload)
        spawned = None
        if not call.token:
            spawned = await self._begin_create(call, request)
        container = self.store.state.containers[request.id]
        try:
            status = await self.outcome(call, spawned)
            if status:
                text = command.last_error(container) or f"the runtime ended with status {status}"
                raise StatusError(Code.UNKNOWN, f"OCI runtime create failed: {text}")
            await self._connect_terminal(container.init)
            pid = command.read_pid(os.path.join(container.bundle, "init.pid"))
            await self.track(pid)
        except (StatusError, OSError, ValueError) as error:
            self._undo_create(call, container, error)
            return
        container.init.pid = pid
        container.created = True
        states.register(container.init)
        stdio.remove_console(container.init)
        self.publisher.queue("/tasks/create", _created(request, pid))
        reply = task_pb2.CreateTaskResponse(pid=pid).SerializeToString()
        self.server.answer(call, reply, *self.store.drop(container.init.console_tag))
        exits.settle(self, container)

    async def _begin_create(
        self, call: state_pb2.Call, request: task_pb2.CreateTaskRequest
    ) -> asyncio.Future[tuple[int, int]]:
        known = self.store.state.containers.get(request.id)
        if known is not None and known.created:
            raise StatusError(Code.ALREADY_EXISTS, f"container {request.id!r} already exists")
        if request.checkpoint:
            raise StatusError(Code.UNIMPLEMENTED, "restore from a checkpoint")
        container = _container(request, self.store.state.namespace)
        self._write_hints(container)
        rootfs = os.path.join(request.bundle, "rootfs")
        if request.rootfs:
            mounts.unmount_all(rootfs)
            mounts.mount_all(request.rootfs, rootfs)
        try:
            if request.terminal:
                streams = stdio.console(self.store, container.init)
            else:
                streams = await stdio.pipes(self.store, container.init)
        except BaseException:
            if request.rootfs:
                mounts.unmount_all(rootfs)
            raise
        container.mounted = bool(request.rootfs)
        self.store.state.containers[request.id].CopyFrom(container)
        return self.spawn(call, command.create(container), request.bundle, streams)

    def _write_hints(self, container: state_pb2.Container) -> None:
        """`delete` finds the runtime by these two files when the shim has gone."""
        for name, text in (
            ("runtime", container.runtime),
            ("options.json", json.dumps({"root": os.path.dirname(container.root)})),
        ):
            path = os.path.join(container.bundle, name)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            with open(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
                file.write(text)

    def _undo_create(
        self, call: state_pb2.Call, container: state_pb2.Container, error: Exception
    ) -> None:
        if container.mounted:
            mounts.unmount_all(os.path.join(container.bundle, "rootfs"))
        messages = exits.release(self.store, container.init)
        del self.store.state.containers[container.id]
        if not isinstance(error, StatusError):
            error = StatusError(Code.UNKNOWN, f"OCI runtime create failed: {error}")
        self.server.fail(call, error, *messages)

    async def _connect_terminal(self, process: state_pb2.Process) -> None:
        """Takes the terminal that the runtime has sent and relays it."""
        if not process.console_tag or process.master_tag:
            return
        if not await self.until(lambda: self._console(process) > 0, TERMINAL_TIMEOUT_S):
            raise StatusError(Code.UNKNOWN, "the OCI runtime sent no terminal")
        streams = await stdio.terminal(self.store, process, self._take_master(process))
        owned, streams.owned = streams.owned, []
        self.store.commit(*streams.messages, owned=owned)

    def _console(self, process: state_pb2.Process) -> int:
        """The tag of the connection that the runtime made to the console socket, 0: none yet."""
        return self.store.parents.get(process.console_tag, 0)

    def _take_master(self, process: state_pb2.Process) -> int:
        master = stdio.peek_terminal(self.store.held[self._console(process)])
        if master < 0:
            raise StatusError(Code.UNKNOWN, "the OCI runtime connected but sent no terminal")
        return master

    # -- Start ---------------------------------------------------------------------------------

    async def start(self, call: state_pb2.Call) -> None:
        """Starts the init, or an exec."""
        request = task_pb2.StartRequest.FromString(call.payload)
        container = self.container(request.id)
        process = self.process(request.id, request.exec_id)
        if request.exec_id:
            await self._start_exec(call, container, process)
        else:
            await self._start_init(call, container)

    async def _start_init(self, call: state_pb2.Call, container: state_pb2.Container) -> None:
        process = container.init
        spawned = None
        if not call.token:
            states.check(process, "start")
            process.starting = True
            spawned = self.spawn(call, command.start(container), container.bundle)
        try:
            status = await self.outcome(call, spawned)
        finally:
            process.starting = False
        if status:
            text = command.last_error(container) or f"the runtime ended with status {status}"
            failure = StatusError(Code.UNKNOWN, f"OCI runtime start failed: {text}")
            self.server.fail(call, failure)
            exits.settle(self, container)
            return
        states.advance(process, "start")
        event = events_pb2.TaskStart(container_id=container.id, pid=process.pid)
        self.publisher.queue("/tasks/start", event)
        self.server.answer(call, task_pb2.StartResponse(pid=process.pid).SerializeToString())
        exits.settle(self, container)

    async def _start_exec(
        self, call: state_pb2.Call, container: state_pb2.Container, process: state_pb2.Process
    ) -> None:
        spawned = None
        if not call.token:
            spawned = await self._begin_exec(call, container, process)
        try:
            status = await self.outcome(call, spawned)
            if status:
                text = command.last_error(container) or f"the runtime ended with status {status}"
                raise StatusError(Code.UNKNOWN, f"OCI runtime exec failed: {text}")
            await self._connect_terminal(process)
            pid = command.read_pid(command.exec_pid_path(container, process))
            await self.track(pid)
        except (StatusError, OSError, ValueError) as error:
            if not isinstance(error, StatusError):
                error = StatusError(Code.UNKNOWN, f"OCI runtime exec failed: {error}")
            process.starting = False
            process.failed = True
            messages = exits.release(self.store, process)
            self.server.fail(call, error, *messages)
            exits.answer_waits(self, container.id, process)
            exits.settle(self, container)
            return
        process.pid = pid
        process.starting = False
        states.advance(process, "start")
        self._remove_spec(container, process)
        stdio.remove_console(process)
        event = events_pb2.TaskExecStarted(
            container_id=container.id, exec_id=process.id, pid=process.pid
        )
        self.publisher.queue("/tasks/exec-started", event)
        reply = task_pb2.StartResponse(pid=pid).SerializeToString()
        self.server.answer(call, reply, *self.store.drop(process.console_tag))
        exits.settle(self, container)

    async def _begin_exec(
        self, call: state_pb2.Call, container: state_pb2.Container, process: state_pb2.Process
    ) -> asyncio.Future[tuple[int, int]]:
        states.check(process, "start")
        if container.init.status == states.Status.STOPPED or exits.over(self.store, container):
            raise StatusError(Code.FAILED_PRECONDITION, "the container's init has exited")
        if process.starting or process.failed:
            raise StatusError(Code.FAILED_PRECONDITION, f"process {process.id!r} was started once")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        path = command.exec_spec_path(container, process)
        with open(os.open(path, flags, 0o600), "wb") as file:
            file.write(process.spec)
        process.starting = True
        try:
            if process.terminal:
                streams = stdio.console(self.store, process)
            else:
                streams = await stdio.pipes(self.store, process)
        except BaseException:
            process.starting = False
            raise
        return self.spawn(call, command.execute(container, process), container.bundle, streams)

    def _remove_spec(self, container: state_pb2.Container, process: state_pb2.Process) -> None:
        for path in (
            command.exec_spec_path(container, process),
            command.exec_pid_path(container, process),
        ):
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue

    # -- the calls that run nothing ------------------------------------------------------------

    async def exec(self, call: state_pb2.Call) -> None:
        """Registers an exec; Start runs it."""
        request = task_pb2.ExecProcessRequest.FromString(call.payload)
        container = self.container(request.id)
        states.check(container.init, "exec")
        if request.exec_id in container.execs:
            raise StatusError(Code.ALREADY_EXISTS, f"id {request.exec_id}: already exists")
        if not request.exec_id or "/" in request.exec_id or "\0" in request.exec_id:
            raise StatusError(Code.INVALID_ARGUMENT, f"{request.exec_id!r} cannot be an exec id")
        try:
            spec = json.loads(request.spec.value)
            spec["terminal"] = request.terminal
        except (ValueError, TypeError) as error:
            text = f"exec {request.exec_id}: the process spec is not JSON: {error}"
            raise StatusError(Code.INVALID_ARGUMENT, text) from error
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
        request = task_pb2.StateRequest.FromString(call.payload)
        process = self.process(request.id, request.exec_id)
        reply = task_pb2.StateResponse(
            id=process.id or request.id,
            bundle=self.container(request.id).bundle,
            pid=process.pid,
            status=task_pb2.Status.Name(task_pb2.Status.ValueType(process.status)),
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
        request = task_pb2.WaitRequest.FromString(call.payload)
        process = self.process(request.id, request.exec_id)
        if process.status == states.Status.STOPPED or process.failed:
            exits.answer_waits(self, request.id, process)

    async def kill(self, call: state_pb2.Call) -> None:
        """Signals one process, or with ``all`` every process of the container."""
        request = task_pb2.KillRequest.FromString(call.payload)
        container = self.container(request.id)
        process = self.process(request.id, request.exec_id)
        states.check(process, "kill")
        if request.all and not request.exec_id:
            spawned = None
            if not call.token:
                argv = command.kill_all(container, request.signal)
                spawned = self.spawn(call, argv, container.bundle)
            status = await self.outcome(call, spawned)
            if status:
                text = command.last_error(container)
                raise StatusError(_kill_code(text), text or f"runtime kill: status {status}")
            self.server.answer(call, b"")
            return
        sequence, reply = self.store.link.expect()
        self.store.commit(Message(Type.KILL, (process.pid, request.signal), sequence=sequence))
        error, _ = await asyncio.wait_for(reply, COMMAND_TIMEOUT_S)
        if error:
            code = Code.NOT_FOUND if error == 3 else Code.UNKNOWN
            text = "process already finished" if error == 3 else os.strerror(error)
            raise StatusError(code, text)
        self.server.answer(call, b"")

    async def pids(self, call: state_pb2.Call) -> None:
        """Every process in the container's cgroup; the former init's pid once it has exited.

        containerd 1.7 and later take a container without pids for leaked (spec trap 12).
        """
        request = task_pb2.PidsRequest.FromString(call.payload)
        container = self.container(request.id)
        found = exits.cgroup_pids(container.init.pid) or [container.init.pid]
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
        request = task_pb2.ConnectRequest.FromString(call.payload)
        known = self.store.state.containers.get(request.id)
        pid = known.init.pid if known is not None else 0
        reply = task_pb2.ConnectResponse(shim_pid=self.store.monitor_pid, task_pid=pid)
        self.server.answer(call, reply.SerializeToString())

    async def close_io(self, call: state_pb2.Call) -> None:
        """Lets stdin end once the client has closed it too."""
        request = task_pb2.CloseIORequest.FromString(call.payload)
        process = self.process(request.id, request.exec_id)
        messages: list[Message] = []
        if request.stdin and process.keeper_tag:
            messages = self.store.drop(process.keeper_tag)
            process.keeper_tag = 0
        self.server.answer(call, b"", *messages)

    async def resize(self, call: state_pb2.Call) -> None:
        """Sets the terminal's size; without a terminal there is nothing to do."""
        request = task_pb2.ResizePtyRequest.FromString(call.payload)
        process = self.process(request.id, request.exec_id)
        master = self.store.held.get(process.master_tag)
        if master is not None:
            exits.set_size(master, request.width, request.height)
        self.server.answer(call, b"")

    async def delete(self, call: state_pb2.Call) -> None:
        """Removes an exec, or the container from the runtime."""
        request = task_pb2.DeleteRequest.FromString(call.payload)
        container = self.container(request.id)
        process = self.process(request.id, request.exec_id)
        spawned = None
        if not call.token:
            if not process.failed:
                states.check(process, "delete")
            if not process.id:
                spawned = self.spawn(call, command.delete(container), container.bundle)
        if not process.id:
            status = await self.outcome(call, spawned)
            if status:
                text = command.last_error(container)
                raise StatusError(Code.UNKNOWN, f"OCI runtime delete failed: {text or status}")
        await exits.drained(self, process)
        reply = task_pb2.DeleteResponse(pid=process.pid, exit_status=process.exit_status)
        reply.exited_at.seconds = process.exited_seconds
        reply.exited_at.nanos = process.exited_nanos
        messages = exits.release(self.store, process)
        if process.id:
            self._remove_spec(container, process)
            del container.execs[process.id]
        else:
            messages += self._remove_container(container)
            event = events_pb2.TaskDelete(
                container_id=request.id, pid=reply.pid, exit_status=reply.exit_status
            )
            event.exited_at.CopyFrom(reply.exited_at)
            self.publisher.queue("/tasks/delete", event)
        self.server.answer(call, reply.SerializeToString(), *messages)

    def _remove_container(self, container: state_pb2.Container) -> list[Message]:
        if container.mounted:
            mounts.unmount_all(os.path.join(container.bundle, "rootfs"))
        messages: list[Message] = []
        for process in container.execs.values():
            messages += exits.release(self.store, process)
        del self.store.state.containers[container.id]
        return messages

    async def shutdown(self, call: state_pb2.Call) -> None:
        """Ends the monitor when no container is left; else does nothing, as the Go shim."""
        if self.store.state.containers:
            self.server.answer(call, b"")
            return
        # The event of the last Delete may still be on its way; containerd gives us three seconds.
        await self.until(lambda: not self.store.state.outbox, EVENTS_TIMEOUT_S)
        self.unlink_socket()
        self.server.answer_and_quit(call)

    def unlink_socket(self) -> None:
        """Before the monitor ends: nothing may be left where it listened."""
        try:
            os.unlink(self.store.state.socket)
        except FileNotFoundError:
            return


def _created(request: task_pb2.CreateTaskRequest, pid: int) -> events_pb2.TaskCreate:
    event = events_pb2.TaskCreate(container_id=request.id, bundle=request.bundle, pid=pid)
    event.rootfs.extend(request.rootfs)
    event.io.stdin, event.io.stdout = request.stdin, request.stdout
    event.io.stderr, event.io.terminal = request.stderr, request.terminal
    return event


def _kill_code(text: str) -> Code:
    """The code of a runtime's kill that failed, by its text as the Go shim does."""
    gone = (
        "process already finished",
        "container not running",
        "no such process",
        "does not exist",
    )
    return Code.NOT_FOUND if any(phrase in text.lower() for phrase in gone) else Code.UNKNOWN


def _container(request: task_pb2.CreateTaskRequest, namespace: str) -> state_pb2.Container:
    """A new container's record, from its request, its options and its config.json."""
    container = state_pb2.Container(id=request.id, bundle=request.bundle, runtime="runc")
    root = DEFAULT_ROOT
    if request.options.type_url.rpartition("/")[2] == "containerd.runc.v1.Options":
        options = options_pb2.Options.FromString(request.options.value)
        container.runtime = options.binary_name or container.runtime
        root = options.root or root
        container.systemd_cgroup = options.systemd_cgroup
        container.no_pivot_root = options.no_pivot_root
        container.no_new_keyring = options.no_new_keyring
    container.root = os.path.join(root, namespace)
    path = os.path.join(request.bundle, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            linux = json.load(file).get("linux") or {}
    except (OSError, ValueError) as error:
        raise StatusError(Code.INVALID_ARGUMENT, f"{path}: {error}") from error
    spaces = linux.get("namespaces") or []
    container.private_pids = any(s.get("type") == "pid" and not s.get("path") for s in spaces)
    if str(linux.get("cgroupsPath", "")).count(":") == 2:
        # Only the systemd driver's paths have the form slice:prefix:name; docker sends no options.
        container.systemd_cgroup = True
    container.init.stdin, container.init.stdout = request.stdin, request.stdout
    container.init.stderr, container.init.terminal = request.stderr, request.terminal
    return container
