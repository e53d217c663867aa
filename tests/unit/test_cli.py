"""The commands that people type: wrong input costs one line and a non-zero exit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BOUND_S = 60
SCRIPTS = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs an installed command."""
    return subprocess.run(
        [SCRIPTS / command[0], *command[1:]],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        stdin=subprocess.DEVNULL,
        check=False,
        cwd=cwd,
    )


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (("pyshim", "--foo"), "--foo"),
        (("pyshim", "nope"), "nope"),
        (("pyshim", "demo", "extra"), "extra"),
        *(
            (("pyshim", "upgrade", "--dry-run", "--timeout", wrong), wrong)
            for wrong in ("nan", "inf", "-inf", "0", "-1", "x")
        ),
        (("portproxy", "--foo"), "--foo"),
        (("portproxy", "-p"), "-p"),
        (("portproxy",), "-p 8080:10.0.0.2:80"),
        (("portproxy", "extra"), "extra"),
        (("portproxy", "-p", "80"), "'80'"),
        (("portproxy", "-p", "80:h:80/http"), "http"),
    ],
)
def test_wrong_input_costs_one_line(command: tuple[str, ...], named: str) -> None:
    done = run(*command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{command[0]}: ")
    assert done.stderr.count("\n") == 1
    assert named in done.stderr


@pytest.mark.parametrize("wrong", ["nan", "inf", "-inf", "0", "-1", "x", ""])
@pytest.mark.parametrize(
    "command",
    [
        ("tests.soak", "--seed", "1", "--minutes={}"),
        ("tests.fuzz.run", "--", "{}"),
        ("tests.soak", "--minutes", "1", "--lanes={}"),
    ],
)
def test_a_wrong_length_is_refused(command: tuple[str, ...], wrong: str) -> None:
    done = run("python3", "-m", *(word.format(wrong) for word in command), cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{command[0]}: ")
    assert done.stderr.count("\n") == 1
    assert wrong in done.stderr


def test_an_unknown_fuzzer_is_refused() -> None:
    done = run("python3", "-m", "tests.fuzz.run", "5", "pyinit_options", "nobodys", cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "nobodys" in done.stderr


@pytest.mark.parametrize(("goal", "variable"), [("soak", "MINUTES"), ("fuzz", "SECONDS")])
@pytest.mark.parametrize("wrong", ["nan", "inf", "0", "x"])
def test_make_passes_on_what_is_wrong(goal: str, variable: str, wrong: str) -> None:
    """With a set-up that is there: `-o` has make take it for new."""
    made = [".venv/.installed", ".venv/.test-packages"]
    old = [word for path in made for word in ("-o", path)]
    command = ["make", "-s", *old, goal, f"{variable}={wrong}", f"BIN={SCRIPTS}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=BOUND_S, check=False
    )
    assert done.returncode == 2
    assert f"'{wrong}' is not from" in done.stderr


@pytest.mark.parametrize("name", ["pyshim", "portproxy"])
def test_help_and_version(name: str) -> None:
    assert run(name, "--help").stdout.startswith("Usage: ")
    assert run(name, "--version").stdout.startswith(f"{name} ")


@pytest.mark.parametrize(
    ("module", "arguments", "named"),
    [
        ("pyshim.service", (), "descriptor 3"),
        ("pyshim.zygote", ("--foreground", "--socket", f"/tmp/{'x' * 120}"), "too long"),
        ("pyshim.bootstrap", ("--foo",), "-foo"),
    ],
)
def test_modules_that_programs_execute(module: str, arguments: tuple[str, ...], named: str) -> None:
    done = run("python3", "-I", "-m", module, *arguments)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
