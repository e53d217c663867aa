"""How the monitor's relays keep pace: with a stream, with many small writes, and after either."""

from __future__ import annotations

import fcntl
import os
import select
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyshim.monitor.channel import Message, Type
from tests.integration.test_monitor import BOUND_S, Monitor, eventually
from tests.integration.test_monitor_limits import driven

PIPE_BYTES, WIDE_PIPE_BYTES = 1 << 16, 1 << 18
LINES = [b"%079d\n" % number for number in range(20000)]
SIZE = sum(map(len, LINES))
STOP_DRAIN = 1
OUTPUT, STDIN = 0, 1


@pytest.fixture
def monitor(programs: Path, tmp_path: Path) -> Iterator[Monitor]:
    yield from driven(programs / "pyshim-monitor", tmp_path)


def write_lines(fd: int) -> None:
    """Each by itself, as a program without a buffer does."""
    for line in LINES:
        os.write(fd, line)
    os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """All of it, however little is taken at a time."""
    while data:
        data = data[os.write(fd, data) :]


def writing(fd: int) -> threading.Thread:
    """A thread that writes the lines and closes ``fd``."""
    thread = threading.Thread(target=write_lines, args=(fd,), daemon=True)
    thread.start()
    return thread


def read_all(fd: int) -> bytes:
    """Up to the end; closes ``fd``."""
    with os.fdopen(fd, "rb") as file:
        return file.read()


def width(fd: int) -> int:
    """The bytes that a pipe has room for."""
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)


def test_lines_into_a_file(monitor: Monitor, tmp_path: Path) -> None:
    service = monitor.service()
    source, feed = os.pipe()
    target = tmp_path / "log"
    service.relay(1, source, os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    writing(feed).join(BOUND_S)
    assert service.relay_end(1).fields[1:] == (1, 0, 0, SIZE)
    assert target.read_bytes() == b"".join(LINES)


def test_lines_into_a_pipe(monitor: Monitor) -> None:
    service = monitor.service()
    source, feed = os.pipe()
    reader, destination = os.pipe()
    service.relay(1, source, destination)
    thread = writing(feed)
    assert read_all(reader) == b"".join(LINES)
    thread.join(BOUND_S)
    assert service.relay_end(1).fields[1:] == (1, 0, 0, SIZE)


def test_what_came_during_a_rest_is_drained(monitor: Monitor, tmp_path: Path) -> None:
    service = monitor.service()
    for number in range(1, 21):
        source, feed = os.pipe()
        target = tmp_path / f"log{number}"
        service.relay(number, source, os.open(target, os.O_WRONLY | os.O_CREAT))
        for line in LINES[:200]:
            os.write(feed, line)
        service.send(Message(Type.RELAY_STOP, (number, STOP_DRAIN)))
        assert service.relay_end(number).fields[1:] == (1, 0, 0, 200 * 80)
        os.close(feed)


def test_an_answer_to_a_stdin_is_not_kept_waiting_for_ever(monitor: Monitor) -> None:
    """A conversation of 500 questions, each asked when the one before has been answered."""
    service = monitor.service()
    question, ask = os.pipe()
    heard, hear = os.pipe()
    answer, say = os.pipe()
    reader, tell = os.pipe()
    service.relay(1, question, hear, flags=STDIN)
    service.relay(2, answer, tell, flags=OUTPUT)
    for number in range(500):
        os.write(ask, b"%d\n" % number)
        os.write(say, os.read(heard, 100))
        assert os.read(reader, 100) == b"%d\n" % number
    for fd in (ask, say, heard, reader):
        os.close(fd)
    assert service.relay_end(2).fields[1:3] == (1, 0)


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_a_stream_widens_its_pipes_until_it_is_over(
    monitor: Monitor, tmp_path: Path, kind: str
) -> None:
    service = monitor.service()
    source, feed = os.pipe()
    reader, destination = os.pipe()
    if kind == "file":
        os.close(destination)
        destination = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    os.set_blocking(feed, False)
    service.relay(1, source, destination)
    deaf = bytes(PIPE_BYTES)

    def streams() -> bool:
        while select.select([], [feed], [], 0)[1]:
            os.write(feed, deaf)
            if select.select([reader], [], [], 0)[0]:
                os.read(reader, 2 * PIPE_BYTES)
        return width(feed) == WIDE_PIPE_BYTES

    eventually(streams, "the pipe is wide")
    if kind == "pipe":
        assert width(reader) == WIDE_PIPE_BYTES

    def is_over() -> bool:
        if select.select([reader], [], [], 0)[0]:
            os.read(reader, 2 * PIPE_BYTES)
        return width(feed) == width(reader) == PIPE_BYTES

    eventually(is_over, "the pipes are as before")
    os.close(feed)
    assert service.relay_end(1).fields[1:3] == (1, 0)
    os.close(reader)


def test_a_pipe_that_has_been_given_another_size_keeps_it(monitor: Monitor) -> None:
    service = monitor.service()
    source, feed = os.pipe()
    reader, destination = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, PIPE_BYTES // 2)
    fcntl.fcntl(feed, fcntl.F_SETPIPE_SZ, 2 * PIPE_BYTES)
    service.relay(1, source, destination)
    data = os.urandom(32 * PIPE_BYTES)
    thread = threading.Thread(target=write_all, args=(feed, data), daemon=True)
    thread.start()
    got = b""
    while len(got) < len(data):
        got += os.read(reader, PIPE_BYTES)
        assert (width(reader), width(feed)) == (PIPE_BYTES // 2, 2 * PIPE_BYTES)
    thread.join(BOUND_S)
    assert got == data
    os.close(feed)
    assert service.relay_end(1).fields[1:3] == (1, 0)
    os.close(reader)
