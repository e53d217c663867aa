"""What the number of containers on a host does to memory, to `start` and to an exit's event."""

from __future__ import annotations

import statistics
from typing import Any

from bench.latency import cycle
from bench.rows import OURS, THEIRS
from bench.stand import Bench
from tests.integration.shim import Container

LEVELS = (1, 10, 100, 300)
CYCLES = 5


def measure(bench: Bench) -> dict[str, Any]:
    """For each side MiB of all shims, and ms of `start` and of an event, at each of LEVELS."""
    found: dict[str, Any] = {"levels": list(LEVELS)}
    containers: dict[str, list[Container]] = {OURS: [], THEIRS: []}
    for side in containers:
        found[side] = {"memory_mib": [], "start_ms": [], "exit_ms": []}
    for level in LEVELS:
        for side, stand in bench.stands.items():
            containers[side] += stand.populate(level - len(containers[side]))
        for side, stand in bench.stands.items():
            found[side]["memory_mib"].append(stand.steady_pss() / (1 << 20))
        times = bench_cycles(bench)
        for side in containers:
            for key in ("start", "exit"):
                found[side][f"{key}_ms"].append(statistics.median(times[key][side]))
    for side, stand in bench.stands.items():
        stand.depopulate(containers[side])
    return found


def bench_cycles(bench: Bench) -> dict[str, dict[str, list[float]]]:
    """A few lives of further containers, in turn."""
    samples: dict[str, dict[str, list[float]]] = {}
    for _ in range(CYCLES):
        for side, stand in bench.stands.items():
            for key, value in cycle(stand).items():
                samples.setdefault(key, {OURS: [], THEIRS: []})[side].append(value)
    return samples
