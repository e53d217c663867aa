"""For Python people: ``python -m pyinit`` and ``pyinit.path()``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

import pyinit as package

from .inits import run


def test_path_is_the_static_program() -> None:
    found = package.path()
    assert found.read_bytes()[:4] == b"\x7fELF"
    assert run(str(found), "sh", "-c", "exit 4").returncode == 4


def test_module_becomes_the_program() -> None:
    done = run(sys.executable, "-m", "pyinit", "--", "sh", "-c", 'echo "$PPID"; exit 5')
    assert done.returncode == 5
    comm = "cat /proc/$PPID/comm"
    assert run(sys.executable, "-m", "pyinit", "sh", "-c", comm).stdout == "pyinit\n"
    assert run(sys.executable, "-m", "pyinit", "--as=dumb-init", "no-such").returncode == 2


def test_the_command_ignores_nothing_that_the_interpreter_does() -> None:
    show = ["--", "grep", "SigIgn", "/proc/self/status"]
    ignored = int(run(sys.executable, "-m", "pyinit", *show).stdout.split()[1], 16)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        assert not ignored >> (number - 1) & 1


def test_without_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(os, "get_exec_path", list)
    with pytest.raises(FileNotFoundError, match="install pyshim again"):
        package.path()
