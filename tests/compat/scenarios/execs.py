"""Processes that are added to a container."""

from __future__ import annotations

import os
import signal

from tests.compat import specs
from tests.compat.host import Host
from tests.compat.raw import RawShim, files_in, pid_files
from tests.compat.rpc import Rpc
from tests.compat.scenario import Observation, scenario
from tests.integration.containerd import eventually

KILL = int(signal.SIGKILL)
SLEEP = ("/bin/sleep", "1000")


def printed(raw: RawShim, rpc: Rpc, *command: str, **changes: object) -> Observation:
    """What an exec prints, and how it ends."""
    path, seen = raw.output(f"out{len(files_in(raw.bundle))}")
    said = raw.add_exec(rpc, "p", *command, stdout=path, changes=changes)
    found: Observation = {"exec": said, "start": rpc.tried("Start", id=raw.name, exec_id="p")}
    if found["start"] == "ok":
        found["status"] = rpc.wait(raw.name, "p")
    found["delete"] = rpc.tried("Delete", id=raw.name, exec_id="p")
    raw.drain()
    found["out"] = raw.host.normal(seen.decode())
    return found


@scenario(twice="ok")
def exec_states(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    found: Observation = {"exec": raw.add_exec(rpc, "x", *SLEEP)}
    found["added"] = rpc.state(raw.name, "x")
    found["kill early"] = rpc.tried("Kill", id=raw.name, exec_id="x", signal=KILL)
    found["duplicate"] = raw.add_exec(rpc, "x", *SLEEP)
    found["start"] = rpc.tried("Start", id=raw.name, exec_id="x")
    found["running"] = rpc.state(raw.name, "x")
    found["again"] = rpc.tried("Start", id=raw.name, exec_id="x")
    found["delete early"] = rpc.tried("Delete", id=raw.name, exec_id="x")
    found["kill"] = rpc.tried("Kill", id=raw.name, exec_id="x", signal=KILL)
    found["status"] = rpc.wait(raw.name, "x")
    found["stopped"] = rpc.state(raw.name, "x")
    found["kill late"] = rpc.tried("Kill", id=raw.name, exec_id="x", signal=KILL)
    found["start late"] = rpc.tried("Start", id=raw.name, exec_id="x")
    found["resize late"] = rpc.tried("ResizePty", id=raw.name, exec_id="x", width=1, height=1)
    found["delete"] = rpc.tried("Delete", id=raw.name, exec_id="x")
    found["deleted"] = rpc.tried("State", id=raw.name, exec_id="x")
    found["delete again"] = rpc.tried("Delete", id=raw.name, exec_id="x")
    found["twice"] = raw.add_exec(rpc, "x")
    return found


@scenario()
def exec_deleted_before_start(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    found: Observation = {"exec": raw.add_exec(rpc, "x")}
    found["delete"] = rpc.tried("Delete", id=raw.name, exec_id="x")
    found["state"] = rpc.tried("State", id=raw.name, exec_id="x")
    return found


@scenario()
def exec_of_what_is_missing(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    found: Observation = {"exec": raw.add_exec(rpc, "x", "/no/such/program")}
    found["start"] = rpc.tried("Start", id=raw.name, exec_id="x")
    found["state"] = rpc.state(raw.name, "x")
    found["wait"] = rpc.code("Wait", timeout_s=5, id=raw.name, exec_id="x")
    found["delete"] = rpc.tried("Delete", id=raw.name, exec_id="x")
    return found


@scenario()
def failed_exec_is_started_again(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    raw.add_exec(rpc, "x", "/no/such/program")
    rpc.code("Start", id=raw.name, exec_id="x")
    found = {"again": rpc.tried("Start", id=raw.name, exec_id="x")}
    return {**found, "delete": rpc.tried("Delete", id=raw.name, exec_id="x")}


@scenario()
def exec_that_cannot_run(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    return {
        "directory": printed(raw, rpc, "/www"),
        "not executable": printed(raw, rpc, "/www/index.html"),
        "no such cwd": printed(raw, rpc, "/bin/true", cwd="/proc/none"),
        "relative cwd": printed(raw, rpc, "/bin/true", cwd="www"),
        "no args": printed(raw, rpc, args=[]),
    }


@scenario()
def exec_with_a_bad_spec(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    values = {"empty": b"", "half": b"{", "list": b"[]", "bytes": b"\xff"}
    found: Observation = {
        name: raw.add_exec(rpc, name, value=value) for name, value in values.items()
    }
    found["object"] = raw.add_exec(rpc, "object", value=b"{}")
    found["start object"] = rpc.tried("Start", id=raw.name, exec_id="object")
    return found


@scenario()
def exec_identity(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    command = ("/bin/sh", "-c", "while read a; do echo $a; done < /proc/self/status")
    user = {"uid": 1000, "gid": 1001, "additionalGids": [5, 6]}
    said = printed(raw, rpc, *command, user=user, noNewPrivileges=True)
    kept = ("Uid", "Gid", "Groups", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp:")
    lines = [line for line in said["out"].splitlines() if line.startswith(kept)]
    return {**said, "out": lines}


@scenario()
def exec_environment(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    command = ("/bin/sh", "-c", "pwd; echo $A; ulimit -n; umask")
    limits = [{"type": "RLIMIT_NOFILE", "soft": 200, "hard": 200}]
    env = [specs.PATH, "A=b c"]
    return printed(raw, rpc, *command, cwd="/www", env=env, rlimits=limits)


@scenario(status=0)
def exec_stdin(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    out, seen = raw.output("out")
    path, writer = raw.input("in")
    raw.add_exec(rpc, "x", "/bin/cat", stdin=path, stdout=out)
    rpc.ask("Start", id=raw.name, exec_id="x")
    os.write(writer, b"typed\n")
    eventually(lambda: seen == b"typed\n", "what was typed")
    raw.close(writer)
    state = rpc.status(raw.name, "x")
    found: Observation = {"state": state}
    found["close"] = rpc.tried("CloseIO", id=raw.name, exec_id="x", stdin=True)
    found["status"] = rpc.wait(raw.name, "x")
    found["again"] = rpc.tried("CloseIO", id=raw.name, exec_id="x", stdin=True)
    return found


@scenario(codes=list(range(20)))
def twenty_execs_at_once(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    names = [f"x{n}" for n in range(20)]
    for n, name in enumerate(names):
        raw.add_exec(rpc, name, "/bin/sh", "-c", f"exit {n}")
    starts = [rpc.send("Start", id=raw.name, exec_id=name) for name in names]
    for stream in starts:
        rpc.receive("Start", stream)
    found = {"codes": [rpc.wait(raw.name, name) for name in names]}
    deleted = [rpc.tried("Delete", id=raw.name, exec_id=name) for name in names]
    return {**found, "deleted": sorted(set(deleted)), "pid files": pid_files(raw)}


@scenario(init=7)
def execs_end_with_the_init(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running("/bin/sh", "-c", "trap 'exit 7' TERM; while :; do sleep 1000 & wait $!; done")
    raw.add_exec(rpc, "x", *SLEEP)
    rpc.ask("Start", id=raw.name, exec_id="x")
    with host.events() as seen:
        rpc.ask("Kill", id=raw.name, signal=int(signal.SIGTERM))
        found: Observation = {"init": rpc.wait(raw.name), "exec": rpc.wait(raw.name, "x")}
        eventually(lambda: [t for t, _ in seen].count("exit") == 2, "both exits")
        found["events"] = host.plain(list(seen))
    found["state"] = rpc.state(raw.name, "x")
    raw.add_exec(rpc, "late")
    found["late"] = rpc.tried("Start", id=raw.name, exec_id="late")
    found["delete exec"] = rpc.tried("Delete", id=raw.name, exec_id="x")
    return {**found, "delete": rpc.tried("Delete", id=raw.name)}


@scenario()
def pids_with_execs(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running("/bin/sh", "-c", "sleep 1000 & sleep 1000")
    raw.add_exec(rpc, "x", *SLEEP)
    rpc.ask("Start", id=raw.name, exec_id="x")
    pid = rpc.ask("State", id=raw.name).pid
    eventually(lambda: len(rpc.ask("Pids", id=raw.name).processes) == 3, "all processes")
    listed = rpc.ask("Pids", id=raw.name).processes
    infos = [(p.info.type_url.rpartition("/")[2], p.info.value) for p in listed if p.info.value]
    return {"init": pid in [p.pid for p in listed], "infos": [f"{u} {v!r}" for u, v in infos]}


@scenario(status=0)
def exec_of_a_long_command(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    words = [str(n) for n in range(10000)]
    said = printed(raw, rpc, "/bin/sh", "-c", "echo $#", "sh", *words)
    return {**said, "status": said.get("status")}


@scenario()
def exec_ids(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    return {name: raw.add_exec(rpc, name) for name in ("A-b_c.d", "0", "x" * 76)}
