"""What docs/portproxy.md shows is what the tool understands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from portproxy.cli import command
from portproxy.config import read
from portproxy.spec import make

MANUAL = (Path(__file__).resolve().parents[2] / "docs/portproxy.md").read_text()
COMMANDS = [text for text in re.findall(r"`(portproxy -[^`]*)`", MANUAL) if "LISTENER" not in text]
OPTIONS = {option for each in command.params for option in each.opts}


def test_there_are_recipes() -> None:
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("text", COMMANDS)
def test_a_recipe_is_understood(text: str) -> None:
    words = shlex.split(text)[1:]
    assert {word for word in words if word.startswith("--")} <= OPTIONS
    settings = dict(words[at + 1].split("=", 1) for at, word in enumerate(words) if word == "--set")
    for at, word in enumerate(words):
        if word == "-p":
            assert make(words[at + 1], dict(settings), "-p")


def test_the_file_is_understood() -> None:
    text = re.search(r"```toml\n(.*?)```", MANUAL, re.DOTALL)
    assert text is not None
    config = read(text.group(1), "ports.toml")
    assert [spec.title for spec in config.specs] == ["web", "tcp/0.0.0.0:53", "udp/0.0.0.0:53"]
