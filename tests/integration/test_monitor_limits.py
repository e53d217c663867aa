"""The monitor where something is full, wrong, used again or not there yet."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import resource
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyshim.monitor.channel import (
    SPAWN_DIE_WITH_MONITOR,
    HoldFlag,
    Message,
    RelayFlag,
    Type,
    encode_program,
)
from tests.integration.groups import allow
from tests.integration.test_monitor import BOUND_S, Monitor, Service, close_all, eventually, memfd

EBADMSG, EFBIG, ENOSPC, ESRCH = errno.EBADMSG, errno.EFBIG, errno.ENOSPC, errno.ESRCH
PROCESSES, HELDS = 8192, 4096  # the sizes of the monitor's tables


@pytest.fixture
def monitor(programs: Path, tmp_path: Path) -> Iterator[Monitor]:
    yield from driven(programs / "pyshim-monitor", tmp_path)


@pytest.fixture
def unshared(programs: Path, tmp_path: Path) -> Iterator[Monitor]:
    yield from unshared_monitor(programs, tmp_path)


def unshared_monitor(programs: Path, home: Path) -> Iterator[Monitor]:
    """A monitor that is process 1 of a pid namespace: there the next pid can be chosen."""
    wrapper = home / "unshared"
    program = shlex.quote(str(programs / "pyshim-monitor"))
    wrapper.write_text(f'#!/bin/sh\nexec unshare --pid --fork --kill-child {program} "$@"\n')
    wrapper.chmod(0o755)
    yield from driven(wrapper, home)


def driven(program: Path, home: Path) -> Iterator[Monitor]:
    """A monitor that must still be there when the test is over, and is gone afterwards."""
    started = Monitor(program, home)
    yield started
    end = started.process.poll()
    started.end()
    assert end is None, "the monitor must not die by itself"


def orphan(service: Service, status: int, first: str = ":") -> tuple[int, int]:
    """The pid of an orphan, which ends with ``status`` when the descriptor is closed."""
    theirs, mine = os.pipe()
    reader, writer = os.pipe()
    script = f"exec 3<&0; {first}; sh -c 'read line; exit {status}' <&3 >&- & echo $!"
    error, shell = service.spawn("sh", "-c", script, fds=(theirs, writer))
    assert error == 0
    with os.fdopen(reader) as output:
        pid = int(output.read())
    service.exit_of(shell)
    return pid, mine


def as_next_pid(pid: int) -> str:
    """A shell command after which the next process of this pid namespace is ``pid``."""
    return f"echo {pid - 1} > /proc/sys/kernel/ns_last_pid"


def children_of(pid: int) -> list[int]:
    """The children of ``pid`` that have not been reaped."""
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def watched(pid: int) -> str:
    """What the monitor's epoll watches."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        if "eventpoll" in os.readlink(fd):
            return Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text()
    return ""


# --- Activation ----------------------------------------------------------------------------------


def test_an_activation_that_fails_is_tried_again(monitor: Monitor) -> None:
    """Nothing else happens meanwhile: the monitor must come back to it by itself."""
    service = monitor.service()
    reader, writer = os.pipe()
    service.send(Message(Type.HOLD, (5, 1), (reader,)))
    service.park_in_the_end()
    pid = monitor.process.pid
    eventually(lambda: watched(pid).count("tfd:") == 4, "the pipe is watched")
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))  # there is none for a channel
    os.write(writer, b"x")
    eventually(lambda: watched(pid).count("tfd:") == 2, "it has tried")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    close_all(monitor.activated().hello())
    os.close(writer)


# --- Processes -----------------------------------------------------------------------------------


