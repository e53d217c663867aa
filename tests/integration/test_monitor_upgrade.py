"""A monitor that is replaced by another program in place: its process and all it holds stay."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyshim.monitor.channel import Message, Type, WelcomeFlag, encode_names
from tests.integration.conftest import plain_only
from tests.integration.shim import descriptors
from tests.integration.test_monitor import (
    BOUND_S,
    MIB,
    Monitor,
    Service,
    close_all,
    eventually,
    memfd,
)

GONE = (errno.ESRCH, 0)
STUCK = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"
PARTS = 100


@pytest.fixture
def binary(programs: Path) -> Path:
    return programs / "pyshim-monitor"


@pytest.fixture
def monitor(binary: Path, tmp_path: Path) -> Iterator[Monitor]:
    started = Monitor(binary, tmp_path)
    try:
        yield started
        assert started.process.poll() in {None, 0}, "the monitor must not die by itself"
    finally:
        started.end()


class Home:
    """A zygote of the new version, which the test plays as well."""

    def __init__(self, monitor: Monitor, name: str) -> None:
        self.monitor = monitor
        self.path = str(monitor.home / name)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.bind(self.path)
        self.socket.listen(8)
        self.socket.settimeout(BOUND_S)
        monitor.opened.append(self.socket)

    def activated(self) -> Service:
        """The service that the monitor asks this zygote for."""
        before, self.monitor.zygote = self.monitor.zygote, self.socket
        try:
            return self.monitor.activated()
        finally:
            self.monitor.zygote = before


def ask(service: Service, binary: Path, zygote: str, patience_ms: int = 0) -> int:
    """UPGRADE; the error of its reply."""
    program = os.open(binary, os.O_RDONLY)
    names = memfd(encode_names(zygote, "/no/python", str(binary)))
    return service.ask(Type.UPGRADE, patience_ms, 0, fds=(program, names))[0]


def upgrade(monitor: Monitor, service: Service, binary: Path) -> Service:
    """Replaces the monitor; the service of the new one, which has read its dump into the inbox."""
    home = Home(monitor, f"z{len(monitor.opened)}")
    assert ask(service, binary, home.path) == 0
    service.close()
    following = home.activated()
    following.inbox = following.hello()
    welcome = following.wait(Type.WELCOME)
    assert welcome.fields[1] == monitor.process.pid
    assert welcome.fields[2] & WelcomeFlag.PROBATION
    assert welcome.fields[3] == 0
    following.inbox.append(welcome)
    following.send(Message(Type.CONFIRM, (0, 0)))
    return following


@pytest.fixture
def other(binary: Path, tmp_path: Path) -> Path:
    """Another file with the same program."""
    folder = tmp_path / "other"
    folder.mkdir()
    return Path(shutil.copy(binary, folder / binary.name))


@pytest.fixture(scope="module")
def stuck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that does nothing, whatever its arguments; a script would not find itself."""
    folder = tmp_path_factory.mktemp("stuck")
    (folder / "stuck.c").write_text(STUCK)
    command = ["gcc", "-o", str(folder / "stuck"), str(folder / "stuck.c")]
    subprocess.run(command, check=True, timeout=BOUND_S)
    return folder / "stuck"


def facts(pid: int) -> dict[str, str]:
    """What must be as it was: of /proc/PID/status the signals, and the parent."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kept = ("SigBlk", "SigIgn", "SigCgt", "PPid", "NSpid", "Name", "Uid")
    return dict(line.split(":\t", 1) for line in lines if line.split(":")[0] in kept)


def open_files(pid: int) -> int:
    """How many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_everything_is_still_there(monitor: Monitor, binary: Path, other: Path) -> None:
    service = monitor.service()
    _, child = service.spawn("sh", "-c", "read x; exit 7", fds=(os.dup(0),), token=99)
    idle_read, idle_write = os.pipe()
    _, sleeper = service.spawn("cat", fds=(idle_read,), token=100)
    held_read, held_write = os.pipe()
    os.write(held_write, b"held")
    service.send(
        Message(Type.STATE, (), (memfd(b"second state"),)),
        Message(Type.HOLD, (20, 0), (held_read,)),
        Message(Type.ALARM, (3_600_000, 0)),
    )
    service.exit_of(child)
    assert service.ask(Type.KILL, 0x3FFFFFFF, 0) == GONE
    before, files = facts(monitor.process.pid), descriptors(monitor.process.pid)
    following = upgrade(monitor, service, other)
    assert os.readlink(f"/proc/{monitor.process.pid}/exe") == str(other)
    assert following.ask(Type.KILL, sleeper, 0) == (0, 0)
    welcome = following.wait(Type.WELCOME)
    assert os.pread(welcome.fds[0], 100, 0) == b"second state"
    records = {m.fields[0]: m.fields for m in following.inbox if m.type == Type.RECORD}
    assert records[child][1:4] == (3, 99, 7 << 8)
    assert records[sleeper][1:3] == (2, 100)
    held = {m.fields[0]: m for m in following.inbox if m.type == Type.HELD}
    assert set(held) == {1, 20, 1 << 31}
    assert os.read(held[20].fds[0], 10) == b"held"
    assert facts(monitor.process.pid) == before
    assert descriptors(monitor.process.pid) == files
    close_all([welcome])
    os.close(idle_write)
    assert following.exit_of(sleeper).fields[3] == 0
    following.send(Message(Type.FORGET, (child, 0)), Message(Type.FORGET, (sleeper, 0)))
    close_all(following.inbox)
    following.inbox = []
    # It is subreaper still: an orphan of a spawned command comes to it.
    read_end, write_end = os.pipe()
    _, pid = following.spawn("sh", "-c", "sleep 0.05 & echo $!", fds=(os.dup(0), write_end))
    with os.fdopen(read_end) as output:
        orphan = int(output.read())
    following.exit_of(pid)
    assert following.ask(Type.TRACK, orphan, 0)[0] == 0
    assert following.exit_of(orphan).fields[3] == 0
    os.close(held_write)


