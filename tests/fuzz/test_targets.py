"""Each fuzzer for its share of a minute, from the corpus in the repository and a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import hatch_build
from tests.fuzz.build import CORPUS, TARGETS, Target, build, reset
from tests.fuzz.run import fuzz

TOTAL_S = 60
# The larger a decoder, the more of the time.
SHARES = {
    "monitor_channel": 3,
    "launcher_answer": 2,
    "launcher_interpreter": 1,
    "relay_header": 1,
    "relay_settings": 2,
    "relay_control": 2,
    "pyinit_options": 1,
}
WRONG = """
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char *copy = malloc(size + 1);
  memcpy(copy, data, size);
  volatile int result = size > 3 && !memcmp(copy, "wron", 4) ? copy[size + 1] : 0;
  free(copy);
  return 0;
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the fuzzers are built; the C of a program is made once for all of its targets."""
    yield tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_nothing_is_found(target: Target, folder: Path, tmp_path: Path) -> None:
    seconds = TOTAL_S * SHARES[target.name] // sum(SHARES.values())
    fuzzer = build(target, folder)
    result = fuzz(target, fuzzer, seconds, tmp_path / "grown", tmp_path / "found")
    assert not result.found, result.report[-6000:]
    assert result.runs > len(list(target.corpus.iterdir()))


def test_every_target_has_a_corpus() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(SHARES) == {t.name for t in TARGETS}
    assert all(any(target.corpus.iterdir()) for target in TARGETS)


def test_a_fault_is_found(tmp_path: Path) -> None:
    """The same flags, with a decoder that is wrong on purpose."""
    from tests.fuzz.build import FLAGS, compiler

    (tmp_path / "wrong.c").write_text(WRONG)
    fuzzer = tmp_path / "fuzzer"
    hatch_build.run([compiler(), *FLAGS, str(tmp_path / "wrong.c"), "-o", str(fuzzer)])
    target = Target("wrong", "", 64)
    corpus = tmp_path / "grown"
    corpus.mkdir()
    (corpus / "input").write_bytes(b"wron")
    result = fuzz(target, fuzzer, 5, corpus, tmp_path / "found")
    assert result.found
    assert "heap-buffer-overflow" in result.report
    assert [path.read_bytes() for path in (tmp_path / "found").iterdir()] == [b"wron"]


def test_the_globals_of_a_program_are_found() -> None:
    text = (
        "static int __pyx_v_1m_count;\n"
        "static struct thing *__pyx_v_1m_table[16][E];\n"
        "static char const *__pyx_v_1m_name;\n"
        "static int __pyx_f_1m_act(int __pyx_v_at);\n"
        "static int __pyx_v_1m_kept[8];\n"
    )
    made = reset(text, {"__pyx_v_1m_kept"})
    assert [line.split("&")[1].split(",")[0] for line in made.splitlines()[1:-1]] == [
        "__pyx_v_1m_count",
        "__pyx_v_1m_table",
        "__pyx_v_1m_name",
    ]
