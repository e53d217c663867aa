"""The real monitor, driven over a zygote socket that this test plays itself."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyshim.monitor.channel import (
    SPAWN_EXECUTABLE,
    Message,
    Type,
    WelcomeFlag,
    decode,
    encode,
    encode_program,
)

BOUND_S = 20
MIB = 1024 * 1024


def eventually(true: Callable[[], object], what: str) -> None:
    """Polls until ``true()``; fails the test with ``what`` at the bound."""
    deadline = time.monotonic() + BOUND_S
    while not true():
        assert time.monotonic() < deadline, f"not within {BOUND_S} s: {what}"
        time.sleep(0.01)


def memfd(data: bytes) -> int:
    """A memfd that holds ``data``."""
    fd = os.memfd_create("test")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    return fd


class Service:
    """The service's end of a channel: sends datagrams, keeps what has come."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.channel.settimeout(BOUND_S)
        self.inbox: list[Message] = []
        self.events = 0
        self.sequence = 0

    def send(self, *messages: Message) -> None:
        """Sends one datagram; the descriptors in it are closed here."""
        data, fds = encode(messages)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.channel.sendmsg([data], rights)
        for fd in fds:
            os.close(fd)

    def receive(self) -> None:
        """Takes one datagram into the inbox; raises EOFError at the end of the channel."""
        data, rights, _, _ = self.channel.recvmsg(128 * 1024, socket.CMSG_SPACE(64 * 4))
        if not data:
            raise EOFError
        fds = array.array("i")
        for _, _, part in rights:
            fds.frombytes(part)
        for message in decode(data, list(fds)):
            self.inbox.append(message)
            self.events += message.type in {Type.HELD, Type.RECORD, Type.RELAY_STATUS, Type.RANG}

    def wait(self, kind: Type, where: Callable[[Message], object] = lambda _: True) -> Message:
        """Takes the first such message out of the inbox, waiting for it where it must."""
        while True:
            for message in self.inbox:
                if message.type == kind and where(message):
                    self.inbox.remove(message)
                    return message
            self.receive()

    def ask(self, kind: Type, *fields: int, fds: tuple[int, ...] = ()) -> tuple[int, int]:
        """Sends one request and returns its reply's errno and value."""
        self.sequence += 1
        number = self.sequence
        self.send(Message(kind, fields, fds, number))
        answer = self.wait(Type.REPLY, lambda message: message.sequence == number)
        return answer.fields[0], answer.fields[2]

    def hello(self) -> list[Message]:
        """Sends HELLO; the dump without READY."""
        self.send(Message(Type.HELLO, (1, os.getpid())))
        while not any(message.type == Type.READY for message in self.inbox):
            self.receive()
        dump, self.inbox = self.inbox, []
        return [message for message in dump if message.type != Type.READY]

    def spawn(self, *argv: str, fds: tuple[int, ...] = (), token: int = 7) -> tuple[int, int]:
        """SPAWN in / with a small environment."""
        program = memfd(encode_program("/", argv, {"PATH": os.environ["PATH"], "A": "b"}))
        return self.ask(Type.SPAWN, token, 0, 0, fds=(program, *fds))

    def execute(self, executable: str, *argv: str, fds: tuple[int, ...] = ()) -> tuple[int, int]:
        """SPAWN of a descriptor in place of a name."""
        program = memfd(encode_program("/", argv, {"PATH": os.environ["PATH"]}))
        opened = os.open(executable, os.O_RDONLY | os.O_CLOEXEC)
        return self.ask(Type.SPAWN, 7, SPAWN_EXECUTABLE, 0, fds=(program, *fds, opened))

    def exit_of(self, pid: int) -> Message:
        """The RECORD that says that ``pid`` has exited."""
        return self.wait(Type.RECORD, lambda m: m.fields[0] == pid and m.fields[1] & 1)

    def relay_end(self, number: int) -> Message:
        """The message that says that a relay has ended."""
        return self.wait(Type.RELAY_STATUS, lambda m: m.fields[0] == number and m.fields[1] & 1)

    def relay(self, number: int, source: int, destination: int, flags: int = 0) -> None:
        """RELAY; both descriptors are given away."""
        self.send(Message(Type.RELAY, (number, flags), (source, destination)))

    def park(self) -> int:
        """PARK with what has been seen; the reply's errno."""
        return self.ask(Type.PARK, self.events)[0]

    def park_in_the_end(self) -> None:
        """Parks, reading the events that come first."""
        while self.park():
            pass
        self.close()

    def close(self) -> None:
        """Closes the channel and every descriptor that came with it and is still in the inbox."""
        self.channel.close()
        for message in self.inbox:
            for fd in message.fds:
                os.close(fd)
        self.inbox = []