def test_exits_during_the_upgrade_are_not_lost(monitor: Monitor, other: Path) -> None:
    service = monitor.service()
    pids = []
    for number in range(40):
        code = f"sleep 0.0{number % 10}; exit {number}"
        error, pid = service.spawn("sh", "-c", code, token=number + 1)
        assert error == 0
        pids.append(pid)
    following = upgrade(monitor, service, other)
    for number, pid in enumerate(pids):
        assert following.exit_of(pid).fields[2:4] == (number + 1, number << 8)


def test_relays_go_on(monitor: Monitor, other: Path) -> None:
    """In every state: idle, blocked, with bytes in memory, from a file, over, and unread."""
    service = monitor.service()
    text = os.urandom(MIB)
    idle_read, idle_write = os.pipe()
    idle_out, idle_in = os.pipe()
    full_read, full_write = os.pipe()
    full_out, full_in = os.pipe()
    os.write(full_write, text[:60_000])
    terminal, user = os.openpty()
    kept, log = socket.socketpair()
    over_out, over_in = os.pipe()
    path = monitor.home / "fifo"
    os.mkfifo(path)
    unread_read, unread_write = os.pipe()
    os.set_blocking(full_in, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(full_in, bytes(4096))
    service.relay(1, idle_read, idle_in)
    service.relay(2, full_read, full_in)
    service.relay(3, terminal, log.detach())
    service.relay(4, os.open("/dev/null", os.O_RDONLY), over_in)
    service.relay(5, unread_read, os.open(path, os.O_PATH), 4)
    os.write(unread_write, b"nobody reads this")
    os.close(unread_write)
    service.relay_end(4)
    service.wait(Type.RELAY_STATUS, lambda m: m.fields[:2] == (5, 2))
    following = upgrade(monitor, service, other)
    os.write(idle_write, b"after")
    assert os.read(idle_out, 100) == b"after"
    os.write(user, b"a line")
    kept.settimeout(BOUND_S)
    assert kept.recv(100) == b"a line"
    os.close(full_write)
    with os.fdopen(full_out, "rb") as file:
        read = file.read()
    assert read.lstrip(b"\0") == text[:60_000].lstrip(b"\0")
    assert following.relay_end(2).fields[4] == 60_000
    assert following.relay_end(4).fields[2:] == (0, 0, 0)
    assert following.wait(Type.RELAY_STATUS, lambda m: m.fields[0] == 5).fields[1] == 2
    with path.open("rb") as late:
        assert late.read() == b"nobody reads this"
        following.relay_end(5)
    for fd in (idle_write, idle_out, over_out, user):
        os.close(fd)
    kept.close()


def test_bytes_in_memory_survive(monitor: Monitor, other: Path) -> None:
    """Output of a terminal that its socket did not take, while draining, and what SEND has left."""
    connection = monitor.connect()
    service = monitor.activated()
    service.inbox = service.hello()
    tag = 1 << 31
    text = os.urandom(3 * MIB)
    for at in range(0, MIB, 10_000):
        part = text[at : min(at + 10_000, MIB)]
        service.send(Message(Type.SEND, (tag, len(part)), tail=part))
    service.send(Message(Type.SEND, (tag, 2 * MIB), (memfd(text[MIB:]),)))
    near, far = socket.socketpair()
    source_read, source = os.pipe()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    terminal, user = os.openpty()
    service.relay(1, terminal, far.detach())
    service.send(Message(Type.RELAY, (2, 0), (source_read, os.open("/dev/full", os.O_WRONLY))))
    sent = 0
    os.set_blocking(user, False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(100_000):
            sent += os.write(user, b"x" * 50)
    service.send(Message(Type.RELAY_STOP, (1, 1)))
    assert service.ask(Type.KILL, 0x3FFFFFFF, 0) == GONE
    following = upgrade(monitor, service, other)
    got = b""
    while len(got) < 3 * MIB:
        got += connection.recv(MIB)
    assert got == text
    near.settimeout(BOUND_S)
    taken = 0
    while part := near.recv(65536):
        taken += len(part)
    assert taken == sent
    assert following.relay_end(1).fields[4] == sent
    near.close()
    os.close(user)
    os.close(source)


def test_alarm_and_signal_survive(monitor: Monitor, other: Path) -> None:
    service = monitor.service()
    service.send(Message(Type.ALARM, (300, 0)))
    following = upgrade(monitor, service, other)
    following.wait(Type.RANG)
    monitor.process.send_signal(signal.SIGTERM)
    record = following.wait(Type.RECORD, lambda m: m.fields[0] == 0)
    assert record.fields[2] == signal.SIGTERM
    last = upgrade(monitor, following, other)
    told = [m for m in last.inbox if m.type == Type.RECORD]
    assert [m.fields[:3] for m in told] == [record.fields[:3]]


def test_ten_times_there_and_back(monitor: Monitor, binary: Path, other: Path) -> None:
    """A child that counts on a relay's source meanwhile; no byte is lost or comes twice."""
    service = monitor.service()
    source, child_out = os.pipe()
    out, destination = os.pipe()
    count = "i=0; while test $i -lt 20000; do i=$((i+1)); echo $i; done"
    _, pid = service.spawn("sh", "-c", count, fds=(os.dup(0), child_out))
    service.relay(1, source, destination)
    assert service.ask(Type.TRACK, pid, 0)[0] == 0  # the relay has begun by now
    lines = b""
    files = open_files(monitor.process.pid)
    for number in range(10):
        service = upgrade(monitor, service, other if number % 2 == 0 else binary)
        lines += os.read(out, 5000)
    service.send(Message(Type.ALARM, (0, 0)))
    with os.fdopen(out, "rb") as rest:
        lines += rest.read()
    assert lines == b"".join(b"%d\n" % n for n in range(1, 20001))
    assert service.exit_of(pid).fields[3] == 0
    assert open_files(monitor.process.pid) <= files
    assert monitor.process.poll() is None


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", errno.ENOEXEC),
        ("#!/bin/sh\nexit 0\n", errno.EPROTO),
        ("#!/bin/sh\nexit 2\n", errno.EPROTO),
        ("#!/bin/sh\nkill -9 $$\n", errno.EPROTO),
        ("#!/no/such/interpreter\n", errno.ENOENT),
    ],
)
def test_what_fails_the_rehearsal_changes_nothing(
    monitor: Monitor, content: str, error: int
) -> None:
    program = monitor.home / "program"
    program.write_text(content)
    program.chmod(0o755)
    fails_the_rehearsal(monitor, program, error)


