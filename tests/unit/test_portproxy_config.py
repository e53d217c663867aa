"""The tool's file: what it may say, and that a mistake is told with its file, line and reason."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portproxy.config import USUAL_WORKERS, ConfigError, read
from portproxy.settings import CHECKS

WHOLE = """\
user = "daemon"
metrics = "127.0.0.1:9100"
drain = "5s"
log_sample = 10
workers = 3
ready = true

[defaults]
idle_timeout = "1h"

[[mapping]]
name = "web"
publish = "8080:10.0.0.2:80/both"
access = ["10.0.0.0/8", "!all"]
check = "2s"

[[mapping]]
publish = "9000-9099:10.0.0.3:9000-9099"
idle_timeout = "5m"
partial = true
mode = "auto"
"""


def test_everything_is_read() -> None:
    config = read(WHOLE, "ports.toml")
    assert (config.user, config.metrics, config.drain_ms) == ("daemon", "127.0.0.1:9100", 5000)
    assert (config.log_sample, config.ready, config.seccomp) == (10, True, True)
    assert (config.workers, read("", "ports.toml").workers) == (3, USUAL_WORKERS)
    web, web_datagrams, many = config.specs
    assert [web.key, web_datagrams.key] == ["tcp/0.0.0.0:8080", "udp/0.0.0.0:8080"]
    assert (web.origin, many.origin) == ("ports.toml:11", "ports.toml:17")
    assert dict(web.settings)["access"] == "10.0.0.0/8,!all"
    assert (dict(web.settings)["idle_timeout"], dict(many.settings)["idle_timeout"]) == ("1h", "5m")
    assert (web.check_ms, web.partial, many.partial, many.mode) == (2000, False, True, "auto")
    # What the tool does unless it is told otherwise.
    assert dict(web.settings)["reset"] == "propagate"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("user = \n", 1, "Invalid value"),
        ('user = "a"\n\n[[mapping]\n', 3, ""),
        ("surprise = 1\n", 1, "no setting 'surprise'"),
        ("\ndrain = 5\n", 2, "is not a text"),
        ("workers = 0\n", 1, "workers: 0 is not a number from 1 to 64"),
        ("workers = 65\n", 1, "workers: 65 is not a number from 1 to 64"),
        ("workers = true\n", 1, "workers: True is not a number from 1 to 64"),
        ('workers = "2"\n', 1, "workers: '2' is not a number from 1 to 64"),
        ('drain = "5 parsecs"\n', 1, "not a time"),
        ('log_format = "xml"\n', 1, "not text or json"),
        ("log_sample = 0\n", 1, "a number from 1 on"),
        ('\nmetrics = "nowhere"\n', 2, "ADDRESS:PORT or a path"),
        ('metrics = "[::1]:99999"\n', 1, "ADDRESS:PORT or a path"),
        ('user = "a\\nb"\n', 1, "can be printed"),
        ('[[mapping]]\npublish = "1:h:1"\nname = "a\\nb"\n', 3, "cannot be printed"),
        ('\ndefaults.nodelay = "maybe"\n[[mapping]]\npublish = "1:h:1"\n', 2, "true or false"),
        ('\nmapping = [{ publish = "80" }]\n', 2, "has 1 parts"),
        ("seccomp = 1\n", 1, "true or false"),
        ("mapping = 1\n", 1, "the tables are"),
        ("[[mapping]]\n# nothing\n", 1, "needs publish"),
        ('[[mapping]]\n\npublish = "80"\n', 3, "has 1 parts"),
        ('[[mapping]]\npublish = "1:h:1"\nidle_timeout = "x"\n', 3, "not a time"),
        ('[[mapping]]\npublish = "1:h:1"\naccess = "10.0.0.0/99"\n', 3, "a list of"),
        ('[[mapping]]\npublish = "1:h:1"\n[[mapping]]\npublish = "2:h:1"\ntos = "y"\n', 5, "tos"),
        ('[[mapping]]\npublish = "1:h:1"\n[[mapping]]\npublish = "1:g:1"\n', 4, "already"),
        ('[defaults]\n\nnodelay = "maybe"\n[[mapping]]\npublish = "1:h:1"\n', 3, "true or false"),
        ('[[mapping]]\npublish = "1:h:1"\nmode = "magic"\n', 3, "mode"),
        ('[[mapping]]\npublish = "1:h:1"\npartial = "x"\n', 3, "partial"),
        ('[[mapping]]\npublish = "1:h:1"\nlog = "file:/x"\n', 3, "no setting 'log'"),
    ],
)
def test_a_mistake_is_told_with_its_line(text: str, line: int, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text, "ports.toml")
    told = str(caught.value)
    assert told.startswith(f"ports.toml:{line}: ")
    assert reason in told
    assert "\n" not in told


PIECES = [
    "[[mapping]]",
    "[defaults]",
    'publish = "1:h:1"',
    "x = 1",
    "= ",
    "'''",
    "check=true",
    "\n",
]


VALUES = ["1", "-1", "1e400", "nan", "true", "[]", "[1]", "{}", "{a=1}", "''", "1979-05-27", '"x"']
MUTATION = st.tuples(
    st.integers(0, len(WHOLE)),
    st.integers(0, 8),
    st.text(max_size=3) | st.sampled_from([*VALUES, "\n", '"', "[[mapping]]\n", "defaults.", "="]),
)


@given(st.lists(MUTATION, min_size=1, max_size=4))
def test_a_file_with_something_else_in_it_is_understood_or_told_of(
    mutations: list[tuple[int, int, str]],
) -> None:
    text = WHOLE
    for at, length, put in mutations:
        text = text[:at] + put + text[at + length :]
    is_understood_or_told_of(text)


KEYS = ["user", "metrics", "access_log", "log_format", "log_sample", "drain", "seccomp", "ready"]
SETTINGS = ["publish", "name", "mode", "check", "partial", "container_pid", *sorted(CHECKS)]


@given(
    st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=2),
    st.dictionaries(st.sampled_from(SETTINGS), st.sampled_from(VALUES), max_size=3),
    st.dictionaries(st.sampled_from(SETTINGS), st.sampled_from(VALUES), max_size=3),
)
def test_a_setting_may_have_any_kind_of_value(
    top: dict[str, str], defaults: dict[str, str], own: dict[str, str]
) -> None:
    tables = {"": top, "[defaults]": defaults, "[[mapping]]": {"publish": '"1:h:1"', **own}}
    lines: list[str] = []
    for header, values in tables.items():
        lines += [header, *(f"{key} = {value}" for key, value in values.items())]
    is_understood_or_told_of("\n".join(lines))


def is_understood_or_told_of(text: str) -> None:
    """Fails for a traceback, and for a message without the line."""
    try:
        read(text, "f.toml")
    except ConfigError as error:
        assert re.match(r"f\.toml:[1-9][0-9]*: .", str(error))
        assert len(str(error).splitlines()) == 1


@given(st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=12).map("\n".join))
def test_any_text_is_a_configuration_or_one_line(text: str) -> None:
    is_understood_or_told_of(text)
