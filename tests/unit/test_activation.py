"""The end of a service's life: what it leaves, and what it must not touch any more."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from pyshim.api import state_pb2, task_pb2
from pyshim.monitor.channel import MAX_DATAGRAM_BYTES
from pyshim.service import activation
from pyshim.service.task import Task
from pyshim.ttrpc import codec
from pyshim.zygote import rehearsal

BOUND_S = 60


def test_a_request_is_not_undone_when_the_monitor_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes next finishes it, and would find, say, its rootfs unmounted."""
    seen, written = os.pipe()

    async def handle(_self: Task, _call: state_pb2.Call) -> None:
        os.write(written, b"begun ")
        try:
            await asyncio.Event().wait()
        except BaseException:
            os.write(written, b"undone")
            raise

    monkeypatch.setattr(Task, "handle", handle)
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client, connection = socket.socketpair()
    request = task_pb2.StateRequest(id=rehearsal.NAME).SerializeToString()
    client.send(codec.encode_request(1, "containerd.task.v2.Task", "State", request))
    data, fds = rehearsal.dump(connection.detach())
    child = os.fork()
    if child == 0:
        theirs.close()
        os.close(seen)
        os._exit(activation.main(ours))
    ours.close()
    os.close(written)
    socket.send_fds(theirs, [data], fds)
    for fd in fds:
        os.close(fd)
    assert os.read(seen, 100) == b"begun "
    with client, theirs:
        theirs.settimeout(BOUND_S)
        assert theirs.recv(MAX_DATAGRAM_BYTES)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert (os.read(seen, 100), code) == (b"", 1)
    os.close(seen)
