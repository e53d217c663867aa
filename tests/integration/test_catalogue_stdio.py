"""The known bugs of shims in standard streams: shim.md 3.2, by their numbers.

All of 21 to 37 apply.  The counts of 26, 32, 35 and 37 are a tenth, or so, of the catalogue's.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from pyshim.api import task_pb2
from pyshim.ttrpc.status import Code, StatusError

from .conftest import BOUND_S, eventually
from .containerd import RUNC_ROOT
from .fake_runtime import fake_runtime
from .fifos import Reader, fifo
from .shim import KILLED, Host, descriptors, host, module_host
from .test_logs import logging_binary

__all__ = ["host", "module_host"]

SLEEP = ("/bin/sleep", "1000")
CRI_TIMEOUT_S = 10  # for all that CRI does about an exit
MIB = 1024 * 1024
KIB = 1024
PIPES_BYTES = 2 * 64 * KIB  # a pipe from the container and the fifo


def numbers(last: int, end: str = "\n") -> bytes:
    """What `seq 1 last` prints."""
    return "".join(f"{number}{end}" for number in range(1, last + 1)).encode()


def seq(last: int) -> tuple[str, ...]:
    """The command for it."""
    return ("/bin/seq", "1", str(last))


def with_terminal(spec: dict[str, Any]) -> None:
    """A container whose init has a terminal."""
    spec["process"]["terminal"] = True


# --- Output --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_21_a_grandchild_keeps_the_output_open(host: Host, tmp_path: Path, stream: str) -> None:
    container = host.started(*SLEEP)
    reader = Reader(tmp_path / "fifo")
    script = "exec >&2; " if stream == "stderr" else ""
    container.exec(
        "e", "/bin/sh", "-c", f"{script}seq 1 5000; sleep 1000 &", **{stream: reader.path}
    )
    container.start("e")
    assert container.wait("e").exit_status == 0
    container.delete("e", CRI_TIMEOUT_S)
    assert reader.all() == numbers(5000)
    pids = container.call("Pids", task_pb2.PidsRequest(id=container.name), task_pb2.PidsResponse)
    assert len(pids.processes) == 2
    container.end()


@pytest.mark.parametrize("pause_s", [0.0, 0.3])
def test_22_a_slow_reader_gets_everything(host: Host, tmp_path: Path, pause_s: float) -> None:
    """What is in the pipes when the container exits takes the slow one 10 s to read."""
    text = numbers(3_000_000)
    reader = Reader(tmp_path / "fifo", slow_after=len(text) - PIPES_BYTES, pause_s=pause_s)
    container = host.started(*seq(3_000_000), stdout=reader.path)
    assert container.wait().exit_status == 0
    container.finish()
    assert reader.all() == text


def test_22_a_reader_that_has_stopped_delays_no_delete(host: Host, tmp_path: Path) -> None:
    path = fifo(tmp_path / "fifo")
    held = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        container = host.started(*seq(20000), stdout=path)
        assert container.wait().exit_status == 0
        container.delete(timeout_s=CRI_TIMEOUT_S)
        container.leave()
    finally:
        os.close(held)


def test_23_the_runtime_forgets_a_container_whose_output_stays_open(
    host: Host, tmp_path: Path
) -> None:
    reader = Reader(tmp_path / "fifo")
    script = "seq 1 1000; exec sleep 1000"
    container = host.started("/bin/sh", "-c", script, stdout=reader.path)
    state = RUNC_ROOT / host.namespace / container.name
    assert state.exists()
    eventually(lambda: reader.size == len(numbers(1000)), "the output has come")
    held = os.open(f"/proc/{container.state().pid}/fd/1", os.O_WRONLY)
    try:
        container.kill()
        assert container.wait().exit_status == KILLED
        container.delete(timeout_s=CRI_TIMEOUT_S)
        assert not state.exists()
        assert reader.all() == numbers(1000)
        with pytest.raises(BrokenPipeError):
            os.write(held, b"too late")
    finally:
        os.close(held)
    container.leave()


def test_24_output_waits_for_a_reader_that_comes_back(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    first = Reader(path, stop_after=100_000)
    container = host.started(*seq(300_000), stdout=path)
    found = first.all()
    eventually(lambda: not host.services(), "the service has parked")
    for _ in range(3):
        again = Reader(path, stop_after=100_000)
        found += again.all()
    assert container.state().status == task_pb2.RUNNING
    last = Reader(path)
    assert container.wait().exit_status == 0
    container.finish()
    assert found + last.all() == numbers(300_000)


@pytest.mark.parametrize("reader", ["comes back", "stays away"])
def test_24_last_words_wait_for_a_reader(host: Host, tmp_path: Path, reader: str) -> None:
    """The container ends while nobody reads; until Delete somebody may."""
    path = tmp_path / "fifo"
    first = Reader(path, stop_after=6)
    script = "echo first; read line; seq 1 5000"
    stdin = fifo(tmp_path / "in")
    container = host.started("/bin/sh", "-c", script, stdin=stdin, stdout=path)
    assert first.all() == b"first\n"
    with stdin.open("wb") as writer:
        writer.write(b"go on\n")
    assert container.wait().exit_status == 0
    eventually(lambda: not host.services(), "the service has parked")
    if reader == "comes back":
        assert Reader(path).all() == numbers(5000)
    container.delete(timeout_s=CRI_TIMEOUT_S)
    container.leave()


@pytest.fixture
def small_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 64 KiB."""
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    subprocess.run(command, check=True, timeout=BOUND_S)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, timeout=BOUND_S)


