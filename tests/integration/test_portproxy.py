"""Drives the portproxy command, over loopback only."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import interpreter
from tests.integration.relays import BOUND_S, eventually

ROOT = Path(__file__).resolve().parents[2]


class Tool:
    """A running ``portproxy``."""

    def __init__(self, programs: Path, *mappings: str) -> None:
        path = os.pathsep.join([str(programs), os.environ["PATH"]])
        flags = [word for mapping in mappings for word in ("-p", mapping)]
        self.process = subprocess.Popen(
            [interpreter(programs), "-m", "portproxy", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PATH": path},
        )

    def line(self) -> str:
        """The next line of the output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def relays(self) -> list[int]:
        """The pids of its children."""
        pid = self.process.pid
        return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def finish(self) -> tuple[int, str]:
        """Its exit code and what it wrote to stderr."""
        _, error = self.process.communicate(timeout=BOUND_S)
        return self.process.returncode, error


@pytest.fixture
def tools(programs: Path) -> Iterator[Callable[..., Tool]]:
    """Starts tools; they are gone afterwards."""
    started: list[Tool] = []

    def start(*mappings: str) -> Tool:
        started.append(Tool(programs, *mappings))
        return started[-1]

    yield start
    for tool in started:
        tool.process.kill()
        tool.process.communicate(timeout=BOUND_S)


def gone(pids: list[int]) -> bool:
    """Whether none of ``pids`` runs."""
    return not any(is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    """Whether ``pid`` exists and is no zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@pytest.fixture
def backend() -> Iterator[socket.socket]:
    """A listener to forward to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(BOUND_S)
        yield server


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_tool_forwards_until_told_to_stop(
    tools: Callable[..., Tool], backend: socket.socket, number: int
) -> None:
    port = backend.getsockname()[1]
    tool = tools(f"127.0.0.1:0:127.0.0.1:{port}", f"[::1]:0:localhost:{port}/tcp")
    for host, target in (("127.0.0.1", f"127.0.0.1:{port}"), ("::1", f"localhost:{port}")):
        where, _, to = tool.line().removeprefix("listening on ").partition(" -> ")
        assert to == target
        chosen = int(where.rpartition(":")[2])
        with socket.create_connection((host, chosen), BOUND_S) as client:
            if host == "::1" and socket.getaddrinfo("localhost", 1)[0][4][0] == "::1":
                continue  # the backend listens on IPv4 only
            accepted, _ = backend.accept()
            with accepted:
                client.sendall(b"x")
                assert accepted.recv(1) == b"x"
    relays = tool.relays()
    assert len(relays) == 2
    tool.process.send_signal(number)
    code, _ = tool.finish()
    assert code == 0
    assert gone(relays)


def test_tool_takes_its_relays_along(tools: Callable[..., Tool], backend: socket.socket) -> None:
    tool = tools(f"127.0.0.1:0:127.0.0.1:{backend.getsockname()[1]}")
    assert tool.line().startswith("listening on 127.0.0.1:")
    relays = tool.relays()
    tool.process.kill()
    eventually(lambda: gone(relays), "the relays die with the tool")


def test_tool_ends_when_a_relay_does(tools: Callable[..., Tool], backend: socket.socket) -> None:
    tool = tools(*[f"127.0.0.1:0:127.0.0.1:{backend.getsockname()[1]}"] * 2)
    lines = [tool.line(), tool.line()]
    relays = tool.relays()
    os.kill(relays[0], signal.SIGKILL)
    code, error = tool.finish()
    assert code == 1
    what = lines[0].removeprefix("listening on ")
    assert error == f"portproxy: the relay of {what} has ended by SIGKILL\n"
    assert gone(relays)


def test_tool_names_a_busy_port(tools: Callable[..., Tool], backend: socket.socket) -> None:
    port = backend.getsockname()[1]
    tool = tools(f"127.0.0.1:0:127.0.0.1:{port}", f"127.0.0.1:{port}:127.0.0.1:{port}")
    code, error = tool.finish()
    assert code == 1
    assert error == f"portproxy: cannot listen on 127.0.0.1:{port}: address already in use\n"


@pytest.mark.parametrize("mapping", ["80", "web:80:h:80", "80:h:80/udp"])
def test_tool_refuses_what_is_no_mapping(tools: Callable[..., Tool], mapping: str) -> None:
    code, error = tools(mapping).finish()
    assert code == 2
    assert error.startswith(f"portproxy: {mapping!r}")
    assert error.count("\n") == 1


def test_tool_needs_a_mapping(tools: Callable[..., Tool]) -> None:
    code, error = tools().finish()
    assert code == 2
    assert error.count("\n") == 1