@plain_only  # the bound is 5 s
def test_a_program_that_hangs_fails_the_rehearsal(monitor: Monitor, stuck: Path) -> None:
    fails_the_rehearsal(monitor, stuck, errno.ETIMEDOUT)


def fails_the_rehearsal(monitor: Monitor, program: Path, error: int) -> None:
    """UPGRADE to ``program`` has this error, and the monitor is what it was."""
    service = monitor.service()
    before = open_files(monitor.process.pid)
    assert ask(service, program, "/new/zygote") == error
    assert service.ask(Type.KILL, 0x3FFFFFFF, 0) == GONE
    children = Path(f"/proc/{monitor.process.pid}/task/{monitor.process.pid}/children")
    eventually(lambda: not children.read_text(), "the rehearsal has been reaped")
    assert open_files(monitor.process.pid) == before
    service.park_in_the_end()
    monitor.connect()
    again = monitor.activated()
    dump = again.hello()
    assert dump[0].fields[2:] == (WelcomeFlag.UPGRADES | WelcomeFlag.EXECUTABLES, error)
    close_all(dump)


def test_requests_that_make_no_sense(monitor: Monitor, binary: Path) -> None:
    service = monitor.service()
    for names in (
        b"",
        b"/zygote\0/python\0",
        b"/zygote\0/python\0program\0more\0",
        b"/zygote\0\0/python\0program\0",
        b"/zygote\0/python\0program",
        b"/" + b"z" * 107 + b"\0/python\0program\0",
        b"/zygote\0/python\0" + b"p" * 20_000 + b"\0",
    ):
        fds = (os.open(binary, os.O_RDONLY), memfd(names))
        assert service.ask(Type.UPGRADE, 0, 0, fds=fds) == (errno.EINVAL, 0)
        assert service.ask(Type.HOME, fds=(memfd(names + b"\0"),)) == (errno.EINVAL, 0)
    read_end, write_end = os.pipe()
    fds = (os.open(binary, os.O_RDONLY), read_end)
    assert service.ask(Type.UPGRADE, 0, 0, fds=fds) == (errno.EINVAL, 0)
    os.close(write_end)
    service.send(Message(Type.CONFIRM, (5, 0)))
    assert service.park() == 0


