"""What a container may use and has used: Stats, Update, OOM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from pyshim.api import cgroups1_pb2, cgroups2_pb2
from tests.compat.host import Host
from tests.compat.raw import RESOURCES_URL, RawShim
from tests.compat.scenario import Observation, scenario
from tests.integration.containerd import eventually

METRICS = {
    "io.containerd.cgroups.v1.Metrics": cgroups1_pb2.Metrics,
    "io.containerd.cgroups.v2.Metrics": cgroups2_pb2.Metrics,
}
LIMITS = {
    "memory": {"limit": 64 << 20},
    "cpu": {"shares": 512, "quota": 50000, "period": 100000},
    "pids": {"limit": 50},
}


def files(host: Host, name: str) -> list[Path]:
    """The cgroups of a container, each once."""
    roots = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
    found = {(r / host.namespace / name).resolve() for r in roots}
    return sorted(f for f in found if f.is_dir())


def limits(host: Host, name: str) -> dict[str, str]:
    """What is limited, as the kernel has it."""
    wanted = ("memory.limit_in_bytes", "memory.max", "cpu.shares", "cpu.weight")
    wanted += ("cpu.cfs_quota_us", "cpu.max", "pids.max")
    return {
        file.name: file.read_text().strip()
        for folder in files(host, name)
        for file in folder.iterdir()
        if file.name in wanted
    }


def shape(message: Message, prefix: str = "") -> dict[str, str]:
    """Which fields are set, with the limits' values and "set" for counters."""
    found: dict[str, str] = {}
    for field, value in message.ListFields():
        name = f"{prefix}{field.name}"
        if isinstance(value, Message):
            found |= {name: "message"} | shape(value, f"{name}.")
        elif isinstance(value, int):
            found[name] = str(value) if "limit" in field.name else "set"
        else:
            found[name] = "list"
    return found


@scenario(smoke=True)
def stats(host: Host) -> Observation:
    raw = host.raw()
    # It lies still before it is looked at, so that nothing counts up in between.
    rpc = raw.running(resources=LIMITS)
    said = rpc.ask("Stats", id=raw.name).stats
    found = shape(METRICS[said.type_url].FromString(said.value))
    # Whether such a short life has had a fault or used kernel memory is chance.
    stable = {k: v for k, v in found.items() if v != "set" and not k.startswith("blkio")}
    counters = ("pids.current", "cpu.usage.total", "memory.usage.usage", "memory.usage.limit")
    return {"type": said.type_url, "set": stable, "counters": [found.get(c) for c in counters]}


@scenario(update="ok")
def update(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running(resources=LIMITS)
    found: Observation = {"before": limits(host, raw.name)}
    changes = {"memory": {"limit": 128 << 20}, "cpu": {"shares": 256}, "pids": {"limit": 70}}
    found["update"] = rpc.tried("Update", id=raw.name, resources=resources(changes))
    return {**found, "after": limits(host, raw.name)}


def resources(value: Any) -> dict[str, object]:
    """LinuxResources as an Any."""
    encoded = value if isinstance(value, bytes) else json.dumps(value).encode()
    return {"type_url": RESOURCES_URL, "value": encoded}


@scenario()
def refused_updates(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running(resources=LIMITS)
    found: Observation = {
        name: rpc.tried("Update", id=raw.name, resources=resources(value))
        for name, value in {
            "half": b"{",
            "list": b"[]",
            "too little memory": {"memory": {"limit": 4096}},
            "negative shares": {"cpu": {"shares": -1}},
        }.items()
    }
    return {**found, "after": limits(host, raw.name)}


@scenario()
def update_with_nothing(host: Host) -> Observation:
    raw = host.raw()
    rpc = raw.running(resources=LIMITS)
    said = rpc.code("Update", id=raw.name)
    return {"update": said, "state": rpc.code("State", id=raw.name)}


def _oom(raw: RawShim) -> Observation:
    resources_ = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
    with raw.host.events() as seen:
        rpc = raw.running("/bin/tail", "/dev/zero", resources=resources_)
        found: Observation = {"status": rpc.wait(raw.name)}
        eventually(lambda: any(topic == "exit" for topic, _ in seen), "the exit")
        topics = [topic for topic, _ in seen if topic in {"oom", "exit"}]
    return {**found, "topics": sorted(set(topics), key=topics.index)}


@scenario(status=137, topics=["oom", "exit"])
def oom(host: Host) -> Observation:
    return _oom(host.raw())


@scenario(exec=137, state="RUNNING")
def oom_of_an_exec(host: Host) -> Observation:
    raw = host.raw()
    limit = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
    with host.events() as seen:
        rpc = raw.running(resources=limit)
        raw.add_exec(rpc, "x", "/bin/tail", "/dev/zero")
        rpc.ask("Start", id=raw.name, exec_id="x")
        found: Observation = {"exec": rpc.wait(raw.name, "x")}
        eventually(lambda: {"oom", "exit"} <= {topic for topic, _ in seen}, "both events")
    return {**found, "state": rpc.status(raw.name)}


@scenario(limit="8")
def limits_of_a_spec(host: Host) -> Observation:
    raw = host.raw()
    raw.running(resources={**LIMITS, "pids": {"limit": 8}})
    found = limits(host, raw.name)
    return {"limits": found, "limit": found.get("pids.max")}
