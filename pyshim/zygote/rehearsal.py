"""A service's life against a monitor that is not there, before anybody waits for one.

In the zygote it has the interpreter specialise the code that services run (PEP 659), once for all
of them.  In a spare it touches the memory that a service touches, which the kernel then copies
before it is urgent.  Nothing that happens here leaves the process.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from pyshim.api import state_pb2, task_pb2
from pyshim.bootstrap import address, dialect
from pyshim.bootstrap import flags as command_line
from pyshim.monitor import channel
from pyshim.monitor.channel import HoldFlag, Message, RecordFlag, Type
from pyshim.monitor.fds import memfd
from pyshim.service import activation, migrations
from pyshim.service.states import Status
from pyshim.ttrpc import codec

NOBODY = "/proc/pyshim"  # where nothing is, and nothing can be made
NAME = "rehearsal"
PID = 1 << 30  # more than the kernel has
# What the loop needs to get through everything that is ready.
TURNS = 40


class Life(activation.Activation):
    """One that takes nobody along when something fails."""

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        pass

    def _cut_off(self, error: OSError) -> None:
        pass

    def _refuse(self, error: migrations.StateError) -> None:
        pass


def run() -> None:
    """One `start` as far as it is only thought, and one service that is told of an exit."""
    start()
    loop = activation.prepare()
    try:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(serve())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def start() -> None:
    """What `start` works out."""
    argv = ["-namespace", NAME, "-address", NOBODY, "-publish-binary", NOBODY, "-id", NAME, "start"]
    flags = command_line.parse(argv)
    given = dialect.parse(b"", flags)
    group = address.group_id(flags.id, {"annotations": {}})
    path = address.socket_path(NOBODY, flags.address, flags.namespace, group)
    channel.encode_program(NOBODY, argv, {"PATH": NOBODY})
    dialect.answer(given, path, dialect.version("", None))


async def serve() -> None:
    """A service that is activated by an exit, has a State to answer, and never gets to park."""
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client, connection = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs, client:
        request = task_pb2.StateRequest(id=NAME).SerializeToString()
        client.send(codec.encode_request(1, "containerd.task.v2.Task", "State", request))
        data, fds = dump(connection.detach())
        try:
            socket.send_fds(theirs, [data], fds)
        finally:
            for fd in fds:
                os.close(fd)
        life = Life(ours)
        living = asyncio.get_running_loop().create_task(life.run())
        for _ in range(TURNS):
            await asyncio.sleep(0)
        await life.end()
        assert living.done()


def dump(connection: int) -> tuple[bytes, list[int]]:
    """What a monitor says to a service: its state, a connection, and that a process has exited.

    The descriptors are the caller's.
    """
    state = state_pb2.State(
        version=migrations.STATE_VERSION,
        namespace=NAME,
        id=NAME,
        next_number=1,
        ttrpc_address=NOBODY,
    )
    container = state.containers[NAME]
    container.id, container.created, container.private_pids = NAME, True, True
    container.init.pid, container.init.status = PID, Status.RUNNING
    return channel.encode(
        [
            Message(
                Type.WELCOME,
                (channel.VERSION, os.getpid(), 0, 0),
                (memfd(state.SerializeToString()),),
            ),
            Message(
                Type.HELD,
                (activation.FIRST_ACCEPTED_TAG, activation.LISTENER_TAG, HoldFlag.WATCH, 0),
                (connection,),
            ),
            Message(Type.RECORD, (PID, RecordFlag.EXITED | RecordFlag.TRACKED, 0, 0, 0, 0, 0)),
            Message(Type.READY),
        ]
    )
