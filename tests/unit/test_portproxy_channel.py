"""The words of the control channel, without a relay."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portproxy import channel
from portproxy.channel import ChannelError, Done, Event, Refused


def test_commands() -> None:
    assert channel.add("tcp 0.0.0.0 80 10.0.0.2 80") == b"add tcp 0.0.0.0 80 10.0.0.2 80"
    assert channel.remove(3, 500) == b"remove 3 500"
    assert channel.remove(3, channel.FOREVER_MS) == b"remove 3"
    assert channel.mark(3, 1, up=False) == b"backend 3 1 down"
    assert channel.drain(0) == b"drain 0"
    assert channel.simple("list", 7) == b"list 7"


@pytest.mark.parametrize("line", ["a\0b", "x" * 70000])
def test_what_does_not_fit_is_refused(line: str) -> None:
    with pytest.raises(ChannelError):
        channel.add(line)


def test_answers() -> None:
    done = channel.parse(b'8080 98\n8081 13\nok 4 8080\n{"event":"mapping"}\n')
    assert isinstance(done, Done)
    assert (done.number, done.other) == (4, 8080)
    assert done.failed_ports() == [(8080, 98), (8081, 13)]
    assert done.records() == [{"event": "mapping"}]
    assert channel.parse(b"error 80 13 no, not this\n") == Refused(80, 13, "no, not this")
    assert channel.parse(b'{"event":"close"}') == Event({"event": "close"})


@given(st.binary(max_size=200) | st.text('okern 0123456789{}\n"', max_size=60).map(str.encode))
def test_any_datagram_is_understood_or_refused(data: bytes) -> None:
    try:
        answer = channel.parse(data)
        if isinstance(answer, Done):
            answer.failed_ports()
            answer.records()
    except ChannelError as error:
        assert str(error)
    else:
        assert isinstance(answer, Done | Refused | Event)


@given(st.dictionaries(st.text(), st.integers()))
def test_an_event_is_read_back(record: dict[str, int]) -> None:
    assert channel.parse(json.dumps(record).encode()) == Event(record)
