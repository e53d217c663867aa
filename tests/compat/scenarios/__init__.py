"""The scenarios; importing this lists them all."""

from tests.compat.scenarios import (
    bootstrap,
    ctr_restart,
    ctr_runs,
    ctr_tasks,
    docker_life,
    docker_runs,
    execs,
    groups,
    processes,
    states,
    stdio,
    usage,
)

__all__ = [
    "bootstrap",
    "ctr_restart",
    "ctr_runs",
    "ctr_tasks",
    "docker_life",
    "docker_runs",
    "execs",
    "groups",
    "processes",
    "states",
    "stdio",
    "usage",
]
