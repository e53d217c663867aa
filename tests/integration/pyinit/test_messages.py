"""What each persona says, how much of it, and where."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
from pathlib import Path

import pytest

from .inits import PATIENCE_S, eventually, installed, line, run, started, state


@pytest.mark.parametrize("value", ["0", "1", "2", "1x", "abc", "", " 2", "-1"])
def test_the_variable_outdoes_the_option_as_in_tini(inits: Path, value: str) -> None:
    """It is read by atoi(3), and replaces what -v has said."""
    env = {**os.environ, "TINI_VERBOSITY": value, "TINI_SUBREAPER": ""}
    # tini says part of it on stdout.
    done = [run(program, "-vvv", "true", env=env) for program in (str(inits / "tini"), "tini")]
    ours, theirs = (each.stdout + each.stderr for each in done)
    assert bool(ours) == bool(theirs)
    assert ("DEBUG" in ours) == ("DEBUG" in theirs)


@pytest.mark.parametrize(
    ("name", "variables", "said"),
    [
        ("tini", {"TINI_VERBOSITY": "0"}, ""),
        ("tini", {"TINI_SUBREAPER": ""}, ""),
        ("tini", {}, "zombie reaping won't work"),
        ("tini", {"TINI_VERBOSITY": "3", "TINI_SUBREAPER": ""}, "Received SIGCHLD"),
        ("pyinit", {"TINI_VERBOSITY": "3"}, "Received SIGCHLD"),
        ("dumb-init", {"DUMB_INIT_DEBUG": "1"}, "Child spawned with PID"),
        ("dumb-init", {"DUMB_INIT_DEBUG": "2"}, ""),
        ("catatonit", {"CATATONIT_DEBUG": ""}, "Received SIGCHLD"),
    ],
)
def test_verbosity_by_environment(
    inits: Path, name: str, variables: dict[str, str], said: str
) -> None:
    done = run(str(inits / name), "true", env={"PATH": os.environ["PATH"], **variables})
    assert done.stdout == ""
    assert said in done.stderr and bool(said) == bool(done.stderr)


def test_catatonit_refuses_a_log_that_it_does_not_have(inits: Path) -> None:
    given = {**os.environ, "CATATONIT_LOG": "x"}
    for program in (str(inits / "catatonit"), installed("catatonit")):
        assert run(program, "true", env=given).returncode == 1


def test_what_dumb_init_logs(inits: Path) -> None:
    for program in (str(inits / "dumb-init"), installed("dumb-init")):
        said = run(program, "-v", "sh", "-c", "exit 4").stderr
        for part in (
            "[dumb-init] Child spawned with PID ",
            "[dumb-init] setsid complete.\n",
            "[dumb-init] Received signal 17.\n",
            " exited with exit status 4.\n",
            "[dumb-init] Forwarded signal 15 to children.\n",
            "[dumb-init] Child exited with status 4. Goodbye.\n",
        ):
            assert part in said, program


LOGGED = {
    ("USR1", "10:12"): ["Translating signal 10 to 12.", "Forwarded signal 12 to children."],
    ("USR1", "10:0"): ["Translating signal 10 to 0.", "Not forwarding signal 0 to children"],
    ("TSTP", "10:12"): ["Translating signal 20 to 19.", "Suspending self due to TTY signal."],
}


def is_stopped(pid: int) -> bool:
    """Whether a process takes no signal but SIGCONT and SIGKILL."""
    return state(pid) == "T"


@pytest.mark.parametrize(("name", "rule"), LOGGED)
def test_what_dumb_init_logs_of_a_rewritten_signal(inits: Path, name: str, rule: str) -> None:
    number = int(getattr(signal, f"SIG{name}"))
    script = ["sh", "-c", "trap 'exit 4' USR2; echo; read x; exit 4"]
    for program in (str(inits / "dumb-init"), installed("dumb-init")):
        with started(program, "-v", "-r", rule, *script, stderr=subprocess.PIPE) as process:
            assert line(process) == ""
            process.send_signal(number)
            assert process.stderr is not None
            seen = []
            while not seen or f"[dumb-init] {LOGGED[name, rule][-1]}" not in seen[-1]:
                seen.append(process.stderr.readline())
            assert [x for x in seen if LOGGED[name, rule][0] in x], program
            if name == "TSTP":  # it says so before it does so
                assert eventually(functools.partial(is_stopped, process.pid)), program
            process.send_signal(signal.SIGCONT)
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
            assert process.wait(PATIENCE_S) == 4


def test_reaped_orphans_are_told(inits: Path) -> None:
    script = "echo $(sh -c '(sleep 0.05; exit 6) >&2 & echo $!'); sleep 0.5"
    for name, extra in (("tini", ""), ("pyinit", " status=6")):
        done = run(str(inits / name), "-s", "-w", "sh", "-c", script)
        said = f"Reaped zombie process with pid={done.stdout.strip()}{extra}"
        assert said in done.stderr
