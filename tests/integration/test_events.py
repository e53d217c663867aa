"""What containerd is told, when and in which order."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .containerd import BOUND_S, RUNTIME, Containerd, eventually, nothing_left


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
    spec["linux"]["cgroupsPath"] = f"/{containerd.namespace}/{folder.name}"
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
