"""Drives the portproxy command, over loopback only."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import plain_only
from tests.integration.relays import BOUND_S, eventually, free_port
from tests.integration.tool import Echo, Tool, echo, says

Tools = Callable[..., Tool]
ALONE = ("--workers", "1")


@pytest.fixture
def tools(programs: Path) -> Iterator[Tools]:
    """Starts tools for some mappings; they are gone afterwards."""
    started: list[Tool] = []

    def start(*mappings: str, options: tuple[str, ...] = (), **more: object) -> Tool:
        flags = [word for mapping in mappings for word in ("-p", mapping)]
        started.append(Tool(programs, *flags, *options, **more))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for tool in started:
        tool.end()


def gone(pids: list[int]) -> bool:
    """Whether none of ``pids`` runs."""
    return not any(is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    """Whether ``pid`` exists and is no zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@pytest.fixture
def backend() -> Iterator[Echo]:
    """Something to forward to."""
    with echo("it") as made:
        yield made


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_tool_forwards_until_told_to_stop(tools: Tools, backend: Echo, number: int) -> None:
    tool = tools(
        f"127.0.0.1:0:127.0.0.1:{backend.port}",
        f"[::1]:0:127.0.0.1:{backend.port}/tcp",
        options=ALONE,
    )
    assert says(("127.0.0.1", tool.port())) == "it"
    assert says(("::1", tool.port()), socket.AF_INET6) == "it"
    children = tool.children()
    assert len(children) == 2  # one relay for everything, and its broker
    assert tool.stop(number) == (0, "")
    eventually(lambda: gone(children), "they end with the tool")


def test_tool_finds_a_host_by_its_name(tools: Tools) -> None:
    address = socket.getaddrinfo("localhost", 1, type=socket.SOCK_STREAM)[0][4][0]
    family = socket.AF_INET6 if ":" in str(address) else socket.AF_INET
    with echo("named", family, (address, 0)) as backend:
        tool = tools(f"127.0.0.1:0:localhost:{backend.port}")
        assert says(("127.0.0.1", tool.port())) == "named"


def test_tool_takes_its_relays_along(tools: Tools, backend: Echo) -> None:
    tool = tools(f"127.0.0.1:0:127.0.0.1:{backend.port}")
    assert tool.line().startswith("listening on 127.0.0.1:")
    children = tool.children()
    tool.process.kill()
    eventually(lambda: gone(children), "they die with the tool")


def test_tool_ends_when_its_relay_does(tools: Tools, backend: Echo) -> None:
    tool = tools(*[f"127.0.0.1:0:127.0.0.1:{backend.port}"] * 2, options=ALONE)
    tool.line()
    tool.line()
    children = tool.children()
    os.kill(children[0], signal.SIGKILL)
    code, error = tool.finish()
    assert code == 1
    assert error == "portproxy: the data plane has ended by signal 9\n"
    eventually(lambda: gone(children), "the broker ends with the relay")


def test_tool_names_who_has_a_busy_port(tools: Tools, backend: Echo) -> None:
    port = backend.port
    tool = tools(f"127.0.0.1:0:127.0.0.1:{port}", f"127.0.0.1:{port}:127.0.0.1:{port}")
    code, error = tool.finish()
    assert code == 1
    comm = Path("/proc/self/comm").read_text().strip()
    holder = f"by {comm}, pid {os.getpid()}"
    assert error.startswith(
        f"portproxy: cannot listen on 127.0.0.1:{port}: address already in use ({holder}"
    )
    assert error.count("\n") == 1


@pytest.mark.parametrize("mapping", ["80", "web:80:h:80", "80:h:80/http"])
def test_tool_refuses_what_is_no_mapping(tools: Tools, mapping: str) -> None:
    code, error = tools(mapping).finish()
    assert code == 2
    assert error.startswith(f"portproxy: {mapping!r}")
    assert error.count("\n") == 1


def test_tool_needs_a_mapping(tools: Tools) -> None:
    code, error = tools().finish()
    assert code == 2
    assert error.count("\n") == 1


def test_both_protocols_on_one_port(tools: Tools, backend: Echo) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as answering:
        answering.bind(("127.0.0.1", backend.port))
        answering.settimeout(BOUND_S)
        port = free_port()
        tool = tools(f"127.0.0.1:{port}:127.0.0.1:{backend.port}/both")
        assert tool.line() == f"listening on 127.0.0.1:{port} -> 127.0.0.1:{backend.port}"
        assert tool.line().endswith("/udp")
        assert says(("127.0.0.1", port)) == "it"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(BOUND_S)
            asking.sendto(b"question", ("127.0.0.1", port))
            data, seen = answering.recvfrom(100)
            assert data == b"question"
            answering.sendto(b"answer", seen)
            assert asking.recvfrom(100) == (b"answer", ("127.0.0.1", port))


