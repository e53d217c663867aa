"""The shim's command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyshim.bootstrap.flags import FlagError, Flags, parse

CONTAINERD_16 = "-namespace n -address /a -publish-binary /b -id i -bundle /c delete".split()


def test_what_containerd_gives() -> None:
    assert parse(CONTAINERD_16) == Flags(
        namespace="n", address="/a", publish_binary="/b", id="i", bundle="/c", action="delete"
    )


@pytest.mark.parametrize(
    "written",
    [
        "-namespace n -id i -debug start",
        "--namespace n --id i --debug start",
        "-namespace=n -id=i -debug=true start",
        "--namespace=n --id=i --debug=T start",
    ],
)
def test_each_manner_of_writing_means_the_same(written: str) -> None:
    assert parse(written.split()) == Flags(namespace="n", id="i", debug=True, action="start")


def test_the_last_of_two_wins_and_a_value_may_look_like_a_flag() -> None:
    flags = parse(["-namespace", "n", "-id", "a", "-id", "-debug", "-debug=false", "start"])
    assert (flags.id, flags.debug) == ("-debug", False)


@pytest.mark.parametrize("flag", ["-info", "--info", "-v", "-version", "-h", "--help"])
def test_what_needs_no_action(flag: str) -> None:
    flags = parse([flag])
    assert flags.info or flags.version or flags.help


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("-foo start", "-foo"),
        ("-namespace n -id i", "no action"),
        ("", "no action"),
        ("-namespace n -id i stop", "'stop'"),
        ("-namespace n -id i start now", "'now'"),
        ("-id i start", "-namespace"),
        ("-namespace n start", "-id"),
        ("-namespace n -id ../i start", "'../i'"),
        ("-namespace .. -id i start", "'..'"),
        ("-namespace n -id", "-id"),
        ("-debug=perhaps -namespace n -id i start", "'perhaps'"),
    ],
)
def test_an_error_names_what_is_wrong(written: str, named: str) -> None:
    with pytest.raises(FlagError) as caught:
        parse(written.split())
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.lists(st.text(max_size=8) | st.sampled_from([*CONTAINERD_16, "-debug", "--", "-"])))
def test_anything_is_parsed_or_refused(arguments: list[str]) -> None:
    try:
        flags = parse(arguments)
    except FlagError:
        return
    assert flags.info or flags.version or flags.help or (flags.id and flags.namespace)