@pytest.mark.parametrize("log", ["full", "never"])
def test_25_a_log_that_takes_no_more_stops_nobody(host: Host, small_folder: Path, log: str) -> None:
    path = small_folder / "log" if log == "full" else Path("/dev/full")
    container = host.started(*seq(200_000), stdout=f"file://{path}", stderr=f"file://{path}")
    assert container.wait().exit_status == 0
    container.finish()
    if log == "full":
        text = path.read_bytes()
        assert 0 < len(text) <= 64 * KIB
        assert numbers(200_000).startswith(text)


def test_25_a_log_goes_on_when_there_is_room_again(host: Host, small_folder: Path) -> None:
    filler, log = small_folder / "filler", small_folder / "log"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(KIB))
    stdin = fifo(small_folder.parent / "in")
    script = "echo lost; read x; echo kept; exit 4"
    container = host.started("/bin/sh", "-c", script, stdin=stdin, stdout=f"file://{log}")
    eventually(lambda: not host.services(), "the first line has been tried")
    filler.unlink()
    with stdin.open("wb") as writer:
        writer.write(b"go on\n")
    assert container.wait().exit_status == 4
    container.finish()
    assert log.read_text() == "kept\n"


@pytest.mark.parametrize("who", ["init", "exec"])
def test_26_all_of_a_large_output_by_a_terminal(host: Host, tmp_path: Path, who: str) -> None:
    text = numbers(500_000, "\r\n")
    main = host.started(*SLEEP)
    for number in range(2):
        reader = Reader(tmp_path / f"fifo{number}")
        if who == "init":
            container = host.started(
                *seq(500_000), stdout=reader.path, terminal=True, edit=with_terminal
            )
            assert container.wait().exit_status == 0
            container.finish()
        else:
            assert main.run("e", *seq(500_000), stdout=reader.path, terminal=True) == 0
        assert reader.all() == text
    main.end()


def terminals(pid: int) -> int:
    """How many terminals a process holds."""
    return len([name for name in descriptors(pid) if name.endswith("ptmx")])


def test_27_terminals_are_let_go(host: Host, tmp_path: Path) -> None:
    main = host.started(*SLEEP, pod="27")
    (monitor,) = host.monitors()
    before = host.holdings()
    for number in range(50):
        reader = Reader(tmp_path / f"fifo{number}")
        stdin = fifo(tmp_path / f"stdin{number}")
        container = host.started(
            *("/bin/sh", "-c", "echo there; exec sleep 1000"),
            pod="27",
            edit=with_terminal,
            terminal=True,
            stdin=stdin,
            stdout=reader.path,
        )
        eventually(lambda reader=reader: reader.size, "the terminal works")
        assert 1 <= terminals(monitor) <= 3  # once held, and by a relay for either direction
        container.end()
        assert reader.all() == b"there\r\n"
        assert terminals(monitor) == 0
    assert host.holdings() == before
    main.end()


def test_28_a_create_that_fails_leaves_nothing(host: Host, tmp_path: Path) -> None:
    main = host.started(*SLEEP, pod="28")
    before = host.holdings()
    runtime = fake_runtime(tmp_path, before_create="exit 3")
    for number in range(150):
        readers = [Reader(tmp_path / f"{name}{number}") for name in ("out", "err")]
        container = host.container("/no/such/program", pod="28")
        with pytest.raises(StatusError, match="OCI runtime create failed"):
            container.create(
                stdin=fifo(tmp_path / f"in{number}"),
                stdout=readers[0].path,
                stderr=readers[1].path,
                runtime=None if number % 10 == 0 else runtime,
            )
        container.leave()
        assert [reader.all() for reader in readers] == [b"", b""]
    assert host.holdings() == before
    main.end()


