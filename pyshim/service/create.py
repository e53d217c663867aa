"""Create: a container's record, its mounts and streams, and the runtime's ``create``."""

from __future__ import annotations

import contextlib
import json
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from pyshim.api import events_pb2, state_pb2, task_pb2
from pyshim.cgroups import locate
from pyshim.names import MAX_SHOWN_CHARS, is_name
from pyshim.runtime import command, mounts, options
from pyshim.service import commands, exits, oom, requests, states
from pyshim.service.bundle import write_file
from pyshim.stdio import streams, terminal
from pyshim.ttrpc.status import Code, StatusError

if TYPE_CHECKING:
    from pyshim.service.task import Task


async def create(task: Task, call: state_pb2.Call) -> None:
    """The call Create: afterwards the container's init waits for Start.

    A failure has the text of the Go shim and leaves no mount, stream or record.
    """
    store = task.store
    request = requests.decode(task_pb2.CreateTaskRequest, call)
    if not call.token:
        _check_names(request)
    if request.checkpoint:
        _create_restorable(task, call, request)
        return
    spawned = None
    if not call.token:
        spawned = await _begin(task, call, request)
    container = store.state.containers[request.id]
    made = bool(call.failure)
    try:
        commands.raise_if_unmade(call)
        full = partial(streams.relieve, store, call, container.init)
        status = await commands.outcome(store, call, spawned, container.runtime, meanwhile=full)
        if status:
            printed = streams.printed(store, container.init)
            text = command.failure(container, "create", status, call.log_size, printed)
            raise StatusError(Code.UNKNOWN, text)
        made = True
        streams.connect(store, call, container.init)
        await terminal.connect(store, call, container.id, container.init)
        pid = command.read_pid(os.path.join(container.bundle, command.INIT_PID_FILE))
        await commands.track(store, pid)
    except (StatusError, OSError, ValueError) as raised:
        error = commands.as_status(raised, "create")
        if made or isinstance(raised, commands.Killed):
            await commands.unmake(store, call, container, error)
        _undo(task, call, container, error)
        return
    container.init.pid = pid
    container.cgroups.update(locate.apart(pid, store.monitor_pid))
    if locate.UNIFIED in container.cgroups:
        locate.enable_controllers(container.cgroups[locate.UNIFIED])
    container.created = True
    store.forget_deleted(container.id)
    states.register(container.init)
    messages = terminal.forget_console(store, container.init) + oom.watch(task, container)
    task.publisher.queue("/tasks/create", _event(request, pid))
    reply = task_pb2.CreateTaskResponse(pid=pid).SerializeToString()
    task.server.answer(call, reply, *messages)
    exits.settle(task, container)


async def _begin(
    task: Task, call: state_pb2.Call, request: task_pb2.CreateTaskRequest
) -> commands.Spawned:
    """Nothing of a container is in the state before its command is."""
    store = task.store
    _check_new(task, request.id)
    container = _record(request, store.state.namespace)
    task.beginning.add(request.id)
    try:
        _write_hints(container)
        _mount(container, request)
        if request.terminal:
            opened = terminal.console(store, container.bundle, container.init)
        else:
            opened = await streams.pipes(store, call, container, container.init)
        store.state.containers[request.id].CopyFrom(container)
        return commands.spawn(store, call, command.create(container), request.bundle, opened)
    except BaseException:
        if container.mounted:
            mounts.unmount_all(_rootfs(container))
        store.state.containers.pop(request.id, None)
        raise
    finally:
        task.beginning.discard(request.id)


def _create_restorable(
    task: Task, call: state_pb2.Call, request: task_pb2.CreateTaskRequest
) -> None:
    """From a checkpoint nothing runs yet: Start restores it (as in the Go shim, with pid 0)."""
    store = task.store
    _check_new(task, request.id)
    container = _record(request, store.state.namespace)
    _write_hints(container)
    _mount(container, request)
    container.checkpoint = request.checkpoint
    container.created = True
    states.register(container.init, restorable=True)
    store.forget_deleted(container.id)
    store.state.containers[request.id].CopyFrom(container)
    task.publisher.queue("/tasks/create", _event(request, 0))
    task.server.answer(call, task_pb2.CreateTaskResponse().SerializeToString())


def _check_names(request: task_pb2.CreateTaskRequest) -> None:
    """What files are named after must not lead anywhere else.  Raises StatusError."""
    if not is_name(request.id):
        text = f"{request.id[:MAX_SHOWN_CHARS]!r} cannot be a container id"
        raise StatusError(Code.INVALID_ARGUMENT, text)
    bundle = request.bundle
    if not bundle.startswith("/"):
        text = f"bundle {bundle[:MAX_SHOWN_CHARS]!r}: give the absolute path of a folder"
        raise StatusError(Code.INVALID_ARGUMENT, text)


