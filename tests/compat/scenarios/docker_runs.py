"""`docker run` and `docker exec`."""

from __future__ import annotations

from tests.compat.docker_host import DockerHost
from tests.compat.scenario import DOCKER, Observation, scenario
from tests.integration.dockerd import IMAGE


def shell(text: str) -> tuple[str, str, str]:
    """A shell's command line."""
    return ("sh", "-c", text)


@scenario(DOCKER, smoke=True, code=7, out="hello", err="there")
def docker_output_and_exit_code(host: DockerHost) -> Observation:
    return host.run(*shell("echo hello; echo there >&2; exit 7"))


@scenario(DOCKER, code=0, out="typed\nend")
def docker_stdin(host: DockerHost) -> Observation:
    return host.run(*shell("cat; echo end"), flags=("--rm", "-i"), stdin="typed\n")


@scenario(DOCKER, code=5)
def docker_terminal(host: DockerHost) -> Observation:
    command = shell("until stty size 2>/dev/null | grep 97; do :; done; tty; exit 5")
    arguments = host.run_arguments(*command, flags=("--rm", "-t"))
    code, screen = host.daemon.on_terminal("", *arguments)
    return {"code": code, "screen": screen}


@scenario(DOCKER, code=127)
def docker_missing_program(host: DockerHost) -> Observation:
    said = host.run("/no/such/program", flags=())
    return {**said, "state": host.state()}


@scenario(DOCKER, code=126)
def docker_not_executable(host: DockerHost) -> Observation:
    return host.run("/www/index.html")


@scenario(DOCKER)
def docker_refused_mount(host: DockerHost) -> Observation:
    flag = "type=bind,source=/proc/self/cmdline,target=/proc/self/none"
    return host.run("true", flags=("--rm", "--mount", flag))


@scenario(DOCKER, equal=True)
def docker_large_output(host: DockerHost) -> Observation:
    done = host.daemon.docker(*host.run_arguments("seq", "1", "100000"))
    return {
        "code": done.returncode,
        "equal": done.stdout == "".join(f"{n}\n" for n in range(1, 100001)),
    }


@scenario(DOCKER, code=0)
def docker_settings(host: DockerHost) -> Observation:
    flags = ("--rm", "--user", "1000:1001", "--hostname", "compat", "--env", "A=b c")
    flags = (*flags, "--workdir", "/www", "--ulimit", "nofile=200:200", "--group-add", "7")
    flags = (
        *flags,
        "--cap-drop",
        "ALL",
        "--cap-add",
        "KILL",
        "--security-opt",
        "no-new-privileges",
    )
    command = "hostname() { cat /proc/sys/kernel/hostname; }; hostname; pwd; echo $A; ulimit -n"
    kept = "while read a; do case $a in Uid*|Gid*|Groups*|Cap*|NoNew*) echo $a;; esac; done"
    return host.run(*shell(f"{command}; {kept} < /proc/self/status"), flags=flags)


@scenario(DOCKER, code=0)
def docker_filesystems(host: DockerHost) -> Observation:
    flags = ("--rm", "--read-only", "--tmpfs", "/scratch:size=1m", "--volume", "/made")
    command = "echo x > /scratch/x; echo y > /made/y; echo z > /z || echo refused"
    return host.run(*shell(command), flags=flags)


@scenario(DOCKER, code=0)
def docker_limits(host: DockerHost) -> Observation:
    host.started(flags=("--memory", "64m", "--cpus", "0.5", "--pids-limit", "50"))
    stats = host.docker("stats", "--no-stream", "--format", "{{.PIDs}} {{.MemUsage}}", host.name())
    pids, _, memory = stats["out"].partition(" ")
    found = {"code": stats["code"], "pids": pids, "limit": memory.partition("/ ")[2]}
    found["update"] = host.docker("update", "--memory", "96m", "--memory-swap", "96m", host.name())
    after = host.docker("stats", "--no-stream", "--format", "{{.MemUsage}}", host.name())
    return {**found, "after": after["out"].partition("/ ")[2]}


@scenario(DOCKER, state="exited 137 true")
def docker_oom(host: DockerHost) -> Observation:
    flags = ("--memory", "16m", "--memory-swap", "16m")
    said = host.run("tail", "/dev/zero", flags=flags)
    return {**said, "state": host.state()}


@scenario(DOCKER, code=0)
def docker_init(host: DockerHost) -> Observation:
    return host.run(*shell("cat /proc/1/comm; exit 0"), flags=("--rm", "--init"))


@scenario(DOCKER, code=0)
def docker_host_pid_namespace(host: DockerHost) -> Observation:
    return host.run(
        *shell("sleep 1000 & test $$ -gt 1 && echo seen"), flags=("--rm", "--pid", "host")
    )


@scenario(DOCKER, smoke=True, code=9, out="x")
def docker_exec(host: DockerHost) -> Observation:
    name = host.started()
    return host.docker("exec", name, *shell("echo x; echo y >&2; exit 9"))


@scenario(DOCKER)
def docker_exec_settings(host: DockerHost) -> Observation:
    name = host.started()
    flags = ("--user", "1000:1001", "--workdir", "/www", "--env", "A=b c")
    found = {
        "all": host.docker(
            "exec", *flags, name, *shell("pwd; echo $A; head -9 /proc/self/status | tail -2")
        )
    }
    found["stdin"] = host.docker("exec", "-i", name, "cat", stdin="typed\n")
    found["privileged"] = host.docker(
        "exec", "--privileged", name, "grep", "Cap", "/proc/self/status"
    )
    found["detached"] = host.docker("exec", "--detach", name, "true")
    return found


@scenario(DOCKER)
def docker_exec_refused(host: DockerHost) -> Observation:
    name = host.started()
    found = {"missing": host.docker("exec", name, "/no/such/program")}
    found["not executable"] = host.docker("exec", name, "/www/index.html")
    found["cwd"] = host.docker("exec", "--workdir", "/proc/none", name, "true")
    found["user"] = host.docker("exec", "--user", "nobody-here", name, "true")
    found["still"] = host.docker("exec", name, "echo", "still")
    return found


@scenario(DOCKER)
def docker_exec_terminal(host: DockerHost) -> Observation:
    name = host.started()
    code, screen = host.daemon.on_terminal("", "exec", "-t", name, *shell("tty; exit 4"))
    return {"code": code, "screen": screen}


@scenario(DOCKER, images=True)
def docker_commit_and_copy(host: DockerHost) -> Observation:
    name = host.started(*shell("echo kept > /kept; sleep 1000"))
    changed = host.docker("diff", name)
    copied = host.docker("exec", name, "cat", "/kept")
    listed = host.daemon.docker("images", "--quiet", IMAGE).stdout
    return {"diff": changed, "kept": copied, "images": bool(listed)}
