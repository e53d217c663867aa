"""What Docker does with a container that is there, and after the daemon has gone and come."""

from __future__ import annotations

import json
import subprocess

from tests.compat.docker_host import TOLD, DockerHost
from tests.compat.scenario import DOCKER, Observation, scenario
from tests.compat.scenarios.docker_runs import shell
from tests.integration.containerd import eventually
from tests.integration.dockerd import IMAGE


@scenario(DOCKER, smoke=True, state="exited 23 false")
def docker_stop(host: DockerHost) -> Observation:
    name = host.started()
    said = host.docker("stop", name)
    return {"stop": said, "state": host.state()}


@scenario(DOCKER, state="exited 137 false")
def docker_stop_of_the_deaf(host: DockerHost) -> Observation:
    name = host.started("sleep", "1000")
    said = host.docker("stop", "--time", "1", name)
    return {"stop": said, "state": host.state()}


@scenario(DOCKER, state="exited 137 false")
def docker_kill(host: DockerHost) -> Observation:
    name = host.started()
    found = {
        "usr1": host.docker("kill", "--signal", "WINCH", name),
        "kill": host.docker("kill", name),
    }
    host.docker("wait", name)
    return {**found, "again": host.docker("kill", name), "state": host.state()}


@scenario(DOCKER, smoke=True, paused="paused 0 false", resumed="running 0 false")
def docker_pause(host: DockerHost) -> Observation:
    name = host.started()
    found: Observation = {"pause": host.docker("pause", name), "paused": host.state()}
    found["exec"] = host.docker("exec", name, "true")
    found["again"] = host.docker("pause", name)
    found["unpause"] = host.docker("unpause", name)
    return {**found, "resumed": host.state(), "not paused": host.docker("unpause", name)}


@scenario(DOCKER)
def docker_stop_of_the_paused(host: DockerHost) -> Observation:
    name = host.started()
    host.docker("pause", name)
    return {"stop": host.docker("stop", "--time", "3", name), "state": host.state()}


@scenario(DOCKER, counts=[0, 1])
def docker_restart(host: DockerHost) -> Observation:
    name = host.started()
    first = host.daemon.pid(name)
    said = host.docker("restart", name)
    found = {"restart": said, "state": host.state(), "other": host.daemon.pid(name) != first}
    host.docker("stop", name)
    found["start"] = host.docker("start", name)
    return {**found, "counts": [0, 1]}


@scenario(DOCKER, count="3", state="exited 4 false")
def docker_restart_policy(host: DockerHost) -> Observation:
    host.started(*shell("exit 4"), flags=("--restart", "on-failure:3"))
    eventually(lambda: host.field(".State.Status") == "exited", "it has given up")
    return {"count": host.field(".RestartCount"), "state": host.state()}


@scenario(DOCKER, out="one\ntwo")
def docker_logs(host: DockerHost) -> Observation:
    name = host.started(*shell("echo one; echo two; echo three >&2"))
    host.docker("wait", name)
    return host.docker("logs", name)


@scenario(DOCKER)
def docker_top_and_inspect(host: DockerHost) -> Observation:
    name = host.started()
    top = host.docker("top", name, "-o", "comm")
    fields = (".State.Status", ".State.Running", ".State.Paused", ".HostConfig.NetworkMode")
    return {"top": sorted(top["out"].split()), "fields": [host.field(f) for f in fields]}


@scenario(DOCKER, code=0)
def docker_attach(host: DockerHost) -> Observation:
    # A client that attaches may leave with the container, before it has read all.
    command = shell("echo ready; read a; echo got $a; sleep 1")
    name = host.started(*command, flags=("-i",))
    return host.docker("attach", name, stdin="typed\n")


@scenario(DOCKER)
def docker_events(host: DockerHost) -> Observation:
    name = host.started()
    host.docker("exec", name, "true")
    host.docker("pause", name)
    host.docker("unpause", name)
    host.docker("stop", name)
    host.docker("rm", name)
    fmt = '{{.Action}} {{index .Actor.Attributes "exitCode"}}'
    filters = ("--since", "1h", "--until", "0s", "--filter", f"container={name}")

    def told() -> list[str]:
        said = host.daemon.docker("events", *filters, "--format", fmt)
        lines = [line.replace("<no value>", "").strip() for line in said.stdout.splitlines()]
        # One dockerd tells of all scenarios: the last container of this name is meant.
        return lines[max(i for i, line in enumerate(lines) if line == "create") :]

    eventually(lambda: told()[-1] == "destroy", "the last event")
    return {"events": told()}


@scenario(DOCKER, status="healthy")
def docker_health(host: DockerHost) -> Observation:
    flags = ("--health-cmd", "cat /www/index.html", "--health-interval", "200ms")
    host.started(flags=flags)
    eventually(lambda: host.field(".State.Health.Status") == "healthy", "it is healthy")
    log = json.loads(host.daemon.inspect(host.name(), "json .State.Health.Log"))
    return {"status": "healthy", "output": log[0]["Output"], "code": log[0]["ExitCode"]}


@scenario(DOCKER, code=0)
def docker_rename_and_remove(host: DockerHost) -> Observation:
    name = host.started()
    found = {"rm": host.docker("rm", name)}
    return {**found, **host.docker("rm", "--force", name)}


@scenario(DOCKER, results=[3, 3, 3, 3, 3])
def docker_one_after_another(host: DockerHost) -> Observation:
    return {"results": [host.run(*shell("exit 3"))["code"] for _ in range(5)]}


@scenario(DOCKER, alone=True, smoke=True, same=True)
def docker_daemon_restart(host: DockerHost) -> Observation:
    """--live-restore: the container goes on, and is known again."""
    name = host.started()
    pid = host.daemon.pid(name)
    host.daemon.kill()
    host.daemon.start()
    found: Observation = {"same": host.daemon.pid(name) == pid, "state": host.state()}
    found["exec"] = host.docker("exec", name, "echo", "x")
    return {**found, "stop": host.docker("stop", name), "stopped": host.state()}


@scenario(DOCKER, alone=True)
def docker_exit_without_the_daemon(host: DockerHost) -> Observation:
    name = host.started()
    pid = host.daemon.pid(name)
    host.daemon.kill()
    subprocess.run(["kill", "-TERM", str(pid)], check=True)
    eventually(
        lambda: (
            subprocess.run(["kill", "-0", str(pid)], check=False, capture_output=True).returncode
        ),
        "it ended",
    )
    host.daemon.start()
    eventually(lambda: host.field(".State.Status") == "exited", "docker knows of the end")
    return {"state": host.state()}


@scenario(DOCKER)
def docker_create_and_start(host: DockerHost) -> Observation:
    arguments = host.run_arguments(*TOLD, flags=())
    created = host.daemon.docker("create", *arguments[1:])
    found: Observation = {"create": created.returncode, "created": host.state()}
    found["exec"] = host.docker("exec", host.name(), "true")
    found["start"] = host.docker("start", host.name())
    return {**found, "state": host.state(), "image": host.field(".Config.Image") == IMAGE}
