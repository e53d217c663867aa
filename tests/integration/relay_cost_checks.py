"""Faults of docker-proxy that users have reported: what a start and a request cost.

They count system calls (strace), which no load of the machine changes.  As in ``relay_checks`` a
check takes the program.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.integration.relay_checks import forwarding, there_too
from tests.integration.relays import BOUND_S, Launched, eventually, free_port, options

# Of what a start costs, the most is what the kernel does to execute a program at all.
CALLS_OF_A_START = 60
REQUESTS = 100
# One wait, one read and one write each way, and one call to spare.
CALLS_OF_A_REQUEST = 7
CALL = re.compile(r"^(\d+) +\w+\(", re.MULTILINE)  # not what is resumed


@contextlib.contextmanager
def log_file() -> Iterator[Path]:
    """Where strace writes."""
    with tempfile.TemporaryDirectory(prefix="pyshim-calls-") as folder:
        yield Path(folder) / "log"


@there_too
def check_system_calls_of_a_start(binary: str) -> None:
    with log_file() as log:
        strace = ["strace", "-f", "-qq", "-o", str(log)]
        relay = Launched([*strace, binary, *options(free_port(), 1)])
        try:
            assert os.read(relay.pipe, 2) == b"0\n"
            eventually(lambda: 'write(3, "0\\n"' in log.read_text(), "strace has written it")
            before, _, _ = log.read_text().partition('write(3, "0\\n"')
            calls = CALL.findall(before)
        finally:
            for pid in set(CALL.findall(log.read_text())):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            relay.end()
        assert len(calls) <= CALLS_OF_A_START


@there_too
def check_system_calls_of_a_request(binary: str) -> None:
    with forwarding(binary) as made, log_file() as log:
        client, accepted = made.pair()
        for end in (client, accepted):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pid = made.relay.process.pid
        command = ["strace", "-f", "-qq", "-o", str(log), "-p", str(pid)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as strace:
            try:
                eventually(lambda: all_are_traced(pid), "strace has attached")
                for _ in range(REQUESTS):
                    client.sendall(b"question")
                    assert accepted.recv(100) == b"question"
                    accepted.sendall(b"answer")
                    assert client.recv(100) == b"answer"
            finally:
                strace.send_signal(signal.SIGINT)
                strace.wait(BOUND_S)
        assert len(CALL.findall(log.read_text())) <= CALLS_OF_A_REQUEST * REQUESTS


def all_are_traced(pid: int) -> bool:
    """Whether every thread of a process is."""
    threads = Path(f"/proc/{pid}/task").glob("*/status")
    return all("TracerPid:\t0\n" not in thread.read_text() for thread in threads)
