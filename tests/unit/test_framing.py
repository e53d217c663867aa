"""ttrpc framing: any cut of the stream gives the same frames; nothing malformed raises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyshim.ttrpc import framing
from pyshim.ttrpc.framing import Frame, FrameReader, Oversized

FRAMES = st.builds(
    Frame,
    stream=st.integers(0, 2**32 - 1),
    type=st.integers(0, 255),
    flags=st.integers(0, 255),
    payload=st.binary(max_size=60),
)


def encode(frames: list[Frame]) -> bytes:
    return b"".join(framing.encode_frame(f.stream, f.type, f.payload, f.flags) for f in frames)


@given(st.lists(FRAMES, max_size=6), st.lists(st.integers(1, 30), max_size=40))
def test_any_split_gives_the_same_frames(frames: list[Frame], cuts: list[int]) -> None:
    data = encode(frames)
    reader = FrameReader()
    found: list[Frame | Oversized] = []
    for cut in [*cuts, len(data)]:
        found += reader.feed(data[:cut])
        data = data[cut:]
        # A new reader with what the old one remembers must go on where that was.
        reader = FrameReader(reader.pending, reader.discarding)
    assert found == frames
    assert (reader.pending, reader.discarding) == (b"", 0)


@given(FRAMES, st.integers(0, 69))
def test_a_truncated_frame_is_no_frame(frame: Frame, keep: int) -> None:
    data = encode([frame])
    cut = min(keep, len(data) - 1)
    reader = FrameReader()
    assert reader.feed(data[:cut]) == []
    assert reader.pending == data[:cut]
    assert reader.feed(data[cut:]) == [frame]


@given(FRAMES, st.integers(1, 100_000))
def test_an_oversized_frame_is_reported_and_skipped(after: Frame, excess: int) -> None:
    length = framing.MAX_BYTES + excess
    reader = FrameReader()
    header = framing.HEADER.pack(length, 7, framing.REQUEST, 0)
    assert reader.feed(header + bytes(100)) == [Oversized(7, framing.REQUEST, length)]
    assert reader.discarding == length - 100
    reader = FrameReader(reader.pending, reader.discarding)
    assert reader.feed(bytes(length - 100) + encode([after])) == [after]


@given(st.binary(max_size=300))
def test_garbage_never_raises(data: bytes) -> None:
    reader = FrameReader()
    found = reader.feed(data)
    assert sum(10 + len(f.payload) for f in found if isinstance(f, Frame)) <= len(data)


def test_too_large_to_send() -> None:
    with pytest.raises(framing.FrameTooLarge):
        framing.encode_frame(1, framing.REQUEST, bytes(framing.MAX_BYTES + 1))
