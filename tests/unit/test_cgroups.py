"""Where control groups are found, and what is read from recorded trees of them."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from pyshim.cgroups import files, locate, oom, v1, v2

V1_MOUNTS = """\
24 20 0:20 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
25 24 0:21 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
26 24 0:22 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
27 24 0:23 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
28 24 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""
V2_MOUNTS = "24 20 0:20 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def test_v1_with_controllers_that_share_a_mount() -> None:
    membership = "3:cpu,cpuacct:/default/c\n2:memory:/default/c\n1:name=systemd:/x\n0::/y\n"
    assert locate.folders(membership, V1_MOUNTS) == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct/default/c",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/default/c",
        "memory": "/sys/fs/cgroup/memory/default/c",
        "name=systemd": "/sys/fs/cgroup/systemd/x",
    }


def test_v2() -> None:
    found = locate.folders("0::/system.slice/c.scope\n", V2_MOUNTS)
    assert found == {locate.UNIFIED: "/sys/fs/cgroup/system.slice/c.scope"}


def test_a_part_of_the_hierarchy_is_mounted() -> None:
    mounts = "24 20 0:20 /outer /sys/fs/cg\\040roup rw - cgroup2 cgroup2 rw\n"
    found = locate.folders("0::/outer/c\n", mounts)
    assert found == {locate.UNIFIED: "/sys/fs/cg roup/c"}


@pytest.mark.parametrize("path", ["/", "/../sibling"])
def test_the_hosts_own_groups_are_nobodys(path: str) -> None:
    assert locate.folders(f"2:memory:{path}\n0::{path}\n", V1_MOUNTS) == {}


def test_a_process_that_has_gone() -> None:
    assert locate.apart(2**22 + 1, os.getpid()) == {}


def write(folder: Path, content: dict[str, str]) -> None:
    """Records a group."""
    for name, text in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_pids_of_nested_groups(tmp_path: Path) -> None:
    write(tmp_path, {"cgroup.procs": "30\n4\n", "inner/cgroup.procs": "17\n"})
    assert locate.pids({"": str(tmp_path)}) == [4, 17, 30]
    assert locate.pids({"pids": str(tmp_path / "gone")}) == []


V2_TREE = {
    "pids.current": "3\n",
    "pids.max": "max\n",
    "cpu.stat": "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_periods 5\nnr_throttled 2\n"
    "throttled_usec 7\nnr_bursts 1\nburst_usec 9\nunknown 1\n",
    "cpu.pressure": "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
    "memory.current": "4096\n",
    "memory.max": "max\n",
    "memory.peak": "8192\n",
    "memory.swap.current": "1\n",
    "memory.swap.max": "2\n",
    "memory.swap.peak": "3\n",
    "memory.stat": "anon 11\nfile 12\nslab_reclaimable 13\nworkingset_refault_anon 3\n"
    "workingset_refault_file 4\nthp_fault_alloc 5\n",
    "memory.events": "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n",
    "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n253:1\n",
    "rdma.current": "mlx4_0 hca_handle=2 hca_object=2000\n",
    "rdma.max": "mlx4_0 hca_handle=max hca_object=3\n",
    "hugetlb.2MB.current": "2097152\n",
    "hugetlb.2MB.max": "max\n",
    "hugetlb.2MB.events": "max 8\n",
    "hugetlb.2MB.rsvd.current": "0\n",
}


