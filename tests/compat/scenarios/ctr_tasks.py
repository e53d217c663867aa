"""`ctr task`: what is done to a container that runs, and the events that tell of it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from tests.compat.host import FOREVER, NAME, TOLD, Host
from tests.compat.scenario import Observation, scenario
from tests.compat.scenarios.ctr_runs import script
from tests.integration.containerd import eventually


@scenario(smoke=True, code=9, out="x")
def exec_output_and_exit_code(host: Host) -> Observation:
    host.started()
    return host.execute(*script("echo x; exit 9"))


@scenario()
def exec_cwd_and_user(host: Host) -> Observation:
    host.started()
    flags = ("--cwd", "/www", "--user", "1000:1001")
    return host.execute(*script("pwd; head -9 /proc/self/status | tail -1"), flags=flags)


@scenario()
def exec_missing_program(host: Host) -> Observation:
    host.started()
    said = host.execute("/no/such/program")
    again = host.execute("/bin/echo", "again")
    return {**said, "again": again, "task": host.status()}


@scenario(code=4)
def exec_terminal(host: Host) -> Observation:
    host.started()
    command = script("until stty size 2>/dev/null | grep 97; do :; done; tty; exit 4")
    code, screen = host.on_terminal("task", "exec", "-t", "--exec-id", "t", NAME, *command)
    return {"code": code, "screen": screen}


@scenario()
def exec_in_unknown_and_stopped(host: Host) -> Observation:
    unknown = host.execute("/bin/true")
    host.started(*script("exit 7"))
    host.await_status("STOPPED")
    return {"unknown": unknown, "stopped": host.execute("/bin/true")}


@scenario(smoke=True, code=0)
def exec_detached_and_listed(host: Host) -> Observation:
    host.started()
    said = host.execute(*FOREVER, flags=("--detach",))
    listed = host.ctr("task", "ps", NAME)["out"].splitlines()
    return {**said, "rows": len(listed), "info": sum("exec_id" in row for row in listed)}


@scenario()
def pause_and_resume(host: Host) -> Observation:
    pid = host.started()
    found = {"pause": host.ctr("task", "pause", NAME), "paused": host.status()}
    found["again"] = host.ctr("task", "pause", NAME)
    found["exec"] = host.execute("/bin/true")
    found["delete"] = host.ctr("task", "delete", NAME)
    found["resume"] = host.ctr("task", "resume", NAME)
    found["resumed"] = host.status()
    found["again resume"] = host.ctr("task", "resume", NAME)
    assert Path(f"/proc/{pid}").exists()
    return found


@scenario()
def kill_paused(host: Host) -> Observation:
    host.started()
    host.ctr("task", "pause", NAME)
    said = host.ctr("task", "kill", "-s", "SIGKILL", NAME)
    status = host.status()
    resumed = host.ctr("task", "resume", NAME)
    host.await_status("STOPPED")
    return {"kill": said, "status": status, "resume": resumed["code"]}


@scenario(smoke=True, stopped="STOPPED")
def kill_and_delete(host: Host) -> Observation:
    host.started(*TOLD)
    early = host.ctr("task", "delete", NAME)
    killed = host.ctr("task", "kill", "-s", "SIGTERM", NAME)
    host.await_status("STOPPED")
    status = host.status()
    again = host.ctr("task", "kill", "-s", "SIGTERM", NAME)
    deleted = host.ctr("task", "delete", NAME)
    gone = host.ctr("task", "delete", NAME)
    return {
        "early": early,
        "killed": killed,
        "stopped": status,
        "again": again,
        "deleted": deleted,
        "gone": gone,
    }


@scenario()
def kill_all_and_exec(host: Host) -> Observation:
    host.started()
    host.execute(*FOREVER, flags=("--detach",))
    found = {"exec": host.ctr("task", "kill", "-s", "SIGKILL", "--exec-id", "x", NAME)}
    found["unknown"] = host.ctr("task", "kill", "--exec-id", "none", NAME)
    found["all"] = host.ctr("task", "kill", "--all", "-s", "SIGKILL", NAME)
    host.await_status("STOPPED")
    return found


@scenario(deleted=0)
def delete_by_force(host: Host) -> Observation:
    pid = host.started()
    said = host.ctr("task", "delete", "--force", NAME)
    return {"deleted": said["code"], "err": said["err"], "alive": Path(f"/proc/{pid}").exists()}


@scenario()
def start_again(host: Host) -> Observation:
    host.started(*script("exit 7"))
    host.await_status("STOPPED")
    found = {"over a stopped task": host.ctr("task", "start", "--detach", NAME)}
    found["delete"] = host.ctr("task", "delete", NAME)
    found["start"] = host.ctr("task", "start", "--null-io", NAME)
    return found


@scenario()
def metrics_of_a_task(host: Host) -> Observation:
    host.started()
    said = host.view.ctr("task", "metrics", "--format", "json", NAME)
    found = json.loads(said.stdout)
    limits = {kind: found["memory"][kind].get("limit") for kind in ("usage", "swap", "kernel")}
    return {"pids": found["pids"]["current"], "kinds": sorted(found), "limits": limits}


@scenario(
    smoke=True,
    topics=["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"],
)
def events_of_a_task(host: Host) -> Observation:
    with host.events() as seen:
        host.started(*TOLD)
        host.execute(*script("exit 3"))
        host.ctr("task", "kill", "-s", "SIGTERM", NAME)
        host.await_status("STOPPED")
        host.ctr("task", "delete", NAME)
        host.await_delete(seen)
        found = list(seen)
    return {"topics": [topic for topic, _ in found], "events": host.plain(found)}


@scenario(topics=["create", "start", "exit", "delete"])
def events_of_a_short_run(host: Host) -> Observation:
    with host.events() as seen:
        host.run("/bin/true")
        host.await_delete(seen)
        found = list(seen)
    return {"topics": [topic for topic, _ in found], "events": host.plain(found)}


@scenario()
def events_of_pause(host: Host) -> Observation:
    with host.events() as seen:
        host.started()
        host.ctr("task", "pause", NAME)
        host.ctr("task", "resume", NAME)
        eventually(lambda: any(topic == "resumed" for topic, _ in seen), "the last event")
        found = list(seen)
    return {"events": host.plain(found)}


@scenario()
def events_of_a_failed_create(host: Host) -> Observation:
    with host.events() as seen:
        host.run("/no/such/program")
        host.run("/bin/true", name="other")
        host.await_delete(seen)
        found = list(seen)
    return {"events": host.plain(found)}


@scenario()
def events_of_a_failed_exec(host: Host) -> Observation:
    with host.events() as seen:
        host.started()
        host.execute("/no/such/program")
        host.ctr("task", "delete", "--force", NAME)
        host.await_delete(seen)
        found = list(seen)
    return {"events": host.plain(found)}


@scenario(code=137)
def events_of_an_oom(host: Host) -> Observation:
    with host.events() as seen:
        flags = ("--rm", "--memory-limit", str(16 << 20))
        said = host.run(*script("tail /dev/zero & wait; tail /dev/zero"), flags=flags)
        said = {**said, "code": 137 if said["code"] in {1, 137} else said["code"]}
        host.await_delete(seen)
        found = list(dict.fromkeys(topic for topic, _ in seen))
    return {**said, "topics": found}


@scenario(outcome="gone")
def shim_is_terminated(host: Host) -> Observation:
    pid = host.started()
    with host.events() as seen:
        for shim in host.shims():
            os.kill(shim, signal.SIGTERM)
        eventually(lambda: not Path(f"/proc/{pid}").exists(), "the container has been ended")
        eventually(lambda: not host.status(), "the task has gone")
        eventually(lambda: any(topic == "delete" for topic, _ in seen), "the last event")
        found = host.plain(list(seen))
    return {"outcome": "gone", "events": found}


@scenario(outcome="gone")
def shim_is_killed(host: Host) -> Observation:
    pid = host.started()
    with host.events() as seen:
        for shim in host.shims():
            os.kill(shim, signal.SIGKILL)
        eventually(lambda: not Path(f"/proc/{pid}").exists(), "the container has been ended")
        eventually(lambda: not host.status(), "the task has gone")
        eventually(lambda: any(topic == "delete" for topic, _ in seen), "the last event")
        found = host.plain(list(seen))
    again = host.ctr("task", "start", "--detach", NAME)
    return {"outcome": "gone", "events": found, "again": again["code"]}


@scenario(tasks=[["RUNNING"], ["RUNNING"]])
def two_namespaces_one_id(host: Host) -> Observation:
    host.started()
    other = f"{host.namespace}-2"
    said = host.ctr("--namespace", other, *host.run_arguments(*FOREVER, flags=("--detach",)))
    listed = host.view.ctr("--namespace", other, "task", "ls").stdout.split()
    found = {"tasks": [[host.status()], [w for w in listed if w == "RUNNING"]], "run": said}
    found["delete"] = host.ctr("--namespace", other, "task", "delete", "--force", NAME)["code"]
    host.ctr("--namespace", other, "container", "delete", NAME)
    host.ctr("namespaces", "remove", other)
    for folder in [
        *Path("/sys/fs/cgroup").glob(f"*/{other}"),
        Path("/run/containerd/runc") / other,
    ]:
        folder.rmdir()
    return {**found, "first": host.status()}
