"""Since when nobody has been there."""

from __future__ import annotations

from typing import Any

from portproxy.idleness import Idleness


def records(links: int, *mappings: tuple[int, int]) -> list[dict[str, Any]]:
    """A data plane's; of each mapping what it has accepted, and its sessions."""
    shown: list[dict[str, Any]] = [{"accepted": a, "sessions": s} for a, s in mappings]
    return [*shown, {"links": links}]


def test_it_lasts_while_nothing_happens() -> None:
    idleness = Idleness(100.0)
    assert idleness.lasts_s(103.0) == 3.0
    idleness.see(records(0, (5, 0)), 104.0)  # what was before is not known
    idleness.see(records(0, (5, 0)), 110.0)
    assert idleness.lasts_s(111.0) == 7.0


def test_it_ends_with_whoever_is_or_was_there() -> None:
    idleness = Idleness(0.0)
    for at, seen in enumerate(
        (
            records(1, (1, 0)),  # a connection
            records(1, (1, 0)),  # which stays
            records(0, (1, 2)),  # datagrams
            records(0, (1, 0), (1, 0)),  # one that has come and gone, to a new mapping
            records(0, (1, 0)),  # a mapping has gone
        )
    ):
        idleness.see(seen, float(at))
        assert idleness.lasts_s(float(at)) == 0.0
