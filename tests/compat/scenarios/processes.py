"""What a spec asks for: what the container's process finds, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

from pyshim.api import options_pb2
from tests.compat import specs
from tests.compat.host import Host
from tests.compat.raw import files_in, whole
from tests.compat.scenario import Observation, scenario
from tests.integration.containerd import eventually, mounts_below


def printed(host: Host, *command: str, process: Any = None, **changes: Any) -> Observation:
    """What a container prints on both outputs, and how it ends."""
    raw = host.raw(f"raw{len(files_in(host.home / 'raw')) if (host.home / 'raw').exists() else 0}")
    path, seen = raw.output("out")
    error_path, errors = raw.output("err")
    raw.write_spec(specs.process(*command, **(process or {})), **changes)
    rpc = raw.launch()
    stdio = {"stdout": path, "stderr": error_path}
    found: Observation = {
        "create": rpc.tried("Create", id=raw.name, bundle=str(raw.bundle), **stdio)
    }
    if found["create"] == "ok":
        found["start"] = rpc.tried("Start", id=raw.name)
    if found.get("start") == "ok":
        found["status"] = rpc.wait(raw.name)
    found["delete"] = rpc.tried("Delete", id=raw.name)
    raw.drain()
    return {**found, "out": host.normal(seen.decode()), "err": host.normal(errors.decode())}


SHELL = ("/bin/sh", "-c")


@scenario(out="compat\n/www\nb c")
def process_environment(host: Host) -> Observation:
    changes = {"cwd": "/www", "env": [specs.PATH, "A=b c"]}
    return printed(host, *SHELL, "cat /proc/sys/kernel/hostname; pwd; echo $A", process=changes)


@scenario(status=0)
def process_identity(host: Host) -> Observation:
    changes = {
        "user": {"uid": 1000, "gid": 1001, "additionalGids": [7], "umask": 0o77},
        "noNewPrivileges": True,
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 200, "hard": 200}],
        "oomScoreAdj": 500,
    }
    command = "while read a; do echo $a; done < /proc/self/status; ulimit -n; umask"
    command += "; cat /proc/self/oom_score_adj"
    said = printed(host, *SHELL, command, process=changes)
    kept = ("Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "0", "1", "5")
    return {**said, "out": [line for line in said["out"].splitlines() if line.startswith(kept)]}


@scenario()
def process_descriptors(host: Host) -> Observation:
    return printed(host, *SHELL, "ls /proc/self/fd | tr '\\n' ' '; cat /proc/self/cgroup | wc -l")


@scenario(status=0)
def process_signals(host: Host) -> Observation:
    """What is blocked and ignored is inherited: nothing must be."""
    said = printed(host, *SHELL, "while read a; do echo $a; done < /proc/self/status")
    lines = [line for line in said["out"].splitlines() if line.startswith(("SigBlk", "SigIgn"))]
    return {**said, "out": lines}


@scenario(status=0)
def read_only_rootfs(host: Host) -> Observation:
    root = {"path": str(host.rootfs), "readonly": True}
    return printed(host, *SHELL, "echo x > /x || echo refused", root=root) | {"status": 0}


@scenario(status=0)
def many_mounts(host: Host) -> Observation:
    mounts = tuple(specs.mount(f"/tmp/m{n}", "tmpfs", "size=4k") for n in range(60))
    return printed(
        host, *SHELL, "grep -c /tmp/m /proc/self/mounts || wc -l < /proc/self/mounts", mounts=mounts
    ) | {"status": 0}


@scenario()
def refused_specs(host: Host) -> Observation:
    return {
        "no program": printed(host, "/no/such/program"),
        "not in PATH": printed(host, "nonesuch"),
        "directory": printed(host, "/www"),
        "cwd": printed(host, "/bin/true", process={"cwd": "/proc/none"}),
        "rootfs": printed(host, "/bin/true", rootfs="/no/such/rootfs"),
        "mount": printed(
            host, "/bin/true", mounts=(specs.mount("/x", "bind", "bind", source="/no/such"),)
        ),
        "namespace": printed(host, "/bin/true", namespaces=("pid", "mount", "nonesuch")),
    }


@scenario()
def refused_hooks(host: Host) -> Observation:
    hooks = {"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", "echo no >&2; exit 3"]}]}
    return printed(host, "/bin/true", hooks=hooks)


@scenario()
def bad_bundles(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running()
    found: Observation = {"nowhere": rpc.tried("Create", id="other", bundle="/no/such/bundle")}
    other = raw.bundle / "other"
    other.mkdir()
    found["empty"] = rpc.tried("Create", id="other", bundle=str(other))
    (other / "config.json").write_text("{")
    found["half"] = rpc.tried("Create", id="other", bundle=str(other))
    found["state"] = rpc.tried("State", id="other")
    return found


@scenario()
def bundle_files(host: Host) -> Observation:
    """Those that both have: ours keeps no others that anybody reads."""
    raw = host.raw()
    rpc = raw.running()
    raw.add_exec(rpc, "x", "/bin/sleep", "1000")
    rpc.ask("Start", id=raw.name, exec_id="x")
    # After another answer: with that of Start the files of the exec may not have gone yet.
    pid = rpc.ask("State", id=raw.name).pid
    found: Observation = {"running": files_in(raw.bundle)}
    found["init.pid"] = (raw.bundle / "init.pid").read_text() == str(pid)
    found["runtime"] = (raw.bundle / "runtime").exists()
    return found


@scenario(mounted=1, delete="ok", after=0)
def rootfs_of_create(host: Host) -> Observation:
    raw = host.raw()
    mounts = [{"type": "bind", "source": str(host.rootfs), "options": ["rbind", "ro"]}]
    raw.write_spec(rootfs="rootfs")
    (raw.bundle / "rootfs").mkdir()
    rpc = raw.launch()
    found: Observation = {
        "create": rpc.tried("Create", id=raw.name, bundle=str(raw.bundle), rootfs=mounts)
    }
    found["mounted"] = len(mounts_below(raw.bundle))
    found["start"] = rpc.tried("Start", id=raw.name)
    rpc.ask("Kill", id=raw.name, signal=9)
    rpc.wait(raw.name)
    found["delete"] = rpc.tried("Delete", id=raw.name)
    return {**found, "after": len(mounts_below(raw.bundle))}


@scenario(after=0)
def overlay_rootfs(host: Host) -> Observation:
    raw = host.raw()
    layers = [f"lower{n}" for n in range(3)] + ["upper", "work"]
    for layer in layers:
        (raw.bundle / layer).mkdir()
    lower = ":".join([*(str(raw.bundle / f"lower{n}") for n in range(3)), str(host.rootfs)])
    options = [f"lowerdir={lower}", f"upperdir={raw.bundle}/upper", f"workdir={raw.bundle}/work"]
    path, seen = raw.output("out")
    raw.write_spec(specs.process("/bin/sh", "-c", "echo x > /x; cat /x"), rootfs="rootfs")
    (raw.bundle / "rootfs").mkdir()
    rpc = raw.launch()
    mounts = [{"type": "overlay", "source": "overlay", "options": options}]
    fields = {"id": raw.name, "bundle": str(raw.bundle), "rootfs": mounts}
    fields |= whole({"stdout": path})
    found: Observation = {"create": rpc.tried("Create", **fields)}
    if found["create"] == "ok":
        rpc.ask("Start", id=raw.name)
        found["status"] = rpc.wait(raw.name)
        rpc.ask("Delete", id=raw.name)
    raw.drain()
    found["written"] = (raw.bundle / "upper/x").exists()
    return {**found, "out": seen.decode(), "after": len(mounts_below(raw.bundle))}


@scenario(after=0)
def rootfs_that_cannot_be_mounted(host: Host) -> Observation:
    raw = host.raw()
    raw.write_spec(rootfs="rootfs")
    (raw.bundle / "rootfs").mkdir()
    rpc = raw.launch()
    good = {"type": "bind", "source": str(host.rootfs), "options": ["rbind"]}
    bad = {"type": "bind", "source": "/no/such/source", "options": ["rbind"]}
    fields = {"id": raw.name, "bundle": str(raw.bundle), "rootfs": [good, bad]}
    found: Observation = {"create": rpc.tried("Create", **fields)}
    found["after"] = len(mounts_below(raw.bundle))
    return {**found, "state": rpc.tried("State", id=raw.name)}


@scenario(alive=False)
def host_pid_namespace(host: Host) -> Observation:
    """What the init started ends with it, though no namespace ends."""
    raw = host.raw()
    path, seen = raw.output("out")
    command = "sleep 1000 & echo $!; exit 5"
    stdio = {"stdout": path}
    namespaces = tuple(n for n in specs.NAMESPACES if n != "pid")
    rpc = raw.running(*SHELL, command, stdio=stdio, namespaces=namespaces)
    status = rpc.wait(raw.name)
    eventually(lambda: b"\n" in seen, "the child's pid")
    child = Path(f"/proc/{int(seen.split()[0])}")
    with contextlib.suppress(AssertionError):
        eventually(lambda: not child.exists(), "the child has been ended", 5)
    found: Observation = {"status": status, "alive": child.exists()}
    if child.exists():
        os.kill(int(child.name), signal.SIGKILL)
    return {**found, "delete": rpc.tried("Delete", id=raw.name)}


@scenario()
def options_file(host: Host) -> Observation:
    """What `delete` needs to know of the runtime."""
    raw = host.raw()
    raw.write_spec()
    rpc = raw.launch()
    root = str(host.home / "runtime-root")
    options = options_pb2.Options(no_new_keyring=True, root=root, binary_name="runc")
    sent = {"type_url": "containerd.runc.v1.Options", "value": options.SerializeToString()}
    fields = {"id": raw.name, "bundle": str(raw.bundle), "options": sent}
    found: Observation = {"create": rpc.tried("Create", **fields)}
    found["options.json"] = (
        json.loads((raw.bundle / "options.json").read_text()).get("root") == root
    )
    found["state"] = bool(list((host.home / "runtime-root").glob("*/raw/state.json")))
    rpc.ask("Kill", id=raw.name, signal=9)
    rpc.wait(raw.name)
    return {**found, "delete": rpc.tried("Delete", id=raw.name)}


@scenario()
def refused_options(host: Host) -> Observation:
    raw = host.raw()
    raw.write_spec()
    rpc = raw.launch()
    options = options_pb2.Options(binary_name="no-such-runtime").SerializeToString()
    sent = {"type_url": "containerd.runc.v1.Options", "value": options}
    fields = {"id": raw.name, "bundle": str(raw.bundle), "options": sent}
    return {"create": rpc.tried("Create", **fields), "state": rpc.tried("State", id=raw.name)}