def test_v2_metrics(tmp_path: Path) -> None:
    write(tmp_path, V2_TREE)
    found = v2.metrics(str(tmp_path))
    assert (found.pids.current, found.pids.limit) == (3, files.UNLIMITED)
    cpu = found.cpu
    assert (cpu.usage_usec, cpu.user_usec, cpu.system_usec) == (10, 6, 4)
    assert (cpu.nr_periods, cpu.nr_throttled, cpu.throttled_usec) == (5, 2, 7)
    assert (cpu.nr_bursts, cpu.burst_usec) == (1, 9)
    assert (cpu.psi.some.avg10, cpu.psi.some.total, cpu.psi.full.total) == (1.5, 77, 5)
    memory = found.memory
    assert (memory.anon, memory.file, memory.slab_reclaimable) == (11, 12, 13)
    assert (memory.workingset_refault, memory.thp_fault_alloc) == (7, 5)
    assert (memory.usage, memory.usage_limit, memory.max_usage) == (4096, files.UNLIMITED, 8192)
    assert (memory.swap_usage, memory.swap_limit, memory.swap_max_usage) == (1, 2, 3)
    events = found.memory_events
    assert (events.low, events.high, events.max, events.oom) == (1, 2, 3, 4)
    assert (events.oom_kill, events.oom_group_kill) == (5, 6)
    assert [(u.major, u.minor, u.rbytes, u.wios) for u in found.io.usage] == [
        (8, 0, 1, 4),
        (253, 1, 0, 0),
    ]
    assert [(e.device, e.hca_handles, e.hca_objects) for e in found.rdma.limit] == [
        ("mlx4_0", 2**32 - 1, 3)
    ]
    assert [(h.pagesize, h.current, h.failcnt) for h in found.hugetlb] == [("2MB", 2097152, 8)]


def test_v2_of_a_group_that_has_gone(tmp_path: Path) -> None:
    found = v2.metrics(str(tmp_path / "gone"))
    assert found.memory.usage == 0
    assert not found.HasField("memory_events")


V1_TREE = {
    "pids/pids.current": "2\n",
    "pids/pids.max": "max\n",
    "cpuacct/cpuacct.usage": "1000\n",
    "cpuacct/cpuacct.stat": "user 3\nsystem 4\n",
    "cpuacct/cpuacct.usage_percpu": "400 600 \n",
    "cpu/cpu.stat": "nr_periods 1\nnr_throttled 2\nthrottled_time 3\n",
    "memory/memory.stat": "cache 1\nrss 2\nswap 9\npgpgin 3\npgmajfault 4\n"
    "hierarchical_memsw_limit 5\ntotal_pgfault 6\ntotal_inactive_file 7\ntotal_swap 9\n",
    "memory/memory.usage_in_bytes": "100\n",
    "memory/memory.limit_in_bytes": "200\n",
    "memory/memory.max_usage_in_bytes": "150\n",
    "memory/memory.failcnt": "8\n",
    "memory/memory.memsw.usage_in_bytes": "101\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 1\noom_kill 2\n",
    "blkio/blkio.throttle.io_service_bytes": "8:0 Read 11\n8:0 Write 12\nTotal 23\n",
    "blkio/blkio.throttle.io_serviced": "8:0 Read 1\n",
    "hugetlb/hugetlb.2MB.usage_in_bytes": "5\n",
    "hugetlb/hugetlb.2MB.max_usage_in_bytes": "6\n",
    "hugetlb/hugetlb.2MB.failcnt": "7\n",
}


def test_v1_metrics(tmp_path: Path) -> None:
    write(tmp_path, V1_TREE)
    found = v1.metrics({entry.name: str(entry) for entry in tmp_path.iterdir()})
    assert (found.pids.current, found.pids.limit) == (2, 0)
    usage = found.cpu.usage
    assert (usage.total, list(usage.per_cpu)) == (1000, [400, 600])
    assert (usage.user, usage.kernel) == (3 * v1.NANOSECONDS_PER_TICK, 4 * v1.NANOSECONDS_PER_TICK)
    throttling = found.cpu.throttling
    assert (throttling.periods, throttling.throttled_periods, throttling.throttled_time) == (
        1,
        2,
        3,
    )
    memory = found.memory
    assert (memory.cache, memory.rss, memory.pg_pg_in, memory.pg_maj_fault) == (1, 2, 3, 4)
    assert (memory.hierarchical_swap_limit, memory.total_pg_fault) == (5, 6)
    assert memory.total_inactive_file == 7
    entry = memory.usage
    assert (entry.usage, entry.limit, entry.max, entry.failcnt) == (100, 200, 150, 8)
    assert memory.swap.usage == 101
    assert memory.HasField("kernel") and memory.HasField("kernel_tcp")
    oom = found.memory_oom_control
    assert (oom.oom_kill_disable, oom.under_oom, oom.oom_kill) == (0, 1, 2)
    bytes_moved = found.blkio.io_service_bytes_recursive
    assert [(e.op, e.major, e.minor, e.value) for e in bytes_moved] == [
        ("Read", 8, 0, 11),
        ("Write", 8, 0, 12),
    ]
    assert [(h.pagesize, h.usage, h.max, h.failcnt) for h in found.hugetlb] == [("2MB", 5, 6, 7)]


