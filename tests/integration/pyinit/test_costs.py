"""What an init costs, as far as it can be counted: bytes, pages, system calls and wake-ups.

``make bench`` has the times.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.conftest import plain_only

from .inits import (
    NEW_PIDS,
    PATIENCE_S,
    PERSONAS,
    QUIET,
    eventually,
    line,
    listening,
    run,
    started,
    tell,
    waits_for_ever,
)


@plain_only
@pytest.mark.parametrize("as_pid_1", [False, True], ids=["process", "pid1"])
def test_file_and_memory(inits: Path, as_pid_1: bool) -> None:
    assert (inits / "pyinit").stat().st_size <= 32 << 10
    for name in PERSONAS:
        with listening(str(inits / name), *QUIET[name], as_pid_1=as_pid_1) as init:
            assert eventually(lambda: waits_for_ever(init.pid))
            rollup = Path(f"/proc/{init.pid}/smaps_rollup").read_text()
            assert int(rollup.split("Rss:")[1].split()[0]) <= 40, name


# Of the plain case: no terminal, no option but what makes it adopt orphans, no signal, no orphan.
MOST_CALLS = 12
CALLS = {"tini": 11, "dumb-init": 12, "catatonit": 11, "pyinit": 11}


@plain_only
@pytest.mark.parametrize("name", PERSONAS)
def test_system_calls_from_exec_to_exit(inits: Path, name: str, tmp_path: Path) -> None:
    calls = calls_of(tmp_path, str(inits / name), *QUIET[name], "--", "true")
    assert calls[0].startswith("execve(") and calls[-1].startswith("exit_group(")
    assert len(calls) == CALLS[name] <= MOST_CALLS, calls


def calls_of(folder: Path, *command: str) -> list[str]:
    """The system calls of that process itself, from exec to exit."""
    trace = folder / "trace"
    assert run("strace", "-o", str(trace), *command).returncode == 0
    # Without the signals and ends that strace tells of.
    return [x for x in trace.read_text().splitlines() if not x.startswith(("+++", "---"))]


@pytest.mark.parametrize("as_pid_1", [False, True], ids=["process", "pid1"])
def test_it_does_not_wake_up(inits: Path, as_pid_1: bool) -> None:
    for name in PERSONAS:
        with listening(str(inits / name), *QUIET[name], as_pid_1=as_pid_1) as init:
            assert eventually(lambda: waits_for_ever(init.pid))


@plain_only
@pytest.mark.parametrize("as_pid_1", [False, True], ids=["process", "pid1"])
@pytest.mark.parametrize("name", PERSONAS)
def test_it_never_waits_with_a_time_limit(
    inits: Path, name: str, as_pid_1: bool, tmp_path: Path
) -> None:
    """From its start to its end: so there is no wake-up, whenever one looks."""
    trace = tmp_path / "trace"
    init = [str(inits / name), *QUIET[name], "--", "sh", "-c", "echo; read x; exit 3"]
    outer = ["strace", "-f", "-o", str(trace), "-e", "trace=rt_sigtimedwait"]
    with started(*outer, *(NEW_PIDS if as_pid_1 else ()), *init) as process:
        assert line(process) == ""
        tell(process)
        assert process.wait(PATIENCE_S) == 3
    waits = [x for x in trace.read_text().splitlines() if "rt_sigtimedwait(" in x]
    assert len(waits) == 1 and not [x for x in waits if "tv_sec" in x], waits
