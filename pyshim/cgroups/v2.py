"""The Metrics message of cgroup v2 (kernel: Documentation/admin-guide/cgroup-v2)."""

from __future__ import annotations

import os

from pyshim.api import cgroups2_pb2 as api
from pyshim.cgroups import files

# memory.stat's keys that kernels from 5.9 on split by kind; a message has their sum.
SPLIT = ("workingset_refault", "workingset_activate")
IO_FIELDS = ("rbytes", "wbytes", "rios", "wios")


def metrics(folder: str, pid: int = 0) -> api.Metrics:
    """What the group in ``folder`` says; ``pid`` is for the network."""
    found = api.Metrics()
    for message in (found.pids, found.cpu, found.memory):  # CRI-O follows these without a look
        message.SetInParent()
    found.pids.current = files.number(folder, "pids.current")
    found.pids.limit = files.number(folder, "pids.max")
    _fill(found.cpu, files.numbers(folder, "cpu.stat"))
    _pressure(found.cpu, folder, "cpu.pressure")
    _memory(found, folder)
    _io(found.io, folder)
    _hugetlb(found, folder)
    for field in ("current", "max"):
        entries = found.rdma.current if field == "current" else found.rdma.limit
        for device, handles, objects in files.rdma(folder, f"rdma.{field}"):
            entries.add(device=device, hca_handles=handles, hca_objects=objects)
    for name, counters in files.network(pid) if pid else ():
        found.network.add(name=name, **counters)
    return found


def _fill(message: api.CPUStat | api.MemoryStat | api.MemoryEvents, values: dict[str, int]) -> None:
    """Sets the fields that have a value's name."""
    message.SetInParent()
    for name, value in values.items():
        if name in message.DESCRIPTOR.fields_by_name:
            setattr(message, name, value)


def _pressure(message: api.CPUStat | api.MemoryStat | api.IOStat, folder: str, name: str) -> None:
    """The pressure stall information, on kernels that account it."""
    for line in files.text(folder, name).splitlines():
        kind = line.split()[0]
        if kind not in {"some", "full"}:
            continue
        values = files.fields(line)
        data = getattr(message.psi, kind)
        data.avg10, data.avg60 = float(values["avg10"]), float(values["avg60"])
        data.avg300, data.total = float(values["avg300"]), int(values["total"])


def _memory(found: api.Metrics, folder: str) -> None:
    memory = found.memory
    values = files.numbers(folder, "memory.stat")
    for name in SPLIT:
        parts = [values.get(f"{name}_{kind}", 0) for kind in ("anon", "file")]
        values.setdefault(name, sum(parts))
    _fill(memory, values)
    memory.usage = files.number(folder, "memory.current")
    memory.usage_limit = files.number(folder, "memory.max")
    memory.max_usage = files.number(folder, "memory.peak")
    memory.swap_usage = files.number(folder, "memory.swap.current")
    memory.swap_limit = files.number(folder, "memory.swap.max")
    memory.swap_max_usage = files.number(folder, "memory.swap.peak")
    _pressure(memory, folder, "memory.pressure")
    events = files.numbers(folder, "memory.events")
    if events:
        _fill(found.memory_events, events)


def _io(found: api.IOStat, folder: str) -> None:
    found.SetInParent()
    for line in files.text(folder, "io.stat").splitlines():
        where, _, rest = line.partition(" ")
        major, colon, minor = where.partition(":")
        if not colon:
            continue
        values = files.fields(rest)
        counters = {name: files.to_int(values.get(name, "0")) for name in IO_FIELDS}
        found.usage.add(major=int(major), minor=int(minor), **counters)
    _pressure(found, folder, "io.pressure")


def _hugetlb(found: api.Metrics, folder: str) -> None:
    suffix = ".current"
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        if name.startswith("hugetlb.") and name.endswith(suffix) and ".rsvd." not in name:
            size = name[len("hugetlb.") : -len(suffix)]
            failures = files.numbers(folder, f"hugetlb.{size}.events")
            found.hugetlb.add(
                pagesize=size,
                current=files.number(folder, name),
                max=files.number(folder, f"hugetlb.{size}.max"),
                failcnt=failures.get("max", 0),
            )
