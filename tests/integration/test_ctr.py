"""containerd's own client against our shim, as a user would run it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .containerd import BOUND_S, Containerd, eventually, nothing_left


def test_output_and_exit_codes(containerd: Containerd) -> None:
    done = containerd.ctr(*containerd.run("out", "/bin/sh", "-c", "echo hello; echo there >&2"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "there\n")
    assert containerd.ctr(*containerd.run("seven", "/bin/sh", "-c", "exit 7")).returncode == 7
    assert (
        containerd.ctr(
            *containerd.run("killed", "/sbin/pyinit", "--", "/bin/sh", "-c", "kill -9 $$")
        ).returncode
        == 137
    )
    nothing_left(containerd)


def test_large_output_arrives_whole(containerd: Containerd) -> None:
    done = containerd.ctr(*containerd.run("large", "/bin/seq", "1", "200000"))
    assert done.stdout == "".join(f"{n}\n" for n in range(1, 200001))
    nothing_left(containerd)


def test_stdin_is_piped_in_and_closed(containerd: Containerd) -> None:
    done = containerd.ctr(
        *containerd.run("in", "/bin/sh", "-c", "cat; echo end"), stdin="some\ntext\n"
    )
    assert (done.returncode, done.stdout) == (0, "some\ntext\nend\n")
    nothing_left(containerd)


def test_terminal(containerd: Containerd) -> None:
    master, slave = pty.openpty()
    command = ["ctr", "--address", containerd.address]
    command += containerd.run("tty", "/bin/sh", "-c", "tty; exit 5", flags=("--rm", "-t"))
    process = subprocess.Popen(
        command, env=containerd.env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    seen = bytearray()

    def read() -> None:
        while True:
            try:
                data = os.read(master, 4096)
            except OSError:
                return
            if not data:
                return
            seen.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert process.wait(BOUND_S) == 5, bytes(seen)
    finally:
        process.kill()
        reader.join(BOUND_S)
        os.close(master)
    assert b"/dev/pts/0" in seen or b"/dev/console" in seen
    nothing_left(containerd)


def test_exec_kill_and_list(containerd: Containerd) -> None:
    assert (
        containerd.ctr(*containerd.run("box", "/bin/sleep", "1000", flags=("-d",))).returncode == 0
    )
    try:
        assert containerd.tasks()["box"][1] == "RUNNING"
        done = containerd.ctr(
            "task", "exec", "--exec-id", "a", "box", "/bin/sh", "-c", "echo x; exit 9"
        )
        assert (done.returncode, done.stdout) == (9, "x\n")
        listed = containerd.ctr("task", "ps", "box")
        assert str(containerd.tasks()["box"][0]) in listed.stdout
        assert containerd.ctr("task", "kill", "-s", "SIGKILL", "box").returncode == 0
        eventually(lambda: containerd.tasks()["box"][1] == "STOPPED", "the task has stopped")
        assert "exit code 137" in containerd.ctr("task", "delete", "box").stderr
    finally:
        containerd.ctr("task", "delete", "-f", "box")
        assert containerd.ctr("container", "delete", "box").returncode == 0
    nothing_left(containerd)


def test_metrics(containerd: Containerd) -> None:
    containerd.ctr(*containerd.run("count", "/bin/sleep", "1000", flags=("-d",)))
    try:
        done = containerd.ctr("task", "metrics", "--format", "json", "count")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["pids"]["current"] == 1
        assert found["memory"]["usage"]["usage"] > 0
    finally:
        containerd.ctr("task", "delete", "-f", "count")
        containerd.ctr("container", "delete", "count")
    nothing_left(containerd)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_shim_and_its_container(
    containerd: Containerd, number: signal.Signals
) -> None:
    """As the Go shim: a host that shuts down is not to wait for it."""
    containerd.ctr(*containerd.run("told", "/bin/sleep", "1000", flags=("-d",)))
    pid = containerd.tasks()["told"][0]
    (monitor,) = containerd.monitors()
    os.kill(monitor, number)
    eventually(lambda: not containerd.monitors(), "the monitor has ended")
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "containerd has removed the container")
    eventually(lambda: "told" not in containerd.tasks(), "the task has gone")
    assert containerd.ctr("container", "delete", "told").returncode == 0
    nothing_left(containerd)


def test_exec_with_terminal(containerd: Containerd) -> None:
    containerd.ctr(*containerd.run("xt", "/bin/sleep", "1000", flags=("-d",)))
    try:
        master, slave = pty.openpty()
        command = ["ctr", "--address", containerd.address, "task", "exec", "-t", "--exec-id", "t"]
        process = subprocess.Popen(
            [*command, "xt", "/bin/sh", "-c", "test -t 1 && exit 4"],
            env=containerd.env,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        try:
            assert process.wait(BOUND_S) == 4
        finally:
            process.kill()
            os.close(master)
    finally:
        containerd.ctr("task", "delete", "-f", "xt")
        containerd.ctr("container", "delete", "xt")
    nothing_left(containerd)


def test_missing_command_reports_the_runtimes_reason(containerd: Containerd) -> None:
    done = containerd.ctr(*containerd.run("none", "/no/such/program"))
    assert done.returncode != 0
    assert "OCI runtime create failed" in done.stderr
    assert "no such file or directory" in done.stderr
    containerd.ctr("container", "delete", "none")
    nothing_left(containerd)


def test_fifty_one_after_another(containerd: Containerd) -> None:
    for number in range(50):
        done = containerd.ctr(
            *containerd.run(f"s{number}", "/bin/sh", "-c", f"echo {number}; exit 3")
        )
        assert (done.returncode, done.stdout) == (3, f"{number}\n"), done.stderr
    nothing_left(containerd)


def test_twenty_at_once(containerd: Containerd) -> None:
    def one(number: int) -> subprocess.CompletedProcess[str]:
        command = f"echo {number}; exit {number}"
        return containerd.ctr(*containerd.run(f"p{number}", "/bin/sh", "-c", command))

    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(one, range(20)))
    assert [(d.returncode, d.stdout) for d in results] == [(n, f"{n}\n") for n in range(20)]
    nothing_left(containerd)


def test_parks_and_answers_again(containerd: Containerd) -> None:
    containerd.ctr(*containerd.run("idle", "/bin/sleep", "1000", flags=("-d",)))
    try:
        eventually(lambda: not containerd.services(), "the service has parked")
        assert containerd.tasks()["idle"][1] == "RUNNING"
        done = containerd.ctr("task", "exec", "--exec-id", "a", "idle", "/bin/sh", "-c", "exit 2")
        assert done.returncode == 2
    finally:
        containerd.ctr("task", "delete", "-f", "idle")
        containerd.ctr("container", "delete", "idle")
    nothing_left(containerd)


def test_containerd_killed_and_started_again(containerd: Containerd) -> None:
    script = "trap 'exit 42' TERM; while :; do sleep 1000 & wait $!; done"
    containerd.ctr(*containerd.run("live", "/bin/sh", "-c", script, flags=("-d",)))
    pid = containerd.tasks()["live"][0]
    containerd.kill()
    os.kill(pid, 0)
    containerd.start()
    try:
        assert containerd.tasks()["live"] == (pid, "RUNNING")
        done = containerd.ctr("task", "exec", "--exec-id", "a", "live", "/bin/sh", "-c", "exit 6")
        assert done.returncode == 6
        assert containerd.ctr("task", "kill", "-s", "SIGTERM", "live").returncode == 0
        eventually(lambda: containerd.tasks()["live"][1] == "STOPPED", "the task has stopped")
        assert "exit code 42" in containerd.ctr("task", "delete", "live").stderr
    finally:
        containerd.ctr("task", "delete", "-f", "live")
        containerd.ctr("container", "delete", "live")
    nothing_left(containerd)


def test_without_a_zygote(containerd: Containerd) -> None:
    containerd.ctr(*containerd.run("lone", "/bin/sleep", "1000", flags=("-d",)))
    try:
        eventually(lambda: not containerd.services(), "the service has parked")
        for pid in containerd.zygotes():
            os.kill(pid, signal.SIGKILL)
        for path in containerd.runtime_dir.glob("*.sock"):
            path.unlink()
        done = containerd.ctr("task", "exec", "--exec-id", "a", "lone", "/bin/sh", "-c", "exit 8")
        assert done.returncode == 8
    finally:
        containerd.ctr("task", "delete", "-f", "lone")
        containerd.ctr("container", "delete", "lone")
    nothing_left(containerd)


def test_service_killed_at_random(containerd: Containerd) -> None:
    """SIGKILL to whatever service is active, again and again, during 50 runs."""
    done = threading.Event()
    killed = 0

    def killer() -> None:
        nonlocal killed
        pause_s = 0.011
        while not done.wait(pause_s):
            pause_s = 0.011 + (pause_s * 7919) % 0.31
            for pid in containerd.services():
                try:
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
                except ProcessLookupError:
                    continue

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        for number in range(50):
            command = f"echo {number}; exit {number}"
            ran = containerd.ctr(*containerd.run(f"k{number}", "/bin/sh", "-c", command))
            assert (ran.returncode, ran.stdout) == (number, f"{number}\n"), ran.stderr
    finally:
        done.set()
        thread.join(BOUND_S)
    assert killed >= 10
    nothing_left(containerd)
