"""Publishes that the kernel has killed something in a container for want of memory.

Once for each time that the descriptor in ``Container.oom_tag`` becomes readable with news, and
before the exit of the container's init.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from pyshim.api import events_pb2, state_pb2
from pyshim.cgroups import locate, oom
from pyshim.monitor.channel import HoldFlag, Message, Type
from pyshim.monitor.fds import is_readable

if TYPE_CHECKING:
    from pyshim.service.task import Task

MARK = "oom"  # in the bundle


def watch(task: Task, container: state_pb2.Container) -> list[Message]:
    """The messages that have the monitor watch; notes the tag in ``container``."""
    fd = oom.watch(dict(container.cgroups))
    if fd < 0:
        return []
    container.oom_tag = task.store.new_tag()
    task.store.held[container.oom_tag] = fd
    listen(task, container)
    return [Message(Type.HOLD, (container.oom_tag, HoldFlag.WATCH), (fd,))]


def listen(task: Task, container: state_pb2.Container) -> None:
    """Lets this service hear of it, as the monitor does while there is none."""
    fd = task.store.held.get(container.oom_tag)
    if fd is not None:
        asyncio.get_running_loop().add_reader(fd, check, task, container.id)


def check(task: Task, name: str) -> None:
    """Publishes what there is to tell of the container ``name``.

    v2's counter is read whether or not it was announced: the kernel announces late, and the exit
    of the init must not come first.
    """
    container = task.store.state.containers.get(name)
    fd = task.store.held.get(container.oom_tag) if container is not None else None
    if container is None or fd is None:
        return
    groups = dict(container.cgroups)
    readable = is_readable(fd)
    if not readable and locate.UNIFIED not in groups:
        return
    count = oom.kills(groups, container.oom_kills)
    if count > container.oom_kills:
        container.oom_kills = count
        event = events_pb2.TaskOOM(container_id=name)
        task.publisher.queue("/tasks/oom", event)
        _leave_mark(container)
        # Ours and the monitor's are one description: what is read here is read there.  The event is
        # committed first: killed between the two, v1's eventfd is heard again, which repeats a
        # TaskOOM and loses none.
        task.store.commit()
    if readable:
        os.read(fd, oom.READ_BYTES)
    if not groups or not any(os.path.isdir(folder) for folder in groups.values()):
        asyncio.get_running_loop().remove_reader(fd)


def _leave_mark(container: state_pb2.Container) -> None:
    """CRI-O hears no events: after an exit it looks for this file (spec/crio-vm.md, OOM)."""
    path = os.path.join(container.bundle, MARK)
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644))


def ignore(task: Task, container: state_pb2.Container) -> list[Message]:
    """The messages that end the watching."""
    fd = task.store.held.get(container.oom_tag)
    if fd is not None:
        asyncio.get_running_loop().remove_reader(fd)
    return task.store.drop(container.oom_tag)
