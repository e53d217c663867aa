"""The monitor channel's codec: what is written is read back, and nothing else is accepted."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyshim.monitor import channel
from pyshim.monitor.channel import ChannelError, Message, Type

RANGES = {"I": (0, 2**32 - 1), "i": (-(2**31), 2**31 - 1), "Q": (0, 2**64 - 1)}
RANGES["q"] = (-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=30)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    kind = draw(st.sampled_from(list(Type)))
    widths = channel._BODIES[kind].format.lstrip("<")
    fields = tuple(draw(st.integers(*RANGES[width])) for width in widths)
    fds = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
    tail = draw(st.binary(max_size=40)) if kind is Type.SEND else b""
    return Message(kind, fields, fds, draw(st.integers(0, 2**64 - 1)), tail)


@given(st.lists(messages(), max_size=12))
def test_round_trip(sent: list[Message]) -> None:
    data, fds = channel.encode(sent)
    assert channel.decode(data, fds) == sent


@given(st.binary(max_size=200), st.lists(st.integers(0, 9), max_size=4))
def test_garbage_is_an_error_or_messages(data: bytes, fds: list[int]) -> None:
    try:
        decoded = channel.decode(data, fds)
    except ChannelError:
        return
    again, same = channel.encode(decoded)
    assert same == fds
    assert channel.decode(again, same) == decoded


@given(st.lists(messages(), min_size=1, max_size=4), st.data())
def test_a_cut_datagram_is_an_error_or_a_prefix(sent: list[Message], data: st.DataObject) -> None:
    whole, fds = channel.encode(sent)
    cut = data.draw(st.integers(0, len(whole) - 1))
    try:
        decoded = channel.decode(whole[:cut], fds)
    except ChannelError:
        return
    assert decoded == sent[: len(decoded)]


@pytest.mark.parametrize(
    "data",
    [
        channel.HEADER.pack(16, 999, 0, 0),
        channel.HEADER.pack(0, Type.QUIT, 0, 0),
        channel.HEADER.pack(2**32 - 1, Type.QUIT, 0, 0),
        channel.HEADER.pack(16, Type.QUIT, 5, 0),
        channel.HEADER.pack(24, Type.QUIT, 0, 0) + bytes(8),
    ],
)
def test_what_is_refused(data: bytes) -> None:
    with pytest.raises(ChannelError):
        channel.decode(data, [])


def test_limits() -> None:
    with pytest.raises(ChannelError):
        channel.encode([Message(Type.SEND, (1, 0), tail=bytes(channel.MAX_DATAGRAM_BYTES))])
    with pytest.raises(ChannelError):
        channel.encode([Message(Type.KILL, (2**31, 9))])


@given(
    TEXT,
    st.lists(TEXT, max_size=5),
    st.dictionaries(TEXT.filter(lambda s: s and "=" not in s), TEXT),
)
def test_program_round_trip(cwd: str, argv: list[str], env: dict[str, str]) -> None:
    assert channel.decode_program(channel.encode_program(cwd, argv, env)) == (cwd, argv, env)


@given(st.binary(max_size=100))
def test_program_garbage(data: bytes) -> None:
    try:
        channel.decode_program(data)
    except ChannelError:
        return
    assert struct.unpack_from("<I", data)[0] >= 0
