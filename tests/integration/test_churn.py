"""Many containers and many execs, and nothing that is left of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyshim.api import task_pb2

from .conftest import eventually
from .fifos import Reader
from .shim import KILLED, Host, host, module_host

__all__ = ["host", "module_host"]

SLEEP = ("/bin/sleep", "1000")
AT_ONCE = 8
KIB = 1024


def cycle(host: Host, folder: Path, number: int) -> None:
    """A container's life with an exec, in the pod or in a shim of its own, by turns."""
    pod = "churn" if number % 2 else ""
    output, answer = Reader(folder / f"out{number}"), Reader(folder / f"exec{number}")
    script = f"echo container {number}; exec sleep 1000"
    container = host.started("/bin/sh", "-c", script, pod=pod, stdout=output.path)
    status = number % 100
    script = f"echo exec {number}; exit {status}"
    assert container.run("e", "/bin/sh", "-c", script, stdout=answer.path) == status
    assert answer.all().decode() == f"exec {number}\n"
    eventually(lambda: output.size, "the container has begun")
    container.kill()
    assert container.wait().exit_status == KILLED
    assert container.finish().exit_status == KILLED
    assert output.all().decode() == f"container {number}\n"
    output.path.unlink()
    answer.path.unlink()


def test_five_hundred_cycles_leave_nothing(host: Host, tmp_path: Path) -> None:
    main = host.started(*SLEEP, pod="churn")
    cycle(host, tmp_path, 1)
    cycle(host, tmp_path, 2)
    before = host.holdings()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda number: cycle(host, tmp_path, number), range(500)))
    assert host.holdings() == before
    main.end()


def test_the_last_output_of_a_thousand_containers(host: Host, tmp_path: Path) -> None:
    """Each prints 64 KiB at once and is gone."""
    text = b"".join(b"%015d\n" % number for number in range(4 * KIB))
    assert len(text) == 64 * KIB
    (host.rootfs / "tmp/text").write_bytes(text)

    def one(number: int) -> str:
        reader = Reader(tmp_path / f"fifo{number}")
        container = host.started("/bin/cat", "/tmp/text", stdout=reader.path)
        assert container.wait().exit_status == 0
        assert container.finish().exit_status == 0
        assert reader.all() == text
        reader.path.unlink()
        return container.name

    with ThreadPoolExecutor(AT_ONCE) as pool:
        names = list(pool.map(one, range(1000)))
    orders = {tuple(host.events.whole(name)) for name in names}
    assert orders == {("create", "start", "exit", "delete")}


def test_two_hundred_execs_at_once(host: Host, tmp_path: Path) -> None:
    container = host.started(*SLEEP)
    before = host.holdings()
    names = [f"e{number}" for number in range(200)]
    readers = {name: Reader(tmp_path / name) for name in names}
    for number, name in enumerate(names):
        script = f"seq 1 {number}; exit {number}"
        container.exec(name, "/bin/sh", "-c", script, stdout=readers[name].path)
    requests = [task_pb2.StartRequest(id=container.name, exec_id=name) for name in names]
    streams = [container.send("Start", request) for request in requests]
    pids = {container.receive(stream, task_pb2.StartResponse).pid for stream in streams}
    assert len(pids) == len(names)
    waits = [container.send_wait(name) for name in names]
    statuses = [container.receive(stream, task_pb2.WaitResponse).exit_status for stream in waits]
    assert statuses == list(range(200))
    deletes = [
        container.send("Delete", task_pb2.DeleteRequest(id=container.name, exec_id=name))
        for name in names
    ]
    for stream in deletes:
        container.receive(stream, task_pb2.DeleteResponse)
    for number, name in enumerate(names):
        assert readers[name].all() == "".join(f"{n}\n" for n in range(1, number + 1)).encode()
    assert host.holdings() == before
    topics = host.events.topics(container.name)
    assert [topics.count(topic) for topic in ("exec-added", "exec-started", "exit")] == [200] * 3
    container.end()