def test_one_upgrade_at_a_time(monitor: Monitor, binary: Path, stuck: Path) -> None:
    service = monitor.service()
    names = memfd(encode_names("/new/zygote", "/python", "slow"))
    service.send(Message(Type.UPGRADE, (0, 0), (os.open(stuck, os.O_RDONLY), names), 1000))
    assert ask(service, binary, "/new/zygote") == errno.EALREADY
    service.send(Message(Type.QUIT))
    assert service.wait(Type.REPLY, lambda m: m.sequence == 1000).fields[0] == errno.ECANCELED
    assert monitor.process.wait(BOUND_S) == 0


@plain_only
def test_a_service_that_does_not_go_keeps_its_monitor(monitor: Monitor, binary: Path) -> None:
    service = monitor.service()
    exe = os.readlink(f"/proc/{monitor.process.pid}/exe")
    assert ask(service, binary, "/new/zygote") == 0
    # Told to go it stays; after the bound the next one may be asked for.
    eventually(lambda: ask(service, binary, "/new/zygote") == 0, "the monitor has given up")
    service.close()
    assert os.readlink(f"/proc/{monitor.process.pid}/exe") == exe


def test_a_service_that_is_killed_in_the_middle(monitor: Monitor, other: Path) -> None:
    """Before the rehearsal has ended: the monitor goes on with what it was told."""
    home = Home(monitor, "new")
    service = monitor.service()
    program = os.open(other, os.O_RDONLY)
    names = memfd(encode_names(home.path, "/no/python", str(other)))
    service.send(Message(Type.UPGRADE, (0, 0), (program, names), 5))
    service.close()
    following = home.activated()
    dump = following.hello()
    assert dump[0].fields[2] & WelcomeFlag.PROBATION
    close_all(dump)


def end_without_a_word(service: Service) -> None:
    service.close()


def refuse(service: Service) -> None:
    close_all(service.hello())
    service.send(Message(Type.CONFIRM, (errno.EPROTO, 0)))


def say_nothing(service: Service) -> None:
    close_all(service.hello())


@pytest.mark.parametrize(
    ("failure", "patience_ms", "error"),
    [
        (refuse, 60_000, errno.EPROTO),
        (say_nothing, 300, errno.ETIMEDOUT),
        (end_without_a_word, 300, errno.ETIMEDOUT),
    ],
)
def test_goes_back_to_the_old_program(
    monitor: Monitor, other: Path, failure: object, patience_ms: int, error: int
) -> None:
    assert callable(failure)
    service = monitor.service()
    exe = os.readlink(f"/proc/{monitor.process.pid}/exe")
    source, child_out = os.pipe()
    out, destination = os.pipe()
    _, pid = service.spawn("cat", fds=(os.open("/dev/zero", os.O_RDONLY), child_out), token=5)
    service.relay(1, source, destination)
    assert service.ask(Type.KILL, 0x3FFFFFFF, 0) == GONE
    before, files = facts(monitor.process.pid), descriptors(monitor.process.pid)
    home = Home(monitor, "new")
    assert ask(service, other, home.path, patience_ms) == 0
    service.close()
    failure(home.activated())
    old = monitor.activated()
    dump = old.hello()
    assert dump[0].fields[1:] == (monitor.process.pid, dump[0].fields[2], error)
    assert not dump[0].fields[2] & WelcomeFlag.PROBATION
    assert [m.fields[2] for m in dump if m.type == Type.RECORD] == [5]
    close_all(dump)
    assert os.readlink(f"/proc/{monitor.process.pid}/exe") == exe
    assert os.read(out, 10) == bytes(10)
    assert facts(monitor.process.pid) == before
    assert descriptors(monitor.process.pid) == files
    assert old.ask(Type.KILL, pid, 9) == (0, 0)
    assert old.exit_of(pid).fields[3] == 9
    os.close(out)
    # And may try again.
    final = upgrade(monitor, old, other)
    assert os.readlink(f"/proc/{monitor.process.pid}/exe") == str(other)
    assert final.ask(Type.KILL, 0x3FFFFFFF, 0) == GONE


