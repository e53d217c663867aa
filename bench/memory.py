"""Memory of idle containers and of polled ones, their wake-ups, and what a poll costs."""

from __future__ import annotations

import time

from bench.rows import OURS, THEIRS
from bench.stand import Bench, Stand, kib
from bench.usage import switches
from pyshim.api import task_pb2
from tests.integration.shim import Container

FEW, MANY = 10, 50
QUIET_S = 2.0
POLLED = 20
PERIOD_S = 10.0
SAMPLE_S = 0.25

Found = dict[str, dict[str, list[float]]]


def idle(bench: Bench) -> Found:
    """Memory for each of MANY idle containers and for one more; wake-ups of one."""
    return bench.alternately(_idle)


def _idle(stand: Stand) -> dict[str, float]:
    containers = stand.populate(FEW)
    few = stand.steady_pss()
    containers += stand.populate(MANY - FEW)
    many = stand.steady_pss()
    wakeups = wakeups_per_s(stand) / MANY
    stand.depopulate(containers)
    return {
        "memory": kib(many / MANY),
        "marginal": kib((many - few) / (MANY - FEW)),
        "wakeups": wakeups,
    }


def wakeups_per_s(stand: Stand) -> float:
    """Of all that is resident, while nothing happens."""
    pids = stand.shims()
    before = sum(switches(pid) for pid in pids)
    time.sleep(QUIET_S)
    return (sum(switches(pid) for pid in pids) - before) / QUIET_S


def polled(bench: Bench) -> Found:
    """The mean memory of containers that are asked for Stats in each period, and what a poll costs.

    Both sides have theirs at once; the peer's turn is in the middle of our period.
    """
    containers = {side: stand.populate(POLLED) for side, stand in bench.stands.items()}
    found: Found = {key: {OURS: [], THEIRS: []} for key in ("polled", "poll_cpu")}
    for side in (OURS, THEIRS):
        _poll(containers[side])  # the first one may have to import or to grow
        bench.stands[side].rest()
    for _ in range(bench.repetitions):
        cpu = {side: stand.account.cpu_s() for side, stand in bench.stands.items()}
        memory = _period(bench, containers)
        for side, stand in bench.stands.items():
            found["polled"][side].append(kib(memory[side] / POLLED))
            found["poll_cpu"][side].append((stand.account.cpu_s() - cpu[side]) / POLLED * 1000)
    for side, stand in bench.stands.items():
        stand.depopulate(containers[side])
    return found


def _period(bench: Bench, containers: dict[str, list[Container]]) -> dict[str, float]:
    """One period; the mean of each side's memory."""
    begun = time.monotonic()
    waiting = [(0.0, OURS), (PERIOD_S / 2, THEIRS)]
    seen: dict[str, list[int]] = {OURS: [], THEIRS: []}
    while (now := time.monotonic() - begun) < PERIOD_S:
        if waiting and now >= waiting[0][0]:
            _poll(containers[waiting.pop(0)[1]])
        for side, stand in bench.stands.items():
            seen[side].append(stand.pss())
        time.sleep(SAMPLE_S)
    return {side: sum(sizes) / len(sizes) for side, sizes in seen.items()}


def _poll(containers: list[Container]) -> None:
    for container in containers:
        reply = container.call(
            "Stats", task_pb2.StatsRequest(id=container.name), task_pb2.StatsResponse
        )
        assert reply.stats.value, f"{container.name}: no statistics"
