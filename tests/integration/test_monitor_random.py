"""Requests at random, with descriptors of all kinds: the monitor lives, and loses no descriptor."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyshim.monitor.channel import Message, Type, encode_program
from tests.integration.test_monitor import Monitor, Service, close_all, memfd
from tests.integration.test_monitor_limits import children_of, unshared_monitor

SEEDS = 20
ROUNDS = 100
SOME_TAGS, SOME_RELAYS = range(2, 40), range(30)
ACCEPTED = 1 << 31
FOR_NOBODY = 2  # the sequence of requests for what does not exist
COMMANDS = (
    ("true",),
    ("cat",),
    ("/no/such/program",),
    ("",),
    ("sh", "-c", "sleep 0.01 & exit 3"),
    ("sh", "-c", "echo hello; exec cat"),
)


@pytest.fixture
def monitor(programs: Path, tmp_path: Path) -> Iterator[Monitor]:
    """In a pid namespace, so that no KILL hits anybody else."""
    yield from unshared_monitor(programs, tmp_path)


class Chance:
    """A seeded source of requests; owns the ends of what it has given away."""

    def __init__(self, seed: int, home: Path) -> None:
        self.random = random.Random(seed)
        self.home = home
        self.fds: list[int] = []
        self.pids = [0, -1, 99_999_999]

    def pair(self) -> list[int]:
        """Two descriptors of some kind."""
        kind = self.random.randrange(7)
        if kind == 0:
            return list(os.pipe())
        if kind == 1:
            return [end.detach() for end in socket.socketpair()]
        if kind == 2:
            return list(os.openpty())
        if kind == 3:
            path = self.home / "file"
            path.write_bytes(bytes(self.random.randrange(200_000)))
            return [os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR | os.O_APPEND)]
        if kind == 4:
            return [os.open("/dev/null", os.O_RDWR), os.open("/", os.O_RDONLY)]
        if kind == 5:
            return [socket.socket(socket.AF_UNIX).detach(), os.eventfd(1)]
        path = self.home / f"fifo{len(list(self.home.iterdir()))}"
        os.mkfifo(path)
        return [os.open(path, os.O_PATH), os.open(path, os.O_RDONLY | os.O_NONBLOCK)]

    def fd(self) -> int:
        """A descriptor to give away; its other end stays here."""
        if not self.fds or self.random.random() < 0.3:
            self.fds += self.pair()
        return self.fds.pop(self.random.randrange(len(self.fds)))

    def request(self) -> Message:
        """A well-formed request, which may make no sense."""
        pick = self.random.choice
        tag = pick([*SOME_TAGS, *[0] * 8, ACCEPTED, ACCEPTED + 1, 2**32 - 1])
        relay, pid, size = pick(SOME_RELAYS), pick(self.pids), pick([0, 1, 5000, 70_000])
        make: Callable[[], Message] = pick(
            [
                lambda: Message(Type.STATE, (), (memfd(b"state"),)),
                self.spawn,
                lambda: Message(Type.TRACK, (pid, 0), (), 1),
                lambda: Message(Type.FORGET, (pid, 0)),
                lambda: Message(Type.KILL, (pid, pick([0, 9, 15, 1000, -3])), (), 1),
                lambda: Message(Type.HOLD, (tag, self.random.randrange(9)), (self.fd(),), 1),
                lambda: Message(Type.DROP, (tag, 0)),
                lambda: Message(
                    Type.RELAY, (relay, self.random.randrange(9)), (self.fd(), self.fd()), 1
                ),
                lambda: Message(Type.RELAY_STOP, (relay, self.random.randrange(4))),
                lambda: Message(Type.SEND, (tag, min(size, 9000)), (), 1, bytes(min(size, 9000))),
                lambda: Message(Type.SEND, (tag, 0), (memfd(bytes(size)),)),
                lambda: Message(Type.CONSUME, (tag, size), (), 1 if tag else FOR_NOBODY),
                lambda: Message(Type.ALARM, (pick([0, 1, 5, 1000]), 0)),
                lambda: Message(Type.PARK, (self.random.randrange(50),), (), 1),
            ]
        )
        return make()

    def spawn(self) -> Message:
        """A SPAWN, which may be damaged."""
        program = bytearray(encode_program("/", self.random.choice(COMMANDS), {"PATH": "/bin"}))
        if self.random.random() < 0.2:
            program[self.random.randrange(len(program))] = self.random.randrange(256)
        fds = [self.fd() for _ in range(self.random.choice([0, 1, 3, 3, 5]))]
        fields = (self.random.randrange(9), self.random.randrange(3), 0)
        return Message(Type.SPAWN, fields, (memfd(bytes(program)), *fds), 1)

    def disturb(self) -> None:
        """Reads, writes or closes one of the other ends."""
        if self.fds:
            at = self.random.randrange(len(self.fds))
            with contextlib.suppress(OSError):
                os.set_blocking(self.fds[at], False)
                if self.random.random() < 0.6:
                    os.write(self.fds[at], bytes(self.random.randrange(90_000)))
                else:
                    os.read(self.fds[at], 50_000)
            if self.random.random() < 0.1:
                os.close(self.fds.pop(at))

    def end(self) -> None:
        """Closes what is left here."""
        for fd in self.fds:
            os.close(fd)


def take(service: Service, chance: Chance) -> bool:
    """Takes what has come without waiting; false at the end of the channel."""
    service.channel.setblocking(False)
    try:
        while True:
            service.receive()
    except BlockingIOError:
        return True
    except (EOFError, ConnectionResetError):
        return False
    finally:
        replies = [m.fields[0] for m in service.inbox if m.sequence == FOR_NOBODY]
        assert set(replies) <= {errno.ENOENT, errno.EBADMSG}
        chance.pids += [m.fields[0] for m in service.inbox if m.type == Type.RECORD]
        close_all(service.inbox)
        service.inbox = []
        service.channel.settimeout(20)


def again(monitor: Monitor) -> tuple[Service, list[int]]:
    """The next service, and the tags of what is held besides the listener."""
    monitor.connect()
    service = monitor.activated()
    dump = service.hello()
    close_all(dump)
    return service, [m.fields[0] for m in dump if m.type == Type.HELD and m.fields[0] > 1]


def held_by(monitor: Monitor) -> int:
    """How many descriptors the monitor has."""
    (inside,) = children_of(monitor.process.pid)
    return len(os.listdir(f"/proc/{inside}/fd"))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_requests(monitor: Monitor, tmp_path: Path, seed: int) -> None:
    chance = Chance(seed, tmp_path)
    try:
        service, tags = again(monitor)
        service.send(*[Message(Type.DROP, (tag, 0)) for tag in tags])
        assert service.ask(Type.KILL, 1, 0)[0]
        before = held_by(monitor)
        for _ in range(ROUNDS):
            requests = [chance.request() for _ in range(chance.random.randrange(1, 6))]
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                service.send(*requests)
            chance.disturb()
            if not take(service, chance) or chance.random.random() < 0.05:
                service.close()
                service, _ = again(monitor)
        service.close()
        service, tags = again(monitor)
        service.send(*[Message(Type.DROP, (tag, 0)) for tag in tags])
        service.send(*[Message(Type.RELAY_STOP, (relay, 0)) for relay in SOME_RELAYS])
        assert service.ask(Type.KILL, 1, 0)[0]
        assert held_by(monitor) == before
    finally:
        chance.end()
