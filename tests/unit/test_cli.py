"""The commands that people type: wrong input costs one line and a non-zero exit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BOUND_S = 60
SCRIPTS = Path(sys.executable).parent


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs an installed command."""
    return subprocess.run(
        [SCRIPTS / command[0], *command[1:]],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (("pyshim", "--foo"), "--foo"),
        (("pyshim", "nope"), "nope"),
        (("pyshim", "demo", "extra"), "extra"),
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
