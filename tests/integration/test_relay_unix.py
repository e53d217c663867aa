"""What a read from a Unix socket says, and what it does not."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from tests.integration.relays import BOUND_S, Launched, free_port


def test_descriptors_between_the_bytes_of_a_container(binary: str, tmp_path: Path) -> None:
    """A read from a Unix socket ends before bytes that came with descriptors, and after them."""
    port, path = free_port(), tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as backend, (tmp_path / "held").open("w") as held:
        backend.bind(str(path))
        backend.listen()
        backend.settimeout(BOUND_S)
        (tmp_path / "mappings").write_text(f"tcp 127.0.0.1 {port} {path} 0\n")
        relay = Launched([binary, "-mappings", str(tmp_path / "mappings")])
        try:
            assert relay.answer() == b"0\n"
            for closes in (False, True):
                with socket.create_connection(("127.0.0.1", port), BOUND_S) as client:
                    accepted, _ = backend.accept()
                    client.sendall(b"x")
                    assert accepted.recv(1) == b"x"
                    relay.process.send_signal(signal.SIGSTOP)
                    accepted.sendall(b"one")
                    socket.send_fds(accepted, [b"two"], [held.fileno()])
                    accepted.sendall(b"three")
                    if closes:
                        accepted.close()
                    relay.process.send_signal(signal.SIGCONT)
                    with client.makefile("rb") as said:
                        assert said.read(11) == b"onetwothree"
                    accepted.close()
            held_by = [os.readlink(f) for f in Path(f"/proc/{relay.process.pid}/fd").iterdir()]
            assert str(tmp_path / "held") not in held_by
        finally:
            relay.end()