@pytest.mark.parametrize("meanwhile", ["parked", "killed"])
def test_29_streams_outlive_connections_and_services(
    host: Host, tmp_path: Path, meanwhile: str
) -> None:
    reader = Reader(tmp_path / "out")
    stdin = fifo(tmp_path / "in")
    script = "seq 1 1000; read line; seq 1001 2000; read line; exit $line"
    container = host.started("/bin/sh", "-c", script, stdin=stdin, stdout=reader.path)
    for line in (b"go on\n", b"7\n"):
        container.client.close()
        if meanwhile == "parked":
            eventually(lambda: not host.services(), "the service has parked")
        else:
            host.kill_services()
        writer = os.open(stdin, os.O_WRONLY)
        os.write(writer, line)
        os.close(writer)
        container.reconnect()
    assert container.wait().exit_status == 7
    container.finish()
    assert reader.all() == numbers(2000)


# --- Input ---------------------------------------------------------------------------------------


def test_30_a_container_that_has_closed_its_stdin(host: Host, tmp_path: Path) -> None:
    stdin = fifo(tmp_path / "in")
    container = host.started("/bin/sh", "-c", "exec sleep 1000 <&-", stdin=stdin)
    with pytest.raises(BrokenPipeError), stdin.open("wb", 0) as writer:
        for _ in range(16):
            writer.write(bytes(64 * KIB))
    assert container.state().status == task_pb2.RUNNING
    container.end()


@pytest.mark.parametrize("ends", [False, True])
def test_30_stdin_that_nobody_opens(host: Host, tmp_path: Path, ends: bool) -> None:
    container = host.started("/bin/cat", stdin=fifo(tmp_path / "in"))
    if ends:
        request = task_pb2.CloseIORequest(id=container.name, stdin=True)
        container.call("CloseIO", request, Empty)
        assert container.wait().exit_status == 0
        container.finish()
    else:
        assert container.state().status == task_pb2.RUNNING
        container.end()


class Unread:
    """A host of its own, where a Create waits for the reader of a fifo that never comes."""

    def __init__(self, host: Host, path: Path) -> None:
        self.host = host
        self.main = host.started(*SLEEP, pod="31")
        self.before = host.holdings()
        self.container = host.container(*SLEEP, pod="31")
        request = self.container.create_request(stdout=fifo(path))
        self.create = self.container.send("Create", request)


@pytest.fixture(scope="module", autouse=True)
def unread(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unread]:
    """Begins before the other tests, because it takes half a minute."""
    host = Host(tmp_path_factory.mktemp("h"), rootfs)
    try:
        yield Unread(host, host.home / "fifo")
    finally:
        host.end()


def test_31_a_fifo_that_nobody_reads(unread: Unread) -> None:
    """Create gives its reader 30 s; others are served meanwhile."""
    assert unread.main.run("e", "/bin/true") == 0
    with pytest.raises(StatusError, match="nobody opened it for reading") as caught:
        unread.container.receive(unread.create, task_pb2.CreateTaskResponse)
    assert caught.value.code == Code.DEADLINE_EXCEEDED
    unread.container.leave()
    assert unread.host.holdings() == unread.before
    unread.main.end()
    unread.host.nothing_left()


def test_31_a_reader_that_comes_late(host: Host, tmp_path: Path) -> None:
    main = host.started(*SLEEP, pod="31")
    container = host.container(*seq(1000), pod="31")
    paths = [fifo(tmp_path / name) for name in ("out", "err")]
    request = container.create_request(stdout=paths[0], stderr=paths[1])
    create = container.send("Create", request)
    assert main.run("e", "/bin/true") == 0
    readers = [Reader(path) for path in paths]
    container.receive(create, task_pb2.CreateTaskResponse)
    container.start()
    assert container.wait().exit_status == 0
    container.finish()
    assert [reader.all() for reader in readers] == [numbers(1000), b""]
    main.end()


def test_32_the_end_of_stdin_leaves_nothing(host: Host, tmp_path: Path) -> None:
    container = host.started(*SLEEP)
    before = host.holdings()
    for number in range(60):
        stdin = fifo(tmp_path / f"in{number}")
        reader = Reader(tmp_path / f"out{number}")
        container.exec("e", "/bin/cat", stdin=stdin, stdout=reader.path)
        container.start("e")
        with stdin.open("wb") as writer:
            writer.write(numbers(number))
        request = task_pb2.CloseIORequest(id=container.name, exec_id="e", stdin=True)
        container.call("CloseIO", request, Empty)
        assert container.wait("e").exit_status == 0
        container.delete("e")
        assert reader.all() == numbers(number)
    assert host.holdings() == before
    container.end()


# --- Logs ----------------------------------------------------------------------------------------


def test_33_a_log_whose_reader_has_gone(host: Host) -> None:
    container = host.container(*SLEEP, flags=("-debug",))
    held = os.open(fifo(container.bundle / "log"), os.O_RDONLY | os.O_NONBLOCK)
    container.create()
    os.close(held)
    container.start()
    assert container.run("good", "/bin/true") == 0
    container.exec("bad", "/no/such/program")
    with pytest.raises(StatusError):
        container.start("bad")
    eventually(lambda: not host.services(), "the service has parked")
    container.end()


