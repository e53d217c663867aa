"""The shim's program: `start`, `delete`, `-v`, and the end of its process."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

from pyshim.api import info_pb2, task_pb2
from tests.compat.host import Host
from tests.compat.raw import address_in, pid_files
from tests.compat.scenario import Observation, scenario
from tests.integration.containerd import eventually


@scenario()
def version_flag(host: Host) -> Observation:
    raw = host.raw()
    said = raw.execute("-v")
    labels = [line.partition(":")[0].strip() for line in said.stdout.decode().splitlines()]
    return {"code": said.returncode, "labels": labels, "err": said.stderr.decode()}


@scenario()
def info_flag(host: Host) -> Observation:
    """From 2.0 on; before, the Go shim does not know it."""
    raw = host.raw()
    said = raw.execute("-info")
    if host.series != "2":
        return {"code": "not asked for"}
    info = info_pb2.RuntimeInfo.FromString(said.stdout)
    return {
        "code": said.returncode,
        "version": bool(info.version.version),
        "features": info.features.type_url,
        "annotations": dict(info.annotations),
    }


@scenario(code=0, same=True)
def start_twice(host: Host) -> Observation:
    raw = host.raw()
    raw.running()
    again = raw.execute(*raw.flags("start"))
    same = address_in(again.stdout.decode()) == raw.address
    return {"code": again.returncode, "same": same, "shims": len(host.shims())}


@scenario()
def start_prints(host: Host) -> Observation:
    raw = host.raw()
    raw.write_spec()
    said = raw.execute(*raw.flags("start"))
    text = said.stdout.decode()
    raw.address = address_in(text)
    host.remember_socket(raw.address)
    raw.connect()
    socket = Path(raw.address.removeprefix("unix://"))
    mode = socket.stat().st_mode
    return {
        "scheme": raw.address.partition("/")[0],
        "mode": oct(stat.S_IMODE(mode)),
        "err": said.stderr.decode(),
        "address file": (raw.bundle / "address").exists(),
    }


@scenario(refused=True)
def start_without_a_namespace(host: Host) -> Observation:
    raw = host.raw()
    raw.write_spec()
    said = raw.execute("-id", raw.name, "start")
    text = host.normal((said.stdout + said.stderr).decode())
    return {"refused": said.returncode != 0} | {"code": said.returncode, "text": text}


@scenario()
def start_without_a_bundle(host: Host) -> Observation:
    raw = host.raw()
    said = raw.execute(*raw.flags("start"))
    return {"refused": said.returncode != 0}


@scenario(refused=True)
def unknown_flag(host: Host) -> Observation:
    raw = host.raw()
    raw.write_spec()
    flag = raw.execute("-nonesuch")
    return {"refused": flag.returncode != 0, "err": bool(flag.stderr)}


@scenario(status=137, alive=False)
def delete_action_of_a_running_container(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    pid = rpc.ask("State", id=raw.name).pid
    said = raw.execute(*raw.flags("-bundle", str(raw.bundle), "delete"))
    reply = task_pb2.DeleteResponse.FromString(said.stdout)
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the container has been ended")
    found: Observation = {"code": said.returncode, "status": reply.exit_status, "alive": False}
    return {**found, "pid": reply.pid == pid, "exited": reply.exited_at.seconds > 0}


@scenario()
def delete_action_twice(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.ended()
    rpc.ask("Delete", id=raw.name)
    rpc.code("Shutdown", id=raw.name)
    found: Observation = {}
    for turn in ("first", "second"):
        said = raw.execute(*raw.flags("-bundle", str(raw.bundle), "delete"))
        reply = task_pb2.DeleteResponse.FromString(said.stdout)
        found[turn] = [said.returncode, reply.exit_status]
    return found


@scenario(shims=0, socket=False)
def shutdown_after_delete(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.ended()
    found: Observation = {"early": rpc.tried("Shutdown", id=raw.name)}
    found["running"] = len(host.shims())
    rpc.ask("Delete", id=raw.name)
    found["shutdown"] = rpc.code("Shutdown", id=raw.name) in {"ok", "connection closed"}
    eventually(lambda: not host.shims(), "the shim has ended")
    return {**found, "shims": 0, "socket": os.path.exists(raw.address.removeprefix("unix://"))}


@scenario(shims=0)
def shutdown_before_create(host: Host) -> Observation:
    raw = host.raw()
    raw.write_spec()
    rpc = raw.launch()
    found: Observation = {"state": rpc.tried("State", id=raw.name)}
    found["shutdown"] = rpc.code("Shutdown", id=raw.name) in {"ok", "connection closed"}
    eventually(lambda: not host.shims(), "the shim has ended")
    return {**found, "shims": 0}


@scenario()
def shutdown_while_running(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    found: Observation = {"shutdown": rpc.tried("Shutdown", id=raw.name, now=True)}
    return {**found, "state": rpc.status(raw.name), "shims": len(host.shims())}


@scenario()
def signals_to_the_shim(host: Host) -> Observation:
    """SIGTERM ends it; the container is left to `delete`."""
    raw = host.raw()
    rpc = raw.running()
    pid = rpc.ask("State", id=raw.name).pid
    (shim,) = host.shims()
    for harmless in (signal.SIGPIPE, signal.SIGCHLD):
        os.kill(shim, harmless)
    found: Observation = {"state": rpc.status(raw.name)}
    os.kill(shim, signal.SIGTERM)
    eventually(lambda: not host.shims(), "the shim has ended")
    found["container"] = Path(f"/proc/{pid}").exists()
    found["socket"] = os.path.exists(raw.address.removeprefix("unix://"))
    return found


@scenario()
def oom_score_of_the_shim(host: Host) -> Observation:
    raw = host.raw()
    raw.running()
    (shim,) = host.shims()
    own = int(Path("/proc/self/oom_score_adj").read_text())
    return {"above ours": int(Path(f"/proc/{shim}/oom_score_adj").read_text()) - own}


@scenario()
def surroundings_of_the_shim(host: Host) -> Observation:
    raw = host.raw()
    raw.running()
    (shim,) = host.shims()
    folder = Path(f"/proc/{shim}")
    links = {fd: os.readlink(folder / f"fd/{fd}") for fd in ("0", "1")}
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return {
        "cwd": host.normal(os.readlink(folder / "cwd")),
        "links": links,
        "leads its group": int(fields[2]) == shim,
        "parent": int(fields[1]) == os.getpid(),
    }


@scenario()
def bundle_after_delete(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    for turn in range(3):
        raw.add_exec(rpc, f"x{turn}")
        rpc.ask("Start", id=raw.name, exec_id=f"x{turn}")
        rpc.wait(raw.name, f"x{turn}")
        rpc.ask("Delete", id=raw.name, exec_id=f"x{turn}")
    return {"pid files": pid_files(raw)}