def test_home_is_where_the_next_service_comes_from(monitor: Monitor) -> None:
    service = monitor.service()
    home = Home(monitor, "other")
    service.send(Message(Type.HOME, (), (memfd(encode_names(home.path, "/python")),)))
    assert service.park() == 0
    monitor.connect()
    close_all(home.activated().hello())


# --- The snapshot's format ------------------------------------------------------------------------

HEAD = struct.pack("<II", 0x4D53594E, 1)
VITAL = 1
MONITOR_RECORD = struct.pack("<iIIiiIqqQQ", 30, 1 << 31, 0, 0, 0, 0, 0, 0, 1024, 4096)


def record(kind: int, fixed: bytes = b"", rest: bytes = b"", flags: int = VITAL) -> bytes:
    """One record, padded."""
    size = 16 + len(fixed) + len(rest)
    head = struct.pack("<IHHII", size, kind, flags, len(fixed), 0)
    return head + fixed + rest + bytes(-size % 8)


END = record(7)


def can_take_over(binary: Path, snapshot: bytes) -> bool:
    """Whether the monitor says that it can go on with ``snapshot``."""
    fd = memfd(snapshot)
    command = [str(binary), "--zygote", "/z", "--python", "/p", "--rehearse", str(fd)]
    try:
        done = subprocess.run(
            command, pass_fds=(fd,), check=False, timeout=BOUND_S, capture_output=True
        )
    finally:
        os.close(fd)
    assert done.returncode in {100, 2}, done
    assert (done.returncode == 100) == (done.stderr == b"")
    return done.returncode == 100


def test_a_snapshot_of_another_version(binary: Path) -> None:
    first = record(1, MONITOR_RECORD)
    held = record(3, struct.pack("<IIIi", 5, 0, 0, 40))
    assert can_take_over(binary, HEAD + first + held + END)
    # From a newer one: records and fields that are not known here, but need not be.
    newer = record(3, struct.pack("<IIIiQ", 6, 0, 0, 41, 2**63))
    assert can_take_over(binary, HEAD + first + newer + record(77, b"what", flags=0) + END)
    assert not can_take_over(binary, HEAD + first + record(77, b"what") + END)
    # From an older one: fields that are not there.
    assert can_take_over(binary, HEAD + record(1, MONITOR_RECORD[:8]) + END)
    assert not can_take_over(binary, struct.pack("<II", 0x4D53594E, 2) + first + END)
    assert not can_take_over(binary, HEAD + first)
    assert not can_take_over(binary, HEAD + END)
    assert not can_take_over(binary, b"")


def test_a_snapshot_of_nonsense(binary: Path) -> None:
    """Every record with damage: read or refused, never a crash."""
    names = b"/z\0/p\0program\0"
    relay = struct.pack("<IIiiiiQqqQqII", 9, 0, 2, 50, 51, 0, 0, 0, 0, 0, 0, 3, 0)
    process = struct.pack("<iIQiIqq", 77, 3, 8, 0, 0, 0, 0)
    whole = (
        HEAD
        + record(1, MONITOR_RECORD)
        + record(2, struct.pack("<iI", 60, 1000), names)
        + record(3, struct.pack("<IIIi", 5, 0, 0, 40))
        + record(4, struct.pack("<IiQQ", 5, -1, 4, 1), b"text")
        + record(5, process)
        + record(6, relay, b"residue")
        + END
    )
    assert can_take_over(binary, whole)
    chance = random.Random(1)
    taken = 0
    for _ in range(PARTS):
        damaged = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.choice([0, 1, 127, 128, 255])
        taken += can_take_over(binary, bytes(damaged[: chance.choice([len(whole)] * 3 + [99])]))
    assert 0 < taken < PARTS


def test_a_snapshot_that_fills_every_table(binary: Path) -> None:
    held = b"".join(record(3, struct.pack("<IIIi", n + 2, 0, 0, 40)) for n in range(4096))
    first = HEAD + record(1, MONITOR_RECORD)
    assert can_take_over(binary, first + held + END)
    assert not can_take_over(
        binary, first + held + record(3, struct.pack("<IIIi", 1, 0, 0, 9)) + END
    )
