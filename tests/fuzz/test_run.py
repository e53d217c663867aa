"""The command that runs fuzzers, when it is told to end or a fuzzer does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import run
from tests.fuzz.build import Target
from tests.integration.containerd import BOUND_S, eventually, processes_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_nothing_is_left_when_it_is_told_to_end(tmp_path: Path, number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz.run", "600", "pyinit_options"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        eventually(lambda: list(tmp_path.glob("pyshim-fuzz-*/*")), "it has begun to build")
        process.send_signal(number)
        told, said = process.communicate(timeout=BOUND_S)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, told, said.count("\n")) == (130, "", 1), said
    assert "interrupted" in said
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == {}


def test_a_fuzzer_that_does_not_end_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuzzer = tmp_path / "fuzzer"
    fuzzer.write_text("#!/bin/sh\nexec sleep 1000\n")
    fuzzer.chmod(0o755)
    monkeypatch.setattr(run, "GRACE_S", -0.5)
    target = Target("stuck", "", 64)
    result = run.fuzz(target, fuzzer, 1, tmp_path / "grown", tmp_path / "found")
    assert result.found
    assert "did not end within 0.5 s" in result.report
    assert "not merged within" in run.keep(target, fuzzer, tmp_path / "grown")