class Monitor:
    """A monitor, its listening socket and its zygote."""

    def __init__(
        self, binary: Path, home: Path, python: str = "/no/python", zygote: bool = True
    ) -> None:
        self.home = home
        self.address = str(home / "listen.sock")
        self.zygote: socket.socket | None = None
        if zygote:
            self.zygote = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.zygote.bind(str(home / "zygote.sock"))
            self.zygote.listen(64)
            self.zygote.settimeout(BOUND_S)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.address)
        listener.listen(64)
        state = memfd(b"first state")
        # A small script puts the two where the launcher would: 3 and 4.
        move = [sys.executable, "-I", "-c", MOVE, str(listener.fileno()), str(state)]
        self.process = subprocess.Popen(
            [*move, str(binary), "--zygote", str(home / "zygote.sock"), "--python", python],
            pass_fds=(listener.fileno(), state),
            cwd=home,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYSHIM_TEST_HOME": str(home)},
        )
        listener.close()
        os.close(state)
        self.opened: list[socket.socket] = []
        self.services: list[Service] = []

    def connect(self) -> socket.socket:
        """A connection to the listening socket."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(BOUND_S)
        connection.connect(self.address)
        self.opened.append(connection)
        return connection

    def activated(self) -> Service:
        """The service that the monitor asks the zygote for."""
        assert self.zygote
        connection, _ = self.zygote.accept()
        with connection:
            connection.settimeout(BOUND_S)
            data, fds, _, _ = socket.recv_fds(connection, 64, 4)
        assert struct.unpack("<II", data) == (0x5053595A, 1)
        assert len(fds) == 1
        service = Service(socket.socket(fileno=fds[0]))
        self.services.append(service)
        return service

    def service(self) -> Service:
        """A service that was activated by a connection and has read its dump."""
        self.connect()
        service = self.activated()
        service.hello()
        return service

    def end(self) -> None:
        """Ends the monitor by its pid and closes what the test opened."""
        for connection in self.opened:
            connection.close()
        for service in self.services:
            service.close()
        if self.zygote:
            self.zygote.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(BOUND_S)


MOVE = """
import fcntl, os, sys
a, b = (fcntl.fcntl(int(n), fcntl.F_DUPFD, 100) for n in sys.argv[1:3])
os.dup2(a, 3)
os.dup2(b, 4)
os.close(a)
os.close(b)
os.execv(sys.argv[3], sys.argv[3:])
"""


@pytest.fixture
def binary(programs: Path) -> Path:
    return programs / "pyshim-monitor"


@pytest.fixture
def monitor(binary: Path, tmp_path: Path) -> Iterator[Monitor]:
    started = Monitor(binary, tmp_path)
    yield started
    assert started.process.poll() in {None, 0}, "the monitor must not die by itself"
    started.end()


def close_all(messages: list[Message]) -> None:
    for message in messages:
        for fd in message.fds:
            os.close(fd)


def test_a_monitor_to_which_nobody_connects_asks_for_a_service(monitor: Monitor) -> None:
    """Whoever has started it may have been killed before anybody knew of it."""
    service = monitor.activated()
    close_all(service.hello())
    service.park_in_the_end()
    monitor.service()


def test_dump_of_a_first_activation(monitor: Monitor) -> None:
    connection = monitor.connect()
    service = monitor.activated()
    dump = service.hello()
    welcome, *rest = dump
    assert welcome.type == Type.WELCOME
    assert welcome.fields == (
        1,
        monitor.process.pid,
        WelcomeFlag.UPGRADES | WelcomeFlag.EXECUTABLES,
        0,
    )
    assert os.pread(welcome.fds[0], 100, 0) == b"first state"
    held = {message.fields[0]: message for message in rest}
    assert set(held) == {1, 1 << 31}
    assert held[1 << 31].fields[1:] == (1, 1, 0)
    accepted = socket.socket(fileno=os.dup(held[1 << 31].fds[0]))
    connection.sendall(b"ping")
    assert accepted.recv(10) == b"ping"
    accepted.close()
    close_all(dump)


def test_spawned_process_is_recorded_until_forgotten(monitor: Monitor) -> None:
    service = monitor.service()
    read_end, write_end = os.pipe()
    script = 'echo "$A $PWD $#"; ls /proc/self/fd | wc -l; read x; exit 5'
    error, pid = service.spawn("sh", "-c", script, "0", "one", fds=(os.dup(0), write_end))
    assert error == 0
    record = service.exit_of(pid)
    assert record.fields[1:5] == (3, 7, 5 << 8, 0)
    assert abs(record.fields[5] - time.time()) < 3600
    with os.fdopen(read_end) as output:
        assert output.read().split() == ["b", "/", "1", "4"]
    service.park_in_the_end()
    second = monitor.service()
    assert second.ask(Type.KILL, pid, 0) == (3, 0)
    second.send(Message(Type.FORGET, (pid, 0)))
    second.park_in_the_end()
    monitor.connect()
    third = monitor.activated()
    dump = third.hello()
    assert not [message for message in dump if message.type == Type.RECORD]
    close_all(dump)


def test_record_is_in_the_next_dump(monitor: Monitor) -> None:
    service = monitor.service()
    _, pid = service.spawn("sleep", "1000", token=1 << 63)
    service.close()
    second = monitor.activated()
    dump = second.hello()
    assert dump[0].fields[2] & WelcomeFlag.DIED
    (record,) = [message for message in dump if message.type == Type.RECORD]
    assert record.fields[:3] == (pid, 2, 1 << 63)
    close_all(dump)
    assert second.ask(Type.KILL, pid, signal.SIGKILL) == (0, 0)
    assert second.exit_of(pid).fields[3] == signal.SIGKILL


def test_exec_that_fails_gives_its_errno(monitor: Monitor) -> None:
    service = monitor.service()
    assert service.spawn("/nonexistent/program") == (2, 0)
    assert service.spawn("no-such-program") == (2, 0)
    assert service.spawn("/etc/passwd") == (13, 0)
    bad = memfd(struct.pack("<II", 4000000000, 4000000000) + b"/\0a\0")
    assert service.ask(Type.SPAWN, 0, 0, 0, fds=(bad,)) == (22, 0)
    assert service.park() == 0


def test_twenty_thousand_arguments(monitor: Monitor) -> None:
    service = monitor.service()
    read_end, write_end = os.pipe()
    arguments = [f"argument-{number}" for number in range(20000)]
    error, pid = service.spawn("sh", "-c", "echo $#", "0", *arguments, fds=(os.dup(0), write_end))
    assert error == 0
    with os.fdopen(read_end) as output:
        assert output.read() == "20000\n"
    assert service.exit_of(pid).fields[3] == 0


def test_orphan_that_exits_before_track_is_remembered(monitor: Monitor) -> None:
    service = monitor.service()
    read_end, write_end = os.pipe()
    # The outer shell ends at once, so that the inner one becomes the monitor's child.
    error, pid = service.spawn(
        "sh", "-c", "sh -c 'sleep 0.05; exit 9' & echo $!", fds=(os.dup(0), write_end)
    )
    assert error == 0
    with os.fdopen(read_end) as output:
        orphan = int(output.read())
    service.exit_of(pid)
    eventually(lambda: not Path(f"/proc/{orphan}").exists(), "the orphan is reaped")
    assert service.ask(Type.TRACK, orphan, 0) == (0, 1)
    assert service.exit_of(orphan).fields[3] == 9 << 8
    assert service.ask(Type.TRACK, 0x3FFFFFFF, 0) == (3, 0)
    service.send(Message(Type.FORGET, (pid, 0)))
    assert service.ask(Type.TRACK, orphan, 0) == (0, 1)


def test_an_executable_is_executed_in_place_of_its_name(monitor: Monitor) -> None:
    service = monitor.service()
    read_end, write_end = os.pipe()
    script = 'readlink /proc/$$/exe; tr "\\0" " " </proc/$$/cmdline; echo; ls /proc/$$/fd'
    error, pid = service.execute(
        "/bin/dash", "no such program", "-c", script, fds=(os.dup(0), write_end)
    )
    assert error == 0
    with os.fdopen(read_end) as output:
        exe, cmdline, *fds = output.read().splitlines()
    assert exe == os.path.realpath("/bin/dash")
    assert cmdline.startswith("no such program -c ")
    assert fds == ["0", "1", "2"]
    assert service.exit_of(pid).fields[3] == 0


def test_an_executable_that_is_none_leaves_the_name(monitor: Monitor, tmp_path: Path) -> None:
    service = monitor.service()
    plain = tmp_path / "plain"
    plain.write_text("text")
    error, pid = service.execute(str(plain), "sh", "-c", "exit 4")
    assert error == 0
    assert service.exit_of(pid).fields[3] == 4 << 8
    assert service.execute(str(plain), "no such program") == (errno.ENOENT, 0)


def test_an_executable_must_be_there(monitor: Monitor) -> None:
    service = monitor.service()
    program = memfd(encode_program("/", ["true"], {}))
    assert service.ask(Type.SPAWN, 7, SPAWN_EXECUTABLE, 0, fds=(program,))[0] == errno.EBADMSG


def test_orphan_is_tracked_while_it_runs(monitor: Monitor) -> None:
    service = monitor.service()
    read_end, write_end = os.pipe()
    service.spawn("sh", "-c", "sleep 1000 >&- & echo $!", fds=(os.dup(0), write_end))
    with os.fdopen(read_end) as output:
        orphan = int(output.read())
    # The shell closes its files a moment before its child is ours.
    eventually(lambda: service.ask(Type.TRACK, orphan, 0) == (0, 0), "the orphan is tracked")
    assert service.ask(Type.KILL, orphan, signal.SIGTERM) == (0, 0)
    assert service.exit_of(orphan).fields[1:4] == (5, 0, signal.SIGTERM)


@pytest.mark.parametrize("kind", ["pipe", "file", "append", "socket", "tty"])
def test_relay_moves_everything(monitor: Monitor, tmp_path: Path, kind: str) -> None:
    service = monitor.service()
    size = 3 * MIB if kind != "tty" else 200000
    data = (b"0123456789abcdef" * 4096 * 48)[:size]
    source, feed = os.pipe()
    target = tmp_path / "out"
    reader = -1
    if kind in {"file", "append"}:
        extra = os.O_APPEND if kind == "append" else 0
        destination = os.open(target, os.O_WRONLY | os.O_CREAT | extra)
    elif kind == "socket":
        one, other = socket.socketpair()
        reader, destination = one.detach(), other.detach()
    elif kind == "tty":
        reader, destination = os.openpty()
        tty.setraw(destination)
    else:
        reader, destination = os.pipe()
    service.relay(4, source, destination)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            view = memoryview(data)
            while view:
                view = view[os.write(feed, view) :]
        os._exit(0)
    os.close(feed)
    got = bytearray()
    while reader >= 0 and len(got) < size:
        select.select([reader], [], [], 0.001)  # slow: small reads
        got += os.read(reader, 30000)
    assert service.relay_end(4).fields[1:] == (1, 0, 0, size)
    os.waitpid(child, 0)
    if reader < 0:
        got += target.read_bytes()
    else:
        os.close(reader)
    assert got == data
    service.send(Message(Type.RELAY_STOP, (4, 2)))
    assert service.park() == 0


def test_relay_from_a_terminal_ends_without_error(monitor: Monitor) -> None:
    service = monitor.service()
    master, slave = os.openpty()
    reader, destination = os.pipe()
    service.relay(1, master, destination)
    os.write(slave, b"hello\n")
    assert os.read(reader, 100) == b"hello\r\n"
    os.close(slave)
    assert service.relay_end(1).fields[1:] == (1, 0, 0, 7)
    assert os.read(reader, 100) == b""
    os.close(reader)


def test_relay_from_a_regular_file(monitor: Monitor, tmp_path: Path) -> None:
    service = monitor.service()
    (tmp_path / "in").write_bytes(b"x" * MIB)
    reader, destination = os.pipe()
    service.relay(1, os.open(tmp_path / "in", os.O_RDONLY), destination)
    got = 0
    while part := os.read(reader, 65536):
        got += len(part)
    os.close(reader)
    assert got == MIB
    assert service.relay_end(1).fields[1:] == (1, 0, 0, MIB)


def test_relay_throws_away_when_the_log_is_gone(monitor: Monitor) -> None:
    service = monitor.service()
    source, feed = os.pipe()
    reader, destination = os.pipe()
    service.relay(1, source, destination)
    os.close(reader)
    for _ in range(64):
        os.write(feed, bytes(32768))  # blocks for ever unless it is read
    os.close(feed)
    assert service.relay_end(1).fields[1:] == (1, 32, 0, 0)


def test_stdin_relay_ends_when_nobody_reads(monitor: Monitor) -> None:
    service = monitor.service()
    source, feed = os.pipe()
    reader, destination = os.pipe()
    service.relay(1, source, destination, flags=1)
    os.close(reader)
    os.write(feed, b"x")
    assert service.relay_end(1).fields[1:3] == (1, 32)
    with pytest.raises(BrokenPipeError):
        os.write(feed, b"x")
    os.close(feed)


def test_relay_stop(monitor: Monitor) -> None:
    service = monitor.service()
    source, feed = os.pipe()
    reader, destination = os.pipe()
    os.write(feed, b"all of it")
    service.send(
        Message(Type.RELAY, (1, 0), (source, destination)), Message(Type.RELAY_STOP, (1, 1))
    )
    assert service.relay_end(1).fields == (1, 1, 0, 0, 9)
    assert os.read(reader, 100) == b"all of it"
    assert os.read(reader, 100) == b""
    os.close(feed)
    os.close(reader)


def test_drain_gives_up_on_a_blocked_destination(monitor: Monitor) -> None:
    service = monitor.service()
    source, feed = os.pipe()
    reader, destination = os.pipe()
    os.set_blocking(destination, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(destination, bytes(4096))
    os.write(feed, b"nobody will read this")
    service.relay(1, source, destination)
    service.send(Message(Type.RELAY_STOP, (1, 1)))
    assert service.relay_end(1).fields[:2] == (1, 1)
    os.close(feed)
    os.close(reader)


def test_drain_waits_for_a_slow_reader(monitor: Monitor) -> None:
    """It takes longer than a reader that has stopped is given, but never stops."""
    service = monitor.service()
    source, feed = os.pipe()
    reader, destination = os.pipe()
    page = 4096
    fcntl.fcntl(destination, fcntl.F_SETPIPE_SZ, page)
    os.write(destination, bytes(page))
    os.write(feed, bytes(3 * page))
    service.relay(1, source, destination)
    service.send(Message(Type.RELAY_STOP, (1, 1)))
    got = 0
    for _ in range(4):
        time.sleep(1.5)
        got += len(os.read(reader, page))
    assert got == 4 * page
    assert service.relay_end(1).fields == (1, 1, 0, 0, 3 * page)
    os.close(feed)
    os.close(reader)


def fifo(path: Path) -> int:
    """An O_PATH descriptor of a new fifo."""
    os.mkfifo(path)
    return os.open(path, os.O_PATH)


def test_a_fifo_is_kept_as_soon_as_it_has_a_reader(monitor: Monitor, tmp_path: Path) -> None:
    """A service that opened it itself and was killed would show its reader the end."""
    service = monitor.service()
    path = tmp_path / "out"
    handle = fifo(path)
    assert service.ask(Type.HOLD, 5, 4, fds=(os.dup(handle),))[0] == errno.ENXIO
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert service.ask(Type.HOLD, 5, 4, fds=(os.dup(handle),))[0] == 0
    service.close()
    service = monitor.activated()
    dump = service.hello()
    assert [m.fields[0] for m in dump if m.type == Type.HELD and m.fields[0] == 5]
    close_all(dump)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    # Held once more under the same tag, as a service would that begins anew: still no end.
    assert service.ask(Type.HOLD, 5, 4, fds=(os.dup(handle),))[0] == 0
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    source, feed = os.pipe()
    service.send(
        Message(Type.RELAY, (1, 4), (source, handle)),
        Message(Type.DROP, (5, 0)),
    )
    os.write(feed, b"from the container")
    os.set_blocking(reader, True)
    assert os.read(reader, 100) == b"from the container"
    os.close(reader)
    os.write(feed, b"while nobody reads")
    reader = os.open(path, os.O_RDONLY)
    assert os.read(reader, 100) == b"while nobody reads"
    os.close(feed)
    assert os.read(reader, 100) == b""
    os.close(reader)


@pytest.mark.parametrize("reader", ["comes", "stays away"])
def test_what_nobody_has_read_is_kept_for_the_next(
    monitor: Monitor, tmp_path: Path, reader: str
) -> None:
    service = monitor.service()
    source, feed = os.pipe()
    handle = fifo(tmp_path / "fifo")
    service.send(Message(Type.RELAY, (1, 4), (source, handle)))
    os.write(feed, b"the last words")
    os.close(feed)
    status = service.wait(Type.RELAY_STATUS, lambda m: m.fields[0] == 1)
    assert status.fields == (1, 2, 0, 0, 14)
    if reader == "comes":
        end = os.open(tmp_path / "fifo", os.O_RDONLY)
        assert os.read(end, 100) == b"the last words"
        assert os.read(end, 100) == b""
        os.close(end)
    else:
        service.send(Message(Type.RELAY_STOP, (1, 1)))
    assert service.relay_end(1).fields == (1, 1, 0, 0, 14)


def test_a_reader_that_is_there_gets_its_end_at_once(monitor: Monitor, tmp_path: Path) -> None:
    service = monitor.service()
    source, feed = os.pipe()
    handle = fifo(tmp_path / "fifo")
    end = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    service.send(Message(Type.RELAY, (1, 4), (source, handle)))
    os.write(feed, b"the last words")
    os.close(feed)
    status = service.wait(Type.RELAY_STATUS, lambda m: m.fields[0] == 1)
    assert status.fields == (1, 1, 0, 0, 14)
    assert os.read(end, 100) == b"the last words"
    assert os.read(end, 100) == b""
    os.close(end)


def test_a_stdin_fifo_is_opened_and_kept_by_the_monitor(monitor: Monitor, tmp_path: Path) -> None:
    service = monitor.service()
    path = tmp_path / "in"
    handle = fifo(path)
    reader, target = os.pipe()
    service.send(
        Message(Type.RELAY, (1, 1 | 2), (os.dup(handle), target)),
        Message(Type.HOLD, (6, 4), (handle,)),
    )
    for text in (b"one", b"two"):  # a writer that goes away is not the end
        with path.open("wb") as writer:
            writer.write(text)
        assert os.read(reader, 100) == text
    with path.open("wb") as writer:
        service.send(Message(Type.DROP, (6, 0)))
        writer.write(b"three")
    assert os.read(reader, 100) == b"three"
    assert os.read(reader, 100) == b""
    os.close(reader)


def test_held_descriptors_and_state_survive_the_service(monitor: Monitor) -> None:
    service = monitor.service()
    read_end, write_end = os.pipe()
    service.send(
        Message(Type.STATE, (), (memfd(b"second state"),)),
        Message(Type.HOLD, (77, 0), (write_end,)),
    )
    service.close()
    dump = monitor.activated().hello()
    assert os.pread(dump[0].fds[0], 100, 0) == b"second state"
    (held,) = [m for m in dump if m.type == Type.HELD and m.fields[0] == 77]
    os.write(held.fds[0], b"still here")
    assert os.read(read_end, 100) == b"still here"
    close_all(dump)
    monitor.services[-1].send(Message(Type.DROP, (77, 0)))
    assert os.read(read_end, 100) == b""
    os.close(read_end)


def test_what_a_killed_service_had_sent_is_carried_out(monitor: Monitor) -> None:
    service = monitor.service()
    os.kill(monitor.process.pid, signal.SIGSTOP)
    service.send(Message(Type.STATE, (), (memfd(b"old"),)))
    for number in range(3):
        service.send(Message(Type.KILL, (1, 0), (), number))  # replies that nobody reads
    service.send(Message(Type.STATE, (), (memfd(b"new"),)))
    service.channel.close()
    os.kill(monitor.process.pid, signal.SIGCONT)
    dump = monitor.activated().hello()
    assert os.pread(dump[0].fds[0], 100, 0) == b"new"
    close_all(dump)
    service = monitor.services[-1]
    service.send(Message(Type.KILL, (1, 0), (), 1))
    select.select([service.channel], [], [])
    os.kill(monitor.process.pid, signal.SIGSTOP)
    service.send(Message(Type.STATE, (), (memfd(b"newest"),)))
    service.channel.close()  # with a reply that was not read
    os.kill(monitor.process.pid, signal.SIGCONT)
    dump = monitor.activated().hello()
    assert os.pread(dump[0].fds[0], 100, 0) == b"newest"
    close_all(dump)


def test_watched_descriptor_activates_only_without_a_service(monitor: Monitor) -> None:
    service = monitor.service()
    read_end, write_end = os.pipe()
    service.send(Message(Type.HOLD, (5, 1), (read_end,)))
    service.park_in_the_end()
    os.write(write_end, b"wake up")
    second = monitor.activated()
    close_all(second.hello())
    assert second.ask(Type.CONSUME, 5, 100) == (0, 7)
    assert second.ask(Type.CONSUME, 5, 100) == (11, 0)
    assert second.ask(Type.CONSUME, 99, 1) == (2, 0)
    second.park_in_the_end()
    os.close(write_end)
    close_all(monitor.activated().hello())


def test_consume_leaves_the_rest(monitor: Monitor) -> None:
    connection = monitor.connect()
    service = monitor.activated()
    dump = service.hello()
    tag = 1 << 31
    (held,) = [m for m in dump if m.type == Type.HELD and m.fields[0] == tag]
    peek = socket.socket(fileno=os.dup(held.fds[0]))
    peek.settimeout(BOUND_S)
    connection.sendall(b"firstsecond")
    eventually(lambda: len(peek.recv(100, socket.MSG_PEEK)) == 11, "both have come")
    assert service.ask(Type.CONSUME, tag, 5) == (0, 5)
    assert peek.recv(100) == b"second"
    peek.close()
    close_all(dump)


@pytest.mark.parametrize("by_memfd", [False, True])
def test_send_to_a_slow_peer(monitor: Monitor, by_memfd: bool) -> None:
    connection = monitor.connect()
    service = monitor.activated()
    close_all(service.hello())
    tag = 1 << 31
    expected = bytearray()
    for number in range(24):
        part = bytes([65 + number]) * (100000 + number)
        expected += part
        if by_memfd:
            service.send(Message(Type.SEND, (tag, 0), (memfd(part),)))
        else:
            service.send(Message(Type.SEND, (tag, len(part)), tail=part))
    service.park_in_the_end()  # the monitor sends on alone
    got = bytearray()
    while len(got) < len(expected):
        part = connection.recv(30000)
        assert part
        got += part
    assert got == expected


def test_send_to_a_peer_that_has_gone(monitor: Monitor) -> None:
    connection = monitor.connect()
    service = monitor.activated()
    close_all(service.hello())
    connection.close()
    service.send(Message(Type.SEND, (1 << 31, 3), tail=b"abc"))
    service.send(Message(Type.SEND, (4711, 3), tail=b"abc"))
    service.send(Message(Type.DROP, (1 << 31, 0)))
    assert service.park() == 0


def test_too_many_pieces_shut_the_socket_down(monitor: Monitor) -> None:
    connection = monitor.connect()
    service = monitor.activated()
    close_all(service.hello())
    part = bytes(2000)
    for _ in range(40):
        service.send(*[Message(Type.SEND, (1 << 31, len(part)), tail=part)] * 60)
    while connection.recv(MIB):
        pass
    service.send(Message(Type.DROP, (1 << 31, 0)))
    assert service.park() == 0


def test_park_is_refused_while_there_is_news(monitor: Monitor) -> None:
    service = monitor.service()
    assert service.ask(Type.PARK, service.events + 1) == (11, 0)
    connection = monitor.connect()
    service.wait(Type.HELD)
    assert service.ask(Type.PARK, service.events - 1) == (11, 0)
    assert service.park() == 0
    connection.sendall(b"x")
    close_all(monitor.activated().hello())


def test_alarm(monitor: Monitor) -> None:
    service = monitor.service()
    service.send(Message(Type.ALARM, (10, 0)))
    service.wait(Type.RANG)
    service.send(Message(Type.ALARM, (10, 0)), Message(Type.ALARM, (0, 0)))
    service.send(Message(Type.ALARM, (20, 0)))
    service.wait(Type.RANG)
    service.send(Message(Type.ALARM, (300, 0)))
    service.park_in_the_end()
    close_all(monitor.activated().hello())


def test_service_that_dies_again_and_again(monitor: Monitor) -> None:
    monitor.connect()
    service = monitor.activated()
    for number in range(6):
        dump = service.hello()
        assert dump[0].fields[2] & WelcomeFlag.DIED == (number > 0)
        close_all(dump)
        service.close()
        service = monitor.activated()
    close_all(service.hello())
    service.park_in_the_end()
    monitor.connect()
    dump = monitor.activated().hello()
    assert dump[0].fields[2] & WelcomeFlag.DIED == 0
    close_all(dump)


def test_service_that_answers_before_it_dies_is_replaced_at_once(monitor: Monitor) -> None:
    """Eight pauses that double would take 25 s; the bound of an activation is 20."""
    client = monitor.connect()
    service = monitor.activated()
    for number in range(12):
        dump = service.hello()
        (tag,) = [m.fields[0] for m in dump if m.type == Type.HELD and m.fields[1] == 1]
        close_all(dump)
        service.send(Message(Type.SEND, (tag, 1), tail=bytes([number])))
        assert client.recv(1) == bytes([number])
        service.close()
        service = monitor.activated()


def test_garbage_does_not_end_the_monitor(monitor: Monitor) -> None:
    service = monitor.service()
    read_end, write_end = os.pipe()
    service.channel.send(b"x")
    assert service.wait(Type.REPLY).fields[0] == 74
    socket.send_fds(service.channel, [struct.pack("<IHHQ", 16, 999, 1, 5)], [write_end])
    assert service.wait(Type.REPLY, lambda m: m.sequence == 5).fields[0] == 74
    os.close(write_end)
    assert os.read(read_end, 1) == b""  # the monitor has closed its copy
    os.close(read_end)
    for length in (0, 1, 15, 17, 0xFFFFFFFF):
        for kind in (2, 3, 4, 7, 9, 11, 14, 101):
            service.channel.send(struct.pack("<IHHQ", length, kind, 0, 6) + b"y" * 8)
            assert service.wait(Type.REPLY, lambda m: m.sequence == 6).fields[0] == 74
    for seed in range(200):
        rubbish = b"".join(os.urandom(1) for _ in range(seed % 100 + 1))
        service.channel.send(
            struct.pack("<IHHQ", len(rubbish) + 16, seed % 40 + 16, 0, 8) + rubbish
        )
        assert service.wait(Type.REPLY, lambda m: m.sequence == 8).fields[0] == 74
    big = Message(Type.SEND, (1, 60), tail=b"z" * 60)
    data, _ = encode([big])
    service.channel.send(data[:-8])
    assert service.wait(Type.REPLY).fields[0] == 74
    assert service.ask(Type.KILL, 1, 0) == (3, 0)
    assert service.park() == 0


def test_a_whole_datagram_of_requests_is_answered(monitor: Monitor) -> None:
    service = monitor.service()
    requests = [Message(Type.KILL, (1, 0), (), number + 1000) for number in range(5000)]
    service.send(*requests)
    for request in requests:
        assert service.wait(Type.REPLY).sequence == request.sequence
    assert service.park() == 0


def test_another_version_is_refused(monitor: Monitor) -> None:
    monitor.connect()
    service = monitor.activated()
    service.send(Message(Type.HELLO, (2, os.getpid())))
    with pytest.raises(EOFError):
        service.receive()
    close_all(monitor.activated().hello())


def test_quit_sends_what_waits_and_ends(monitor: Monitor) -> None:
    connection = monitor.connect()
    service = monitor.activated()
    close_all(service.hello())
    part = bytes(100000)
    messages = [Message(Type.SEND, (1 << 31, 100000), tail=part)]
    for _ in range(5):
        service.send(*messages)
    service.send(Message(Type.QUIT))
    got = 0
    while part := connection.recv(65536):
        got += len(part)
    assert got == 500000
    assert monitor.process.wait(BOUND_S) == 0


def test_quit_waits_for_what_drains(monitor: Monitor) -> None:
    """The last output of a container that is deleted while its reader is slow."""
    service = monitor.service()
    source, feed = os.pipe()
    reader, destination = os.pipe()
    os.set_blocking(destination, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(destination, bytes(4096))
    os.write(feed, b"the last words")
    service.relay(1, source, destination)
    service.send(Message(Type.RELAY_STOP, (1, 1)), Message(Type.QUIT))
    got = bytearray()
    while part := os.read(reader, 4096):
        got += part
    assert got.endswith(b"the last words")
    assert monitor.process.wait(BOUND_S) == 0
    os.close(feed)
    os.close(reader)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_activates(monitor: Monitor, number: int) -> None:
    service = monitor.service()
    service.park_in_the_end()
    monitor.process.send_signal(number)
    second = monitor.activated()
    dump = second.hello()
    (record,) = [m for m in dump if m.type == Type.RECORD]
    assert record.fields[:3] == (0, 2, number)
    close_all(dump)
    # Answered, and not acted upon: whoever comes next hears of it again.
    second.send(Message(Type.DROP, (77, 0)))
    second.channel.close()
    third = monitor.activated()
    dump = third.hello()
    assert record.fields[:3] in [m.fields[:3] for m in dump if m.type == Type.RECORD]
    close_all(dump)
    assert third.park() == 0
    assert monitor.process.poll() is None


SERVICE = """#!/bin/sh
echo "$@" >> "$PYSHIM_TEST_HOME/arguments"
readlink /proc/self/fd/3 >> "$PYSHIM_TEST_HOME/channel"
pwd >> "$PYSHIM_TEST_HOME/cwd"
exec sleep 1000
"""


def test_without_a_zygote_python_is_executed(binary: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(SERVICE)
    python.chmod(0o755)
    monitor = Monitor(binary, tmp_path, str(python), zygote=False)
    try:
        eventually(lambda: Path(monitor.address).exists(), "it listens")
        monitor.connect()
        eventually((tmp_path / "cwd").exists, "the script runs")
        eventually(lambda: (tmp_path / "cwd").read_text(), "the script has written")
        assert (tmp_path / "arguments").read_text() == "-I -X utf8 -m pyshim.service\n"
        assert (tmp_path / "channel").read_text().startswith("socket:")
        assert (tmp_path / "cwd").read_text() == f"{tmp_path}\n"
        children = Path(f"/proc/{monitor.process.pid}/task/{monitor.process.pid}/children")
        (pid,) = children.read_text().split()
        os.kill(int(pid), signal.SIGKILL)
        eventually(
            lambda: (tmp_path / "cwd").read_text().count("\n") == 2, "another one is executed"
        )
    finally:
        children = Path(f"/proc/{monitor.process.pid}/task/{monitor.process.pid}/children")
        pids = children.read_text().split()
        monitor.end()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def test_zygote_that_drops_the_channel_is_replaced_by_python(binary: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho run >> "$PYSHIM_TEST_HOME/ran"\n')
    python.chmod(0o755)
    monitor = Monitor(binary, tmp_path, str(python))
    try:
        monitor.connect()
        monitor.activated().close()
        eventually((tmp_path / "ran").exists, "Python is executed")
        dump = monitor.activated().hello()
        assert dump[0].fields[2] & WelcomeFlag.DIED
        close_all(dump)
    finally:
        monitor.end()


def test_command_line(binary: Path) -> None:
    for arguments in ([], ["--zygote", "/x"], ["--what"], ["--python"]):
        done = subprocess.run([binary, *arguments], capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.startswith("pyshim-monitor: ")
        assert done.stderr.count("\n") == 1
    done = subprocess.run([binary, "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("pyshim-monitor ")


def test_many_descriptors_come_in_the_dump(monitor: Monitor) -> None:
    service = monitor.service()
    for tag in range(100, 400):
        service.send(Message(Type.HOLD, (tag, 0), (os.dup(0),)))
    service.close()
    dump = monitor.activated().hello()
    tags = [m.fields[0] for m in dump if m.type == Type.HELD]
    assert set(range(100, 400)) <= set(tags)
    assert len(tags) == len(set(tags))
    close_all(dump)