def test_a_pid_that_is_used_again_is_another_process(unshared: Monitor) -> None:
    service = unshared.service()
    _, earlier = service.spawn("true")
    pid, feed = orphan(service, 0)
    assert service.ask(Type.TRACK, pid, 0) == (0, 0)
    os.close(feed)
    assert service.exit_of(pid).fields[3] == 0
    again, feed = orphan(service, 6, as_next_pid(pid))
    assert again == pid
    service.send(Message(Type.FORGET, (earlier, 0)))  # its place is in front of the other's
    assert service.ask(Type.TRACK, pid, 0) == (0, 0)
    service.close()
    service = unshared.activated()
    dump = service.hello()
    records = [m.fields[1] for m in dump if m.type == Type.RECORD and m.fields[0] == pid]
    assert records == [1 | 4, 4]  # the one that runs is spoken of last
    close_all(dump)
    assert service.ask(Type.KILL, pid, 0) == (0, 0)
    os.close(feed)
    assert service.exit_of(pid).fields[3] == 6 << 8


def test_a_remembered_exit_goes_before_the_one_that_was_claimed(unshared: Monitor) -> None:
    service = unshared.service()
    pid, feed = orphan(service, 0)
    assert service.ask(Type.TRACK, pid, 0) == (0, 0)
    os.close(feed)
    assert service.exit_of(pid).fields[3] == 0
    again, feed = orphan(service, 9, as_next_pid(pid))
    assert again == pid
    os.close(feed)
    (inside,) = children_of(unshared.process.pid)
    eventually(lambda: not children_of(inside), "it is reaped")
    assert service.ask(Type.TRACK, pid, 0) == (0, 1)
    assert service.exit_of(pid).fields[3] == 9 << 8


def test_none_but_children_are_tracked(monitor: Monitor) -> None:
    """A runtime's file may name anybody; who has been orphaned is the monitor's child."""
    service = monitor.service()
    reader, writer = os.pipe()
    theirs, ours = os.pipe()
    script = "sleep 1000 >&- & echo $!; read x"
    error, shell = service.spawn("sh", "-c", script, fds=(theirs, writer))
    assert error == 0
    with os.fdopen(reader) as said, os.fdopen(ours, "w") as commands:
        grandchild = int(said.readline())
        for pid in (grandchild, os.getpid(), 1):
            assert service.ask(Type.TRACK, pid, 0) == (ESRCH, 0)
            assert service.ask(Type.KILL, pid, signal.SIGKILL) == (ESRCH, 0)
        commands.write("\n")
    service.exit_of(shell)
    assert service.ask(Type.TRACK, grandchild, 0) == (0, 0)
    assert service.ask(Type.KILL, grandchild, signal.SIGKILL) == (0, 0)
    assert service.exit_of(grandchild).fields[3] == signal.SIGKILL


def test_exits_that_nobody_asks_for_do_not_fill_the_table(monitor: Monitor) -> None:
    service = monitor.service()
    program = memfd(encode_program("/", ["sleep", "1000"], {"PATH": os.environ["PATH"]}))
    error, keeper = service.ask(Type.SPAWN, 1, SPAWN_DIE_WITH_MONITOR, 0, fds=(program,))
    assert error == 0
    script = f"import os\nfor _ in range({PROCESSES + 50}):\n    os.fork() or os._exit(0)\n"
    script += "last = os.fork() or os._exit(7)\n"
    script += "os.waitid(os.P_PID, last, os.WEXITED | os.WNOWAIT)\nprint(last)\n"
    reader, writer = os.pipe()
    error, parent = service.spawn(sys.executable, "-I", "-S", "-c", script, fds=(os.dup(0), writer))
    assert error == 0
    with os.fdopen(reader) as output:
        last = int(output.readlines()[-1])
    service.exit_of(parent)
    assert service.ask(Type.TRACK, last, 0) == (0, 1)
    assert service.exit_of(last).fields[3] == 7 << 8
    error, pid = service.spawn("sh", "-c", "exit 5")
    assert error == 0
    assert service.exit_of(pid).fields[3] == 5 << 8
    assert service.ask(Type.KILL, keeper, signal.SIGKILL) == (0, 0)
    assert service.exit_of(keeper).fields[3] == signal.SIGKILL


