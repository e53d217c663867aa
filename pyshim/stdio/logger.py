"""Logging binaries: ``binary:///path?key=value`` starts a program that reads a process's output.

It gets stdout as descriptor 3 and stderr as 4, and says on 5 that it is ready (as containerd's
logging binaries do).  The process writes to it directly; the monitor is its parent.
"""

from __future__ import annotations

import asyncio
import os
import signal

from pyshim.api import state_pb2
from pyshim.monitor import channel
from pyshim.monitor.channel import Message, Type
from pyshim.monitor.fds import memfd
from pyshim.service.store import Store
from pyshim.settings import seconds
from pyshim.stdio.uri import parse, scheme_of
from pyshim.ttrpc.status import Code, StatusError

SCHEMES = {"binary", "binary-v2"}
# The Go shim's bound for all set-up of streams.
READY_TIMEOUT_S = seconds("PYSHIM_LOGGER_READY_S", 30)
REPLY_TIMEOUT_S = 30
# Together less than the ten seconds that CRI has for all of a container's end.
END_TIMEOUT_S = 2
TERM_TIMEOUT_S = 6
KILL_TIMEOUT_S = 1


def is_binary(uri: str) -> bool:
    """Whether ``uri`` names a logging binary."""
    return scheme_of(uri) in SCHEMES


def command(uri: str) -> list[str]:
    """The program and its arguments: each query parameter is two of them, in order."""
    target = parse(uri)
    return [target.path, *(text for pair in target.query for text in pair)]


async def start(
    store: Store, call: state_pb2.Call, name: str, process: state_pb2.Process, owned: list[int]
) -> tuple[int, int]:
    """Starts the binary that ``process.stdout`` names, for the container ``name``.

    Returns the ends that stdout and stderr are written to, which are added to ``owned``.  Changes
    ``process``, and ``call`` for what the monitor holds until the process has them: without a
    writer the binary would see the end.  Raises StatusError or OSError.
    """
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(2)]
    ready, report = os.pipe2(os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    writers = (pipes[0][1], pipes[1][1])
    owned += writers
    try:
        await _spawn(
            store, call, name, process, (null, null, null, pipes[0][0], pipes[1][0], report)
        )
        os.close(report)
        report = -1
        if not await _is_ready(ready) and scheme_of(process.stdout) == "binary-v2":
            raise StatusError(Code.UNKNOWN, f"{process.stdout}: ended before it was ready")
    except BaseException:
        # It has said nothing: nobody knows whether it would ever hear SIGTERM.
        store.link.send(release(store, process, signal.SIGKILL))
        raise
    finally:
        for fd in (ready, null, pipes[0][0], pipes[1][0], report):
            if fd >= 0:
                os.close(fd)
    for writer in writers:
        tag = store.new_tag()
        call.holding.append(tag)
        store.link.send([Message(Type.HOLD, (tag, 0), (writer,))])
    return writers


async def _spawn(
    store: Store,
    call: state_pb2.Call,
    name: str,
    process: state_pb2.Process,
    fds: tuple[int, ...],
) -> None:
    env = {"CONTAINER_ID": name, "CONTAINER_NAMESPACE": store.state.namespace}
    program = memfd(channel.encode_program("/", command(process.stdout), env))
    process.logger_token = store.new_number()
    sequence, reply = store.link.expect()
    message = Message(Type.SPAWN, (process.logger_token, 0, 0), (program, *fds), sequence)
    store.commit(message, owned=[program])
    error, pid = await asyncio.wait_for(reply, REPLY_TIMEOUT_S)
    if error:
        process.logger_token = 0
        text = f"cannot start the logging binary {command(process.stdout)[0]}: {os.strerror(error)}"
        raise StatusError(Code.UNKNOWN, text)
    store.commands[process.logger_token] = pid


async def _is_ready(ready: int) -> bool:
    """Whether a byte came; an end without one counts as ready for ``binary`` alone."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(ready, came.set)
    try:
        await asyncio.wait_for(came.wait(), READY_TIMEOUT_S)
    except asyncio.TimeoutError:
        text = f"the logging binary was not ready within {READY_TIMEOUT_S:g} s"
        raise StatusError(Code.DEADLINE_EXCEEDED, text) from None
    finally:
        loop.remove_reader(ready)
    return bool(os.read(ready, 1))


async def ended(store: Store, process: state_pb2.Process) -> None:
    """Waits for the binary's end; helps with SIGTERM and in the end with SIGKILL."""
    pid = store.commands.get(process.logger_token, 0) if process.logger_token else 0

    def is_over() -> bool:
        record = store.records.get(pid)
        return not pid or (record is not None and record.exited)

    for number, patience_s in (
        (0, END_TIMEOUT_S),
        (signal.SIGTERM, TERM_TIMEOUT_S),
        (signal.SIGKILL, KILL_TIMEOUT_S),
    ):
        if number and not is_over():
            store.link.send([_kill(store, pid, number)])
        if await store.until(is_over, patience_s):
            return


def release(
    store: Store, process: state_pb2.Process, number: int = signal.SIGTERM
) -> list[Message]:
    """The messages that end what is left of the binary, by the signal ``number``, and forget it.

    Clears it in the state.
    """
    pid = store.commands.pop(process.logger_token, 0) if process.logger_token else 0
    process.logger_token = 0
    if not pid:
        return []
    record = store.records.pop(pid, None)
    over = record is not None and record.exited
    messages = [] if over else [_kill(store, pid, number)]
    return [*messages, Message(Type.FORGET, (pid, 0))]


def _kill(store: Store, pid: int, number: int) -> Message:
    return Message(Type.KILL, (pid, number), sequence=store.link.expect()[0])
