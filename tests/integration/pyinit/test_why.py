"""``--why``: how the command ended, what it took, and whether memory ran out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .inits import PYTHON, eventually, run

CGROUPS = Path("/sys/fs/cgroup")
LIMIT = 64 << 20
HOG = "b'x' * (1 << 30)"


def test_how_it_ended(pyinit: str) -> None:
    said = run(pyinit, "--why", "sh", "-c", "kill -9 $$").stderr
    assert said.startswith("pyinit: Main child was ended by SIGKILL, at most ")
    assert said.endswith(" kB resident\n")
    assert "exited with status 3," in run(pyinit, "--why", "sh", "-c", "exit 3").stderr


@pytest.fixture
def small_group() -> Iterator[list[str]]:
    """What to put before a command for it to run as in a container with little memory."""
    first = CGROUPS / "memory" if (CGROUPS / "memory").is_dir() else CGROUPS
    newer = first == CGROUPS
    if newer and "memory" not in (first / "cgroup.subtree_control").read_text():
        (first / "cgroup.subtree_control").write_text("+memory")
    folder = first / f"pyinit-{os.getpid()}"
    folder.mkdir()
    try:
        limits = ["memory.max", "memory.swap.max"] if newer else ["memory.limit_in_bytes"]
        for limit in limits:
            if (folder / limit).exists():
                (folder / limit).write_text("0" if "swap" in limit else str(LIMIT))
        inner = f'mount --bind {folder} {first} && exec "$@"'
        outer = f"echo 0 >{folder}/cgroup.procs && exec unshare -m sh -c '{inner}' sh \"$@\""
        yield ["sh", "-c", outer, "sh"]
    finally:
        assert eventually(lambda: not (folder / "cgroup.procs").read_text())
        folder.rmdir()


def test_memory_ran_out(pyinit: str, small_group: list[str]) -> None:
    done = run(*small_group, pyinit, "--why", "--", *PYTHON, HOG)
    assert done.returncode == 137, done.stderr
    assert done.stderr.startswith("pyinit: Main child was ended by SIGKILL, at most ")
    assert done.stderr.endswith(" kB resident, out of memory\n")


def test_a_kill_by_somebody_is_no_lack_of_memory(pyinit: str, small_group: list[str]) -> None:
    done = run(*small_group, pyinit, "--why", "--", "sh", "-c", "kill -9 $$")
    assert done.returncode == 137, done.stderr
    assert "out of memory" not in done.stderr


def test_it_is_in_the_log(pyinit: str, small_group: list[str]) -> None:
    done = run(*small_group, pyinit, "--why", "--log=json", "--", *PYTHON, HOG)
    assert '"ev":"exit","code":137,"sig":"KILL","core":0,"maxrss_kb":' in done.stderr
    assert '"oom":1}' in done.stderr