def _check_new(task: Task, name: str) -> None:
    if name in task.store.state.containers or name in task.beginning:
        raise StatusError(Code.ALREADY_EXISTS, f"container {name!r} already exists")


def _mount(container: state_pb2.Container, request: task_pb2.CreateTaskRequest) -> None:
    if request.rootfs:
        mounts.unmount_all(_rootfs(container))  # by a service that was killed here
        mounts.mount_all(request.rootfs, _rootfs(container))
        container.mounted = True


def _rootfs(container: state_pb2.Container) -> str:
    return os.path.join(container.bundle, "rootfs")


def _write_hints(container: state_pb2.Container) -> None:
    """`delete` finds the runtime by these two files when the shim has gone."""
    for name, text in (
        ("runtime", container.runtime),
        ("options.json", json.dumps({"root": os.path.dirname(container.root)})),
    ):
        write_file(os.path.join(container.bundle, name), text.encode())


def _undo(
    task: Task, call: state_pb2.Call, container: state_pb2.Container, error: StatusError
) -> None:
    if container.mounted:
        mounts.unmount_all(_rootfs(container))
    for path in command.pid_drafts(command.pid_path(container, container.init)):
        with contextlib.suppress(OSError):
            os.unlink(path)
    messages = exits.release(task.store, container.init)
    task.store.remove(container.id)
    task.server.fail(call, error, *messages)


def _event(request: task_pb2.CreateTaskRequest, pid: int) -> events_pb2.TaskCreate:
    event = events_pb2.TaskCreate(
        container_id=request.id, bundle=request.bundle, pid=pid, checkpoint=request.checkpoint
    )
    event.rootfs.extend(request.rootfs)
    event.io.stdin, event.io.stdout = request.stdin, request.stdout
    event.io.stderr, event.io.terminal = request.stderr, request.terminal
    return event


def _record(request: task_pb2.CreateTaskRequest, namespace: str) -> state_pb2.Container:
    """A new container's record, from its request, its options and its config.json."""
    container = state_pb2.Container(id=request.id, bundle=request.bundle)
    chosen = options.decode(request.options)
    container.runtime = chosen.binary_name or command.DEFAULT_RUNTIME
    container.root = os.path.join(chosen.root or command.DEFAULT_ROOT, namespace)
    container.systemd_cgroup = chosen.systemd_cgroup
    container.no_pivot_root = chosen.no_pivot_root
    container.no_new_keyring = chosen.no_new_keyring
    container.criu_path = chosen.criu_path
    container.criu_work_path = chosen.criu_work_path
    container.io_uid, container.io_gid = chosen.io_uid, chosen.io_gid
    _read_config(container)
    container.init.stdin, container.init.stdout = request.stdin, request.stdout
    container.init.stderr, container.init.terminal = request.stderr, request.terminal
    return container


def _read_config(container: state_pb2.Container) -> None:
    """Takes from config.json what the options do not say."""
    path = os.path.join(container.bundle, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        requests.check_environment(config.get("process") or {})
        linux = config.get("linux") or {}
        spaces = linux.get("namespaces") or []
        container.private_pids = any(s.get("type") == "pid" and not s.get("path") for s in spaces)
        container.io_uid = container.io_uid or _root_of(linux.get("uidMappings") or [])
        container.io_gid = container.io_gid or _root_of(linux.get("gidMappings") or [])
        container.plain_start = not _has_poststart(config)
    except OSError as error:
        raise StatusError(Code.INVALID_ARGUMENT, f"{path}: {error.strerror}") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise StatusError(Code.INVALID_ARGUMENT, f"{path}: {error}") from error
    if str(linux.get("cgroupsPath", "")).count(":") == 2:
        # Only the systemd driver's paths have the form slice:prefix:name; docker sends no options.
        container.systemd_cgroup = True


def _has_poststart(config: dict[str, Any]) -> bool:
    """Whether there are hooks that the runtime's `start` runs; names as Go reads them."""
    hooks = [value for key, value in config.items() if key.lower() == "hooks" and value]
    return any(key.lower() == "poststart" for group in hooks for key in group)


def _root_of(mappings: list[dict[str, int]]) -> int:
    """The host's id of the container's root, 0 where they are the same."""
    return next((m.get("hostID", 0) for m in mappings if m.get("containerID") == 0), 0)
