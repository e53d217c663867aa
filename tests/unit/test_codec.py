"""Requests, responses and the status that an error carries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyshim.api import events_pb2
from pyshim.ttrpc import codec, framing
from pyshim.ttrpc.status import Code, StatusError


def only(data: bytes) -> framing.Frame:
    (frame,) = framing.FrameReader().feed(data)
    assert isinstance(frame, framing.Frame)
    return frame


@given(st.binary(max_size=50), st.integers(0, 2**62))
def test_request_round_trip(payload: bytes, timeout_ns: int) -> None:
    frame = only(codec.encode_request(3, "s", "M", payload, timeout_ns, {"k": "v"}))
    request = codec.decode_request(frame.payload)
    assert (frame.stream, request.service, request.method) == (3, "s", "M")
    assert (request.payload, request.timeout_nano) == (payload, timeout_ns)
    assert [(m.key, m.value) for m in request.metadata] == [("k", "v")]


@given(st.binary(max_size=50))
def test_response_round_trip(payload: bytes) -> None:
    assert codec.decode_response(only(codec.encode_response(1, payload)).payload) == payload


def test_error_round_trip() -> None:
    data = codec.encode_error(5, StatusError(Code.NOT_FOUND, "gone"))
    with pytest.raises(StatusError) as caught:
        codec.decode_response(only(data).payload)
    assert (caught.value.code, caught.value.message) == (Code.NOT_FOUND, "gone")


def test_an_error_is_sent_whatever_its_message() -> None:
    for message in ("no UTF-8: \udcff", "\U0001f600" * framing.MAX_BYTES):
        with pytest.raises(StatusError) as caught:
            codec.decode_response(only(codec.encode_error(1, StatusError(2, message))).payload)
        assert message.startswith(caught.value.message.rstrip("?"))


def test_a_response_that_is_too_large_becomes_an_error() -> None:
    frame = only(codec.encode_response(1, bytes(framing.MAX_BYTES)))
    with pytest.raises(StatusError) as caught:
        codec.decode_response(frame.payload)
    assert caught.value.code == Code.RESOURCE_EXHAUSTED


@given(st.binary(max_size=60))
def test_garbage_is_a_status(data: bytes) -> None:
    for decode in (codec.decode_request, codec.decode_response):
        try:
            decode(data)
        except StatusError as error:
            assert error.code != Code.OK


def test_events_have_the_names_and_numbers_that_containerd_knows() -> None:
    event = events_pb2.TaskExit(container_id="c", id="e", pid=3, exit_status=7)
    assert event.DESCRIPTOR.full_name == "containerd.events.TaskExit"
    assert event.SerializeToString() == b"\x0a\x01c\x12\x01e\x18\x03\x20\x07"