def test_34_a_log_that_nobody_reads(host: Host) -> None:
    """What does not fit is dropped, in whole lines."""
    container = host.container(*SLEEP, flags=("-debug",))
    log = fifo(container.bundle / "log")
    held = os.open(log, os.O_RDWR | os.O_NONBLOCK)  # as containerd has it
    try:
        container.create()
        container.start()
        request = task_pb2.StateRequest(id=container.name)
        for _ in range(20):
            streams = [container.send("State", request) for _ in range(500)]
            found = [container.receive(stream, task_pb2.StateResponse) for stream in streams]
            assert {state.status for state in found} == {task_pb2.RUNNING}
        assert container.run("e", "/bin/true") == 0
        text = os.read(held, MIB)
        assert 32 * KIB < len(text) <= 64 * KIB
        assert text.endswith(b"\n")
        assert all(line.startswith(b'time="') for line in text.splitlines())
        container.end()
    finally:
        os.close(held)


UNTIL_THE_END = "echo >&5; exec 5>&-; cat <&4 >>err & cat <&3 >>out; wait; echo ended >>ends"


def test_35_logging_binaries_see_the_end_and_leave_nothing(host: Host, tmp_path: Path) -> None:
    path = logging_binary(tmp_path, UNTIL_THE_END)
    main = host.started(*SLEEP, pod="35")
    before = host.holdings()
    for _ in range(50):
        container = host.started(*seq(1000), pod="35", stdout=f"binary://{path}")
        assert container.wait().exit_status == 0
        container.finish()
    (monitor,) = host.monitors()
    assert Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split() == [
        str(main.state().pid)
    ]
    assert host.holdings() == before
    main.end()
    assert (tmp_path / "out").read_bytes() == numbers(1000) * 50
    assert (tmp_path / "err").read_bytes() == b""
    assert (tmp_path / "ends").read_text() == "ended\n" * 50


def test_35_a_logging_binary_that_ignores_the_end_is_told(host: Host, tmp_path: Path) -> None:
    script = (
        "trap 'echo told >told; exit' TERM; echo $$ >pid; echo >&5; while :; do sleep 0.1; done"
    )
    path = logging_binary(tmp_path, script)
    container = host.started("/bin/true", stdout=f"binary://{path}")
    container.wait()
    container.delete(timeout_s=CRI_TIMEOUT_S)
    assert (tmp_path / "told").read_text() == "told\n"
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()
    container.leave()


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("scheme", ["binary", "binary-v2"])
def test_36_a_logging_binary_that_is_gone_before_it_is_ready(
    host: Host, tmp_path: Path, scheme: str, terminal: bool
) -> None:
    path = logging_binary(tmp_path, "exit 1")
    container = host.container(*seq(20000), edit=with_terminal if terminal else lambda _: None)
    given = {"stdout": f"{scheme}://{path}", "terminal": terminal}
    if scheme == "binary-v2":
        with pytest.raises(StatusError, match="before it was ready"):
            container.create(**given)
        container.leave()
        return
    container.create(**given)
    container.start()
    container.wait()
    container.delete(timeout_s=CRI_TIMEOUT_S / 2)  # there is nobody to wait for
    container.leave()


def test_36_a_logging_binary_that_was_refused_is_ended(host: Host, tmp_path: Path) -> None:
    path = logging_binary(tmp_path, "echo $$ >pid; exec 5>&-; exec sleep 1000")
    container = host.container(*SLEEP)
    with pytest.raises(StatusError, match="before it was ready"):
        container.create(stdout=f"binary-v2://{path}")
    logger = int((tmp_path / "pid").read_text())
    eventually(lambda: not Path(f"/proc/{logger}").exists(), "the logging binary has ended")
    container.leave()


# --- All of them ---------------------------------------------------------------------------------


def test_37_many_containers_in_one_shim_leave_nothing(host: Host, tmp_path: Path) -> None:
    main = host.started(*SLEEP, pod="37")
    before = host.holdings()

    def one(number: int) -> None:
        reader = Reader(tmp_path / f"out{number}")
        stdin = fifo(tmp_path / f"in{number}")
        container = host.started("/bin/cat", pod="37", stdin=stdin, stdout=reader.path)
        with stdin.open("wb") as writer:
            writer.write(numbers(number))
        assert container.run("e", "/bin/true") == 0
        container.call("CloseIO", task_pb2.CloseIORequest(id=container.name, stdin=True), Empty)
        assert container.wait().exit_status == 0
        container.finish()
        assert reader.all() == numbers(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(100)))
    assert host.holdings() == before
    main.end()
