"""That what the sanitizers find is seen: the same flags, with programs wrong on purpose."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import sanitized

BOUND_S = 60
WRONG = """
#include <signal.h>
#include <string.h>
static char table[16];
int main(int count, char **arguments) {
    volatile int number = 0x7fffffff;
    signal(SIGSEGV, SIG_DFL);
    FAULT;
    return table[0];
}
"""


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("memset(table, 0, 16 + count)", "global-buffer-overflow"),
        ("table[15 + count] = 1", "out of bounds"),
        ("number += count", "signed integer overflow"),
        ("*(volatile char *)(number * 16UL) = 1", "SEGV on unknown address"),
        ("return 0", ""),
    ],
)
def test_a_fault_is_reported(fault: str, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "environment"
    sanitized.prepare(folder)
    source = tmp_path / "wrong.c"
    source.write_text(WRONG.replace("FAULT", fault))
    program = sanitized.compile_and_link([source], "wrong", folder)
    done = subprocess.run([program], env={}, capture_output=True, timeout=BOUND_S, check=False)
    assert done.stdout == b""
    assert done.returncode == (sanitized.EXIT_REPORTED if said else 0)
    assert said in sanitized.reports(folder / "bin")
    assert sanitized.reports(folder / "bin") == ""
