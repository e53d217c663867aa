"""Where a stream goes: plain paths as they are, URLs decoded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyshim.stdio import logger
from pyshim.stdio.uri import Target, parse, scheme_of
from pyshim.ttrpc.status import Code, StatusError


@pytest.mark.parametrize("path", ["/a b", "/a%20b", "/a?b#c", "/a://b", "//a/b", "/[x", "/ä"])
def test_a_plain_path_is_itself(path: str) -> None:
    assert parse(path) == Target("", path)
    assert scheme_of(path) == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("fifo:///run/f", Target("fifo", "/run/f")),
        ("file:///a%20b/%C3%A4", Target("file", "/a b/ä")),
        ("FILE:///a#part", Target("file", "/a")),
        (
            "binary:///l?k=v&x=&k=w%20w",
            Target("binary", "/l", (("k", "v"), ("x", ""), ("k", "w w"))),
        ),
        ("ttrpc+unix:///s?streaming_id=1", Target("ttrpc+unix", "/s", (("streaming_id", "1"),))),
    ],
)
def test_a_url_is_decoded(value: str, expected: Target) -> None:
    assert parse(value) == expected


@pytest.mark.parametrize("value", ["relative", "", "file://host/x", "binary://[x", "file:///a%00b"])
def test_what_names_no_path(value: str) -> None:
    with pytest.raises(StatusError) as caught:
        parse(value)
    assert caught.value.code == Code.INVALID_ARGUMENT


def test_a_logging_binarys_arguments() -> None:
    assert logger.command("binary:///my%20logger?a=1&b=") == ["/my logger", "a", "1", "b", ""]


@given(st.text())
def test_whatever_comes_is_read_or_refused(value: str) -> None:
    try:
        assert parse(value).path.startswith("/")
    except StatusError as error:
        assert error.code == Code.INVALID_ARGUMENT
