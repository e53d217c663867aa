"""The events on disk: what was written is read again, whatever a crash has torn off."""

from __future__ import annotations

import asyncio
import resource
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyshim.api import events_pb2, forward_pb2, state_pb2
from pyshim.events import publisher, spool
from pyshim.service.store import Store

EVENTS = st.lists(st.binary(max_size=100), max_size=20).map(
    lambda texts: [state_pb2.Event(number=n + 1, envelope=text) for n, text in enumerate(texts)]
)


def file_of(events: list[state_pb2.Event], taken: int = 0) -> bytes:
    return spool.HEADER.pack(taken) + b"".join(map(spool.encode, events))


@given(EVENTS, st.integers(0, 25))
def test_what_was_not_taken_is_read(events: list[state_pb2.Event], taken: int) -> None:
    assert spool.decode(file_of(events, taken)) == events[taken:]


@given(EVENTS, st.data())
def test_a_torn_file_has_its_whole_records(
    events: list[state_pb2.Event], data: st.DataObject
) -> None:
    whole = file_of(events)
    cut = data.draw(st.integers(0, len(whole)))
    found = spool.decode(whole[:cut])
    assert found == events[: len(found)]
    assert len(file_of(events[: len(found) + 1])) > cut or len(found) == len(events)


@given(st.binary(max_size=300))
def test_any_bytes_are_read(data: bytes) -> None:
    assert all(event.number > 0 for event in spool.decode(data))


def test_events_are_kept_once_and_go(tmp_path: Path) -> None:
    events = [state_pb2.Event(number=n, container="c", envelope=b"x") for n in (1, 2, 3)]
    bundles = {"c": str(tmp_path)}
    first = spool.Spool()
    first.keep(events[:2], bundles)
    other = spool.Spool()  # of the next service
    other.keep([*events, state_pb2.Event(number=4, container="gone")], bundles)
    assert spool.read(str(tmp_path)) == events
    path = tmp_path / spool.NAME
    assert path.stat().st_mode & 0o777 == 0o600
    size = path.stat().st_size
    other.keep(events, bundles)
    assert path.stat().st_size == size
    other.taken(1)
    assert spool.read(str(tmp_path)) == events[1:]
    other.clear(bundles.values())
    assert not path.exists()
    assert spool.read(str(tmp_path)) == []


@given(EVENTS, st.data())
def test_what_is_added_behind_a_torn_record_is_read(
    events: list[state_pb2.Event], data: st.DataObject
) -> None:
    whole = file_of(events)
    cut = data.draw(st.integers(0, len(whole)))
    left = spool.decode(whole[:cut])
    added = state_pb2.Event(number=100, envelope=b"x")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / spool.NAME).write_bytes(whole[:cut])
        spool.append(folder, [added])
        assert spool.read(folder) == [*left, added]


def test_a_disk_that_takes_a_part_has_none_of_it(tmp_path: Path) -> None:
    """The limit of a file's size cuts a write short, as the end of a disk does."""
    first, *others = [state_pb2.Event(number=n, envelope=bytes(300)) for n in range(1, 20)]
    spool.append(str(tmp_path), [first])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            spool.append(str(tmp_path), others)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert spool.read(str(tmp_path)) == [first]
    spool.append(str(tmp_path), others)
    assert spool.read(str(tmp_path)) == [first, *others]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """A bundle belongs to root, but what a container may write to could lie below it."""
    target = tmp_path / "target"
    target.write_bytes(b"")
    (tmp_path / spool.NAME).symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        spool.append(str(tmp_path), [state_pb2.Event(number=1)])
    assert target.read_bytes() == b""


def test_a_full_outbox_drops_the_oldest_but_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "OUTBOX_MAX_EVENTS", 5)
    store = Store()
    store.state.ttrpc_address = "/none"
    store.state.namespace = "n"
    store.state.publishing = 1  # is on its way

    async def queue() -> list[str]:
        queued = publisher.Publisher(store)
        monkeypatch.setattr(queued, "wake", lambda: None)
        for number in range(4):
            event = events_pb2.TaskExecAdded(container_id="c", exec_id=f"{number}")
            queued.queue("/tasks/exec-added", event)
        for number in range(4):
            exit_event = events_pb2.TaskExit(container_id="c", id=f"{number}")
            queued.queue("/tasks/exit", exit_event)
        return [
            forward_pb2.Envelope.FromString(event.envelope).topic for event in store.state.outbox
        ]

    assert asyncio.run(queue()) == ["/tasks/exec-added", *["/tasks/exit"] * 4]
    assert store.state.outbox[0].number == 1
    assert store.state.dropped == 3


def test_what_was_dropped_does_not_stay_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "MAX_KEPT", 10)
    kept = spool.Spool()
    for number in range(1, 101):
        outbox = [
            state_pb2.Event(number=n, container="c") for n in range(max(1, number - 4), number + 1)
        ]
        kept.keep(outbox, {"c": str(tmp_path)})
        found = spool.read(str(tmp_path))
        assert found[-len(outbox) :] == outbox
        assert len(found) <= 12
