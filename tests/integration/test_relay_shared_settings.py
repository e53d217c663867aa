"""What a file says of the whole process: it holds once all of the file is right, and if it is ours.

``log``, ``stats`` and ``drain`` are not a mapping's, though a mapping's table may say them.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.integration.relays import BOUND_S, Launched, eventually, free_port, options
from tests.integration.test_relay_settings import file_of


@pytest.mark.parametrize(
    ("before", "after", "taken"),
    [
        ("[defaults]\n", "", True),
        ("[defaults]\n", "\nidle_timeout = soon", False),
        ("[[mapping]]\nproto = 'udp'\n", "", False),
    ],
)
def test_only_what_applies_is_for_the_whole_process(
    binary: str, tmp_path: Path, before: str, after: str, taken: bool
) -> None:
    log = tmp_path / "log"
    text = f"{before}log = 'file:{log}'\nstats = '{tmp_path}/stats'\ndrain = '5s'{after}\n"
    env = file_of(tmp_path, text)
    with (
        socket.create_server(("127.0.0.1", 0)) as backend,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stats,
    ):
        backend.settimeout(BOUND_S)
        stats.bind(str(tmp_path / "stats"))
        stats.settimeout(BOUND_S)
        port = free_port()
        relay = Launched([binary, *options(port, backend.getsockname()[1])], env=env)
        try:
            assert relay.answer() == b"0\n"
            with socket.create_connection(("127.0.0.1", port), BOUND_S) as client:
                accepted, _ = backend.accept()
                accepted.settimeout(BOUND_S)
                with accepted:
                    relay.process.terminate()
                    if taken:
                        eventually(lambda: refused(port), "it has begun to drain")
                        client.sendall(b"still here")
                        assert accepted.recv(100) == b"still here"
                    else:
                        assert relay.process.wait(BOUND_S) == 0
                        assert client.recv(1) == b""
            if taken:
                assert b'"event":"close"' in stats.recv(4096)
            assert log.exists() == taken
        finally:
            relay.end()


def refused(port: int) -> bool:
    """Whether nobody listens."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0
