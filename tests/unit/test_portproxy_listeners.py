"""What systemd passes, or somebody who says that he is systemd."""

from __future__ import annotations

import os

import pytest

from portproxy import listeners


@pytest.mark.parametrize("count", ["²", "-1", "x", ""])
def test_a_count_that_is_no_number_passes_nothing(count: str) -> None:
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count}
    assert listeners.passed_sockets(environment) == {}


def test_a_name_that_only_looks_like_a_number_is_refused() -> None:
    with pytest.raises(listeners.ListenerError, match="no socket named '²'"):
        listeners.passed_socket("²", {})