def test_the_monitor_is_no_process_of_the_service(monitor: Monitor) -> None:
    service = monitor.service()
    assert service.ask(Type.TRACK, monitor.process.pid, 0) == (ESRCH, 0)
    assert service.ask(Type.KILL, monitor.process.pid, signal.SIGKILL) == (ESRCH, 0)
    assert service.park() == 0


# --- Descriptors ---------------------------------------------------------------------------------


def test_what_finds_no_place_is_closed(monitor: Monitor, tmp_path: Path) -> None:
    service = monitor.service()
    reader, writer = os.pipe()
    last = HELDS - 1  # one more is the listener, one the connection, and the first tag is 2
    for tag in range(2, last + 2):
        service.send(Message(Type.HOLD, (tag, 0), (os.dup(writer),), sequence=tag))
    error = service.wait(Type.REPLY)
    assert (error.fields[0], error.sequence) == (ENOSPC, last + 1)
    os.mkfifo(tmp_path / "fifo")
    listening = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    handle = os.open(tmp_path / "fifo", os.O_PATH)
    assert service.ask(Type.HOLD, last + 2, HoldFlag.OPEN, fds=(handle,)) == (ENOSPC, 0)
    assert os.read(listening, 1) == b""
    os.close(listening)
    client = monitor.connect()
    assert client.recv(1) == b""
    service.send(Message(Type.DROP, (2, 0)))
    assert service.ask(Type.KILL, 1, 0) == (ESRCH, 0)  # so that has been carried out
    monitor.connect()
    close_all([service.wait(Type.HELD)])
    service.send(*[Message(Type.DROP, (tag, 0)) for tag in range(3, last + 1)])
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)


# --- Messages ------------------------------------------------------------------------------------


def test_a_transaction_without_its_descriptors_ends_the_service(monitor: Monitor) -> None:
    """Nothing that was sent after it is carried out: it may rest on what was lost."""
    service = monitor.service()
    pid = monitor.process.pid
    reader, writer = os.pipe()
    state = memfd(b"of the lost transaction")
    later = memfd(b"of one that rests on it")
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    os.kill(pid, signal.SIGSTOP)
    service.send(Message(Type.HOLD, (5, 0), (reader,)), Message(Type.STATE, fds=(state,)))
    service.send(Message(Type.STATE, fds=(later,)))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    os.kill(pid, signal.SIGCONT)
    with contextlib.suppress(ConnectionResetError):  # for it has not read all that was sent
        assert service.channel.recv(1) == b""
    service.close()
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    dump = monitor.activated().hello()
    assert [m.fields[0] for m in dump if m.type == Type.HELD and m.fields[0] == 5] == []
    (welcome,) = (m for m in dump if m.type == Type.WELCOME)
    texts = [os.pread(fd, 100, 0) for fd in welcome.fds]
    assert not any(b"of " in text for text in texts)
    close_all(dump)
    os.close(writer)


def test_the_ends_of_a_relay_are_opened_without_a_free_descriptor(
    monitor: Monitor, tmp_path: Path
) -> None:
    """Nobody could do it later; the ones that it was given go for it."""
    service = monitor.service()
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    source, writer = os.pipe()
    other, other_writer = os.pipe()
    targets = [os.open(path, os.O_PATH | os.O_CLOEXEC) for _ in range(2)]
    limits = allow(monitor.process.pid, 4)  # no more than the datagram has
    flag = int(RelayFlag.OPEN_DESTINATION)
    service.send(
        Message(Type.RELAY, (1, flag), (source, targets[0])),
        Message(Type.RELAY, (2, flag), (other, targets[1])),
    )
    os.write(writer, b"one")
    os.close(writer)
    assert service.relay_end(1).fields[1:] == (1, 0, 0, 3)
    os.write(other_writer, b"other")
    os.close(other_writer)
    assert service.relay_end(2).fields[1:] == (1, 0, 0, 5)
    resource.prlimit(monitor.process.pid, resource.RLIMIT_NOFILE, limits)
    assert os.read(reader, 100) == b"oneother"
    os.close(reader)