def test_v1_messages_that_clients_follow_are_there_without_controllers() -> None:
    """CRI-O reads them without a look (spec/crio-vm.md)."""
    found = v1.metrics({})
    assert found.HasField("pids") and found.HasField("cpu") and found.HasField("memory")
    assert found.cpu.HasField("usage") and found.cpu.HasField("throttling")
    entries = ("usage", "swap", "kernel", "kernel_tcp")
    assert all(found.memory.HasField(name) for name in entries)


def test_v2_messages_that_clients_follow_are_there_without_controllers(tmp_path: Path) -> None:
    found = v2.metrics(str(tmp_path))
    assert found.HasField("pids") and found.HasField("cpu") and found.HasField("memory")


def test_an_empty_group_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    """A hierarchy that is not the container's may hold the daemon (a container that has ended)."""
    write(tmp_path, {"pids/cgroup.procs": "", "openrc/cgroup.procs": "1\n"})
    groups = {name: str(tmp_path / name) for name in ("openrc", "pids")}
    assert locate.pids(groups) == []
    write(tmp_path, {"pids/cgroup.procs": "7\n", "pids/below/cgroup.procs": "8\n"})
    assert locate.pids(groups) == [7, 8]


def test_a_group_that_we_share_is_not_the_containers() -> None:
    """Only what differs from our own; here everything is ours."""
    assert locate.apart(os.getpid(), os.getpid()) == {}


def test_controllers_are_handed_down_to_a_v2_group(tmp_path: Path) -> None:
    group = tmp_path / "kubepods/pod/c"
    for folder in (group, *group.parents[:3]):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.subtree_control").touch()
        (folder / "cgroup.controllers").write_text("cpu memory\n")
    locate.enable_controllers(str(group))
    # The kernel adds up; a plain file keeps what was written last.
    written = [(folder / "cgroup.subtree_control").read_text() for folder in group.parents[:3]]
    assert written == ["+memory"] * 3
    assert (group / "cgroup.subtree_control").read_text() == ""
    locate.enable_controllers(str(tmp_path / "gone/c"))


def test_v2_tells_of_a_kill_when_its_counter_changes(tmp_path: Path) -> None:
    """On a recorded tree: what the kernel does to memory.events is a write like any other."""
    write(tmp_path, {"memory.events": "low 0\noom 0\noom_kill 0\n"})
    groups = {locate.UNIFIED: str(tmp_path)}
    fd = oom.watch(groups)
    try:
        assert oom.kills(groups, 0) == 0
        assert not select.select([fd], [], [], 0)[0]
        # A limit that was hit is no kill (counting those was containerd's bug).
        write(tmp_path, {"memory.events": "low 0\noom 3\noom_kill 0\n"})
        assert select.select([fd], [], [], 1)[0]
        assert oom.kills(groups, 0) == 0
        write(tmp_path, {"memory.events": "low 0\noom 4\noom_kill 2\n"})
        assert oom.kills(groups, 0) == 2
        (tmp_path / "memory.events").unlink()
        assert oom.kills(groups, 2) == 2
    finally:
        os.close(fd)


def test_a_group_that_has_gone_is_not_watched(tmp_path: Path) -> None:
    assert oom.watch({locate.UNIFIED: str(tmp_path / "gone")}) == -1
    assert oom.watch({"memory": str(tmp_path / "gone")}) == -1
    assert oom.watch({}) == -1


def test_devices_have_names() -> None:
    text = "major minor  #blocks  name\n\n   8        0  1000 sda\n 259        1  50 nvme0n1\n"
    assert v1.block_devices(text) == {(8, 0): "/dev/sda", (259, 1): "/dev/nvme0n1"}


def test_the_network_of_this_process() -> None:
    for name, counters in files.network(1):
        assert name != "lo"
        assert set(counters) >= {"rx_bytes", "tx_dropped"}
