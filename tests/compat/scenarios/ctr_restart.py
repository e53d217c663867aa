"""containerd goes and comes back; the containers stay."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.compat.host import NAME, TOLD, Host
from tests.compat.scenario import Observation, scenario
from tests.compat.scenarios.ctr_runs import script
from tests.integration.containerd import eventually


@scenario(smoke=True, alone=True, same_pid=True)
def restart_with_a_running_container(host: Host) -> Observation:
    pid = host.started(*TOLD)
    host.kill_daemon()
    alive = Path(f"/proc/{pid}").exists()
    host.start_daemon()
    found = {"alive": alive, "same_pid": host.view.tasks().get(NAME) == (pid, "RUNNING")}
    found["exec"] = host.execute(*script("exit 6"))
    host.ctr("task", "kill", "-s", "SIGTERM", NAME)
    host.await_status("STOPPED")
    return {**found, "delete": host.ctr("task", "delete", NAME)}


@scenario(alone=True)
def exit_while_containerd_is_away(host: Host) -> Observation:
    pid = host.started(*TOLD)
    host.kill_daemon()
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the process has been reaped")
    host.start_daemon()
    return {"status": host.status(), "delete": host.ctr("task", "delete", NAME)}


@scenario(alone=True)
def restart_with_a_stopped_container(host: Host) -> Observation:
    host.started(*script("exit 7"))
    host.await_status("STOPPED")
    host.kill_daemon()
    host.start_daemon()
    return {"status": host.status(), "delete": host.ctr("task", "delete", NAME)}


@scenario(alone=True, status="PAUSED")
def restart_with_a_paused_container(host: Host) -> Observation:
    host.started()
    host.ctr("task", "pause", NAME)
    host.kill_daemon()
    host.start_daemon()
    return {"status": host.status(), "resume": host.ctr("task", "resume", NAME)}


@scenario(alone=True)
def restart_with_a_running_exec(host: Host) -> Observation:
    host.started()
    host.execute("/bin/sleep", "1000", flags=("--detach",))
    host.kill_daemon()
    host.start_daemon()
    rows = host.ctr("task", "ps", NAME)["out"].splitlines()
    killed = host.ctr("task", "kill", "-s", "SIGKILL", "--exec-id", "x", NAME)
    return {"rows": len(rows), "kill": killed, "status": host.status()}


@scenario(alone=True)
def shim_killed_while_containerd_is_away(host: Host) -> Observation:
    pid = host.started()
    host.kill_daemon()
    for shim in host.shims():
        os.kill(shim, signal.SIGKILL)
    host.start_daemon()
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the container has been ended")
    return {"status": host.status(), "alive": Path(f"/proc/{pid}").exists()}