def has_sctp() -> bool:
    """Whether this kernel speaks SCTP."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        return False
    return True


def test_sctp_or_why_not(tools: Tools) -> None:
    tool = tools("127.0.0.1:0:127.0.0.1:9/sctp")
    if has_sctp():
        assert tool.line().endswith("/sctp")
        return
    code, error = tool.finish()
    assert code == 1
    assert "this kernel has no sctp" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("abstract", [False, True])
def test_unix_sockets_on_both_sides(tools: Tools, tmp_path: Path, abstract: bool) -> None:
    front = f"@front{os.getpid()}" if abstract else str(tmp_path / "front")
    back = f"@back{os.getpid()}" if abstract else str(tmp_path / "back")

    def where(path: str) -> str:
        return "\0" + path[1:] if path.startswith("@") else path

    with echo("unix", socket.AF_UNIX, where(back)):
        if not abstract:
            tmp_path.chmod(0o755)
            for folder in tmp_path.parents[:2]:
                folder.chmod(0o755)
            os.chmod(back, 0o777)
        tool = tools(f"unix:{front}:unix:{back}", f"127.0.0.1:0:unix:{back}")
        assert tool.line() == f"listening on unix:{front} -> unix:{back}"
        assert says(("127.0.0.1", tool.port())) == "unix"
        assert says(where(front), socket.AF_UNIX) == "unix"
        tool.stop()
    assert not Path(front).exists()


def test_a_stale_unix_socket_is_replaced_and_a_served_one_is_not(
    tools: Tools, tmp_path: Path, backend: Echo
) -> None:
    front = tmp_path / "front"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(front))
    tool = tools(f"unix:{front}:127.0.0.1:{backend.port}")
    tool.line()
    assert says(str(front), socket.AF_UNIX) == "it"
    code, error = tools(f"unix:{front}:127.0.0.1:{backend.port}").finish()
    assert (code, "address already in use" in error) == (1, True)
    assert says(str(front), socket.AF_UNIX) == "it"


def test_a_range_leads_to_a_range_or_to_one_port(tools: Tools) -> None:
    first = free_block(8)
    with contextlib.ExitStack() as stack:
        for at in range(4):
            stack.enter_context(echo(f"n{at}", at=("127.0.0.1", first + at)))
        tool = tools(
            f"127.0.0.2:{first}-{first + 3}:127.0.0.1:{first}-{first + 3}",
            f"127.0.0.3:{first}-{first + 3}:127.0.0.1:{first}",
        )
        tool.line()
        tool.line()
        assert [says(("127.0.0.2", first + at)) for at in range(4)] == ["n0", "n1", "n2", "n3"]
        assert [says(("127.0.0.3", first + at)) for at in range(4)] == ["n0"] * 4


def test_ports_of_a_range_that_are_busy_are_left_out_if_that_is_wanted(
    tools: Tools, backend: Echo
) -> None:
    first = free_block(3)
    publish = f"127.0.0.1:{first}-{first + 2}:127.0.0.1:{backend.port}"
    with socket.create_server(("127.0.0.1", first + 1)):
        code, error = tools(publish).finish()
        assert (code, f"127.0.0.1:{first + 1}: address already in use" in error) == (1, True)
        tool = tools(publish, options=("--set", "partial=true"))
        tool.line()
        assert says(("127.0.0.1", first)) == "it"
        assert says(("127.0.0.1", first + 2)) == "it"
        _, error = tool.stop()
        assert f"port {first + 1} is left out: address already in use" in error


def free_block(ports: int) -> int:
    """The first of some successive ports that nobody has on any loopback address."""
    for first in range(21000, 30000, ports):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for at in range(ports):
                probe = stack.enter_context(socket.socket())
                probe.bind(("0.0.0.0", first + at))
            return first
    pytest.fail("no ports are free")


@plain_only
def test_the_data_plane_has_no_privileges(tools: Tools, backend: Echo) -> None:
    tool = tools(f"127.0.0.1:0:127.0.0.1:{backend.port}", options=ALONE)
    port = tool.port()
    relay, broker = tool.children()
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{relay}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert status["Uid"].split() == ["65534"] * 4
    assert status["Groups"].strip() == ""
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert says(("127.0.0.1", port)) == "it"
    # The broker keeps its privileges, and nothing else: no socket but the relay's.
    assert sorted(os.listdir(f"/proc/{broker}/fd"), key=int) == ["0", "1", "2", "3", "4"]


def test_a_socket_of_systemd_by_its_name(
    tools: Tools, programs: Path, backend: Echo, tmp_path: Path
) -> None:
    port = free_port()
    first = ("systemd-socket-activate", "-l", f"127.0.0.1:{port}", "--fdname=web", "-E", "PATH")
    tool = tools(f"fd:web:127.0.0.1:{backend.port}", first=first)

    def reached() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            return says(("127.0.0.1", port)) == "it"
        return False

    # systemd-socket-activate starts the tool when the first client comes.
    eventually(reached, "the tool serves the socket of its parent")
    assert tool.stop()[0] == 0


@plain_only
def test_a_service_that_nobody_uses_ends_and_the_next_client_starts_another(
    tools: Tools, backend: Echo
) -> None:
    """The socket outlives the tool, so that nobody who comes in between is refused."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        options = ("--exit-on-idle", "100ms")
        tool = tools(f"127.0.0.1:0:127.0.0.1:{backend.port}", options=options)
        assert tool.line().startswith("listening on 127.0.0.1:")
        assert tool.finish() == (0, "")
        first = ("systemd-socket-activate", "-l", f"127.0.0.1:{port}", "-E", "PATH")
    tool = tools(f"fd:3:127.0.0.1:{backend.port}", options=options, first=first)

    found: list[socket.socket] = []

    def connects() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            found.append(socket.create_connection(("127.0.0.1", port), BOUND_S))
        return found != []

    eventually(connects, "it listens")
    with found[0] as held:
        assert held.recv(2) == b"it"
        for letter in b"while somebody is there it stays":
            held.sendall(bytes([letter]))
            assert held.recv(1) == bytes([letter])
        assert tool.process.poll() is None
    assert tool.finish()[0] == 0
