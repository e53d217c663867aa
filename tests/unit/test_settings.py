"""What an administrator may set by the environment, and what is no number of seconds."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pyshim import settings

ROOT = Path(__file__).resolve().parents[2]
NAME = "PYSHIM_TEST_S"


@pytest.fixture(autouse=True)
def refused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that a test brings about, and no others."""
    lines: list[str] = []
    monkeypatch.setattr(settings, "refused", lines)
    return lines


@pytest.mark.parametrize(
    ("text", "value"), [("0.001", 0.001), ("5", 5), (" 2.5 ", 2.5), ("1e3", 1000), ("86400", 86400)]
)
def test_a_time_is_taken(
    monkeypatch: pytest.MonkeyPatch, refused: list[str], text: str, value: float
) -> None:
    monkeypatch.setenv(NAME, text)
    assert settings.seconds(NAME, 60) == value
    assert refused == []


@pytest.mark.parametrize("text", [None, ""])
def test_what_is_not_set_is_the_default(
    monkeypatch: pytest.MonkeyPatch, refused: list[str], text: str | None
) -> None:
    monkeypatch.delenv(NAME, raising=False)
    if text is not None:
        monkeypatch.setenv(NAME, text)
    assert settings.seconds(NAME, 60) == 60
    assert refused == []


@pytest.mark.parametrize(
    "text", [*"x nan -nan inf -inf -1 0 -0 1e-9 1e9 1e999 1s \udcff".split(), " "]
)
def test_what_is_no_time_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, refused: list[str], text: str
) -> None:
    monkeypatch.setenv(NAME, text)
    assert settings.seconds(NAME, 60) == 60
    (line,) = refused
    assert line == f"{NAME} is not a number of seconds from 0.001 to 86400; 60 is taken"


def test_nobody_else_reads_a_number_from_the_environment() -> None:
    """By its name: what ends in _S is a time."""
    readers = set()
    for path in (ROOT / "pyshim").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = str(node.args[0].value)
                if name.startswith("PYSHIM_") and name.endswith("_S"):
                    readers.add(ast.unparse(node.func).rpartition(".")[2])
    assert readers == {"seconds"}
