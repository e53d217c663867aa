"""containerd's own client against our shim, as a user would run it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .conftest import BOUND_S, RUNTIME, Containerd, eventually, mounts_below


def nothing_left(containerd: Containerd) -> None:
    """No monitor, socket, mount or bundle of ours is left."""
    eventually(lambda: not containerd.monitors(), "the monitors have ended")
    assert [p.name for p in containerd.sockets.glob("*") if p.is_socket()] == []
    assert mounts_below(containerd.home / "state") == []
    bundles = containerd.home / "state/io.containerd.runtime.v2.task/default"
    assert not bundles.exists() or list(bundles.iterdir()) == []
    assert list(Path("/tmp").glob("pyshim-pty*")) == []


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


def test_pause_resume_and_kill_while_paused(containerd: Containerd) -> None:
    containerd.ctr(*containerd.run("ice", "/bin/sleep", "1000", flags=("-d",)))
    try:
        with events(containerd) as seen:
            assert containerd.ctr("task", "pause", "ice").returncode == 0
            assert containerd.tasks()["ice"][1] == "PAUSED"
            again = containerd.ctr("task", "pause", "ice")
            assert "cannot pause a paused container" in again.stderr
            refused = containerd.ctr("task", "exec", "--exec-id", "a", "ice", "/bin/true")
            assert "cannot exec in a paused state" in refused.stderr
            assert containerd.ctr("task", "resume", "ice").returncode == 0
            assert containerd.tasks()["ice"][1] == "RUNNING"
            done = containerd.ctr("task", "exec", "--exec-id", "b", "ice", "/bin/true")
            assert done.returncode == 0
            assert containerd.ctr("task", "pause", "ice").returncode == 0
            assert containerd.ctr("task", "kill", "-s", "SIGKILL", "ice").returncode == 0
            eventually(lambda: containerd.tasks()["ice"][1] == "STOPPED", "the task has stopped")
            eventually(
                lambda: any(t == "/tasks/exit" and e["id"] == "ice" for t, e in seen), "exit"
            )
            topics = [t for t, _ in seen if t in {"/tasks/paused", "/tasks/resumed"}]
        assert topics == ["/tasks/paused", "/tasks/resumed", "/tasks/paused"]
        assert "exit code 137" in containerd.ctr("task", "delete", "ice").stderr
    finally:
        containerd.ctr("task", "delete", "-f", "ice")
        containerd.ctr("container", "delete", "ice")
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


def test_an_oom_kill_is_told_before_the_exit(containerd: Containerd) -> None:
    with events(containerd) as seen:
        flags = ("--rm", "--memory-limit", str(16 * 1024 * 1024))
        done = containerd.ctr(*containerd.run("oom", "/bin/tail", "/dev/zero", flags=flags))
        assert done.returncode == 137, done.stderr
        eventually(lambda: any(t == "/tasks/delete" for t, _ in seen), "the last event")
        topics = [topic for topic, _ in seen if topic.startswith("/tasks/")]
    assert topics == [f"/tasks/{name}" for name in ("create", "start", "oom", "exit", "delete")]
    nothing_left(containerd)


def spec_with_the_hosts_pids(containerd: Containerd, folder: Path) -> Path:
    """A config.json for `sleep` that has no pid namespace."""
    subprocess.run(["runc", "spec", "--bundle", str(folder)], check=True, timeout=BOUND_S)
    path = folder / "config.json"
    spec = json.loads(path.read_text())
    spec["root"]["path"] = str(containerd.rootfs)
    spec["process"]["args"] = ["/bin/sleep", "1000"]
    spec["process"]["terminal"] = False
    spaces = spec["linux"]["namespaces"]
    spec["linux"]["namespaces"] = [space for space in spaces if space["type"] != "pid"]
    spec["linux"]["cgroupsPath"] = f"/default/{folder.name}"
    path.write_text(json.dumps(spec))
    return path


def test_what_is_left_in_a_shared_pid_namespace_is_killed(
    containerd: Containerd, tmp_path: Path
) -> None:
    script = "sleep 1000 & echo $!; read line; exit 5"
    config = spec_with_the_hosts_pids(containerd, tmp_path)
    flags = ("-d", "--config", str(config), "--runtime", RUNTIME)
    done = containerd.ctr("run", *flags, "host")
    assert done.returncode == 0, done.stderr
    try:
        init = containerd.tasks()["host"][0]
        with events(containerd) as seen:
            exec_ = containerd.spawn(
                *("task", "exec", "--exec-id", "e", "host", "/bin/sh", "-c", script),
                stdin=subprocess.PIPE,
            )
            assert exec_.stdout is not None
            grandchild = int(exec_.stdout.readline())
            assert Path(f"/proc/{grandchild}").exists()
            os.kill(init, signal.SIGKILL)
            assert exec_.wait(BOUND_S) == 137
            exec_.communicate()
            eventually(lambda: not Path(f"/proc/{grandchild}").exists(), "the grandchild has gone")
            eventually(
                lambda: len([t for t, _ in seen if t == "/tasks/exit"]) == 2, "both exit events"
            )
        exits = [event["id"] for topic, event in seen if topic == "/tasks/exit"]
        assert exits == ["e", "host"]
    finally:
        containerd.ctr("task", "delete", "-f", "host")
        containerd.ctr("container", "delete", "host")
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


@contextlib.contextmanager
def events(containerd: Containerd) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What `ctr events` prints meanwhile: (topic, event), in order."""
    seen: list[tuple[str, dict[str, Any]]] = []
    process = containerd.spawn("events", stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    stream = process.stdout

    def read() -> None:
        for line in stream:
            _, _, _, _, _, topic, event = line.split(" ", 6)
            seen.append((topic, json.loads(event)))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        # It is subscribed when it has seen something.
        containerd.ctr("namespaces", "create", "seen")
        eventually(lambda: seen or not containerd.ctr("ns", "label", "seen", "a=b"), "events come")
        yield seen
    finally:
        process.terminate()
        process.wait(BOUND_S)
        reader.join(BOUND_S)
        stream.close()
        containerd.ctr("namespaces", "remove", "seen")


def test_events_come_once_and_in_order(containerd: Containerd) -> None:
    with events(containerd) as seen:
        script = "trap 'exit 4' TERM; while :; do sleep 1000 & wait $!; done"
        containerd.ctr(*containerd.run("ev", "/bin/sh", "-c", script, flags=("-d",)))
        done = containerd.ctr("task", "exec", "--exec-id", "x", "ev", "/bin/sh", "-c", "exit 3")
        assert done.returncode == 3
        containerd.ctr("task", "kill", "-s", "SIGTERM", "ev")
        eventually(lambda: containerd.tasks()["ev"][1] == "STOPPED", "the task has stopped")
        containerd.ctr("task", "delete", "ev")
        containerd.ctr("container", "delete", "ev")
        eventually(lambda: any(t == "/containers/delete" for t, _ in seen), "the last event")
        tasks = [(topic, event) for topic, event in seen if topic.startswith("/tasks/")]
    topics = [topic.removeprefix("/tasks/") for topic, _ in tasks]
    assert topics == ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"]
    assert {event["container_id"] for _, event in tasks} == {"ev"}
    exits = [event for topic, event in tasks if topic == "/tasks/exit"]
    assert [(event["id"], event["exit_status"]) for event in exits] == [("x", 3), ("ev", 4)]
    assert tasks[-1][1]["exit_status"] == 4
    nothing_left(containerd)


def test_exit_while_containerd_is_away(containerd: Containerd) -> None:
    containerd.ctr(*containerd.run("away", "/bin/sleep", "1000", flags=("-d",)))
    pid = containerd.tasks()["away"][0]
    containerd.kill()
    os.kill(pid, signal.SIGTERM)  # the default: sleep is PID 1 and has no handler
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the process has been reaped")
    containerd.start()
    try:
        with events(containerd) as seen:
            eventually(lambda: any(t == "/tasks/exit" for t, _ in seen), "the kept exit event")
            (exit_event,) = [event for topic, event in seen if topic == "/tasks/exit"]
        assert (exit_event["container_id"], exit_event["exit_status"]) == ("away", 137)
        assert containerd.tasks()["away"] == (pid, "STOPPED")
        assert "exit code 137" in containerd.ctr("task", "delete", "away").stderr
    finally:
        containerd.ctr("task", "delete", "-f", "away")
        containerd.ctr("container", "delete", "away")
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
