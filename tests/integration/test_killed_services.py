"""Services that are killed at any moment: nothing is lost, and nothing is told twice."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from pyshim.api import task_pb2

from .conftest import BOUND_S, eventually
from .fifos import Reader, fifo
from .goshim import GoHost, go, module_go
from .shim import KILLED, Host, host, module_host

__all__ = ["go", "host", "module_go", "module_host"]

SLEEP = ("/bin/sleep", "1000")
LINES = b"a line that goes in and comes out\n" * 1000


@contextlib.contextmanager
def killing_services(host: Host, seed: int) -> Iterator[list[int]]:
    """Kills whatever service is active, again and again; the pids of those that were."""
    chance = random.Random(seed)
    done = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        while not done.wait(chance.uniform(0.005, 0.06)):
            for pid in host.services()[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join(BOUND_S)


def life(host: Host, folder: Path, number: int) -> str:
    """A container's life with execs, one in a terminal, and streams; its name."""
    output, answer = Reader(folder / f"out{number}"), Reader(folder / f"exec{number}")
    stdin = fifo(folder / f"in{number}")
    pod = "killed" if number % 2 else ""
    container = host.started(
        "/bin/sh", "-c", "cat; exit 3", pod=pod, stdin=stdin, stdout=output.path
    )
    script = f"echo exec {number}; exit {number}"
    assert container.run("e", "/bin/sh", "-c", script, stdout=answer.path) == number
    assert answer.all().decode() == f"exec {number}\n"
    screen = Reader(folder / f"screen{number}")
    assert container.run("t", "/bin/seq", "1", "2000", stdout=screen.path, terminal=True) == 0
    assert screen.all().decode() == "".join(f"{n}\r\n" for n in range(1, 2001))
    container.exec("k", *SLEEP)
    container.start("k")
    container.kill(exec_id="k")
    assert container.wait("k").exit_status == KILLED
    with stdin.open("wb") as writer:
        writer.write(LINES)
    container.call("CloseIO", task_pb2.CloseIORequest(id=container.name, stdin=True), Empty)
    assert container.wait().exit_status == 3
    assert container.finish().exit_status == 3
    assert output.all() == LINES
    return container.name


def test_nothing_is_lost_and_nothing_told_twice(host: Host, tmp_path: Path) -> None:
    main = host.started(*SLEEP, pod="killed")
    before = host.holdings()
    with killing_services(host, 1) as killed, ThreadPoolExecutor(4) as pool:
        names = list(pool.map(lambda number: life(host, tmp_path, number), range(100)))
    assert len(killed) > 20
    for name in names:
        topics = host.events.whole(name)
        assert topics == [
            *("create", "start", *("exec-added", "exec-started", "exit") * 3, "exit", "delete")
        ]
        assert host.events.exits(name)[-1] == (name, 3)
    eventually(lambda: host.holdings() == before, "nothing is left")
    main.end()


def test_an_event_that_is_answered_late_is_told_once(host: Host) -> None:
    """No service waits for it, as a stopped containerd may take any time."""
    container = host.container(*SLEEP)
    host.events.block()
    try:
        container.create()
        container.start()
        eventually(lambda: not host.services(), "the service has parked")
        assert host.events.topics(container.name) == []
    finally:
        host.events.unblock()
    host.events.await_topic(container.name, "start")
    container.end()
    assert host.events.whole(container.name) == ["create", "start", "exit", "delete"]


def test_the_go_shim_tells_it_again(go: GoHost) -> None:
    """After five seconds, whatever became of what it has told."""
    container = go.started(*SLEEP)
    go.events.await_topic(container.name, "start")
    go.events.block()
    try:
        container.kill()
        container.wait()
        eventually(lambda: go.events.pending() > 1, "the exit is offered again")
    finally:
        go.events.unblock()
    eventually(lambda: len(go.events.exits(container.name)) > 1, "it is told twice")
