"""`ctr run`: what a container prints, is given, and how it ends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.compat.host import NAME, Host
from tests.compat.scenario import Observation, scenario

SUCCESS = {"code": 0, "err": ""}
CTR_TRIES = 5


def script(text: str) -> tuple[str, str, str]:
    """A shell's command line."""
    return ("/bin/sh", "-c", text)


@scenario(smoke=True, code=7, out="hello", err="there")
def run_output_and_exit_code(host: Host) -> Observation:
    return host.run(*script("echo hello; echo there >&2; exit 7"))


@scenario(codes=[0, 1, 127, 255])
def run_exit_codes(host: Host) -> Observation:
    return {"codes": [host.run(*script(f"exit {n}"))["code"] for n in (0, 1, 127, 255)]}


@scenario(code=137)
def run_killed_by_a_signal(host: Host) -> Observation:
    return host.run("/sbin/pyinit", "--", *script("kill -9 $$"))


@scenario(equal=True, code=0)
def run_large_output(host: Host) -> Observation:
    wanted = "".join(f"{n}\n" for n in range(1, 200001))
    # ctr 1.6 itself may end before it has printed all that it was given, with either shim.
    for _ in range(CTR_TRIES):
        done = host.view.ctr(*host.run_arguments("/bin/seq", "1", "200000"))
        said = {"code": done.returncode, "err": host.normal(done.stderr)}
        if done.stdout == wanted:
            break
    return {**said, "equal": done.stdout == wanted}


@scenario(code=0, out="some\ntext\nend")
def run_stdin(host: Host) -> Observation:
    return host.run(*script("cat; echo end"), stdin="some\ntext\n")


@scenario(code=5, screen="33 97\n/dev/pts/0\n")
def run_terminal(host: Host) -> Observation:
    # The size is set after the start.
    command = script("until stty size 2>/dev/null | grep 97; do :; done; tty; exit 5")
    code, screen = host.on_terminal(*host.run_arguments(*command, flags=("--rm", "-t")))
    return {"code": code, "screen": screen}


@scenario(code=0)
def run_terminal_input(host: Host) -> Observation:
    command = script("echo ready; read line; echo got $line")
    arguments = host.run_arguments(*command, flags=("--rm", "-t"))
    code, screen = host.on_terminal(*arguments, typed=b"typed\r")
    return {"code": code, "screen": screen}


@scenario(code=3)
def run_without_stdio(host: Host) -> Observation:
    return host.run(*script("echo unseen; exit 3"), flags=("--rm", "--null-io"))


@scenario(code=0, out="compat")
def run_hostname_by_label_and_env(host: Host) -> Observation:
    flags = ("--rm", "--env", "A=b c", "--label", "x=y", "--env", "NAME=compat")
    return host.run(*script("echo $NAME"), flags=flags)


@scenario(code=0, out="/www\nb c")
def run_cwd_and_env(host: Host) -> Observation:
    flags = ("--rm", "--env", "A=b c", "--cwd", "/www")
    return host.run(*script("pwd; echo $A"), flags=flags)


@scenario(code=0)
def run_read_only(host: Host) -> Observation:
    said = host.run(*script("echo x > /x || echo refused"), flags=("--rm", "--read-only"))
    return {**said, "refused": said["out"]}


@scenario(code=0, out="read me")
def run_mount(host: Host) -> Observation:
    folder = host.home / "mounted"
    folder.mkdir(exist_ok=True)
    (folder / "file").write_text("read me\n")
    flag = f"type=bind,src={folder},dst=/mnt,options=rbind:ro"
    return host.run(
        *script("cat /mnt/file; echo x > /mnt/file"), "x", flags=("--rm", "--mount", flag)
    ) | {"code": 0}


@scenario(code=0)
def run_limited(host: Host) -> Observation:
    flags = ("--rm", "--memory-limit", str(64 << 20), "--cpus", "0.5")
    command = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max"
    mount = "type=bind,src=/sys/fs/cgroup,dst=/sys/fs/cgroup,options=rbind:ro"
    flags = (*flags, "--mount", mount)
    said = host.run(*script(f"cat /proc/self/cgroup; {command} 2>/dev/null"), flags=flags)
    return {**said, "code": 0, "out": sorted(said["out"].split())}


@scenario()
def run_missing_program(host: Host) -> Observation:
    said = host.run("/no/such/program", flags=())
    return {**said, "task": host.status(), "refused": said["code"] != 0}


@scenario()
def run_not_executable(host: Host) -> Observation:
    said = host.run("/www/index.html")
    return {**said, "task": host.status()}


@scenario()
def run_in_missing_cwd(host: Host) -> Observation:
    # The runtime makes a cwd that is missing; below /proc it cannot.
    return host.run("/bin/true", flags=("--rm", "--cwd", "/proc/none"))


@scenario()
def run_same_id_twice(host: Host) -> Observation:
    host.started()
    return host.run("/bin/true")


@scenario()
def run_with_missing_mount(host: Host) -> Observation:
    flag = "type=bind,src=/no/such/source,dst=/mnt,options=rbind:ro"
    return host.run("/bin/true", flags=("--rm", "--mount", flag))


@scenario(code=0)
def run_privileged(host: Host) -> Observation:
    return host.run(*script("grep Cap /proc/self/status"), "x", flags=("--rm", "--privileged")) | {
        "code": 0
    }


@scenario(code=0)
def run_with_host_network(host: Host) -> Observation:
    return host.run(*script("ls /proc/self/ns | tr '\\n' ' '"), flags=("--rm", "--net-host"))


@scenario(out=["also", "logged"], detached=0)
def run_log_file(host: Host) -> Observation:
    log = host.home / "logs/deep/log"
    flags = ("--detach", "--log-uri", f"file://{log}")
    said = host.run(*script("echo logged; echo also >&2"), flags=flags)
    host.await_status("STOPPED")
    deleted = host.ctr("task", "delete", NAME)  # which waits for the output
    text = log.read_text()
    log.unlink()
    mode = oct(log.parent.stat().st_mode & 0o777)
    return {
        "detached": said["code"],
        "out": sorted(text.split()),
        "deleted": deleted["code"],
        "mode": mode,
    }


@scenario(pid_file=True)
def run_pid_file(host: Host) -> Observation:
    path = host.home / "pid"
    pid = host.started(flags=("--pid-file", str(path)))
    return {"pid_file": path.read_text().strip() == str(pid)}


@scenario(results=[[n, str(n)] for n in range(10)])
def run_ten_at_once(host: Host) -> Observation:
    def one(number: int) -> list[object]:
        said = host.run(*script(f"echo {number}; exit {number}"), name=f"n{number}")
        return [said["code"], said["out"]]

    with ThreadPoolExecutor(10) as pool:
        return {"results": list(pool.map(one, range(10)))}


@scenario(results=[[3, str(n)] for n in range(5)])
def run_one_after_another(host: Host) -> Observation:
    said = [host.run(*script(f"echo {n}; exit 3")) for n in range(5)]
    return {"results": [[s["code"], s["out"]] for s in said]}