def test_an_empty_datagram_is_not_the_end(monitor: Monitor) -> None:
    service = monitor.service()
    assert service.channel.send(b"") == 0
    assert service.wait(Type.REPLY).fields[0] == EBADMSG
    reader, writer = os.pipe()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writer]))]
    service.channel.sendmsg([b""], rights)
    assert service.wait(Type.REPLY).fields[0] == EBADMSG
    os.close(writer)
    assert os.read(reader, 1) == b""  # the monitor has closed its copy
    os.close(reader)
    service.park_in_the_end()


def test_an_empty_datagram_before_the_end_leaves_nothing(monitor: Monitor) -> None:
    service = monitor.service()
    reader, writer = os.pipe()
    os.kill(monitor.process.pid, signal.SIGSTOP)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writer]))]
    service.channel.sendmsg([b""], rights)
    service.send(Message(Type.STATE, (), (memfd(b"sent after it"),)))
    service.channel.close()
    os.kill(monitor.process.pid, signal.SIGCONT)
    dump = monitor.activated().hello()
    assert os.pread(dump[0].fds[0], 100, 0) == b"sent after it"
    close_all(dump)
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_an_unknown_flag_of_a_spawn_is_not_understood(monitor: Monitor) -> None:
    service = monitor.service()
    program = memfd(b"\1\0\0\0\0\0\0\0/\0true\0")
    assert service.ask(Type.SPAWN, 1, 2, 0, fds=(program,)) == (EBADMSG, 0)
    assert service.park() == 0


def test_no_tag_is_no_descriptor(monitor: Monitor) -> None:
    """A place that has become free has no tag, and a number that is somebody else's by now."""
    service = monitor.service()
    service.send(*[Message(Type.HOLD, (tag, 0), (os.dup(0),)) for tag in (5, 6)])
    service.send(Message(Type.DROP, (5, 0)))
    ours, theirs = socket.socketpair()
    ours.settimeout(BOUND_S)
    reader, writer = os.pipe()
    service.relay(1, theirs.detach(), writer)  # the socket gets the lowest number that is free
    service.send(Message(Type.SEND, (0, 3), tail=b"abc"))
    assert service.ask(Type.CONSUME, 0, 100) == (errno.ENOENT, 0)
    ours.sendall(b"all of it")
    ours.shutdown(socket.SHUT_WR)
    assert service.relay_end(1).fields[1:] == (1, 0, 0, 9)
    assert os.read(reader, 100) == b"all of it"
    assert ours.recv(100) == b""
    ours.close()
    os.close(reader)


def test_nothing_can_be_sent_to_a_listener(monitor: Monitor) -> None:
    service = monitor.service()
    service.send(Message(Type.SEND, (1, 3), tail=b"abc"))
    assert service.ask(Type.KILL, 1, 0) == (ESRCH, 0)
    monitor.connect()
    close_all([service.wait(Type.HELD)])


# --- Relays --------------------------------------------------------------------------------------


def test_a_relay_says_why_a_file_takes_no_more(monitor: Monitor, tmp_path: Path) -> None:
    service = monitor.service()
    limit = 100_000
    hard = resource.prlimit(monitor.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(monitor.process.pid, resource.RLIMIT_FSIZE, (limit, hard))
    (tmp_path / "in").write_bytes(b"x" * 3 * limit)
    source = os.open(tmp_path / "in", os.O_RDONLY)
    target = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    service.relay(1, source, target)
    assert service.relay_end(1).fields[1:] == (1, EFBIG, 0, limit)
    assert (tmp_path / "out").stat().st_size == limit
