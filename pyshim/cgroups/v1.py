"""The Metrics message of cgroup v1 (kernel: Documentation/admin-guide/cgroup-v1)."""

from __future__ import annotations

import os

from pyshim.api import cgroups1_pb2 as api
from pyshim.cgroups import files

NANOSECONDS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
# memory.stat's keys whose fields have other names
RENAMED = {
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
}
MEMORY_ENTRIES = {"usage": "", "swap": "memsw.", "kernel": "kmem.", "kernel_tcp": "kmem.tcp."}
# "swap" is a number in the file and, with more to it, an entry.
_NUMBERS = {f.name for f in api.MemoryStat.DESCRIPTOR.fields} - MEMORY_ENTRIES.keys()
# memory.stat's keys, and the fields for them
MEMORY_FIELDS = {name: name for name in _NUMBERS} | {
    f"{total}{key}": f"{total}{name}"
    for key, name in RENAMED.items()
    for total in ("", "total_")
    if f"{total}{name}" in _NUMBERS
}
BLKIO_TABLES = {
    "io_service_bytes_recursive": ("io_service_bytes_recursive", "throttle.io_service_bytes"),
    "io_serviced_recursive": ("io_serviced_recursive", "throttle.io_serviced"),
    "io_queued_recursive": ("io_queued_recursive",),
    "io_service_time_recursive": ("io_service_time_recursive",),
    "io_wait_time_recursive": ("io_wait_time_recursive",),
    "io_merged_recursive": ("io_merged_recursive",),
    "io_time_recursive": ("time_recursive",),
    "sectors_recursive": ("sectors_recursive",),
}


def metrics(groups: dict[str, str], pid: int = 0) -> api.Metrics:
    """What the controllers in ``groups`` (name → folder) say; ``pid`` is for the network.

    The messages that every client reads are there even where the kernel has no such controller:
    CRI-O follows them without a look (spec/crio-vm.md, Stats).
    """
    found = api.Metrics()
    found.pids.SetInParent()
    found.cpu.usage.SetInParent()
    found.cpu.throttling.SetInParent()
    for name in MEMORY_ENTRIES:
        getattr(found.memory, name).SetInParent()
    if "pids" in groups:
        found.pids.current = files.number(groups["pids"], "pids.current")
        limit = files.number(groups["pids"], "pids.max")
        # containerd's library has 0 for "no limit" here, and docker takes it for that.
        found.pids.limit = 0 if limit == files.UNLIMITED else limit
    _cpu(found, groups)
    if "memory" in groups:
        _memory(found, groups["memory"])
    if "blkio" in groups:
        _blkio(found.blkio, groups["blkio"])
    if "hugetlb" in groups:
        _hugetlb(found, groups["hugetlb"])
    if "rdma" in groups:
        _rdma(found.rdma, groups["rdma"])
    for name, counters in files.network(pid) if pid else ():
        found.network.add(name=name, **counters)
    return found


def _cpu(found: api.Metrics, groups: dict[str, str]) -> None:
    if "cpuacct" in groups:
        folder = groups["cpuacct"]
        usage = found.cpu.usage
        usage.total = files.number(folder, "cpuacct.usage")
        ticks = files.numbers(folder, "cpuacct.stat")
        usage.user = ticks.get("user", 0) * NANOSECONDS_PER_TICK
        usage.kernel = ticks.get("system", 0) * NANOSECONDS_PER_TICK
        usage.per_cpu.extend(map(int, files.text(folder, "cpuacct.usage_percpu").split()))
    if "cpu" in groups:
        throttled = files.numbers(groups["cpu"], "cpu.stat")
        found.cpu.throttling.periods = throttled.get("nr_periods", 0)
        found.cpu.throttling.throttled_periods = throttled.get("nr_throttled", 0)
        found.cpu.throttling.throttled_time = throttled.get("throttled_time", 0)


def _memory(found: api.Metrics, folder: str) -> None:
    memory = found.memory
    for key, value in files.numbers(folder, "memory.stat").items():
        if value and (field := MEMORY_FIELDS.get(key)):
            setattr(memory, field, value)
    for name, part in MEMORY_ENTRIES.items():
        usage = files.text(folder, f"memory.{part}usage_in_bytes")
        if not usage:
            continue
        entry = getattr(memory, name)
        entry.usage = files.to_int(usage)
        entry.limit = files.number(folder, f"memory.{part}limit_in_bytes")
        entry.max = files.number(folder, f"memory.{part}max_usage_in_bytes")
        entry.failcnt = files.number(folder, f"memory.{part}failcnt")
    for key, value in files.numbers(folder, "memory.oom_control").items():
        if key in found.memory_oom_control.DESCRIPTOR.fields_by_name:
            setattr(found.memory_oom_control, key, value)


def _blkio(found: api.BlkIOStat, folder: str) -> None:
    found.SetInParent()
    devices: dict[tuple[int, int], str] = {}
    for field, names in BLKIO_TABLES.items():
        for name in names:
            lines = files.text(folder, f"blkio.{name}").splitlines()
            entries = [line.split() for line in lines if ":" in line.split(" ", 1)[0]]
            if entries and not devices:
                devices = block_devices(files.text("/proc", "partitions"))
            for where, *operation, value in entries:
                major, minor = map(int, where.split(":"))
                getattr(found, field).add(
                    op="".join(operation),
                    device=devices.get((major, minor), ""),
                    major=major,
                    minor=minor,
                    value=files.to_int(value),
                )
            if entries:
                break  # the scheduler's numbers; the throttle's are for hosts without one


def block_devices(partitions: str) -> dict[tuple[int, int], str]:
    """The names of block devices by number, from /proc/partitions (proc(5))."""
    rows = (line.split() for line in partitions.splitlines()[2:])
    return {(int(row[0]), int(row[1])): f"/dev/{row[3]}" for row in rows if len(row) == 4}


def _hugetlb(found: api.Metrics, folder: str) -> None:
    suffix = ".usage_in_bytes"
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    for name in names:
        if name.endswith(suffix) and ".rsvd." not in name:
            size = name.split(".")[1]
            found.hugetlb.add(
                pagesize=size,
                usage=files.number(folder, name),
                max=files.number(folder, f"hugetlb.{size}.max_usage_in_bytes"),
                failcnt=files.number(folder, f"hugetlb.{size}.failcnt"),
            )


def _rdma(found: api.RdmaStat, folder: str) -> None:
    for field in ("current", "max"):
        entries = found.current if field == "current" else found.limit
        for device, handles, objects in files.rdma(folder, f"rdma.{field}"):
            entries.add(device=device, hca_handles=handles, hca_objects=objects)
